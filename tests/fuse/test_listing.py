"""A directory listed while entries come and go and its replica dies; ``make model`` lists a large one."""

from __future__ import annotations

import pytest

from tests.live import Live
from tests.model import listing

pytestmark = pytest.mark.system


def test_a_listing_is_exact_while_entries_come_and_go_and_the_replica_dies(cluster: Live) -> None:
    """Cookies are part of the state: the next replica goes on where the last one was."""
    listing.run(cluster, 3000, True, lambda text: None)

"""Files unlinked while open; ``make model`` makes 10,000 of them with every kind of crash in between."""

from __future__ import annotations

import pytest

from tests.live import Live
from tests.model.unlinked import Churn

pytestmark = pytest.mark.system


def test_nothing_is_left_of_files_that_were_unlinked_while_open(cluster: Live) -> None:
    """Without a crash: that of a replica is waited out for a session timeout, a minute."""
    churn = Churn(cluster, seed=1)
    try:
        for _ in range(120):
            churn.cycle()
        churn.finish(limit_s=30.0)
    finally:
        churn.close()

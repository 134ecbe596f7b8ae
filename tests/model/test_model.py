"""A short run of the state machine; ``make model`` runs more, and shrinks what fails."""

from __future__ import annotations

import pytest

from tests.live import Live
from tests.model import machine
from tests.model.twin import Difference, Stage, Twin

pytestmark = pytest.mark.system

EXAMPLES = 5


@pytest.mark.parametrize("seed", [1001, 1002])
def test_mounts_do_as_a_local_file_system_does(cluster: Live, on: Stage, seed: int) -> None:
    """A failure is made small by ``python -m tests.model --rounds 1 --examples 5 --first`` and the seed."""
    before = on.steps
    machine.run(on, seed, EXAMPLES, shrink=False)
    assert on.steps > before, "something was done"


def test_a_difference_is_noticed(cluster: Live, twin: Twin) -> None:
    """The comparison itself: what is done on one side alone is found, in a tree and in an answer."""
    twin.do("root", 0, "mkdir", b"a", 0o755)
    root = twin.roots[0]
    twin.actors["root"].calls((root, "mkdir", (b"b", 0o755)))
    with pytest.raises(Difference, match="has .*, and a local file system"):
        twin.compare()
    with pytest.raises(Difference, match=r"mkdir.*ok.*EEXIST"):
        twin.do("root", 1, "mkdir", b"b", 0o755)
    twin.compare()
    twin.actors["root"].calls((root, "setxattr", (b"a", "user.a", b"1", 0, True)))
    with pytest.raises(Difference, match=r"user\.a"):
        twin.compare()
    twin.actors["root"].calls((root, "removexattr", (b"a", "user.a", True)))
    with pytest.raises(Difference, match=r"wrong: \['ctime'\]"):
        twin.compare()
    twin.do("root", 0, "chmod", b"a", 0o700)
    twin.compare()

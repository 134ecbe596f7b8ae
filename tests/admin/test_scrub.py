"""What `lockstep scrub` reports as wrong."""

from __future__ import annotations

from admin.targets import lacking
from wire.chains import DRAINING, OFFLINE, SERVING, SYNCING, chain_of


def test_a_move_is_not_wrong_and_a_missing_copy_is() -> None:
    one, two = chain_of(1, 1), chain_of(2, 1)
    assert lacking(((one, 1, ((1, SERVING),)), (two, 1, ((1, SERVING), (2, SERVING))))) == []
    assert lacking(((one, 2, ((1, DRAINING), (3, SYNCING))),)) == []
    assert lacking(((two, 2, ((1, SERVING), (2, DRAINING), (3, SYNCING))),)) == []
    assert lacking(((two, 2, ((1, SERVING), (2, SYNCING))),)) == [f"chain {two}: target 2 is syncing"]
    assert lacking(((two, 2, ((1, OFFLINE), (2, SERVING))),)) == [f"chain {two}: target 1 is offline"]

"""mds.batching: what a peer multicasts is taken apart whatever it is, also while own requests wait."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mds.batching import Batching
from mds.machine import StateMachine
from mds.store import Store
from wire import ops
from wire.codec import encode

OP = ops.SessionClose(1, bytes(16))


@pytest.mark.parametrize(
    "entry", [5, "entry", (), (1, 2), (1, 2, 3, 4, {}), (1, {}, 3, 4, encode(OP)), {4: encode(OP)}, (1, 2, 3, 4, b"")]
)
@pytest.mark.parametrize("waits", [False, True])
def test_a_malformed_entry_is_no_operation(tmp_path: Path, entry: Any, waits: bool) -> None:
    store = Store.open(tmp_path / "state")
    batching = Batching(StateMachine(store, 1))
    if waits:
        batching.add((1, 0, 1, 1, encode(OP)), OP)
    assert batching.decoded((entry, (1, 0, 1, 1, encode(OP)))) == [None, OP]
    store.close()

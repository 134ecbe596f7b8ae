"""The storage map."""

from __future__ import annotations

import errno
from pathlib import Path

from mds.machine import Bootstrap, StateMachine
from mds.store import Store
from tests.mds.harness import World
from wire import ops
from wire.codec import encode, pack


def test_new_target_gets_a_chain(world: World) -> None:
    version, targets, chains = world.machine.storage_map()
    assert (version, len(targets)) == (4, 4)
    assert world.internal(ops.TargetSet(7, "host:7", b"7" * 16)) == 5
    version, targets, chains = world.ask(ops.StorageMap())
    assert version == 5
    assert targets[-1] == (7, "host:7", "serving")
    assert chains[-1] == (7, 1, (7,))


def test_idempotent_and_movable(world: World) -> None:
    op = ops.TargetSet(1, "127.0.0.1:9001", b"\1" * 16)
    assert world.internal(op) == 4
    assert world.internal(ops.TargetSet(1, "elsewhere:1", b"\1" * 16)) == 5
    assert world.machine.storage_map()[1][0] == (1, "elsewhere:1", "serving")
    assert len(world.machine.storage_map()[2]) == 4


def test_another_disk_is_refused(world: World) -> None:
    outcome = world.entry(0, 1, 1, ops.TargetSet(1, "127.0.0.1:9001", b"x" * 16))
    assert outcome.status == errno.EEXIST


def test_stripe_count_of_the_cluster(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "s")
    machine = StateMachine(store, 1, Bootstrap(stripe_size=65536, stripe_count=2))
    for k in (1, 2, 3):
        machine.apply(k, 1, pack(((1, 0, 1, 1, encode(ops.TargetSet(k, "h:1", b"u" * 16))),)))
    layout = machine._scope.storage.layout((9 << 12) + 2)
    assert layout is not None and layout[0] == 65536 and len(layout[1]) == 2
    machine.validate()
    store.close()

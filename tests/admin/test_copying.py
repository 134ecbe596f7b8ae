"""A copy of a state that was written while requests waited for their locks."""

from __future__ import annotations

from pathlib import Path

from admin.copying import complete
from mds.batch import decode_batch
from mds.check import check
from mds.namespace import entries
from mds.schedule import Schedule
from mds.store import Store
from tests.mds.harness import ROOT, TOP, World
from tests.mds.test_machine import flush
from wire import ops
from wire.codec import encode, pack


def test_what_waited_is_in_the_copy(tmp_path: Path) -> None:
    """At another replica it may have been answered by then."""
    world = World(tmp_path)
    index = world.machine.index + 1
    schedule = Schedule(world.machine)
    entry = (world.time, world.session, 9, 1, encode(ops.Mkdir(ROOT, TOP, b"late", 0o755)))
    schedule.deliver((1, 1, index), index, decode_batch(pack((entry,))), frozenset({0}))
    world.machine.set_position(b"p")
    flush(world.store)
    path = world.store.path
    world.store.close()
    store = Store.open(path)
    assert entries.find(store, TOP, b"late") is None
    complete(store, 1)
    assert entries.find(store, TOP, b"late") is not None and check(store) == []
    store.close()

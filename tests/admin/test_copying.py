"""A copy of a state that was written while requests waited for their locks."""

from __future__ import annotations

from pathlib import Path

from admin import copying
from admin.copying import complete
from mds import schema
from mds.batch import decode_batch
from mds.check import check
from mds.namespace import entries
from mds.schedule import Schedule
from mds.store import Store
from tests.mds.harness import ROOT, TOP, World
from tests.mds.test_machine import flush
from wire import ops
from wire.codec import encode, pack
from wire.delegation import Delegate


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


def test_numbers_that_a_client_has_in_advance_may_be_newer_than_a_copy(tmp_path: Path) -> None:
    """1. A client is given numbers. 2. A copy is made. 3. It makes a large file of one of them."""
    world = World(tmp_path / "s", inline=4096)
    _, first, count, _, _ = world.ok(Delegate(ROOT, TOP))
    below = schema.number_at(world.machine.index + 1, 0)
    copy = copying.Copy(world.store, 1, world.machine.index, below, copying.given_out(world.store))
    newer = [number for number in range(first - 2, first + count + 2) if copy.may_be_newer(number)]
    assert newer == list(range(first, first + count)) and first + count < below
    assert copy.may_be_newer(below) and not copy.may_be_newer(TOP)
    world.finish()

"""Truncations that the storage targets have carried out."""

from __future__ import annotations

import errno

from tests.mds.harness import ROOT, TOP, World
from wire import ops


def test_forgets_up_to_the_number(world: World) -> None:
    ino = world.create(b"f")
    for size in (1, 2, 3):
        world.ok(world.set_attr(ino, size=size))
        world.ok(world.set_attr(ino, size=size))
    before = world.stat(ino)
    assert before.truncations == ((1, 1), (2, 2), (3, 3))
    world.ok(ops.Settle(ino, 2))
    after = world.stat(ino)
    assert after.truncations == ((3, 3),)
    assert after.ctime_ns == before.ctime_ns
    world.ok(ops.Settle(ino, 1))
    world.ok(ops.Settle(ino, 3))
    assert world.attr(world.set_attr(ino, size=0)).truncations == ((4, 0),)  # numbers are never used again


def test_no_such_inode(world: World) -> None:
    assert world.status(ops.Settle(999, 1)) == errno.ESTALE


def test_what_its_client_did_not_settle_is_owed(world: World) -> None:
    """Found by its age; gone with the last truncation, or with the file."""
    first, second, third = world.create(b"f"), world.create(b"g"), world.create(b"h")
    cut_at = []
    for ino in (first, second, third):
        world.ok(world.set_attr(ino, size=0))
        cut_at.append(world.machine.time_ns)
    layout, truncations = world.stat(first).layout, ((1, 0),)
    assert world.machine.untrimmed(10, cut_at[0]) == [(first, layout, truncations)]
    assert [ino for ino, _, _ in world.machine.untrimmed(10, cut_at[2])] == [first, second, third]
    assert [ino for ino, _, _ in world.machine.untrimmed(2, cut_at[2])] == [first, second]
    world.ok(world.set_attr(first, size=0))  # cut again: there is time again for who did
    assert [ino for ino, _, _ in world.machine.untrimmed(10, cut_at[2])] == [second, third]
    world.internal(ops.Settle(first, 1))
    assert [ino for ino, _, _ in world.machine.untrimmed(10, world.time)] == [first, second, third], "one is left"
    world.internal(ops.Settle(first, 2))
    world.ok(ops.Unlink(ROOT, TOP, b"g"))
    world.release(second)
    assert [ino for ino, _, _ in world.machine.untrimmed(10, world.time)] == [third]

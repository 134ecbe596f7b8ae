"""Truncations that the storage targets have carried out."""

from __future__ import annotations

import errno

from tests.mds.harness import World
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

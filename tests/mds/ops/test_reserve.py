"""Room for appending writes."""

from __future__ import annotations

import errno

from tests.mds.harness import World
from wire import ids, ops
from wire.fileops import Reserve


def test_room_never_overlaps(world: World) -> None:
    ino = world.create(b"f")
    ends = [world.attr(Reserve(ino, length, 0)).size for length in (10, 5, 1)]
    assert ends == [10, 15, 16]
    world.ok(ops.Commit(ino, 100, 1))
    assert world.attr(Reserve(ino, 1, 0)).size == 101


def test_behind_what_the_client_has_not_committed(world: World) -> None:
    ino = world.create(b"f")
    assert world.attr(Reserve(ino, 10, 50)).size == 60
    assert world.attr(Reserve(ino, 10, 50)).size == 70


def test_refusals(world: World) -> None:
    ino = world.create(b"f")
    assert world.status(Reserve(world.mkdir(b"d"), 1, 0)) == errno.EISDIR
    assert world.status(Reserve(999, 1, 0)) == errno.ESTALE
    assert world.status(Reserve(ino, 1, ids.FILE_SIZE_MAX)) == errno.EFBIG
    assert world.stat(ino).size == 0

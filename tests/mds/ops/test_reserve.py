"""Room for appending writes."""

from __future__ import annotations

import errno

from tests.mds.harness import ROOT, TOP, World
from wire import ids, ops
from wire.fileops import Reserve


def offset(world: World, ino: int, length: int, end: int = 0) -> int:
    found: int = world.ok(Reserve(ino, length, end))[0]
    return found


def test_room_never_overlaps(world: World) -> None:
    ino = world.create(b"f")
    assert [offset(world, ino, length) for length in (10, 5, 1)] == [0, 10, 15]
    assert world.stat(ino).size == 0, "nobody has written yet"
    world.ok(ops.Commit(ino, 10, 1))
    assert (world.stat(ino).size, offset(world, ino, 1)) == (10, 16)
    world.ok(ops.Commit(ino, 100, 1))
    assert offset(world, ino, 1) == 100


def test_behind_what_the_client_has_not_committed(world: World) -> None:
    ino = world.create(b"f")
    assert offset(world, ino, 10, 50) == 50
    assert offset(world, ino, 10, 50) == 60


def test_a_truncation_takes_it_back(world: World) -> None:
    ino = world.create(b"f")
    offset(world, ino, 10)
    world.ok(world.set_attr(ino, size=3))
    assert offset(world, ino, 10) == 3


def test_it_goes_with_the_file(world: World) -> None:
    ino = world.create(b"f")
    offset(world, ino, 10)
    world.ok(ops.Unlink(ROOT, TOP, b"f"))
    world.release(ino)


def test_refusals(world: World) -> None:
    ino = world.create(b"f")
    assert world.status(Reserve(world.mkdir(b"d"), 1, 0)) == errno.EISDIR
    assert world.status(Reserve(999, 1, 0)) == errno.ESTALE
    assert world.status(Reserve(ino, 1, ids.FILE_SIZE_MAX)) == errno.EFBIG

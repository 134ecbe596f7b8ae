"""atime in arrears."""

from __future__ import annotations

from tests.mds.harness import TOP, World
from wire import ops


def test_atime_moves_and_nothing_else(world: World) -> None:
    ino = world.create(b"f")
    before = world.stat(ino)
    world.create(b"time passes")
    world.ok(ops.Accessed(((ino, before.ctime_ns + 1),)))
    after = world.stat(ino)
    assert after.atime_ns == before.ctime_ns + 1
    assert (after.mtime_ns, after.ctime_ns, after.size) == (before.mtime_ns, before.ctime_ns, before.size)


def test_a_fast_clock_does_not_move_it_into_the_future(world: World) -> None:
    ino = world.create(b"f")
    world.ok(ops.Accessed(((ino, world.time + 10**15),)))
    assert world.stat(ino).atime_ns == world.time


def test_what_was_read_before_the_last_change_says_nothing(world: World) -> None:
    """1. A process reads.  2. Another sets atime back.  3. The mount tells of the read: atime stays as it was set."""
    ino = world.create(b"f")
    read = world.time + 1
    world.ok(world.set_attr(ino, atime_ns=5))
    world.ok(ops.Accessed(((ino, read),)))
    assert world.stat(ino).atime_ns == 5


def test_files_that_are_gone_and_what_is_no_file_are_passed_over(world: World) -> None:
    ino = world.create(b"f")
    before = world.stat(TOP)
    world.create(b"time passes")
    world.ok(ops.Accessed(((TOP, before.ctime_ns + 10**6), (ino, world.time), (999_999_999, world.time))))
    assert world.stat(TOP).atime_ns == before.atime_ns
    assert world.stat(ino).atime_ns > before.ctime_ns

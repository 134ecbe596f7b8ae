"""Size and times after writes."""

from __future__ import annotations

import errno
import stat

from tests.mds.harness import ROOT, TOP, World
from wire import ops


def test_size_only_grows(world: World) -> None:
    """Two writers of one file commit in either order."""
    ino = world.create(b"f")
    assert world.attr(ops.Commit(ino, 100, world.time)).size == 100
    assert world.attr(ops.Commit(ino, 50, world.time)).size == 100


def test_times(world: World) -> None:
    ino = world.create(b"f")
    made = world.time
    attr = world.attr(ops.Commit(ino, 1, made - 10))
    assert (attr.mtime_ns, attr.ctime_ns) == (made, world.time)  # a slow clock does not move it back
    attr = world.attr(ops.Commit(ino, 1, made + 10))
    assert attr.mtime_ns == made + 10
    attr = world.attr(ops.Commit(ino, 1, world.time + 10**15))
    assert attr.mtime_ns == world.time  # a fast clock does not move it into the future
    world.ok(world.set_attr(ino, mtime_ns=world.time + 10**15))
    attr = world.attr(ops.Commit(ino, 1, world.time))
    assert attr.mtime_ns < world.time  # it stood in the future because somebody set it; the write ends that
    attr = world.attr(ops.Commit(ino, 200, 0))
    assert (attr.size, attr.mtime_ns < attr.ctime_ns) == (200, True)


def test_set_id_bits_and_capability_go(world: World) -> None:
    ino = world.create(b"f")
    world.ok(world.set_attr(ino, mode=0o6755))
    world.ok(ops.SetXattr(ROOT, ino, b"security.capability", b"c", 0))
    assert stat.S_IMODE(world.attr(ops.Commit(ino, 1, 1)).mode) == 0o755
    assert world.ask(ops.ListXattr(ino)) == ()


def test_a_write_of_root_leaves_set_id_bits(world: World) -> None:
    """The capability goes all the same: what it was given to has changed."""
    ino = world.create(b"f")
    world.ok(world.set_attr(ino, mode=0o6755))
    world.ok(ops.SetXattr(ROOT, ino, b"security.capability", b"c", 0))
    assert stat.S_IMODE(world.attr(ops.Commit(ino, 1, 1, privileged=True)).mode) == 0o6755
    assert world.ask(ops.ListXattr(ino)) == ()


def test_refusals(world: World) -> None:
    assert world.status(ops.Commit(999, 1, 1)) == errno.ESTALE
    assert world.status(ops.Commit(TOP, 1, 1)) == errno.EISDIR
    assert world.status(ops.Commit(world.ok(ops.Symlink(ROOT, TOP, b"l", b"x"))[0], 1, 1)) == errno.EINVAL

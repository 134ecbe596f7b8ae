"""symlink(2), readlink(2)."""

from __future__ import annotations

import errno
import stat

from tests.mds.harness import ALICE, ROOT, TOP, World
from wire import ops


def test_target_and_attributes(world: World) -> None:
    attr = world.attr(ops.Symlink(ALICE, TOP, b"l", b"some/where"))
    assert (attr.mode, attr.size, attr.nlink) == (stat.S_IFLNK | 0o777, 10, 1)
    assert world.ask(ops.ReadLink(attr.ino)) == b"some/where"
    assert world.refused(ops.Open(ROOT, attr.ino, 0)) == errno.ELOOP


def test_limits(world: World) -> None:
    assert world.status(ops.Symlink(ROOT, TOP, b"l", b"")) == errno.ENOENT
    assert world.status(ops.Symlink(ROOT, TOP, b"l", b"x" * 4096)) == errno.ENAMETOOLONG
    world.ok(ops.Symlink(ROOT, TOP, b"l", b"x" * 4095))
    assert world.status(ops.Symlink(ROOT, TOP, b"l", b"x")) == errno.EEXIST


def test_readlink_of_something_else(world: World) -> None:
    assert world.refused(ops.ReadLink(world.create(b"f"))) == errno.EINVAL


def test_target_goes_with_the_link(world: World) -> None:
    ino = world.ok(ops.Symlink(ROOT, TOP, b"l", b"x"))[0]
    outcome = world.run(ops.Unlink(ROOT, TOP, b"l"))
    assert outcome.orphaned == ()  # nobody has a symbolic link open
    assert world.refused(ops.ReadLink(ino)) == errno.ESTALE

"""rmdir(2)."""

from __future__ import annotations

import errno

from tests.mds.harness import ALICE, BOB, ROOT, TOP, World
from wire import ops


def test_counts_and_times(world: World) -> None:
    ino = world.mkdir(b"d")
    assert world.stat(TOP).nlink == 3
    assert world.ok(ops.Rmdir(ROOT, TOP, b"d")) == ino
    top = world.stat(TOP)
    assert (top.nlink, top.mtime_ns, top.ctime_ns) == (2, world.time, world.time)


def test_gone_while_somebody_works_in_it(world: World) -> None:
    ino = world.mkdir(b"d")
    world.ok(ops.Rmdir(ROOT, TOP, b"d"))
    assert world.refused(ops.GetAttr(ino)) == errno.ESTALE
    assert world.refused(ops.ReadDir(ROOT, ino, 0, 10)) == errno.ENOENT
    assert world.refused(ops.Lookup(ROOT, ino, b"x")) == errno.ENOENT


def test_refusals(world: World) -> None:
    full = world.mkdir(b"full")
    world.create(b"x", full)
    world.create(b"f")
    assert world.status(ops.Rmdir(ROOT, TOP, b"full")) == errno.ENOTEMPTY
    assert world.status(ops.Rmdir(ROOT, TOP, b"f")) == errno.ENOTDIR
    assert world.status(ops.Rmdir(ROOT, TOP, b"none")) == errno.ENOENT
    assert world.status(ops.Rmdir(ROOT, full, b".")) == errno.EINVAL
    assert world.status(ops.Rmdir(ROOT, full, b"..")) == errno.ENOTEMPTY
    world.mkdir(b"y", full)
    assert world.status(ops.Rmdir(ALICE, full, b"y")) == errno.EACCES


def test_sticky_directory(world: World) -> None:
    tmp = world.mkdir(b"tmp")
    world.ok(world.set_attr(tmp, mode=0o1777))
    world.mkdir(b"a", tmp, cred=ALICE)
    assert world.status(ops.Rmdir(BOB, tmp, b"a")) == errno.EPERM
    world.ok(ops.Rmdir(ALICE, tmp, b"a"))

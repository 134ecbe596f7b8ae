"""link(2)."""

from __future__ import annotations

import errno

import pytest

from tests.mds.harness import ALICE, ROOT, TOP, World
from wire import ids, ops


def test_two_names_of_one_inode(world: World) -> None:
    ino = world.create(b"f")
    attr = world.attr(ops.Link(ROOT, ino, TOP, b"g"))
    assert (attr.ino, attr.nlink, attr.ctime_ns) == (ino, 2, world.time)
    assert world.stat(TOP).mtime_ns == world.time
    assert world.lookup(TOP, b"g").ino == ino
    world.ok(ops.Unlink(ROOT, TOP, b"f"))
    assert world.stat(ino).nlink == 1


def test_refusals(world: World) -> None:
    ino = world.create(b"f")
    directory = world.mkdir(b"d")
    assert world.status(ops.Link(ROOT, directory, TOP, b"x")) == errno.EPERM
    assert world.status(ops.Link(ROOT, ino, TOP, b"d")) == errno.EEXIST
    assert world.status(ops.Link(ROOT, 999, TOP, b"x")) == errno.ENOENT
    assert world.status(ops.Link(ALICE, ino, directory, b"x")) == errno.EACCES
    assert world.status(ops.Link(ROOT, ino, TOP, b"n" * 256)) == errno.ENAMETOOLONG


def test_a_file_without_names_gets_none(world: World) -> None:
    ino = world.create(b"f")
    world.ok(ops.Unlink(ROOT, TOP, b"f"))
    assert world.status(ops.Link(ROOT, ino, TOP, b"back")) == errno.ENOENT


def test_link_limit(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ids, "LINK_MAX", 3)
    ino = world.create(b"f")
    world.ok(ops.Link(ROOT, ino, TOP, b"g"))
    world.ok(ops.Link(ROOT, ino, TOP, b"h"))
    assert world.status(ops.Link(ROOT, ino, TOP, b"i")) == errno.EMLINK

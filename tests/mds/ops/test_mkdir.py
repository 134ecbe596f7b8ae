"""mkdir(2)."""

from __future__ import annotations

import errno
import stat

from mds import schema
from mds.namespace.inode import decode
from tests.mds.harness import ALICE, ROOT, TOP, World
from wire import ids, ops


def test_links_and_modes(world: World) -> None:
    attr = world.attr(ops.Mkdir(ALICE, TOP, b"d", 0o7755))
    assert attr.mode == stat.S_IFDIR | 0o1755  # set-id bits are not mkdir's to give
    assert (attr.nlink, attr.layout) == (2, None)
    assert world.stat(TOP).nlink == 3
    assert world.lookup(attr.ino, b"..").ino == TOP
    assert world.lookup(attr.ino, b".").ino == attr.ino
    assert world.lookup(TOP, b"..").ino == TOP


def test_set_gid_is_inherited(world: World) -> None:
    shared = world.mkdir(b"shared", mode=0o777)
    world.ok(world.set_attr(shared, gid=5000))
    world.ok(world.set_attr(shared, mode=0o2777))
    attr = world.attr(ops.Mkdir(ALICE, shared, b"d", 0o700))
    assert attr.mode == stat.S_IFDIR | 0o2700
    assert attr.gid == 5000


def test_refusals(world: World) -> None:
    world.mkdir(b"d")
    assert world.status(ops.Mkdir(ROOT, TOP, b"d", 0o700)) == errno.EEXIST
    assert world.status(ops.Mkdir(ROOT, TOP, b".", 0o700)) == errno.EEXIST
    assert world.status(ops.Mkdir(ALICE, world.mkdir(b"e"), b"x", 0o700)) == errno.EACCES


def test_beyond_the_link_limit_the_count_shows_one(world: World) -> None:
    """As ext4's dir_nlink: subdirectories are not limited, the count is only no longer told."""
    key = schema.u64(TOP)
    raw = world.store.get(schema.INODES, key)
    assert raw is not None
    inode = decode(raw)
    inode.nlink = ids.LINK_MAX + 1
    assert inode.attr(TOP)[2] == 1

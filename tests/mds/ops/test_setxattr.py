"""setxattr(2), getxattr(2), listxattr(2)."""

from __future__ import annotations

import errno

from mds.namespace import xattrs
from tests.mds.harness import ALICE, BOB, ROOT, TOP, World
from wire import ops


def put(ino: int, name: bytes, value: bytes = b"v", flags: int = 0, cred: ops.Cred = ROOT) -> ops.SetXattr:
    return ops.SetXattr(cred, ino, name, value, flags)


def test_set_get_list(world: World) -> None:
    ino = world.create(b"f")
    world.ok(put(ino, b"user.b", b"1"))
    assert world.stat(ino).ctime_ns == world.time
    world.ok(put(ino, b"user.a", b""))
    world.ok(put(ino, b"user.b", b"2"))
    assert world.ask(ops.ListXattr(ino)) == (b"user.a", b"user.b")
    assert world.ask(ops.GetXattr(ROOT, ino, b"user.b")) == b"2"
    assert world.ask(ops.GetXattr(ROOT, ino, b"user.a")) == b""
    assert world.refused(ops.GetXattr(ROOT, ino, b"user.c")) == errno.ENODATA
    assert world.ask(ops.ListXattr(TOP)) == ()


def test_flags(world: World) -> None:
    ino = world.create(b"f")
    assert world.status(put(ino, b"user.a", flags=ops.XATTR_REPLACE)) == errno.ENODATA
    world.ok(put(ino, b"user.a", flags=ops.XATTR_CREATE))
    assert world.status(put(ino, b"user.a", flags=ops.XATTR_CREATE)) == errno.EEXIST
    world.ok(put(ino, b"user.a", flags=ops.XATTR_REPLACE))


def test_name_spaces(world: World) -> None:
    ino = world.create(b"f", mode=0o600, cred=ALICE)
    link = world.ok(ops.Symlink(ROOT, TOP, b"l", b"x"))[0]
    world.ok(put(ino, b"user.a", cred=ALICE))
    assert world.status(put(ino, b"user.a", cred=BOB)) == errno.EACCES
    assert world.refused(ops.GetXattr(BOB, ino, b"user.a")) == errno.EACCES
    assert world.status(put(link, b"user.a")) == errno.EPERM
    assert world.refused(ops.GetXattr(ROOT, link, b"user.a")) == errno.ENODATA
    world.ok(put(ino, b"trusted.a"))
    assert world.status(put(ino, b"trusted.a", cred=ALICE)) == errno.EPERM
    assert world.refused(ops.GetXattr(ALICE, ino, b"trusted.a")) == errno.ENODATA
    world.ok(put(ino, b"security.selinux"))
    assert world.status(put(ino, b"security.selinux", cred=ALICE)) == errno.EPERM
    assert world.ask(ops.GetXattr(BOB, ino, b"security.selinux")) == b"v"
    for name in (b"system.other", b"nodot", b"other.a"):
        assert world.status(put(ino, name)) == errno.EOPNOTSUPP
        assert world.refused(ops.GetXattr(ROOT, ino, name)) == errno.EOPNOTSUPP
    assert world.status(put(ino, b"user.")) == errno.EINVAL


def test_sticky_directory(world: World) -> None:
    tmp = world.mkdir(b"tmp")
    world.ok(world.set_attr(tmp, mode=0o1777))
    assert world.status(put(tmp, b"user.a", cred=ALICE)) == errno.EPERM


def test_limits(world: World) -> None:
    ino = world.create(b"f")
    assert world.status(put(ino, b"user." + b"n" * 251)) == errno.ERANGE
    assert world.refused(ops.GetXattr(ROOT, ino, b"user." + b"n" * 5000)) == errno.ERANGE
    assert world.status(put(ino, b"user.a", b"x" * 65537)) == errno.E2BIG
    for k in range(xattrs.TOTAL_MAX // 65536 - 1):
        world.ok(put(ino, b"user.%d" % k, b"x" * 65536))
    assert world.status(put(ino, b"user.last", b"x" * 65536)) == errno.ENOSPC
    world.ok(put(ino, b"user.0", b"y" * 65536))


def test_gone_with_the_inode(world: World) -> None:
    ino = world.create(b"f")
    world.ok(put(ino, b"user.a"))
    world.ok(ops.Unlink(ROOT, TOP, b"f"))
    world.release(ino)
    assert world.refused(ops.ListXattr(ino)) == errno.ESTALE

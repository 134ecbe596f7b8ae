"""Access control lists: who may do what, what the mode shows, what new inodes inherit."""

from __future__ import annotations

import errno
import stat

import pytest

from mds.namespace.acl import (
    ACCESS,
    DEFAULT,
    ENTRIES_MAX,
    GROUP,
    GROUP_OBJ,
    MASK,
    NO_ID,
    OTHER,
    USER,
    USER_OBJ,
    encoded,
)
from mds.namespace.inode import Acl
from tests.mds.harness import ALICE, BOB, ROOT, TOP, World
from wire import ops

CAROL = ops.Cred(1003, 1003, (1003, 5000, 6000))


def acl(user: int, group: int, other: int, *named: tuple[int, int, int], mask: int | None = None) -> bytes:
    entries: Acl = ((USER_OBJ, user, NO_ID), (GROUP_OBJ, group, NO_ID), (OTHER, other, NO_ID), *named)
    if mask is not None:
        entries += ((MASK, mask, NO_ID),)
    return encoded(tuple(sorted(entries, key=lambda e: (e[0], e[2]))))


def put(world: World, ino: int, value: bytes, name: bytes = ACCESS, cred: ops.Cred = ROOT) -> ops.SetXattr:
    return ops.SetXattr(cred, ino, name, value, 0)


def may(world: World, cred: ops.Cred, ino: int, mask: int) -> bool:
    return world.refused(ops.Access(cred, ino, mask)) == 0


def mode_of(world: World, ino: int) -> int:
    return stat.S_IMODE(world.stat(ino).mode)


@pytest.fixture
def file(world: World) -> int:
    ino = world.create(b"f", mode=0o640, cred=ALICE)
    world.ok(world.set_attr(ino, gid=5000))
    return ino


def test_a_named_user_and_the_mask(world: World, file: int) -> None:
    assert not may(world, BOB, file, 4)
    world.ok(put(world, file, acl(6, 4, 0, (USER, 6, BOB.uid), mask=6), cred=ALICE))
    assert mode_of(world, file) == 0o660 and world.stat(file).acl
    assert may(world, BOB, file, 6)
    assert may(world, CAROL, file, 4) and not may(world, CAROL, file, 2)  # by the owning group's own entry
    world.ok(world.set_attr(file, ALICE, mode=0o640))  # chmod changes the mask
    assert may(world, BOB, file, 4) and not may(world, BOB, file, 2)
    world.ok(world.set_attr(file, ALICE, mode=0o604))
    assert not may(world, BOB, file, 4), "masked to nothing, he is not one of the others"
    shown = world.ask(ops.GetXattr(BOB, file, ACCESS))
    assert shown == acl(6, 4, 4, (USER, 6, BOB.uid), mask=0)


def test_groups(world: World, file: int) -> None:
    """One of somebody's groups that allows it is enough; who is in a group that is named is not one of the others."""
    world.ok(put(world, file, acl(6, 2, 4, (GROUP, 4, 6000), (GROUP, 0, BOB.gid), mask=7)))
    assert may(world, CAROL, file, 4) and may(world, CAROL, file, 2) and not may(world, CAROL, file, 6)
    assert not may(world, BOB, file, 4)
    assert may(world, ops.Cred(1, 1, ()), file, 4)
    world.ok(put(world, file, acl(6, 2, 4, (GROUP, 4, 6000), (USER, 0, CAROL.uid), mask=7)))
    assert not may(world, CAROL, file, 4), "a named user's entry comes before his groups"


def test_an_acl_that_says_no_more_than_the_mode_is_the_mode(world: World, file: int) -> None:
    world.ok(put(world, file, acl(7, 5, 1)))
    assert mode_of(world, file) == 0o751 and not world.stat(file).acl
    assert world.refused(ops.GetXattr(ROOT, file, ACCESS)) == errno.ENODATA
    assert world.ask(ops.ListXattr(file)) == ()
    world.ok(put(world, file, acl(7, 5, 1, mask=7)))
    assert world.ask(ops.ListXattr(file)) == (ACCESS,)
    assert mode_of(world, file) == 0o771
    for _ in range(2):
        world.ok(ops.RemoveXattr(ALICE, file, ACCESS))
        assert mode_of(world, file) == 0o771 and not world.stat(file).acl


def test_whose_it_is_to_set(world: World, file: int) -> None:
    world.ok(world.set_attr(file, gid=77))
    world.ok(world.set_attr(file, mode=0o2755))
    value = acl(7, 5, 5, mask=5)
    assert world.status(put(world, file, value, cred=BOB)) == errno.EPERM
    assert world.status(ops.RemoveXattr(BOB, file, ACCESS)) == errno.EPERM
    world.ok(put(world, file, value))
    assert mode_of(world, file) == 0o2755
    world.ok(put(world, file, value, cred=ALICE))
    assert mode_of(world, file) == 0o755, "a group that is not the caller's gets no set-gid from him"


def test_what_is_no_acl(world: World, file: int) -> None:
    good = acl(6, 4, 0)
    one, two = (USER, 4, 1), (USER, 4, 2)
    for bad in (b"", b"\1\0", good + b"x", acl(8, 4, 0), acl(6, 4, 0, one), acl(6, 4, 0, one, one, mask=7),
                encoded(((USER_OBJ, 6, NO_ID),)), acl(6, 4, 0, (3, 4, 1)), acl(6, 4, 0, (USER, 4, NO_ID), mask=7),
                acl(6, 4, 0, (OTHER, 4, NO_ID))):  # fmt: skip
        assert world.status(put(world, file, bad)) == errno.EINVAL, bad
    assert world.status(put(world, file, b"\3" + good[1:])) == errno.EOPNOTSUPP
    many = tuple((USER, 4, k) for k in range(ENTRIES_MAX))
    assert world.status(put(world, file, acl(6, 4, 0, *many, mask=7))) == errno.ENOSPC
    world.ok(put(world, file, acl(6, 4, 0, one, two, mask=7)))
    link = world.ok(ops.Symlink(ROOT, TOP, b"l", b"x"))[0]
    assert world.status(put(world, link, good)) == errno.EOPNOTSUPP
    assert world.status(put(world, file, good, DEFAULT)) == errno.EACCES
    world.ok(put(world, file, encoded(()), DEFAULT))
    world.ok(put(world, file, encoded(())))
    assert not world.stat(file).acl


def test_what_is_made_inherits_the_default_acl(world: World) -> None:
    top = world.mkdir(b"d", mode=0o777)
    default = acl(7, 5, 0, (USER, 7, BOB.uid), mask=7)
    world.ok(put(world, top, default, DEFAULT))
    assert world.ask(ops.GetXattr(BOB, top, DEFAULT)) == default
    file = world.create(b"f", top, 0o664, ALICE)
    assert mode_of(world, file) == 0o660
    assert world.ask(ops.GetXattr(ROOT, file, ACCESS)) == acl(6, 5, 0, (USER, 7, BOB.uid), mask=6)
    assert may(world, BOB, file, 6) and not may(world, CAROL, file, 4)
    below = world.mkdir(b"below", top, 0o750, ALICE)
    assert mode_of(world, below) == 0o750
    assert world.ask(ops.GetXattr(ROOT, below, DEFAULT)) == default
    assert world.ask(ops.ListXattr(below)) == (ACCESS, DEFAULT)
    world.ok(ops.Symlink(ROOT, top, b"l", b"x"))
    assert not world.lookup(top, b"l").acl
    fifo = world.ok(ops.Mknod(ALICE, top, b"p", stat.S_IFIFO | 0o600, 0))[0]
    assert mode_of(world, fifo) == 0o600 and not may(world, BOB, fifo, 4)
    world.ok(put(world, top, acl(7, 0, 0), DEFAULT))  # without a mask
    plain = world.create(b"plain", top, 0o666)
    assert mode_of(world, plain) == 0o600 and not world.stat(plain).acl
    world.ok(ops.RemoveXattr(ROOT, top, DEFAULT))
    assert mode_of(world, world.create(b"g", top, 0o664)) == 0o664
    world.ok(ops.Rmdir(ROOT, top, b"below"))


def test_a_directory_with_a_layout_and_a_default_acl_hands_on_both(world: World) -> None:
    top = world.mkdir(b"d")
    world.ok(ops.SetXattr(ROOT, top, b"lockstep.layout", b"copies=2", 0))
    world.ok(put(world, top, acl(7, 5, 0), DEFAULT))
    below = world.mkdir(b"below", top)
    assert set(world.ask(ops.ListXattr(below))) == {DEFAULT, b"lockstep.layout"}


def test_search_and_removal_go_by_the_acl(world: World) -> None:
    top = world.mkdir(b"d", mode=0o700)
    world.create(b"f", top)
    assert world.refused(ops.Lookup(BOB, top, b"f")) == errno.EACCES
    world.ok(put(world, top, acl(7, 0, 0, (USER, 7, BOB.uid), mask=7)))
    assert world.refused(ops.Lookup(BOB, top, b"f")) == 0
    world.ok(ops.Unlink(BOB, top, b"f"))
    world.create(b"g", top, cred=BOB)

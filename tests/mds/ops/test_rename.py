"""renameat2(2)."""

from __future__ import annotations

import errno

from tests.mds.harness import ALICE, BOB, ROOT, TOP, World
from wire import ops
from wire.ops import RENAME_EXCHANGE, RENAME_NOREPLACE


def rename(
    parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int = 0, cred: ops.Cred = ROOT
) -> ops.Rename:
    return ops.Rename(cred, parent, name, new_parent, new_name, flags)


def cookies(world: World, ino: int = TOP) -> dict[bytes, int]:
    return {name: cookie for name, cookie, _attr in world.ask(ops.ReadDir(ROOT, ino, 0, 4096))[0]}


def test_file_within_a_directory(world: World) -> None:
    ino = world.create(b"a")
    assert world.ok(rename(TOP, b"a", TOP, b"b")) == (ino, 0)
    assert world.names() == [b"b"]
    assert world.stat(ino).ctime_ns == world.stat(TOP).mtime_ns == world.time


def test_directory_to_another_parent(world: World) -> None:
    """Its '..' leads elsewhere, and both parents' link counts follow."""
    one, two, moved = world.mkdir(b"one"), world.mkdir(b"two"), 0
    moved = world.mkdir(b"d", one)
    world.ok(rename(one, b"d", two, b"e"))
    assert (world.stat(one).nlink, world.stat(two).nlink) == (2, 3)
    assert world.lookup(moved, b"..").ino == two


def test_over_a_file_that_stays_open(world: World) -> None:
    new, old = world.create(b"new"), world.create(b"old")
    outcome = world.run(rename(TOP, b"new", TOP, b"old"))
    assert outcome.orphaned == (old,)
    assert world.lookup(TOP, b"old").ino == new
    assert world.stat(old).nlink == 0
    world.release(old)


def test_over_an_empty_directory(world: World) -> None:
    one = world.mkdir(b"one")
    a, b = world.mkdir(b"a"), world.mkdir(b"b", one)
    assert world.ok(rename(TOP, b"a", one, b"b")) == (a, b)
    assert (world.stat(TOP).nlink, world.stat(one).nlink) == (3, 3)
    assert world.refused(ops.GetAttr(b)) == errno.ESTALE


def test_two_names_of_one_file_stay(world: World) -> None:
    ino = world.create(b"a")
    world.ok(ops.Link(ROOT, ino, TOP, b"b"))
    assert world.ok(rename(TOP, b"a", TOP, b"b")) == (ino, 0)
    assert world.names() == [b"a", b"b"]


def test_noreplace(world: World) -> None:
    world.create(b"a")
    world.create(b"b")
    assert world.status(rename(TOP, b"a", TOP, b"b", RENAME_NOREPLACE)) == errno.EEXIST
    world.ok(rename(TOP, b"a", TOP, b"c", RENAME_NOREPLACE))


def test_exchange_of_a_directory_and_a_file(world: World) -> None:
    one = world.mkdir(b"one")
    directory, file = world.mkdir(b"d"), world.create(b"f", one)
    assert world.ok(rename(TOP, b"d", one, b"f", RENAME_EXCHANGE)) == (directory, file)
    assert world.lookup(TOP, b"d").ino == file
    assert world.lookup(one, b"f").ino == directory
    assert world.lookup(directory, b"..").ino == one
    assert (world.stat(TOP).nlink, world.stat(one).nlink) == (3, 3)
    assert world.status(rename(TOP, b"d", TOP, b"none", RENAME_EXCHANGE)) == errno.ENOENT


def test_into_itself(world: World) -> None:
    a = world.mkdir(b"a")
    b = world.mkdir(b"b", a)
    c = world.mkdir(b"c", b)
    assert world.status(rename(TOP, b"a", a, b"x")) == errno.EINVAL
    assert world.status(rename(TOP, b"a", c, b"x")) == errno.EINVAL
    assert world.status(rename(a, b"b", TOP, b"a")) == errno.ENOTEMPTY
    assert world.status(rename(b, b"c", TOP, b"a")) == errno.ENOTEMPTY
    assert world.status(rename(b, b"c", TOP, b"a", RENAME_EXCHANGE)) == errno.EINVAL
    world.ok(rename(b, b"c", TOP, b"c"))


def test_types_and_names(world: World) -> None:
    full = world.mkdir(b"full")
    world.create(b"x", full)
    world.mkdir(b"d")
    world.create(b"f")
    assert world.status(rename(TOP, b"d", TOP, b"full")) == errno.ENOTEMPTY
    assert world.status(rename(TOP, b"d", TOP, b"f")) == errno.ENOTDIR
    assert world.status(rename(TOP, b"f", TOP, b"d")) == errno.EISDIR
    assert world.status(rename(TOP, b"none", TOP, b"d")) == errno.ENOENT
    assert world.status(rename(TOP, b"f", TOP, b"n" * 256)) == errno.ENAMETOOLONG
    assert world.status(rename(TOP, b"f", TOP, b"..")) == errno.EBUSY
    assert world.status(rename(TOP, b"f", 999, b"x")) == errno.ENOENT


def test_permissions(world: World) -> None:
    closed = world.mkdir(b"closed", mode=0o755)
    world.create(b"x", closed)
    mine = world.mkdir(b"mine", mode=0o777, cred=ALICE)
    tmp = world.mkdir(b"tmp")
    world.ok(world.set_attr(tmp, mode=0o1777))
    world.create(b"a", tmp, cred=ALICE)
    world.create(b"b", tmp, cred=BOB)
    foreign = world.mkdir(b"foreign", mine, mode=0o755)
    assert foreign
    assert world.status(rename(closed, b"x", mine, b"y", cred=ALICE)) == errno.EACCES
    assert world.status(rename(tmp, b"a", mine, b"y", cred=BOB)) == errno.EPERM
    assert world.status(rename(tmp, b"b", tmp, b"a", cred=BOB)) == errno.EPERM
    assert world.status(rename(mine, b"foreign", TOP, b"y", cred=ALICE)) == errno.EACCES  # its ".." would change
    world.ok(rename(mine, b"foreign", mine, b"other", cred=ALICE))


def test_a_replaced_name_keeps_its_place_in_the_listing(world: World) -> None:
    """A listing that is under way meets a name exactly once, though a rename replaces what it stands for."""
    for name in (b"a", b"b", b"c"):
        world.create(name)
    before = cookies(world)
    world.ok(rename(TOP, b"c", TOP, b"a"))
    assert cookies(world) == {b"a": before[b"a"], b"b": before[b"b"]}
    world.ok(rename(TOP, b"a", TOP, b"new"))
    assert cookies(world)[b"new"] == before[b"a"]
    world.ok(rename(TOP, b"new", TOP, b"b", RENAME_EXCHANGE))
    assert cookies(world) == {b"new": before[b"a"], b"b": before[b"b"]}

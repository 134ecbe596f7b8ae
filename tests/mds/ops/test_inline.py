"""The bytes of small files in the metadata, and how such a file grows out to objects."""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from mds.check import check
from mds.namespace.inline import VOID_US
from mds.namespace.inode import decode
from mds.schema import INLINE, INODES, u64
from tests.mds.harness import ALICE, ROOT, TOP, Attr, World
from wire import ops
from wire.codec import pack
from wire.errors import Status
from wire.inline import INLINE_MAX, GrownOut, GrowOut, ReadInline, WriteInline

LAYOUT = b"lockstep.layout"
LIMIT = 100


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path / "state", inline=LIMIT)
    yield world
    world.finish()


def contents(world: World, ino: int) -> bytes | None:
    _attr, found = world.ask(ReadInline(ino))
    return None if found is None else found[1]


def write(world: World, ino: int, *pieces: tuple[int, bytes]) -> Attr:
    return world.attr(WriteInline(ino, pieces, world.time))


def grow(world: World, ino: int) -> tuple[int, Attr]:
    number, attr = world.ok(GrowOut(ino))
    return number, Attr(attr)


def queued(world: World) -> list[int]:
    return [number for number, _layout in world.machine.reclaimable(100)]


def test_bytes_size_and_times_in_one(world: World) -> None:
    ino = world.create(b"f")
    assert world.stat(ino).inline == LIMIT
    world.ok(world.set_attr(ino, mode=0o6755))
    made = world.time
    attr = world.attr(WriteInline(ino, ((0, b"one"), (10, b"two")), made + 5))
    assert (attr.size, attr.mtime_ns, attr.ctime_ns) == (13, made + 5, world.time)
    assert stat.S_IMODE(attr.mode) == 0o755
    assert contents(world, ino) == b"one" + bytes(7) + b"two"
    attr = write(world, ino, (3, b"..."))
    assert (attr.size, contents(world, ino)) == (13, b"one..." + bytes(4) + b"two")


def test_two_writers_spoil_nothing_for_each_other(world: World) -> None:
    ino = world.create(b"f")
    write(world, ino, (4, b"BBBB"))
    write(world, ino, (0, b"AAAA"))
    assert contents(world, ino) == b"AAAABBBB"


def test_the_version_rises_with_the_bytes_alone(world: World) -> None:
    ino = world.create(b"f")
    write(world, ino, (0, b"a"))
    first = world.ask(ReadInline(ino))[1][0]
    world.ok(world.set_attr(ino, mode=0o600))
    grow(world, ino)
    assert world.ask(ReadInline(ino))[1][0] == first
    write(world, ino, (0, b"a"))
    assert world.ask(ReadInline(ino))[1][0] > first


def test_stat_and_listings_carry_no_bytes(world: World) -> None:
    ino = world.create(b"f")
    write(world, ino, (0, b"x" * LIMIT))
    assert b"xx" not in (world.store.get(INODES, u64(ino)) or b"")
    assert world.store.get(INLINE, u64(ino)) is not None


def test_what_does_not_fit_is_refused(world: World) -> None:
    ino = world.create(b"f")
    assert world.status(WriteInline(ino, ((LIMIT - 1, b"xx"),), 0)) == Status.STALE_LAYOUT
    write(world, ino, (LIMIT - 1, b"x"))
    assert world.status(WriteInline(TOP, ((0, b"x"),), 0)) == errno.EISDIR
    assert world.status(WriteInline(999, ((0, b"x"),), 0)) == errno.ESTALE
    for bad in ((), ((0, b""),), ((1, b"a"), (2, b"b")), ((2, b"a"), (0, b"b")), ((0, 1),), ((INLINE_MAX, b"a"),)):
        assert WriteInline(ino, bad, 0).invalid() is not None  # type: ignore[arg-type]
    assert world.run(WriteInline(ino, ((INLINE_MAX, b"a"),), 0)).status == Status.BAD_MESSAGE


def test_truncation(world: World) -> None:
    """Cut and extended again the old bytes do not come back. There is nothing for storage targets to do."""
    ino = world.create(b"f")
    write(world, ino, (0, b"0123456789"))
    attr = world.attr(world.set_attr(ino, size=4))
    assert (attr.size, attr.truncations) == (4, ())
    attr = world.attr(world.set_attr(ino, size=1 << 40))
    assert (attr.size, attr.inline, contents(world, ino)) == (1 << 40, LIMIT, b"0123")
    write(world, ino, (8, b"8"))
    assert contents(world, ino) == b"0123\0\0\0\0008"
    world.ok(world.set_attr(ino, size=0))
    assert world.store.get(INLINE, u64(ino)) is None
    assert world.ask(ReadInline(ino))[1] == (0, b"")


def test_a_file_without_bytes_grows_out_at_once(world: World) -> None:
    ino = world.create(b"f")
    number, attr = grow(world, ino)
    assert (number, attr.inline, attr.objects) == (0, 0, ino)
    assert grow(world, ino)[0] == 0
    assert contents(world, ino) is None
    assert world.status(WriteInline(ino, ((0, b"x"),), 0)) == Status.STALE_LAYOUT
    world.ok(ops.Commit(ino, 1000, 0))
    assert world.attr(world.set_attr(ino, size=5)).truncations == ((1, 5),)


def test_bytes_are_moved_before_the_metadata_lets_go_of_them(world: World) -> None:
    ino = world.create(b"f")
    before = write(world, ino, (0, b"bytes"))
    number, attr = grow(world, ino)
    assert number not in (0, ino)
    assert (attr.inline, contents(world, ino)) == (LIMIT, b"bytes")
    after = world.attr(GrownOut(ino, number))
    assert (after.inline, after.objects, after.size) == (0, number, 5)
    assert (after.mtime_ns, after.ctime_ns) == (before.mtime_ns, before.ctime_ns)
    assert contents(world, ino) is None
    assert queued(world) == []
    assert world.status(GrownOut(ino, number)) == Status.STALE_LAYOUT
    world.ok(ops.Unlink(ROOT, TOP, b"f"))
    world.release(ino)
    assert queued(world) == [number]


@pytest.mark.parametrize("change", ["write", "truncate", "grow"])
def test_a_change_meanwhile_makes_the_number_void(world: World, change: str) -> None:
    """Otherwise what was changed would be lost, or what another client writes to the same objects."""
    ino = world.create(b"f")
    write(world, ino, (0, b"bytes"))
    number, _ = grow(world, ino)
    if change == "write":
        write(world, ino, (0, b"B"))
    elif change == "truncate":
        world.ok(world.set_attr(ino, size=3))
    else:
        assert grow(world, ino)[0] not in (0, number)
    assert world.status(GrownOut(ino, number)) == Status.STALE_LAYOUT
    assert queued(world) == [number]
    # 1. The objects are deleted. 2. What was on its way to them arrives. So they wait until nothing can.
    void = world.time + 1000 * VOID_US
    assert world.machine.reclaimable(9, void - 1_000_000_000) == []
    assert [n for n, _ in world.machine.reclaimable(9, void)] == [number]
    again, _ = grow(world, ino)
    assert world.attr(GrownOut(ino, again)).objects == again


def test_other_changes_leave_it_alone(world: World) -> None:
    ino = world.create(b"f")
    write(world, ino, (0, b"bytes"))
    number, _ = grow(world, ino)
    world.ok(world.set_attr(ino, size=50))
    world.ok(ops.Link(ROOT, ino, TOP, b"g"))
    world.ok(ops.Rename(ROOT, TOP, b"f", TOP, b"h", 0))
    assert world.attr(GrownOut(ino, number)).size == 50


def test_a_removed_file_leaves_nothing_behind(world: World) -> None:
    small, growing = world.create(b"a"), world.create(b"b")
    for ino in (small, growing):
        write(world, ino, (0, b"x"))
    number, _ = grow(world, growing)
    for name, ino in ((b"a", small), (b"b", growing)):
        world.ok(ops.Unlink(ROOT, TOP, name))
        write(world, ino, (0, b"y"))  # it is open somewhere
        number = grow(world, ino)[0] if ino == growing else number
        world.release(ino)
    assert list(world.store.scan(INLINE, b"", None)) == []
    assert queued(world)[-1] == number and small not in queued(world) and growing not in queued(world)


def test_bytes_come_with_the_open(world: World) -> None:
    ino = world.create(b"f", cred=ALICE)
    write(world, ino, (0, b"x"))
    for flags, given in ((0, True), (2, True), (1, False), (0o1000, False)):
        assert (world.ask(ops.Open(ALICE, ino, flags))[1] is not None) == given, flags
    assert world.ask(ops.Open(ALICE, TOP, 0))[1] is None


def test_without_targets_small_files_are_kept(tmp_path: Path) -> None:
    world = World(tmp_path / "none", targets=0, inline=LIMIT)
    ino = world.create(b"f")
    write(world, ino, (0, b"x"))
    assert world.stat(ino).layout is None
    assert world.ask(ops.GetXattr(ROOT, ino, LAYOUT)).endswith(b" inline=100")
    assert world.status(GrowOut(ino)) == errno.ENOSPC
    world.internal(ops.TargetSet(1, "127.0.0.1:9001", bytes(15) + b"1"))
    number, attr = grow(world, ino)
    assert number and attr.layout is not None
    world.finish()


def test_the_limit_is_the_directorys(world: World) -> None:
    above = world.mkdir(b"d")
    world.ok(ops.SetXattr(ROOT, above, LAYOUT, b"inline=200", 0))
    below = world.mkdir(b"e", above)
    assert world.stat(world.create(b"f", below)).inline == 200
    assert Attr(world.ok(ops.Mknod(ROOT, below, b"n", stat.S_IFREG | 0o600, 0))).inline == 200
    assert world.ask(ops.GetXattr(ROOT, below, LAYOUT)).endswith(b" inline=200")
    assert world.status(ops.SetXattr(ROOT, above, LAYOUT, b"inline=%d" % (INLINE_MAX + 1), 0)) == errno.EINVAL
    world.ok(ops.SetXattr(ROOT, above, LAYOUT, b"inline=0", 0))
    assert world.stat(world.create(b"g", above)).inline == 0


def test_an_empty_file_takes_another_limit_but_does_not_come_back(world: World) -> None:
    ino = world.create(b"f")
    world.ok(ops.SetXattr(ROOT, ino, LAYOUT, b"inline=50 stripe_count=2", 0))
    assert (world.stat(ino).inline, len(world.stat(ino).layout[1])) == (50, 2)
    world.ok(ops.SetXattr(ROOT, ino, LAYOUT, b"stripe_count=1", 0))
    assert world.stat(ino).inline == 50
    world.ok(ops.SetXattr(ROOT, ino, LAYOUT, b"inline=0", 0))
    world.ok(ops.SetXattr(ROOT, ino, LAYOUT, b"stripe_count=3", 0))
    assert world.stat(ino).inline == 0
    assert world.status(ops.SetXattr(ROOT, ino, LAYOUT, b"inline=50", 0)) == errno.EBUSY
    other = world.create(b"g")
    write(world, other, (0, b"x"))
    assert world.status(ops.SetXattr(ROOT, other, LAYOUT, b"inline=0", 0)) == errno.EBUSY


def test_the_check_finds_what_is_wrong(world: World) -> None:
    ino = world.create(b"f")
    write(world, ino, (0, b"bytes"))
    good = world.store.get(INLINE, u64(ino)), world.store.get(INODES, u64(ino))
    assert good[0] is not None and good[1] is not None

    def said(record: bytes, key: int = ino) -> str:
        world.store.begin()
        world.store.put(INLINE, u64(key), record)
        world.store.commit()
        found = " ".join(check(world.store))
        world.store.begin()
        world.store.put(INLINE, u64(ino), good[0] or b"")
        if key != ino:
            world.store.delete(INLINE, u64(key))
        world.store.commit()
        return found

    assert "has 6 bytes in the metadata" in said(pack((1, 0, b"longer")))
    assert "has 0 bytes in the metadata" in said(pack((1, 0, b"")))
    assert "is not a file that may" in said(pack((1, 0, b"x")), TOP)
    inode = decode(good[1])
    inode.objects = 9
    world.store.begin()
    world.store.put(INODES, u64(ino), inode.encode())
    world.store.commit()
    assert f"inode {ino} is in the metadata and has objects 9" in check(world.store)
    world.store.begin()
    world.store.put(INODES, u64(ino), good[1])
    world.store.commit()

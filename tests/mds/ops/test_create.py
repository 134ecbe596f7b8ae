"""open(2) with O_CREAT."""

from __future__ import annotations

import errno
import stat
from pathlib import Path

import pytest

from tests.mds.harness import ALICE, BOB, ROOT, TOP, World
from wire import ops
from wire.codec import unpack_untrusted
from wire.errors import Status


def test_attributes_of_a_new_file(world: World) -> None:
    before = world.stat(TOP)
    attr = world.attr(ops.Create(ALICE, TOP, b"f", 0o640))
    assert attr.mode == stat.S_IFREG | 0o640
    assert (attr.nlink, attr.uid, attr.gid, attr.size, attr.truncations) == (1, 1001, 1001, 0, ())
    assert attr.atime_ns == attr.mtime_ns == attr.ctime_ns == world.time
    after = world.stat(TOP)
    assert after.mtime_ns == after.ctime_ns == world.time > before.mtime_ns
    assert world.lookup(TOP, b"f").values == attr.values


def test_number_derives_from_the_delivery_index(world: World) -> None:
    index = world.machine.index + 1
    assert world.create(b"f") == (index << 12) + 2


def test_layout_takes_all_chains_and_the_first_goes_round(world: World) -> None:
    firsts = set()
    for k in range(8):
        size, chains = world.stat(world.create(b"f%d" % k)).layout
        assert size == 1 << 20
        assert sorted(chain & 0xFFFF for chain in chains) == [1, 2, 3, 4], "of each target one"
        firsts.add(chains[0] & 0xFFFF)
    assert firsts == {1, 2, 3, 4}


def test_without_targets_there_is_no_layout(tmp_path: Path) -> None:
    world = World(tmp_path / "s", targets=0)
    assert world.stat(world.create(b"f")).layout is None
    world.finish()


def test_answer_counts_a_handle_also_when_given_again(world: World) -> None:
    op = ops.Create(ROOT, TOP, b"f", 0o600)
    first = world.run(op)
    again = world.entry(world.session, 0, world.number, op)
    assert first.opened == again.opened == unpack_untrusted(first.body)[0]
    assert (again.status, again.body, again.store_reply) == (0, first.body, False)


def test_refusals(world: World) -> None:
    file = world.create(b"f")
    closed = world.mkdir(b"closed", mode=0o700)
    readable = world.mkdir(b"readable", mode=0o755)
    world.create(b"there", readable)
    assert world.status(ops.Create(ROOT, TOP, b"f", 0o600)) == errno.EEXIST
    assert world.status(ops.Create(ROOT, TOP, b"..", 0o600)) == errno.EEXIST
    assert world.status(ops.Create(ROOT, file, b"x", 0o600)) == errno.ENOTDIR
    assert world.status(ops.Create(ROOT, 999, b"x", 0o600)) == errno.ENOENT
    assert world.status(ops.Create(ROOT, TOP, b"n" * 256, 0o600)) == errno.ENAMETOOLONG
    assert world.status(ops.Create(ALICE, closed, b"x", 0o600)) == errno.EACCES
    assert world.status(ops.Create(ALICE, readable, b"x", 0o600)) == errno.EACCES
    assert world.status(ops.Create(ALICE, readable, b"there", 0o600)) == errno.EEXIST
    assert world.status(ops.Create(ROOT, TOP, b"n" * 5000, 0o600)) == Status.BAD_MESSAGE
    world.create(b"n" * 255)


def test_removed_directory_takes_no_entries(world: World) -> None:
    gone = world.mkdir(b"d")
    world.ok(ops.Rmdir(ROOT, TOP, b"d"))
    assert world.status(ops.Create(ROOT, gone, b"x", 0o600)) == errno.ENOENT


@pytest.mark.parametrize(("cred", "gid", "sgid"), [(ALICE, 5000, True), (BOB, 5000, False), (ROOT, 5000, True)])
def test_set_gid_directory(world: World, cred: ops.Cred, gid: int, sgid: bool) -> None:
    """The group is inherited; set-gid executables only for members of it (alice is in 5000)."""
    shared = world.mkdir(b"shared")
    world.ok(world.set_attr(shared, uid=0, gid=5000))
    world.ok(world.set_attr(shared, mode=0o2777))
    attr = world.attr(ops.Create(cred, shared, b"x", 0o2755))
    assert (attr.uid, attr.gid) == (cred.uid, gid)
    assert bool(attr.mode & stat.S_ISGID) == sgid

"""chmod(2), chown(2), truncate(2), utimensat(2)."""

from __future__ import annotations

import errno
import stat

import pytest

from mds.namespace.inode import TRUNCATIONS_MAX
from tests.mds.harness import ALICE, ATTR, BOB, ROOT, TOP, World
from wire import ops
from wire.errors import Status


def mode_of(world: World, ino: int) -> int:
    return stat.S_IMODE(world.stat(ino).mode)


def test_chmod(world: World) -> None:
    ino = world.create(b"f", cred=ALICE)
    attr = world.attr(world.set_attr(ino, ALICE, mode=0o4751))
    assert (stat.S_IMODE(attr.mode), attr.ctime_ns) == (0o4751, world.time)
    assert attr.mtime_ns < world.time
    assert world.status(world.set_attr(ino, BOB, mode=0o777)) == errno.EPERM
    world.ok(world.set_attr(ino, ROOT, mode=0o644))


def test_chmod_of_a_foreign_group_drops_set_gid(world: World) -> None:
    ino = world.create(b"f", cred=ALICE)
    world.ok(world.set_attr(ino, gid=77))
    world.ok(world.set_attr(ino, ALICE, mode=0o2755))
    assert mode_of(world, ino) == 0o755
    world.ok(world.set_attr(ino, ALICE, gid=5000))
    world.ok(world.set_attr(ino, ALICE, mode=0o2755))
    assert mode_of(world, ino) == 0o2755


def test_chown(world: World) -> None:
    ino = world.create(b"f", cred=ALICE)
    assert world.status(world.set_attr(ino, ALICE, uid=BOB.uid)) == errno.EPERM
    assert world.status(world.set_attr(ino, ALICE, gid=BOB.gid)) == errno.EPERM
    assert world.status(world.set_attr(ino, BOB, gid=BOB.gid)) == errno.EPERM
    world.ok(world.set_attr(ino, ALICE, uid=ALICE.uid, gid=5000))  # a supplementary group of hers
    attr = world.attr(world.set_attr(ino, uid=BOB.uid, gid=BOB.gid))
    assert (attr.uid, attr.gid) == (BOB.uid, BOB.gid)


@pytest.mark.parametrize("cred", [ROOT, ALICE])
def test_chown_drops_set_id_bits(world: World, cred: ops.Cred) -> None:
    ino = world.create(b"f", cred=ALICE)
    directory = world.mkdir(b"d", cred=ALICE)
    for which in (ino, directory):
        world.ok(world.set_attr(which, mode=0o6755))
        world.ok(ops.SetXattr(ROOT, which, b"security.capability", b"c", 0))
        world.ok(world.set_attr(which, cred, gid=5000))
    assert mode_of(world, ino) == 0o755
    assert world.refused(ops.GetXattr(ROOT, ino, b"security.capability")) == errno.ENODATA
    assert mode_of(world, directory) == 0o6755


def test_a_writers_kernel_may_drop_set_id_bits(world: World) -> None:
    """The client's kernel sends chmod in the writer's name after a write to a set-id file."""
    ino = world.create(b"f", cred=ALICE)
    world.ok(world.set_attr(ino, mode=0o6777))
    assert world.status(world.set_attr(ino, BOB, mode=0o6775)) == errno.EPERM
    assert world.status(world.set_attr(ino, BOB, mode=0o0776)) == errno.EPERM
    world.ok(world.set_attr(ino, BOB, mode=0o0777))
    assert mode_of(world, ino) == 0o777


def test_truncate(world: World) -> None:
    ino = world.create(b"f")
    world.ok(ops.Commit(ino, 100, world.time))
    attr = world.attr(world.set_attr(ino, size=40))
    assert (attr.size, attr.truncations) == (40, ((1, 40),))
    assert attr.mtime_ns == attr.ctime_ns == world.time
    assert world.attr(world.set_attr(ino, size=60)).truncations == ((1, 40),)  # growing cuts nothing off
    assert world.attr(world.set_attr(ino, size=60)).truncations == ((1, 40), (2, 60))  # may cut uncommitted writes
    assert world.attr(world.set_attr(ino, size=20)).truncations == ((3, 20),)  # includes the earlier ones


def test_truncate_needs_write_permission_unless_open(world: World) -> None:
    ino = world.create(b"f", mode=0o444, cred=ALICE)
    assert world.status(world.set_attr(ino, ALICE, size=0)) == errno.EACCES
    world.ok(world.set_attr(ino, ALICE, handle=True, size=0))
    assert world.status(world.set_attr(TOP, size=0)) == errno.EISDIR
    link = world.ok(ops.Symlink(ROOT, TOP, b"l", b"x"))[0]
    assert world.status(world.set_attr(link, size=0)) == errno.EINVAL


def test_truncate_drops_set_id_bits_but_for_root(world: World) -> None:
    ino = world.create(b"f", cred=ALICE)
    world.ok(world.set_attr(ino, mode=0o6777))
    world.ok(world.set_attr(ino, ROOT, size=0))
    assert mode_of(world, ino) == 0o6777
    world.ok(world.set_attr(ino, BOB, size=0))
    assert mode_of(world, ino) == 0o777


def test_too_many_truncations_wait(world: World) -> None:
    """Growing and cutting again and again while a target is away: the client has to settle first."""
    ino = world.create(b"f")
    for k in range(TRUNCATIONS_MAX):
        world.ok(world.set_attr(ino, size=10 + k))
        world.ok(world.set_attr(ino, size=10 + k))
    seqs = [seq for seq, _size in world.stat(ino).truncations]
    assert len(seqs) == TRUNCATIONS_MAX
    world.ok(world.set_attr(ino, size=1000))
    assert world.status(world.set_attr(ino, size=1000)) == Status.TRUNCATIONS_UNSETTLED
    assert world.stat(ino).size == 1000
    world.ok(ops.Settle(ino, seqs[-1]))
    assert world.attr(world.set_attr(ino, size=1000)).truncations == ((seqs[-1] + 1, 1000),)


def test_times(world: World) -> None:
    ino = world.create(b"f", mode=0o666, cred=ALICE)
    attr = world.attr(world.set_attr(ino, ALICE, atime_ns=-5, mtime_ns=7))
    assert (attr.atime_ns, attr.mtime_ns, attr.ctime_ns) == (-5, 7, world.time)
    assert world.status(world.set_attr(ino, BOB, mtime_ns=7)) == errno.EPERM
    assert world.status(world.set_attr(ino, BOB, mtime_now=1)) == errno.EPERM
    assert world.status(world.set_attr(ino, BOB, atime_ns=1, mtime_now=1)) == errno.EPERM
    attr = world.attr(world.set_attr(ino, BOB, atime_now=1, mtime_now=1))
    assert attr.atime_ns == attr.mtime_ns == world.time
    world.ok(world.set_attr(ino, mode=0o644))
    assert world.status(world.set_attr(ino, BOB, atime_now=1, mtime_now=1)) == errno.EACCES


def test_nothing_asked_moves_ctime(world: World) -> None:
    """chown(2) to (-1, -1)."""
    ino = world.create(b"f")
    before = world.stat(ino).values
    after = world.attr(world.set_attr(ino, BOB))
    assert after.ctime_ns == world.time
    assert [old for old, new in zip(before, after.values, strict=True) if old != new] == [before[ATTR["ctime_ns"]]]
    assert world.status(world.set_attr(999, mode=0)) == errno.ESTALE


def test_a_set_gid_bit_that_means_none_goes_with_what_strangers_to_its_group_do(world: World) -> None:
    """Linux 6.2: also where the group may not execute the file. The group from before a chown counts."""
    ino = world.create(b"f", cred=ALICE)

    def after(op: ops.SetAttr) -> int:
        world.ok(world.set_attr(ino, gid=77))
        world.ok(world.set_attr(ino, mode=0o2766))
        world.ok(op)
        return mode_of(world, ino)

    assert after(world.set_attr(ino, ALICE, gid=5000)) == 0o766
    assert after(world.set_attr(ino, ROOT, gid=5000)) == 0o2766
    assert after(world.set_attr(ino, BOB, size=1)) == 0o766
    assert after(world.set_attr(ino, ops.Cred(1002, 77, ()), size=2)) == 0o2766
    assert after(world.set_attr(ino, BOB)) == 0o766, "what a kernel sends before BOB writes"
    world.ok(world.set_attr(ino, mode=0o2744))
    assert world.status(world.set_attr(ino, BOB)) == errno.EPERM

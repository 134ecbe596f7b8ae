"""unlink(2), and files that stay open."""

from __future__ import annotations

import errno
from pathlib import Path

from tests.mds.harness import ALICE, BOB, ROOT, TOP, World
from wire import ops


def test_last_name_makes_an_orphan_that_lives_on(world: World) -> None:
    ino = world.create(b"f")
    world.ok(ops.SetXattr(ROOT, ino, b"user.a", b"v", 0))
    outcome = world.run(ops.Unlink(ROOT, TOP, b"f"))
    assert outcome.orphaned == (ino,)
    assert world.names() == []
    assert world.stat(ino).nlink == 0
    assert world.attr(ops.Commit(ino, 100, world.time)).size == 100
    assert world.attr(world.set_attr(ino, size=10, handle=True)).size == 10
    assert world.ask(ops.GetXattr(ROOT, ino, b"user.a")) == b"v"
    assert list(world.machine.orphans_owed(2)) == [ino]
    world.release(ino)
    assert world.refused(ops.GetAttr(ino)) == errno.ESTALE
    assert [item[0] for item in world.machine.reclaimable(10)] == [ino]


def test_while_no_member_can_hold_handles_it_goes_at_once(tmp_path: Path) -> None:
    world = World(tmp_path / "s", members=())
    ino = world.create(b"f")
    assert world.run(ops.Unlink(ROOT, TOP, b"f")).orphaned == ()
    assert world.refused(ops.GetAttr(ino)) == errno.ESTALE
    world.finish()


def test_times(world: World) -> None:
    ino = world.create(b"f")
    world.ok(ops.Link(ROOT, ino, TOP, b"g"))
    world.ok(ops.Unlink(ROOT, TOP, b"f"))
    assert world.stat(ino).ctime_ns == world.stat(TOP).mtime_ns == world.stat(TOP).ctime_ns == world.time
    assert world.stat(ino).mtime_ns < world.time


def test_refusals(world: World) -> None:
    world.mkdir(b"d")
    closed = world.mkdir(b"closed", mode=0o755)
    world.create(b"f", closed)
    assert world.status(ops.Unlink(ROOT, TOP, b"none")) == errno.ENOENT
    assert world.status(ops.Unlink(ROOT, TOP, b"d")) == errno.EISDIR
    assert world.status(ops.Unlink(ROOT, TOP, b".")) == errno.EISDIR
    assert world.status(ops.Unlink(ALICE, closed, b"f")) == errno.EACCES
    assert world.status(ops.Unlink(ALICE, closed, b"none")) == errno.ENOENT


def test_sticky_directory(world: World) -> None:
    """Only the owner of the file, of the directory, or root."""
    tmp = world.mkdir(b"tmp")
    world.ok(world.set_attr(tmp, mode=0o1777))
    world.create(b"a", tmp, cred=ALICE)
    world.create(b"b", tmp, cred=ALICE)
    assert world.status(ops.Unlink(BOB, tmp, b"a")) == errno.EPERM
    world.ok(ops.Unlink(ALICE, tmp, b"a"))
    world.ok(world.set_attr(tmp, uid=BOB.uid))
    world.ok(ops.Unlink(BOB, tmp, b"b"))

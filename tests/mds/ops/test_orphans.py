"""Unlinked files and the replicas that answer for their clients' handles."""

from __future__ import annotations

import errno

from tests.mds.harness import ROOT, TOP, World
from wire import ops


def orphan(world: World) -> int:
    ino = world.create(b"f")
    world.ok(ops.Unlink(ROOT, TOP, b"f"))
    return ino


def is_there(world: World, ino: int) -> bool:
    return world.refused(ops.GetAttr(ino)) == 0


def test_the_last_answer_removes_it(world: World) -> None:
    ino = orphan(world)
    assert world.machine.orphan_debtors() == (1, 2, 3)
    world.internal(ops.OrphanAnswer(1, (ino,), ()))
    world.internal(ops.OrphanAnswer(1, (ino,), ()))
    world.internal(ops.OrphanAnswer(3, (ino,), ()))
    assert is_there(world, ino)
    assert world.machine.orphan_debtors() == (2,)
    world.internal(ops.OrphanAnswer(2, (ino,), ()))
    assert not is_there(world, ino)
    assert world.machine.orphan_debtors() == ()


def test_a_pin_holds_it(world: World) -> None:
    ino = orphan(world)
    world.internal(ops.OrphanAnswer(2, (), (ino,)))
    world.release(ino, (1, 3))
    assert is_there(world, ino)
    assert list(world.machine.orphans_owed(2)) == [ino]
    world.release(ino, (2,))
    assert not is_there(world, ino)


def test_a_client_moves_with_its_handle(world: World) -> None:
    """1. Replicas 1 and 3 have released. 2. The client leaves 2 and declares its handle at 1. 3. 2 releases."""
    ino = orphan(world)
    world.release(ino, (1, 3))
    world.internal(ops.OrphanAnswer(1, (), (ino,)))
    world.release(ino, (2,))
    assert is_there(world, ino)
    world.release(ino, (1,))
    assert not is_there(world, ino)


def test_answers_for_a_replica_that_left(world: World) -> None:
    ino = orphan(world)
    world.machine.view_event(world.machine.index, 1, 2, (1, 2))
    world.release(ino, (1, 2))
    assert is_there(world, ino)
    assert world.machine.orphan_debtors() == (3,)
    world.release(ino, (3,))
    assert not is_there(world, ino)


def test_only_members_of_the_view_owe(world: World) -> None:
    world.machine.view_event(world.machine.index, 1, 2, (2,))
    ino = orphan(world)
    assert world.machine.orphan_debtors() == (2,)
    world.release(ino, (2,))
    assert not is_there(world, ino)


def test_answers_about_other_inodes_are_passed_over(world: World) -> None:
    ino = world.create(b"f")
    world.internal(ops.OrphanAnswer(1, (ino, 999), (ino, 998)))
    assert is_there(world, ino)
    assert world.machine.orphan_debtors() == ()


def test_opened_again_only_where_it_is_open(world: World) -> None:
    ino = orphan(world)
    assert world.refused(ops.Open(ROOT, ino, 0)) == errno.ESTALE
    world.handles.open(world.session, ino)
    assert world.refused(ops.Open(ROOT, ino, 0)) == 0
    world.release(ino)

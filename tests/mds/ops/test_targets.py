"""The storage map."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from mds.machine import Bootstrap, StateMachine
from mds.store import Store
from tests.mds.harness import ALICE, ROOT, TOP, Attr, World
from wire import ops, targetops
from wire.chains import DRAINING, OFFLINE, PARTS, SERVING, SYNCING, Members, chain_of
from wire.codec import encode, pack
from wire.errors import OK


def test_new_target_gets_a_chain(world: World) -> None:
    version, targets, chains = world.machine.storage_map()
    assert (version, len(targets)) == (4, 4)
    assert world.internal(ops.TargetSet(7, "host:7", b"7" * 16)) == 5
    (version, targets, chains), losses = world.ask(ops.StorageMap())
    assert losses == ()
    assert version == 5
    assert targets[-1] == (7, "host:7", SERVING, 0)
    assert (7, 1, ((7, SERVING),)) in chains
    assert (chain_of(2, 7), 1, ((7, SERVING), (4, SERVING))) in chains, "beside the one that has the fewest"


def test_idempotent_and_movable(world: World) -> None:
    op = ops.TargetSet(1, "127.0.0.1:9001", b"\1" * 16)
    assert world.internal(op) == 4
    assert world.internal(ops.TargetSet(1, "elsewhere:1", b"\1" * 16)) == 5
    assert world.machine.storage_map()[1][0] == (1, "elsewhere:1", "serving", 0)
    assert len(world.machine.storage_map()[2]) == 4 * PARTS + 8, "for one copy, two and three"


def test_another_disk_is_refused(world: World) -> None:
    outcome = world.entry(0, 1, 1, ops.TargetSet(1, "127.0.0.1:9001", b"x" * 16))
    assert outcome.status == errno.EEXIST


def test_stripe_count_of_the_cluster(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "s")
    machine = StateMachine(store, 1, Bootstrap(stripe_size=65536, stripe_count=2))
    for k in (1, 2, 3):
        machine.apply(k, 1, pack(((1, 0, 1, 1, encode(ops.TargetSet(k, "h:1", b"u" * 16))),)))
    layout = machine._scope.storage.layout((9 << 12) + 2)
    assert layout is not None and layout[0] == 65536 and len(layout[1]) == 2
    machine.validate()
    store.close()


PAIR = chain_of(2, 1)
"""Targets 1 and 2, as they were entered."""


def chain(world: World, number: int) -> tuple[int, Members]:
    return next((version, members) for c, version, members in world.machine.storage_map()[2] if c == number)


def states(world: World, number: int = PAIR) -> dict[int, str]:
    return dict(chain(world, number)[1])


def test_a_target_goes_down_and_comes_back(world: World) -> None:
    """Killed, marked by the keeper, started again: it is synced before it serves; the other never stops."""
    for target in (1, 2, 3, 4):
        world.internal(targetops.TargetUp(target, 100 + target, 1))
    assert chain(world, PAIR) == (1, ((1, SERVING), (2, SERVING))), "nothing was missed before the first run"
    world.internal(targetops.TargetDown(1, 101))
    assert chain(world, PAIR) == (2, ((1, OFFLINE), (2, SERVING)))
    assert states(world, chain_of(1, 1)) == {1: SERVING}, "nobody else has it"
    assert world.machine.storage_map()[1][0][2:] == (OFFLINE, 101)
    world.internal(targetops.TargetDown(2, 102))
    assert states(world) == {1: OFFLINE, 2: SERVING}, "the last one stays, whatever becomes of it"
    world.internal(targetops.TargetUp(1, 201, 1))
    assert chain(world, PAIR) == (3, ((1, SYNCING), (2, SERVING)))
    assert world.internal(targetops.ChainSynced(PAIR, 2, 1)) == world.machine.storage_map()[0], "of another version"
    assert states(world)[1] == SYNCING
    world.internal(targetops.ChainSynced(PAIR, 3, 1))
    assert chain(world, PAIR) == (4, ((1, SERVING), (2, SERVING)))


def test_a_restart_that_nobody_saw_counts_as_one(world: World) -> None:
    """Killed and started within the keeper's heartbeat: what was under way may be at one of two."""
    world.internal(targetops.TargetUp(1, 1, 1))
    world.internal(targetops.TargetUp(2, 2, 1))
    version = chain(world, chain_of(1, 1))[0]
    world.internal(targetops.TargetUp(1, 9, 1))
    assert states(world) == {1: SYNCING, 2: SERVING}
    assert chain(world, chain_of(1, 1)) == (version + 1, ((1, SERVING),)), "its changes are numbered anew"
    world.internal(targetops.TargetUp(2, 8, 1))
    assert states(world) == {1: SYNCING, 2: SERVING}, "it is the only one that has everything"


def test_news_of_another_run_is_void(world: World) -> None:
    world.internal(targetops.TargetUp(1, 1, 1))
    before = world.machine.storage_map()
    world.internal(targetops.TargetDown(1, 7))
    world.internal(targetops.TargetUp(1, 1, 1))
    assert world.machine.storage_map() == before


def test_what_a_failed_disk_has_lost_before_it_gave_its_chain_away_is_told(world: World) -> None:
    """1. It has the chain alone, and its disk fails. 2. Another one is synced from it: without what it had lost."""
    for target in (1, 2):
        world.internal(targetops.TargetUp(target, 100 + target, 1))
    world.internal(targetops.TargetDown(2, 102))
    world.internal(targetops.TargetDown(1, 101))
    world.internal(targetops.TargetUp(2, 102, 1))
    world.internal(targetops.ChainSynced(PAIR, chain(world, PAIR)[0], 2))
    assert world.ask(ops.StorageMap())[1] == ()
    world.internal(targetops.TargetDown(1, 101))
    assert states(world) == {1: OFFLINE, 2: SERVING}
    assert (PAIR, chain(world, PAIR)[0]) in world.ask(ops.StorageMap())[1]
    world.internal(targetops.TargetUp(1, 101, 1))
    world.internal(targetops.ChainSynced(PAIR, chain(world, PAIR)[0], 1))
    before = world.ask(ops.StorageMap())[1]
    world.internal(targetops.TargetDown(1, 101))
    assert world.ask(ops.StorageMap())[1] == before, "it was there, and another one has it all"


def test_draining_moves_each_chain_to_somebody_else(world: World) -> None:
    alone = chain_of(1, 1)
    world.internal(targetops.TargetUp(1, 1, 1))
    world.internal(targetops.TargetDrain(1, True))
    assert world.machine.storage_map()[1][0][2] == DRAINING
    assert world.entry(0, 1, 1, targetops.TargetRemove(1, False)).status == errno.EBUSY
    version = chain(world, alone)[0]
    world.internal(targetops.ChainMove(alone, version, 3, 1))
    assert states(world, alone) == {1: DRAINING, 3: SYNCING}
    world.internal(targetops.ChainMove(alone, version, 4, 1))
    assert states(world, alone) == {1: DRAINING, 3: SYNCING}, "void: one move at a time"
    world.internal(targetops.ChainSynced(alone, version + 1, 3))
    assert chain(world, alone) == (version + 2, ((1, DRAINING), (3, SERVING))), "until it knows: it answers reads yet"
    world.internal(targetops.ChainLeave(alone, version + 2, 1))
    assert chain(world, alone) == (version + 3, ((3, SERVING),))
    world.internal(targetops.ChainLeave(alone, version + 3, 3))
    assert states(world, alone) == {3: SERVING}


def test_nothing_is_moved_to_a_target_that_is_offline(world: World) -> None:
    """1. A move is on its way. 2. Where it goes to is marked offline before."""
    number = chain_of(1, 1)
    world.internal(targetops.TargetUp(3, 1, 1))
    world.internal(targetops.TargetDown(3, 1))
    world.internal(targetops.ChainMove(number, 1, 3, 1))
    assert chain(world, number) == (1, ((1, SERVING),))
    world.internal(targetops.TargetUp(3, 2, 1))
    world.internal(targetops.ChainMove(number, 1, 3, 1))
    assert states(world, number) == {1: DRAINING, 3: SYNCING}


def test_a_move_that_is_taken_back_leaves_no_copy_too_many(world: World) -> None:
    number = chain_of(1, 1)
    world.internal(targetops.TargetDrain(1, True))
    world.internal(targetops.ChainMove(number, 1, 3, 1))
    world.internal(targetops.TargetDrain(1, False))
    version, members = chain(world, number)
    assert members == ((1, SERVING), (3, SYNCING))
    world.internal(targetops.ChainSynced(number, version, 3))
    assert chain(world, number) == (version + 1, ((1, SERVING),))


def test_what_is_taken_back_too_late_is_finished(world: World) -> None:
    number = chain_of(1, 1)
    world.internal(targetops.TargetDrain(1, True))
    world.internal(targetops.ChainMove(number, 1, 3, 1))
    world.internal(targetops.ChainSynced(number, 2, 3))
    world.internal(targetops.TargetDrain(1, False))
    assert chain(world, number) == (3, ((1, DRAINING), (3, SERVING)))
    world.internal(targetops.ChainLeave(number, 3, 1))
    assert chain(world, number) == (4, ((3, SERVING),))


@pytest.mark.parametrize("number", [chain_of(1, 1), PAIR])
def test_who_is_started_again_while_it_leaves_does_not_come_back(world: World, number: int) -> None:
    world.internal(targetops.TargetUp(1, 1, 1))
    before = [target for target, _ in chain(world, number)[1] if target != 1]
    world.internal(targetops.ChainMove(number, chain(world, number)[0], 3, 1))
    world.internal(targetops.ChainSynced(number, chain(world, number)[0], 3))
    world.internal(targetops.TargetUp(1, 2, 1))
    assert states(world, number) == {1: SYNCING, **dict.fromkeys([*before, 3], SERVING)}
    world.internal(targetops.ChainSynced(number, chain(world, number)[0], 1))
    assert states(world, number) == dict.fromkeys([*before, 3], SERVING)


def test_who_dies_while_it_leaves_is_not_waited_for(world: World) -> None:
    number = chain_of(1, 1)
    world.internal(targetops.TargetUp(1, 1, 1))
    world.internal(targetops.ChainMove(number, chain(world, number)[0], 3, 1))
    world.internal(targetops.ChainSynced(number, chain(world, number)[0], 3))
    world.internal(targetops.TargetDown(1, 1))
    assert states(world, number) == {1: OFFLINE, 3: SERVING}
    world.internal(targetops.ChainLeave(number, chain(world, number)[0], 1))
    assert states(world, number) == {3: SERVING}
    assert states(world) == {1: OFFLINE, 2: SERVING}
    world.internal(targetops.ChainLeave(PAIR, chain(world, PAIR)[0], 1))
    assert states(world) == {1: OFFLINE, 2: SERVING}, "of these there are not enough"


def test_removing_and_losing_a_target(world: World) -> None:
    """A disk that never comes back: with two copies nothing is lost, with one what it had."""
    assert world.entry(0, 1, 1, targetops.TargetRemove(1, True)).status == OK
    assert states(world) == {2: SERVING}
    (only,) = states(world, chain_of(1, 1)).values()
    assert only == SERVING, "files that name the chain can be written again"
    assert 1 not in [target[0] for target in world.machine.storage_map()[1]]
    assert world.entry(0, 1, 2, targetops.TargetRemove(1, False)).status == OK, "done already"


def test_who_was_to_leave_stays_when_its_successor_is_lost(world: World) -> None:
    """1. A chain is being moved to a target. 2. That is lost. 3. It can be moved to another one."""
    number = chain_of(1, 1)
    version = chain(world, number)[0]
    world.internal(targetops.ChainMove(number, version, 2, 1))
    assert states(world, number) == {1: DRAINING, 2: SYNCING}
    assert world.entry(0, 1, 1, targetops.TargetRemove(2, True)).status == OK
    assert states(world, number) == {1: SERVING}
    world.internal(targetops.ChainMove(number, version + 2, 3, 1))
    assert states(world, number) == {1: DRAINING, 3: SYNCING}


def test_a_new_disk_for_a_target(world: World) -> None:
    world.internal(targetops.TargetUp(1, 1, 1))
    op = targetops.TargetReplace(1, b"n" * 16, False)
    assert world.entry(0, 1, 1, op).status == errno.EBUSY, "files with one copy would be gone"
    for part in range(PARTS):
        number = chain_of(1, 1, part)
        version = chain(world, number)[0]
        world.internal(targetops.ChainMove(number, version, 2, 1))
        world.internal(targetops.ChainSynced(number, version + 1, 2))
        world.internal(targetops.ChainLeave(number, version + 2, 1))
    world.internal(op)
    assert states(world) == {1: OFFLINE, 2: SERVING}
    world.internal(targetops.TargetUp(1, 55, 1))
    assert states(world) == {1: SYNCING, 2: SERVING}


def test_layouts_of_directories_and_files(world: World) -> None:
    """Set on a directory, inherited by what is made below, shown everywhere."""
    name = b"lockstep.layout"

    def shown(ino: int) -> bytes:
        value: bytes = world.ask(ops.GetXattr(ROOT, ino, name))
        return value

    assert shown(TOP) == b"stripe_size=1048576 stripe_count=4 copies=1 inline=0"
    above = Attr(world.ok(ops.Mkdir(ROOT, TOP, b"d", 0o755)))
    world.ok(ops.SetXattr(ROOT, above.ino, name, b"copies=2 stripe_count=1", 0))
    below = Attr(world.ok(ops.Mkdir(ROOT, above.ino, b"e", 0o755)))
    assert shown(below.ino) == b"stripe_size=1048576 stripe_count=1 copies=2 inline=0"
    file = Attr(world.ok(ops.Create(ROOT, below.ino, b"f", 0o644)))
    size, (column,) = file.layout
    assert (size, column >> 16) == (1 << 20, 1)
    assert shown(file.ino) == b"stripe_size=1048576 stripe_count=1 copies=2 inline=0 chains=%d" % column
    world.ok(ops.SetXattr(ROOT, file.ino, name, b"stripe_size=65536 stripe_count=2 copies=3", 0))
    assert shown(file.ino).startswith(b"stripe_size=65536 stripe_count=2 copies=3 inline=0 chains=")
    world.ok(ops.Commit(file.ino, 1, 0))
    assert world.run(ops.SetXattr(ROOT, file.ino, name, b"copies=1", 0)).status == errno.EBUSY
    assert world.run(ops.SetXattr(ALICE, above.ino, name, b"copies=1", 0)).status == errno.EPERM
    for bad in (b"", b"copies=4", b"copies=0", b"stripe_size=5000", b"chains=1", b"copies", b"copies=1x", b"\xff"):
        assert world.run(ops.SetXattr(ROOT, above.ino, name, bad, 0)).status == errno.EINVAL, bad
    world.ok(ops.RemoveXattr(ROOT, above.ino, name))
    assert shown(above.ino) == shown(TOP)

"""What interrupted moves leave behind comes to an end: a copy too many goes, a drain waits for nobody for ever."""

from __future__ import annotations

from pathlib import Path

import pytest

from mds import schema
from mds.keeper import AWAY_US
from tests.mds.harness import World
from tests.mds.test_keeper import Watched, version_of
from wire import ops, targetops
from wire.chains import DRAINING, OFFLINE, SERVING, SYNCING, Members, chain_of
from wire.codec import pack

SINGLE = chain_of(1, 1)
PAIR = chain_of(2, 1)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "s", targets=4)


def found(world: World, number: int, members: Members) -> None:
    """The state has had the chain like this for long."""
    world.store.put_alone(schema.CHAINS, schema.chain_key(number), pack((version_of(world, number), members, 0)))
    address = f"moved:{world.machine.storage_map()[0]}"  # the map is read anew when it moves
    world.internal(ops.TargetSet(4, address, bytes([4]) * 16))


def watched_by(world: World) -> Watched:
    watched = Watched(world)
    watched.runs[4] = 14
    return watched


def sync_all(world: World) -> None:
    for number, version, members in world.machine.storage_map()[2]:
        for target, state in members:
            if state == SYNCING:
                world.internal(targetops.ChainSynced(number, version, target))


def test_a_copy_too_many_leaves_when_it_answers_no_reads_any_more(world: World) -> None:
    watched = watched_by(world)
    watched.step()
    found(world, SINGLE, ((1, SERVING), (3, SERVING)))
    version = version_of(world, SINGLE)
    orders = watched.step()
    assert orders == [targetops.ChainLeave(SINGLE, version, 3)], "and no move of it"
    assert watched.members(SINGLE) == {1: SERVING, 3: DRAINING}, "it may have a lease to read by"
    assert watched.step() == [targetops.ChainLeave(SINGLE, version + 1, 3)]
    assert watched.members(SINGLE) == {1: SERVING}
    assert watched.step() == []


def test_of_copies_too_many_the_one_that_is_drained_goes(world: World) -> None:
    watched = watched_by(world)
    watched.step()
    found(world, SINGLE, ((1, SERVING), (3, SERVING)))
    world.internal(targetops.TargetDrain(1, True))
    version = version_of(world, SINGLE)
    orders = [op for op in watched.step() if getattr(op, "chain", 0) == SINGLE]
    assert orders == [targetops.ChainLeave(SINGLE, version, 1)], "nobody need take its place"
    watched.step()
    assert watched.members(SINGLE) == {3: SERVING}


def test_a_copy_too_many_stays_while_another_does_not_answer(world: World) -> None:
    watched = watched_by(world)
    watched.step()
    found(world, SINGLE, ((1, SERVING), (3, SERVING)))
    watched.failed.add(1)
    assert watched.step() == []
    assert watched.members(SINGLE) == {1: SERVING, 3: SERVING}, "it may become the only one"


def test_nobody_who_is_needed_is_made_to_leave(world: World) -> None:
    """Void: orders about what was so before."""
    for members in (((1, SERVING), (2, SERVING)), ((1, SERVING), (2, SYNCING)), ((1, SERVING), (2, OFFLINE))):
        found(world, PAIR, members)
        before = world.machine.storage_map()
        world.internal(targetops.ChainLeave(PAIR, version_of(world, PAIR), 2))
        assert world.machine.storage_map() == before
    found(world, SINGLE, ((1, SERVING), (3, SERVING)))
    world.internal(targetops.ChainLeave(SINGLE, version_of(world, SINGLE), 2))
    assert dict(next(m for n, _, m in world.machine.storage_map()[2] if n == SINGLE)) == {1: SERVING, 3: SERVING}


def test_an_older_member_that_is_away_does_not_keep_a_drain_waiting_for_ever(world: World) -> None:
    """1. A copy is offline. 2. The other one is drained, a third takes its place. 3. There are not as many copies as
    there should be, so the second stays; after a while a fourth takes the place of the first."""
    watched = watched_by(world)
    watched.step()
    watched.there.discard(2)
    watched.keeper.lost(2, watched.now)
    while watched.members()[2] != OFFLINE:
        watched.step()
    away = watched.now
    world.internal(targetops.TargetDrain(1, True))
    watched.step()
    sync_all(world)
    newcomer = next(t for t in watched.members() if t in (3, 4))
    assert watched.members() == {1: DRAINING, 2: OFFLINE, newcomer: SERVING}
    while 2 in watched.members():
        assert watched.members() == {1: DRAINING, 2: OFFLINE, newcomer: SERVING}
        watched.step(1_000_000 - 1)
        sync_all(world)
        assert watched.now - away < 2 * AWAY_US, "the drain comes to no end"
    assert watched.now - away >= AWAY_US, "it may have been started again only"
    watched.step()
    watched.step()
    assert watched.members() == {3: SERVING, 4: SERVING}


def test_an_older_member_that_is_away_is_waited_for_where_nobody_drains(world: World) -> None:
    """Its copy is worth more than one that is still to be made."""
    watched = watched_by(world)
    watched.step()
    watched.there.discard(2)
    watched.keeper.lost(2, watched.now)
    for _ in range(200):
        watched.step(1_000_000 - 1)
    assert watched.members() == {1: SERVING, 2: OFFLINE}

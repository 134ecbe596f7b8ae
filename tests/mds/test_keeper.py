"""Who is marked offline when, who is taken in again, where data is moved; orders are carried out by a real machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from mds.keeper import AWAY_US, BEAT_US, GONE_US, ORDER_AGAIN_US, SHUNNED_US, SILENCE_US, Keeper
from tests.mds.harness import World
from wire import ops, targetops
from wire.chains import DRAINING, OFFLINE, SERVING, SYNCING, chain_of, copies_of
from wire.errors import OK
from wire.storage import LEASE_US

PAIR = chain_of(2, 1)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "s", targets=2)


class Watched:
    """A keeper of the world's targets, all of them there unless told otherwise."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.now = 10_000_000
        self.keeper = Keeper(self.now)
        self.failed: set[int] = set()
        self.echoes: dict[int, int] = {}
        self.synced: dict[int, tuple[tuple[int, int, int], ...]] = {}
        """What each says that it has synced."""
        self.runs = {1: 11, 2: 12, 3: 13}
        self.there = {target for target, *_ in world.machine.storage_map()[1]}
        for target in self.there:
            self.keeper.connected(target, 1, self.now)

    def step(self, us: int = BEAT_US, silent: tuple[int, ...] = ()) -> list[object]:
        """Time passes, targets answer, and what is to be ordered is."""
        self.now += us
        version = self.world.machine.storage_map()[0]
        for target in sorted(self.there - set(silent)):
            self.echoes[target] = self.keeper.echo(target, self.world.machine.storage_map())
            failed = target in self.failed
            self.keeper.said(
                target, self.runs[target], self.now, version, (10, 5), self.synced.get(target, ()), (), self.now,
                failed=failed,
            )  # fmt: skip
        orders = self.keeper.orders(self.world.machine.storage_map(), self.now)
        for op in orders:
            self.world.internal(op)
        return orders

    def members(self, chain: int = PAIR) -> dict[int, str]:
        return next(dict(members) for number, _, members in self.world.machine.storage_map()[2] if number == chain)


def test_a_killed_target_is_offline_when_its_lease_is_over(world: World) -> None:
    watched = Watched(world)
    assert watched.step() == [targetops.TargetUp(1, 11, 1), targetops.TargetUp(2, 12, 1)]
    assert watched.step() == []
    watched.there.remove(2)
    watched.keeper.lost(2, watched.now)
    began = watched.now
    while not (orders := watched.step(10_000)):
        assert watched.now - began <= LEASE_US, "a writer waits for this"
    assert orders == [targetops.TargetDown(2, 12)]
    assert watched.now - began >= max(GONE_US, LEASE_US - BEAT_US), "until then it may answer a read"
    assert watched.members() == {1: SERVING, 2: OFFLINE}


def test_a_silent_target_is_given_more_time(world: World) -> None:
    watched = Watched(world)
    watched.step()
    began = watched.now
    while not watched.step(20_000, silent=(1,)):
        pass
    assert watched.members() == {1: OFFLINE, 2: SERVING}
    assert SILENCE_US <= watched.now - began < SILENCE_US + 100_000
    assert watched.step() == [targetops.TargetUp(1, 11, 1)], "it was only stopped"
    assert watched.members() == {1: SYNCING, 2: SERVING}


def test_a_target_whose_disk_has_failed_is_offline_until_it_is_started_again(world: World) -> None:
    """It answers heartbeats; the lease that it has been given runs out first."""
    watched = Watched(world)
    watched.step()
    watched.step()
    watched.failed.add(2)
    began = watched.now
    while not (orders := watched.step(10_000)):
        assert watched.now - began <= LEASE_US, "a writer waits for this"
    assert orders == [targetops.TargetDown(2, 12)]
    assert watched.now - began >= LEASE_US - BEAT_US, "until then it may answer a read"
    assert watched.members() == {1: SERVING, 2: OFFLINE}
    assert watched.members(chain_of(1, 2)) == {2: SERVING}, "nobody else has it"
    for _ in range(20):
        assert watched.step() == []
    watched.failed.clear()
    watched.runs[2] = 99
    assert watched.step() == [targetops.TargetUp(2, 99, 1)]
    assert watched.members() == {1: SERVING, 2: SYNCING}


def test_a_new_keeper_waits_for_what_the_one_before_has_promised(world: World) -> None:
    watched = Watched(world)
    watched.step()
    watched.keeper = Keeper(watched.now)
    watched.there.clear()
    began = watched.now
    while not watched.step(10_000):
        pass
    assert watched.now - began >= LEASE_US
    assert list(watched.members().values()).count(OFFLINE) == 1, "one of them stays: nobody else has the data"


def test_our_own_pause_counts_for_nobodys_silence(world: World) -> None:
    watched = Watched(world)
    watched.step()
    watched.now += 10 * SILENCE_US
    watched.keeper.stalled(watched.now)
    assert watched.keeper.orders(world.machine.storage_map(), watched.now) == []


def test_what_is_ordered_is_ordered_once(world: World) -> None:
    watched = Watched(world)
    found = world.machine.storage_map()
    watched.keeper.said(1, 11, 1, 0, (1, 1), (), (), watched.now)
    assert watched.keeper.orders(found, watched.now) == [targetops.TargetUp(1, 11, 1)]
    assert watched.keeper.orders(found, watched.now + 1) == [], "it is on its way"
    again = watched.now + ORDER_AGAIN_US
    watched.keeper.said(1, 11, 1, 0, (1, 1), (), (), again)
    assert targetops.TargetUp(1, 11, 1) in watched.keeper.orders(found, again), "it was lost"


def test_synced_is_ordered_when_the_member_before_says_so(world: World) -> None:
    watched = Watched(world)
    watched.step()
    watched.runs[2] = 99
    watched.step()
    assert watched.members() == {1: SERVING, 2: SYNCING}
    version = next(v for number, v, _ in world.machine.storage_map()[2] if number == PAIR)
    now = watched.now
    watched.keeper.said(1, 11, now, 0, (1, 1), ((PAIR, version - 1, 2),), (), now)
    assert watched.keeper.orders(world.machine.storage_map(), now) == [], "it is about another version"
    watched.keeper.said(1, 11, now, 0, (1, 1), ((PAIR, version, 2),), (), now)
    assert watched.keeper.orders(world.machine.storage_map(), now) == [targetops.ChainSynced(PAIR, version, 2)]


def test_a_target_that_others_cannot_reach_is_left_out_for_a_while(world: World) -> None:
    """The network between two targets is cut; both are reached by the keeper. The writers must go on."""
    watched = Watched(world)
    watched.step()
    now = watched.now
    watched.keeper.said(1, 11, now, 99, (1, 1), (), (2,), now)
    while not watched.step(50_000, silent=(2,)):
        pass
    assert watched.members() == {1: SERVING, 2: OFFLINE}
    assert watched.step() == []
    watched.now += SHUNNED_US
    watched.step()
    assert watched.step() == [] and watched.members() == {1: SERVING, 2: SYNCING}


def test_a_new_target_takes_its_share_and_a_drained_one_gives_its_up(world: World) -> None:
    watched = Watched(world)
    watched.step()
    world.internal(ops.TargetSet(3, "h:3", b"3" * 16))
    watched.there.add(3)
    watched.keeper.connected(3, 1, watched.now)
    orders = watched.step()
    few = targetops.ChainMove(chain_of(2, 2), 1, 3, 1)
    assert orders == [targetops.TargetUp(3, 13, 1), few], "it has fewest places"
    assert watched.members(chain_of(2, 2)) == {2: SERVING, 1: DRAINING, 3: SYNCING}
    world.internal(targetops.ChainSynced(chain_of(2, 2), 2, 3))
    assert watched.step() == [targetops.ChainLeave(chain_of(2, 2), 3, 1)]
    world.internal(targetops.TargetDrain(2, True))
    for _ in range(40):
        watched.step()
        for number, version, members in world.machine.storage_map()[2]:
            for target, state in members:
                if state == SYNCING:
                    world.internal(targetops.ChainSynced(number, version, target))
    chains = world.machine.storage_map()[2]
    left = {number for number, _, members in chains if 2 in dict(members)}
    assert left == {number for number, _, _ in chains if copies_of(number) == 3}, "for these nobody else is left"
    assert watched.step(ORDER_AGAIN_US) == []
    assert world.entry(0, 1, 1, targetops.TargetRemove(2, False)).status == OK, "others have all of it"
    assert all(2 not in dict(members) for _, _, members in world.machine.storage_map()[2])


def moving(world: World, watched: Watched, number: int, to: int) -> int:
    """Have chain *number*, of one copy of target 1, moved to *to*; its version."""
    version = version_of(world, number)
    world.internal(targetops.ChainMove(number, version, to, 1))
    assert watched.members(number) == {1: DRAINING, to: SYNCING}
    return version + 1


def version_of(world: World, number: int) -> int:
    return next(version for n, version, _ in world.machine.storage_map()[2] if n == number)


@pytest.mark.parametrize("how", ["killed", "failed"])
def test_who_has_died_since_does_not_take_a_place(world: World, how: str) -> None:
    """1. A target is given everything. 2. It dies, or its disk does. 3. It is not marked offline yet."""
    watched = Watched(world)
    watched.step()
    single = chain_of(1, 1)
    version = moving(world, watched, single, 2)
    watched.synced[1] = ((single, version, 2),)
    if how == "killed":
        watched.there.discard(2)
        watched.keeper.lost(2, watched.now)
    else:
        watched.failed.add(2)
    assert watched.step(10_000) == [], "it is not known to be away for long enough"
    for _ in range(20):
        watched.step()
    assert watched.members(single) == {1: DRAINING, 2: OFFLINE}, "the good copy stays"


@pytest.mark.parametrize("how", ["killed", "failed"])
def test_nobody_leaves_to_one_that_has_died_since(world: World, how: str) -> None:
    watched = Watched(world)
    watched.step()
    single = chain_of(1, 1)
    version = moving(world, watched, single, 2)
    world.internal(targetops.ChainSynced(single, version, 2))
    assert watched.members(single) == {1: DRAINING, 2: SERVING}
    if how == "killed":
        watched.there.discard(2)
        watched.keeper.lost(2, watched.now)
    else:
        watched.failed.add(2)
    for _ in range(20):
        watched.step()
    assert watched.members(single) == {1: DRAINING, 2: OFFLINE}, "the good copy stays"


def test_a_disk_that_failed_lends_what_nobody_else_has(world: World) -> None:
    """Its only copies are being moved: they can be read until somebody else has them, and writers go on after that."""
    watched = Watched(world)
    watched.step()
    watched.step()
    single = chain_of(1, 1)
    version = moving(world, watched, single, 2)
    watched.failed.add(1)
    watched.step(10_000)
    watched.step(10_000)
    assert watched.echoes[1] == 0, "what it was given has to run out before it is left out of the others"
    while watched.members()[1] != OFFLINE:
        watched.step()
    watched.step()
    assert watched.members(single) == {1: DRAINING, 2: SYNCING}
    assert watched.echoes[1] != 0, "reads go on"
    watched.synced[1] = ((single, version, 2),)
    watched.step()
    watched.step()
    assert watched.members(single) == {2: SERVING}


def test_a_disk_that_failed_makes_way_when_somebody_else_has_everything(world: World) -> None:
    """1. The last one that serves a chain fails. 2. The other is given everything all the same. 3. A failed disk
    refuses what others can do, so it must not stay the head."""
    watched = Watched(world)
    watched.step()
    watched.runs[2] = 99
    watched.step()
    watched.failed.add(1)
    for _ in range(10):
        watched.step()
    assert watched.members() == {1: SERVING, 2: SYNCING} and watched.echoes[1] != 0
    promised = watched.now + LEASE_US - 2 * BEAT_US
    watched.synced[1] = ((PAIR, version_of(world, PAIR), 2),)
    watched.step()
    assert watched.members() == {1: SERVING, 2: SERVING}
    while watched.members()[1] != OFFLINE:
        watched.step()
        assert watched.now < promised + 10 * BEAT_US
    assert watched.now >= promised, "until then it may answer a read"
    assert watched.members() == {1: OFFLINE, 2: SERVING}
    assert watched.step(ORDER_AGAIN_US) == []


def test_another_takes_the_place_of_one_that_went_away_in_mid_move(world: World) -> None:
    watched = Watched(world)
    watched.step()
    single = chain_of(1, 1)
    world.internal(targetops.TargetDrain(1, True))
    moving(world, watched, single, 2)
    world.internal(ops.TargetSet(3, "h:3", b"3" * 16))
    watched.there.add(3)
    watched.keeper.connected(3, 1, watched.now)
    watched.there.discard(2)
    watched.keeper.lost(2, watched.now)
    while watched.members(single)[2] != OFFLINE:
        watched.step()
    began = watched.now
    while 2 in watched.members(single):
        assert watched.members(single) == {1: DRAINING, 2: OFFLINE}
        watched.step(1_000_000 - 1)
        assert watched.now - began < 2 * AWAY_US, "the drain comes to no end"
    assert watched.now - began >= AWAY_US, "it may have been started again only"
    assert watched.members(single) == {1: DRAINING, 3: SYNCING}


def test_copies_that_were_lost_for_good_are_made_anew(world: World) -> None:
    """1. A disk dies and is removed. 2. What it had a copy of has one less. 3. Another target is given them."""
    watched = Watched(world)
    watched.step()
    assert world.entry(0, 1, 1, targetops.TargetRemove(2, True)).status == OK
    watched.there.discard(2)
    pair = chain_of(2, 2)
    assert watched.members(pair) == {1: SERVING} and watched.step() == [], "there is nobody yet"
    world.internal(ops.TargetSet(3, "h:3", b"3" * 16))
    watched.there.add(3)
    watched.keeper.connected(3, 1, watched.now)
    orders = watched.step()
    assert targetops.ChainMove(pair, 2, 3, 0) in orders
    assert watched.members(pair) == {1: SERVING, 3: SYNCING}
    world.internal(targetops.ChainMove(pair, 3, 4, 0))
    assert watched.members(pair) == {1: SERVING, 3: SYNCING}, "it has as many as it should"


def test_space_of_those_that_answer(world: World) -> None:
    watched = Watched(world)
    watched.step()
    assert watched.keeper.spaces(watched.now) == {1: (10, 5), 2: (10, 5)}
    for _ in range(SILENCE_US // BEAT_US + 1):
        watched.step(silent=(2,))
    assert watched.keeper.spaces(watched.now) == {1: (10, 5)}


def test_which_keys_a_target_knows(world: World) -> None:
    """Another connection may be with another run of it, which knows none."""
    watched = Watched(world)
    keeper = watched.keeper
    assert keeper.keys_of(1) == b""
    keeper.said(1, 11, watched.now, 1, (10, 5), (), (), watched.now, b"print")
    assert keeper.keys_of(1) == b"print"
    keeper.lost(1, watched.now)
    keeper.connected(1, 1, watched.now)
    assert keeper.keys_of(1) == b""

"""Chains whose members lose power: whether an fsync tells what is lost, and nothing else.

Targets are simulated down to their page caches; the storage map's changes are carried out by a real machine, and the
client's rule is the production one.
"""

from __future__ import annotations

import errno
import random
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from client.acks import Ack, Unsynced
from tests.mds.harness import World
from wire import targetops
from wire.chains import OFFLINE, PARTS, SYNCING, Members, answer_untrusted, chain_of, holders, path
from wire.codec import pack, unpack_untrusted
from wire.ops import StorageMap

ONE, PAIR, THREE = chain_of(1, 1), chain_of(2, 1), chain_of(3, 1)


@dataclass
class Disk:
    """A target: the writes in its page cache, those of them that are on its disk, and those that it never forgot."""

    run: int
    incarnation: int = 1
    alive: bool = True
    reached: bool = True
    """By the keeper and everybody else."""
    cache: set[int] = field(default_factory=set)
    disk: set[int] = field(default_factory=set)
    kept: set[int] = field(default_factory=set)
    """As the cache, but for a power cut: it takes from this also what happened to be on disk. So it is told from
    what a client knows, which is not when the kernel writes something back."""

    def die(self, power_cut: bool, synced: set[int]) -> None:
        """*synced*: what the client's syncs have covered."""
        self.alive = False
        if power_cut:
            self.incarnation += 1
            self.cache = set(self.disk)
            self.kept &= synced


class Cluster:
    """Three targets, one of the world's chains, and a client that writes to it."""

    def __init__(self, world: World, chain: int) -> None:
        self.world, self.number = world, chain
        self.targets = {target: Disk(100 * target) for target in (1, 2, 3)}
        self.unsynced, self.writes, self.synced = Unsynced(), set[int](), set[int]()
        self.count = 0
        for target, *_ in world.machine.storage_map()[1]:
            self.keeper(target)

    # -- the map

    def map(self) -> tuple[int, Members, int]:
        """The chain's version and members, and the version of its last loss."""
        (_, _, chains), losses = answer_untrusted(self.world.ask(StorageMap()))
        version, members = next((version, members) for chain, version, members in chains if chain == self.number)
        return version, members, dict(losses).get(self.number, 0)

    def keeper(self, target: int) -> None:
        """It finds out how *target* is."""
        one = self.targets[target]
        known = next(entry for entry in self.world.machine.storage_map()[1] if entry[0] == target)
        if not one.alive or not one.reached:
            self.world.internal(targetops.TargetDown(target, known[3]))
        elif known[3] != one.run or known[2] == OFFLINE:
            self.world.internal(targetops.TargetUp(target, one.run, one.incarnation))

    def answers(self, target: int) -> bool:
        run = next(entry[3] for entry in self.world.machine.storage_map()[1] if entry[0] == target)
        return self.targets[target].alive and self.targets[target].reached and self.targets[target].run == run

    def start(self, target: int) -> None:
        one = self.targets[target]
        if not one.alive:
            one.alive, one.run = True, one.run + 1

    def restart(self, *targets: int, power_cut: bool) -> None:
        for target in targets:
            self.targets[target].die(power_cut, self.synced)
        for target in targets:
            self.start(target)
            self.keeper(target)

    def sync_member(self, done: bool = True) -> bool:
        """The first that is being synced is given everything, and has it on disk; then (*done*) it serves."""
        version, members, _ = self.map()
        target = next((t for t, state in members if state == SYNCING), None)
        source = next((t for t in holders(members) if self.answers(t)), None)
        if target is None or source is None or not self.answers(target):
            return False
        one, giver = self.targets[target], self.targets[source]
        one.cache, one.kept = set(giver.cache), set(giver.kept)
        one.disk = set(one.cache)
        if done:
            self.world.internal(targetops.ChainSynced(self.number, version, target))
        return True

    def move(self, target: int, instead_of: int) -> None:
        self.world.internal(targetops.ChainMove(self.number, self.map()[0], target, instead_of))

    def leave(self, target: int) -> None:
        self.world.internal(targetops.ChainLeave(self.number, self.map()[0], target))

    def heal(self) -> None:
        """All of them are there."""
        for target, one in self.targets.items():
            one.reached = True
            self.start(target)
            self.keeper(target)

    # -- the client

    def write(self) -> bool:
        version, members, lost = self.map()
        if not all(self.answers(target) for target in path(members)):
            return False
        self.count += 1
        for target in path(members):
            self.targets[target].cache.add(self.count)
            self.targets[target].kept.add(self.count)
        self.writes.add(self.count)
        self.unsynced.add(Ack(version, lost))
        return True

    def gone(self, kept: bool = False) -> set[int]:
        """The unsynced writes that a member which serves has not got."""
        held = [self.targets[target] for target in holders(self.map()[1])]
        return {write for write in self.writes if not all(write in (t.kept if kept else t.cache) for t in held)}

    def fsync(self) -> int | None:
        """0, EIO, or None: it waits."""
        version, members, lost = self.map()
        if not all(self.answers(target) for target in path(members)):
            return None
        for target in path(members):
            self.targets[target].disk |= self.targets[target].cache
        told = self.unsynced.take_lost(Ack(version, lost))
        self.synced |= self.writes - self.gone()
        self.unsynced, self.writes = Unsynced(), set()
        return errno.EIO if told else 0


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "s", targets=3)


@pytest.mark.parametrize("chain", [ONE, PAIR, THREE])
@pytest.mark.parametrize("power_cut", [True, False])
def test_all_members_at_once(world: World, chain: int, power_cut: bool) -> None:
    """A daemon that is killed loses nothing: the page cache stays."""
    cluster = Cluster(world, chain)
    cluster.write()
    cluster.restart(1, 2, 3, power_cut=power_cut)
    assert bool(cluster.gone()) == power_cut
    assert cluster.fsync() == (errno.EIO if power_cut else 0)
    assert cluster.fsync() == 0


@pytest.mark.parametrize("others_first", [True, False])
def test_in_whatever_order_they_come_back(world: World, others_first: bool) -> None:
    """The keeper has noticed that they are gone; who was the last that served is waited for."""
    cluster = Cluster(world, PAIR)
    cluster.write()
    for target in (1, 2):
        cluster.targets[target].die(True, set())
        cluster.keeper(target)
    assert dict(cluster.map()[1])[1] == OFFLINE
    results = []
    for target in (1, 2) if others_first else (2, 1):
        results.append(cluster.fsync())
        cluster.start(target)
        cluster.keeper(target)
    results.append(cluster.fsync())
    assert results == ([None, None, errno.EIO] if others_first else [None, errno.EIO, 0])


def test_one_of_two_loses_power(world: World) -> None:
    cluster = Cluster(world, PAIR)
    cluster.write()
    cluster.restart(1, power_cut=True)
    assert cluster.sync_member()
    cluster.restart(2, power_cut=True)
    assert cluster.sync_member()
    assert not cluster.gone()
    assert cluster.fsync() == 0, "one after the other: each was given it again"


def test_what_was_synced_is_not_lost(world: World) -> None:
    cluster = Cluster(world, PAIR)
    cluster.write()
    assert cluster.fsync() == 0
    cluster.restart(1, 2, power_cut=True)
    assert cluster.fsync() == 0
    cluster.write()
    assert cluster.fsync() == 0, "written after it"


def test_who_is_left_alone_loses_power_while_the_other_is_away(world: World) -> None:
    """The one that is away has it, and is given what the last one to serve has: without it."""
    cluster = Cluster(world, PAIR)
    cluster.write()
    cluster.targets[1].reached = False
    cluster.keeper(1)
    cluster.restart(2, power_cut=True)
    cluster.targets[1].reached = True
    cluster.keeper(1)
    assert cluster.sync_member()
    assert cluster.gone()
    assert cluster.fsync() == errno.EIO


def test_the_chain_has_moved_before_it_is_asked(world: World) -> None:
    """1. The only copy loses power. 2. The chain moves to another target. 3. Nobody who answers has lost anything."""
    cluster = Cluster(world, ONE)
    cluster.write()
    cluster.restart(1, power_cut=True)
    cluster.move(3, 1)
    assert cluster.sync_member()
    cluster.leave(1)
    assert holders(cluster.map()[1]) == (3,)
    assert cluster.fsync() == errno.EIO


def test_a_chain_that_moves_loses_nothing(world: World) -> None:
    """Nor does a power cut at whoever it has left, or at whoever it comes to before it is there."""
    cluster = Cluster(world, ONE)
    cluster.write()
    cluster.move(3, 1)
    cluster.restart(3, power_cut=True)
    assert cluster.sync_member()
    cluster.restart(1, power_cut=True)
    cluster.sync_member()
    cluster.restart(1, power_cut=True)
    assert holders(cluster.map()[1]) == (3,)
    assert cluster.fsync() == 0


def test_who_is_given_up_takes_it_along(world: World) -> None:
    """By the administrator: a target that never comes back, or comes with another disk."""
    other = Cluster(world, chain_of(1, 3))
    other.write()
    world.internal(targetops.TargetRemove(3, True))
    assert other.fsync() == errno.EIO, "a chain that nobody was left in"
    cluster = Cluster(world, ONE)
    cluster.write()
    world.internal(targetops.TargetReplace(1, b"n" * 16, True))
    cluster.targets[1].cache.clear()
    cluster.restart(1, power_cut=True)
    assert cluster.fsync() == errno.EIO
    cluster.write()
    cluster.move(2, 1)
    world.internal(targetops.TargetRemove(1, True))
    assert cluster.fsync() == errno.EIO


def test_only_the_chains_that_it_alone_has(world: World) -> None:
    cluster = Cluster(world, PAIR)
    cluster.restart(1, power_cut=True)
    _, losses = answer_untrusted(unpack_untrusted(pack(world.ask(StorageMap()))))
    assert [chain for chain, _ in losses] == [chain_of(1, 1, part) for part in range(PARTS)]
    before = losses
    cluster.restart(1, power_cut=False)
    assert world.ask(StorageMap())[1] == before


def step(cluster: Cluster, rng: random.Random, write_back: bool) -> None:
    """Something happens."""
    target = rng.choice((1, 2, 3))
    one = cluster.targets[target]
    match rng.randrange(12):
        case 0 | 1 | 2:
            cluster.write()
        case 3:
            if one.alive:
                one.die(rng.random() < 0.7, cluster.synced)
        case 4:
            for each in cluster.targets.values():
                if each.alive and rng.random() < 0.8:
                    each.die(True, cluster.synced)
        case 5:
            one.reached = not one.reached
        case 6 if write_back:
            one.disk |= set(rng.sample(sorted(one.cache), len(one.cache) // 2))
        case 7:
            cluster.sync_member(done=rng.random() < 0.8)
        case 8:
            _, members, _ = cluster.map()
            inside = dict(members)
            if target not in inside and len(inside) == 1 + (cluster.number == PAIR):
                cluster.move(target, rng.choice(sorted(inside)))
            else:
                cluster.leave(target)
        case 9 | 10:
            cluster.start(target)
        case _:
            for each in (1, 2, 3):
                if rng.random() < 0.7:
                    cluster.keeper(each)


@pytest.mark.parametrize("chain", [ONE, PAIR])
@pytest.mark.parametrize("seed", range(6))
def test_an_fsync_tells_what_is_lost_and_nothing_else(world: World, chain: int, seed: int) -> None:
    rng = random.Random(f"{chain} {seed}")
    cluster = Cluster(world, chain)
    results = []
    for _ in range(400):
        step(cluster, rng, write_back=seed % 2 == 1)
        if rng.random() < 0.1:
            cluster.heal()
        if rng.random() < 0.2:
            lost, forgotten = cluster.gone(), cluster.gone(kept=True)
            result = cluster.fsync()
            if result is None:
                continue
            assert result == errno.EIO or not lost
            assert (result == errno.EIO) == bool(forgotten)
            results.append(result)
    assert {0, errno.EIO} == set(results)

"""Single copies are moved until targets are as full as each other, and not beyond."""

from __future__ import annotations

import random

import pytest

from mds.balance import AGAIN_US, LEAST, TOLERANCE, Balance
from wire.chains import PARTS, SERVING, SYNCING, StorageMap, chain_of

MIB = 1 << 20
DISK = (100_000 * MIB, 50_000 * MIB)


class Cluster:
    """Targets with their chains of one copy, each of so many MiB."""

    def __init__(self, sizes: dict[int, list[int]], spaces: dict[int, tuple[int, int]] | None = None) -> None:
        self.spaces = spaces or dict.fromkeys(sizes, DISK)
        self.at = {chain_of(1, t, part): t for t, many in sizes.items() for part, _ in enumerate(many)}
        self.sizes = {chain_of(1, t, part): size * MIB for t, many in sizes.items() for part, size in enumerate(many)}
        self.balance = Balance()
        self.balance.ask(frozenset(sizes), 1)
        self.balance.found(1, tuple(self.sizes.items()))

    def map(self) -> StorageMap:
        targets = tuple((t, "h:1", SERVING, 1) for t in sorted(self.spaces))
        return 1, targets, tuple((chain, 1, ((t, SERVING),)) for chain, t in sorted(self.at.items()))

    def converge(self) -> list[int]:
        """Chains in the order in which they are moved."""
        moved = []
        while (move := self.balance.move(self.map(), self.spaces)) is not None:
            chain, version, to, giver = move
            assert (version, self.at[chain]) == (1, giver) and to != giver
            self.at[chain] = to
            moved.append(chain)
            assert len(moved) < 1000, "this has no end"
        return moved

    def loads(self) -> list[int]:
        """MiB at each target."""
        return [sum(self.sizes[c] for c, at in self.at.items() if at == t) // MIB for t in sorted(self.spaces)]


def test_a_new_target_is_given_its_part() -> None:
    cluster = Cluster({1: [100] * PARTS, 2: [100] * PARTS, 3: [100] * PARTS, 4: [0] * PARTS})
    assert len(cluster.converge()) == 3
    assert cluster.loads() == [300, 300, 300, 300]


def test_who_is_alone_gives_half_to_the_second() -> None:
    cluster = Cluster({1: [40] * PARTS, 2: [0] * PARTS})
    cluster.converge()
    assert cluster.loads() == [80, 80]


def test_targets_of_other_sizes_are_filled_alike() -> None:
    small = (DISK[0] // 4, DISK[1] // 4)
    cluster = Cluster({1: [100] * 8, 2: [0] * 4, 3: [0] * 4}, {1: DISK, 2: DISK, 3: small})
    cluster.converge()
    assert cluster.loads() == [400, 300, 100]


@pytest.mark.parametrize("seed", range(20))
def test_it_comes_to_an_end_and_no_target_is_fuller_than_before(seed: int) -> None:
    rng = random.Random(seed)
    cluster = Cluster({t: [rng.randrange(500) for _ in range(rng.randrange(1, 9))] for t in range(1, 7)})
    before = max(cluster.loads())
    moved = cluster.converge()
    assert max(cluster.loads()) <= before
    assert len(moved) <= 2 * len(cluster.at), "nothing goes to and fro"
    least = min(cluster.loads())
    for target, load in enumerate(cluster.loads(), 1):
        if target == 1 + cluster.loads().index(least) or (load - least) * MIB < LEAST:
            continue
        sizes = [cluster.sizes[c] / MIB for c, at in cluster.at.items() if at == target]
        assert all(least + size > TOLERANCE * load - 1 or size < 1 for size in sizes), "one more would have helped"


def test_nothing_is_moved_for_little() -> None:
    assert Cluster({1: [3] * 4, 2: [0] * 4}).converge() == []
    assert Cluster({1: [100], 2: [0]}).converge() == [], "what would be as uneven the other way round"


def test_nothing_is_moved_to_where_there_is_no_room() -> None:
    assert Cluster({1: [100] * 4, 2: [0] * 4}, {1: DISK, 2: (DISK[0], 150 * MIB)}).converge() == []


def test_one_at_a_time() -> None:
    cluster = Cluster({1: [100] * 4, 2: [0] * 4})
    version, targets, chains = cluster.map()
    first, _, _ = chains[0]
    moving = ((first, 2, ((1, SERVING), (2, SYNCING))), *chains[1:])
    assert cluster.balance.move((version, targets, moving), cluster.spaces) is None


def test_only_when_all_have_been_weighed_at_the_same_time() -> None:
    cluster = Cluster({1: [100] * 4, 2: [0] * 4})
    balance = cluster.balance
    both = frozenset((1, 2))
    balance.ask(both, 5)
    assert balance.number == 1, "it has just been asked"
    balance.found(1, ((chain_of(1, 2), 900 * MIB),))
    assert cluster.converge(), "whoever says it again says what was written since, too"
    balance.ask(both, 1 + AGAIN_US)
    assert balance.number == 1 + AGAIN_US
    cluster.at = {chain: chain & 0xFFFF for chain in cluster.at}
    balance.found(1, tuple(cluster.sizes.items()))
    assert cluster.converge() == [], "these are the weights of long ago"
    balance.found(balance.number, tuple((c, s) for c, s in cluster.sizes.items() if c & 0xFFFF == 1))
    assert cluster.converge() == [], "one is not weighed yet"
    balance.found(balance.number, tuple((c, s) for c, s in cluster.sizes.items() if c & 0xFFFF == 2))
    assert len(cluster.converge()) == 2
    balance.ask(frozenset((1, 2, 3)), 2 + AGAIN_US)
    assert balance.number == 2 + AGAIN_US, "another target is there"

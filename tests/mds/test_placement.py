"""Where new files go: by free space, and never to a target that is nearly full while another has room."""

from __future__ import annotations

from collections import Counter

from mds.placement import SHARE_MAX, news, shares, wheel
from tests.mds.harness import ROOT, World
from wire import ops
from wire.targetops import TargetSpace

GIB = 1 << 30


def spaces(*free: int) -> dict[int, tuple[int, int]]:
    return {target: (100 * GIB, gib * GIB) for target, gib in enumerate(free, 1)}


def test_shares() -> None:
    assert shares(spaces(80, 40, 5, 1), {}) == {1: 16, 2: 8, 3: 1, 4: 0}
    assert shares(spaces(1, 1), {}) == {1: 0, 2: 0}
    assert shares({}, {}) == {}


def test_a_full_target_needs_some_room_before_it_counts_again() -> None:
    assert shares(spaces(80, 3), {2: 0})[2] == 0
    assert shares(spaces(80, 3), {2: 1})[2] == 1
    assert shares(spaces(80, 5), {2: 0})[2] == 1


def test_only_news_is_ordered() -> None:
    assert news(spaces(80, 79), {}) == (), "a sixteenth less"
    assert news(spaces(80, 60), {}) == ((1, 16), (2, 12))
    assert news(spaces(80, 60), {1: 16, 2: 12}) == ()
    assert news(spaces(80, 57), {1: 16, 2: 12}) == ()
    assert news(spaces(80, 1), {1: 16, 2: 1}) == ((1, 16), (2, 0)), "full is news"
    assert news({}, {}) == ()


def test_the_wheel() -> None:
    assert wheel({1: 5, 2: 5}) == [1, 2] and wheel({1: 0, 2: 0}) == [1, 2]
    assert Counter(wheel({1: 16, 2: 4, 3: 0})) == {1: 16, 2: 4}
    made = wheel({1: 16, 2: 4})
    assert all(2 in made[at : at + 8] for at in range(len(made) - 8)), "spread, not in a row"


def firsts(world: World, count: int = 400) -> Counter[int]:
    found: Counter[int] = Counter()
    for _ in range(count):
        layout = world.attr(ops.Create(ROOT, 1, b"f%d" % world.number, 0o644)).layout
        found[layout[1][0] & 0xFFFF] += 1
    return found


def test_new_files_follow(world: World) -> None:
    world.ok(ops.SetXattr(ROOT, 1, b"lockstep.layout", b"stripe_count=1", 0))
    before = world.machine.storage_map()
    even = firsts(world)
    assert all(80 <= even[target] <= 120 for target in (1, 2, 3, 4))
    world.internal(TargetSpace(((1, 16), (2, 16), (3, 4), (4, 0))))
    uneven = firsts(world)
    assert uneven[4] == 0 and uneven[1] > 3 * uneven[3] > 0 and abs(uneven[1] - uneven[2]) < 40
    world.internal(TargetSpace(((1, 0), (2, 0), (3, 0), (4, 0))))
    assert min(firsts(world)[target] for target in (1, 2, 3, 4)) > 0, "somebody has to take it"
    assert world.machine.storage_map() == before, "nobody has to fetch another map"


def test_a_chain_is_as_full_as_its_fullest_member(world: World) -> None:
    world.ok(ops.SetXattr(ROOT, 1, b"lockstep.layout", b"stripe_count=4 copies=2", 0))
    world.internal(TargetSpace(((1, SHARE_MAX), (2, 0), (3, SHARE_MAX), (4, SHARE_MAX))))
    members = {chain: [t for t, _ in of] for chain, _, of in world.machine.storage_map()[2]}
    for k in range(20):
        _, chains = world.attr(ops.Create(ROOT, 1, b"f%d" % k, 0o644)).layout
        assert chains and all(2 not in members[chain] for chain in chains)


def test_what_is_not_known_is_passed_over(world: World) -> None:
    world.internal(TargetSpace(((1, 3), (77, 5))))
    assert world.machine.space_shares() == {1: 3, 2: 16, 3: 16, 4: 16}
    assert max(world.machine.space_shares().values()) == SHARE_MAX

"""mds.roster: whom a replica dials, whom it refuses, and when it finds out that it was removed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import trio
import trio.testing

from mds.namespace.roster import Roster
from mds.roster import Follower, Removed
from wire.group import CHANNELS

CLUSTER = bytes(range(16))
ROSTER = Roster(0, ((1, "a:1"), (2, "b:1"), (3, "c:1")), ((4, "a:2"),))


class Links:
    """Notes what is dialled, and what is hung up on."""

    def __init__(self) -> None:
        self.dialled: set[tuple[int, str, str]] = set()
        self.dropped: list[int] = []

    async def keep(self, peer: int, address: str, channel: str, role: str) -> None:
        one = (peer, address, channel)
        self.dialled.add(one)
        try:
            await trio.sleep_forever()
        finally:
            self.dialled.remove(one)

    def drop(self, peer: int, why: str) -> None:
        self.dropped.append(peer)

    @property
    def whom(self) -> set[tuple[int, str]]:
        return {(peer, address) for peer, address, _ in self.dialled}


class Guard:
    def __init__(self) -> None:
        self.peers: dict[int, str] = {}

    def tell_peers(self, addresses: dict[int, str]) -> None:
        self.peers = dict(addresses)


class Stage:
    def __init__(self, me: int) -> None:
        self.links = Links()
        self.guard = Guard()
        self.removed: list[Removed] = []
        links: Any = self.links
        guard: Any = self.guard
        self.follower = Follower(me, CLUSTER, links, guard, self.removed.append)

    async def update(self, roster: Roster, in_view: Iterable[int]) -> None:
        self.follower.update(roster, in_view)
        await trio.testing.wait_all_tasks_blocked()


@asynccontextmanager
async def stage(me: int) -> AsyncIterator[Stage]:
    made = Stage(me)
    made.follower.update(ROSTER, (1, 2, 3, 4))
    async with trio.open_nursery() as nursery:
        made.follower.start(nursery)
        await trio.testing.wait_all_tasks_blocked()
        yield made
        nursery.cancel_scope.cancel()


async def test_lower_replicas_and_witnesses_are_dialled() -> None:
    async with stage(2) as at:
        assert at.links.dialled == {*((1, "a:1", channel) for channel in CHANNELS), (4, "a:2", "control")}
        assert at.guard.peers == {1: "a:1", 3: "c:1"}


async def test_who_is_added_or_moves_is_dialled_at_its_address() -> None:
    async with stage(3) as at:
        moved = Roster(1, ((1, "z:1"), (2, "b:1"), (3, "c:1"), (6, "d:1")), ((4, "a:2"), (5, "b:2")))
        await at.update(moved, (1, 2, 3, 4))
        assert at.links.whom == {(1, "z:1"), (2, "b:1"), (4, "a:2"), (5, "b:2")}
        assert at.guard.peers == {1: "z:1", 2: "b:1", 6: "d:1"}
        assert at.follower.refusal(6, active=True) is None, "it dials us"


async def test_who_is_removed_is_talked_to_until_it_is_out_of_the_view() -> None:
    """It may be needed to seal, or to vote on, the view that leaves it out."""
    without = Roster(1, ((2, "b:1"), (3, "c:1")), ((4, "a:2"),), ((1, "a:1", "root@h", 0),))
    async with stage(2) as at:
        await at.update(without, (1, 2, 3, 4))
        assert (1, "a:1") in at.links.whom and at.follower.refusal(1, active=True) is None
        assert at.links.dropped == []
        await at.update(without, (2, 3, 4))
        assert at.links.whom == {(4, "a:2")}
        assert at.links.dropped == [1]
        assert at.follower.refusal(1, active=False) == (
            "replica 1 was removed from this cluster by root@h at 1970-01-01 00:00:00 UTC"
        )


async def test_an_unknown_replica_is_heard_only_while_we_may_have_missed_that_it_was_added() -> None:
    async with stage(2) as at:
        assert at.follower.refusal(9, active=True) == "replica 9 does not belong to this cluster"
        assert at.follower.refusal(9, active=False) is None


async def test_a_removed_replica_stops_when_its_vote_is_needed_no_more() -> None:
    without = Roster(1, ((2, "b:1"), (3, "c:1")), ((4, "a:2"),), ((1, "a:1", "root@h", 0),))
    async with stage(1) as at:
        at.follower.judge_ourselves(ROSTER, (2, 3, 4))
        at.follower.judge_ourselves(without, (1, 2, 3, 4))
        assert at.removed == []
        at.follower.judge_ourselves(without, (2, 3, 4))
        assert [str(why) for why in at.removed] == [
            "replica 1 was removed from this cluster by root@h at 1970-01-01 00:00:00 UTC"
        ]

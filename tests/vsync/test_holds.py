"""vsync.holds: no part of a message may be executed while a member holds it, whoever hears of it from whom."""

from __future__ import annotations

from collections import deque
from random import Random
from typing import Any

import pytest

from tests.vsync.builders import ack, view
from tests.vsync.test_order import order_of
from vsync.effects import Delivered, Effects
from wire.group import Ack, Data, Heartbeat

Part = tuple[int, int, int]


class Member:
    """One member's order with a disk, and a shell that holds some parts for a while."""

    def __init__(self, me: int, members: tuple[int, ...], links: dict[tuple[int, int], deque[Any]]) -> None:
        self.me = me
        self.order, _ = order_of(me, view(1, members, 0))
        self.links = links
        self.undurable: deque[list[int]] = deque()
        self.held: set[Part] = set()
        self.delivered: list[tuple[int, int]] = []
        self.executed: set[Part] = set()

    def carry_out(self, out: Effects, rng: Random) -> None:
        for peer, message in out.send:
            self.links[self.me, peer].append(message)
        for entry in out.appended:
            if rng.random() < 0.4:  # what contradicts a cache is known before it is acknowledged
                self.held |= {(entry.sender, entry.seq, k) for k in range(2) if rng.random() < 0.7}
                self.hold(rng)
        if out.appended:
            self.undurable.append(list(self.order.received))
        for item in out.history:
            if isinstance(item, Delivered):
                _, sender, seq, _, _ = item.entry
                self.delivered.append((sender, seq))
                self.executed |= {(sender, seq, k) for k in range(2) if k not in item.held}
        self.executed |= {(sender, seq, k) for _, sender, seq, k in out.cleared}

    def hold(self, rng: Random) -> None:
        out = Effects()
        self.order.hold(frozenset(self.held), out)
        self.order.deliver(out)
        self.carry_out(out, rng)

    def step(self, rng: Random) -> None:
        out = Effects()
        match rng.randrange(6):
            case 0 if self.order.in_flight < 4:
                self.order.multicast(b"m", out)
            case 1 if self.undurable:
                self.order.on_durable(self.undurable.popleft())
                for peer in self.order.awaiting():
                    out.send.append((peer, self.order.ack()))
            case 2 if self.held and rng.random() < 0.3:
                self.held.remove(rng.choice(sorted(self.held)))
                self.hold(rng)
            case 3 if self.order.untold and rng.random() < 0.3:
                out.send.extend((peer, self.order.ack()) for peer in self.order.peers)
            case _:
                self.receive(out, rng)
        self.order.deliver(out)
        self.carry_out(out, rng)
        self.order.validate()

    def receive(self, out: Effects, rng: Random) -> None:
        frames = [(peer, frames) for (peer, me), frames in self.links.items() if me == self.me and frames]
        if not frames:
            return
        peer, queue = rng.choice(frames)
        message = queue.popleft()
        if isinstance(message, Data):
            self.order.on_data(peer, message, out)
        else:
            assert isinstance(message, Ack)
            self.order.on_ack(peer, message)


def judge(members: dict[int, Member]) -> None:
    held = {part for member in members.values() for part in member.held}
    for member in members.values():
        early = member.executed & held
        assert not early, f"{member.me} executes {early}, which is held"


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(12))
def test_what_is_held_anywhere_is_executed_nowhere(seed: int, size: int) -> None:
    rng = Random(seed)
    ids = tuple(range(1, size + 1))
    links: dict[tuple[int, int], deque[Any]] = {(a, b): deque() for a in ids for b in ids if a != b}
    members = {me: Member(me, ids, links) for me in ids}
    waited = 0
    for _ in range(600):
        members[rng.choice(ids)].step(rng)
        judge(members)
        waited += any(len(m.executed) < 2 * len(m.delivered) for m in members.values())
    assert waited > 50, "the schedule was of some use"
    # In the end everything is let go of, and everybody finds out.
    for member in members.values():
        member.held.clear()
        member.hold(rng)
    for _ in range(60):
        for member in members.values():
            out = Effects()
            while member.undurable:
                member.order.on_durable(member.undurable.popleft())
            out.send.extend((peer, member.order.ack()) for peer in member.order.peers)
            for _ in range(sum(len(frames) for (_, to), frames in links.items() if to == member.me)):
                member.receive(out, rng)
            member.order.deliver(out)
            member.held.clear()
            member.carry_out(out, rng)
            member.held.clear()
            member.hold(rng)
    for member in members.values():
        assert member.delivered == members[1].delivered and len(member.delivered) > 10
        assert member.executed == {(sender, seq, k) for sender, seq in member.delivered for k in range(2)}
        assert not member.order.holds.any, "nothing is left of it"


def test_another_members_word_for_a_delivery_is_its_word_for_what_is_held() -> None:
    """Member 3 learns from 1 that 1's message is delivered, and not what member 2 has said of it to 1."""
    order, _ = order_of(3, view(1, (1, 2, 3), 0))
    out = Effects()
    order.on_data(1, Data(1, 1, 1, (0, 0, 0), (0, 0, 0), b"m"), out)
    order.on_durable([1, 0, 0])
    order.on_ack(1, Ack(1, 1, 1, (1, 0, 0), (1, 0, 0), (), ((1, 1, 5),)))
    order.deliver(out)
    (item,) = [i for i in out.history if isinstance(i, Delivered)]
    assert item.held == {5} and order.ack().unclear == ((1, 1, 5),)

    out = Effects()
    order.on_ack(2, Ack(1, 1, 0, (0, 0, 0), (0, 0, 0)))
    order.deliver(out)
    assert out.cleared == [], "2 says nothing of a message that it does not have"

    order.on_ack(1, ack(1, 1, 1, (1, 0, 0), (1, 0, 0)))
    order.deliver(out)
    assert out.cleared == [(1, 1, 1, 5)]
    assert order.ack().unclear == () and not order.holds.any


@pytest.mark.parametrize("before", [True, False])
def test_a_heartbeat_that_is_overtaken_takes_nothing_back(before: bool) -> None:
    """1. Member 2 sends a heartbeat, and holds nothing. 2. A message comes there that it holds, and it says so with the
    acknowledgement, over another connection. 3. That arrives first; the heartbeat, *before* or after member 3's
    acknowledgement, by which the message is delivered."""
    order, _ = order_of(1, view(1, (1, 2, 3), 0))
    out = Effects()
    order.multicast(b"m", out)
    order.on_durable([1, 0, 0])
    frames: list[Any] = [
        Ack(1, 1, 0, (1, 0, 0), (0, 0, 0), ((1, 1, 0),)),
        Heartbeat(1, 1, 1, 1, 1, 0, 0, 0, (0, 0, 0), (0, 0, 0), (0, 0, 0), (1, 3)),
    ]
    out = Effects()
    order.on_ack(2, frames[0])
    if before:
        order.on_ack(2, frames[1])
    order.on_ack(3, Ack(1, 1, 0, (1, 0, 0), (0, 0, 0)))
    order.deliver(out)
    if not before:
        order.on_ack(2, frames[1])
        order.deliver(out)
    (item,) = [i for i in out.history if isinstance(i, Delivered)]
    assert item.held == {0} and out.cleared == [], "2's client may use what contradicts it"
    order.on_ack(2, Ack(1, 1, 0, (1, 0, 0), (0, 0, 0)))
    order.deliver(out)
    assert out.cleared == [(1, 1, 1, 0)]


def test_a_member_that_nobody_knows_holds_nothing() -> None:
    order, _ = order_of(1, view(1, (1, 2), 0))
    order.on_ack(2, Ack(1, 1, 0, (0, 0), (0, 0), ((9, 1, 0),)))
    assert not order.holds.any

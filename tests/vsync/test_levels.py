"""The levels beside safe, which are there to be compared with it: one order at all members, sooner or later."""

from __future__ import annotations

from collections import deque
from random import Random
from typing import Any

import pytest

from tests.vsync.builders import MS, ack, data, view
from tests.vsync.test_order import delivered, order_of
from tests.vsync.town import Town
from vsync.effects import Effects
from vsync.order import Level, Order
from wire.group import Ack, Data, Heartbeat

THREE = view(1, (1, 2, 3), 0)


def at(me: int, level: Level) -> Order:
    order, _ = order_of(me, THREE)
    order.level = level
    return order


def test_agreed_waits_for_no_disk() -> None:
    """2 has the message of 1 and hears that 3, which comes after 1, has got as far as the clock before it: enough."""
    two = at(2, Level.AGREED)
    out = Effects()
    two.on_data(1, data(1, 1, 1, members=3), out)
    assert [(peer, m.clock, m.durable) for peer, m in out.send] == [(1, 1, (0, 0, 0))], "3 does not wait for us"
    two.deliver(out)
    assert delivered(out) == [(1, 1, 1)]
    two.validate()


def test_agreed_waits_for_who_may_still_send_something_earlier() -> None:
    """Of 3 with clock 4: 1 and 2 come before it at an equal clock, so both have to be at 4."""
    one = at(1, Level.AGREED)
    out = Effects()
    one.on_data(3, data(1, 1, 4, members=3), out)
    one.deliver(out)
    assert delivered(out) == [], "2 may be at clock 3, and send with 4"
    one.on_ack(2, ack(1, 3, 0, (0, 0, 0)))
    one.deliver(out)
    assert delivered(out) == []
    one.on_ack(2, ack(1, 4, 0, (0, 0, 0)))
    one.deliver(out)
    assert delivered(out) == [(1, 3, 1)]


def test_a_higher_one_may_be_a_step_behind() -> None:
    """Of 1 with clock 4: 3 at clock 3 sends with 4 next, which comes after it."""
    two = at(2, Level.AGREED)
    out = Effects()
    two.on_data(1, data(1, 1, 4, members=3), out)
    two.on_ack(3, ack(1, 2, 0, (0, 0, 0)))
    two.deliver(out)
    assert delivered(out) == []
    two.on_ack(3, ack(1, 3, 0, (0, 0, 0)))
    two.deliver(out)
    assert delivered(out) == [(1, 1, 1)]


def test_what_another_one_has_delivered_is_agreed_when_all_before_it_is_here() -> None:
    """1. 2 sends, and 3 sends later. 2. 3 has both, hears from all and delivers both. 3. 1 hears of that from 3, over
    a connection that is ahead of that with 2."""
    one = at(1, Level.AGREED)
    out = Effects()
    one.on_data(3, data(1, 1, 2, members=3), out)
    one.on_ack(3, Ack(1, 2, 1, (0, 0, 0), (0, 1, 1)))
    one.deliver(out)
    assert delivered(out) == [], "something of 2 comes before"
    one.on_data(2, data(1, 1, 1, members=3), out)
    one.deliver(out)
    assert delivered(out) == [(1, 2, 1), (1, 3, 1)]


def test_with_heartbeats_nothing_is_acknowledged_before() -> None:
    """The thesis's original: a message waits for the next heartbeat of everybody."""
    two = at(2, Level.HEARTBEAT)
    out = Effects()
    two.on_data(1, data(1, 1, 2, members=3), out)
    two.on_durable([1, 0, 0])
    assert (out.send, two.awaiting(), two.untold) == ([], [], False)
    two.deliver(out)
    assert delivered(out) == []
    two.on_ack(3, Heartbeat(1, 1, 1, 1, 0, 0, 2, 0, (1, 0, 0), (0, 0, 0), (0, 0, 0), (1, 2, 3)))
    two.deliver(out)
    assert delivered(out) == [(1, 1, 1)]


@pytest.mark.parametrize("level", [Level.AGREED, Level.HEARTBEAT, Level.SAFE])
@pytest.mark.parametrize("seed", range(40))
def test_one_order(level: Level, seed: int) -> None:
    """Three members, eight messages, links that keep their order and nothing else. (The rule as the thesis prints it,
    without clocks, gives two orders in 145 of 2,000 such schedules.)"""
    rng = Random(seed)
    orders = {m: at(m, level) for m in (1, 2, 3)}
    links: dict[tuple[int, int], deque[Any]] = {(a, b): deque() for a in orders for b in orders if a != b}
    got: dict[int, list[tuple[int, int, int]]] = {m: [] for m in orders}
    left = 8

    def carry_out(me: int, out: Effects) -> None:
        order = orders[me]
        if out.records:
            order.on_durable(list(order.received))
            out.send += [(peer, order.ack()) for peer in order.awaiting()]
        order.deliver(out)
        order.validate()
        got[me] += delivered(out)
        for peer, message in out.send:
            links[me, peer].append(message)

    while left or any(links.values()) or any(len(g) < 8 for g in got.values()):
        out = Effects()
        if left and rng.random() < 0.2:
            me = rng.choice((1, 1, 1, 2, 3))
            orders[me].multicast(b"m", out)
            left -= 1
        elif any(links.values()) and rng.random() < 0.95:
            sender, me = rng.choice([key for key, queue in links.items() if queue])
            message = links[sender, me].popleft()
            if isinstance(message, Data):
                orders[me].on_data(sender, message, out)
            else:
                orders[me].on_ack(sender, message)
        else:
            me = rng.choice((1, 2, 3))
            out.send += [(peer, orders[me].ack()) for peer in orders[me].peers]  # its heartbeat says the same
        carry_out(me, out)
    assert got[1] == got[2] == got[3]


@pytest.mark.parametrize(("level", "at_least", "at_most"), [("safe", 0, 5), ("agreed", 0, 5), ("heartbeat", 20, 60)])
def test_how_long_a_lone_message_takes(level: str, at_least: int, at_most: int) -> None:
    """On a network that takes no time: nothing but the heartbeat interval (50 ms) is left to wait for."""
    town = Town(3, level=level)
    # All have just spoken.
    town.until(lambda: min(m.next_deadline() for m in town.machines.values()) > town.now + 30 * MS)
    began = town.now
    town.submit(2, b"x")
    assert at_least <= (town.now - began) // MS <= at_most


def test_somebody_delivered_what_is_not_in_our_log() -> None:
    """That cannot be: an acknowledgement of ours was part of it. The check notices if a change makes it possible."""
    order, _ = order_of(1, view(1, (1, 2), 0))
    out = Effects()
    order.on_data(2, data(1, 1, 1), out)
    order.validate()
    order.on_ack(2, ack(1, 1, 1, (0, 1), delivered=(0, 1)))
    with pytest.raises(AssertionError, match="somebody delivered 2's without our log"):
        order.validate()
    order.on_durable([0, 1])
    order.validate()


def test_what_one_member_delivered_is_delivered_without_collecting_acknowledgements() -> None:
    """1. 2 sends a and b, 3 sends c in between. 2. 2 hears of all acknowledgements, delivers all, and says so. 3. Here,
    where nobody's acknowledgement has come, all three are delivered, in the one order."""
    one = at(1, Level.SAFE)
    out = Effects()
    one.on_data(2, data(1, 1, 1, members=3), out)
    one.on_data(3, data(1, 1, 2, members=3), out)
    one.on_data(2, data(1, 2, 3, members=3), out)
    one.on_durable([0, 2, 1])
    one.deliver(out)
    assert delivered(out) == []
    one.on_ack(2, Ack(1, 3, 2, (0, 2, 1), (0, 1, 0)))
    one.deliver(out)
    assert delivered(out) == [(1, 2, 1)], "and no further than it says"
    one.on_ack(2, Ack(1, 3, 2, (0, 2, 1), (0, 2, 1)))
    one.deliver(out)
    assert delivered(out) == [(1, 2, 1), (1, 3, 1), (1, 2, 2)]

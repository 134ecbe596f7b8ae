"""Order inside one view: what is sent, acknowledged and delivered, and when it is not."""

from __future__ import annotations

import pytest

from tests.vsync.builders import ack, data, entry, view
from vsync.effects import Delivered, Effects, ViewEvent
from vsync.history import History
from vsync.order import Order
from vsync.view import START
from wire.group import Data, View


@pytest.fixture
def two() -> tuple[Order, History]:
    """Replica 1 in view 1 of replicas 1 and 2."""
    return order_of(1, view(1, (1, 2), 0))


def order_of(me: int, at: View) -> tuple[Order, History]:
    history = History({0: view(0, (1, 2, 3), -1), at.epoch: at}, [], START)
    history.finish(at, Effects())
    return Order(me, at, history), history


def delivered(out: Effects) -> list[tuple[int, int, int]]:
    return [item.entry[:3] for item in out.history if isinstance(item, Delivered)]


def test_a_message_waits_for_every_member(two: tuple[Order, History]) -> None:
    """One request on an idle pair: out, to disk, acknowledged, delivered."""
    order, _ = two
    out = Effects()
    order.multicast(b"a", out)
    assert out.send == [(2, Data(1, 1, 1, (0, 0), (0, 0), b"a"))]
    order.deliver(out)
    assert delivered(out) == []

    order.on_durable([1, 0])
    order.deliver(out)
    assert delivered(out) == [], "durable here is not durable there"

    order.on_ack(2, ack(1, 1, 0, (1, 0)))
    order.deliver(out)
    assert delivered(out) == [(1, 1, 1)]
    order.validate()


def test_an_earlier_message_may_still_come(two: tuple[Order, History]) -> None:
    """The acknowledgement says that 2's clock stands at 5 and that it has sent 2 messages; one is lost with a link.

    Until it is sent again nothing may be delivered: it may be ordered before ours.
    """
    order, _ = two
    out = Effects()
    order.on_data(2, data(1, 1, 1), out)
    order.multicast(b"mine", out)
    order.on_durable([1, 1])
    order.on_ack(2, ack(1, 5, 2, (1, 1)))
    order.deliver(out)
    assert delivered(out) == [(1, 2, 1)], "clock 1, sender 2; not ours with clock 2"

    order.on_data(2, data(1, 2, 2), out)
    order.on_durable([1, 2])
    order.on_ack(2, ack(1, 5, 2, (1, 2)))
    order.deliver(out)
    assert delivered(out) == [(1, 2, 1), (1, 1, 1), (1, 2, 2)], "equal clocks: the lower sender first"


def test_what_another_has_delivered_is_safe(two: tuple[Order, History]) -> None:
    """A busy sender tells with its next message what it has delivered; nobody else has to be heard."""
    order, _ = order_of(1, view(1, (1, 2, 3), 0))
    out = Effects()
    order.on_data(2, data(1, 1, 1, members=3), out)
    order.on_durable([0, 1, 0])
    order.deliver(out)
    assert delivered(out) == []
    order.on_data(2, Data(1, 2, 3, (0, 1, 0), (0, 1, 0), b"y"), out)
    order.deliver(out)
    assert delivered(out) == [(1, 2, 1)]


def test_duplicates_are_acknowledged_again_and_gaps_ignored(two: tuple[Order, History]) -> None:
    """After a reconnection: what was sent twice, and what overtook what is still to be sent again."""
    order, history = two
    out = Effects()
    assert order.on_data(2, data(1, 1, 1), out)
    again = Effects()
    assert not order.on_data(2, data(1, 1, 1), again)
    assert again.send == [(2, order.ack())]
    assert not again.records
    gap = Effects()
    assert not order.on_data(2, data(1, 3, 9), gap)
    assert gap == Effects()
    assert history.top(1, 2) == 1


def test_acknowledgements_go_to_who_waits() -> None:
    """Two members of three have messages under way; the third waits for nothing."""
    order, _ = order_of(1, view(1, (1, 2, 3), 0))
    order.on_data(2, data(1, 1, 1, members=3), Effects())
    assert order.awaiting() == [2]


def test_lost_messages_are_sent_again_from_the_log(two: tuple[Order, History]) -> None:
    order, _ = two
    for payload in (b"a", b"b", b"c"):
        order.multicast(payload, Effects())
    out = Effects()
    order.resend(2, 1, 1 << 20, out)
    assert [(peer, m.seq, m.payload) for peer, m in out.send] == [(2, 2, b"b"), (2, 3, b"c")]


def test_a_view_of_one_needs_only_its_disk() -> None:
    """The last survivor goes on alone."""
    order, _ = order_of(1, view(1, (1,), 0))
    out = Effects()
    order.multicast(b"alone", out)
    assert out.records == [entry(1, 1, 1, 1)._replace(payload=b"alone")]
    order.deliver(out)
    assert out.history == []
    order.on_durable([1])
    order.deliver(out)
    assert delivered(out) == [(1, 1, 1)]
    assert not any(isinstance(item, ViewEvent) for item in out.history)

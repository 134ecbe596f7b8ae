"""mds.replica: a replica that stops on purpose, or whose state is replaced, leaves nobody waiting."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mds.machine import Outcome
from tests.mds.group import TOP, Group, create, lookup, mkdir
from vsync import effects as ev
from wire import messages as msg
from wire import ops
from wire.errors import Status


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Group]:
    made = Group(tmp_path, 0)
    made.until(lambda: made.view() == (1, 2, 3))
    yield made
    made.close()


def test_who_waits_for_an_outcome_is_turned_away_when_the_state_is_replaced(group: Group) -> None:
    """A learner takes a snapshot while it is a member of the newest view it knows: it is not outside, so nobody else
    turns away what it has outstanding (the reclaimer waits for its answer to go on)."""
    node = group.nodes[1]
    user = group.user("a", 1)
    group.isolate(1)
    outcomes: list[Outcome] = []
    node.replica.internal(ops.ReclaimDone((77,)), outcomes.append)
    call = user.request(create(b"x"))
    group.until(lambda: len(node.replica.pending))
    assert not node.replica.group.core.outside and outcomes == []
    node.replica.hold()
    node.replica.resume(node._state())
    assert [outcome.status for outcome in outcomes] == [Status.NOT_SERVING]
    group.heal()
    group.complete(call)
    assert call.ok, "asked for again under its number"
    group.finish()


def test_a_replica_that_is_to_stop_has_everything_back_and_sends_its_clients_elsewhere(group: Group) -> None:
    user, idle = group.user("a", 1).caches(), group.user("idle", 1).caches()
    for one in (user, idle):
        group.ask(one, lookup(b".."))
    assert user.may_use(TOP) and idle.may_use(TOP)
    node = group.nodes[1]
    node.take(node.replica.stop_lending)
    group.until(lambda: node.replica.lending.all_returned)
    assert not user.may_use(TOP) and not idle.may_use(TOP), "and not because time has passed"
    group.ask(user, lookup(b".."))
    assert not user.may_use(TOP), "it still answers, and lends nothing"
    before = group.clock.now
    node.take(lambda: node.replica.group_event(ev.Leave()))
    group.until(lambda: node.replica.group.may_stop)
    group.until(lambda: group.view() == (2, 3))
    assert group.clock.now - before < 100_000, "nobody waits for what was promised or lent"
    group.until(lambda: any(isinstance(m, msg.ViewChanged) and len(m.members) == 2 for m in idle.seen))


def test_a_replica_that_is_to_stop_still_holds_back_what_its_clients_use(group: Group) -> None:
    """It has asked for everything back, and its client has not heard of that when somebody else changes something.
    Group.saying asserts at the answer that no cache contradicts it."""
    user, idle = group.user("user", 2), group.user("idle", 1).caches()
    one = group.ask(user, mkdir(b"one"))[0]
    group.until(lambda: idle.until > group.clock.now)
    group.ask(idle, ops.GetAttr(one))
    assert idle.line is not None
    idle.line.stalled = True
    group.nodes[1].take(group.nodes[1].replica.stop_lending)
    assert idle.may_use(one)
    assert group.complete(user.request(mkdir(b"x", one))).ok
    idle.leave()
    group.finish()

"""The last resort: one replica goes on alone in a new generation, and everybody else comes back behind it."""

from __future__ import annotations

import pytest

from tests.vsync.builders import Driven, entry, heartbeat, messages, view
from tests.vsync.test_machine import FIRST, SECOND, active, told
from tests.vsync.town import Town
from vsync.effects import DurableUpTo, Effects, ForceView, Received, Submit
from vsync.history import History
from vsync.limits import LEASE, MS
from vsync.records import Decided, Durable, Flushed, Reset, Trimmed
from vsync.view import NO_HASH, NOWHERE, START, Position, first_of
from vsync.voter import Witness
from wire.group import Accept, Data, Prepare, Seal, View, Views

G1 = first_of(1)
HOLD = LEASE // MS


def known_to(*epochs: int, at: int = -1) -> int:
    views = {e: view(e, (1, 2), min(e - 1, 0)) for e in epochs}
    return History(views, [], Position(at, (), 1, NO_HASH)).known_to


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        (known_to(), -1),
        (known_to(0, 1, 2), 2),
        (known_to(0, 1, 3), 1),
        (known_to(0, 1, G1, G1 + 1), G1 + 1),  # those between 1 and the forced view nobody needs
        (known_to(0, 1, G1 + 1), 1),  # the forced view itself is missing
        (known_to(0, G1, first_of(2), at=0), first_of(2)),
        (known_to(G1 + 7, G1 + 8, at=G1 + 7), G1 + 8),  # history is in there already, the first are forgotten
    ],
)
def test_views_known_are_counted_over_generations(known: int, expected: int) -> None:
    assert known == expected


def test_a_forced_view_is_of_one_alone_and_keeps_all_that_is_in_its_log() -> None:
    """What 2 sent and nobody is known to have delivered may have been answered: it counts."""
    one = active()
    one.step(Received(2, Data(1, 1, 1, (0, 0), (0, 0), b"x")))
    one.step(Submit(b"y"))
    forced = View(G1, (1,), (1,), 1, ((1, 1), (2, 1)), HOLD)
    out = one.step(ForceView())
    assert out.records == [Decided(forced), Flushed(G1)]
    assert not messages(out, Views), "told before it is on disk, it could be another one after a crash"
    assert out.after == [(peer, Views(told(1, forced).message.views)) for peer in (2, 3)]
    one.step(DurableUpTo(out.ticket), HOLD - 1)
    assert one.machine.active_view is None, "those that are not as dead as was said may still read"
    out = one.step(Received(2, heartbeat(1, 1, 1, 1)), 1)
    assert one.machine.active_view == G1
    assert one.machine.may_submit


@pytest.mark.parametrize(
    ("views", "flushed", "base"),
    [
        ((SECOND,), (0, 1), 1),
        ((SECOND, view(2, (1, 3), 1, {1: 5})), (0, 1), 1),  # the newest was never flushed here
        ((SECOND, view(2, (1, 3), 0)), (0, 1), 0),  # view 1 was found out to be active nowhere: it is not on the chain
        ((SECOND, view(2, (2, 3), 1)), (0,), 0),  # left out long ago
    ],
)
def test_its_base_is_the_last_view_on_the_chain_that_was_flushed_here(
    views: tuple[View, ...], flushed: tuple[int, ...], base: int
) -> None:
    known = {v.epoch: v for v in (FIRST, *views)}
    one = Driven(1, durable=Durable(1, 0, known, set(flushed), entries=[entry(0, 2, 1, 1)]))
    forced = one.machine.change.forced()
    assert isinstance(forced, View)
    assert forced.base == base
    one.step(ForceView())
    one.step(DurableUpTo(one.machine.core.ticket), 400)
    assert one.machine.active_view == G1


def test_a_replica_without_a_state_forces_nothing() -> None:
    """The journal was trimmed of what the lost state held; or it is a newcomer."""
    lost = Driven(1, durable=Durable(1, 0, {0: FIRST}, {0}, trimmed=9))
    newcomer = Driven(1, durable=Durable(1))
    alone = Driven(1, durable=Durable(1, 0, {0: FIRST}, {0}))  # it was given a first view, and has never been in any
    for one in (lost, newcomer, alone):
        out = one.step(ForceView())
        assert out.records == []
        assert out.notes == ["no view is forced: this replica has no state to go on from"]


def test_those_left_behind_come_back_through_a_snapshot() -> None:
    """1. 3 is cut off; 1 and 2 go on. 2. Their hosts burn, as it seems, and 3 is forced. 3. They come back, with what 3
    never saw, and with more of it than 3 has: their history is another one."""
    town = Town(3, (101,))
    town.submit(1, b"all have it")
    town.cut(1, 3)
    town.cut(2, 3)
    town.cut(3, 101)
    town.until(lambda: town.active(1, 2))
    for k in range(5):
        town.submit(1, b"lost %d" % k)
    town.stop(1)
    town.stop(2)
    town.run(3000)
    assert town.machines[3].active_view is None
    town.force(3)
    town.until(lambda: town.active(3))
    assert town.view().epoch == G1
    town.submit(3, b"after")
    town.heal()
    town.start(1)
    town.start(2)
    town.until(lambda: town.settled(1, 2, 3))
    assert town.view().voters == (1, 2, 3, 101), "the roster has not changed"
    assert town.view().epoch > G1
    town.submit(2, b"all again")
    assert len({m.position() for m in town.machines.values()}) == 1
    town.stop(2)
    town.until(lambda: town.active(1, 3))
    town.start(2)
    assert not town.machines[2].core.amnesiac, "how far its journal was trimmed before the snapshot does not count"
    town.until(lambda: town.active(1, 2, 3))


def test_one_that_was_not_dead_after_all_is_refused_for_ever() -> None:
    """1 and 2 still are active in generation 0 when 3 is forced, and meets them."""
    town = Town(3, (101,))
    town.cut(1, 3)
    town.cut(2, 3)
    town.until(lambda: town.active(1, 2))
    town.force(3)
    town.until(lambda: town.machines[3].active_view == G1)
    town.heal()
    town.hashes.clear()
    town.until(lambda: town.settled(1, 2, 3))
    assert town.view().epoch > G1


def test_a_witness_refuses_lower_generations() -> None:
    """It is not among the voters of the forced view, but it was told."""
    witness = Witness(Durable(1))
    forced = View(G1, (3,), (3,), 1, (), HOLD)
    witness.step(3, told(3, forced).message)
    for question in (Prepare(2, (1, 1, 1)), Accept(2, (1, 1, 1), view(2, (1, 2), 1)), Prepare(G1, (1, 1, 1))):
        assert witness.step(1, question) == Effects(ticket=1, after=[(1, told(3, forced).message)])


def test_a_view_of_those_left_behind_does_not_touch_the_log() -> None:
    """1. 3 is forced; its cut keeps message 2. 2. It hears of a view that 1 and 2 had decided, which cuts off message
    2: that view is none."""
    history = History({0: FIRST}, [], START)
    out = Effects()
    history.finish(FIRST, out)
    for seq in (1, 2):
        history.append(entry(0, 2, seq, seq), out)
    forced = View(G1, (3,), (3,), 0, ((2, 2),), HOLD)
    assert history.learn(forced, out)
    out = Effects()
    assert not history.learn(view(1, (1, 2), 0, {2: 1}), out)
    assert (out.records, out.dropped) == ([], [])
    history.finish(forced, out)
    assert history.index == 4


def test_a_change_in_a_lower_generation_is_answered_with_the_forced_view() -> None:
    one = active()
    one.step(ForceView())
    out = one.step(Received(2, Seal(2, "test", ())))
    assert [v for _, v in messages(out, Views)] == [Views(told(1, one.machine.core.newest).message.views)]
    assert out.after == []


def test_a_snapshot_may_lie_behind() -> None:
    """Of a later generation: our longer history is void. The journal forgets how far it was trimmed in the old one."""
    durable = Durable(trimmed=90)
    for record in (Reset(G1), Trimmed(40)):
        durable.apply(record)
    assert durable.trimmed == 40


def test_nowhere_is_before_everything() -> None:
    assert Driven(4, replicas=(1, 4), durable=Durable(1)).machine.core.newest is NOWHERE

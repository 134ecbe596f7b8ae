"""One replica's machine, told what the others say: sealing, flushing, activating, leases, restarts."""

from __future__ import annotations

import pytest

from tests.vsync.builders import MS, Driven, entry, heartbeat, messages, owed_since_start, report, view
from vsync import limits
from vsync.effects import ChangeView, DurableUpTo, LinkUp, Received, SnapshotInstalled, Submit, Tick, ViewEvent
from vsync.records import Decided, Durable, Entry, Flushed, Sealed
from vsync.view import Position, genesis, pack_views
from wire.codec import to_tuple
from wire.group import Ack, Content, Data, Fetch, Grant, Heartbeat, Prepare, Promise, Seal, SealReport, View, Views

FIRST = genesis((1, 2, 3), ())
SECOND = view(1, (1, 2), 0)
THIRD = view(2, (1, 2), 1)


def told(peer: int, *views: View) -> Received:
    return Received(peer, Views(pack_views(list(views))))


def flushed(at: View = SECOND) -> Driven:
    """Replica 1, linked with 2, has learned and flushed *at*; its hold has run out; 2 has not flushed yet."""
    one = Driven(1, linked=(2,))
    one.step(told(2, at))
    one.step(DurableUpTo(one.machine.core.ticket), limits.LEASE // MS)
    assert one.machine.core.flushed_durable == at.epoch
    return one


def active() -> Driven:
    """Replica 1 is active in view 1 of replicas 1 and 2."""
    one = flushed()
    one.step(Received(2, heartbeat(1, -1, 1, 1)))
    assert one.machine.active_view == 1
    return one


def test_learned_flushed_and_active() -> None:
    """The way into a view whose base left nothing to fetch: a new cluster's first."""
    one = Driven(1, linked=(2,))
    out = one.step(told(2, SECOND))
    assert out.records == [Decided(SECOND), Flushed(1)]
    assert not messages(out, Heartbeat), "nothing is said before it is on disk"

    out = one.step(DurableUpTo(out.ticket))
    assert {(peer, m.flushed, m.active) for peer, m in messages(out, Heartbeat)} == {(2, 1, -1), (3, 1, -1)}

    out = one.step(Received(2, heartbeat(1, -1, 1, 1)), 100)
    assert not out.history, "a restarted replica holds a full lease time"
    assert one.machine.next_deadline() <= one.machine.core.hold_until

    out = one.step(Tick(), 200)
    assert out.history == [ViewEvent(0, FIRST), ViewEvent(1, SECOND)]
    assert one.machine.active_view == 1
    assert one.machine.may_submit


def test_a_view_waits_for_every_member_to_flush() -> None:
    one = flushed()
    one.step(Tick(), 50)
    assert one.machine.active_view is None
    one.step(Received(2, heartbeat(1, -1, 1, 0)))
    assert one.machine.active_view is None, "flushed an older one"
    one.step(Received(2, heartbeat(1, 1, 1, 1)))
    assert one.machine.active_view == 1


def test_the_hold_of_a_view_is_observed() -> None:
    """Replica 3, left out, may still read."""
    one = Driven(1, linked=(2,))
    one.step(told(2, view(1, (1, 2), 0, hold_ms=700)))
    one.step(DurableUpTo(1))
    one.step(Received(2, heartbeat(1, -1, 1, 1)), 690)
    assert one.machine.active_view is None
    one.step(Tick(), 10)
    assert one.machine.active_view == 1


def test_a_sealed_member_does_not_flush() -> None:
    """1. View 1 is decided; this member lacks a message of its base. 2. It is sealed for view 2, and reports that it
    has not flushed view 1. 3. The message comes: flushing now would make view 1 active behind the back of the
    coordinator, who goes on from view 0 [382/4817]."""
    one = Driven(1, linked=(2,))
    out = one.step(told(2, view(1, (1, 2), 0, {2: 1})))
    assert messages(out, Fetch) == [(2, Fetch(1, ((0, 2, 1, 1),)))]
    out = one.step(Received(3, Seal(2, "test", ())))
    assert out.records == [Sealed(2)]
    out = one.step(Received(2, Content(1, (tuple(entry(0, 2, 1, 1)),))))  # type: ignore[arg-type]
    assert out.records == []
    out = one.step(Tick(), 100)
    assert not messages(out, Fetch)


def test_what_is_lacking_is_asked_of_who_sent_it_and_soon_of_another() -> None:
    """4 is the learner that the view takes in: it has less than we, and says nothing. Nor does 3, who does not know the
    view yet; the one asked next is 2."""
    one = Driven(1, replicas=(1, 2, 3, 4), durable=Durable(1, 0, {0: FIRST}, {0}), linked=(2, 3, 4))
    for peer in (2, 3, 4):
        one.step(Received(peer, heartbeat(0, 0, 0, 0)))
    out = one.step(told(2, view(1, (1, 2, 3, 4), 0, {3: 1})))
    assert messages(out, Fetch) == [(3, Fetch(1, ((0, 3, 1, 1),)))]
    out = one.step(Tick(), limits.FETCH_FIRST // MS)
    assert [peer for peer, _ in messages(out, Fetch)] == [2]
    again = one.step(Tick(), limits.FETCH_FIRST // MS)
    assert not messages(again, Fetch), "ever longer, for what is asked may be large"


def test_a_sealed_member_does_not_activate() -> None:
    one = flushed()
    one.step(Received(3, Seal(2, "test", ())))
    out = one.step(Received(2, heartbeat(1, -1, 1, 1)))
    assert out.history == []
    assert one.machine.active_view is None


def test_a_seal_is_reported_when_it_and_the_log_are_on_disk() -> None:
    one = active()
    one.step(Submit(b"x"))
    out = one.step(Received(2, Seal(2, "test", pack_views([SECOND]))))
    assert out.records == [Sealed(2)]
    assert not messages(out, SealReport)
    assert out.after == [(2, report(2, flushed=(0, 1), received={1: {1: 1}}, index=2, hears=(1, 2)))]
    assert not one.machine.may_submit


def test_a_report_follows_from_the_cuts_that_were_missed() -> None:
    """1. View 1 cuts view 0 at one message of 2 and is never active. 2. This replica does not hear of it; it holds
    two. 3. Sealed for view 3 it learns what it missed, and reports one: the other was dropped by its sender,
    which has sent it again under another name."""
    one = Driven(1, durable=Durable(1, 0, {0: FIRST}, {0}, entries=[entry(0, 2, 1, 1), entry(0, 2, 2, 2)]), linked=(2,))
    missed = [view(1, (2, 3), 0, {2: 1}), view(2, (2, 3), 1)]
    out = one.step(Received(2, Seal(3, "test", pack_views([FIRST, *missed]))))
    assert out.dropped == [entry(0, 2, 2, 2)]
    assert dict(out.after[0][1].received)[0] == ((2, 1),)


def test_a_coordinator_tells_all_views_it_knows_from_where_its_history_is() -> None:
    one = active()
    third, fourth = view(2, (2, 3), 1), view(3, (2, 3), 1)
    one.step(told(2, third))
    one.step(told(2, fourth))
    out = one.step(ChangeView("test"))
    seals = messages(out, Seal)
    assert [peer for peer, _ in seals] == [2, 3]
    assert {m for _, m in seals} == {Seal(4, "test", pack_views([SECOND, third, fourth]))}


def test_leases_are_granted_by_active_members_only() -> None:
    """[a sealed member that went on granting broke reads in a scripted case]"""
    one = active()
    beat = heartbeat(1, 1, 1, 1, received=(0, 0), durable=(0, 0), delivered=(0, 0))
    out = one.step(Received(2, beat))
    assert messages(out, Grant) == [(2, Grant(1, beat.stamp))]
    assert messages(one.step(Received(3, beat)), Grant) == [], "not a member"
    one.step(Received(2, Seal(2, "test", ())))
    assert messages(one.step(Received(2, beat)), Grant) == []


def test_queries_wait_from_the_seal_on() -> None:
    one = active()
    assert not one.machine.may_read(one.now), "2 has promised nothing yet"
    one.step(Received(2, Grant(1, one.now)))
    assert one.machine.may_read(one.now)
    assert one.machine.may_read(one.now + limits.LEASE - limits.LEASE_MARGIN - 1)
    assert not one.machine.may_read(one.now + limits.LEASE - limits.LEASE_MARGIN)
    one.step(Received(2, Seal(2, "test", ())))
    assert not one.machine.may_read(one.now)


def test_a_shell_that_does_not_trust_its_state_reads_and_submits_nothing() -> None:
    """All else goes on: what was submitted before is delivered, and promises to others are kept."""
    one = active()
    one.step(Submit(b"x"))
    one.step(Received(2, Grant(1, one.now)))
    one.machine.withhold(True)
    assert not one.machine.may_submit and not one.machine.may_read(one.now) and one.machine.read_until() == 0
    beat = heartbeat(1, 1, 1, 1, received=(1, 0), durable=(1, 0), delivered=(0, 0))
    assert messages(one.step(Received(2, beat)), Grant) == [(2, Grant(1, beat.stamp))]
    one.machine.withhold(False)
    assert one.machine.may_submit and one.machine.may_read(one.now) and one.machine.read_until() > one.now


def test_a_promise_of_another_view_is_none() -> None:
    one = active()
    one.step(Received(2, Grant(0, one.now)))
    one.step(Received(2, Grant(1, one.now + 1)))
    assert not one.machine.may_read(one.now), "of view 0; and to a heartbeat of the future"


def test_a_restarted_replica_never_resumes_an_epoch() -> None:
    """It was active in view 1 when it crashed; the others still are."""
    one = Driven(1, durable=Durable(2, 0, {0: FIRST, 1: SECOND}, {0, 1}), linked=(2,))
    out = one.step(Received(2, heartbeat(1, 1, 1, 1, clock=3, received=(0, 0), durable=(0, 0), delivered=(0, 0))))
    assert one.machine.core.sealed == 2
    assert one.machine.active_view is None
    assert not messages(out, Grant)
    out = one.step(Received(2, Data(1, 1, 4, (0, 0), (0, 0), b"x")))
    assert not out.records
    assert not messages(out, Ack)


def test_a_restarted_replica_reports_a_full_hold() -> None:
    one = Driven(1, durable=Durable(2, 0, {0: FIRST, 1: SECOND}, {0, 1}))
    out = one.step(Received(2, Seal(2, "test", ())))
    assert out.after[0][1].promises == owed_since_start(2, 3)
    out = one.step(Received(2, Seal(2, "test", ())), 100)
    assert out.after[0][1].promises == owed_since_start(2, 3, left_ms=limits.LEASE // MS - 100)


def test_a_state_may_be_ahead_of_the_journal() -> None:
    """A learner committed what it was fed, and crashed before the journal had the view on disk: it is told again."""
    fed = Position(1, ((1, 4),), 9, bytes(16))
    one = Driven(3, durable=Durable(2, 0, {0: FIRST}, {0}), position=fed, linked=(1,))
    assert one.machine.core.heartbeat(one.now).top == 0
    one.step(told(1, FIRST, SECOND))
    assert one.machine.position() == fed
    assert one.machine.core.outside


def test_data_that_comes_before_the_view_is_active_is_kept() -> None:
    """2 is active already and sends; its frames wait here, and are acknowledged after the activation."""
    one = flushed()
    out = one.step(Received(2, Data(1, 1, 1, (0, 0), (0, 0), b"early")))
    assert not out.records
    spoken = heartbeat(1, 1, 1, 1, clock=1, own=1, received=(0, 1), durable=(0, 1), delivered=(0, 0))
    out = one.step(Received(2, spoken))
    assert one.machine.active_view == 1
    assert out.records == [Entry(1, 2, 1, 1, b"early")]


def proposing() -> Driven:
    """Replica 1 proposes view 1 with ballot (1, 1, 1) to 1, 2 and 3; of these it hears 2."""
    one = Driven(1, linked=(2,))
    one.step(Received(2, heartbeat(0, -1, 1, 0)))
    one.step(ChangeView("test"))
    one.step(Received(1, report(1, hears=(1, 2))))
    out = one.step(Received(2, report(1, hears=(1, 2))))
    assert [m.ballot for _, m in messages(out, Prepare)] == [(1, 1, 1), (1, 1, 1)]
    return one


def test_a_refused_proposer_goes_above_what_it_was_told() -> None:
    """A coordinator with many rounds behind it died between its ballot's promise and its decision. Whoever takes over
    begins with round 1; it would need one attempt, of seconds, for each round."""
    one = proposing()
    assert not messages(one.step(Received(2, Promise(1, (40, 3, 1), ()))), Prepare), "somebody may be at it yet"
    one.step(Received(1, Promise(1, (40, 3, 1), ())))  # twice refused is once
    retry = one.machine.change.deadline
    assert retry is not None and limits.BALLOT_RETRY <= retry - one.now < 2 * limits.BALLOT_RETRY
    out = one.step(Tick(), 2 * limits.BALLOT_RETRY // MS)
    assert {m.ballot for _, m in messages(out, Prepare)} == {(41, 1, 1)}
    one.step(Received(2, Promise(1, (50, 3, 1), ())))
    again = one.machine.change.deadline
    assert again is not None and 2 * limits.BALLOT_RETRY <= again - one.now < 4 * limits.BALLOT_RETRY, "it doubles"


def test_the_next_attempt_goes_above_what_the_last_was_told() -> None:
    """The ballot that refused it is that of one who is at work: it is given the time that a proposal has."""
    one = proposing()
    one.step(Received(2, Promise(1, (40, 2, 1), ())))
    deadline = one.machine.change.deadline
    assert deadline is not None and deadline - one.now == limits.DECIDE_WAIT
    one.step(Tick(), 1000)
    one.step(ChangeView("again"))
    one.step(Received(1, report(1, hears=(1, 2))))
    out = one.step(Received(2, report(1, hears=(1, 2))))
    assert {m.ballot for _, m in messages(out, Prepare)} == {(41, 1, 1)}


def test_a_proposer_that_was_promised_enough_does_not_disturb_itself() -> None:
    """One voter has promised the ballot of one who is removed by now, the two others ours: those are a majority."""
    one = proposing()
    one.step(Received(3, Promise(1, (40, 9, 1), ())))
    retry = one.machine.change.deadline
    assert retry is not None and retry - one.now < 2 * limits.BALLOT_RETRY
    one.step(Received(1, Promise(1, (1, 1, 1), ())))
    one.step(Received(2, Promise(1, (1, 1, 1), ())))
    out = one.step(Tick(), 2 * limits.BALLOT_RETRY // MS)
    assert not messages(out, Prepare)
    assert one.machine.change.attempt is not None


@pytest.mark.parametrize(
    ("members", "index", "useful"), [((2,), 5, True), ((2,), 1, False), ((1, 2), 5, False)]
)
def test_a_snapshot_that_comes_late_is_of_no_use(members: tuple[int, ...], index: int, useful: bool) -> None:
    """It was long on its way: this replica has been taken in meanwhile, or has been fed further than it."""
    one = active()
    one.step(told(2, view(2, members, 1)))
    assert one.machine.may_install(Position(1, (), index, bytes(16)).pack()) is useful


def test_a_snapshot_and_its_views() -> None:
    """The view that comes with it includes this replica, and was flushed by nobody yet, whatever was flushed before."""
    one = Driven(3, linked=(1, 2))
    one.step(told(1, SECOND))
    one.step(Received(1, heartbeat(1, 1, 1, 1)))
    one.step(Received(2, heartbeat(1, 1, 1, 1)))
    at = Position(1, ((1, 4),), 6, bytes(16))
    out = one.step(SnapshotInstalled(at.pack(), (to_tuple(SECOND), to_tuple(view(2, (1, 2, 3), 1, {1: 4})))))
    assert one.machine.position() == at
    assert one.machine.core.newest.epoch == one.machine.core.sealed == 2
    one.step(DurableUpTo(out.ticket), 400)
    assert one.machine.core.flushed_durable == 2
    assert one.machine.active_view is None
    for peer in (1, 2):
        one.step(Received(peer, heartbeat(2, -1, 2, 2)))
    assert one.machine.active_view == 2


def test_a_broken_link_starts_a_change_at_once() -> None:
    """The lowest id that is left does not wait for its turn."""
    one = active()
    one.step(LinkUp(3))
    out = one.step(Tick(), 10)
    assert not messages(out, Seal)
    one.machine.core.detector.link_down(2)
    out = one.step(Tick(), 60)
    assert [peer for peer, _ in messages(out, Seal)] == [2, 3]

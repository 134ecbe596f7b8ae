"""What ends a promise early: the holder is sealed, or dead by certificate; and so, leaving in milliseconds."""

from __future__ import annotations

from tests.vsync.builders import MS, Driven, heartbeat, messages, owed_since_start, report, view
from tests.vsync.test_machine import FIRST, SECOND, active, told
from tests.vsync.town import Town
from vsync import limits
from vsync.effects import Died, DurableUpTo, Leave, Received, Returned, Tick
from vsync.leases import UNKNOWN, Leases
from vsync.records import Durable, Sealed
from vsync.view import Position
from wire.group import Grant, Heartbeat, Obituary, Prepare, Seal, SealReport

T_MS = limits.LEASE // MS
LENT = 250 * MS


# -- leases


def test_a_promise_is_to_one_incarnation() -> None:
    leases = Leases()
    assert leases.grant(2, 7, 1000)
    assert leases.promises(1000) == [(2, 7, 1000 + limits.LEASE)]
    assert leases.promises(1000 + limits.LEASE) == []
    assert not leases.grant(2, 6, 2000), "a frame of its earlier life, late"
    assert leases.grant(2, 8, 3000)
    assert leases.promises(3000) == [(2, 8, 3000 + limits.LEASE)]


def test_a_certificate_ends_promises_to_that_life_and_those_before() -> None:
    leases = Leases()
    leases.grant(2, 7, 1000)
    leases.owe(2, 6, 9000, 1000)
    leases.owe(2, UNKNOWN, 8000, 1000)
    assert leases.died(2, 6, 2000)
    assert leases.promises(2000) == [(2, 7, 1000 + limits.LEASE), (2, UNKNOWN, 8000)]
    assert leases.died(2, 7, 2500)
    assert leases.promises(2500) == [(2, UNKNOWN, 8000)], "of that nobody knows to which life it was made"
    assert not leases.died(2, 5, 3000), "older than what is known"
    assert not leases.grant(2, 7, 3000), "the dead are promised nothing"
    assert leases.grant(2, 8, 3000)
    assert leases.promises(3000) == [(2, 8, 3000 + limits.LEASE)], "it is active: that was of this life or one before"


def test_what_the_dead_lent_outlives_them() -> None:
    """Clients of the dead replica read by themselves until what it lent them has run out."""
    leases = Leases(LENT)
    leases.grant(2, 7, 1000)
    leases.died(2, 7, 11_000)
    assert leases.promised_until(2) == 11_000 + LENT
    assert leases.dead_ms(11_000) == {2: (7, 250)}
    assert leases.dead_ms(11_000 + LENT) == {2: (7, 0)}


def test_a_view_waits_for_whom_it_leaves_out() -> None:
    leases = Leases()
    leases.owe(2, 7, 9000, 1000)
    leases.owe(3, 4, 5000, 1000)
    assert leases.owed_until((1,)) == 9000
    assert leases.owed_until((1, 2)) == 5000, "2 is a member, so it has answered the seal"
    assert leases.owed_until((1, 2, 3)) == 0
    leases.died(2, 7, 2000)
    assert leases.owed_until((1, 3)) == 2000


def test_what_has_run_out_is_forgotten() -> None:
    """Promises to many lives of a replica that crashes all the time do not pile up."""
    leases = Leases()
    for life in range(1000):
        leases.owe(2, life, (life + 300) * MS, life * MS)
    assert len(leases._owed) <= 300


# -- certificates at a machine


def left_out(out_ms: int = 290) -> Driven:
    """Replica 1 has flushed view 1 of 1 and 2, which owes replica 3, in its life 7, *out_ms*."""
    one = Driven(1, durable=Durable(1, 0, {0: FIRST}, set()), linked=(2,))
    one.machine.core.flushed.add(0)
    one.step(told(2, view(1, (1, 2), 0, owed=((3, 7, out_ms),))))
    one.step(DurableUpTo(one.machine.core.ticket))
    return one


def test_a_view_waits_for_what_it_owes() -> None:
    one = left_out()
    one.step(Received(2, heartbeat(1, -1, 1, 1)), 280)
    assert one.machine.active_view is None
    one.step(Tick(), 10)
    assert one.machine.active_view == 1


def test_a_certificate_that_comes_late_still_counts() -> None:
    """1. 3 is killed, its link breaks, view 1 is decided at once. 2. Then the word of its watchdog comes."""
    one = left_out()
    one.step(Received(2, heartbeat(1, -1, 1, 1)), 2)
    one.step(Died(3, 6))
    assert one.machine.active_view is None, "of the life before"
    one.step(Received(3, Obituary(3, 7)), 1)
    assert one.machine.active_view == 1


def test_a_report_tells_promises_by_incarnation() -> None:
    one = active()
    beat = heartbeat(1, 1, 1, 1, received=(0, 0), durable=(0, 0), delivered=(0, 0), incarnation=5)
    assert messages(one.step(Received(2, beat)), Grant)
    one.step(Tick(), 20)
    out = one.step(Received(2, Seal(2, "test", ())))
    assert out.after[0][1].promises == ((2, 5, T_MS - 20),)


def test_a_report_leaves_out_the_dead() -> None:
    one = active()
    beat = heartbeat(1, 1, 1, 1, received=(0, 0), durable=(0, 0), delivered=(0, 0), incarnation=5)
    one.step(Received(2, beat))
    one.step(Died(2, 5))
    out = one.step(Received(3, Seal(2, "test", ())))
    assert out.after[0][1].promises == ()


def test_a_promise_that_binds_us_is_passed_on() -> None:
    """View 1 owes 3 something; before that has run out, view 2 is asked for."""
    one = left_out()
    out = one.step(Received(2, Seal(2, "test", ())), 90)
    assert out.after[0][1].promises == ((3, 7, 200),)


def test_a_restarted_replica_may_have_promised_anything_to_those_it_was_in_a_view_with() -> None:
    one = Driven(1, durable=Durable(2, 0, {0: FIRST, 1: SECOND}, {1}))
    out = one.step(Received(2, Seal(2, "test", ())))
    assert out.after[0][1].promises == owed_since_start(2), "3 was not in view 1"


def test_a_restarted_replica_waits_anew_for_what_a_view_owes() -> None:
    """1. View 1 takes replica 1 in, a learner; it owes 3 something. 2. Replica 1 restarts. It never promised 3 anything
    itself, and does not know for how long it had waited."""
    second = view(1, (1, 2), 0, hold_ms=30, owed=((3, 7, 290),))
    one = Driven(1, durable=Durable(2, 0, {0: FIRST, 1: second}, {1}))
    out = one.step(Received(2, Seal(2, "test", ())))
    assert (out.after[0][1].promises, out.after[0][1].hold_ms) == ((*owed_since_start(2), (3, 7, 290)), 30)


def test_what_was_owed_before_the_view_the_state_is_in_is_over() -> None:
    """View 2 was active, so whoever was left out on the way to it reads nothing any more. Else a replica that was
    removed long ago would make every restart of the cluster wait."""
    known = {0: FIRST, 1: view(1, (1, 2), 0, owed=((3, 7, 290),)), 2: view(2, (1, 2), 1)}
    one = Driven(1, durable=Durable(2, 0, known, {0, 1, 2}), position=Position(2, (), 3, bytes(16)))
    out = one.step(Received(2, Seal(3, "test", ())))
    assert out.after[0][1].promises == owed_since_start(2)


# -- what is lent


def test_who_is_sealed_tells_how_long_its_clients_may_go_on() -> None:
    """It reads nothing any more, so promises to it are void; but it may have lent up to the end of its own lease."""
    one = active()
    one.machine.core.leases.lent = LENT
    one.step(Received(2, Grant(1, one.now)))
    one.step(Tick(), 100)
    out = one.step(Received(2, Seal(2, "test", ())))
    [(_, told_it)] = out.after
    assert told_it.lent_ms == (limits.LEASE - limits.LEASE_MARGIN) // MS - 100
    out = one.step(Received(2, Seal(2, "test", ())), 50)
    assert out.after[0][1].lent_ms == told_it.lent_ms - 50, "sealed it lends no more"


def test_the_only_member_lends_no_longer_than_the_bound() -> None:
    """It needs no lease, so its own never ends; what it lends does."""
    town = Town(1)
    core = town.machines[1].core
    core.leases.lent = LENT
    core.seal(9, town.now)
    assert core.lent_until == town.now + LENT


def test_a_restarted_replica_waits_for_what_its_earlier_life_lent() -> None:
    """Clients of that life may read by themselves, and this one does not know of what: nothing is made active here, and
    so nothing answered anywhere, before that has run out."""
    one = Driven(1, durable=Durable(2, 0, {0: FIRST, 1: SECOND}, {1}), lent=LENT)
    out = one.step(Received(2, Seal(2, "test", ())))
    assert (out.after[0][1].hold_ms, out.after[0][1].lent_ms) == (250, 250)


def test_a_restarted_member_has_flushed_nothing_before_what_its_earlier_life_lent_has_run_out() -> None:
    """With "flushed" it would say that it holds nothing, of what it knows nothing any more. A view that leaves nobody
    out waits for that word alone."""
    one = Driven(1, durable=Durable(2, 0, {0: FIRST, 1: SECOND}, {1}), linked=(2,), lent=LENT)
    said = [m.flushed for _, m in messages(one.step(Tick()), Heartbeat)]
    out = one.step(told(2, view(2, (1, 2), 1)))
    said += [m.flushed for _, m in messages(one.step(DurableUpTo(out.ticket), 60), Heartbeat)]
    assert one.machine.core.flushed_durable == 2
    said += [m.flushed for _, m in messages(one.step(Tick(), 189), Heartbeat)]
    assert said == [-1] * 6
    assert one.machine.next_deadline() <= one.now + limits.HEARTBEAT
    assert {m.flushed for _, m in messages(one.step(Tick(), 50), Heartbeat)} == {2}


def test_who_is_about_to_leave_lends_nothing() -> None:
    one = active()
    one.machine.core.leases.lent = LENT
    one.step(Received(2, Grant(1, one.now)))
    assert one.machine.read_until() > one.now
    one.step(Leave())
    assert one.machine.read_until() == 0
    out = one.step(Received(2, Seal(3, "test", ())))
    assert (out.after[0][1].lent_ms, out.after[0][1].leaving) == (0, True)


def test_who_leaves_soon_after_another_change_has_all_of_it_back() -> None:
    """A seal a moment ago counts what was lent by then; before Leave all of that was called back. What an earlier life
    lent was not."""
    one = active()
    core = one.machine.core
    core.leases.lent = LENT
    one.step(Received(2, Grant(1, one.now)))
    one.step(Received(2, Seal(2, "test", ())))
    assert core.lent_until > one.now
    one.step(Leave())
    out = one.step(Received(2, Seal(3, "test", ())))
    assert (out.after[0][1].lent_ms, out.after[0][1].leaving) == (0, True)
    again = Driven(1, durable=Durable(2, 0, {0: FIRST, 1: SECOND}, {1}), lent=LENT)
    again.step(Leave())
    out = again.step(Received(2, Seal(2, "test", ())))
    assert out.after[0][1].hold_ms == 250


# -- leaving


def test_leaving_is_a_view_without_us() -> None:
    """SIGTERM: it asks to be left out, decides so, and may stop when it hears that the others are active."""
    one = active()
    out = one.step(Leave())
    assert out.records == [Sealed(2)]
    assert [(p, m.epoch, m.reason) for p, m in messages(out, Seal)] == [
        (2, 2, "this replica is to stop"),
        (3, 2, "this replica is to stop"),
    ]
    [(_, own)] = out.after
    assert isinstance(own, SealReport)
    one.step(Received(1, own))
    one.step(Received(2, report(2, flushed=(0, 1), promises=((1, 1, 290),))))
    assert one.machine.change.attempt is not None
    proposer = one.machine.change.attempt.proposer
    assert proposer is not None
    assert proposer.value == view(2, (2,), 1), "2's promise to us needs no waiting"
    one.step(told(2, proposer.value))
    assert not one.machine.may_stop
    one.step(Received(2, heartbeat(2, 2, 2, 2)))
    assert one.machine.may_stop
    assert not one.machine.transfer.learning, "it does not ask to be taken in again"


def test_the_only_member_may_stop() -> None:
    """There is nobody to go on, though a learner is heard."""
    town = Town(1)
    town.want((1, 2), (1, 2))
    town.start(2)
    town.run(60)
    assert town.view().members == (1,)
    town.step(1, Leave())
    assert town.machines[1].may_stop


def test_who_leaves_and_hears_nobody_may_stop() -> None:
    one = active()
    assert not one.machine.may_stop
    one.machine.core.detector.link_down(2)
    out = one.step(Leave())
    assert not messages(out, Prepare)
    assert one.machine.may_stop


def test_leaving_takes_milliseconds() -> None:
    """Of three under load, each in turn: nobody waits for a lease to run out."""
    town = Town(3, (101,))
    for leaver in (1, 3, 2):
        town.submit(leaver, b"%d" % leaver)
        town.run(200)
        others = tuple(r for r in (1, 2, 3) if r != leaver)
        town.step(leaver, Leave())
        assert town.until(lambda others=others: town.active(*others)) <= 10  # type: ignore[misc]
        assert town.until(lambda leaver=leaver: town.machines[leaver].may_stop) <= 10  # type: ignore[misc]
        town.stop(leaver)
        town.start(leaver)
        town.until(lambda: town.active(1, 2, 3))


def test_a_coordinator_that_dies_does_not_keep_the_leaver() -> None:
    """1 asks to be left out, and 2 a moment later: the one that is left goes on alone, with the witness's vote."""
    town = Town(3, (101,))
    town.step(1, Leave())
    town.step(2, Leave())
    town.until(lambda: town.active(3))
    town.until(lambda: town.machines[1].may_stop and town.machines[2].may_stop)


def test_a_killed_replica_with_a_certificate_costs_no_lease() -> None:
    town = Town(3)
    town.run(500)
    life = town.lives[2]
    town.stop(2)
    for other in (1, 3):
        town.step(other, Died(2, life))
    assert town.until(lambda: town.active(1, 3)) <= 20


def test_a_replica_that_is_killed_soon_after_a_view_change_costs_no_lease() -> None:
    """What it had lent before that change the view owes to an incarnation without a name; but since it is active in
    that view the others have promised it as much by name, and its clients have let go."""
    town = Town(3, lent=LENT)

    def kill(victim: int) -> int:
        life = town.lives[victim]
        others = tuple(r for r in (1, 2, 3) if r != victim)
        town.stop(victim)
        for other in others:
            town.step(other, Died(victim, life))

        def without() -> bool:
            for other in others:
                for dead, incarnation in town.machines[other].awaits_return(town.now):
                    town.step(other, Returned(dead, incarnation))
            return town.active(*others)

        return town.until(without)

    town.run(500)
    assert kill(2) <= 20
    for victim, back in ((3, 2), (2, 3), (1, 2)):
        town.run(500)
        town.start(back)
        town.until(lambda: town.active(1, 2, 3))
        town.run(2 * limits.HEARTBEAT // MS)
        assert (victim, UNKNOWN) in [owed[:2] for owed in town.machines[1].core.newest.owed], "the case in question"
        assert kill(victim) <= 20


def test_a_killed_replica_without_a_certificate_costs_a_lease() -> None:
    """The host is gone: nobody can tell that it does not read."""
    town = Town(3)
    town.run(500)
    town.stop(2)
    took = town.until(lambda: town.active(1, 3))
    assert T_MS - limits.HEARTBEAT // MS - 10 <= took <= T_MS + 20


def test_a_power_cut_of_all_is_over_when_all_are_back() -> None:
    """Nobody knows what it promised; but all whom it may have been are there, and sealed."""
    town = Town(3)
    town.submit(2, b"x")
    for replica in (1, 2, 3):
        town.stop(replica)
    for replica in (1, 2, 3):
        town.start(replica)
    town.until(lambda: town.active(1, 2, 3))
    [*_, last] = town.views_decided()
    assert (last.hold_ms, last.owed) == (0, ())
    assert town.payloads == [b"x"]


# -- back from being cut off


def test_who_comes_back_and_hears_no_member_yet_seals_nobody() -> None:
    """1. Replica 1 is cut off, 2 goes on with the witness. 2. The witness is reached again and tells of the view; the
    connection with 2 is still backing off. 3. Were 1 to start a change, its Seal would be the first thing to reach 2
    with the connection, and stop it."""
    town = Town(2, witnesses=(3,))
    town.cut(1, 2)
    town.cut(1, 3)
    town.until(lambda: town.active(2))
    town.cuts.discard(frozenset((1, 3)))
    town._link(1)
    town.until(lambda: town.machines[1].core.newest.members == (2,))
    began, alone = town.now, town.machines[2].core.newest.epoch
    while town.now < began + 5_000 * MS:
        town.run(5)
        assert town.machines[1].core.sealed == alone, "it asks for no seal, not even its own"
    assert town.active(2)
    town.heal()
    town.until(lambda: town.active(1, 2))
    assert town.machines[1].core.newest.epoch == alone + 1, "the next view is the one that takes it in"

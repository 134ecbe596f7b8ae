"""Who shall be in the group: the roster, one voter at a time, who has stored the view, and what is done when."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tests.vsync.builders import messages, view
from tests.vsync.test_machine import SECOND, active, told
from tests.vsync.town import Town
from vsync.effects import LinkDown, LinkUp, Received, Roster, Tick
from vsync.membership import next_voters
from vsync.view import pack_views
from wire.group import Accept, Heartbeat, Prepare, Seal, Stored, View, Views


def one_voter_at_a_time(town: Town) -> None:
    """Each decided view has at most one voter more or less than the one before it."""
    views = town.views_decided()
    for before, after in pairwise(views):
        assert len(set(before.voters) ^ set(after.voters)) <= 1, f"{before} then {after}"


# -- which step is taken


@pytest.mark.parametrize(
    ("now", "wanted", "ready", "answered", "then"),
    [
        ((1, 2), (1, 2, 3), {1, 2, 3}, {1, 2, 3}, (1, 2, 3)),  # a replica came
        ((1, 2), (1, 2, 3), {1, 2}, {1, 2}, (1, 2)),  # it is not there yet
        ((1, 2, 3), (1, 2, 4), {1, 2, 4}, {1, 2, 4}, (1, 2, 3, 4)),  # replace: first the new one
        ((1, 2, 3, 4), (1, 2, 4), {1, 2, 4}, {1, 2, 4}, (1, 2, 4)),  # then without the old one
        ((1, 2, 3), (1, 2, 4), {1, 2}, {1, 2}, (1, 2)),  # the new one is not there, the old one goes all the same
        ((1, 2, 3, 4, 5), (1, 2, 3), {1, 2, 3}, {1, 2, 3, 4}, (1, 2, 3, 4)),  # who is dead goes first
        ((1, 2, 3), (1, 2), {1}, {1, 3}, (1, 2, 3)),  # 2 is down: without 3 there would be no majority
        ((1,), (1, 2), {1, 2}, {1, 2}, (1, 2)),
        ((1, 2), (1,), {1}, {1, 2}, (1,)),
        ((1, 2), (1, 2), {1, 2}, {1, 2}, (1, 2)),
    ],
)
def test_voters_move_one_at_a_time(
    now: tuple[int, ...], wanted: tuple[int, ...], ready: set[int], answered: set[int], then: tuple[int, ...]
) -> None:
    assert next_voters(now, wanted, ready, answered) == then


# -- stories


def test_from_one_to_two_to_three() -> None:
    """A cluster that was begun with one machine grows; the new ones begin with nothing and get a snapshot."""
    town = Town(1)
    town.submit(1, b"alone")
    town.want((1, 2), (1, 2))
    town.start(2)
    town.until(lambda: town.settled(1, 2))
    town.submit(2, b"two")
    town.want((1, 2, 3), (1, 2, 3))
    town.start(3)
    town.until(lambda: town.settled(1, 2, 3))
    town.submit(3, b"three")
    assert town.payloads == [b"alone", b"two", b"three"]
    one_voter_at_a_time(town)


def test_a_replica_that_catches_up_does_not_vote_yet() -> None:
    """While 2 copies the state, which may take hours, its death must not stop 1: a majority of two is two."""
    town = Town(1)
    town.want((1, 2), (1, 2))
    town.run(2000)
    assert town.view().voters == (1,)
    assert not town.machines[1].standing().settled
    town.submit(1, b"x")


def test_from_three_down_to_one_and_a_witness() -> None:
    town = Town(3, (101,))
    for left in ((1, 2), (1,)):
        town.want(left, (*left, 101))
        town.until(lambda left=left: town.settled(*left))  # type: ignore[misc]
        town.submit(1, b"with %d" % len(left))
    assert town.view().voters == (1, 101)
    assert town.machines[1].standing().stored == (1, 101)
    one_voter_at_a_time(town)


def test_the_coordinator_itself_is_removed() -> None:
    """The lowest active replica brings the view there, also when that is one without it. It learns that it is out, and
    asks for nothing any more."""
    town = Town(3)
    town.submit(1, b"x")
    town.want((2, 3), (2, 3))
    town.until(lambda: town.settled(2, 3))
    assert town.view().voters == (2, 3)
    assert town.machines[1].core.outside
    before = town.view()
    town.run(10_000)
    assert town.view() == before, "it disturbs nobody"
    town.submit(2, b"y")


def test_a_dead_replica_is_removed() -> None:
    town = Town(3)
    town.stop(3)
    town.until(lambda: town.active(1, 2))
    assert town.view().voters == (1, 2, 3)
    town.want((1, 2), (1, 2))
    town.until(lambda: town.settled(1, 2))
    assert town.view().voters == (1, 2)


def test_a_replica_is_replaced() -> None:
    """3 is dead; 4 takes its place: added, then 3 removed, with one of the others failing in between."""
    town = Town(3, (101,))
    town.stop(3)
    town.want((1, 2, 3, 4), (1, 2, 3, 4, 101))
    town.start(4)
    town.until(lambda: town.active(1, 2, 4) and town.view().voters == (1, 2, 3, 4, 101))
    town.want((1, 2, 4), (1, 2, 4, 101))
    town.stop(1)
    town.until(lambda: town.active(2, 4) and town.view().voters == (1, 2, 4, 101))
    town.start(1)
    town.until(lambda: town.settled(1, 2, 4))
    town.submit(4, b"x")
    one_voter_at_a_time(town)


def test_joined_then_removed_then_another_added() -> None:
    town = Town(2)
    for replica in (3, 4, 5):
        town.want((1, 2, replica), (1, 2, replica))
        town.start(replica)
        town.until(lambda replica=replica: town.settled(1, 2, replica))  # type: ignore[misc]
        town.submit(replica, b"%d" % replica)
        town.want((1, 2), (1, 2))
        town.until(lambda: town.settled(1, 2))
        town.stop(replica)
    assert town.payloads == [b"3", b"4", b"5"]
    one_voter_at_a_time(town)


def test_a_removed_voter_that_comes_back_does_no_harm() -> None:
    """1. 3 is cut off, then removed. 2. 2 is cut off from 1. 3. 3 comes back, reaches only 2, and both have a majority
    of the voters that 3 knows of. 2 has stored the view without 3, and votes on it no more."""
    town = Town(3)
    town.cut(1, 3)
    town.cut(2, 3)
    town.until(lambda: town.active(1, 2))
    town.want((1, 2), (1, 2))
    town.machines[3].core.roster = Roster((1, 2, 3), (1, 2, 3))  # it has not heard of that
    town.until(lambda: town.settled(1, 2))
    town.stop(1)
    without = town.view()
    assert town.machines[3].core.newest.epoch < without.epoch
    town.cuts.discard(frozenset((2, 3)))
    town.heal()
    town.run(10_000)
    assert town.view().epoch == without.epoch, "two voters of the old three decide nothing"
    assert town.machines[3].core.newest == without
    town.start(1)
    town.until(lambda: town.settled(1, 2))


def test_a_removed_replica_is_fed_until_it_knows() -> None:
    """3 was away when it was removed. It has to read in its own state that it is, so it gets the history up to there;
    it is not taken in."""
    town = Town(3)
    town.stop(3)
    town.want((1, 2), (1, 2))
    town.until(lambda: town.settled(1, 2))
    town.submit(1, b"the roster without 3")
    roster, town.roster = town.roster, Roster((1, 2, 3), (1, 2, 3))
    town.start(3)
    town.roster = roster
    town.until(lambda: town.machines[3].position() == town.machines[1].position())
    town.run(5000)
    assert town.active(1, 2)


def test_a_witness_is_added_when_it_has_stored_the_view() -> None:
    town = Town(2)
    town.want((1, 2), (1, 2, 101))
    town.run(3000)
    assert town.view().voters == (1, 2), "it is not there yet"
    town.add_witness(101)
    town.until(lambda: town.settled(1, 2))
    assert town.view().voters == (1, 2, 101)
    town.stop(1)
    town.until(lambda: town.active(2))
    town.submit(2, b"x")


def test_removed_means_stored_by_a_majority_of_those_that_remain() -> None:
    """3 is removed while 2 is down: 1 alone is no majority of 1 and 2, so 3 still has to be there."""
    town = Town(3)
    town.stop(2)
    town.until(lambda: town.active(1, 3))
    town.want((1, 2), (1, 2))
    town.run(5000)
    assert not town.machines[1].standing().settled
    assert 3 in town.view().voters
    town.start(2)
    town.until(lambda: town.settled(1, 2))


# -- single rules


def test_who_knows_the_view_does_not_vote_on_it_again() -> None:
    """The register of this voter is empty for view 1: it was in the minority when it was decided. Were it to promise,
    an old proposer could have another view decided with voters that are gone since."""
    one = active()
    for question in (Prepare(1, (9, 3, 1)), Accept(1, (9, 3, 1), view(1, (3,), 0))):
        out = one.step(Received(3, question))
        assert out.send == [(3, Views(pack_views([SECOND])))]
        assert (out.records, out.after) == ([], [])


def test_a_coordinator_whose_state_is_behind_moves_no_voters() -> None:
    """1. Its roster is from before view 1. 2. It is told view 1, with another voter, and has not delivered up to there.
    It would move the voters back."""
    one = active()
    one.step(Roster((1, 2), (1, 2)))
    assert one.machine.membership.voters_after((1, 2), {1, 2, 3}) == (1, 2)
    one.step(told(2, view(2, (1, 2), 1)))
    assert one.machine.membership.voters_after((1, 2), {1, 2, 3}) == (1, 2, 3)
    assert one.machine.membership.unwanted((1, 2, 3)) == []


def test_a_witness_is_told_until_it_has_stored() -> None:
    """The active members tell it; its answer counts for this view and until its link breaks."""
    one = active()
    one.step(Roster((1, 2, 3), (1, 2, 3, 101)))
    out = one.step(LinkUp(101))
    told_it = [(101, Views(pack_views([SECOND])))]
    assert messages(out, Views) == told_it
    assert [v for v in messages(one.step(Tick(), 50), Views) if v[0] == 101] == told_it
    one.step(Received(101, Stored(0)))
    assert 101 not in one.machine.standing().stored, "an older one"
    one.step(Received(101, Stored(1)))
    assert one.machine.membership.voters_after((1, 2), {1, 2}) == (1, 2, 3, 101)
    one.step(LinkDown(101))
    assert one.machine.membership.voters_after((1, 2), {1, 2}) == (1, 2, 3)
    one.step(LinkUp(101))
    one.step(Received(101, Stored(1)))
    out = one.step(Tick(), 50)
    assert not messages(out, Views)
    assert {m.reason for _, m in messages(out, Seal)} == {"voters [1, 2, 3] become [1, 2, 3, 101]"}


def test_a_stranger_is_told_views_and_how_it_goes() -> None:
    """A replica whose addition we have not applied yet, or one that is removed, has to learn where it stands."""
    one = active()
    one.step(Roster((1, 2), (1, 2)))
    one.machine.core.history.epoch = 1
    one.machine.core.acquaint()
    hello = Heartbeat(0, -1, 0, -1, 1, 0, 0, 0, (), (), (), (9,))
    out = one.step(Received(9, hello))
    assert {type(m) for peer, m in out.send if peer == 9} == {Views, Heartbeat}


def test_a_change_for_the_roster_that_changes_nothing_is_not_repeated_at_once() -> None:
    """2 is to go, but its report does not come: attempts are 300 ms apart at first, then more."""
    one = active()
    one.machine.core.detector.link_up(3)
    one.step(Roster((1, 3), (1, 3)))
    started: list[int] = []
    for _ in range(40):
        one.step(Received(2, Heartbeat(1, 1, 1, 1, 1, 2, 0, 0, (0, 0), (0, 0), (0, 0), (1, 2))))
        out = one.step(Tick(), 50)
        if messages(out, Seal):
            started.append(one.now)
            one.machine.change.attempt = None
            one.machine.core.sealed = 1
    assert [b - a for a, b in pairwise(started)][:2] == [300_000, 600_000]


def test_views_of_a_new_replica_are_heard_of_by_all() -> None:
    """A view names a replica that our state does not know yet: we talk to it from then on."""
    one = active()
    one.step(told(2, View(2, (1, 2, 7), (1, 2, 3), 1, (), 0)))
    assert one.machine.core.others == [2, 3, 7]


@pytest.mark.parametrize(
    ("replicas", "witnesses", "down", "tolerates"),
    [
        (1, (), (), 0),
        (2, (), (), 0),
        (2, (101,), (), 1),
        (3, (), (), 1),
        (3, (101, 102), (), 2),  # down to the last one, with n - 1 witnesses
        (3, (101, 102), (3,), 1),
        (5, (), (5,), 1),
    ],
)
def test_how_many_failures_are_tolerated(
    replicas: int, witnesses: tuple[int, ...], down: tuple[int, ...], tolerates: int
) -> None:
    town = Town(replicas, witnesses)
    for replica in down:
        town.stop(replica)
    town.until(lambda: town.active(*(r for r in range(1, replicas + 1) if r not in down)))
    assert town.machines[1].standing().tolerates == tolerates

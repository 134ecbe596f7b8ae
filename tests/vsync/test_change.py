"""The coordinator's plan: base, members, cut and hold, from what was reported."""

from __future__ import annotations

from typing import Any

import pytest

from tests.vsync.builders import Driven, heartbeat, messages, report, view
from vsync.change import plan_view
from vsync.effects import ChangeView, LinkUp, Received, Roster
from vsync.leases import UNKNOWN
from wire.group import Prepare, Seal, SealReport, View

FIRST = view(0, (1, 2, 3), -1)


def plan(epoch: int, me: int, reports: dict[int, SealReport], *views: View, joiner: int = 0, **more: Any) -> Any:
    return plan_view(epoch, me, reports, {v.epoch: v for v in (FIRST, *views)}, joiner, **more)


def test_everybody_answers() -> None:
    """A member was restarted; all three are there again."""
    reports = {
        1: report(1, received={0: {1: 4, 2: 2}}),
        2: report(1, received={0: {1: 3, 2: 3}}),
        3: report(1, received={0: {1: 4, 2: 3}}),
    }
    assert plan(1, 2, reports) == view(1, (1, 2, 3), 0, {1: 4, 2: 3})


def test_the_cut_counts_only_members_of_the_base() -> None:
    """Replica 3 was left out by view 1; it still has what nobody else has of view 0, and a message of view 1."""
    second = view(1, (1, 2), 0)
    reports = {
        1: report(2, flushed=(0, 1), received={1: {1: 4}}),
        3: report(2, flushed=(0,), received={0: {3: 9}, 1: {1: 7}}),
    }
    assert plan(2, 1, reports, second) == view(2, (1,), 1, {1: 4})


def test_an_absent_member_is_not_one_that_has_not_flushed() -> None:
    """View 1 of replicas 1 and 2 may be active at both: who answers now was not in it, and has to wait [153/4964]."""
    answer = plan(2, 3, {3: report(2)}, view(1, (1, 2), 0))
    assert answer == "no member of view 1 answered"


def test_a_sealed_member_that_has_not_flushed_proves_that_a_view_never_was() -> None:
    """2 is in view 1 and has not flushed it: view 1 is active nowhere, and will not be. Its base is the base again."""
    reports = {2: report(2, received={0: {1: 5, 2: 6}}), 3: report(2, received={0: {1: 4}})}
    # 3 was left out of view 1, but it is a member of view 0, and flushed it: it can be taken in as it is.
    assert plan(2, 2, reports, view(1, (1, 2), 0)) == view(2, (2, 3), 0, {1: 5, 2: 6})


def test_back_by_bases_not_by_one_epoch() -> None:
    """View 2 was decided and never active; its base is view 0, because view 1 was never active either."""
    second = view(1, (1, 2, 3), 0)
    third = view(2, (1, 3), 0)
    reports = {3: report(3, flushed=(0, 1), received={0: {1: 1}, 1: {}})}
    assert plan(3, 3, reports, second, third) == view(3, (3,), 0, {1: 1})


def test_the_view_of_a_base_that_is_not_known() -> None:
    third = view(2, (1, 3), 1)
    assert plan(3, 3, {3: report(3, flushed=(0,))}, third) == "view 1 is not known here"


def test_a_base_whose_own_base_is_forgotten() -> None:
    """A coordinator that came with a snapshot knows no view before the one it was taken in."""
    views = {7: view(7, (1, 2), 5)}
    reports = {1: report(8, flushed=(5, 7)), 2: report(8, flushed=(5,))}
    assert plan_view(8, 1, reports, views, 0) == view(8, (1,), 7)


def test_members_hear_each_other() -> None:
    """The cut between 2 and 3 is of no harm to 1: it stays with one of them."""
    reports = {
        1: report(1),
        2: report(1, hears=(1, 2)),
        3: report(1, hears=(1, 3)),
    }
    assert plan(1, 1, reports) == view(1, (1, 2), 0)


def test_one_that_can_go_on_is_among_the_members() -> None:
    """The coordinator flushed view 0 but not view 1; it does not hear the one that did."""
    second = view(1, (1, 2), 0)
    reports = {1: report(2, flushed=(0,), hears=(1,)), 2: report(2, flushed=(0, 1), hears=(2,))}
    assert plan(2, 1, reports, second) == view(2, (2,), 1)


@pytest.mark.parametrize(("index", "taken"), [(900, (1, 3)), (700, (1,))])
def test_a_learner_is_taken_in_when_it_is_close(index: int, taken: tuple[int, ...]) -> None:
    """3 was left out by view 1 and has been fed since."""
    second = view(1, (1, 2), 0)
    reports = {1: report(2, flushed=(0, 1), index=1000), 3: report(2, index=index)}
    assert plan(2, 1, reports, second, joiner=3) == view(2, taken, 1)


@pytest.mark.parametrize(
    ("promises", "dead", "owed"),
    [
        ({1: ((3, 7, 250),), 2: ((3, 7, 290),)}, {}, ((3, 7, 290),)),  # both promised 3, which is left out
        ({1: ((2, 5, 250),), 2: ((1, 5, 290),)}, {}, ()),  # promises to members of the view
        ({1: ((3, 7, 100),), 2: ((1, UNKNOWN, 270), (3, UNKNOWN, 270))}, {}, ((3, 7, 100), (3, UNKNOWN, 270))),
        # 2 was restarted: it does not know whom it promised what
        ({1: ((3, 7, 250),), 2: ((3, 6, 290),)}, {3: (7, 0)}, ()),  # 3's watchdog has told the coordinator
        ({1: ((3, 8, 250),), 2: ((3, 7, 290),)}, {3: (7, 0)}, ((3, 8, 250),)),  # that was the incarnation before
        ({1: ((3, 7, 250),), 2: ((3, UNKNOWN, 90),)}, {3: (7, 20)}, ((3, 7, 20), (3, UNKNOWN, 90))),  # 3 has lent
    ],
)
def test_a_view_carries_every_promise_to_one_left_out(
    promises: dict[int, Any], dead: dict[int, tuple[int, int]], owed: Any
) -> None:
    reports = {r: report(1, promises=promises.get(r, ())) for r in (1, 2)}
    assert plan(1, 1, reports, dead=dead) == view(1, (1, 2), 0, owed=owed)


def test_who_answers_the_seal_reads_nothing_any_more() -> None:
    """2 leaves, or is not heard by 1: 1 promised it something, but it is sealed. Only what 2 lent to its clients, by
    its own word, is waited for; what 3 lent it calls back itself, as a member, unless the next view leaves it out."""
    reports = {
        1: report(1, promises=((2, 4, 280), (3, 5, 280))),
        2: report(1, promises=((1, 9, 290),), lent_ms=40, leaving=True),
        3: report(1, promises=((2, 4, 200),), lent_ms=70),
    }
    assert plan(1, 1, reports, away={2}) == view(1, (1, 3), 0, hold_ms=40, owed=((3, UNKNOWN, 70),))


def test_what_a_member_lent_is_waited_for_by_a_later_view_that_leaves_it_out() -> None:
    """3 was alone, so nobody has promised it anything. It is in view 1 with 2, which a cut keeps from becoming active;
    clients of 3 read on when 2 goes on alone in view 2."""
    alone = view(0, (3,), -1)
    first = plan_view(1, 3, {2: report(1), 3: report(1, lent_ms=220)}, {0: alone}, 2)
    assert first == view(1, (2, 3), 0, owed=((3, UNKNOWN, 220),))
    left = (3, UNKNOWN, 150)
    second = plan_view(2, 2, {2: report(2, flushed=(0, 1), promises=(left,))}, {0: alone, 1: first}, 0)
    assert second == view(2, (2,), 1, owed=(left,))


def test_the_hold_of_an_earlier_view_is_inherited() -> None:
    reports = {1: report(1, hold_ms=100), 3: report(1, hold_ms=270, index=0)}
    assert plan(1, 1, reports) == view(1, (1, 3), 0, hold_ms=270)


@pytest.mark.parametrize(
    ("away", "members"),
    [
        ({1}, (2, 3)),  # the coordinator itself
        ({1, 2}, (3,)),
        ({1, 2, 3}, (1, 2, 3)),  # all are removed at once: those who hold the history stay until others do
    ],
)
def test_who_is_removed_or_leaves_is_left_out(away: set[int], members: tuple[int, ...]) -> None:
    assert plan(1, 1, {r: report(1) for r in (1, 2, 3)}, away=away) == view(1, members, 0)


def test_a_removed_replica_stays_while_nobody_else_has_flushed_the_base() -> None:
    """View 1 of 1 and 2 may be active; only 2, which is removed, has flushed it. 1 gets it from 2, then 2 goes."""
    reports = {1: report(2), 2: report(2, flushed=(0, 1))}
    assert plan(2, 1, reports, view(1, (1, 2), 0), away={2}) == view(2, (1, 2), 1)


def test_a_change_does_not_wait_for_who_only_copies_the_state() -> None:
    """4 is new, and its disk busy with a snapshot: its report takes long. 3 is out as well, but was in view 0."""
    one = Driven(1, replicas=(1, 2, 3), linked=(2, 3))
    one.step(Roster((1, 2, 3, 4), (1, 2, 3)))
    one.step(LinkUp(4))
    one.step(Received(4, heartbeat(0, -1, 0, -1)))
    for peer in (2, 3):
        one.step(Received(peer, heartbeat(0, -1, 1, 0)))
    out = one.step(ChangeView("test"))
    assert [peer for peer, _ in messages(out, Seal)] == [2, 3, 4]
    one.step(Received(1, report(1)))
    assert not messages(one.step(Received(2, report(1))), Prepare), "3 is heard, and may have flushed what matters"
    assert messages(one.step(Received(3, report(1))), Prepare)

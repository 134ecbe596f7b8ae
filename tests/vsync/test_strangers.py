"""Peers of another group: what they decided is no view of ours, and nobody here stops because of them."""

from __future__ import annotations

import pytest

from tests.vsync.builders import Driven, heartbeat, messages, view
from tests.vsync.test_machine import FIRST, SECOND, active, told
from vsync.effects import ChangeView, DurableUpTo, Effects, ForceView, LinkUp, Received, Roster, Tick
from vsync.limits import LEASE, MS
from vsync.records import Durable, Entry
from vsync.view import first_of, genesis, pack_views
from vsync.voter import Witness
from wire.codec import to_tuple
from wire.group import Accept, Feed, Join, Prepare, Seal, View, Views

ALONE = genesis((4,), ())
"""What replica 4 has made for its first view: it was started without joins = true."""
NEXT = View(2, (4,), (4,), 0, (), 0)


def packed(*views: View) -> tuple[tuple[object, ...], ...]:
    return pack_views(list(views))


@pytest.mark.parametrize(
    "said",
    [
        Views(packed(ALONE, NEXT)),
        Seal(2, "no active view", packed(ALONE)),
        Seal(2, "no active view", packed(FIRST, view(1, (4,), 0))),
        heartbeat(0, 0, 0, 0),
        heartbeat(1, 1, 1, 1),
    ],
)
def test_a_new_replica_with_a_first_view_of_its_own_is_refused(said: object) -> None:
    """Replica 4 was added and set up as if it were the first: members of the cluster go on without it."""
    one = active()
    one.step(Roster((1, 2, 3, 4), (1, 2, 3)))
    one.step(LinkUp(4))
    out = one.step(Received(4, said))
    assert [note for note in out.notes if "refuses replica 4" in note and "joins = true" in note] == out.notes
    assert (out.records, out.send, out.after) == ([], [], [])
    assert one.machine.active_view == 1
    assert one.machine.core.newest == SECOND, "nothing was learned of the same message"

    # What it decides without us must not become a view of ours, now that it knows where we are.
    for more in (Prepare(2, (1, 4, 1)), Accept(2, (1, 4, 1), NEXT), Seal(2, "again", ()), Views(packed(NEXT))):
        out = one.step(Received(4, more))
        assert out == Effects(ticket=out.ticket), "said once, and not listened to"


def test_a_feed_that_contradicts_is_not_followed() -> None:
    """Replica 3, left out, has asked one that turns out to be of another group."""
    three = Driven(3, linked=(2,))
    three.step(told(2, SECOND))
    three.step(Received(2, heartbeat(1, 1, 1, 1)))
    assert [peer for peer, _ in messages(three.step(Tick(), 400), Join)] == [2]
    out = three.step(Received(2, Feed(0, (to_tuple(view(0, (1, 2), -1)),))))
    assert "refuses replica 2" in out.notes[0]
    assert (out.history, out.records) == ([], [])


def test_two_that_were_forced_to_go_on_alone_refuse_each_other() -> None:
    """Each was told that the other is gone for good. They meet: neither stops, neither follows the other."""
    ones: list[Driven] = []
    for me in (1, 2):
        ones.append(forced_alone(me))
    for one, other in (ones, ones[::-1]):
        epoch = one.machine.active_view
        assert epoch is not None and epoch == other.machine.active_view
        said = other.machine.core.heartbeat(other.now)
        out = one.step(Received(other.machine.core.me, said))
        assert f"refuses replica {other.machine.core.me}" in out.notes[0] and "g1.0" in out.notes[0]
        assert not messages(out, Views)
        assert one.machine.active_view == epoch


def test_one_that_is_some_views_ahead_does_not_stop_the_other() -> None:
    """Two were forced. The second has gone on to other views before they meet: the first does not know these epochs,
    and could not see that they are none of its own."""
    one, two = forced_alone(1), forced_alone(2)
    for _ in range(2):
        before = two.machine.active_view
        outs = to_itself(two, two.step(ChangeView("again")))
        said = [m for out in outs for peer, m in [*out.send, *out.after] if peer == 1]
        assert before is not None and two.machine.active_view == before + 1
        two.step(Received(1, one.machine.core.heartbeat(one.now)))
        one.step(Received(2, two.machine.core.heartbeat(two.now)))
    assert said == [], "the second knows the first one's epoch, and has refused it"
    assert one.machine.active_view == first_of(1)
    assert one.machine.hear_each_other(2) and two.machine.hear_each_other(1), "nobody dials anew for that"


def forced_alone(me: int) -> Driven:
    kept = Durable(1, 0, {0: genesis((1, 2, 3), ())}, {0}, entries=[Entry(0, me, 1, 1, b"kept")])
    one = Driven(me, durable=kept, linked=(3 - me,))
    one.step(DurableUpTo(one.step(ForceView()).ticket), LEASE // MS)
    one.step(DurableUpTo(one.machine.core.ticket))
    assert one.machine.active_view == first_of(1)
    return one


def to_itself(one: Driven, out: Effects) -> list[Effects]:
    """What follows from *out* at a replica alone: it writes, and answers itself."""
    outs = [out]
    for out in outs:
        if out.records:
            outs.append(one.step(DurableUpTo(out.ticket)))
        outs += [one.step(Received(peer, m)) for peer, m in out.after if peer == one.machine.core.me]
    return outs


def test_a_witness_does_not_vote_for_another_group() -> None:
    witness = Witness(Durable())
    witness.step(1, Views(packed(FIRST)))
    out = witness.step(4, Views(packed(ALONE, NEXT)))
    assert "refuses replica 4" in out.notes[0]
    assert (out.records, out.after) == ([], []), "to say that the view is stored would be untrue"
    assert witness.step(4, Prepare(1, (1, 4, 1))) == Effects()
    assert witness.step(1, Prepare(1, (1, 1, 1))).after, "it votes for its own group"
    assert witness.newest == FIRST

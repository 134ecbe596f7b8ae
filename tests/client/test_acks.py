"""What two answers tell: whether a power cut may have taken what the first one acknowledged."""

from __future__ import annotations

from client.acks import Ack, Unsynced


def test_what_was_acknowledged_before_the_loss() -> None:
    unsynced = Unsynced()
    unsynced.add(Ack(3, 0))
    assert not unsynced.take_lost(Ack(9, 0)), "the chain has changed, and nothing was lost"
    assert not unsynced.take_lost(Ack(9, 3)), "what was lost was lost before"
    assert unsynced.take_lost(Ack(9, 4))
    assert not unsynced.take_lost(Ack(9, 4)), "it is told once"


def test_what_was_acknowledged_after_the_loss() -> None:
    unsynced = Unsynced()
    unsynced.add(Ack(4, 4))
    assert not unsynced.take_lost(Ack(5, 4))
    assert unsynced.take_lost(Ack(6, 6)), "another one"


def test_nothing_was_acknowledged() -> None:
    """Of a file just opened: who wrote it, and when, is not known."""
    assert not Unsynced().take_lost(Ack(9, 9))


def test_answers_in_another_order_than_they_were_given() -> None:
    unsynced = Unsynced()
    unsynced.add(Ack(5, 4))
    unsynced.add(Ack(3, 0))
    unsynced.add(Ack(6, 4))
    assert unsynced.take_lost(Ack(6, 4))


def test_a_sync_that_was_given_up() -> None:
    early, late = Unsynced(3), Unsynced(5)
    early.join(late)
    assert early.since == 3
    late.join(early)
    assert late.since == 3
    late.join(Unsynced())
    assert late.since == 3
    nothing = Unsynced()
    nothing.join(early)
    assert nothing.since == 3

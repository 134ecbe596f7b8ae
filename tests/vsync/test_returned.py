"""What the dead lent: a certificate bounds the wait for it, and its return ends the wait, for one view."""

from __future__ import annotations

from vsync.leases import Leases

LENT = 250_000
MEMBERS = (2, 3)


def owing(now: int = 0) -> Leases:
    """A view of 2 and 3 waits for a promise that 1 was given in its incarnation 5."""
    leases = Leases(LENT)
    leases.owe(1, 5, now + 290_000, now)
    return leases


def test_without_a_certificate_nothing_can_be_returned() -> None:
    leases = owing()
    assert leases.awaits_return(MEMBERS, 0) == []
    assert leases.owed_until(MEMBERS) == 290_000


def test_a_certificate_leaves_what_was_lent() -> None:
    leases = owing()
    leases.died(1, 5, 10_000)
    assert leases.owed_until(MEMBERS) == 260_000
    assert leases.awaits_return(MEMBERS, 10_000) == [(1, 5)]
    assert leases.awaits_return(MEMBERS, 260_000) == [], "it has run out by itself"


def test_what_is_returned_is_not_waited_for() -> None:
    leases = owing()
    leases.died(1, 5, 10_000)
    leases.returned(1, 5)
    assert leases.owed_until(MEMBERS) == 0
    assert leases.awaits_return(MEMBERS, 10_000) == []


def test_a_later_incarnation_is_not_the_one_that_died() -> None:
    leases = owing()
    leases.owe(1, 6, 300_000, 0)
    leases.died(1, 5, 10_000)
    assert leases.awaits_return(MEMBERS, 10_000) == [(1, 5)]
    leases.returned(1, 5)
    assert leases.owed_until(MEMBERS) == 300_000


def test_it_counts_for_one_view_and_is_never_told() -> None:
    """Whom the dead lent to is known by a complete log: that of the next view may have to be completed first."""
    leases = owing()
    leases.died(1, 5, 10_000)
    leases.returned(1, 5)
    assert leases.promises(20_000) == [(1, 5, 260_000)]
    assert leases.dead_ms(20_000) == {1: (5, 240)}
    leases.new_view()
    assert leases.owed_until(MEMBERS) == 260_000
    assert leases.awaits_return(MEMBERS, 20_000) == [(1, 5)]


def test_a_member_is_nobody_to_wait_for() -> None:
    leases = owing()
    leases.died(1, 5, 10_000)
    assert leases.awaits_return((1, 2), 20_000) == [] and leases.owed_until((1, 2)) == 0

"""Suspicion, and the leases beside it: what a pause does to one's own judgement, and to one's promises."""

from __future__ import annotations

from tests.vsync.builders import heartbeat
from vsync import limits
from vsync.detector import MAX_TICKS, MIN_TICKS, Detector
from vsync.leases import Leases


def hearing(*peers: int) -> Detector:
    detector = Detector(list(peers))
    for peer in peers:
        detector.link_up(peer)
        detector.heard(peer)
    return detector


def test_silence_is_counted_in_own_ticks() -> None:
    detector = hearing(2)
    for _ in range(MIN_TICKS):
        detector.tick()
    assert detector.hears(2)
    detector.tick()
    assert not detector.hears(2)
    detector.heard(2)
    assert detector.hears(2)


def test_a_paused_process_suspects_nobody_when_it_wakes() -> None:
    """It slept for minutes: that is one tick of its own, however late."""
    detector = hearing(2, 3)
    detector.tick()
    assert detector.hears(2)
    assert detector.hears(3)


def test_patience_grows_with_jitter_up_to_a_bound() -> None:
    detector = hearing(2)
    for _ in range(MIN_TICKS + 2):
        detector.tick()
    detector.heard(2)
    assert detector.peers[2].patience > MIN_TICKS
    for _ in range(MAX_TICKS + 1):
        detector.tick()
    assert not detector.hears(2)


def test_a_silence_that_is_over_is_forgotten() -> None:
    """It was stopped for 0.7 s. Half a minute later it is suspected as soon as anybody."""
    detector = hearing(2)
    for _ in range(14):
        detector.tick()
    detector.heard(2)
    assert detector.peers[2].patience == MAX_TICKS
    for _ in range(14 * limits.JITTER_FADE):
        detector.tick()
        detector.heard(2)
    assert detector.peers[2].patience == MIN_TICKS


def test_a_broken_link_is_silence_at_once_until_the_peer_speaks_again() -> None:
    detector = hearing(2)
    detector.link_down(2)
    assert not detector.hears(2)
    detector.link_up(2)
    assert not detector.hears(2)
    detector.heard(2)
    assert detector.hears(2)


def test_hearing_each_other_takes_both_directions() -> None:
    detector = hearing(2, 3)
    detector.said(2, heartbeat(0, 0, 0, 0, hears=(1, 2, 3)))
    detector.said(3, heartbeat(0, 0, 0, 0, hears=(1, 3)))
    assert not detector.hear_each_other((1, 2), 3), "3 does not hear 2"
    detector.said(3, heartbeat(0, 0, 0, 0, hears=(1, 2, 3)))
    assert detector.hear_each_other((1, 2), 3)
    detector.said(2, heartbeat(0, 0, 0, 0, hears=(1, 2)))
    assert not detector.hear_each_other((1, 2), 3), "2 does not hear 3"


def test_a_lease_ends_here_before_it_ends_there() -> None:
    """Held from the stamp of one's own heartbeat, granted from its answer on, with a margin for the clocks."""
    held, granted = Leases(), Leases()
    held.hold(2, 1000)
    assert granted.grant(1, 7, 1000)
    end = granted.promised_until(1)
    assert end == 1000 + limits.LEASE
    assert held.valid([2], end - limits.LEASE_MARGIN - 1)
    assert not held.valid([2], end - limits.LEASE_MARGIN)


def test_every_member_has_to_promise() -> None:
    leases = Leases()
    assert leases.valid([], 0), "a view of one needs no lease"
    leases.hold(2, 1000)
    assert not leases.valid([2, 3], 1001)
    leases.hold(3, 900)
    assert leases.valid([2, 3], 1001)
    leases.hold(3, 100)
    assert leases.valid([2, 3], 1001), "an older answer comes late"
    leases.activate()
    assert not leases.valid([2, 3], 1001), "leases of another view"
    assert leases.promised_until(2) is None

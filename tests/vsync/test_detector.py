"""Suspicion, and the leases beside it: what a pause does to one's own judgement, and to one's promises."""

from __future__ import annotations

from tests.vsync.builders import heartbeat
from vsync import limits
from vsync.detector import JITTER_STEP, MAX_TICKS, MIN_TICKS, Detector
from vsync.leases import Leases


def hearing(*peers: int) -> Detector:
    detector = Detector(list(peers))
    for peer in peers:
        detector.link_up(peer)
        detector.heard(peer)
    detector.activated((1, *peers))
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


def silence(detector: Detector, ticks: int) -> None:
    """2 says nothing for so many ticks, then something."""
    for _ in range(ticks):
        detector.tick()
    detector.heard(2)


def test_a_silence_that_was_borne_doubles_the_patience() -> None:
    detector = hearing(2)
    silence(detector, MIN_TICKS)
    assert detector.peers[2].patience == 2 * MIN_TICKS
    silence(detector, 2 * MIN_TICKS)
    assert detector.peers[2].patience == MAX_TICKS


def test_a_silence_that_cost_a_view_makes_a_little_more_patient() -> None:
    """It was cut off for 0.7 s. Should it fail again a moment later, nobody waits for a second."""
    detector = hearing(2)
    silence(detector, 14)
    assert detector.peers[2].patience == MIN_TICKS + 2 * JITTER_STEP
    detector.activated((1, 2))
    silence(detector, 14)
    assert detector.peers[2].patience >= 14, "a peer that does so again and again is borne with"


def test_silences_of_who_is_left_out_teach_nothing() -> None:
    """After a cut heals, what its connection sends again comes in bursts, before it is a member again."""
    detector = hearing(2, 3)
    for _ in range(14):
        detector.tick()
        detector.heard(3)
    detector.activated((1, 3))
    detector.heard(2)
    learnt = detector.peers[2].patience
    assert learnt == MIN_TICKS + 2 * JITTER_STEP
    silence(detector, learnt)
    assert detector.peers[2].patience == learnt
    detector.activated((1, 2, 3))
    silence(detector, learnt)
    assert detector.peers[2].patience == 2 * learnt


def test_who_was_cut_off_itself_learns_nothing_from_the_silence_of_the_others() -> None:
    """Whether it hears of the view without it before the second of them, or after both."""
    for at in (1, 2):
        detector = Detector([1, 2])
        for peer in (1, 2):
            detector.link_up(peer)
            detector.heard(peer)
        detector.activated((1, 2, 3))
        for _ in range(MIN_TICKS + 3):
            detector.tick()
        for told, peer in enumerate((1, 2), start=1):
            detector.heard(peer)
            if told == at:
                detector.left_out()
        assert [p.patience for p in detector.peers.values()] == [MIN_TICKS, MIN_TICKS]
        detector.activated((1, 2, 3))
        for _ in range(MIN_TICKS + 3):
            detector.tick()
        detector.heard(1)
        assert detector.peers[1].patience > MIN_TICKS, "this time we stayed"


def test_a_silence_that_is_over_is_forgotten() -> None:
    detector = hearing(2)
    silence(detector, MIN_TICKS)
    silence(detector, 2 * MIN_TICKS)
    for _ in range(MAX_TICKS // 2 * limits.JITTER_FADE):
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

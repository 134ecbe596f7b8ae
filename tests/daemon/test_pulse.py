"""When a watchdog kills, and when it starts again."""

from __future__ import annotations

from daemon.journal import FLUSH_MAX_S
from daemon.pulse import (
    BEAT_S,
    HANG_S,
    LOOK_S,
    RESTART_FIRST_S,
    RESTART_MAX_S,
    STABLE_S,
    STOPPED_S,
    Pulse,
    Restarts,
)
from vsync.limits import SILENCE_MIN


def looks(pulse: Pulse, count: int, waited_s: float = 0.0, stopped: bool = False) -> list[str]:
    """What so many looks in a row say."""
    said = [pulse.look(LOOK_S, waited_s, stopped) for _ in range(count)]
    return [why for why in said if why is not None]


def test_a_stopped_process_is_killed_before_the_others_suspect_it() -> None:
    pulse = Pulse()
    pulse.beat()
    assert looks(pulse, int(STOPPED_S / LOOK_S) - 1, stopped=True) == []
    assert looks(pulse, 2, stopped=True) != []
    assert SILENCE_MIN / 1e6 > STOPPED_S + LOOK_S


def test_a_short_stop_is_forgotten() -> None:
    pulse = Pulse()
    for _ in range(100):
        assert looks(pulse, 2, stopped=True) == []
        assert looks(pulse, 1) == []
        pulse.beat()


def test_a_hang_is_killed_after_a_long_time() -> None:
    pulse = Pulse()
    pulse.beat()
    assert looks(pulse, int(HANG_S / LOOK_S) - 1) == []
    assert looks(pulse, 2) != []
    assert HANG_S > FLUSH_MAX_S, "the journal finds its own disk stuck first, and says so"


def test_a_process_that_gets_no_cpu_is_not_taken_for_one_that_hangs() -> None:
    """A loaded machine: it is ready to run all the time, and waits for a processor for nearly all of it."""
    pulse = Pulse()
    pulse.beat()
    assert looks(pulse, int(3600 / LOOK_S), waited_s=LOOK_S) == []


def test_a_watchdog_that_was_stopped_or_slept_counts_two_looks_at_most() -> None:
    pulse = Pulse()
    pulse.beat()
    assert pulse.look(3600.0, 0.0, stopped=False) is None
    assert pulse.silent_s <= 2 * LOOK_S
    assert pulse.look(3600.0, 0.0, stopped=True) is None, "stopped together with it, and not continued yet"


def test_a_start_takes_as_long_as_it_takes() -> None:
    assert looks(Pulse(), int(3600 / LOOK_S)) == []


def test_beats_come_often_enough() -> None:
    pulse = Pulse()
    pulse.beat()
    for _ in range(1000):
        assert looks(pulse, int(BEAT_S / LOOK_S)) == []
        pulse.beat()


def test_restarts_wait_longer_and_longer_until_one_lives() -> None:
    restarts = Restarts()
    pauses = [restarts.pause(0.1) for _ in range(10)]
    assert pauses[0] == RESTART_FIRST_S
    assert pauses == sorted(pauses)
    assert pauses[-1] == RESTART_MAX_S
    assert restarts.pause(STABLE_S) == RESTART_FIRST_S

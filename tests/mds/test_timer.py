"""The process's timer under load: messages move its deadline all the time and must not keep it from firing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from mds.serve import ACTIVE_TICK_US, Process


def wake(nearer_us: int) -> bool:
    """Whether a message that brings the deadline *nearer_us* before the timer's end wakes the timer."""
    process = Process.__new__(Process)  # its sockets and files have no part in this
    process._timer_until = 1_000_000
    woken: list[bool] = []
    process._timer_scope = SimpleNamespace(cancel=lambda: woken.append(True))  # type: ignore[assignment]
    group = SimpleNamespace(next_deadline=lambda: 1_000_000 - nearer_us)
    process.replica = SimpleNamespace(group=group)  # type: ignore[assignment]
    process._wake_timer()
    return bool(woken)


@pytest.mark.parametrize("nearer_us", [0, 1, ACTIVE_TICK_US])
def test_a_deadline_within_the_shortest_sleep_does_not_re_arm_it(nearer_us: int) -> None:
    """1. A client creates a file every 2 ms. 2. Each message sets a deadline 3 ms ahead. 3. Re-armed each time, the
    timer never fires: no heartbeats, read leases lapse, queries wait."""
    assert not wake(nearer_us)


def test_a_deadline_much_nearer_wakes_it() -> None:
    assert wake(ACTIVE_TICK_US + 1)

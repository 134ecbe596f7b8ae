"""The process's timer under load: messages move its deadline all the time and must not keep it from firing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from mds.limits import ACTIVE_TICK_US
from mds.serve import Process

END = 1_000_000


def moved(monkeypatch: pytest.MonkeyPatch, nearer_us: int, now: int = END - ACTIVE_TICK_US) -> tuple[bool, int]:
    """(whether the timer is woken, by how much it sleeps longer) when a message brings the deadline *nearer_us* before
    the timer's end."""
    process = Process.__new__(Process)  # its sockets and files have no part in this
    process._timer_until = END
    woken: list[bool] = []
    scope = SimpleNamespace(cancel=lambda: woken.append(True), deadline=1.0)
    process._timer_scope = scope  # type: ignore[assignment]
    group = SimpleNamespace(next_deadline=lambda: END - nearer_us)
    process.replica = SimpleNamespace(group=group)  # type: ignore[assignment]
    monkeypatch.setattr("mds.serve.now_us", lambda: now)
    process._wake_timer()
    longer = process._timer_until - END
    assert round((scope.deadline - 1.0) * 1e6) == longer
    return bool(woken), longer


@pytest.mark.parametrize("nearer_us", [0, 1, ACTIVE_TICK_US])
def test_a_deadline_within_the_shortest_sleep_does_not_re_arm_it(
    monkeypatch: pytest.MonkeyPatch, nearer_us: int
) -> None:
    """1. A client creates a file every 2 ms. 2. Each message sets a deadline 3 ms ahead. 3. Re-armed each time, the
    timer never fires: no heartbeats, read leases lapse, queries wait."""
    assert moved(monkeypatch, nearer_us) == (False, 0)


def test_a_deadline_much_nearer_wakes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert moved(monkeypatch, ACTIVE_TICK_US + 1) == (True, 0)


def test_a_deadline_that_has_moved_away_lets_it_sleep_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client creates files without a pause: what is due 3 ms after the last one is not looked for every 3 ms."""
    assert moved(monkeypatch, -50_000, END - 1) == (False, ACTIVE_TICK_US - 1)
    assert moved(monkeypatch, -2_000, END - 1) == (False, 2_000), "never beyond the deadline"
    assert moved(monkeypatch, -50_000, END - ACTIVE_TICK_US) == (False, 0), "not at every message"

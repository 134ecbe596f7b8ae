"""client.calls: what is over is not kept."""

from __future__ import annotations

from client import limits
from client.calls import Call, Calls
from client.session_events import Kind


def test_calls_that_are_over_are_not_kept_behind_one_that_hangs() -> None:
    """Soft mode: one query waits for a replica that does not answer, for half a minute; a hundred thousand others are
    asked and answered meanwhile."""
    calls = Calls(4)
    hangs = Call(1, Kind.QUERY, b"", False, expires=30.0)
    calls.add(hangs)
    for token in range(2, 10_000):
        call = Call(token, Kind.QUERY, b"", False, expires=30.0 + token / 1e6)
        calls.add(call)
        calls.over(call)
    assert len(calls._expiring) <= limits.EXPIRING_SLACK + 4
    last = Call(10_000, Kind.QUERY, b"", False, expires=31.0)
    calls.add(last)
    assert calls.next_expiry() == 30.0
    assert calls.expired(31.0) == [hangs, last]


def test_slots_set_aside_are_for_those_that_wait_for_nobody() -> None:
    """All other requests may wait for a delegation of somebody who waits for ours."""
    calls = Calls(4, aside=2)
    others = [Call(token, Kind.REQUEST, b"", False, expires=1e9) for token in range(1, 5)]
    for call in others:
        assert calls.add(call)
    assert [call.slot >= 0 for call in others] == [True, True, False, False]
    firsts = [Call(token, Kind.REQUEST, b"", False, expires=1e9, first=True) for token in range(5, 8)]
    for call in firsts:
        assert calls.add(call)
        calls.validate(ready=False)
    assert [call.slot >= 0 for call in firsts] == [True, True, False]
    calls.over(others[0])
    assert list(calls.fill_slots()) == [firsts[2]], "before those who came earlier"
    calls.over(firsts[0])
    assert list(calls.fill_slots()) == []
    calls.over(firsts[1])
    calls.over(firsts[2])
    assert list(calls.fill_slots()) == [others[2]]
    calls.give_up(others[3])
    calls.validate(ready=False)

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

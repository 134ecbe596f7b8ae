"""client.pulse: how long a silent replica is waited for."""

from __future__ import annotations

from client import limits
from client.pulse import Patience, Pulse


def silent(patience: Patience, address: str) -> int:
    """Pings until the replica at *address*, which says nothing, is given up on."""
    pulse = Pulse(patience, 0.0, address)
    while pulse.beat(0.0):
        pass
    return pulse.missed


def test_who_left_a_living_replica_waits_longer_for_the_next() -> None:
    patience = Patience()
    assert silent(patience, "a") == limits.SILENT_PINGS_MIN
    patience.view(lambda _: True)
    assert silent(patience, "b") == 2 * limits.SILENT_PINGS_MIN
    patience.view(lambda _: True)
    assert silent(patience, "a") == limits.SILENT_PINGS_MAX


def test_the_silence_of_a_replica_that_is_gone_teaches_nothing() -> None:
    """It may be given up on twice, by the session and by its second connection, before the view comes."""
    patience = Patience()
    silent(patience, "a")
    silent(patience, "a")
    patience.view(lambda address: address != "a")
    assert silent(patience, "b") == limits.SILENT_PINGS_MIN


def test_a_silence_that_ended_by_itself_is_forgotten_by_answers_in_time() -> None:
    patience = Patience()
    patience.ended(6)
    patience.view(lambda _: False)
    assert patience.pings == 12
    for _ in range(200):
        patience.ended(1)
    assert patience.pings == limits.SILENT_PINGS_MIN

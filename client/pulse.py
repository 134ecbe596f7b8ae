"""Pure. Whether a replica lives: our pings, and its silence counted in them.

Silence is counted in our own pings, one per interval however late our timer is: a process that was itself paused
for a minute counts one ping more, and reads what came in meanwhile before the next.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from client import limits

DECAY: Final = 0.98
"""What one answer in time leaves of the longest silence remembered: half of it is forgotten after 35."""


class Patience:
    """How many pings in a row may find nothing received: twice the longest silence of late that was borne or given
    up on, within bounds.

    One for all connections of a session: a loaded host, ours or the replicas', is met again at the next one.  So a
    client that left a living replica for nothing waits longer before it does so again. Was the replica gone indeed,
    which the next view tells, there is nothing to learn from its silence.
    """

    def __init__(self) -> None:
        self._worst = 0.0
        self._given_up: dict[str, float] = {}
        """Replicas that were given up on since the last view -> the longest silence remembered before."""

    @property
    def pings(self) -> int:
        return min(max(limits.SILENT_PINGS_MIN, round(2 * self._worst)), limits.SILENT_PINGS_MAX)

    def ended(self, missed: int) -> None:
        """A silence of *missed* pings is over: something came."""
        if missed > 1:
            self._worst = max(self._worst, float(missed))
        else:
            self._worst *= DECAY

    def gave_up(self, address: str, missed: int) -> None:
        """A silence of *missed* pings of the replica at *address* is over: we went."""
        self._given_up.setdefault(address, self._worst)
        self.ended(missed)

    def view(self, is_member: Callable[[str], bool]) -> None:
        """A newer view is known."""
        for address, before in self._given_up.items():
            if not is_member(address):
                self._worst = min(self._worst, before)
        self._given_up.clear()


class Pulse:
    """The pings of one connection."""

    __slots__ = ("_address", "_patience", "missed", "number", "ping_at")

    def __init__(self, patience: Patience, now: float, address: str) -> None:
        self._patience = patience
        self._address = address
        self.ping_at = now + limits.PING_BUSY_S
        """When the next ping goes out, or the silence has lasted too long."""
        self.missed = 0
        """Pings sent since anything was received."""
        self.number = 0

    def asked(self, now: float) -> None:
        """Something that will be answered goes out: the silence, if it is one, begins now."""
        if self.ping_at > now + limits.PING_BUSY_S:
            self.ping_at = now + limits.PING_BUSY_S

    def heard(self, now: float, busy: bool) -> None:
        """Something came in. Only to be called when pings were missed: on the way of every answer that is a question
        less. *busy*: something is outstanding."""
        self._patience.ended(self.missed)
        self.missed = 0
        self.ping_at = now + (limits.PING_BUSY_S if busy else limits.PING_IDLE_S)

    def beat(self, now: float) -> bool:
        """``ping_at`` has come. True: send the ping ``number``; False: the silence is too long."""
        if self.missed >= self._patience.pings:
            self._patience.gave_up(self._address, self.missed)
            return False
        self.number += 1
        self.missed += 1
        self.ping_at = now + limits.PING_BUSY_S
        return True

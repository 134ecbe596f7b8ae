"""What clients keep, in miniature: parts of messages that a member holds, and requests that wait because of it.

A client of a replica keeps what it was told, for as long as its lease runs. A request that contradicts that is held
until the client has let go, which it does at once, late, or never (vsync.holds, mds.caches). What waits, waits by the
lock table of the real thing: requests for the same key, or of the same client, keep their order.
"""

from __future__ import annotations

from random import Random
from typing import Final

from mds.locks import READ, WRITE, Locks, LockTable
from tests.sim.clock import MS
from tests.sim.state import ROSTER_KEY, Request

LENT: Final = 250 * MS
"""How long a client may use what it keeps after its replica is gone, as the group is told (mds.caches.LEASE_US)."""
CLIENTS_MARGIN: Final = 30 * MS
"""A client stops earlier by so much: its clock drifts, as the simulator's clocks do."""

LENDS: Final = 0.3
"""Share of the answers to questions that a client keeps."""

Part = tuple[int, int, int, int]
"""(epoch, sender, sequence number, number of the request in the message)"""
At = tuple[int, int]
"""(index of the message in history, number of the request in it)"""


class Keeping:
    """The clients of one replica in one of its lives; times are of its clock."""

    def __init__(self, rng: Random, share: float) -> None:
        self._rng = rng
        self._share = share
        """Of the requests: that contradict what some client here keeps."""
        self._until = 0
        self.held: set[Part] = set()
        self._loans: dict[int, int] = {}
        """Key -> until when some client may answer by itself what it was told of that."""
        self._recalls: list[tuple[int, int, int]] = []
        """(key, when its client lets go, when its lease has run out)"""
        self._stopped = False
        """Its replica is to leave, and lends nothing any more."""

    def lend(self, key: int, now: int, read_until: int) -> int:
        """A client was told of *key*, and may go on by that. Returns until when; 0: it keeps nothing."""
        until = min(read_until, now + LENT - CLIENTS_MARGIN)
        if self._stopped or until <= now + 1 or self._rng.random() >= LENDS:
            return 0
        self._loans[key] = max(until, self._loans.get(key, 0))
        return until

    def call_back(self, part: Part, key: int, now: int) -> tuple[Part, int, int] | None:
        """A message is in the log whose *part* changes *key*. Returns what is held of it, as :meth:`recall` does."""
        rng = self._rng
        until = self._loans.pop(key, 0)
        if until > now + 1:
            silent = rng.random() < 0.3
            self._recalls.append((key, until if silent else rng.randrange(now + 1, until), until))
        self._recalls = [recall for recall in self._recalls if recall[1] > now]
        found = [(part, lets_go, end) for of, lets_go, end in self._recalls if of == key]
        if not found:
            return None
        self.held.add(part)
        return max(found, key=lambda one: one[1])

    def forget(self) -> None:
        """Its replica is left out: what it lent is waited for by the others."""
        self._loans.clear()

    def recall(self, parts: list[Part], now: int, read_until: int) -> list[tuple[Part, int, int]]:
        """Messages with these *parts* are in the log. Returns what is held of them: (part, when the client lets go,
        when its lease has run out)."""
        rng = self._rng
        if rng.random() < 0.7:
            self._until = max(self._until, min(read_until, now + LENT - CLIENTS_MARGIN))
        if self._until <= now + 1:
            return []
        found = []
        for part in parts:
            if rng.random() < self._share:
                silent = rng.random() < 0.3
                found.append((part, self._until if silent else rng.randrange(now + 1, self._until), self._until))
        self.held |= {part for part, _, _ in found}
        return found

    def stop(self) -> set[int]:
        """Its clients let go of everything, for good. Returns the keys that some were told of."""
        self._stopped = True
        keys = {*self._loans, *(key for key, _, _ in self._recalls)}
        self._until = 0
        self.held.clear()
        self._loans.clear()
        self._recalls.clear()
        return keys


class Waiting:
    """Requests that are delivered and not executed, at one replica."""

    def __init__(self) -> None:
        self._table: LockTable[At] = LockTable()
        self._locked: set[At] = set()
        self._held: dict[Part, At] = {}
        self.parts: dict[At, Part] = {}

    def deliver(self, at: At, part: Part, request: Request, held: bool) -> None:
        """*request* is delivered; *held*: it waits for :meth:`clear`, whatever else it waits for."""
        self.parts[at] = part
        if held:
            self._held[part] = at
        if self._table.declare(at, _locks(request)):
            self._locked.add(at)

    def clear(self, part: Part) -> None:
        self._held.pop(part, None)

    def clear_all(self) -> None:
        self._held.clear()

    def next(self, rng: Random) -> At | None:
        """Any that may be executed now."""
        held = set(self._held.values())
        ready = sorted(at for at in self._locked if at not in held)
        return rng.choice(ready) if ready else None

    def executed(self, at: At) -> None:
        self._locked.discard(at)
        del self.parts[at]
        self._locked.update(self._table.release(at))

    def __len__(self) -> int:
        return len(self.parts)


def _locks(request: Request) -> Locks:
    if request.key == ROSTER_KEY:
        return (("everything", WRITE),)
    return (("key", request.key), WRITE), (("client", request.client), WRITE), ("everything", READ)

"""Pure. When delivered requests execute: each as soon as its locks are free (mds.locks) and nothing else holds it back.

Delivery fixes the order; execution follows it where requests conflict. What holds a request back, beside earlier ones,
is a client's cache that contradicts it, at any replica (mds.caches): such a request has its locks and does not execute,
and what does not touch what it touches goes on. While nothing is held back nothing waits, and requests pass by the
table: :attr:`Schedule.empty`.
"""

from __future__ import annotations

from typing import Any

from mds.batch import Decoded
from mds.locks import WRITE, LockTable
from mds.locksets import EVERYTHING, PLACES, QUOTAS, locks_of, seen_untrusted
from mds.machine import Outcome, StateMachine
from mds.pending import Key


class Request:
    """One entry of a delivered message."""

    __slots__ = ("entry", "held", "index", "k", "key", "locked", "op")

    def __init__(self, key: Key, index: int, k: int, entry: Any, op: Any, held: bool) -> None:
        self.key = key
        self.index = index
        self.k = k
        self.entry = entry
        self.op = op
        self.held = held
        """A cache somewhere contradicts it."""
        self.locked = False
        """It has its locks."""


class Schedule:
    """The requests that are delivered and not executed."""

    def __init__(self, state: StateMachine) -> None:
        self.state = state
        self.table: LockTable[Request] = LockTable(uncounted=(EVERYTHING, QUOTAS))
        self.straight = 0
        """Requests that were executed without a look at the table: nothing was in it."""
        self.held = 0
        """Requests that were held back by caches."""
        self._waiting: dict[Key, dict[int, Request]] = {}
        """Message -> its entries that are not executed, by number."""
        self._ready: dict[Request, None] = {}

    @property
    def empty(self) -> bool:
        """Nothing waits: what is delivered now, and not held, may be executed at once."""
        return not self._waiting

    def deliver(self, key: Key, index: int, known: Decoded, held: frozenset[int]) -> None:
        """A message is delivered; its entries *held* wait for :meth:`clear`."""
        items, operations = known
        waiting: dict[int, Request] = {}
        for k in self.state.deliver(index, items):
            item, op = items[k], operations[k]
            request = waiting[k] = Request(key, index, k, item, op, k in held)
            self.held += request.held
            seen, fresh = seen_untrusted(op, item), self.state.number_at(index, k)
            unsettled = WRITE in (self.table.strongest(EVERYTHING), self.table.strongest(PLACES))
            locks = locks_of(op, item[1], item[2], seen, fresh, self.state.store, unsettled)
            request.locked = self.table.declare(request, locks)
            self._look(request)
        if waiting:
            self._waiting[key] = waiting

    def clear(self, key: Key, k: int) -> None:
        """No cache contradicts entry *k* of the message any more (which may be executed already)."""
        request = self._waiting.get(key, {}).get(k)
        if request is not None and request.held:
            request.held = False
            self._look(request)

    def clear_all(self) -> None:
        """No cache contradicts anything that is delivered."""
        for key, requests in self._waiting.items():
            for k in requests:
                self.clear(key, k)

    def _look(self, request: Request) -> None:
        if request.locked and not request.held:
            self._ready[request] = None

    @property
    def ready(self) -> list[Request]:
        """Those that may be executed, in any order."""
        return list(self._ready)

    def next(self) -> Request | None:
        """One that may be executed now."""
        return next(iter(self._ready), None)

    def execute(self, request: Request) -> Outcome:
        """Execute one that is ready. Others may be ready by that."""
        del self._ready[request]
        outcome = self.state.execute(request.index, request.k, request.op)
        for other in self.table.release(request):
            other.locked = True
            self._look(other)
        waiting = self._waiting[request.key]
        del waiting[request.k]
        if not waiting:
            del self._waiting[request.key]
        return outcome

    def forget(self) -> None:
        """Another state has taken the place of ours: what waited for it, it has, or will get delivered."""
        counted = self.table
        self.table = LockTable(uncounted=(EVERYTHING, QUOTAS))
        self.table.cells, self.table.declared, self.table.queued = counted.cells, counted.declared, counted.queued
        self._waiting.clear()
        self._ready.clear()

    def done(self, key: Key) -> bool:
        """Nothing of that message waits."""
        return key not in self._waiting

    def __len__(self) -> int:
        """Requests that wait."""
        return len(self.table)

    def statistics(self) -> dict[str, Any]:
        """For `lockstep status`."""
        return {"straight": self.straight, "held": self.held, "waiting": len(self), **self.table.statistics()}

    def validate(self) -> None:
        """Assert what always holds (tests)."""
        self.table.validate()
        assert len(self.table) == sum(map(len, self._waiting.values()))
        for request in self._ready:
            assert request.locked and not request.held and self._waiting[request.key][request.k] is request
        assert self.empty == (self.state.low == self.state.index), "what waits is above `low`"

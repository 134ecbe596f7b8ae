"""Pure. Requests of this replica that wait for the group to take them, gathered into messages and planned.

An entry that is multicast says what its origin saw (:mod:`mds.locksets`), looked up as late as possible. A request
whose plan was stale has changed nothing and comes again, in the same slot, with a new plan; after some of them it
comes without one, locks everything, and cannot be overtaken.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

from mds import limits
from mds.batch import decode_entry, well_formed
from mds.locksets import look
from mds.machine import StateMachine
from mds.schema import BLOCKS
from wire.delegation import Delegate

Item = tuple[int, int, int, int, bytes]
"""(time_ns, session, slot, number, op)"""


class Batching:
    """See the module."""

    def __init__(self, state: StateMachine) -> None:
        self.state = state
        """Replaced by the replica, when a snapshot replaces its own."""
        self.queue: deque[Item] = deque()
        """What waits, in the order of its coming; others only look whether there is something."""
        self._fresh: dict[bytes, Any] = {}
        """Operations of queued requests, decoded when they came in, so that it is not done again when they go out."""
        self._stale: dict[tuple[int, int, int], int] = {}
        """(session, slot, number) of requests whose plan was stale -> how often."""

    def __len__(self) -> int:
        return len(self.queue)

    def add(self, item: Item, op: Any) -> None:
        """A request came in, or is this replica's own; *op* is what is encoded in it."""
        self._fresh[item[4]] = op
        self.queue.append(item)

    def back(self, items: Iterable[Item]) -> None:
        """These have been multicast and are in no history: they go out again."""
        self.queue.extend(items)

    def again(self, item: Item) -> None:
        """Its plan was stale."""
        self._stale[item[1:4]] = self._stale.get(item[1:4], 0) + 1
        self.queue.append(item)

    def answered(self, request: tuple[int, int, int]) -> None:
        """It has come to something."""
        if self._stale:
            self._stale.pop(request, None)

    def clear(self) -> None:
        """Whoever waits for what is here has been told to ask elsewhere."""
        self.queue.clear()
        self._fresh.clear()
        self._stale.clear()

    def batch(self) -> list[tuple[Any, ...]]:
        """The entries of the next message: as many as go into one.

        Those that are to be given numbers come first, for only the first entries have some to give."""
        batch: list[tuple[Any, ...]] = []
        size = first = 0
        while self.queue and len(batch) < limits.BATCH_ENTRIES:
            size += len(self.queue[0][4]) + 64
            if batch and size > limits.BATCH_BYTES:
                break
            op = self._fresh.get(self.queue[0][4])
            if isinstance(op, Delegate):
                if first == BLOCKS:
                    break
                batch.insert(first, self.queue.popleft())
                first += 1
                continue
            item = self.queue.popleft()
            seen = look(self.state.store, op if op is not None else decode_entry(item))
            if seen is None or (self._stale and self._stale.get(item[1:4], 0) >= limits.PLANS):
                batch.append(item)
            else:
                batch.append((*item, seen))
        return batch

    def decoded(self, items: tuple[Any, ...]) -> list[Any]:
        """The operations of a message's entries (None for what is none), which have come to the log."""
        fresh = self._fresh
        if not fresh:
            return [decode_entry(item) for item in items]
        return [(well_formed(item) and fresh.pop(item[4], None)) or decode_entry(item) for item in items]

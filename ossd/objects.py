"""Pure. The rules of one object: pending truncations, what a read sees, order of operations, lost writes.

An object is the bytes of one column of one file.  Truncation is lazy (30-data): the metadata hold numbered
truncations ``((seq, length), ...)``, every request to an object carries those that are not settled, and the
target carries out the ones whose number is above the last it has carried out for that object.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Any, Final, Generic, TypeVar

Truncations = tuple[tuple[int, int], ...]
"""((seq, length in terms of this object), ...)."""

OFFSET_MAX: Final = 2**63 - 1
"""The largest file offset there is (off_t)."""

SYNCERS_MAX: Final = 4096
"""Clients remembered by name per object as owed an error; beyond that everybody who syncs next is told."""


# --- truncation -----------------------------------------------------------------------------------


def pending(last: int, truncations: Truncations) -> tuple[int | None, int]:
    """(length to trim to, or None; number carried out afterwards) for an object that has carried out *last*.

    A length of None means that nothing in *truncations* is news; the number is then *last*.
    """
    if not truncations:
        return None, last
    news = [(seq, length) for seq, length in truncations if seq > last]
    if not news:
        return None, last
    # Several at once: between two truncations there may have been writes that other requests bring later or
    # never, so every byte beyond the smallest length is one that some truncation has removed.
    return min(length for _, length in news), max(seq for seq, _ in news)


def visible_size(size: int, last: int, truncations: Truncations) -> int:
    """Bytes of an object of *size* bytes that a reader who knows *truncations* may see.

    A read does not trim: to look no further than the trim would leave is the same answer, and a read then
    changes nothing and needs no order among reads.
    """
    length, _ = pending(last, truncations)
    return size if length is None else min(size, length)


def readable(size: int, offset: int, length: int) -> int:
    """How many bytes a read of *length* at *offset* gives when *size* bytes are visible."""
    return max(0, min(length, size - offset))


# --- order ----------------------------------------------------------------------------------------

K = TypeVar("K", bound=Hashable)


class Turn(Generic[K]):
    """One operation's place in the order of its object."""

    __slots__ = ("granted", "key", "shared", "waiter")

    def __init__(self, key: K, shared: bool) -> None:
        self.key = key
        self.shared = shared
        self.granted = False
        self.waiter: Any = None
        """For the shell: whatever it waits with."""


class Order(Generic[K]):
    """Operations on one object run in the order they came; reads (*shared*) next to each other run together.

    Who has entered an operation for several keys at once, without any other entering in between, cannot
    meet a deadlock: the order is the same at every key.
    """

    def __init__(self) -> None:
        self._queues: dict[K, deque[Turn[K]]] = {}

    def __contains__(self, key: K) -> bool:
        """Is any operation on *key* running or waiting?"""
        return key in self._queues

    def __len__(self) -> int:
        return len(self._queues)

    def enter(self, key: K, shared: bool) -> Turn[K]:
        """Take the next place at *key*; ``granted`` says whether it is the operation's turn at once."""
        turn = Turn(key, shared)
        queue = self._queues.get(key)
        if queue is None:
            self._queues[key] = deque((turn,))
            turn.granted = True
            return turn
        # The queue is granted up to some place. Shared joins it when everything before it runs, shared too.
        turn.granted = shared and queue[-1].granted and queue[-1].shared
        queue.append(turn)
        return turn

    def leave(self, turn: Turn[K]) -> list[Turn[K]]:
        """*turn* is done, or given up while it waited. The turns that are granted by this."""
        queue = self._queues[turn.key]
        queue.remove(turn)
        if not queue:
            del self._queues[turn.key]
            return []
        granted: list[Turn[K]] = []
        for place, other in enumerate(queue):
            if place and not other.shared:
                break
            if not other.granted:
                other.granted = True
                granted.append(other)
            if not other.shared:
                break
        return granted

    def validate(self) -> None:
        """Assert what always holds."""
        for key, queue in self._queues.items():
            assert queue, f"empty queue kept for {key}"
            running = [t for t in queue if t.granted]
            assert running == list(queue)[: len(running)], "granted turns are a prefix"
            assert running, "somebody's turn it is"
            assert len(running) == 1 or all(t.shared for t in running), "an exclusive turn is alone"
            if all(t.shared for t in running) and len(queue) > len(running):
                assert not queue[len(running)].shared, "a shared turn waits behind shared ones only"


# --- lost writes ----------------------------------------------------------------------------------


class SyncBook:
    """Which writes are not known to be on disk, and who must still be told that some were lost.

    As Linux does it (lib/errseq.c): when the disk has lost writes, each client that had written since the last
    successful sync is told so exactly once, at its next sync, whoever's sync it was that found out; whoever
    found out is told, too.  A client that wrote only afterwards hears nothing of it.  A later success does not
    take the news from those who have not heard it.  Clients are known by their name, which outlives a
    connection.
    """

    __slots__ = ("_all_owed", "_owed", "_writers", "errors", "synced", "writes")

    def __init__(self) -> None:
        self.writes = 0
        """Changes made so far."""
        self.synced = 0
        """Changes of which the disk has said that it holds them, or that it has lost them."""
        self.errors = 0
        self._writers: dict[str, int] = {}
        """Number of the last change by each client that has one not known to be on disk."""
        self._owed: dict[str, int] = {}
        self._all_owed = 0

    @property
    def clean(self) -> bool:
        return self.synced == self.writes

    @property
    def owes(self) -> bool:
        """Is there anybody who has not been told of lost writes?"""
        return bool(self._owed) or bool(self._all_owed)

    def wrote(self, client: str) -> None:
        """*client* is about to change the object (noted before: a change that fails half way counts, too)."""
        self.writes += 1
        self._writers[client] = self.writes

    def done(self, upto: int) -> None:
        """The disk holds all changes up to number *upto* (``writes`` as it was when the sync began)."""
        self._settle(upto)

    def failed(self, upto: int, errno: int) -> None:
        """A sync begun at *upto* ended in *errno*: anything not synced before may be gone.

        The kernel forgets pages that it could not write, so asking again would "succeed": these changes
        are settled as lost.
        """
        self.errors += 1
        for client in self._writers:  # also those who wrote meanwhile: no telling which pages it was
            self._owed[client] = errno
        self._settle(upto)
        if len(self._owed) > SYNCERS_MAX:
            self._owed.clear()
            self._all_owed = errno

    def _settle(self, upto: int) -> None:
        self.synced = max(self.synced, upto)
        if self.synced == self.writes:
            self._writers.clear()
        else:
            self._writers = {client: last for client, last in self._writers.items() if last > self.synced}

    def told(self, client: str) -> int:
        """The errno to answer *client*'s sync with, or 0; from then on it has been told."""
        errno = self._owed.pop(client, 0)
        if self._all_owed:
            errno, self._all_owed = errno or self._all_owed, 0
        return errno

"""Pure. Which inodes the messages in the log touch that are not applied yet: what queries wait for.

A query runs on the state as it is and then asks whether anything it read is about to be changed by a message
that is in this replica's log (acknowledged, or flushed with a view) and not applied.  If so it waits for the
messages that were pending when it came, and runs again.  What touches nothing pending is answered at once.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from wire import ids

Key = tuple[int, int, int]
"""(epoch, sender, seq) of a message."""

ANYTHING: Final = ids.U64_MAX
"""Stands among the inodes that a query reads for all there are: it waits for everything that is pending. For what is
asked rarely and changed by nearly every request."""


class Pending:
    """Messages in the log, not applied, and the inodes they may change."""

    def __init__(self) -> None:
        self._messages: dict[Key, frozenset[int] | None] = {}
        self._touched: Counter[int] = Counter()
        self._anything = 0
        """Messages that may change anything (their inodes cannot be told before execution)."""

    def __len__(self) -> int:
        return len(self._messages)

    def add(self, key: Key, touched: frozenset[int] | None) -> None:
        """The message entered the log; it may change these inodes (None: any)."""
        assert key not in self._messages
        self._messages[key] = touched
        if touched is None:
            self._anything += 1
        else:
            self._touched.update(touched)

    def remove(self, key: Key) -> None:
        """The message was applied, or dropped from the log. Harmless if it was never added (a learner's feed)."""
        if key not in self._messages:
            return
        touched = self._messages.pop(key)
        if touched is None:
            self._anything -= 1
            return
        for ino in touched:
            self._touched[ino] -= 1
            if not self._touched[ino]:
                del self._touched[ino]

    def clear(self) -> None:
        self._messages.clear()
        self._touched.clear()
        self._anything = 0

    def conflicts(self, read: frozenset[int]) -> list[Key]:
        """The messages that may change what was *read*; the query waits for these and no later ones."""
        if not self._messages:
            return []
        if ANYTHING in read:
            return list(self._messages)
        if not (self._anything or any(ino in self._touched for ino in read)):
            return []
        return [k for k, touched in self._messages.items() if touched is None or not touched.isdisjoint(read)]

    def keys(self) -> frozenset[Key]:
        """Everything pending now."""
        return frozenset(self._messages)

    def has(self, key: Key) -> bool:
        return key in self._messages

    def validate(self) -> None:
        """Assert that the counts are those of the messages."""
        touched: Counter[int] = Counter()
        for inodes in self._messages.values():
            touched.update(inodes or ())
        assert touched == self._touched and all(count > 0 for count in self._touched.values())
        assert self._anything == sum(inodes is None for inodes in self._messages.values())


def changed_later(touched: list[frozenset[int] | None]) -> tuple[int, dict[int, int]]:
    """In one message, whose requests touch these inodes (None: any): the last request that takes names away (-1: none),
    and the last one that touches each inode.

    1. create(a) of one client and rename(b, a) of another come into one batch. 2. The batch is executed as a whole,
    so when create is answered nothing is pending. 3. But what it answers is not true any more.
    """
    removes, last = -1, {}
    for k, inodes in enumerate(touched):
        if inodes is None:
            removes = k
        else:
            last.update(dict.fromkeys(inodes, k))
    return removes, last

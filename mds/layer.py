"""Pure. What was applied and is not on disk yet: the layers of :mod:`mds.store`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from sortedcontainers import SortedList

from mds.schema import TABLES

OVERHEAD: Final = 200
"""What a record in a layer takes in memory beside its bytes: two objects' headers and a place in a dict."""
Effects = list[tuple[int, bytes, bytes | None]]
"""What one request changed, in order: (table number, key, value or None for deleted)."""
MISSING: Final = object()
"""A layer says nothing of a key (None: that it is deleted)."""


class Layer:
    """Effects not yet in LMDB: per table key -> value, None for a key that is deleted."""

    __slots__ = ("_fresh", "_sorted", "bytes", "tables")

    def __init__(self) -> None:
        self.tables: list[dict[bytes, bytes | None]] = [{} for _ in TABLES]
        self.bytes = 0
        # Keys in order, built when a table is first scanned and completed at each scan after that: a table which
        # is only written to pays nothing, and one that is listed while it grows pays for each key once.
        self._sorted: list[Any] = [None for _ in TABLES]
        self._fresh: list[list[bytes]] = [[] for _ in TABLES]

    def __bool__(self) -> bool:
        return any(self.tables)

    def set(self, n: int, key: bytes, value: bytes | None) -> Any:
        """Set *key*; returns what it was in this layer (or MISSING)."""
        table = self.tables[n]
        old = table.get(key, MISSING)
        table[key] = value
        if old is MISSING:
            self.bytes += len(key) + OVERHEAD
            if self._sorted[n] is not None:
                self._fresh[n].append(key)
        elif old is not None:
            self.bytes -= len(old)  # type: ignore[arg-type]
        if value is not None:
            self.bytes += len(value)
        return old

    def unset(self, n: int, key: bytes, old: Any) -> None:
        """Take back one :meth:`set` (in reverse order)."""
        table = self.tables[n]
        value = table[key]
        if value is not None:
            self.bytes -= len(value)
        if old is not MISSING:
            table[key] = old
            if old is not None:
                self.bytes += len(old)
            return
        del table[key]
        self.bytes -= len(key) + OVERHEAD
        fresh = self._fresh[n]
        if fresh and fresh[-1] == key:
            fresh.pop()
        elif self._sorted[n] is not None:
            self._sorted[n].remove(key)  # a scan within the request had sorted it in

    def keys(self, n: int, start: bytes, stop: bytes | None) -> Iterator[bytes]:
        """Keys of table *n* in [start, stop), in order."""
        if not self.tables[n]:
            return iter(())
        keys = self._sorted[n]
        if keys is None:
            keys = self._sorted[n] = SortedList(self.tables[n])
        elif self._fresh[n]:
            keys.update(self._fresh[n])
            self._fresh[n].clear()
        found: Iterator[bytes] = keys.irange(start, stop, (True, False))
        return found

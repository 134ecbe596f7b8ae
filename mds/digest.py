"""Pure. What the effects of a history come to, at each index: equal wherever the same requests had the same effects.

A sum of hashes, so that it does not depend on the order of execution. What is executed before something that comes
earlier in history (mds.schedule) is kept apart, by index: at index i everything up to i counts, at every replica,
however far ahead each of them is by then, and nothing above i.
"""

from __future__ import annotations

from collections import deque
from hashlib import blake2b
from typing import Final

from mds.layer import Effects
from wire.codec import pack

MASK: Final = 2**64 - 1
PASSED_KEPT: Final = 4096
"""Indexes that were passed and nobody has asked about (see :meth:`Digest.passed`); of more, the last."""


class Digest:
    """See the module. *total*: what was executed before, all of it; nothing below that is missing."""

    def __init__(self, total: int = 0) -> None:
        self.total = total
        """Of all that is executed, what is ahead as well."""
        self._ahead: dict[int, int] = {}
        """What entries count that are executed ahead, by index."""
        self._ahead_sum = 0
        self._passed: deque[tuple[int, int]] = deque(maxlen=PASSED_KEPT)

    @property
    def complete(self) -> int:
        """Of everything up to the index up to which all is executed."""
        return self.total - self._ahead_sum & MASK

    def count(self, index: int, k: int, effects: Effects, ahead: bool) -> None:
        """Add what entry *k* of the message at *index* has written. *ahead*: something up to there is not executed."""
        part = int.from_bytes(blake2b(pack((index, k, effects)), digest_size=8).digest(), "big")
        self.total = (self.total + part) & MASK
        if ahead:
            self._ahead[index] = self._ahead.get(index, 0) + part
            self._ahead_sum += part

    def reached(self, first: int, low: int) -> None:
        """*first* was not executed whole; now everything up to *low* is."""
        for index in range(first, low + 1):
            self._ahead_sum -= self._ahead.pop(index, 0)
            self._passed.append((index, self.complete))

    def passed(self) -> list[tuple[int, int]]:
        """(index, digest there) of those that were not complete and are now, ascending; each is told once."""
        passed = list(self._passed)
        self._passed.clear()
        return passed

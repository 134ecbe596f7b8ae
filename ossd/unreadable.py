"""Pure. What cannot be read of the objects that a target is to give to others, and what of it was given up.

A synchronisation goes on with everything else and then tries again, at a slow pace: a disk may find the bytes after
all, somebody may write the blocks anew or delete the file. An administrator may decide not to wait (`lockstep target
give-up`): then the copy gets a mark in place of the bytes (ossd.ledger.LOST), by which reading them is an error there
for ever, and nobody is told zeros or older bytes. The decision is about what was found unreadable by then. It is kept
here, in memory, because the disk in question may take no writes; marks that were given are on disk at the copy.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Final

from ossd.ledger import BLOCK, Damaged
from ossd.objectfile import Key

WHOLE: Final = -1
"""In place of a block: the object cannot even be opened."""
RANGES_TOLD: Final = 20
"""Ranges of one object that are told in words."""


class Incomplete(Damaged):
    """The next member has all of an object but these blocks, so it is not told that it is in step."""

    def __init__(self, path: str, blocks: Collection[int], size: int) -> None:
        super().__init__(5, f"{len(blocks)} blocks cannot be read", path)
        self.blocks = frozenset(blocks)
        self.size = size


@dataclass(frozen=True, slots=True)
class Bad:
    """What cannot be read of one object."""

    blocks: frozenset[int]
    size: int
    """Of the object; 0 when it cannot be opened."""
    why: str

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """[(first byte, bytes), ...] of the object; empty: all of it."""
        made: list[tuple[int, int]] = []
        for block in sorted(self.blocks - {WHOLE}):
            start, stop = block * BLOCK, min((block + 1) * BLOCK, self.size)
            if made and sum(made[-1]) == start:
                start = made.pop()[0]
            made.append((start, stop - start))
        return made


def bad_of(exc: OSError) -> Bad:
    """What *exc*, raised while an object was given to another target, says of it."""
    if isinstance(exc, Incomplete):
        return Bad(exc.blocks, exc.size, exc.strerror or "")
    return Bad(frozenset((WHOLE,)), 0, str(exc))


@dataclass(slots=True)
class Decided:
    """What was given up, of the chains that are being given to others."""

    chains: dict[int, dict[Key, set[int]]] = field(default_factory=dict)
    """Chain -> object -> blocks, or :data:`WHOLE`."""

    def of(self, chain: int, key: Key) -> Collection[int]:
        return self.chains.get(chain, {}).get(key, ())

    def add(self, chain: int, key: Key, blocks: Iterable[int]) -> None:
        self.chains.setdefault(chain, {}).setdefault(key, set()).update(blocks)

    def forget(self, chain: int) -> None:
        self.chains.pop(chain, None)

    def keep(self, chains: Collection[int]) -> None:
        """Forget all chains but these."""
        self.chains = {number: keys for number, keys in self.chains.items() if number in chains}


Told = tuple[int, int, int, int, tuple[tuple[int, int], ...], int, str]
"""(chain, target that lacks it, inode, column, ((first byte, bytes), ...), bytes in all, why): as a status tells it. No
range: all of the object."""


def told(chain: int, target: int, key: Key, bad: Bad) -> Told:
    ranges = bad.ranges
    return chain, target, *key, tuple(ranges[:RANGES_TOLD]), sum(size for _, size in ranges), bad.why

"""Reading ahead for one handle that reads sequentially: a bounded window of blocks fetched before they are asked for.

What was fetched is only used while nothing says that it may be old: no write or truncation on this mount, no
change of size or time seen, and not longer than READ_AHEAD_AGE_S.  It belongs to one handle, so that an open
after another mount's close always fetches anew (close-to-open).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import trio

from client import limits
from client.gather import Buffer
from client.io import FileData
from wire.errors import FileSystemError

BLOCK = 1 << 20
"""Bytes fetched at a time, aligned: with the usual layout one read of one object."""


@dataclass(eq=False, slots=True)
class _Block:
    start: int
    stop: int
    version: int
    born: float
    data: Buffer | None = None
    """None when done: it could not be read, whoever asks for it reads for himself."""
    done: trio.Event = field(default_factory=trio.Event)


class ReadAhead:
    """The blocks ahead of one handle."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._blocks: deque[_Block] = deque()
        self._expected = 0
        self._window = 0

    async def read(self, data: FileData, offset: int, stop: int) -> Buffer:
        """Bytes ``[offset, stop)`` of *data*; all of it is within the file."""
        sequential = offset == self._expected or (self._window and abs(offset - self._expected) <= BLOCK)
        self._expected = max(self._expected, stop) if sequential else stop
        if not sequential:
            self._window = 0
            self._blocks.clear()
        elif stop - offset < BLOCK or self._window:
            grown = min(self._window * 2, limits.READ_AHEAD_MAX) if self._window else limits.READ_AHEAD_FIRST
            self._window = grown
            self._fetch_ahead(data, stop)
        found = await self._take(data, offset, stop)
        return found if found is not None else await data.fetch(offset, stop - offset)

    def _fetch_ahead(self, data: FileData, position: int) -> None:
        blocks = self._blocks
        while blocks and (blocks[0].stop + BLOCK <= position or not self._fresh(data, blocks[0])):
            blocks.popleft()  # one block behind the reader is kept: the kernel's reads overtake each other
        edge = max(blocks[-1].stop if blocks else position, position)
        while edge < min(position + self._window, data.size) and len(blocks) < limits.READ_AHEAD_MAX // BLOCK + 2:
            end = min((edge // BLOCK + 1) * BLOCK, data.size)
            block = _Block(edge, end, data.version, trio.current_time())
            blocks.append(block)
            self._nursery.start_soon(_fill, data, block)
            edge = end

    def _fresh(self, data: FileData, block: _Block) -> bool:
        return block.version == data.version and trio.current_time() - block.born <= limits.READ_AHEAD_AGE_S

    async def _take(self, data: FileData, offset: int, stop: int) -> Buffer | None:
        """The bytes if the blocks have all of them."""
        wanted = [b for b in self._blocks if b.start < stop and offset < b.stop]
        if not wanted or wanted[0].start > offset or wanted[-1].stop < stop:
            return None
        pieces: list[Buffer] = []
        for block in wanted:
            await block.done.wait()
            if block.data is None or not self._fresh(data, block):
                return None
            low, high = max(offset, block.start), min(stop, block.stop)
            pieces.append(memoryview(block.data)[low - block.start : high - block.start])
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


async def _fill(data: FileData, block: _Block) -> None:
    try:
        await data.settle_range(block.start, block.stop)
        block.data = await data.fetch(block.start, block.stop - block.start)
    except FileSystemError:
        block.data = None  # whoever asks for these bytes gets the error from reading them himself
    finally:
        block.done.set()

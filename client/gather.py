"""Pure. Small writes gathered into one run of bytes, kept as the buffers they came in.

A run is contiguous: a write that does not continue it has to wait until it is taken out.  Large buffers are
kept as they are and only cut by views, small ones are copied together, so that a run of many tiny writes
stays short.
"""

from __future__ import annotations

from client.limits import COPY_BELOW, GATHER_MAX

Buffer = bytes | bytearray | memoryview


class Run:
    """The bytes ``[start, stop)`` of one file, not sent yet."""

    __slots__ = ("_parts", "start", "stop")

    def __init__(self) -> None:
        self.start = 0
        self.stop = 0
        self._parts: list[Buffer] = []

    def __len__(self) -> int:
        return self.stop - self.start

    def accepts(self, offset: int) -> bool:
        """Whether a write at *offset* continues this run (an empty one takes any)."""
        return self.start == self.stop or offset == self.stop

    def overlaps(self, start: int, stop: int) -> bool:
        return self.start < stop and start < self.stop

    def append(self, offset: int, data: Buffer) -> None:
        """Take *data*; the caller does not change it afterwards."""
        assert self.accepts(offset), f"write at {offset} does not continue [{self.start}, {self.stop})"
        if self.start == self.stop:
            self.start = self.stop = offset
        size = len(data)
        if not size:
            return
        if size < COPY_BELOW:
            last = self._parts[-1] if self._parts else None
            # Only bytearrays made here are extended; take() never leaves one with views of it in the run.
            if type(last) is bytearray and len(last) < COPY_BELOW * 4:
                last += data
            else:
                self._parts.append(bytearray(data))
        else:
            # A caller's bytearray goes in as a view: it is not ours to extend.
            self._parts.append(memoryview(data) if type(data) is bytearray else data)
        self.stop += size

    def take(self, length: int) -> tuple[int, tuple[Buffer, ...]]:
        """Remove the first *length* bytes: (their offset, their buffers in order)."""
        assert 0 < length <= len(self)
        offset = self.start
        self.start += length
        if self.start == self.stop:
            parts, self._parts = tuple(self._parts), []
            return offset, parts
        taken: list[Buffer] = []
        rest = length
        count = 0
        for part in self._parts:
            if rest < len(part):
                break
            taken.append(part)
            rest -= len(part)
            count += 1
        del self._parts[:count]
        if rest:
            view = memoryview(self._parts[0])
            taken.append(view[:rest])
            self._parts[0] = view[rest:]
        return offset, tuple(taken)

    def validate(self) -> None:
        assert sum(len(p) for p in self._parts) == self.stop - self.start
        assert all(len(p) for p in self._parts)


def deal(parts: tuple[Buffer, ...], lengths: list[int]) -> list[tuple[Buffer, ...]]:
    """The bytes of *parts* dealt out into consecutive pieces of *lengths* (which add up to them), without copying."""
    if len(lengths) == 1:
        return [parts]
    pieces: list[tuple[Buffer, ...]] = []
    rest = iter(parts)
    view = memoryview(b"")
    for length in lengths:
        piece: list[Buffer] = []
        while length:
            if not len(view):
                view = memoryview(next(rest))
            taken = view[:length]
            piece.append(taken)
            length -= len(taken)
            view = view[len(taken) :]
        pieces.append(tuple(piece))
    return pieces


def gather_unit(stripe_size: int) -> int:
    """Runs are cut at multiples of this: whole stripes, about GATHER_MAX of them."""
    if stripe_size >= GATHER_MAX:
        return GATHER_MAX
    return GATHER_MAX // stripe_size * stripe_size

"""Pure. Bytes written into a small file and not told to the service: pieces apart from each other, ascending."""

from __future__ import annotations

from client.gather import Buffer


class Patch:
    """``[(offset, bytes)]``, merged where they touch, so that there are never more than a file has bytes."""

    __slots__ = ("_pieces",)

    def __init__(self) -> None:
        self._pieces: list[tuple[int, bytearray]] = []

    def __len__(self) -> int:
        """Bytes in all pieces."""
        return sum(len(data) for _, data in self._pieces)

    def __bool__(self) -> bool:
        return bool(self._pieces)

    @property
    def count(self) -> int:
        """Pieces."""
        return len(self._pieces)

    @property
    def end(self) -> int:
        """One past the last byte; 0: there is none."""
        return self._pieces[-1][0] + len(self._pieces[-1][1]) if self._pieces else 0

    def write(self, offset: int, data: Buffer) -> None:
        """Put *data* at *offset*, over what is there. It is copied."""
        if not len(data):
            return
        stop = offset + len(data)
        pieces = self._pieces
        first = last = len(pieces)
        while first and pieces[first - 1][0] + len(pieces[first - 1][1]) >= offset:
            first -= 1
            if pieces[first][0] > stop:
                last = first
        if first == last:
            pieces.insert(first, (offset, bytearray(data)))
            return
        start, merged = pieces[first]
        if start > offset:
            merged = bytearray(start - offset) + merged
            start = offset
        for at, more in pieces[first + 1 : last]:
            _put(merged, at - start, more)
        _put(merged, offset - start, data)
        pieces[first:last] = [(start, merged)]

    def over(self, older: Patch) -> Patch:
        """One patch: *older* with this one's bytes over it."""
        both = Patch()
        for patch in (older, self):
            for offset, data in patch._pieces:
                both.write(offset, data)
        return both

    def pieces(self) -> tuple[tuple[int, bytes], ...]:
        """As a message carries them (wire.inline.WriteInline)."""
        return tuple((offset, bytes(data)) for offset, data in self._pieces)

    def lay_over(self, view: bytearray, start: int) -> None:
        """Put what is within into *view*, the bytes of the file from *start* on."""
        stop = start + len(view)
        for offset, data in self._pieces:
            low, high = max(start, offset), min(stop, offset + len(data))
            if low < high:
                view[low - start : high - start] = data[low - offset : high - offset]

    def validate(self) -> None:
        """Assert that the pieces are apart and ascend, and none is empty."""
        before = -1
        for offset, data in self._pieces:
            assert offset > before and data
            before = offset + len(data)


def _put(into: bytearray, at: int, data: Buffer) -> None:
    if at > len(into):
        into += bytes(at - len(into))
    into[at : at + len(data)] = data

"""Pure. Small files in the metadata, as messages: their bytes, and how such a file grows out to objects.

A file whose attr has ``inline`` above 0 has its bytes in the state of the replicas, up to so many; what it is longer
than its bytes are zeros. It becomes a file of objects once, and for good, when somebody wants to write beyond:

1. GrowOut gives a number under which objects may be made, and which nobody else ever has. It is good for the bytes as
   they are: any change of them, or another GrowOut, makes it void.
2. The client reads the bytes (ReadInline), writes them to the objects of that number, and has them synced.
3. GrownOut: the objects are the file's from now on. Refused when the number is void; then it begins again.

A file without bytes needs no objects: GrowOut alone changes it.
"""

from __future__ import annotations

from typing import Final

from wire import ids
from wire.codec import message
from wire.ops import TIME_NS_MAX, bad_ino

INLINE_MAX: Final = 65_536
"""Bytes of one file that the metadata may hold at most: they pass through the ordered log, and lie in memory until they
are written to the state."""
PIECES_MAX: Final = 4096


def bad_pieces(pieces: tuple[tuple[int, bytes], ...]) -> str | None:
    """Why *pieces* are no bytes ``((offset, bytes), ...)`` of a small file, ascending and apart."""
    if not 0 < len(pieces) <= PIECES_MAX:
        return f"{len(pieces)} pieces"
    before = -1
    for piece in pieces:
        if type(piece) is not tuple or len(piece) != 2 or type(piece[0]) is not int or type(piece[1]) is not bytes:
            return "a piece that is no offset and bytes"
        if piece[0] <= before or not piece[1]:
            return f"the piece at {piece[0]} does not come after the one before, or is empty"
        before = piece[0] + len(piece[1])
    if before > INLINE_MAX:
        return f"bytes up to {before} of a file, {INLINE_MAX} may be in the metadata"
    return None


@message(130)
class WriteInline:
    """Bytes ``((offset, bytes), ...)`` of file *ino*, ascending and apart, with the time and consequences of Commit.

    Result: attr. STALE_LAYOUT when the file's bytes are not in the metadata (any more), or these do not fit there.
    """

    ino: int
    pieces: tuple[tuple[int, bytes], ...]
    mtime_ns: int
    privileged: bool = False

    def invalid(self) -> str | None:
        return (
            bad_pieces(self.pieces)
            or bad_ino(self.ino)
            or (None if 0 <= self.mtime_ns <= TIME_NS_MAX else "a time beyond 64 bits")
        )

    @property
    def end(self) -> int:
        """One past the last byte."""
        offset, data = self.pieces[-1]
        return offset + len(data)


@message(131)
class GrowOut:
    """The contents of *ino* are to be in objects. Result: ``(number, attr)``; number 0: they are.

    Else the bytes are to be written to the objects of *number*, and GrownOut to be said. ENOSPC: the cluster has no
    storage target.
    """

    ino: int

    def invalid(self) -> str | None:
        return bad_ino(self.ino)


@message(132)
class GrownOut:
    """The bytes of *ino* are in the objects of *number*, durably: those are the file now. Result: attr.

    STALE_LAYOUT when something has changed since *number* was given: nothing is done.
    """

    ino: int
    number: int

    def invalid(self) -> str | None:
        return bad_ino(self.ino) or (None if 0 < self.number <= ids.U64_MAX else f"number {self.number}")


InlineRequest = WriteInline | GrowOut | GrownOut


@message(133)
class ReadInline:
    """A query. Result: ``(attr, contents)``; contents is None when the file is not in the metadata, else
    ``(version, bytes)``. The version rises with every change of the bytes.
    """

    ino: int

    def invalid(self) -> str | None:
        return bad_ino(self.ino)

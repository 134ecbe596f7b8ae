"""Pure. Where the bytes of a file are: stripe units dealt round over the columns of its layout.

Unit ``u = offset // stripe_size`` is in column ``u % columns`` at object offset
``(u // columns) * stripe_size + offset % stripe_size``.  Object (ino, column) holds the units of one column.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Extent:
    """Bytes ``[offset, offset + length)`` of a file as ``object_offset`` onwards of column ``column``."""

    column: int
    object_offset: int
    offset: int
    length: int


def split(offset: int, length: int, stripe_size: int, columns: int, longest: int) -> Iterator[Extent]:
    """The extents of ``[offset, offset + length)`` in file order, each of at most *longest* bytes.

    With one column, neighbouring units are neighbours in the object, too, and come as one extent.
    """
    assert offset >= 0 and length >= 0 and stripe_size > 0 and columns > 0 and longest > 0
    end = offset + length
    while offset < end:
        unit, within = divmod(offset, stripe_size)
        take = min(end - offset, longest)
        if columns > 1:
            take = min(take, stripe_size - within)
        yield Extent(unit % columns, (unit // columns) * stripe_size + within, offset, take)
        offset += take

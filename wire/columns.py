"""Pure. What a truncation of a file means for each of its objects. Where its bytes are: :mod:`client.striping`."""

from __future__ import annotations


def object_length(size: int, column: int, stripe_size: int, columns: int) -> int:
    """Bytes that object *column* of a file of *size* bytes has (what a truncation to *size* leaves of it)."""
    units, rest = divmod(size, stripe_size)
    rounds, last = divmod(units, columns)
    length = rounds * stripe_size
    if column < last:
        length += stripe_size
    elif column == last:
        length += rest
    return length


def object_truncations(
    truncations: tuple[tuple[int, int], ...], column: int, stripe_size: int, columns: int
) -> tuple[tuple[int, int], ...]:
    """An inode's unsettled truncations ((seq, size), ...) in terms of one object: ((seq, length), ...)."""
    if not truncations:
        return truncations
    return tuple((seq, object_length(size, column, stripe_size, columns)) for seq, size in truncations)

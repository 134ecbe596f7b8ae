"""Layout arithmetic against the definition, applied byte by byte."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from client.striping import split
from wire.columns import object_length, object_truncations

STRIPE = st.integers(1, 7)
COLUMNS = st.integers(1, 5)


def place(offset: int, stripe: int, columns: int) -> tuple[int, int]:
    """(column, object offset) of one byte: the contract's formula."""
    unit = offset // stripe
    return unit % columns, (unit // columns) * stripe + offset % stripe


@given(st.integers(0, 200), st.integers(0, 120), STRIPE, COLUMNS, st.integers(1, 40))
@settings(max_examples=300, deadline=None)
def test_split_places_every_byte_once(offset: int, length: int, stripe: int, columns: int, longest: int) -> None:
    placed = []
    for extent in split(offset, length, stripe, columns, longest):
        assert 0 < extent.length <= longest
        for k in range(extent.length):
            placed.append((extent.offset + k, extent.column, extent.object_offset + k))
    assert placed == [(at, *place(at, stripe, columns)) for at in range(offset, offset + length)]


@given(st.integers(0, 300), STRIPE, COLUMNS)
@settings(max_examples=300, deadline=None)
def test_object_length_is_one_past_the_last_byte(size: int, stripe: int, columns: int) -> None:
    lengths = [0] * columns
    for at in range(size):
        column, where = place(at, stripe, columns)
        lengths[column] = max(lengths[column], where + 1)
    assert [object_length(size, column, stripe, columns) for column in range(columns)] == lengths
    assert sum(lengths) == size, "objects of a file without holes hold its bytes and no others"


def test_large_offsets() -> None:
    (extent,) = split(2**62, 10, 1 << 20, 1, 1 << 22)
    assert (extent.column, extent.object_offset, extent.length) == (0, 2**62, 10)


def test_truncations_in_terms_of_an_object() -> None:
    assert object_truncations(((3, 10), (4, 5)), 1, 4, 2) == ((3, 4), (4, 1))
    assert object_truncations((), 1, 4, 2) == ()

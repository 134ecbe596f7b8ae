"""What is written to a small file before it is told, against an array of bytes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from client.patch import Patch

SIZE = 40
writes = st.lists(st.tuples(st.integers(0, SIZE - 8), st.binary(max_size=8)), max_size=12)


def filled(written: list[tuple[int, bytes]]) -> tuple[Patch, list[int | None]]:
    patch, model = Patch(), [None] * SIZE
    for offset, data in written:
        patch.write(offset, data)
        patch.validate()
        model[offset : offset + len(data)] = data  # type: ignore[assignment]
    return patch, list(model)


def bytes_of(patch: Patch) -> list[int | None]:
    found: list[int | None] = [None] * SIZE
    for offset, data in patch.pieces():
        found[offset : offset + len(data)] = data
    return found


@given(writes)
def test_pieces_are_what_was_written(written: list[tuple[int, bytes]]) -> None:
    patch, model = filled(written)
    assert bytes_of(patch) == model
    assert len(patch) == sum(byte is not None for byte in model)
    assert patch.end == max((k + 1 for k, byte in enumerate(model) if byte is not None), default=0)
    assert bool(patch) == any(byte is not None for byte in model)
    assert len(patch.pieces()) == sum(
        byte is not None and (k == 0 or model[k - 1] is None) for k, byte in enumerate(model)
    )


@given(writes, writes)
def test_one_patch_over_another(older: list[tuple[int, bytes]], newer: list[tuple[int, bytes]]) -> None:
    both = filled(newer)[0].over(filled(older)[0])
    both.validate()
    assert bytes_of(both) == filled(older + newer)[1]


@given(writes, st.integers(0, SIZE), st.integers(0, SIZE))
def test_laid_over_a_part_of_the_file(written: list[tuple[int, bytes]], start: int, length: int) -> None:
    patch, model = filled(written)
    view = bytearray(b"." * length)
    patch.lay_over(view, start)
    wanted = [ord(".") if byte is None else byte for byte in model] + [ord(".")] * SIZE
    assert list(view) == wanted[start : start + length]

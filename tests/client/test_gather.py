"""Gathered writes: what is taken out is what was put in, whatever the sizes."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from client import limits
from client.gather import Run, deal

SIZES = st.lists(
    st.one_of(st.integers(1, 50), st.sampled_from([limits.COPY_BELOW - 1, limits.COPY_BELOW, 70_000])), max_size=12
)


@given(SIZES, st.lists(st.integers(1, 90_000), max_size=12), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_run_gives_back_its_bytes(sizes: list[int], takes: list[int], random: object) -> None:
    run = Run()
    expected = bytearray()
    taken = bytearray()
    start = at = 1000
    pending = list(takes)
    for number, size in enumerate(sizes):
        data = bytes([number + 1]) * size
        # A caller's own buffers of every kind; none of them may be changed or grown by us.
        given_buffer = (data, bytearray(data), memoryview(data))[number % 3]
        if not len(run):
            start = at
        assert run.accepts(at)
        run.append(at, given_buffer)
        run.validate()
        assert given_buffer == data
        at += size
        expected += data
        if pending and len(run):
            length = min(pending.pop(), len(run))
            offset, parts = run.take(length)
            run.validate()
            assert offset == start
            start += length
            taken += b"".join(parts)
    if len(run):
        taken += b"".join(run.take(len(run))[1])
    assert taken == expected


def test_run_refuses_a_gap() -> None:
    run = Run()
    run.append(10, b"abc")
    assert run.accepts(13) and not run.accepts(12) and not run.accepts(14)
    assert run.overlaps(12, 20) and not run.overlaps(13, 20) and not run.overlaps(0, 10)


def test_many_tiny_writes_are_few_parts() -> None:
    run = Run()
    for at in range(100_000):
        run.append(at, b"x")
    _, parts = run.take(100_000)
    assert len(parts) < 5


@given(st.lists(st.binary(min_size=1, max_size=9), max_size=8), st.data())
@settings(max_examples=100, deadline=None)
def test_deal_cuts_without_loss(parts: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(parts)
    lengths = []
    left = len(whole)
    while left:
        lengths.append(data.draw(st.integers(1, left)))
        left -= lengths[-1]
    pieces = deal(tuple(parts), lengths)
    assert [b"".join(piece) for piece in pieces] == [
        whole[sum(lengths[:k]) : sum(lengths[: k + 1])] for k in range(len(lengths))
    ]

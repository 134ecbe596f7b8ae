"""Frame headers: what is announced is bounded before it is believed."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.errors import SERVICE_BASE, FileSystemError, Status, WireError, describe, to_errno
from wire.framing import (
    BULK_MAX,
    HANDSHAKE_LIMITS,
    HANDSHAKE_META_MAX,
    META_MAX,
    Limits,
    header,
    parse_header_untrusted,
)


@pytest.mark.parametrize(("meta", "bulk"), [(1, 0), (1, 1), (META_MAX, BULK_MAX), (77, 4096)])
def test_round_trip(meta: int, bulk: int) -> None:
    data = header(meta, bulk)
    assert len(data) == 8
    assert parse_header_untrusted(data, Limits()) == (meta, bulk)
    assert parse_header_untrusted(b"xyz" + data, Limits(), 3) == (meta, bulk)


@pytest.mark.parametrize(
    ("meta", "bulk", "limits", "why"),
    [
        (0, 0, Limits(), "without a message"),
        (0, 10, Limits(), "without a message"),
        (META_MAX + 1, 0, Limits(), f"message of {META_MAX + 1} bytes"),
        (2**32 - 1, 2**32 - 1, Limits(), "message of 4294967295 bytes"),
        (1, BULK_MAX + 1, Limits(), f"{BULK_MAX + 1} bytes of data"),
        (HANDSHAKE_META_MAX + 1, 0, HANDSHAKE_LIMITS, "4096 allowed"),
        (1, 1, HANDSHAKE_LIMITS, "0 allowed"),
    ],
)
def test_refused(meta: int, bulk: int, limits: Limits, why: str) -> None:
    data = meta.to_bytes(4, "big") + bulk.to_bytes(4, "big")
    with pytest.raises(WireError, match=why):
        parse_header_untrusted(data, limits)


@given(st.binary(min_size=8, max_size=8))
def test_garbage(data: bytes) -> None:
    try:
        meta, bulk = parse_header_untrusted(data, Limits())
    except WireError:
        return
    assert 0 < meta <= META_MAX
    assert 0 <= bulk <= BULK_MAX


@pytest.mark.parametrize(("meta", "bulk"), [(META_MAX + 1, 0), (1, BULK_MAX + 1)])
def test_we_build_no_frame_that_would_be_refused(meta: int, bulk: int) -> None:
    with pytest.raises(AssertionError, match="allowed"):
        header(meta, bulk)


# --- outcomes -------------------------------------------------------------------------------------


def test_outcomes_have_an_errno_and_a_name() -> None:
    for status in Status:
        assert status >= SERVICE_BASE
        assert 0 < to_errno(status) < 4096
        assert describe(status) == status.name
    assert to_errno(errno.ENOENT) == errno.ENOENT
    assert (describe(0), describe(errno.ENOSPC), describe(3999), describe(19_999)) == (
        "OK",
        "ENOSPC",
        "errno 3999",
        "status 19999",
    )
    assert str(FileSystemError(errno.ENOENT, "lookup of x")) == "ENOENT: lookup of x"
    assert str(FileSystemError(Status.NOT_SERVING)) == "NOT_SERVING"

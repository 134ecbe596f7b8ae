"""Pure. Frames: ``meta length (u32) | bulk length (u32) | meta | bulk``, big-endian.

``meta`` is one encoded message.  ``bulk`` is file data or part of a snapshot that goes along with it
untouched: it never passes through msgpack.  Both are bounded before a byte of them is kept.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from wire.errors import WireError

HEADER: Final = struct.Struct("!II")

META_MAX: Final = 2 << 20
"""Bytes of one encoded message. A group batch is at most half of it (vsync.limits)."""
BULK_MAX: Final = 8 << 20
"""Bytes of bulk data with one message: eight default stripes, so one request never pins more."""
HANDSHAKE_META_MAX: Final = 4096
"""Before the handshake has named the peer nothing larger is accepted."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a connection accepts in one frame."""

    meta_max: int = META_MAX
    bulk_max: int = BULK_MAX


HANDSHAKE_LIMITS: Final = Limits(HANDSHAKE_META_MAX, 0)


def header(meta_len: int, bulk_len: int) -> bytes:
    """The eight bytes before a frame's contents."""
    assert meta_len <= META_MAX, f"message of {meta_len} bytes built, {META_MAX} allowed"
    assert bulk_len <= BULK_MAX, f"bulk of {bulk_len} bytes built, {BULK_MAX} allowed"
    return HEADER.pack(meta_len, bulk_len)


def parse_header_untrusted(data: bytes | bytearray | memoryview, limits: Limits, offset: int = 0) -> tuple[int, int]:
    """(meta length, bulk length) of the frame that begins at *offset*. Raises :class:`WireError`."""
    meta_len, bulk_len = HEADER.unpack_from(data, offset)
    if meta_len == 0:
        raise WireError("frame without a message")
    if meta_len > limits.meta_max:
        raise WireError(f"frame announces a message of {meta_len} bytes, {limits.meta_max} allowed")
    if bulk_len > limits.bulk_max:
        raise WireError(f"frame announces {bulk_len} bytes of data, {limits.bulk_max} allowed")
    return meta_len, bulk_len

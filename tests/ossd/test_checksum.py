"""Checksums are zlib's, whoever computes them."""

from __future__ import annotations

import random
import sys
import zlib

import pytest

from ossd import checksum


def test_sums_are_those_of_zlib() -> None:
    """Targets with and without the fast package compare their copies by them."""
    rng = random.Random(1)
    for size in (0, 1, 15, 64, 1000, 65536, 65537):
        data = rng.randbytes(size)
        assert checksum.crc32(data) == zlib.crc32(data)
        assert checksum.crc32(memoryview(data)[1:], 77) == zlib.crc32(data[1:], 77)


def test_without_the_fast_package_zlib_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "isal.isal_zlib", None)
    assert checksum._fastest() is zlib.crc32

"""Contents of files through a mount: striped, sparse, truncated, appended to, read back through another mount."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import random
from pathlib import Path

import pytest

from tests.fuse.conftest import Pair
from tests.fuse.test_namespace import fails

pytestmark = pytest.mark.system

MIB = 1 << 20


def digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def test_a_file_over_several_stripes_reads_back_equal(pair: Pair) -> None:
    data = random.Random(1).randbytes(9 * MIB + 12345)
    (pair.one / "f").write_bytes(data)
    assert os.stat(pair.two / "f").st_size == len(data)
    assert digest(pair.two / "f") == hashlib.blake2b(data).hexdigest()


def test_what_was_written_is_there_when_the_file_was_closed_or_synced(pair: Pair) -> None:
    fd = os.open(pair.one / "f", os.O_CREAT | os.O_WRONLY)
    try:
        os.write(fd, b"one")
        os.fsync(fd)
        assert (pair.two / "f").read_bytes() == b"one"
        os.write(fd, b" two")
    finally:
        os.close(fd)
    assert (pair.two / "f").read_bytes() == b"one two"
    assert os.stat(pair.two / "f").st_blocks >= 0


def test_writes_at_random_offsets_against_a_model(pair: Pair) -> None:
    """The model is a byte array: writes, truncations and reads at random places, across stripes and holes."""
    source = random.Random(7)
    model = bytearray()
    fd = os.open(pair.one / "f", os.O_CREAT | os.O_RDWR)
    try:
        for step in range(120):
            kind = source.randrange(10)
            offset = source.randrange(0, 5 * MIB)
            if kind < 5:
                data = source.randbytes(source.choice((1, 100, 4096, 70_000, MIB + 17)))
                os.pwrite(fd, data, offset)
                if len(model) < offset + len(data):
                    model.extend(bytes(offset + len(data) - len(model)))
                model[offset : offset + len(data)] = data
            elif kind < 7:
                os.ftruncate(fd, offset)
                model = model[:offset] + bytes(max(0, offset - len(model)))
            else:
                size = source.randrange(1, MIB)
                assert os.pread(fd, size, offset) == bytes(model[offset : offset + size]), f"step {step}"
            assert os.fstat(fd).st_size == len(model), f"step {step}"
    finally:
        os.close(fd)
    assert (pair.two / "f").read_bytes() == bytes(model)


def test_a_hole_reads_as_zeros_and_costs_nothing(pair: Pair) -> None:
    with open(pair.one / "f", "wb") as file:
        file.seek(50 * MIB)
        file.write(b"end")
    assert os.stat(pair.two / "f").st_size == 50 * MIB + 3
    with open(pair.two / "f", "rb") as file:
        file.seek(17 * MIB - 5)
        assert file.read(10) == bytes(10)
        file.seek(50 * MIB - 2)
        assert file.read() == b"\0\0end"


def test_truncation_leaves_no_stale_bytes_behind(pair: Pair) -> None:
    """Cut and extended again: what was there must not come back, whoever looks."""
    f, g = pair.one / "f", pair.two / "f"
    f.write_bytes(b"x" * (3 * MIB))
    os.truncate(g, MIB + 5)
    assert os.stat(f).st_size == MIB + 5
    os.truncate(f, 3 * MIB)
    data = g.read_bytes()
    assert data == b"x" * (MIB + 5) + bytes(2 * MIB - 5)
    os.truncate(f, 0)
    with open(f, "r+b") as file:
        file.seek(100)
        file.write(b"y")
    assert g.read_bytes() == bytes(100) + b"y"
    with open(g, "wb"):
        pass
    assert f.read_bytes() == b""


def test_append_goes_to_the_end(pair: Pair) -> None:
    for k in range(20):
        with open(pair.one / "f", "ab") as file:
            file.write(b"%03d\n" % k)
    assert (pair.two / "f").read_bytes() == b"".join(b"%03d\n" % k for k in range(20))


def test_writing_moves_mtime_and_clears_the_set_user_bit(pair: Pair) -> None:
    f, g = pair.one / "f", pair.two / "f"
    f.write_bytes(b"1")
    os.utime(f, ns=(5, 5))
    with open(f, "r+b") as file:
        file.write(b"2")
    info = os.stat(g)
    assert info.st_mtime_ns > 5
    assert info.st_ctime_ns >= info.st_mtime_ns or info.st_ctime_ns > 5


def test_flags_of_open(pair: Pair) -> None:
    f = pair.one / "f"
    f.write_bytes(b"abc")
    fd = os.open(f, os.O_RDONLY)
    try:
        fails(errno.EBADF, os.write, fd, b"x")
    finally:
        os.close(fd)
    os.close(os.open(pair.two / "f", os.O_WRONLY | os.O_TRUNC))
    assert os.stat(f).st_size == 0
    fails(errno.ENOENT, os.open, pair.one / "none", os.O_RDONLY)
    fails(errno.ENOTDIR, os.open, f, os.O_RDONLY | os.O_DIRECTORY)


def test_a_file_can_be_mapped(pair: Pair) -> None:
    f = pair.one / "f"
    f.write_bytes(bytes(range(256)) * 64)
    with open(f, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view:
        assert view[1000:1010] == (bytes(range(256)) * 64)[1000:1010]


def test_many_small_files_written_and_read_through_different_mounts(pair: Pair) -> None:
    for k in range(200):
        (pair.one / f"{k}").write_text(f"contents {k}")
    assert [(pair.two / f"{k}").read_text() for k in range(200)] == [f"contents {k}" for k in range(200)]

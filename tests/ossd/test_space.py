"""Errors of the disk, and a full one."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ossd.ledger import NO_STAMP, BadBlock, header_of
from ossd.objects import OFFSET_MAX
from ossd.store import TRIM_ATTR, Store, file_name
from tests.ossd.disks import CLUSTER, FaultyDisk, ShortDisk
from tests.ossd.storing import A, B, read, truncate, write


@pytest.mark.parametrize(
    ("call", "act"),
    [
        ("pwrite", lambda s: write(s, A, 0, b"x")),
        ("pread", lambda s: read(s, A)),
        ("ftruncate", lambda s: truncate(s, A, ((1, 0),))),
        ("setxattr", lambda s: truncate(s, A, ((1, 0),))),
        ("fsync", lambda s: truncate(s, A, ((1, 0),))),
        ("unlink", lambda s: s.delete([A])),
        ("sync_directory", lambda s: s.delete([A])),
        ("open", lambda s: write(s, B, 0, b"x")),
    ],
)
def test_disk_errors(
    store: Store, disk: FaultyDisk, caplog: pytest.LogCaptureFixture, call: str, act: Callable[[Store], object]
) -> None:
    """They go to the caller, are logged once with the file, and counted; the next try works."""
    write(store, A, 0, b"old")
    disk.faults[call] = [errno.EIO]
    with pytest.raises(OSError, match="Input/output error") as caught:
        act(store)
    assert caught.value.errno == errno.EIO
    assert store.disk_errors == 1
    assert [r.levelno for r in caplog.records] == [logging.ERROR]
    act(store)
    assert store.disk_errors == 1


def test_a_trim_that_fails_is_not_taken_for_done(store: Store, disk: FaultyDisk) -> None:
    write(store, A, 0, b"0123456789")
    for call in ("ftruncate", "fsync", "setxattr"):
        disk.faults[call] = [errno.EIO]
        with pytest.raises(OSError, match="Input/output"):
            write(store, A, 8, b"x", ((1, 4),))
        assert (read(store, A, known=((1, 4),)) or b"") == b"0123"
    write(store, A, 8, b"x", ((1, 4),))
    assert read(store, A) == b"0123" + bytes(4) + b"x"


def test_a_read_that_the_page_cache_cannot_serve(store: Store, disk: FaultyDisk) -> None:
    """read_at_once gives up where it would wait, or where the disk has an error for read() to tell."""
    write(store, A, 0, b"abc")
    file = store.cached(A)
    assert file is not None
    for number in (errno.EAGAIN, errno.EOPNOTSUPP, errno.EIO):
        disk.faults["preadv"] = [number]
        assert store.read_at_once(file, 0, 3, ()) is None
    assert store.disk_errors == 0
    assert store.read_at_once(file, 3, 3, ()) == b""
    store.release(file)


def test_a_file_that_somebody_else_has_cut(store: Store, path: Path) -> None:
    """Not our doing; the reader is not given it for what was written."""
    write(store, A, 0, b"0123456789")
    os.truncate(next((path / "objects").glob(f"*/{file_name(A)}")), 4)
    with pytest.raises(BadBlock):
        read(store, A)
    assert store.bad_blocks == 1


def test_a_damaged_number(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store.open(path, CLUSTER, 1)
    write(store, A, 0, b"x")
    store.close()
    os.setxattr(next((path / "objects").glob(f"*/{file_name(A)}")), TRIM_ATTR, b"123")
    store = Store.open(path, CLUSTER, 1)
    with pytest.raises(OSError, match="3 bytes long"):
        read(store, A)
    assert "3 bytes long" in caplog.text
    store.close()


def test_a_full_disk_in_the_middle_of_a_write(path: Path) -> None:
    """The object ends where it ended, so no part of the write shows behind it."""
    disk = ShortDisk(room=7)
    store = Store.open(path, CLUSTER, 1, disk=disk)
    write(store, A, 0, b"abc")
    with pytest.raises(OSError, match="No space") as caught:
        write(store, A, 2, b"0123456789")
    assert caught.value.errno == errno.ENOSPC
    assert read(store, A) == b"ab0", "a byte that was there may be the new one"
    assert store.disk_errors == 0
    disk.room = 100
    write(store, A, 10, b"x")
    assert read(store, A) == b"ab0" + bytes(7) + b"x", "nothing of it is left behind the end"
    store.close()


def test_after_half_of_a_write_the_copy_is_equal_to_no_other(path: Path) -> None:
    disk = ShortDisk(room=10)
    store = Store.open(path, CLUSTER, 1, disk=disk)
    file = store.fetch(A, create=True, chain=7)
    assert file is not None
    store.write(file, 0, b"abc", (), "c", (3, 4), 7)
    assert file.ledger.stamp == (3, 4)
    with pytest.raises(OSError, match="No space"):
        store.write(file, 0, b"0123456789", (), "c", (3, 5), 7)
    assert file.ledger.stamp == NO_STAMP
    store.release(file)
    store.close()
    header = header_of(str(next((path / "ledgers").glob("*/*"))))
    assert header is not None and header[:2] == (7, NO_STAMP)


def test_a_write_taken_in_parts(path: Path) -> None:
    disk = ShortDisk(room=4)
    store = Store.open(path, CLUSTER, 1, disk=disk)
    limited = disk.pwrite

    def pwrite(fd: int, data: object, offset: int) -> int:
        disk.room = 4
        return limited(fd, data, offset)  # type: ignore[arg-type]

    disk.pwrite = pwrite
    write(store, A, 1, b"0123456789")
    assert read(store, A) == b"\x000123456789"
    store.close()


def test_the_reserve(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A full target refuses to grow objects, overwrites and deletes go on, and it is said once."""
    caplog.set_level(logging.INFO)
    disk = FaultyDisk()
    store = Store.open(path, CLUSTER, 1, disk=disk, reserve=1000)
    assert store.space() == (1 << 41, (1 << 40) - 1000)
    write(store, A, 0, b"0123456789")
    disk.free = 1005
    store._allowance = 0
    for _ in range(2):
        with pytest.raises(OSError, match="No space"):
            write(store, A, 10, b"0123456789")
    assert read(store, A) == b"0123456789"
    write(store, A, 0, b"abc")
    write(store, A, 10, b"12345")
    assert caplog.text.count("is full") == 1
    assert store.space() == (1 << 41, 5)
    store.delete([A])
    disk.free = 5000
    write(store, A, 0, bytes(3000))
    assert "has room again" in caplog.text
    assert store.disk_errors == 0
    store.close()


def test_the_file_system_is_not_asked_at_each_write(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    write(store, A, 0, b"x")
    monkeypatch.setattr(store, "space", lambda: pytest.fail("asked"))
    for k in range(100):
        write(store, A, k * 1000, bytes(1000))


def test_beyond_all_offsets(store: Store) -> None:
    with pytest.raises(OSError, match="File too large") as caught:
        write(store, A, OFFSET_MAX, b"xx")
    assert caught.value.errno == errno.EFBIG
    assert store.disk_errors == 0

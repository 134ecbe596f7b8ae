"""Writes that the disk has lost: who is told, and when."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from ossd import store as store_module
from ossd.store import Disk, Store, file_name
from tests.ossd.disks import CLUSTER, FaultyDisk
from tests.ossd.storing import A, sync, write


def test_a_lost_write_is_told_to_each_writer_once(
    store: Store, disk: FaultyDisk, caplog: pytest.LogCaptureFixture
) -> None:
    write(store, A, 0, b"a", client="a")
    write(store, A, 1, b"b", client="b")
    disk.faults["fdatasync"] = [errno.EIO]
    assert sync(store, A, "third") == errno.EIO, "who found out"
    assert sync(store, A, "third") == 0
    assert sync(store, A, "a") == errno.EIO
    assert sync(store, A, "a") == 0
    assert sync(store, A, "b") == errno.EIO
    assert sync(store, A, "b") == 0
    assert store.disk_errors == 1
    assert "sync of" in caplog.text
    assert file_name(A) in caplog.text


def test_a_lost_write_is_remembered_until_it_is_told(store: Store, disk: FaultyDisk) -> None:
    """The object's descriptor comes up for closing; the sync that this takes fails."""
    write(store, A, 0, b"a", client="a")
    disk.faults["fdatasync"] = [errno.EIO]
    for ino in range(2, 30):
        write(store, (ino, 0), 0, b"x")
    assert len(store._table) <= 9
    assert sync(store, A, "a") == errno.EIO
    for ino in range(2, 12):
        write(store, (ino, 0), 0, b"x")
    assert A not in store._table, "now it may go"


def test_too_many_lost_writes(
    store: Store, disk: FaultyDisk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, path: Path
) -> None:
    monkeypatch.setattr(store_module, "OWING_MAX", 3)
    disk.faults["fdatasync"] = [errno.EIO] * 6
    for ino in range(1, 60):
        write(store, (ino, 0), 0, b"x")
    assert "are forgotten: there are too many" in caplog.text
    assert sum(f.book.owes for f in store._table.values()) <= 4
    assert len(store._table) <= 9


def test_lost_writes_at_the_end_make_another_incarnation(path: Path) -> None:
    """Nobody can be told any more, so everybody is: by the incarnation."""
    disk = FaultyDisk()
    store = Store.open(path, CLUSTER, 1, disk=disk)
    write(store, A, 0, b"a")
    disk.faults["fdatasync"] = [errno.EIO]
    store.close()
    again = Store.open(path, CLUSTER, 1)
    assert again.incarnation == store.incarnation + 1
    again.close()


def test_writes_lost_before_the_start(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The daemon died, and what it had left in the page cache cannot be written."""
    first = Store.open(path, CLUSTER, 1, boot="this")
    first.close()
    (path / "starts").write_text('incarnation = 5\nboot = "this"\nclean = false\nlost = false\n')

    class Broken(Disk):
        @staticmethod
        def sync_file_system(path: Path) -> None:
            raise OSError(errno.EIO, "Input/output error")

    store = Store.open(path, CLUSTER, 1, disk=Broken(), boot="this")
    assert store.incarnation == 6
    assert "writes from before this start are lost" in caplog.text
    store.close()


def test_a_sync_that_another_covers_asks_the_disk_nothing(store: Store, disk: FaultyDisk) -> None:
    write(store, A, 0, b"a")
    file = store.cached(A)
    assert file is not None
    upto = file.book.writes
    assert store.sync(file, upto, "c") == 0
    write(store, A, 1, b"b")
    disk.calls.clear()
    assert store.sync(file, upto, "d") == 0
    assert disk.calls == [], "b came after d's turn"
    store.release(file)


def test_a_failed_sync_of_the_directory(store: Store, disk: FaultyDisk) -> None:
    """A new object is not durable before its entry is."""
    write(store, A, 0, b"a")
    disk.faults["sync_directory"] = [errno.EIO]
    assert sync(store, A) == errno.EIO
    disk.calls.clear()
    assert sync(store, A) == 0
    assert "sync_directory" in disk.calls, "tried again"

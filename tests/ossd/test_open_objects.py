"""Objects kept open, their number bounded."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from ossd.store import Disk, Store
from tests.ossd.disks import CLUSTER, FaultyDisk
from tests.ossd.storing import A, read, write


def test_open_files_are_bounded_and_synced_before_they_are_closed(store: Store, disk: FaultyDisk) -> None:
    """A descriptor that is closed takes the news of lost writes with it."""
    for ino in range(1, 9):
        write(store, (ino, 0), 0, b"x")
    assert "fdatasync" not in disk.calls
    assert not store.has_room
    disk.calls.clear()
    write(store, (9, 0), 0, b"x")
    assert disk.calls[:3] == ["fdatasync", "sync_directory", "close"]
    assert len(store._table) == 8
    assert (1, 0) not in store._table
    assert read(store, (1, 0)) == b"x"
    disk.calls.clear()
    write(store, (1, 0), 0, b"y")
    assert "fdatasync" not in disk.calls, "nothing was to be synced of those closed for it"


def test_the_one_used_last_stays(store: Store) -> None:
    for ino in range(1, 9):
        write(store, (ino, 0), 0, b"x")
    read(store, (1, 0))
    write(store, (9, 0), 0, b"x")
    assert (1, 0) in store._table
    assert (2, 0) not in store._table


def test_files_in_use_stay(store: Store) -> None:
    held = []
    for ino in range(1, 12):
        file = store.fetch((ino, 0), create=True)
        assert file is not None
        held.append(file)
    assert len(store._table) == 11, "more than its bound, all in use"
    for file in held:
        store.release(file)
    for ino in range(12, 16):
        write(store, (ino, 0), 0, b"x")
    assert len(store._table) == 8


def test_two_readers_open_one_object(path: Path) -> None:
    """Both miss the table; one of the two descriptors is closed again."""
    first = threading.Barrier(2)
    store = Store.open(path, CLUSTER, 1)
    write(store, A, 0, b"x")
    store.close()

    class Slow(Disk):
        def __init__(self) -> None:
            self.opened: list[int] = []
            self.closed: list[int] = []

            def getxattr(fd: int, name: str) -> bytes:
                self.opened.append(fd)
                first.wait(10)  # both are past the look into the table
                return os.getxattr(fd, name)

            def close(fd: int) -> None:
                self.closed.append(fd)
                os.close(fd)

            self.getxattr, self.close = getxattr, close  # type: ignore[assignment]

    disk = Slow()
    store = Store.open(path, CLUSTER, 1, disk=disk)
    got: list[bytes | None] = []
    threads = [threading.Thread(target=lambda: got.append(read(store, A))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [b"x", b"x"]
    assert len(disk.opened) == 2
    assert len(disk.closed) == 1
    store.close()

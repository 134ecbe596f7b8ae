"""Power cuts at every system call, with every subset of what was not synced on disk: trims are neither forgotten
nor applied to newer data, and what was synced is there.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ossd.identity import format_directory
from ossd.objects import Truncations
from ossd.store import ObjectFile, Store, fanout_of, file_name
from tests.ossd.disks import CLUSTER, Crash, CrashDisk, put_back

KEY = (4711, 0)
TRIM: Truncations = ((1, 3),)


class Life:
    """What clients have been told by the time of the crash."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.file: ObjectFile | None = None
        self.unsettled: Truncations = ()
        """What the metadata service has clients pass along at the time."""
        self.ordered = False
        """Has the metadata service ordered the truncation?"""
        self.synced: list[str] = []

    def open(self) -> ObjectFile:
        if self.file is None:
            self.file = self.store.fetch(KEY, create=True)
            assert self.file is not None
        return self.file

    def write(self, offset: int, data: bytes, truncations: Truncations | None = None) -> None:
        passed = self.unsettled if truncations is None else truncations
        self.store.write(self.open(), offset, data, passed, "c")

    def sync(self, what: str) -> None:
        file = self.open()
        assert self.store.sync(file, file.book.writes, "c") == 0
        self.synced.append(what)

    def order(self) -> None:
        """The metadata service orders the truncation."""
        self.unsettled, self.ordered = TRIM, True

    def truncate(self) -> None:
        """Some client carries it out, and it is settled."""
        if not self.ordered:
            self.order()
        self.store.truncate(self.open(), TRIM, "c")
        self.unsettled = ()


def trim_then_write(life: Life) -> None:
    """Old data, truncated eagerly and settled; newer data above the cut."""
    life.write(0, b"OLDOLDOLD")
    life.sync("old")
    life.truncate()
    life.write(5, b"NEW")
    life.sync("new")


def trim_lazily(life: Life) -> None:
    """Nobody trims eagerly: the next write brings the truncation along."""
    life.write(0, b"OLDOLDOLD")
    life.sync("old")
    life.order()
    life.write(5, b"NEW")
    life.sync("new")
    life.truncate()
    life.write(5, b"NEW")
    life.sync("new")


def trim_unsynced_data(life: Life) -> None:
    """Old data never synced; after the settling a client that knows no truncation writes."""
    life.write(0, b"OLDOLDOLD")
    life.truncate()
    life.write(5, b"NEW", ())
    life.sync("new")


def trim_before_there_is_an_object(life: Life) -> None:
    """The column was empty when the truncation was settled."""
    life.truncate()
    life.write(5, b"NEW")
    life.sync("new")


def trim_twice(life: Life) -> None:
    """Reached by two clients that carry out the same truncation, data synced in between."""
    life.write(0, b"OLDOLDOLD")
    life.truncate()
    life.write(5, b"NEW")
    life.sync("new")
    life.truncate()


LIVES: list[Callable[[Life], None]] = [
    trim_then_write,
    trim_lazily,
    trim_unsynced_data,
    trim_before_there_is_an_object,
    trim_twice,
]


def calls_of(live: Callable[[Life], None], path: Path) -> int:
    """System calls of a whole life."""
    disk = CrashDisk(0)
    store = Store.open(path, CLUSTER, 1, disk=disk)
    life = Life(store)
    live(life)
    count = disk.count
    end(store, life)
    return count


def end(store: Store, life: Life) -> None:
    """Let go of everything without syncing, as a crash does."""
    if life.file is not None:
        store.release(life.file)
        store._table.clear()
        store._disk.close(life.file.fd)
    os.close(store._lock_fd)


def object_path(path: Path) -> Path:
    return path / "objects" / f"{fanout_of(KEY[0]):03x}" / file_name(KEY)


def ledger_path(path: Path) -> Path:
    return path / "ledgers" / f"{fanout_of(KEY[0]):03x}" / file_name(KEY)


@pytest.mark.parametrize("live", LIVES, ids=lambda f: f.__name__)
def test_power_cuts(live: Callable[[Life], None], tmp_path: Path) -> None:
    path = tmp_path / "t"
    format_directory(path, CLUSTER, 1)
    total = calls_of(live, path)
    assert total > 5
    states = 0
    for crash_at in range(1, total + 2):
        object_path(path).unlink(missing_ok=True)
        ledger_path(path).unlink(missing_ok=True)
        disk = CrashDisk(crash_at)
        store = Store.open(path, CLUSTER, 1, disk=disk)
        life = Life(store)
        try:
            live(life)
        except Crash:
            assert crash_at <= total
        else:
            assert crash_at == total + 1
        end(store, life)
        starts = (path / "starts").read_bytes()
        ledger = ledger_path(path).read_bytes() if ledger_path(path).exists() else b""
        for image in list(disk.image.outcomes()):
            # Nothing is promised of the ledger: it may be as it was last, or not there.
            kept = (ledger, b"")[states % 2]
            states += 1
            put_back(image, object_path(path))
            ledger_path(path).write_bytes(kept)
            (path / "starts").write_bytes(starts)
            check(path, life, f"crash at call {crash_at}, {image}, ledger of {len(kept)} bytes")
    assert states > total


def check(path: Path, life: Life, where: str) -> None:
    """What holds for any client after the crash, one that knows the truncation settled or one that does not."""
    store = Store.open(path, CLUSTER, 1, boot="")  # as after a power cut: the ledger is not trusted
    # Stale: a client that saw the truncation unsettled and has not looked since.
    for known in dict.fromkeys((life.unsettled, TRIM if life.ordered else ())):
        data = look(store, known)
        if life.ordered:
            # No byte from before the truncation above the cut.
            assert b"O" not in data[3:] and b"L" not in data[3:] and b"D" not in data[3:], where
        if "new" in life.synced:
            assert data[5:8] == b"NEW", f"{where}: synced data are gone, seen with {known}"
        elif "old" in life.synced:
            assert data.startswith(b"OLD" if life.ordered else b"OLDOLDOLD"), f"{where}: synced data are gone"
    settled = life.ordered and not life.unsettled
    if settled:
        # Who knows it settled writes after the crash; the others must not take that for data from before.
        file = store.fetch(KEY, create=True)
        assert file is not None
        store.write(file, 5, b"NEW", (), "c")
        store.release(file)
        assert look(store, TRIM)[5:8] == b"NEW", f"{where}: forgotten that it was carried out"
    # A late request that trims for good must not change what is seen.
    if settled or "new" in life.synced:
        file = store.fetch(KEY, create=True)
        assert file is not None
        store.truncate(file, TRIM, "late")
        store.write(file, 0, b"x", TRIM, "late")
        store.release(file)
        assert look(store, ())[5:8] == b"NEW", f"{where}: trimmed again"
    store.close()


def look(store: Store, known: Truncations) -> bytes:
    file = store.fetch(KEY, create=False)
    if file is None:
        return b""
    try:
        return bytes(store.read(file, 0, 100, known))
    finally:
        store.release(file)


def test_the_disk_itself(tmp_path: Path) -> None:
    """The model of a disk is as bad as it says: without fsync a number may be there without its trim."""
    disk = CrashDisk(0)
    fd = disk.open(str(tmp_path / "f"), 0o102)
    disk.pwrite(fd, b"abcdef", 0)
    disk.fdatasync(fd)
    disk.ftruncate(fd, 2)
    disk.setxattr(fd, "user.lockstep.trim", b"1")
    disk.fdatasync(fd)
    seen = {(i.exists, i.data, i.trim) for i in disk.image.outcomes()}
    assert seen == {
        (True, b"abcdef", None),
        (True, b"ab", None),
        (True, b"abcdef", b"1"),
        (True, b"ab", b"1"),
        (False, b"", None),
    }
    disk.fsync(fd)
    disk.sync_directory(tmp_path)
    assert [(i.exists, i.data, i.trim) for i in disk.image.outcomes()] == [(True, b"ab", b"1")]
    disk.close(fd)

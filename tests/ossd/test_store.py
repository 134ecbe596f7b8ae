"""Objects on a local file system: contents, restart, space, errors, the bounded table of open files."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ossd import store as store_module
from ossd.identity import StoreRefused
from ossd.ledger import BadBlock
from ossd.objects import OFFSET_MAX, Truncations, pending
from ossd.store import TRIM_ATTR, Buffer, Disk, Key, Store, file_name
from tests.ossd.disks import CLUSTER, FaultyDisk, ShortDisk, copy_of

A: Key = (1, 0)
B: Key = (1, 1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "t"


@pytest.fixture
def disk() -> FaultyDisk:
    return FaultyDisk()


@pytest.fixture
def store(path: Path, disk: FaultyDisk) -> Iterator[Store]:
    made = Store.open(path, CLUSTER, 1, disk=disk, open_max=8)
    disk.calls.clear()
    yield made
    made.close()


def write(store: Store, key: Key, offset: int, data: Buffer, known: Truncations = (), client: str = "c") -> None:
    file = store.fetch(key, create=True)
    assert file is not None
    try:
        store.write(file, offset, data, known, client)
    finally:
        store.release(file)


def read(store: Store, key: Key, offset: int = 0, length: int = 1 << 20, known: Truncations = ()) -> bytes | None:
    file = store.fetch(key, create=False)
    if file is None:
        return None
    try:
        at_once = store.read_at_once(file, offset, length, known)
        data = store.read(file, offset, length, known)
        assert at_once is None or at_once == data
        return data
    finally:
        store.release(file)


def truncate(store: Store, key: Key, known: Truncations, client: str = "c") -> None:
    file = store.fetch(key, create=True)
    assert file is not None
    try:
        store.truncate(file, known, client)
    finally:
        store.release(file)


def sync(store: Store, key: Key, client: str = "c") -> int:
    file = store.cached(key)
    assert file is not None, "it is open as long as there is anything to sync"
    try:
        return store.sync(file, file.book.writes, client)
    finally:
        store.release(file)


def files(path: Path) -> set[str]:
    return {p.name for p in (path / "objects").glob("*/*")}


# --- contents -------------------------------------------------------------------------------------


def test_bytes_come_back(store: Store) -> None:
    assert read(store, A) is None
    write(store, A, 0, b"hello")
    write(store, A, 5, bytearray(b" world"))
    write(store, B, 3, memoryview(b"xyz"))
    assert read(store, A) == b"hello world"
    assert read(store, A, 6, 3) == b"wor"
    assert read(store, A, 10, 100) == b"d"
    assert read(store, A, 11, 1) == b""
    assert read(store, A, OFFSET_MAX, 1) == b""
    assert read(store, B) == b"\0\0\0xyz", "a hole reads as zeros"


def test_large_data(store: Store) -> None:
    data = os.urandom(8 << 20)
    write(store, A, 4096, data)
    assert read(store, A, 4096, 8 << 20) == data


def test_the_name_of_a_file_tells_the_object(store: Store, path: Path) -> None:
    """For people who look at a disk, and for tools that check it."""
    write(store, (0x1234, 5), 0, b"x")
    assert files(path) == {"0000000000001234.0005"}
    assert file_name((2**63 - 1, 65535)) == "7fffffffffffffff.ffff"


def test_a_trim(store: Store) -> None:
    write(store, A, 0, b"0123456789")
    write(store, A, 12, b"new", ((1, 4),))
    assert read(store, A) == b"0123" + bytes(8) + b"new", "old bytes never show again"
    write(store, A, 4, b"more", ((1, 4),))
    assert read(store, A) == b"0123more" + bytes(4) + b"new", "carried out once"
    assert read(store, A, known=((1, 4), (2, 6))) == b"0123mo", "a read looks no further, and changes nothing"
    assert read(store, A) == b"0123more" + bytes(4) + b"new"


def test_restart(path: Path) -> None:
    store = Store.open(path, CLUSTER, 1)
    write(store, A, 0, b"0123456789")
    truncate(store, A, ((3, 4),))
    uuid = store.identity.uuid
    store.close()
    store = Store.open(path, CLUSTER, 1)
    assert store.identity.uuid == uuid
    write(store, A, 4, b"abc", ((3, 4),))
    assert read(store, A) == b"0123abc"
    store.close()


def test_restart_without_a_clean_stop(path: Path, tmp_path: Path) -> None:
    """What the page cache holds outlives the daemon, number and all."""
    store = Store.open(path, CLUSTER, 1, boot="this")
    write(store, A, 0, b"0123456789")
    write(store, A, 4, b"abc", ((3, 4),))
    left = copy_of(path, tmp_path / "left")
    store.close()
    again = Store.open(left, CLUSTER, 1, boot="this")
    assert again.incarnation == store.incarnation
    assert read(again, A, known=((3, 4),)) == b"0123abc"
    again.close()


def test_truncate_makes_an_object_where_there_is_none(store: Store, path: Path) -> None:
    """1. A truncates an empty column to 0, it is settled. 2. B writes. 3. C, who saw the truncation unsettled, reads
    and writes: it must not remove what B has written."""
    truncate(store, A, ((1, 0),))
    assert files(path) == {file_name(A)}
    write(store, A, 0, b"by B")
    assert read(store, A, known=((1, 0),)) == b"by B"
    write(store, A, 10, b"C", ((1, 0),))
    assert read(store, A) == b"by B" + bytes(6) + b"C"


def test_truncate_to_more_than_there_is(store: Store) -> None:
    write(store, A, 0, b"abc")
    truncate(store, A, ((1, 2**64 - 1),))
    assert read(store, A) == b"abc", "the file's size is the metadata's; the rest reads as zeros by the client"


def test_truncate_again_costs_nothing(store: Store, disk: FaultyDisk) -> None:
    write(store, A, 0, b"abc")
    truncate(store, A, ((1, 2),))
    disk.calls.clear()
    truncate(store, A, ((1, 2),))
    truncate(store, A, ())
    assert disk.calls == []


def test_delete(store: Store, path: Path, disk: FaultyDisk) -> None:
    write(store, A, 0, b"a")
    write(store, B, 0, b"b")
    disk.calls.clear()
    store.delete([A, (7, 0)])
    assert disk.calls.count("sync_directory") == 2, "also where there was nothing: an earlier try may have got so far"
    assert read(store, A) is None
    assert files(path) == {file_name(B)}
    store.delete([A])
    write(store, A, 0, b"again")
    assert read(store, A) == b"again"


def test_delete_while_somebody_syncs(store: Store, disk: FaultyDisk) -> None:
    """A sync holds the object open in its thread; the file is closed when it gives it back."""
    write(store, A, 0, b"a")
    file = store.cached(A)
    assert file is not None
    store.delete([A])
    assert "close" not in disk.calls
    assert store.sync(file, file.book.writes, "c") == 0
    store.release(file)
    assert disk.calls[-1] == "close"


def test_counting(store: Store, path: Path) -> None:
    """What is made and deleted while it counts is counted right."""
    for ino in range(1, 40):
        write(store, (ino, 0), 0, b"x")
    store.delete([(1, 0), (1, 0), (99, 0)])

    def meanwhile(where: int) -> None:
        if where == 500:
            for ino in range(100, 140):
                write(store, (ino, 0), 0, b"x")
            store.delete([(k, 0) for k in range(2, 12)])

    store.count_objects(meanwhile)
    assert store.objects == 38 + 40 - 10
    store.delete([(20, 0), (20, 0)])
    write(store, A, 0, b"x")
    assert store.objects == 68
    assert len(files(path)) == 68


def test_counting_can_be_stopped(store: Store) -> None:
    seen: list[int] = []

    def stop(where: int) -> None:
        seen.append(where)
        store.stop_counting()

    store.count_objects(stop)
    assert seen == [0]


class StoreMachine(RuleBasedStateMachine):
    """A store with a tiny table of open files against a dictionary, over restarts of both kinds."""

    keys = st.tuples(st.integers(1, 3), st.integers(0, 1))
    truncations = st.lists(st.tuples(st.integers(1, 5), st.integers(0, 60)), max_size=2).map(tuple)

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.store = Store.open(self.directory / "t", CLUSTER, 1, open_max=2)
        self.model: dict[Key, tuple[bytes, int]] = {}

    def trimmed(self, key: Key, known: Truncations) -> tuple[bytes, int]:
        data, last = self.model.get(key, (b"", 0))
        length, last = pending(last, known)
        return (data if length is None else data[:length]), last

    @rule(key=keys, offset=st.integers(0, 50), data=st.binary(min_size=1, max_size=20), known=truncations)
    def write(self, key: Key, offset: int, data: bytes, known: Truncations) -> None:
        write(self.store, key, offset, data, known)
        old, last = self.trimmed(key, known)
        self.model[key] = (old.ljust(offset, b"\0")[:offset] + data + old[offset + len(data) :], last)

    @rule(key=keys, offset=st.integers(0, 50), length=st.integers(0, 50), known=truncations)
    def read(self, key: Key, offset: int, length: int, known: Truncations) -> None:
        got = read(self.store, key, offset, length, known)
        assert (got is None) == (key not in self.model)
        assert (got or b"") == self.trimmed(key, known)[0][offset : offset + length]

    @rule(key=keys, known=truncations)
    def truncate(self, key: Key, known: Truncations) -> None:
        truncate(self.store, key, known)
        self.model[key] = self.trimmed(key, known)

    @rule(key=keys)
    def delete(self, key: Key) -> None:
        self.store.delete([key])
        self.model.pop(key, None)

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.store = Store.open(self.directory / "t", CLUSTER, 1, open_max=2)

    @rule()
    def crash(self) -> None:
        """The daemon dies, the machine does not."""
        for file in self.store._table.values():
            os.close(file.fd)
        os.close(self.store._lock_fd)
        before = self.store.incarnation
        self.store = Store.open(self.directory / "t", CLUSTER, 1, open_max=2)
        assert self.store.incarnation == before

    @invariant()
    def bounded(self) -> None:
        assert len(self.store._table) <= 2
        assert all(not f.users and not f.gone for f in self.store._table.values())

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.directory)


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(max_examples=6, stateful_step_count=25, deadline=None)


# --- the table of open files ----------------------------------------------------------------------


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


# --- lost writes ----------------------------------------------------------------------------------


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
    first._lost = True  # so that close() does not make it a clean stop...
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


# --- errors and space -----------------------------------------------------------------------------


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


# --- start ----------------------------------------------------------------------------------------


def test_two_processes(path: Path) -> None:
    store = Store.open(path, CLUSTER, 1)
    with pytest.raises(StoreRefused, match="another process"):
        Store.open(path, CLUSTER, 1)
    store.close()
    Store.open(path, CLUSTER, 1).close()


def test_another_target(path: Path) -> None:
    Store.open(path, CLUSTER, 1).close()
    with pytest.raises(StoreRefused, match="is target 1, and was to be served as target 2"):
        Store.open(path, CLUSTER, 2)
    Store.open(path, CLUSTER, 1).close()


def test_a_file_system_without_attributes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def setxattr(*args: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(os, "setxattr", setxattr)
    with pytest.raises(StoreRefused, match="no extended attributes of users; use ext4, XFS"):
        Store.open(path, CLUSTER, 1)
    monkeypatch.undo()
    Store.open(path, CLUSTER, 1).close()

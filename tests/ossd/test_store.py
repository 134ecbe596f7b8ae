"""Objects on a local file system: contents, restart, what a random sequence of operations leaves."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ossd.identity import StoreRefused
from ossd.objects import OFFSET_MAX, Truncations, pending
from ossd.store import Key, Store, file_name
from tests.ossd.disks import CLUSTER, FaultyDisk, copy_of
from tests.ossd.storing import A, B, files, read, truncate, write


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

"""Checksums and stamps: whatever happens to an object, a read gives what was written or says so."""

from __future__ import annotations

import errno
import os
import random
import shutil
from pathlib import Path

import pytest

from ossd import clearing, identity, objectfile, resync
from ossd import ledger as ledger_module
from ossd import store as store_module
from ossd.ledger import BLOCK, NO_STAMP, BadBlock, header_of
from ossd.objectfile import fanout_of
from ossd.store import Key, Store, file_name
from tests.ossd.disks import CLUSTER, FaultyDisk
from tests.ossd.storing import read, truncate, write

A: Key = (1, 0)
FANOUT = 64


@pytest.fixture(autouse=True)
def few_directories(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stores of 2 * 64 directories, not 2 * 1024: making and deleting them was most of these tests' time."""
    for module in (identity, clearing, resync):
        monkeypatch.setattr(module, "FANOUT", FANOUT)
    for shared in (objectfile, store_module):
        monkeypatch.setattr(shared, "fanout_of", lambda ino: fanout_of(ino) % FANOUT)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "t"


def object_file(path: Path, tree: str = "objects", key: Key = A) -> Path:
    return next((path / tree).glob(f"*/{file_name(key)}"))


def flip(file: Path, at: int) -> None:
    """A bit of the disk's has changed."""
    with file.open("r+b") as there:
        there.seek(at)
        (byte,) = there.read(1)
        there.seek(at)
        there.write(bytes([byte ^ 4]))


def test_the_blocks_that_a_write_leaves_something_of_are_those_that_it_reads(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.open(path, CLUSTER, 1)
    write(store, A, 0, bytes(2 * BLOCK + 100))
    file = store.cached(A)
    assert file is not None
    edges = [k * BLOCK + d for k in range(4) for d in (-1, 0, 1, 99, 100, 101) if k * BLOCK + d >= 0]
    real = os.pread
    seen: list[int] = []

    def pread(fd: int, length: int, offset: int) -> bytes:
        seen.append(offset // BLOCK)
        return real(fd, length, offset)

    for offset in edges:
        for end in (e for e in edges if e > offset):
            with monkeypatch.context() as context:
                context.setattr(os, "pread", pread)
                seen.clear()
                file.ledger.entries_for(file.fd, offset, bytes(end - offset))
            assert file.ledger.kept(offset, end) == seen, (offset, end)
    store.release(file)
    store.close()


@pytest.mark.parametrize("seed", range(20))
def test_any_writes_and_cuts_are_read_back(path: Path, seed: int) -> None:
    """Around block boundaries, with holes, over restarts, beside a plain byte string."""
    rng = random.Random(seed)
    edges = [k * BLOCK + d for k in range(4) for d in (-5, -1, 0, 1, 5) if k * BLOCK + d >= 0]
    expected = bytearray()
    trims: tuple[tuple[int, int], ...] = ()
    store = Store.open(path, CLUSTER, 1)
    for step in range(30):
        what = rng.random()
        if what < 0.6:
            offset, size = rng.choice(edges), rng.choice((1, 3, 100, BLOCK - 1, BLOCK, BLOCK + 7))
            data = rng.randbytes(size)
            write(store, A, offset, data, trims)
            expected += bytes(max(0, offset + size - len(expected)))
            expected[offset : offset + size] = data
        elif what < 0.8:
            trims = ((step + 1, rng.choice(edges)),)
            truncate(store, A, trims)
            del expected[trims[0][1] :]
        elif what < 0.9:
            store.close()
            store = Store.open(path, CLUSTER, 1)
        offset, size = rng.choice(edges), rng.choice((1, 100, BLOCK, 3 * BLOCK))
        assert bytes(read(store, A, offset, size) or b"") == bytes(expected[offset : offset + size])
    assert bytes(read(store, A) or b"") == bytes(expected)
    assert store.bad_blocks == 0
    store.close()


@pytest.mark.parametrize("size", [1, 100, BLOCK, BLOCK + 100, 5 * BLOCK + 3])
def test_a_flipped_bit_is_found_wherever_it_is(path: Path, size: int) -> None:
    store = Store.open(path, CLUSTER, 1)
    write(store, A, 0, random.Random(size).randbytes(size))
    for at in {0, size // 2, size - 1}:
        flip(object_file(path), at)
        with pytest.raises(BadBlock) as caught:
            read(store, A, at, 1)
        assert caught.value.block == at // BLOCK
        assert caught.value.errno == errno.EIO
        flip(object_file(path), at)
    assert len(read(store, A) or b"") == size
    store.close()


def test_a_write_into_a_bad_block_does_not_hide_it(path: Path) -> None:
    """What the write leaves of the block would get a sum that says it is good."""
    store = Store.open(path, CLUSTER, 1)
    write(store, A, 0, b"x" * 1000)
    flip(object_file(path), 5)
    with pytest.raises(BadBlock):
        write(store, A, 500, b"y")
    write(store, A, 0, b"z" * 1000)
    assert read(store, A) == b"z" * 1000, "written over as a whole it is good again"
    store.close()


@pytest.mark.parametrize("point", range(1, 4))
def test_a_daemon_killed_in_the_middle_of_a_write(path: Path, point: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data is there and its sums are not, or half of the data: nothing that was answered is lost by it."""
    store = Store.open(path, CLUSTER, 1)
    write(store, A, 0, b"a" * (2 * BLOCK))
    file = store.fetch(A, create=False)
    assert file is not None
    entries = file.ledger.entries_for(file.fd, 10, b"b" * BLOCK)
    file.ledger.begin(0, 2)
    if point >= 2:
        os.pwrite(file.fd, b"b" * (BLOCK // 2), 10)
    if point >= 3:
        os.pwrite(file.ledger.fd, entries, ledger_module.HEADER_SIZE)
    store.release(file)
    killed = path.parent / "killed"
    shutil.copytree(path, killed)
    store.close()
    store = Store.open(killed, CLUSTER, 1)
    found = bytes(read(store, A) or b"")
    assert found == (b"a" * (2 * BLOCK) if point == 1 else b"a" * 10 + b"b" * (BLOCK // 2) + found[10 + BLOCK // 2 :])
    assert found.endswith(b"a" * (BLOCK // 2))
    assert header_of(str(object_file(killed, "ledgers"))) == (0, NO_STAMP, store.incarnation)
    store.close()


def test_stamps_are_kept(path: Path) -> None:
    store = Store.open(path, CLUSTER, 1)
    file = store.fetch(A, create=True)
    assert file is not None
    store.write(file, 0, b"x", (), "c", (3, 9), 7)
    store.release(file)
    incarnation = store.incarnation
    store.close()
    assert header_of(str(object_file(path, "ledgers"))) == (7, (3, 9), incarnation)
    assert header_of(str(path / "none")) is None


def test_a_ledger_that_is_gone_is_made_again(path: Path) -> None:
    """A power cut may take it, as it is not synced: the data counts."""
    store = Store.open(path, CLUSTER, 1)
    write(store, A, 0, b"x" * (BLOCK + 1))
    store.close()
    object_file(path, "ledgers").unlink()
    store = Store.open(path, CLUSTER, 1)
    assert len(read(store, A) or b"") == BLOCK + 1
    file = store.fetch(A, create=False)
    assert file is not None and file.ledger.stamp == NO_STAMP and file.ledger.incarnation == 0
    store.release(file)
    store.close()


def test_a_deleted_object_leaves_no_ledger(path: Path) -> None:
    store = Store.open(path, CLUSTER, 1, disk=FaultyDisk())
    write(store, A, 0, b"x")
    store.delete([A])
    assert list((path / "ledgers").glob("*/*")) == []
    write(store, A, 5, b"y")
    assert read(store, A) == bytes(5) + b"y"
    store.close()


def test_sums_of_pieces_that_follow_each_other_need_no_reading(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log written line by line reads nothing back."""
    store = Store.open(path, CLUSTER, 1)
    write(store, A, 0, b"first line\n")
    monkeypatch.setattr(ledger_module.os, "pread", None)
    write(store, A, 11, b"second line\n")
    monkeypatch.undo()
    assert read(store, A) == b"first line\nsecond line\n"
    store.close()


def test_an_old_format_is_refused(path: Path) -> None:
    Store.open(path, CLUSTER, 1).close()
    text = (path / "format").read_text().replace("format = 2", "format = 1")
    (path / "format").write_text(text)
    with pytest.raises(Exception, match=r"format 1 is not known here \(known: 2\)"):
        Store.open(path, CLUSTER, 1)

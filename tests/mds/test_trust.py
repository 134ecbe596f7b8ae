"""A large state is used without reading it first if there is no reason to doubt; whatever was done to it is one."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import trio

from daemon.exits import DIED_AT, DIED_OF
from mds import audit, trust
from mds.schema import INODES
from mds.store import Store, StoreCorrupt, StoreDamaged, StoreFailed
from mds.verify import trusted_or_verified
from tests.faults.damage import STATE_DAMAGE, deleted, no_data_file, one_bit
from tests.mds.test_verify import contents, write


def wait_for_clock(path: Path) -> None:
    """Until a file written now has another time than *path*: the file system's clock ticks every few milliseconds."""
    probe = path.with_name("probe")
    before = path.stat().st_mtime_ns
    while True:
        probe.write_bytes(b"")
        if probe.stat().st_mtime_ns > before:
            probe.unlink()
            return


@pytest.fixture(params=["stopped", "killed"])
def state(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    path = tmp_path / "state"
    store = Store.open(path)
    for seed in range(5):
        write(store, Random(seed))
    store.close()
    if request.param == "stopped":
        trust.imprint(path)
    wait_for_clock(path / trust.DATA)
    return path


def test_what_nobody_touched_is_not_read(state: Path) -> None:
    assert not trusted_or_verified(state, 0)
    assert trusted_or_verified(state), "a small one is"
    expected = contents(state)
    assert not trusted_or_verified(state, 0), "looking at it changes nothing"
    assert contents(state) == expected


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("hurt", [h for h in STATE_DAMAGE if h not in (deleted, no_data_file)])
def test_damage_while_it_was_stopped_is_found(state: Path, hurt: Callable[[Path, Random], None], seed: int) -> None:
    expected = contents(Path(shutil.copytree(state, state.with_name("good"))))
    hurt(state, Random(seed))
    try:
        assert trusted_or_verified(state, 0), "it is read whole"
    except StoreCorrupt:
        return
    assert contents(state) == expected


def test_an_imprint_sees_what_leaves_no_trace(tmp_path: Path) -> None:
    """A disk that gives other bytes than it was given changes no time of the file."""
    path = tmp_path / "state"
    store = Store.open(path)
    write(store, Random(1))
    store.close()
    trust.imprint(path)
    before = (path / trust.DATA).stat()
    one_bit(path, Random(1))
    os.utime(path / trust.DATA, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert trust.is_trusted(path) is None


def test_a_change_voids_the_imprint(state: Path) -> None:
    store = Store.open(state)
    write(store, Random(7))
    store.close()
    assert not (state / trust.IMPRINT).exists()
    assert trust.is_trusted(state) == "nobody has touched it since it was written"


def test_after_a_power_cut_it_is_read(state: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stopped = (state / trust.IMPRINT).exists()
    other = tmp_path / "boot_id"
    other.write_text("of another run of the kernel\n")
    monkeypatch.setattr(trust, "_BOOT_ID", other)
    assert trusted_or_verified(state, 0) == (not stopped)


def test_a_reader_that_died_of_what_it_read_is_a_reason(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DIED_OF, "SIGSEGV")
    assert trusted_or_verified(state, 0)


@pytest.mark.parametrize(("when", "trusted"), [("before the commit", False), ("after it", True)])
def test_a_commit_that_was_cut_short_is_told_from_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str, trusted: bool
) -> None:
    """1. The replica is killed while LMDB writes: the file is another one than was noted. 2. Its watchdog starts it."""
    path = tmp_path / "state"
    store = Store.open(path)
    write(store, Random(1))
    noted = (path / trust.NOTE).read_bytes()
    wait_for_clock(path / trust.DATA)
    early = time.time_ns()
    wait_for_clock(path / trust.NOTE)
    write(store, Random(2))
    store.close()
    (path / trust.NOTE).write_bytes(noted)
    wait_for_clock(path / trust.DATA)
    assert trust.is_trusted(path) is None
    monkeypatch.setenv(DIED_AT, str(early if when == "before the commit" else time.time_ns()))
    assert (trust.is_trusted(path) is not None) == trusted


@pytest.mark.parametrize("name", [trust.NOTE, trust.IMPRINT])
def test_half_a_note_says_nothing(state: Path, name: str) -> None:
    for path in (state / trust.NOTE, state / trust.IMPRINT):
        if path.name == name and path.exists():
            path.write_bytes(path.read_bytes()[:-1])
        elif path.exists():
            path.unlink()
    assert trusted_or_verified(state, 0)


@pytest.mark.parametrize("damaged", [False, True])
async def test_the_audit_reads_a_state_in_use(
    state: Path, damaged: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A record is lost, which no checksum of its own can show. It is found, by a process beside the one that serves."""
    caplog.set_level("INFO")
    monkeypatch.setattr(audit, "BEGIN_S", 0.0)
    if damaged:
        import lmdb

        with lmdb.open(str(state), max_dbs=32) as env:
            db = env.open_db(INODES.name.encode())
            with env.begin(write=True, db=db) as txn:
                txn.delete(next(iter(txn.cursor()))[0])
    store = Store.open(state)
    said: list[Exception] = []
    over = trio.Event()

    def die(error: Exception) -> None:
        said.append(error)
        over.set()

    monkeypatch.setattr(audit.log, "info", lambda *args: over.set())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(audit.audit, lambda: store, False, die)
        with trio.fail_after(60):
            await over.wait()
        nursery.cancel_scope.cancel()
    assert [type(error) for error in said] == ([StoreDamaged] if damaged else [])
    write(store, Random(11))
    store.close()


def test_a_copy_that_nobody_takes_ends(state: Path) -> None:
    store = Store.open(state)
    read_end, write_end = os.pipe()
    os.close(read_end)
    with pytest.raises(StoreFailed, match="cannot be copied"):
        store.copy_into(write_end)
    os.close(write_end)
    store.close()


def test_a_damaged_state_is_set_aside_once(state: Path) -> None:
    assert audit.set_aside(state)
    assert not state.exists()
    state.mkdir()
    assert not audit.set_aside(state), "the second time within the hour it is the disk"
    assert state.exists()

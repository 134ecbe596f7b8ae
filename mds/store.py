"""The replica's state on disk: the only module that knows lmdb.

What is applied is seen at once and written later.  Effects gather in the *current layer*, a dict per table in memory;
:meth:`Store.freeze` makes it immutable, :meth:`Store.write` puts a frozen layer into LMDB in one synced transaction (in
a worker thread), :meth:`Store.release` drops it and moves the read snapshot on.  Reads look at the current layer, the
frozen one and the snapshot, in that order.  A crash loses whole layers from the end, never part of one: the state on
disk is always that of one moment between two batches, and the log is replayed from the position stored with it.

On disk each record carries a checksum, and the environment the sum of them (:mod:`mds.seal`).

Threads: everything belongs to the event loop's thread but :meth:`Store.write` and :meth:`Store.copy_to`, which block.
LMDB is used in its default durable mode; no flag that lets a power cut corrupt it is ever set.
"""

from __future__ import annotations

import contextlib
import os
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

import lmdb

from mds import trust
from mds.layer import MISSING, Effects, Layer
from mds.loan import SLICE, Loan
from mds.schema import META, META_SCHEMA, SCHEMA_VERSION, TABLES, Table
from mds.seal import SUM_MASK, opened, part_of_sum, sealed, sum_of_seals
from wire.codec import pack, unpack_untrusted
from wire.errors import WireError

MAP_SIZE: Final = 1 << 30
"""Address space reserved for a new store, not disk space; it doubles by itself."""
MAP_SIZE_MAX: Final = 1 << 45
"""32 TiB: beyond this something is wrong and growing on would only fill the disk."""
SCAN_FIRST: Final = 32
SCAN_CHUNK: Final = 512
"""A scan fetches so many records from LMDB at a time: first few, for a caller that wants one, then more."""
SORT_RUN: Final = 16384
"""Keys sorted in one go when a layer is written: sorting holds the interpreter lock, a few milliseconds at most."""
READ_CHUNK: Final = 512
"""Records read at a time where all are: between two pauses, if it is to be slow."""
RANGES: Final = 11
"""A table is read in so many ranges of keys, by any number of processes."""
RANGE_MIN: Final = 512
"""Records: a smaller table is read in one go."""
RANGES_MAX: Final = RANGES * len(TABLES)
KEY_MAX: Final = 8 + 255
"""Our longest key, an inode number and a name; LMDB takes 511 bytes."""

SUMS: Final = b"sums"
"""LMDB's table beside ours with one record: the sum of all seals."""
SUM_KEY: Final = b"sum"

_DAMAGE: Final = (
    lmdb.CorruptedError,
    lmdb.InvalidError,
    lmdb.VersionMismatchError,
    lmdb.PageNotFoundError,
    lmdb.IncompatibleError,
    lmdb.NotFoundError,
    lmdb.PanicError,
)
"""What lmdb says when the files are not as it left them. All else (no space, no permission, opened twice) is no reason
to advise that they be removed."""


class StoreCorrupt(Exception):
    """The state directory cannot be used; the text names it, what is wrong, and how to recover."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(path, what)
        self.path = path
        self.what = what

    def __str__(self) -> str:
        return (
            f"{self.path}: {self.what}. To recover, stop this replica and remove that directory: "
            "it takes the whole state from another replica when it starts again."
        )


class StoreDamaged(StoreCorrupt):
    """As that, and it is what the disk gives that is wrong: another replica's state is not."""


class StoreFailed(Exception):
    """The disk refused a write (full, or broken); the text says which. Nothing of the layer is stored."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(path, what)
        self.path = path
        self.what = what

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


@dataclass(frozen=True, slots=True)
class Whole:
    """What was read of a state that is to be read whole, and what it must come to."""

    records: int = 0
    total: int = 0
    """The sum of their seals."""
    all_records: int = 0
    all_total: int = 0


class Store:
    """See the module. Make one with :meth:`open`."""

    def __init__(self, path: Path, env: Any, dbs: list[Any]) -> None:
        self.path = path
        self._env = env
        *self._dbs, self._sums = dbs
        self._read = env.begin()
        self._current = Layer()
        self._tables = self._current.tables
        self._frozen: Layer | None = None
        self._undo: list[tuple[int, bytes, Any]] | None = None
        self._effects: Effects = []
        self._trial: tuple[list[tuple[int, bytes, Any]], Effects] | None = None
        # Held around every use of the read snapshot: growing the map moves it, in the worker thread.
        self._map_lock = threading.Lock()
        # Copies that run: the map must not be moved under them.
        self._copies = 0
        self._no_copies = threading.Condition()
        self._loan = Loan()

    @classmethod
    def open(cls, path: Path, map_size: int = MAP_SIZE) -> Store:
        """The store in *path*, made if it is not there. Raises :class:`StoreCorrupt`, :class:`StoreFailed`."""
        env = None
        try:
            path.mkdir(parents=True, exist_ok=True)
            data = path / "data.mdb"
            on_disk = data.stat().st_size if data.exists() else 0
            env = lmdb.open(str(path), max_dbs=len(TABLES) + 1, map_size=max(map_size, 2 * on_disk), mode=0o600)
            assert env.max_key_size() >= KEY_MAX, "the longest name fits into a key"
            if on_disk:
                _look_at_length(path, env, on_disk)
            dbs = cls._open_tables(path, env)
            if not on_disk:
                _sync_directory(path)
                _sync_directory(path.parent)
            return cls(path, env, dbs)
        except (lmdb.Error, OSError, WireError) as exc:
            _close(env)
            raise _explained(path, "cannot be opened", exc) from exc
        except StoreCorrupt:
            _close(env)
            raise

    @staticmethod
    def _open_tables(path: Path, env: Any) -> list[Any]:
        new = env.stat()["entries"] == 0
        with env.begin(write=True) as txn:
            try:
                names = [*(t.name.encode() for t in TABLES), SUMS]
                dbs = [env.open_db(name, txn=txn, create=new) for name in names]
            except lmdb.NotFoundError as exc:
                raise StoreCorrupt(path, "it holds an LMDB environment that is not a LockstepFS state") from exc
            if new:
                first = sealed(META.number, META_SCHEMA, pack((SCHEMA_VERSION,)))
                txn.put(META_SCHEMA, first, db=dbs[META.number])
                txn.put(SUM_KEY, part_of_sum(first).to_bytes(8, "big"), db=dbs[-1])
                return dbs
            raw = txn.get(META_SCHEMA, db=dbs[META.number])
            value = opened(META.number, META_SCHEMA, raw) if raw is not None else None
            version = unpack_untrusted(value) if value is not None else None
            if version != (SCHEMA_VERSION,):
                raise StoreCorrupt(path, f"its schema version is {version!r}, this program's is {SCHEMA_VERSION}")
        return dbs

    @classmethod
    def read_whole(
        cls, path: Path, turns: Iterable[int] = range(RANGES_MAX), pace: Callable[[], None] | None = None
    ) -> Whole:
        """Read everything in *path*, or what other processes leave: *turns* gives numbers of ranges of keys, from 0 on,
        beyond the last, too. Raises :class:`StoreCorrupt` where something is not what was written there.

        Damage may as well kill the process; :mod:`mds.verify` is for that. With *pace*, which is called after each few
        records, the state may be in use by another process.
        """
        data = path / "data.mdb"
        if not data.exists() or not data.stat().st_size:
            return Whole()
        env = None
        try:
            env = lmdb.open(str(path), max_dbs=len(TABLES) + 1, readonly=True, lock=pace is not None)
            _look_at_length(path, env, data.stat().st_size)
            if not env.stat()["entries"]:
                return Whole()
            with env.begin() as txn:
                return _read_ranges(path, env, txn, turns, pace or _at_once)
        except (lmdb.Error, OSError) as exc:
            raise _explained(path, "cannot be read", exc) from exc
        finally:
            _close(env)

    # -- reading

    def get(self, table: Table, key: bytes) -> bytes | None:
        """The value of *key*, written to LMDB or not."""
        n = table.number
        value = self._tables[n].get(key, MISSING)
        if value is not MISSING:
            return value  # type: ignore[return-value]
        if self._frozen is not None:
            value = self._frozen.tables[n].get(key, MISSING)
            if value is not MISSING:
                return value  # type: ignore[return-value]
        try:
            with self._map_lock:
                stored: bytes | None = self._read.get(key, None, self._dbs[n])
        except lmdb.Error as exc:
            raise _explained(self.path, "cannot be read", exc) from exc
        return None if stored is None else self._opened(n, key, stored)

    def _opened(self, n: int, key: bytes, stored: bytes) -> bytes:
        value = opened(n, key, stored)
        if value is None:
            raise StoreDamaged(self.path, f"the checksum of a record of {TABLES[n].name} is wrong")
        return value

    def scan(self, table: Table, start: bytes, stop: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        """Records with start <= key < stop (None: to the end) in order of key.

        The store must not be changed between two steps of the scan; take what is to be changed into a list first.
        """
        n = table.number
        below = self._scan_disk(n, start, stop)
        for layer in (self._frozen, self._current):
            if layer is not None and layer.tables[n]:
                below = _overlay(below, layer.keys(n, start, stop), layer.tables[n])
        return below

    def _scan_disk(self, n: int, start: bytes, stop: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        db = self._dbs[n]
        size = SCAN_FIRST
        while True:
            chunk: list[tuple[bytes, bytes]] = []
            try:
                # A cursor lives for one chunk: between chunks the caller may take its time, or never come back.
                with self._map_lock, self._read.cursor(db) as cursor:
                    more = cursor.set_range(start) if start else cursor.first()
                    if more:
                        for key, stored in cursor.iternext():
                            chunk.append((key, self._opened(n, key, stored)))
                            if len(chunk) == size:
                                break
            except lmdb.Error as exc:
                raise _explained(self.path, "cannot be read", exc) from exc
            if stop is not None and chunk and chunk[-1][0] >= stop:
                yield from chunk[: bisect_left(chunk, stop, key=_key_of)]
                return
            yield from chunk
            if len(chunk) < size:
                return
            start = chunk[-1][0] + b"\0"
            size = SCAN_CHUNK

    # -- one request's transaction

    def put_alone(self, table: Table, key: bytes, value: bytes) -> None:
        """A transaction of one put that is nobody's effect."""
        assert self._undo is None, "put within a transaction"
        n = table.number
        old = self._current.set(n, key, value)
        if self._trial is not None:
            self._trial[0].append((n, key, old))
            self._trial[1].append((n, key, value))

    def begin(self) -> None:
        """Begin a transaction; what it puts is seen by reads at once."""
        assert self._undo is None, "a transaction is open already"
        self._undo = []
        self._effects = []
        if self._loan.wanted:
            self._loan.lend()

    def put(self, table: Table, key: bytes, value: bytes) -> None:
        assert self._undo is not None, "put outside a transaction"
        n = table.number
        self._undo.append((n, key, self._current.set(n, key, value)))
        self._effects.append((n, key, value))

    def delete(self, table: Table, key: bytes) -> None:
        """Delete *key* (harmless when it is not there)."""
        assert self._undo is not None, "delete outside a transaction"
        n = table.number
        self._undo.append((n, key, self._current.set(n, key, None)))
        self._effects.append((n, key, None))

    def commit(self) -> Effects:
        """End the transaction; returns what it changed."""
        assert self._undo is not None, "commit outside a transaction"
        if self._trial is not None:
            self._trial[0].extend(self._undo)
            self._trial[1].extend(self._effects)
        self._undo = None
        return self._effects

    def rollback(self) -> None:
        """End the transaction as if it had never begun."""
        assert self._undo is not None, "rollback outside a transaction"
        for n, key, old in reversed(self._undo):
            self._current.unset(n, key, old)
        self._undo = None
        self._effects = []

    def begin_trial(self) -> None:
        """What is put from now on, in any number of transactions, is taken back by :meth:`end_trial`."""
        assert self._undo is None and self._trial is None, "a trial stands outside of transactions"
        self._trial = ([], [])

    def end_trial(self) -> Effects:
        """Take all of the trial back; returns what it changed, for :meth:`redo`."""
        assert self._undo is None and self._trial is not None, "a trial stands outside of transactions"
        undo, effects = self._trial
        self._trial = None
        for n, key, old in reversed(undo):
            self._current.unset(n, key, old)
        return effects

    def redo(self, effects: Effects) -> None:
        """Do what a trial did, on the same state."""
        assert self._undo is None and self._trial is None, "redo within a transaction"
        for n, key, value in effects:
            self._current.set(n, key, value)
        if self._loan.wanted:
            self._loan.lend()

    # -- to disk

    @property
    def pending_bytes(self) -> int:
        """About how much memory the layers hold that are not written."""
        return self._current.bytes + (self._frozen.bytes if self._frozen is not None else 0)

    def freeze(self) -> Layer | None:
        """What was applied since the last freeze, to be given to :meth:`write` and then :meth:`release`.

        None when there is nothing, or when the layer before has not been released. Call it between batches, after
        the position that belongs to them is stored, never within a transaction.
        """
        assert self._undo is None, "freeze within a transaction"
        if self._frozen is not None or not self._current:
            return None
        self._frozen = self._current
        self._current = Layer()
        self._tables = self._current.tables
        return self._frozen

    def write(self, layer: Layer) -> int:
        """Blocking, for a worker thread: put *layer* into LMDB in one transaction and sync it to disk.

        Returns the sum of the seals of all records by then: the same at replicas that have written the same history.
        Raises :class:`StoreFailed` when the disk refuses, :class:`StoreCorrupt` when LMDB finds itself damaged.
        """
        assert layer is self._frozen, "write of a layer that is not the frozen one"
        trust.forget_imprint(self.path)
        if 2 * self._used() > self._env.info()["map_size"] and not self._copies:
            self._grow()  # a copy may take its time, and nothing is to wait for it
        while True:
            try:
                with self._env.begin(write=True) as txn, self._loan:
                    total = int.from_bytes(txn.get(SUM_KEY, db=self._sums), "big")
                    for n, table in enumerate(layer.tables):
                        if table:
                            total += _write_table(txn, self._dbs[n], n, table, self._loan)
                    total &= SUM_MASK
                    txn.put(SUM_KEY, total.to_bytes(8, "big"), db=self._sums)
                trust.note(self.path)
                return total
            except (lmdb.MapFullError, lmdb.MapResizedError):
                self._grow()  # the transaction is undone: again with more room
            except (lmdb.Error, OSError) as exc:
                raise _explained(self.path, "cannot be written", exc) from exc

    def _used(self) -> int:
        """Bytes of the file."""
        used: int = (self._env.info()["last_pgno"] + 1) * self._env.stat()["psize"]
        return used

    @contextlib.contextmanager
    def _copying(self) -> Iterator[None]:
        with self._no_copies:
            self._copies += 1
        try:
            yield
        finally:
            with self._no_copies:
                self._copies -= 1
                self._no_copies.notify()

    def _grow(self) -> None:
        """Double the map. LMDB allows that only while the process has no transaction at all."""
        with self._no_copies:
            self._no_copies.wait_for(lambda: not self._copies)
            with self._map_lock:
                size = 2 * self._env.info()["map_size"]
                if size > MAP_SIZE_MAX:
                    raise StoreFailed(self.path, f"the state needs a map of {size} bytes, {MAP_SIZE_MAX} is the most")
                self._read.abort()
                self._env.set_mapsize(size)
                # The same snapshot as before: nobody else writes, and our own transaction was undone.
                self._read = self._env.begin()

    def release(self, layer: Layer) -> None:
        """After :meth:`write` returned: drop *layer*, reads see it in LMDB from now on."""
        assert layer is self._frozen, "release of a layer that is not the frozen one"
        with self._map_lock:
            self._read.abort()
            self._read = self._env.begin()
        self._frozen = None

    def forget_dead_readers(self) -> None:
        """Another process read here and was killed: its snapshot must not be kept for ever."""
        self._env.reader_check()

    def copy_into(self, fd: int) -> None:
        """Blocking, for a worker thread: as :meth:`copy_to`, as a stream into *fd* (a pipe); nothing touches the disk.

        Raises :class:`StoreFailed`, also when nobody reads from the pipe any more.
        """
        try:
            with self._copying():
                self._env.copyfd(fd, compact=True)
        except (lmdb.Error, OSError) as exc:
            raise StoreFailed(self.path, f"cannot be copied: {exc}") from exc

    def copy_to(self, path: Path) -> None:
        """Blocking, for a worker thread: a consistent compacted copy, in the new directory *path*, of what is written.

        Writing goes on meanwhile (a growing map waits for the copy to end). Raises :class:`StoreFailed`.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            with self._copying():
                self._env.copy(str(path), compact=True)
            with (path / "data.mdb").open("rb") as copy:
                os.fsync(copy.fileno())
            _sync_directory(path)
        except (lmdb.Error, OSError) as exc:
            raise StoreFailed(path, f"cannot be written: {exc}") from exc

    def close(self) -> None:
        """Let go of LMDB; layers that are not written are lost. No worker may be in write() or copy_to()."""
        self._read.abort()
        self._env.close()


def _explained(path: Path, what: str, exc: Exception) -> StoreCorrupt | StoreFailed:
    """The error to raise for *exc*."""
    if isinstance(exc, _DAMAGE):
        return StoreDamaged(path, f"{what}: {exc}")
    if isinstance(exc, WireError):
        return StoreCorrupt(path, f"{what}: {exc}")
    return StoreFailed(path, f"{what}: {exc}")


def _write_table(txn: Any, db: Any, n: int, table: dict[bytes, bytes | None], loan: Loan) -> int:
    """In order of key within each run, so that LMDB touches a page once or twice and not once per record.

    Returns what it adds to the sum of seals.
    """
    keys = list(table)
    change = 0
    for at in range(0, len(keys), SORT_RUN):
        run = sorted(keys[at : at + SORT_RUN])
        for first in range(0, len(run), SLICE):
            part = run[first : first + SLICE]
            records = [(key, sealed(n, key, value)) for key in part if (value := table[key]) is not None]
            with txn.cursor(db) as cursor:
                change -= sum(part_of_sum(stored) for _, stored in cursor.getmulti(part))
                cursor.putmulti(records)
            change += sum(part_of_sum(stored) for _, stored in records)
            for key in part:
                if table[key] is None:
                    txn.delete(key, db=db)
            loan.slice_done()
    return change


def _look_at_length(path: Path, env: Any, on_disk: int) -> None:
    """Reading beyond the end of a mapped file kills the process, so this is looked at first."""
    need = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
    if on_disk < need:
        raise StoreDamaged(path, f"data.mdb is cut off: {on_disk} bytes of {need}")


def _at_once() -> None:
    """No pause."""


def _read_ranges(path: Path, env: Any, txn: Any, turns: Iterable[int], pace: Callable[[], None]) -> Whole:
    """Raises :class:`StoreDamaged`."""
    dbs = [env.open_db(table.name.encode(), txn=txn, create=False) for table in TABLES]
    counts = [txn.stat(db)["entries"] for db in dbs]
    ranges = [(n, *ends) for n, db in enumerate(dbs) if counts[n] for ends in _ranges(txn, db, counts[n])]
    records = total = 0
    for turn in turns:
        if turn < len(ranges):
            n, start, stop = ranges[turn]
            found = _read_range(path, txn, n, dbs[n], start, stop, counts[n], pace)
            records, total = records + found[0], total + found[1]
    stored = txn.get(SUM_KEY, db=env.open_db(SUMS, txn=txn, create=False)) or b""
    return Whole(records, total & SUM_MASK, sum(counts), int.from_bytes(stored, "big"))


def _ranges(txn: Any, db: Any, count: int) -> Iterator[tuple[bytes, bytes | None]]:
    """Ranges (from, to; None: to the end) that cover the table, of about as many records each. Keys begin with a number
    in eight bytes; where all begin with the same there is but one range."""
    bounds = [b""]
    if count >= RANGES * RANGE_MIN:
        with txn.cursor(db) as cursor:
            ends = [int.from_bytes(cursor.key()[:8], "big") for there in (cursor.first, cursor.last) if there()]
        cuts = {min(ends) + (max(ends) - min(ends)) * k // RANGES for k in range(1, RANGES)}
        bounds += [cut.to_bytes(8, "big") for cut in sorted(cuts)]
    return zip(bounds, [*bounds[1:], None], strict=True)


def _read_range(
    path: Path, txn: Any, n: int, db: Any, start: bytes, stop: bytes | None, left: int, pace: Callable[[], None]
) -> tuple[int, int]:
    """(records, sum of their seals). *left*: records of the whole table; a damaged tree may lead in a circle."""
    records = total = 0
    with txn.cursor(db) as cursor, txn.cursor(db) as search:
        there = cursor.set_range(start) if start else cursor.first()
        found = cursor.iternext() if there else iter(())
        while part := list(islice(found, READ_CHUNK)):
            if stop is not None and part[-1][0] >= stop:
                part = part[: bisect_left(part, stop, key=_key_of)]
                found = iter(())
            records += len(part)
            sum_ = sum_of_seals(n, part)
            if records > left or sum_ is None:
                raise StoreDamaged(path, f"the checksum of a record of {TABLES[n].name} is wrong")
            # A damaged branch of the tree leads a search astray to which the records in their row look well.
            if search.getmulti([key for key, _ in part]) != part:
                raise StoreDamaged(path, f"a record of {TABLES[n].name} is there and is not found")
            total += sum_
            pace()
    return records, total


def _key_of(item: tuple[bytes, bytes]) -> bytes:
    return item[0]


def _overlay(
    below: Iterator[tuple[bytes, bytes]], keys: Iterator[bytes], values: dict[bytes, bytes | None]
) -> Iterator[tuple[bytes, bytes]]:
    """*below* with the records of one layer over it; a layer's key hides the same key below."""
    under = next(below, None)
    for key in keys:
        while under is not None and under[0] < key:
            yield under
            under = next(below, None)
        if under is not None and under[0] == key:
            under = next(below, None)
        value = values[key]
        if value is not None:
            yield key, value
    if under is not None:
        yield under
        yield from below


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _close(env: Any) -> None:
    if env is not None:
        env.close()

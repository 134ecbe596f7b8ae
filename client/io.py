"""The data of open files: gathered writes, striped reads and writes, commits, truncation.

One :class:`FileData` per inode that is open on this mount, shared by all its handles, so that every process on
the mount sees what any of them has written.  Bytes go: run (gathered) -> flight (on its way to the targets) ->
written; after that the size and times are committed to the metadata service.  An error on the way is kept and
reported once per handle, at fsync or close, as Linux does for its own page cache.
"""

from __future__ import annotations

import errno
import logging
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from client import limits
from client.acks import Ack, Unsynced
from client.attributes import Attr, attr_untrusted
from client.capabilities import Held
from client.gather import Buffer, Run, deal, gather_unit
from client.parallel import WriteFailed, together
from client.service import errno_of
from client.striping import Extent, split
from wire import ids
from wire.capability import READ, TRUNCATE, WRITE
from wire.columns import object_truncations
from wire.errors import FileSystemError, Status
from wire.fileops import Reserve
from wire.inline import WriteInline
from wire.messages import ObjectKey, ObjectRead, ObjectSync, ObjectTruncate, ObjectWrite
from wire.ops import Commit, GetAttr, SetAttr, Settle

if TYPE_CHECKING:
    from client.pool import FilePool

log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class _Flight:
    """Bytes ``[start, stop)`` on their way; later ones that overlap wait for ``done``."""

    start: int
    stop: int
    done: trio.Event = field(default_factory=trio.Event)


def _columns(attr: Attr) -> set[int]:
    """Those in which *attr*'s file may have objects."""
    return set(range(len(attr.layout[1]))) if attr.layout is not None and attr.size and not attr.inline else set()


class FileData:
    """See the module. ``attr`` is the latest known of the service; :meth:`overlay` adds what is not committed."""

    def __init__(self, pool: FilePool, attr: Attr) -> None:
        self.ino = attr.ino
        self.attr = attr
        self.held = Held(attr.ino)
        """The capabilities for it."""
        self.users = 0
        self.version = 0
        """Moves whenever the contents may have changed: data read ahead under another version is not used."""
        self._pool = pool
        self._run = Run()
        self._run_since = 0.0
        self._flights: list[_Flight] = []
        self._inflight = 0
        self._written_end = 0
        """One past the last byte at the targets that is not committed."""
        self._end = 0
        """One past the last byte written and not committed, at the targets or on the way."""
        self._mtime_ns = 0
        self._writes = 0
        self._privileged = True
        """Nobody but root has written what is not committed."""
        self._uncommitted = False
        self._uncommitted_since = 0.0
        self._attr_moves = 0
        """Counts commits and truncations that were answered: attributes asked for before are older than those."""
        self._unsynced = {column: Unsynced() for column in _columns(attr)}
        """Columns written to since their last ObjectSync. Of a file just opened: all. It may have been written and
        closed before, and whoever syncs it now means that, too."""
        self._syncing = trio.Lock()
        """Held while columns are synced: who comes meanwhile waits, because those of its bytes may be among them."""
        self._changing = trio.Lock()
        """Held while size changes are on their way to the service: a commit overtaken by a truncation would undo it."""
        self._truncating: trio.Event | None = None
        self._errors = 0
        self._error = 0
        self._committing_aged = False
        self.no_capability_until = 0.0
        """See limits.CAPABILITY_CACHE_S."""

    # -- attributes

    @property
    def is_dirty(self) -> bool:
        return bool(self._uncommitted or self._flights or len(self._run))

    @property
    def is_small(self) -> bool:
        """Whether the bytes are in the metadata (client.small): what is written goes there with the commit."""
        return False

    @property
    def size(self) -> int:
        """Bytes of the file as this mount sees it."""
        return max(self.attr.size, self._end)

    def overlay(self, attr: Attr) -> Attr:
        """*attr*, just fetched, as a process on this mount must see it."""
        if not self._uncommitted:
            return attr
        return attr._replace(
            size=max(attr.size, self._end),
            mtime_ns=max(attr.mtime_ns, self._mtime_ns),
            ctime_ns=max(attr.ctime_ns, self._mtime_ns),
        )

    def learn(self, attr: Attr) -> None:
        """*attr* came from the service. Its ctime never goes back, so an older answer is told by it."""
        old, attr = self.attr, self._latest(attr)
        if attr.ctime_ns < old.ctime_ns:
            return
        if attr.size != old.size or attr.mtime_ns != old.mtime_ns:
            self.version += 1
        self.attr = attr

    def _latest(self, attr: Attr) -> Attr:
        """*attr*, but for what we know better."""
        return attr

    async def refresh(self) -> Attr:
        """The service's attributes of now, with what is pending here. Raises :class:`FileSystemError`."""
        while True:
            moves = self._attr_moves
            attr = attr_untrusted(await self._pool.service.query(GetAttr(self.ino)))
            # 1. GetAttr is answered, size 0.  2. Our commit (size 9) is answered: nothing is pending any more.
            # 3. This task runs: with size 0 the file would shrink before its writer's eyes. Ask again.
            if moves == self._attr_moves:
                break
        self.learn(attr)
        return self.overlay(attr)

    # -- errors

    @property
    def errors(self) -> int:
        """What a new handle starts from: earlier errors are not its own."""
        return self._errors

    def _failed(self, code: int, what: str) -> None:
        log.error("inode %d: %s: %s", self.ino, what, errno.errorcode.get(code, code))
        self._errors += 1
        self._error = code

    def report(self, seen: int) -> int:
        """Raise the last error if there was one after *seen*; else the count to remember."""
        if seen != self._errors:
            raise WriteFailed(self._error, self._errors)
        return seen

    # -- writing

    def _layout(self) -> tuple[int, tuple[int, ...]]:
        if self.attr.layout is None:
            raise FileSystemError(errno.ENOSPC, "the cluster has no storage target")
        return self.attr.layout

    async def write(self, offset: int, data: Buffer, *, append: bool = False, privileged: bool = False) -> int:
        """Take *data* at *offset* (or at the end); on its way when this returns. Bytes taken.

        *data* must not change afterwards. Raises :class:`FileSystemError` for what can be told at once.
        """
        size = len(data)
        if not size:
            await trio.lowlevel.checkpoint()
            return 0
        self._layout()  # before room is asked for
        if append:
            # Other mounts append, too: where these bytes belong is ordered. Under the lock, so that no truncation of
            # this mount comes between the answer and the bytes.
            async with self._changing:
                room = Reserve(self.ino, size, self._end)
                (offset, attr), _ = await self._pool.access.request(self.held, WRITE, room)
                self.learn(attr_untrusted(attr))
                self._take(offset, data, privileged)
                # Not gathered: as soon as others have appended behind it, it is a hole to whoever reads there.
                self._send_run()
        else:
            while self._truncating is not None:
                await self._truncating.wait()
            self._take(offset, data, privileged)
        # Backpressure: the writer that fills the memory waits for it to become free.
        while self._inflight > limits.FILE_INFLIGHT_MAX or self._pool.unsent > limits.MOUNT_DIRTY_MAX:
            if not self._flights:
                self._send_run()
            await self._pool.room.wait()
        return size

    def _take(self, offset: int, data: Buffer, privileged: bool) -> None:
        """*data* is written at *offset*, as far as this mount can see."""
        size = len(data)
        end = offset + size
        stripe_size, _ = self._layout()
        if end > ids.FILE_SIZE_MAX:
            raise FileSystemError(errno.EFBIG)
        if not self._run.accepts(offset):
            self._send_run()
        now = trio.current_time()
        if not len(self._run):
            self._run_since = now
        self._run.append(offset, data)
        self._pool.unsent += size
        self._noted(end, privileged, now)
        self._send_full(gather_unit(stripe_size))

    def _noted(self, end: int, privileged: bool, now: float) -> None:
        """Bytes up to *end* have been taken."""
        self._end = max(self._end, end)
        self._mtime_ns = time.time_ns()
        self._writes += 1
        self._privileged = self._privileged and privileged
        self.version += 1
        if not self._uncommitted:
            self._uncommitted = True
            self._uncommitted_since = now
            self._pool.mark_dirty(self)

    def _send_full(self, unit: int) -> None:
        """Send what reaches up to multiples of *unit*; the rest is gathered on."""
        run = self._run
        while True:
            boundary = (run.start // unit + 1) * unit
            if run.stop < boundary:
                return
            self._launch(*run.take(boundary - run.start))
            self._run_since = trio.current_time()

    def _send_run(self) -> None:
        if len(self._run):
            self._launch(*self._run.take(len(self._run)))

    def _launch(self, offset: int, parts: tuple[Buffer, ...]) -> None:
        size = sum(len(part) for part in parts)
        flight = _Flight(offset, offset + size)
        before = [other for other in self._flights if other.start < flight.stop and flight.start < other.stop]
        self._flights.append(flight)
        self._inflight += size
        self._pool.nursery.start_soon(self._fly, flight, parts, before)

    async def _fly(self, flight: _Flight, parts: tuple[Buffer, ...], before: list[_Flight]) -> None:
        size = flight.stop - flight.start
        try:
            for other in before:
                await other.done.wait()
            stripe_size, chains = self._layout()
            extents = list(split(flight.start, size, stripe_size, len(chains), limits.EXTENT_MAX))
            pieces = deal(parts, [extent.length for extent in extents])
            if len(extents) == 1:
                await self._write_extent(extents[0], pieces[0])
            else:
                async with trio.open_nursery() as nursery:
                    for extent, piece in zip(extents, pieces, strict=True):
                        nursery.start_soon(self._write_extent, extent, piece)
        finally:
            self._flights.remove(flight)
            self._inflight -= size
            self._pool.freed(size)
            flight.done.set()

    async def _write_extent(self, extent: Extent, piece: tuple[Buffer, ...]) -> None:
        stripe_size, chains = self._layout()
        key = ObjectKey(self.attr.objects, extent.column)
        chain = chains[extent.column]
        trims = object_truncations(self.attr.truncations, extent.column, stripe_size, len(chains))
        try:
            await self._pool.access.call(
                self.held,
                WRITE,
                chain,
                lambda call, ver, token: ObjectWrite(call, key, chain, ver, trims, extent.object_offset, token),
                piece,
                extent.length,
                answered=partial(self._taken, extent.column),
            )
        except FileSystemError as exc:
            self._failed(errno_of(exc), f"{extent.length} bytes at {extent.offset} are lost: {exc}")
        else:
            self._written_end = max(self._written_end, extent.offset + extent.length)
        finally:
            # 1. Bytes are on their way. 2. Another process syncs what it has written before. 3. They arrive after
            # that. Noted when they set out, their column would count as synced.
            self._unsynced.setdefault(extent.column, Unsynced())

    def _taken(self, column: int, ack: Ack) -> None:
        """*ack*: a write of ours is in *column*. Close, too, tells what that shows to be lost."""
        unsynced = self._unsynced.setdefault(column, Unsynced())
        self._look_for_loss(column, unsynced, ack)
        unsynced.add(ack)

    def _look_for_loss(self, column: int, unsynced: Unsynced, now: Ack) -> None:
        if unsynced.take_lost(now):
            what = f"what column {column} was given since its last sync may be lost: all its copies have been down"
            self._failed(errno.EIO, what)

    async def settle(self) -> None:
        """Everything written so far is at its targets (or its loss is noted as an error)."""
        self._send_run()
        for flight in list(self._flights):
            await flight.done.wait()

    async def commit(self) -> None:
        """Tell the service the size and time of what is at the targets. Call :meth:`settle` before.

        Raises :class:`FileSystemError`.
        """
        if not self._uncommitted:
            return
        async with self._changing:
            if self._uncommitted:
                await self._commit()

    async def _commit(self) -> None:
        # 1. Everything is settled. 2. This waits for another commit. 3. Somebody writes. 4. What he has written is on
        # its way, and is not settled by what is told now. (test_a_write_while_a_commit_waits_for_another)
        writes, end = -1 if self._flights or len(self._run) else self._writes, self._written_end
        try:
            attr = await self._tell(self._commit_of(end))
        except FileSystemError as exc:
            if exc.status != errno.ETIMEDOUT:  # not "nobody answers" but "no": asking again would not help
                self._settled(writes)
                if not self._uncommitted:
                    self._end, self._written_end, self.version = 0, 0, self.version + 1  # the file has not grown
                self._failed(errno_of(exc), f"commit of size {end}: {exc}")
            raise
        self._attr_moves += 1
        self._settled(writes)
        self._learn_own(attr, end)

    async def _tell(self, op: Commit | WriteInline) -> Attr:
        """Have the service execute *op*. Where more wait to be told than may wait for a slot (thousands of files at
        once), it is asked again: what is written is not lost for that. Raises :class:`FileSystemError`."""
        pause = limits.OVERLOADED_FIRST_S
        while True:
            try:
                attr, _ = await self._pool.access.request(self.held, WRITE, op)
                return attr_untrusted(attr)
            except FileSystemError as exc:
                if exc.status != Status.OVERLOADED:
                    raise
            await trio.sleep(pause)
            pause = min(2 * pause, limits.OVERLOADED_MAX_S)

    def _learn_own(self, attr: Attr, end: int) -> None:
        """*attr* is the answer to our commit of bytes up to *end*."""
        mine = attr.size == max(self.attr.size, end)
        version = self.version
        self.learn(attr)
        if mine:
            self.version = version  # our own writes: whoever wrote has moved the version already

    def _commit_of(self, end: int) -> Commit:
        return Commit(self.ino, end, self._mtime_ns, self._privileged)

    def _settled(self, writes: int) -> None:
        """What was written before count *writes* is over with."""
        if writes == self._writes:
            self._uncommitted = False
            self._privileged = True
            self._end = self._written_end = 0
        else:
            self._uncommitted_since = trio.current_time()

    def grow_old(self, now: float) -> bool:
        """Send what has waited for long; whether a commit is due."""
        if len(self._run) and now - self._run_since >= limits.GATHER_AGE_S:
            self._send_run()
        age = limits.GATHER_AGE_S if self.is_small else limits.COMMIT_AGE_S
        due = self._uncommitted and now - self._uncommitted_since >= age
        if due and self._committing_aged:
            return False
        self._committing_aged = due
        return due

    async def commit_aged(self) -> None:
        """In the background, for files that are written for long or were not closed properly."""
        try:
            await self.settle()
            await self.commit()
        except FileSystemError as exc:
            log.warning("inode %d: commit in the background: %s", self.ino, exc)
        finally:
            self._committing_aged = False

    async def flush(self) -> None:
        """close(2): everything is at the targets, size and times are known to every mount."""
        if self.is_dirty:
            await self.settle()
            await self.commit()

    async def fsync(self) -> None:
        """fsync(2): and it is on disk."""
        await self.settle()
        async with self._syncing:
            await self._sync_columns()
        await self.commit()

    async def _sync_columns(self) -> None:
        columns, self._unsynced = self._unsynced, {}
        if not columns:
            return
        _, chains = self._layout()
        done: set[int] = set()
        access = self._pool.access

        async def sync(column: int) -> None:
            key, chain = ObjectKey(self.attr.objects, column), chains[column]

            async def asked(right: int) -> None:
                await access.call(
                    self.held,
                    right,
                    chain,
                    lambda call, ver, token: ObjectSync(call, key, chain, ver, token),
                    answered=partial(self._look_for_loss, column, columns[column]),
                )

            try:
                await access.with_either(self.held, asked)
            except FileSystemError as exc:
                self._failed(errno_of(exc), f"sync of column {column}: {exc}")
            else:
                done.add(column)

        try:
            async with trio.open_nursery() as nursery:
                for column in sorted(columns):
                    nursery.start_soon(sync, column)
        finally:
            # Whoever waited was cancelled, or no target has said that it is on disk: the next one does it.
            for column in columns.keys() - done:
                self._unsynced.setdefault(column, Unsynced()).join(columns[column])

    # -- reading

    async def read(self, offset: int, size: int, fresh: bool = True) -> Buffer:
        """Bytes ``[offset, offset + size)`` as far as the file goes; holes are zeros.

        Raises :class:`FileSystemError`.
        """
        if self._truncating is not None:
            await self._truncating.wait()
        stop = min(offset + size, self.size)
        if stop <= offset:
            await trio.lowlevel.checkpoint()
            return b""
        await self.settle_range(offset, stop)
        return await self.fetch(offset, stop - offset)

    async def settle_range(self, start: int, stop: int) -> None:
        """What this mount has written between *start* and *stop* is at the targets."""
        if self._run.overlaps(start, stop):
            self._send_run()
        for flight in [f for f in self._flights if f.start < stop and start < f.stop]:
            await flight.done.wait()

    async def fetch(self, offset: int, length: int) -> Buffer:
        """*length* bytes from the targets, zeros where they have none; always *length* bytes."""
        if self.attr.layout is None:
            return bytes(length)
        stripe_size, chains = self.attr.layout
        extents = list(split(offset, length, stripe_size, len(chains), limits.EXTENT_MAX))
        if len(extents) == 1:
            data = await self._read_extent(extents[0])
            missing = length - len(data)
            if not missing:
                return data
            if isinstance(data, bytearray):
                data += bytes(missing)
                return data
            return bytes(data) + bytes(missing)
        whole = bytearray(length)
        view = memoryview(whole)

        async def fill(extent: Extent) -> None:
            data = await self._read_extent(extent)
            at = extent.offset - offset
            view[at : at + len(data)] = data

        await together([(fill, extent) for extent in extents])
        return whole

    async def _read_extent(self, extent: Extent) -> Buffer:
        assert self.attr.layout is not None
        stripe_size, chains = self.attr.layout
        key, chain = ObjectKey(self.attr.objects, extent.column), chains[extent.column]
        trims = object_truncations(self.attr.truncations, extent.column, stripe_size, len(chains))
        data = await self._pool.access.call(
            self.held,
            READ,
            chain,
            lambda call, ver, token: ObjectRead(
                call, key, chain, ver, trims, extent.object_offset, extent.length, token
            ),
            read=True,
        )
        if len(data) > extent.length:
            raise FileSystemError(errno.EIO, f"{len(data)} bytes for a read of {extent.length}")
        return data

    # -- truncation

    async def set_size(self, op: SetAttr) -> Attr:
        """Carry out *op*, which has SET_SIZE, and trim the objects; the new attributes."""
        async with self._changing:
            assert self._truncating is None, "it is set under the lock only"
            self._truncating = done = trio.Event()
            try:
                await self.settle()
                if self._uncommitted and (self._written_end > op.size or self.is_small):
                    # 1. 9 bytes are written, the service still knows of size 0.  2. Truncation to 5: growth, to the
                    # service, which trims nothing.  3. Extension to 9: the old bytes come back. So tell it first.
                    # (test_random_writes_against_a_local_file)
                    await self._commit()
                attr = await self._set_size(op)
                # What was written before is above or below the new size by now, and both are known.
                self._attr_moves += 1
                self.version += 1
                self._uncommitted = False
                self._end = self._written_end = 0
                self.attr = attr = self._latest(attr)
                await self._trim(attr)
            finally:
                self._truncating = None
                done.set()
        if attr.truncations:
            self._pool.nursery.start_soon(self._settle_truncations, attr.truncations[-1][0])
        return attr

    async def _set_size(self, op: SetAttr) -> Attr:
        for _ in range(limits.TRIM_RETRIES):
            try:
                result, granted = await self._ask_size(op)
                self.held.take(granted, None, trio.current_time())
                return attr_untrusted(result)
            except FileSystemError as exc:
                if exc.status != Status.TRUNCATIONS_UNSETTLED:
                    raise
            attr = attr_untrusted(await self._pool.service.query(GetAttr(self.ino)))
            await self._trim(attr)
            if attr.truncations:
                await self._pool.access.request(self.held, TRUNCATE, Settle(self.ino, attr.truncations[-1][0]))
        raise FileSystemError(errno.EAGAIN, "truncated too often by others")

    async def _ask_size(self, op: SetAttr) -> tuple[Any, bytes]:
        if op.handle:
            try:
                return await self._pool.access.request(self.held, TRUNCATE, op)
            except FileSystemError as exc:
                if exc.status != errno.EACCES:
                    raise  # else nothing of ours allows it: by name, its credentials decide
        return await self._pool.service.request_granting(op)

    async def _trim(self, attr: Attr) -> None:
        """Have every target carry out *attr*'s truncations now.

        Awaited before truncate(2) returns: another process may hold the file open with attributes from before
        the truncation and write as soon as it is told of it; trimmed later, its bytes would be lost.
        """
        if not attr.truncations or attr.layout is None:
            return
        stripe_size, chains = attr.layout

        async def trim(column: int) -> None:
            key, chain = ObjectKey(self.attr.objects, column), chains[column]
            trims = object_truncations(attr.truncations, column, stripe_size, len(chains))
            await self._pool.access.call(
                self.held,
                TRUNCATE,
                chain,
                lambda call, ver, token: ObjectTruncate(call, key, chain, ver, trims, token),
            )

        await together([(trim, column) for column in range(len(chains))])

    async def _settle_truncations(self, seq: int) -> None:
        try:
            await self._pool.access.request(self.held, TRUNCATE, Settle(self.ino, seq))
        except FileSystemError as exc:
            # Harmless: the entries stay, and whoever truncates often enough settles them.
            log.info("inode %d: settling truncation %d: %s", self.ino, seq, exc)

"""The group layer's journal on disk: appended to, flushed in groups, read back at start.

One directory per voter (a metadata replica or a witness) holds segments ``NNNNNNNN.journal``.  A segment begins
with a header that names the cluster, the voter and the disk's uuid; then follow *batches*: what was written and
flushed in one go, each with a length, a number and a checksum.  The next batch is written only when the one
before is on disk, so after a power cut at most the last batch is torn: a bad batch with a good one behind it is
not a torn tail but damage, and the journal refuses to open.

An append-only file was chosen over a second LMDB environment because every request waits for it: 50 us for a
flushed append against 140 us for a flushed LMDB transaction with the same record (same disk, medians of 2,000).
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import queue
import struct
import threading
import time
import uuid as uuids
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from vsync import records as rec
from vsync.history import needed
from vsync.limits import HEARTBEAT, VIEWS_KEPT
from vsync.records import Durable, Record
from vsync.register import REGISTERS_KEPT
from vsync.view import Position
from wire.codec import from_tuple_untrusted, pack, to_tuple, unpack_untrusted
from wire.errors import WireError

log = logging.getLogger(__name__)

MAGIC: Final = b"LSFSJRN2"
HEADER: Final = struct.Struct("!8s16sB16sQI")
"""magic, cluster, voter, disk uuid, segment number, CRC-32 of what is before."""
BATCH_MAGIC: Final = 0x4C53_4A42
BATCH: Final = struct.Struct("!IIQI")
"""magic, length of the contents, batch number, CRC-32 of length, number and contents."""
SEGMENT_BYTES: Final = 16 << 20
"""A full segment is followed by a new one: small enough that trimming gives space back in small steps."""
BATCH_BYTES: Final = 8 << 20
"""Records written and flushed in one go; beyond it they wait for the next."""
FLUSH_MAX_S: Final = 10.0
"""D3: a flush that takes longer means a disk that cannot be served from; the process stops."""
INLINE_FAST_S: Final = 0.005
"""A write from the loop that took no longer says that the disk is fast: a tenth of a heartbeat interval."""
INLINE_SHARE: Final = 50
"""After a slower one the loop writes nothing itself for so many times as long: 2 % of its time at most."""
assert INLINE_FAST_S * 10 <= HEARTBEAT / 1e6
INLINE_BYTES: Final = 64 << 10
WATCH_S: Final = 1.0
_ROLL: Final = "roll"
"""To the thread: the segment is full, begin another."""
POISON: Final = "POISONED"


class JournalCorrupt(Exception):
    """The journal cannot be used; the text names the file, the place and how to recover."""


class JournalInUse(JournalCorrupt):
    """Another process has the journal open: nothing is wrong with it."""


class JournalFailed(Exception):
    """Writing or flushing failed: nothing that waited for it may be sent, the process has to stop."""


def _encode(record: Record) -> tuple[Any, ...]:
    match record:
        case rec.Entry():
            return (1, *record)
        case rec.Sealed(epoch):
            return (2, epoch)
        case rec.Decided(view):
            return (3, to_tuple(view))
        case rec.Flushed(epoch):
            return (4, epoch)
        case rec.Promised(epoch, ballot):
            return (5, epoch, ballot)
        case rec.AcceptedValue(epoch, ballot, view):
            return (6, epoch, ballot, to_tuple(view))
        case rec.Reset(epoch):
            return (7, epoch)
        case rec.Started(incarnation):
            return (8, incarnation)
        case rec.Met(peer, uuid):
            return (9, peer, uuid)
        case rec.Trimmed(index):
            return (10, index)


def _decode_untrusted(parts: Any) -> Record:
    match parts:
        case (1, int(epoch), int(sender), int(seq), int(clock), bytes(payload)):
            return rec.Entry(epoch, sender, seq, clock, payload)
        case (2, int(epoch)):
            return rec.Sealed(epoch)
        case (3, tuple(view)):
            return rec.Decided(from_tuple_untrusted(view))
        case (4, int(epoch)):
            return rec.Flushed(epoch)
        case (5, int(epoch), tuple(ballot)):
            return rec.Promised(epoch, ballot)
        case (6, int(epoch), tuple(ballot), tuple(view)):
            return rec.AcceptedValue(epoch, ballot, from_tuple_untrusted(view))
        case (7, int(epoch)):
            return rec.Reset(epoch)
        case (8, int(incarnation)):
            return rec.Started(incarnation)
        case (9, int(peer), bytes(uuid)):
            return rec.Met(peer, uuid)
        case (10, int(index)):
            return rec.Trimmed(index)
    raise WireError("a record of no known kind")


@dataclass(slots=True)
class _Segment:
    number: int
    path: Path
    size: int = 0
    tops: dict[int, dict[int, int]] = field(default_factory=dict)
    """Highest sequence number by epoch and sender of the entries in it: when the state holds these, it may go."""

    def note(self, record: Record) -> None:
        if isinstance(record, rec.Entry):
            tops = self.tops.setdefault(record.epoch, {})
            tops[record.sender] = max(record.seq, tops.get(record.sender, 0))

    def covered_by(self, position: Position) -> bool:
        delivered = dict(position.delivered)
        for epoch, tops in self.tops.items():
            if epoch > position.epoch:
                return False
            if epoch == position.epoch and any(seq > delivered.get(s, 0) for s, seq in tops.items()):
                return False
        return True


class Watch:
    """Finds a write that does not come back, by looks of its own: a process that was stopped and continued, or a
    machine that slept, has not looked meanwhile, so that time does not count."""

    def __init__(self, every_s: float) -> None:
        self._most = int(FLUSH_MAX_S / every_s)
        self._same = 0
        self._last: float | None = None

    def stuck(self, busy_since: float | None) -> bool:
        """One look, ``every_s`` after the one before."""
        self._same = self._same + 1 if busy_since is not None and busy_since == self._last else 0
        self._last = busy_since
        return self._same > self._most


class Journal:
    """One voter's journal. :meth:`append` returns at once; a thread writes, flushes and reports."""

    def __init__(self, directory: Path, cluster: bytes, voter: int, first: Iterable[Record]) -> None:
        """Opens the journal in *directory*, making it with the records *first* if there is none.

        Raises :class:`JournalCorrupt`; OSError when the directory cannot be used at all.
        """
        self.directory = directory
        self.cluster = cluster
        self.voter = voter
        self.durable = Durable()
        self.failed: JournalFailed | None = None
        self._closed = False
        self._state_epoch: int | None = None
        """The view that the state on disk is in; None: there is no state, or it was not told of."""
        self._segments: list[_Segment] = []
        self._batch = 0
        self._torn: tuple[Path, int] | None = None
        """File and byte of the bad batch that was taken for a torn one last."""
        self._queue: queue.SimpleQueue[tuple[int, list[Record]] | Position | str | None] = queue.SimpleQueue()
        self._busy_since: float | None = None
        self._handed = 0
        """Items given to the thread; only the loop's thread counts it up."""
        self._finished = 0
        """Items the thread is done with; only that thread counts it up. Equal: it touches nothing until the next."""
        self._calm_until = 0.0
        """Until then the disk counts as slow, and nothing is written from the loop."""
        self._fail: Callable[[JournalFailed], None] = lambda error: None
        self._thread: threading.Thread | None = None
        directory.mkdir(parents=True, exist_ok=True)
        poison = directory / POISON
        if poison.exists():
            raise JournalCorrupt(
                f"{poison}: this disk failed before ({poison.read_text(errors='replace').strip()}) and may have lost "
                f"what it acknowledged; it must not be used again under the same identity. Replace the disk, and "
                f"this replica by a new one."
            )
        self._lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            os.close(self._lock)
            raise JournalInUse(f"{directory}: another process is using this journal") from exc
        try:
            self._open(list(first))
        except BaseException:
            os.close(self._lock)
            raise

    # -- reading back

    def _open(self, first: list[Record]) -> None:
        paths = sorted(self.directory.glob("*.journal"))
        self.uuid = uuids.uuid4().bytes
        for k, path in enumerate(paths):
            self._read(path, last=k == len(paths) - 1)
        if not self._segments or (len(self._segments) == 1 and not self._batch):
            # New, or the power went off between the header and the first checkpoint of the very first start.
            for record in first:
                self.durable.apply(record)
        self.durable.incarnation += 1
        # Every start begins a segment of its own: a tail torn by the last crash stays behind, never appended to.
        self._begin_segment()

    def _read(self, path: Path, last: bool) -> None:
        with path.open("rb") as file:
            # A process that was killed may have left a batch in the page cache alone. What is read here is told to
            # others as being on disk, so first it has to be.
            os.fsync(file.fileno())
            data = file.read()
        if len(data) < HEADER.size or HEADER.unpack_from(data)[-1] != zlib.crc32(data[: HEADER.size - 4]):
            if last and not data.strip(b"\0"):
                path.unlink()  # cut off while it was made: nothing was in it yet
                return
            raise self._corrupt(path, 0, "the header is damaged")
        magic, cluster, voter, uuid, number, _ = HEADER.unpack_from(data)
        if magic != MAGIC:
            raise self._corrupt(path, 0, f"it is not a journal of this version ({magic!r})")
        if cluster != self.cluster or voter != self.voter:
            raise JournalCorrupt(
                f"{path}: belongs to voter {voter} of cluster {cluster.hex()}, not to voter {self.voter} of "
                f"{self.cluster.hex()}; correct the data directory in the configuration"
            )
        self.uuid = uuid
        segment = _Segment(number, path, len(data))
        at = HEADER.size
        while at + BATCH.size <= len(data):
            magic, length, count, crc = BATCH.unpack_from(data, at)
            body = data[at + BATCH.size : at + BATCH.size + length]
            good = magic == BATCH_MAGIC and len(body) == length and crc == _crc(length, count, body)
            if not good:
                if self._good_batch_after(data, at + 1, self._batch):
                    raise self._corrupt(path, at, "a batch is damaged, and good ones follow it")
                if not last and data[at:].strip(b"\0"):
                    log.info("%s: a torn batch at byte %d, left by a crash, is ignored", path, at)
                self._torn = (path, at)
                break
            self._follows(path, at, count)
            try:
                for parts in unpack_untrusted(body):
                    record = _decode_untrusted(parts)
                    segment.note(record)
                    self.durable.apply(record)
            except (WireError, TypeError) as exc:
                raise self._corrupt(path, at, f"a record cannot be read: {exc}") from exc
            at += BATCH.size + length
        self._segments.append(segment)

    def _follows(self, path: Path, at: int, count: int) -> None:
        """Batch *count* was read. Its number tells a torn batch, which was written again under the same number in the
        next segment, from one at a segment's end that was on disk and is damaged (or a segment that is missing)."""
        if self._batch and count != self._batch + 1:
            where, byte = self._torn if self._torn is not None else (path, at)
            raise self._corrupt(where, byte, f"batch {self._batch + 1} is damaged or missing, batch {count} is there")
        self._batch = count
        self._torn = None

    @staticmethod
    def _good_batch_after(data: bytes, start: int, number: int) -> bool:
        mark = struct.pack("!I", BATCH_MAGIC)
        at = data.find(mark, start)
        while at >= 0 and at + BATCH.size <= len(data):
            _, length, count, crc = BATCH.unpack_from(data, at)
            body = data[at + BATCH.size : at + BATCH.size + length]
            if count > number and len(body) == length and crc == _crc(length, count, body):
                return True
            at = data.find(mark, at + 1)
        return False

    def _corrupt(self, path: Path, at: int, what: str) -> JournalCorrupt:
        return JournalCorrupt(
            f"{path}, byte {at}: {what}. This voter's promises can no longer be told, so it must not take part. "
            f"Replace it by a new replica; the others go on without it."
        )

    # -- appending

    def start(self, done: Callable[[int], None], failed: Callable[[JournalFailed], None]) -> None:
        """Start the writing thread. *done(ticket)* and *failed(error)* are called in it."""
        self._fail = failed
        self._thread = threading.Thread(target=self._run, args=(done, failed), name="journal", daemon=True)
        self._thread.start()

    def append(self, ticket: int, records: list[Record]) -> None:
        """Hand *records* over; when they are on disk ``done(ticket)`` is called (later tickets imply earlier)."""
        if self.failed is not None or self._closed:
            return  # later tickets imply earlier ones, and those are lost. Closed: nothing of it is ever acknowledged
        if self._busy_since is None:
            self._busy_since = time.monotonic()
        self._hand((ticket, records))

    def append_now(self, ticket: int, records: list[Record]) -> bool:
        """As :meth:`append`, but a small write to a disk that has been fast is done here and now.

        True: it is on disk, ``done`` is not called.  A thread costs a message three to five times what a fast disk does
        (see ARCHITECTURE.md).  What the caller's loop is kept from its heartbeats is bounded: each write is paid for
        with INLINE_SHARE times as long without any, so a disk that stalls delays the loop by one write.
        """
        started = time.monotonic()
        waits = self._handed != self._finished or self._thread is None or started < self._calm_until
        if waits or self.failed is not None or self._closed:
            self.append(ticket, records)
            return False
        batch: list[bytes] = []
        if sum(len(r.payload) for r in records if isinstance(r, rec.Entry)) > INLINE_BYTES:
            self.append(ticket, records)
            return False
        self._busy_since = started
        try:
            self._collect(records, batch)
            self._write(batch)
        except OSError as exc:
            self._failed(exc)
            return False
        self._busy_since = None
        took = time.monotonic() - started
        if took > INLINE_FAST_S:
            self._calm_until = started + took * INLINE_SHARE
        if self._at >= SEGMENT_BYTES:
            self._hand(_ROLL)
        return True

    def _hand(self, item: tuple[int, list[Record]] | Position | str | None) -> None:
        self._handed += 1
        self._queue.put(item)

    def trim(self, position: Position) -> None:
        """The state holds everything up to *position*, durably: segments with nothing beyond it may go."""
        self._hand(position)

    @property
    def busy_since(self) -> float | None:
        """What tells the oldest write under way from any other, for a :class:`Watch`."""
        return self._busy_since

    @property
    def size(self) -> int:
        """Bytes in all segments."""
        return sum(s.size for s in self._segments)

    def close(self) -> None:
        """Write what was handed over, stop the thread, release the directory. What is appended later is dropped: 1. A
        process stops while the thread writes. 2. That the write is done is told to the loop, which hears of it after
        this, and the group layer wants more recorded. 3. Written then, it would go to a descriptor that is somebody
        else's by now, or fail, and a journal whose write has failed is never used again."""
        self._closed = True
        if self._thread is not None:
            self._hand(None)
            self._thread.join()
        os.close(self._fd)
        os.close(self._lock)

    def _run(self, done: Callable[[int], None], failed: Callable[[JournalFailed], None]) -> None:
        try:
            stopping = False
            while not stopping:
                item = self._next()
                if self._busy_since is None:
                    self._busy_since = time.monotonic()  # append()'s mark may have met the end of the batch before
                batch: list[bytes] = []
                ticket = 0
                size = 0
                taken = 0
                while True:
                    taken += 1
                    if item is None:
                        stopping = True
                        break
                    if isinstance(item, Position):
                        self._trim(item)
                    elif not isinstance(item, str):
                        ticket = max(ticket, item[0])
                        size += self._collect(item[1], batch)
                    if size >= BATCH_BYTES or self._queue.empty():
                        break
                    item = self._queue.get()
                if batch:
                    self._write(batch)
                if self._at >= SEGMENT_BYTES:
                    os.close(self._fd)
                    self._begin_segment()
                self._busy_since = None if self._queue.empty() else time.monotonic()
                self._finished += taken
                if ticket:
                    done(ticket)
        except OSError as exc:
            self._failed(exc)

    def _next(self) -> Any:
        """The next item for the thread. While it waits it watches the writes done by the loop's own thread."""
        watch = Watch(WATCH_S)
        while True:
            try:
                return self._queue.get(timeout=WATCH_S)
            except queue.Empty:
                if watch.stuck(self._busy_since):
                    log.critical("%s: a flush has not come back for %.0f s", self.directory, FLUSH_MAX_S)
                    os._exit(1)  # the loop is stuck in it: nobody else can stop the process

    def _failed(self, exc: OSError) -> None:
        self.failed = JournalFailed(f"{self.directory}: writing the journal failed: {exc.strerror}")
        self._poison(str(self.failed))
        self._fail(self.failed)

    def _collect(self, records: list[Record], batch: list[bytes]) -> int:
        size = 0
        segment = self._segments[-1]
        for record in records:
            packed = pack(_encode(record))
            size += len(packed)
            batch.append(packed)
            if not isinstance(record, rec.Entry):
                self.durable.apply(record)
            segment.note(record)
        return size

    def _write(self, packed: list[bytes]) -> None:
        """One batch, flushed."""
        body = _array_header(len(packed)) + b"".join(packed)
        self._batch += 1
        head = BATCH.pack(BATCH_MAGIC, len(body), self._batch, _crc(len(body), self._batch, body))
        data = head + body
        if os.pwrite(self._fd, data, self._at) != len(data):  # O_DSYNC: on disk when it returns
            raise OSError(errno.ENOSPC, "only a part of it was written")
        self._at += len(data)

    def _begin_segment(self) -> None:
        """A new segment: header, then a checkpoint of everything but the entries, so that older ones may go."""
        number = self._segments[-1].number + 1 if self._segments else 1
        path = self.directory / f"{number:08}.journal"
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_DSYNC, 0o600)
        os.posix_fallocate(self._fd, 0, SEGMENT_BYTES)
        head = HEADER.pack(MAGIC, self.cluster, self.voter, self.uuid, number, 0)[:-4]
        os.pwrite(self._fd, head + struct.pack("!I", zlib.crc32(head)), 0)
        os.fsync(self._fd)
        os.fsync(self._lock)  # the directory: the new name
        self._at = HEADER.size
        segment = _Segment(number, path, SEGMENT_BYTES)
        self._segments.append(segment)
        d = self.durable
        if len(d.views) > 2 * VIEWS_KEPT and self._thread is not None:  # at first nobody has told of the state
            # A witness has no state and flushes nothing: it needs the newest only.
            epoch, tips = (-1, []) if self._state_epoch is None else (self._state_epoch, [max(d.flushed, default=-1)])
            kept = needed(d.views, 2 * VIEWS_KEPT, epoch, tips)
            d.views = {e: v for e, v in d.views.items() if e in kept}
        if len(d.registers) > 2 * REGISTERS_KEPT:
            d.registers = {e: d.registers[e] for e in sorted(d.registers)[-2 * REGISTERS_KEPT :]}
        d.flushed = {e for e in d.flushed if e in d.views or e == max(d.flushed)}
        checkpoint: list[Record] = [rec.Started(d.incarnation), rec.Sealed(d.sealed), rec.Trimmed(d.trimmed)]
        checkpoint += [rec.Met(peer, uuid) for peer, uuid in sorted(d.met.items())]
        checkpoint += [rec.Decided(v) for _, v in sorted(d.views.items())]
        checkpoint += [rec.Flushed(e) for e in sorted(d.flushed)]
        for epoch, state in sorted(d.registers.items()):
            if state.value is not None and state.accepted_at is not None:
                checkpoint.append(rec.AcceptedValue(epoch, state.accepted_at, state.value))
            if state.promised is not None:
                checkpoint.append(rec.Promised(epoch, state.promised))
        self._write([pack(_encode(r)) for r in checkpoint])

    def state_found(self, position: Position) -> None:
        """Before the start: the state that this journal belongs to is at *position*. The views from there on are kept:
        what is in the log can be delivered along them only."""
        self._state_epoch = position.epoch

    def _trim(self, position: Position) -> None:
        self._state_epoch = position.epoch
        if len(self._segments) < 2 or not self._segments[0].covered_by(position):
            return
        # First, durably, what the state must hold from now on: with an older one this journal says too little.
        mark = rec.Trimmed(position.index)
        self.durable.apply(mark)
        self._write([pack(_encode(mark))])
        while len(self._segments) > 1 and self._segments[0].covered_by(position):
            self._segments.pop(0).path.unlink()

    def _poison(self, reason: str) -> None:
        try:
            with (self.directory / POISON).open("w") as mark:
                mark.write(reason + "\n")
                mark.flush()
                os.fsync(mark.fileno())
            os.fsync(self._lock)
        except OSError as exc:
            log.critical("%s: the poison mark could not be written either: %s", self.directory, exc.strerror)


def _crc(length: int, number: int, body: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(struct.pack("!IQ", length, number)))


def _array_header(count: int) -> bytes:
    """msgpack's header of an array of *count* items (array 32): the records are packed already."""
    return b"\xdd" + struct.pack("!I", count)

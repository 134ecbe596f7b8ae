"""The storage target's trio shell: connections, threads for the disk, answers.

Operations on one object run in the order they were received, over all connections; operations on different
objects run side by side.  What the page cache does at once is done on the event loop, what may wait for the disk
in a worker thread (the sizes below say where the line is).
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

import trio

from ossd import limits, work
from ossd.capabilities import ANY_DATA, Keys, Shown
from ossd.chains import ChainTable
from ossd.clearing import Clearing
from ossd.copies import Change, Copies
from ossd.copystore import CopyStore
from ossd.failure import FAILED, Failure
from ossd.ledger import BadBlock, Damaged
from ossd.links import Links
from ossd.members import Members, now_us
from ossd.objectfile import Key, ObjectFile, file_name
from ossd.objects import Order, Turn, pending
from ossd.resync import Resync
from ossd.scrub import Scrub
from ossd.store import Buffer
from ossd.weighing import Weighing
from ossd.work import Result
from wire.capability import READ, TRUNCATE, WRITE
from wire.errors import OK, BadMessage, Status, WireError
from wire.ids import number_untrusted
from wire.messages import (
    Answer,
    Hello,
    ObjectDelete,
    ObjectKey,
    ObjectRead,
    ObjectSync,
    ObjectTruncate,
    ObjectWrite,
    Ping,
    Pong,
    Role,
    StatusCall,
    TargetStat,
)
from wire.peer import OUTBOUND_HIGH, OUTBOUND_MAX, Connection, ConnectionLost
from wire.storage import Beat, ObjectChange, ObjectFlush, ObjectList, ObjectPatch, TargetScrub

log = logging.getLogger(__name__)

INLINE_MAX: Final = 1 << 20
"""Reads and writes up to this size are done on the event loop. The way to a worker thread and back costs some 100 us
of processor time (measured), as much as copying 1 MiB to or from the page cache, 4 KiB take 1 us. Larger ones would
keep others waiting for more than a fraction of a millisecond."""
INLINE_OPEN_MAX: Final = 64 << 10
"""With a read or write up to this size the object is opened or made on the event loop, too (some 20 us when the
directory is in memory): small files are created, written once and left."""
SLOW_S: Final = 0.02
"""An operation on the event loop that took longer met a disk that cannot follow (the kernel throttles writers) or
directories that are not in memory..."""
SLOW_AVOIDED_S: Final = 0.5
"""... and for so long everything goes to threads, so that a slow disk does not stop the event loop."""

DISK_THREADS: Final = 16
"""Threads that wait for the disk: enough to keep a good SSD's queue filled."""
OPERATIONS_MAX: Final = 64
"""Operations of one connection under way at a time; above that we do not read from it."""
CONNECTION_BYTES_MAX: Final = 16 << 20
"""File data of one connection under way at a time, less one operation."""
BYTES_MAX: Final = 256 << 20
"""File data of all connections under way at a time. Above it each connection gets one operation at a time, so
that clients which do not take their answers cannot stop the others."""
BAD_MESSAGES_MAX: Final = 100
"""A peer that sends more messages than this that are not acceptable is cut off."""

# Answers wait for room before they are sent, so this is what can pile up on one connection.
assert OUTBOUND_HIGH + CONNECTION_BYTES_MAX + 2 * (8 << 20) < OUTBOUND_MAX

_WITH_DATA: Final = frozenset({ObjectWrite, ObjectChange, ObjectPatch})
_PASSED_ON: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})
"""Errors of the disk that tell a client something; all others are EIO to it."""


def _status_of(exc: OSError) -> int:
    return exc.errno if exc.errno in _PASSED_ON else errno.EIO


class Peer:
    """One connection's side of things: who it is, and how much it has under way."""

    def __init__(self, conn: Connection, hello: Hello, nursery: trio.Nursery, keys: Keys) -> None:
        self.conn = conn
        self.role = hello.role
        self.number = (number_untrusted(hello.name) or 0) if hello.role == Role.TARGET else 0
        """Of another target: its number."""
        self.client = f"{hello.role}:{hello.name}"
        self.shown = Shown(keys, hello.uuid)
        self.nursery = nursery
        self.operations = 0
        self.bytes = 0
        self.bad = 0
        self.room = trio.Event()

    def answer(self, call: int, status: int, body: bytes = b"", bulk: Buffer = b"") -> None:
        try:
            self.conn.send(Answer(call, status, body), bulk)
        except ConnectionLost as exc:
            # The receiving side of the connection sees it, too, and ends the conversation.
            log.debug("%s: answer to call %d dropped: %s", self.conn.where, call, exc)


Run = Callable[[], Awaitable[Result]]
Act = Callable[[Peer, Any, Buffer], None]
"""What to do with a message: (who sent it, the message, its bulk data)."""


class Target:
    """One storage target in this process."""

    def __init__(self, store: CopyStore, target_id: int, witness: int | None) -> None:
        self.store = store
        self.id = target_id
        self.witness = witness
        self.bytes = 0
        self.connections = 0
        self.counted = False
        self.order: Order[Key] = Order()
        """Operations on objects, each object's in its turn."""
        self.nursery: trio.Nursery | None = None
        """Of what goes on when whoever asked for it has gone."""
        self._syncs: Order[Key] = Order()
        """Order of syncs of one object among each other: the next one often finds its work done."""
        self._threads = trio.CapacityLimiter(DISK_THREADS)
        self._threads_until = 0.0
        run = int.from_bytes(os.urandom(7), "big") | 1
        self.chains = ChainTable(target_id, run)
        self.keys = Keys()
        self.failure = Failure(target_id, str(store.path), store.losses.note)
        self.links = Links(store.identity.cluster, target_id, store.identity.uuid, run)
        self.copies = Copies(store, self.chains, self.links, self._threads, self._at_once, self._watch_for_slowness)
        self.resync = Resync(self.copies, self.in_turn)
        self.scrub = Scrub(self.copies, self.in_turn)
        self.clearing = Clearing(self.copies, self._in_turns)
        self.weighing = Weighing(self.copies)
        members = Members(self, self.copies, self.resync)
        everyone: dict[type, Act] = {
            StatusCall: self._status,
            TargetStat: self._stat,
            Ping: self._ping,
            Pong: self._pong,
        }
        data: dict[type, Act] = {ObjectRead: self._read, ObjectTruncate: self._truncate, ObjectSync: self._sync}
        deletes: dict[type, Act] = {ObjectDelete: members.delete}
        self._table: dict[str, dict[type, Act]] = {
            Role.CLIENT: {**everyone, **data, ObjectWrite: self._write},
            # Objects are deleted by those who know that no name and no handle is left.
            Role.MDS: {**everyone, **data, **deletes, Beat: members.beat},
            Role.TARGET: {**everyone, **members.from_members()},
            Role.ADMIN: {**everyone, TargetScrub: self._scrub, ObjectList: members.list_objects},
        }

    # -- conversations

    async def converse(self, conn: Connection, hello: Hello) -> None:
        """Serve one connection until it ends. Raises ConnectionLost, WireError with the reason."""
        ended: Exception | None = None
        self.connections += 1
        try:
            async with trio.open_nursery() as nursery:
                try:
                    await self._receive(Peer(conn, hello, nursery, self.keys))
                except (ConnectionLost, WireError) as exc:
                    ended = exc  # the listener logs it; a nursery would wrap it in a group
                # Nobody is left to be answered. What is in a thread gets done, what waits is given up.
                nursery.cancel_scope.cancel()
        finally:
            self.connections -= 1
        if ended is not None:
            raise ended

    async def _receive(self, peer: Peer) -> None:
        table = self._table[peer.role]
        while True:
            while self._too_much(peer):
                peer.room = trio.Event()
                await peer.room.wait()
            try:
                msg, bulk = await peer.conn.receive()
            except BadMessage as exc:
                self._bad(peer, exc.call, str(exc))
                continue
            act = table.get(type(msg))
            if act is None:
                self._bad(peer, getattr(msg, "call", None), f"{type(msg).__name__} from a peer of role {peer.role}")
            elif len(bulk) and type(msg) not in _WITH_DATA:
                self._bad(peer, getattr(msg, "call", None), f"{type(msg).__name__} with {len(bulk)} bytes of data")
            else:
                act(peer, msg, bulk)

    def _too_much(self, peer: Peer) -> bool:
        if not peer.operations:
            return False
        return (
            peer.operations >= OPERATIONS_MAX or peer.bytes >= CONNECTION_BYTES_MAX or self.bytes >= BYTES_MAX
        )

    def _bad(self, peer: Peer, call: int | None, what: str) -> None:
        log.warning("bad message: %s: %s", peer.conn.where, what)
        peer.bad += 1
        if peer.bad > BAD_MESSAGES_MAX:
            raise WireError(f"more than {BAD_MESSAGES_MAX} bad messages")
        if call is not None:
            peer.answer(call, Status.BAD_MESSAGE)

    # -- running operations

    def work(self, peer: Peer, call: int, turns: list[Turn[Key]], size: int, run: Run) -> None:
        """*run* it when all *turns* have come, then answer *call*. *size*: file data it pins.

        It goes on when the connection ends: half of a change must not stay at half of the copies.
        """
        peer.operations += 1
        peer.bytes += size
        self.bytes += size
        assert self.nursery is not None, "it is set before anything is served"
        self.nursery.start_soon(self._work, peer, call, turns, size, run)

    async def _work(self, peer: Peer, call: int, turns: list[Turn[Key]], size: int, run: Run) -> None:
        try:
            try:
                for turn in turns:
                    await _come(turn)
                status, body, bulk = await self._guarded(run)
            finally:
                for turn in turns:
                    _leave(self.order, turn)
            await self._deliver(peer, call, status, body, bulk)
        finally:
            self._finished(peer, size)

    async def changing(self, number: int, run: Run) -> Result:
        """*run* it, which changes something of chain *number* here: an error may be that of a failing disk."""
        result = await self._guarded(run, noted=True)
        return self._told(result[0], number), *result[1:]

    def _told(self, status: int, number: int) -> int:
        return Status.NOT_SERVING if status in FAILED and self.refuses(number) else status

    def refuses(self, number: int) -> bool:
        """Whether changes of chain *number* are to go to others, because this disk has failed."""
        chain = self.chains.get(number)
        return chain is not None and self.failure.refuses(chain.members)

    async def _guarded(self, run: Run, noted: bool = False) -> Result:
        try:
            return await run()
        except Damaged:
            return Status.CORRUPT, b"", b""
        except OSError as exc:  # the store has logged and counted it
            if noted:
                self.failure.note(exc.errno or 0, str(exc))
            return _status_of(exc), b"", b""

    def in_thread(self, work: Callable[[], Result]) -> Run:
        return partial(self.copies.in_thread, work)

    async def in_turn(self, key: Key, run: Callable[[], Awaitable[bool]]) -> bool:
        """*run* it in the exclusive turn of *key*."""
        turn = self.order.enter(key, shared=False)
        try:
            await _come(turn)
            return await run()
        finally:
            _leave(self.order, turn)

    async def _in_turns(self, keys: list[Key], run: Callable[[], Awaitable[None]]) -> None:
        """*run* it in the exclusive turns of all *keys*."""
        turns = [self.order.enter(key, shared=False) for key in keys]
        try:
            for turn in turns:
                await _come(turn)
            await run()
        finally:
            for turn in turns:
                _leave(self.order, turn)

    def long_ago(self, since: float) -> bool:
        return trio.current_time() - since > limits.MISSED_AFTER_S

    async def _deliver(self, peer: Peer, call: int, status: int, body: bytes, bulk: Buffer) -> None:
        if len(bulk) and peer.conn.closed is None:
            await peer.conn.drain()
        peer.answer(call, status, body, bulk)

    def _finished(self, peer: Peer, size: int) -> None:
        peer.operations -= 1
        peer.bytes -= size
        self.bytes -= size
        peer.room.set()

    # -- operations on objects

    def allows(self, peer: Peer, msg: Any, ino: int, column: int, rights: int) -> int:
        """OK when *peer* has shown that it may do what *msg* asks, else what it is told. Logged, now and then."""
        now = time.time_ns() // 1000
        status = peer.shown.judge(msg.capability, rights, ino, column, msg.chain, now)
        if status != OK and (count := peer.shown.to_tell(now)):
            log.warning(
                "%s (%s): %d refused for the capability shown; %s of inode %d: %s",
                peer.client, peer.conn.where, count, type(msg).__name__, ino, peer.shown.why,
            )  # fmt: skip
        return status

    def _may_change(self, peer: Peer, msg: Any, rights: int) -> int:
        """OK when this change of *peer* may enter the chain here, else what it is told."""
        status = self.chains.judge_client(msg.chain, msg.chain_version)
        if status == OK and self.refuses(msg.chain):
            return Status.NOT_SERVING
        return status if status != OK else self.allows(peer, msg, msg.key.ino, msg.key.column, rights)

    def _write(self, peer: Peer, msg: ObjectWrite, bulk: Buffer) -> None:
        key = (msg.key.ino, msg.key.column)
        status: int | None = self._may_change(peer, msg, WRITE)
        if status == OK:
            status = self._write_at_once(peer, key, msg, bulk) if len(bulk) else OK
        if status is not None:
            peer.answer(msg.call, status)
            return
        change = Change(key, msg.chain, msg.offset, bulk, msg.truncations, peer.client, None)
        self.change(peer, msg.call, msg.chain_version, change)

    def change(self, peer: Peer, call: int, version: int, change: Change) -> None:
        """Carry out *change*, here and at the members of the chain after us."""

        async def run() -> Result:
            status = self.copies.may_change(change, version)  # the chain may have changed before our turn came
            return status if status != OK else await self.copies.change(change), b"", b""

        turns = [self.order.enter(change.key, shared=False)]
        self.work(peer, call, turns, len(change.data), partial(self.changing, change.chain, run))

    def _write_at_once(self, peer: Peer, key: Key, msg: ObjectWrite, bulk: Buffer) -> int | None:
        """Write on the event loop; the status, or None where that is not for the event loop."""
        begun = trio.current_time()
        chain = self.chains.get(msg.chain)
        if chain is None or chain.next is not None or not self._inline(key, len(bulk), begun):
            return None
        try:
            file = self._at_hand(key, len(bulk), create=True, chain=msg.chain)
            if file is None:
                return None
            try:
                if pending(file.last, msg.truncations)[0] is not None:
                    return None  # to trim takes an fsync
                if file.ledger.incarnation < self.store.incarnation:
                    return None  # all of it is looked at first
                if file.fresh[1] - file.fresh[0] + len(bulk) >= limits.START_WRITING_BYTES:
                    return None  # a thread is to see to it that it gets to the disk
                stamp = self.copies.stamp(chain)
                self.store.write(file, msg.offset, bulk, (), peer.client, stamp, msg.chain)
            finally:
                self.store.release(file)
        except Damaged:
            return Status.CORRUPT
        except OSError as exc:  # the store has logged and counted it
            self.failure.note(exc.errno or 0, str(exc))
            return self._told(_status_of(exc), msg.chain)
        finally:
            self._watch_for_slowness(begun)
        return OK

    def _read(self, peer: Peer, msg: ObjectRead, _: Buffer) -> None:
        key = (msg.key.ino, msg.key.column)
        status = self.chains.judge_read(msg.chain, msg.chain_version, now_us())
        if status == OK:
            status = self.allows(peer, msg, msg.key.ino, msg.key.column, READ)
        if status != OK:
            peer.answer(msg.call, status)
            return
        data = self._read_at_once(peer, key, msg)
        if data is not None:
            peer.answer(msg.call, OK, b"", data)
            return
        turns = [self.order.enter(key, shared=True)]
        self.work(peer, msg.call, turns, msg.length, partial(self._read_in_turn, key, msg))

    async def _read_in_turn(self, key: Key, msg: ObjectRead) -> Result:
        while True:
            # It may have waited for its turn, or for the disk, longer than the lease runs.
            status = self.chains.judge_read(msg.chain, msg.chain_version, now_us())
            if status != OK:
                return status, b"", b""
            try:
                done = await self.copies.in_thread(
                    partial(work.read, self.store, key, msg.offset, msg.length, msg.truncations)
                )
            except BadBlock as exc:
                file = self.store.cached(key)
                if file is None:
                    raise
                try:
                    if not await self.copies.mend(file, exc.block, msg.chain):
                        raise
                finally:
                    self.store.release(file)
                continue
            return done

    def _read_at_once(self, peer: Peer, key: Key, msg: ObjectRead) -> Buffer | None:
        """Read on the event loop; None where that is not for the event loop."""
        begun = trio.current_time()
        # Who does not take the answers gets them through drain(), which bounds what is unsent.
        if not self._inline(key, msg.length, begun) or peer.conn.outbound_bytes >= OUTBOUND_HIGH:
            return None
        try:
            file = self._at_hand(key, msg.length, create=False)
            if file is None:
                return None
            try:
                return self.store.read_at_once(file, msg.offset, msg.length, msg.truncations)
            finally:
                self.store.release(file)
        except OSError as exc:
            log.debug("%s: trying again in a thread: %s", file_name(key), exc)
            return None
        finally:
            self._watch_for_slowness(begun)

    def _at_once(self, size: int, opens: bool) -> bool:
        most = INLINE_OPEN_MAX if opens else INLINE_MAX
        return 0 < size <= most and trio.current_time() >= self._threads_until

    def _inline(self, key: Key, size: int, now: float) -> bool:
        return 0 < size <= INLINE_MAX and now >= self._threads_until and key not in self.order

    def _at_hand(self, key: Key, size: int, *, create: bool, chain: int = 0) -> ObjectFile | None:
        """The open object; opened or made now if that is cheap. None: a thread must see to it."""
        file = self.store.cached(key)
        if file is None and size <= INLINE_OPEN_MAX and self.store.has_room:
            file = self.store.fetch(key, create=create, chain=chain)
        return file

    def _watch_for_slowness(self, begun: float) -> None:
        now = trio.current_time()
        if now - begun > SLOW_S:
            self._threads_until = now + SLOW_AVOIDED_S

    def _truncate(self, peer: Peer, msg: ObjectTruncate, _: Buffer) -> None:
        status = self._may_change(peer, msg, TRUNCATE)
        if status != OK or not msg.truncations:
            peer.answer(msg.call, status)
            return
        key = (msg.key.ino, msg.key.column)
        change = Change(key, msg.chain, 0, b"", msg.truncations, peer.client, None)
        self.change(peer, msg.call, msg.chain_version, change)

    def _sync(self, peer: Peer, msg: ObjectSync, _: Buffer) -> None:
        key = (msg.key.ino, msg.key.column)
        status = self._may_change(peer, msg, ANY_DATA)
        if status != OK:
            peer.answer(msg.call, status)
            return
        self.flush(peer, msg.call, key, msg.chain, peer.client, None)

    def flush(self, peer: Peer, call: int, key: Key, number: int, client: str, sender: int | None) -> None:
        """Make the object durable here and at the members of the chain after us."""
        chain = self.chains.get(number)
        if chain is not None and chain.next is None and key not in self.order and self._nothing_to_sync(key):
            peer.answer(call, OK)
            return
        peer.operations += 1
        assert self.nursery is not None, "it is set before anything is served"
        # Shared: it waits for the writes before it, and for nothing else.
        turn = self.order.enter(key, shared=True)
        self.nursery.start_soon(self._flush_in_turn, peer, call, key, turn, number, client, sender)

    async def _flush_in_turn(
        self, peer: Peer, call: int, key: Key, turn: Turn[Key], number: int, client: str, sender: int | None
    ) -> None:
        """Its turn tells which changes it covers; others need not wait while the disks work."""
        try:
            try:
                await _come(turn)
                file = self.store.cached(key)  # what is not open is on disk
                upto = file.book.writes if file is not None else 0
            finally:
                _leave(self.order, turn)
            statuses = [OK, OK]

            async def here() -> None:
                if file is not None:
                    statuses[0] = self._told(await self._sync_file(file, upto, client), number)

            async def beyond() -> None:
                def make(call: int, now: Any) -> ObjectFlush:
                    return ObjectFlush(call, ObjectKey(*key), now.number, now.version, client)

                statuses[1], _ = await self.copies.pass_on(number, sender, make, b"", None)

            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(here)
                    nursery.start_soon(beyond)
            finally:
                if file is not None:
                    self.store.release(file)
            peer.answer(call, statuses[0] or statuses[1])
        finally:
            self._finished(peer, 0)

    async def _sync_file(self, file: ObjectFile, upto: int, client: str) -> int:
        turn = self._syncs.enter(file.key, shared=False)
        try:
            await _come(turn)
            run = self.in_thread(partial(work.sync, self.store, file, upto, client))
            status, _, _ = await self._guarded(run, noted=True)
            self.failure.note(status, f"sync of {file.path}: {os.strerror(status)}")
            return status
        finally:
            _leave(self._syncs, turn)

    def _nothing_to_sync(self, key: Key) -> bool:
        file = self.store.cached(key)
        if file is None:
            return True  # what is not open is on disk, see CopyStore.open and CopyStore._make_room
        try:
            return file.clean and not file.book.owes
        finally:
            self.store.release(file)

    # -- everything else

    def _ping(self, peer: Peer, msg: Ping, _: Buffer) -> None:
        try:
            peer.conn.send(Pong(msg.number, True))
        except ConnectionLost as exc:
            log.debug("%s: pong dropped: %s", peer.conn.where, exc)

    def _pong(self, peer: Peer, msg: Pong, _: Buffer) -> None:
        """A target asks nobody; a peer that answers all the same does no harm."""

    def _stat(self, peer: Peer, msg: TargetStat, _: Buffer) -> None:
        self.work(peer, msg.call, [], 0, self.in_thread(partial(work.stat, self.store)))

    def _scrub(self, peer: Peer, msg: TargetScrub, _: Buffer) -> None:
        async def run() -> Result:
            return OK, await self.scrub.step(msg), b""

        self.work(peer, msg.call, [], 0, run)

    def _status(self, peer: Peer, msg: StatusCall, _: Buffer) -> None:
        now = trio.current_time()
        known: dict[str, object] = {
            "role": "ossd",
            "id": self.id,
            "witness": self.witness,
            "cluster": self.store.identity.cluster.hex(),
            "uuid": self.store.identity.uuid.hex(),
            "incarnation": self.store.incarnation,
            "format": self.store.identity.version,
            "objects": self.store.objects,
            "objects_counted": self.counted,
            "disk_errors": self.store.disk_errors,
            "failure": self.failure.reason,
            "blocks_bad": self.store.bad_blocks,
            "blocks_mended": self.copies.mended,
            "blocks_torn": self.store.torn_blocks,
            "map": self.chains.version,
            "refused": self.keys.refused,
            "syncing": [
                [p.chain, p.target, int(100 * p.share), p.objects, p.bytes, p.seconds_left(now)]
                for p in self.resync.progress.values()
            ],
            "connections": self.connections,
            "bytes_under_way": self.bytes,
        }
        self.work(peer, msg.call, [], 0, self.in_thread(partial(work.status, self.store, known)))


async def _come(turn: Turn[Key]) -> None:
    """Wait for *turn*."""
    if not turn.granted:
        turn.waiter = trio.Event()
        await turn.waiter.wait()


def _leave(order: Order[Key], turn: Turn[Key]) -> None:
    for other in order.leave(turn):
        if other.waiter is not None:  # else it has not begun to wait, and will see that it is granted
            other.waiter.set()

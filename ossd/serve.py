"""The storage target's trio shell: connections, threads for the disk, answers.

Operations on one object run in the order they were received, over all connections; operations on different
objects run side by side.  What the page cache does at once is done on the event loop, what may wait for the disk
in a worker thread (the sizes below say where the line is).
"""

from __future__ import annotations

import errno
import logging
import resource
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import trio

from daemon.journal import JournalCorrupt
from ossd.identity import StoreRefused
from ossd.objects import Order, Truncations, Turn, pending
from ossd.store import OPEN_MAX, Buffer, Key, ObjectFile, Store, file_name
from ossd.witness import WITNESS_NAME, WitnessHost
from wire.codec import pack
from wire.errors import OK, BadMessage, Status, WireError
from wire.ids import PROTOCOL_VERSION
from wire.messages import (
    Answer,
    Hello,
    ObjectDelete,
    ObjectRead,
    ObjectSync,
    ObjectTruncate,
    ObjectWrite,
    Ping,
    Pong,
    Role,
    StatusCall,
    TargetStat,
    Welcome,
)
from wire.peer import OUTBOUND_HIGH, OUTBOUND_MAX, Connection, ConnectionLost, Handler, Listener

if TYPE_CHECKING:
    from daemon.config import Config

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

Result = tuple[int, bytes, Buffer]
"""(status, body, bulk) of an answer."""
_DONE: Final[Result] = (OK, b"", b"")
_PASSED_ON: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})
"""Errors of the disk that tell a client something; all others are EIO to it."""


def _status_of(exc: OSError) -> int:
    return exc.errno if exc.errno in _PASSED_ON else errno.EIO


class _Peer:
    """One connection's side of things: who it is, and how much it has under way."""

    def __init__(self, conn: Connection, hello: Hello, nursery: trio.Nursery) -> None:
        self.conn = conn
        self.role = hello.role
        self.client = f"{hello.role}:{hello.name}"
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


Act = Callable[[_Peer, Any, Buffer], None]
"""What to do with a message: (who sent it, the message, its bulk data)."""


class Target:
    """One storage target in this process."""

    def __init__(self, store: Store, target_id: int, witness: int | None) -> None:
        self.store = store
        self.id = target_id
        self.witness = witness
        self.bytes = 0
        self.connections = 0
        self.counted = False
        self._order: Order[Key] = Order()
        self._syncs: Order[Key] = Order()
        """Order of syncs of one object among each other: the next one often finds its work done."""
        self._threads = trio.CapacityLimiter(DISK_THREADS)
        self._threads_until = 0.0
        everyone: dict[type, Act] = {
            StatusCall: self._status,
            TargetStat: self._stat,
            Ping: self._ping,
            Pong: self._pong,
        }
        data: dict[type, Act] = {ObjectRead: self._read, ObjectTruncate: self._truncate, ObjectSync: self._sync}
        self._table: dict[str, dict[type, Act]] = {
            Role.CLIENT: {**everyone, **data, ObjectWrite: self._write},
            # Objects are deleted by those who know that no name and no handle is left.
            Role.MDS: {**everyone, **data, ObjectDelete: self._delete},
            Role.ADMIN: everyone,
        }

    # -- conversations

    async def converse(self, conn: Connection, hello: Hello) -> None:
        """Serve one connection until it ends. Raises ConnectionLost, WireError with the reason."""
        ended: Exception | None = None
        self.connections += 1
        try:
            async with trio.open_nursery() as nursery:
                try:
                    await self._receive(_Peer(conn, hello, nursery))
                except (ConnectionLost, WireError) as exc:
                    ended = exc  # the listener logs it; a nursery would wrap it in a group
                # Nobody is left to be answered. What is in a thread gets done, what waits is given up.
                nursery.cancel_scope.cancel()
        finally:
            self.connections -= 1
        if ended is not None:
            raise ended

    async def _receive(self, peer: _Peer) -> None:
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
            elif len(bulk) and type(msg) is not ObjectWrite:
                self._bad(peer, getattr(msg, "call", None), f"{type(msg).__name__} with {len(bulk)} bytes of data")
            else:
                act(peer, msg, bulk)

    def _too_much(self, peer: _Peer) -> bool:
        if not peer.operations:
            return False
        return (
            peer.operations >= OPERATIONS_MAX or peer.bytes >= CONNECTION_BYTES_MAX or self.bytes >= BYTES_MAX
        )

    def _bad(self, peer: _Peer, call: int | None, what: str) -> None:
        log.warning("bad message: %s: %s", peer.conn.where, what)
        peer.bad += 1
        if peer.bad > BAD_MESSAGES_MAX:
            raise WireError(f"more than {BAD_MESSAGES_MAX} bad messages")
        if call is not None:
            peer.answer(call, Status.BAD_MESSAGE)

    # -- running operations

    def _start(self, peer: _Peer, call: int, turns: list[Turn[Key]], size: int, work: Callable[[], Result]) -> None:
        """Run *work* in a thread when all *turns* have come, then answer *call*. *size*: file data it pins."""
        peer.operations += 1
        peer.bytes += size
        self.bytes += size
        peer.nursery.start_soon(self._in_turn, peer, call, turns, size, work)

    async def _in_turn(
        self, peer: _Peer, call: int, turns: list[Turn[Key]], size: int, work: Callable[[], Result]
    ) -> None:
        try:
            try:
                for turn in turns:
                    await _come(turn)
                status, body, bulk = await self._in_thread(work)
            finally:
                for turn in turns:
                    _leave(self._order, turn)
            await self._deliver(peer, call, status, body, bulk)
        finally:
            self._finished(peer, size)

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        try:
            return await trio.to_thread.run_sync(work, limiter=self._threads)
        except OSError as exc:  # the store has logged and counted it
            return _status_of(exc), b"", b""

    async def _deliver(self, peer: _Peer, call: int, status: int, body: bytes, bulk: Buffer) -> None:
        if len(bulk):
            await peer.conn.drain()
        peer.answer(call, status, body, bulk)

    def _finished(self, peer: _Peer, size: int) -> None:
        peer.operations -= 1
        peer.bytes -= size
        self.bytes -= size
        peer.room.set()

    # -- operations on objects

    def _write(self, peer: _Peer, msg: ObjectWrite, bulk: Buffer) -> None:
        key = (msg.key.ino, msg.key.column)
        status = self._write_at_once(peer, key, msg, bulk)
        if status is not None:
            peer.answer(msg.call, status)
            return
        turns = [self._order.enter(key, shared=False)]
        work = partial(_write, self.store, key, msg.offset, bulk, msg.truncations, peer.client)
        self._start(peer, msg.call, turns, len(bulk), work)

    def _write_at_once(self, peer: _Peer, key: Key, msg: ObjectWrite, bulk: Buffer) -> int | None:
        """Write on the event loop; the status, or None where that is not for the event loop."""
        begun = trio.current_time()
        if not self._inline(key, len(bulk), begun):
            return None
        try:
            file = self._at_hand(key, len(bulk), create=True)
            if file is None:
                return None
            try:
                if pending(file.last, msg.truncations)[0] is not None:
                    return None  # to trim takes an fsync
                self.store.write(file, msg.offset, bulk, (), peer.client)
            finally:
                self.store.release(file)
        except OSError as exc:  # the store has logged and counted it
            return _status_of(exc)
        finally:
            self._watch_for_slowness(begun)
        return OK

    def _read(self, peer: _Peer, msg: ObjectRead, _: Buffer) -> None:
        key = (msg.key.ino, msg.key.column)
        data = self._read_at_once(peer, key, msg)
        if data is not None:
            peer.answer(msg.call, OK, b"", data)
            return
        turns = [self._order.enter(key, shared=True)]
        work = partial(_read, self.store, key, msg.offset, msg.length, msg.truncations)
        self._start(peer, msg.call, turns, msg.length, work)

    def _read_at_once(self, peer: _Peer, key: Key, msg: ObjectRead) -> Buffer | None:
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

    def _inline(self, key: Key, size: int, now: float) -> bool:
        return 0 < size <= INLINE_MAX and now >= self._threads_until and key not in self._order

    def _at_hand(self, key: Key, size: int, *, create: bool) -> ObjectFile | None:
        """The open object; opened or made now if that is cheap. None: a thread must see to it."""
        file = self.store.cached(key)
        if file is None and size <= INLINE_OPEN_MAX and self.store.has_room:
            file = self.store.fetch(key, create=create)
        return file

    def _watch_for_slowness(self, begun: float) -> None:
        now = trio.current_time()
        if now - begun > SLOW_S:
            self._threads_until = now + SLOW_AVOIDED_S

    def _truncate(self, peer: _Peer, msg: ObjectTruncate, _: Buffer) -> None:
        key = (msg.key.ino, msg.key.column)
        turns = [self._order.enter(key, shared=False)]
        self._start(peer, msg.call, turns, 0, partial(_truncate, self.store, key, msg.truncations, peer.client))

    def _delete(self, peer: _Peer, msg: ObjectDelete, _: Buffer) -> None:
        keys = list(dict.fromkeys(msg.keys))
        turns = [self._order.enter(key, shared=False) for key in keys]
        self._start(peer, msg.call, turns, 0, partial(_delete, self.store, keys))

    def _sync(self, peer: _Peer, msg: ObjectSync, _: Buffer) -> None:
        key = (msg.key.ino, msg.key.column)
        if key not in self._order and self._nothing_to_sync(key):
            peer.answer(msg.call, OK)
            return
        peer.operations += 1
        # Shared: it waits for the writes before it, and for nothing else.
        peer.nursery.start_soon(self._sync_in_turn, peer, msg.call, key, self._order.enter(key, shared=True))

    def _nothing_to_sync(self, key: Key) -> bool:
        file = self.store.cached(key)
        if file is None:
            return True  # what is not open is on disk, see Store.open and Store._make_room
        try:
            return file.clean and not file.book.owes
        finally:
            self.store.release(file)

    async def _sync_in_turn(self, peer: _Peer, call: int, key: Key, turn: Turn[Key]) -> None:
        """Its turn tells which changes it covers; others need not wait while the disk works."""
        try:
            file: ObjectFile | None = None
            try:
                await _come(turn)
                file = self.store.cached(key)
                upto = file.book.writes if file is not None else 0
            finally:
                _leave(self._order, turn)
            if file is None:
                peer.answer(call, OK)
                return
            try:
                status = await self._sync_file(file, upto, peer.client)
            finally:
                self.store.release(file)
            peer.answer(call, status)
        finally:
            self._finished(peer, 0)

    async def _sync_file(self, file: ObjectFile, upto: int, client: str) -> int:
        turn = self._syncs.enter(file.key, shared=False)
        try:
            await _come(turn)
            status, _, _ = await self._in_thread(partial(_sync, self.store, file, upto, client))
            return status
        finally:
            _leave(self._syncs, turn)

    # -- everything else

    def _ping(self, peer: _Peer, msg: Ping, _: Buffer) -> None:
        try:
            peer.conn.send(Pong(msg.number, True))
        except ConnectionLost as exc:
            log.debug("%s: pong dropped: %s", peer.conn.where, exc)

    def _pong(self, peer: _Peer, msg: Pong, _: Buffer) -> None:
        """A target asks nobody; a peer that answers all the same does no harm."""

    def _stat(self, peer: _Peer, msg: TargetStat, _: Buffer) -> None:
        self._start(peer, msg.call, [], 0, partial(_stat, self.store))

    def _status(self, peer: _Peer, msg: StatusCall, _: Buffer) -> None:
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
            "connections": self.connections,
            "bytes_under_way": self.bytes,
        }
        self._start(peer, msg.call, [], 0, partial(_status, self.store, known))


async def _come(turn: Turn[Key]) -> None:
    """Wait for *turn*."""
    if not turn.granted:
        turn.waiter = trio.Event()
        await turn.waiter.wait()


def _leave(order: Order[Key], turn: Turn[Key]) -> None:
    for other in order.leave(turn):
        if other.waiter is not None:  # else it has not begun to wait, and will see that it is granted
            other.waiter.set()


# --- what runs in threads -------------------------------------------------------------------------


def _write(store: Store, key: Key, offset: int, data: Buffer, truncations: Truncations, client: str) -> Result:
    if not len(data):
        return _DONE  # writes nothing, so it needs no object; the next request trims as well as this one
    file = store.fetch(key, create=True)
    assert file is not None
    try:
        store.write(file, offset, data, truncations, client)
    finally:
        store.release(file)
    return _DONE


def _read(store: Store, key: Key, offset: int, length: int, truncations: Truncations) -> Result:
    file = store.fetch(key, create=False)
    if file is None:
        return _DONE
    try:
        return OK, b"", store.read(file, offset, length, truncations)
    finally:
        store.release(file)


def _truncate(store: Store, key: Key, truncations: Truncations, client: str) -> Result:
    if truncations:
        file = store.fetch(key, create=True)
        assert file is not None
        try:
            store.truncate(file, truncations, client)
        finally:
            store.release(file)
    return _DONE


def _delete(store: Store, keys: list[Key]) -> Result:
    store.delete(keys)
    return _DONE


def _sync(store: Store, file: ObjectFile, upto: int, client: str) -> Result:
    return store.sync(file, upto, client), b"", b""


def _stat(store: Store) -> Result:
    total, free = store.space()
    return OK, pack((total, free, store.objects)), b""


def _status(store: Store, known: dict[str, object]) -> Result:
    total, free = store.space()
    return OK, pack(known | {"bytes_total": total, "bytes_free": free}), b""


# --- the daemon -----------------------------------------------------------------------------------


def _descriptors() -> int:
    """Have as many descriptors as we may; how many objects may be open then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < 4 * OPEN_MAX and soft != hard:
        soft = 4 * OPEN_MAX if hard == resource.RLIM_INFINITY else min(hard, 4 * OPEN_MAX)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return OPEN_MAX if soft == resource.RLIM_INFINITY else max(16, min(OPEN_MAX, soft // 2))


async def _count(target: Target) -> None:
    try:
        await trio.to_thread.run_sync(target.store.count_objects)
    except OSError as exc:
        log.error("target %d: objects cannot be counted: %s", target.id, exc)
        return
    target.counted = True


async def serve(
    config: Config, target_id: int, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve target *target_id* of *config* until cancelled; ``started`` gives the port.

    Raises :class:`StoreRefused` for a data directory that is not this target's, ConfigError when the configuration
    has no such target, OSError.
    """
    settings = config.target(target_id)
    # Listen first: a second daemon that is started by mistake finds the address taken before it touches the disk.
    listener = Listener(settings.address)
    try:
        open_store = partial(Store.open, settings.data, config.cluster.id, target_id, open_max=_descriptors())
        store = await trio.to_thread.run_sync(open_store)
        try:
            target = Target(store, target_id, settings.witness)
            await _run(config, target, listener, task_status)
        finally:
            store.stop_counting()
            with trio.CancelScope(shield=True):  # all operations have ended: whoever stops us waits for the disk
                await trio.to_thread.run_sync(store.close)
            log.info("target %d: stopped, everything is on disk", target_id)
    finally:
        listener.close()


async def _run(config: Config, target: Target, listener: Listener, task_status: trio.TaskStatus[int]) -> None:
    handlers: dict[str, Handler] = dict.fromkeys((Role.CLIENT, Role.MDS, Role.ADMIN), target.converse)
    witness: WitnessHost | None = None
    if target.witness is not None:
        witness = WitnessHost(config, target.witness, target.store.path / WITNESS_NAME)
        handlers[Role.REPLICA] = witness.converse

    def judge(hello: Hello) -> str | None:
        if hello.role == Role.REPLICA and witness is not None:
            return witness.judge(hello)
        if hello.role in handlers:
            return None
        if hello.role == Role.REPLICA:
            return f"target {target.id} hosts no witness"
        return f"role {hello.role} has no business with a storage target"

    def welcome(hello: Hello) -> Welcome:
        if hello.role == Role.REPLICA and witness is not None:
            return witness.welcome()
        who = target.store.identity
        return Welcome(PROTOCOL_VERSION, Role.TARGET, str(target.id), who.uuid, target.store.incarnation)

    async def converse(conn: Connection, hello: Hello) -> None:
        await handlers[hello.role](conn, hello)

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_count, target)
            if witness is not None:
                witness.start()
                nursery.start_soon(witness.watch)
            log.info("target %d: serving %s on port %d", target.id, target.store.path, listener.port)
            task_status.started(listener.port)
            await listener.serve(nursery, config.cluster.id, judge, welcome, converse)
    finally:
        if witness is not None:
            witness.close()


def main(config: Config, target_id: int) -> int:
    """Run the daemon until SIGTERM or SIGINT; the process's exit code."""
    from daemon.exits import EXIT_FAILED
    from daemon.process import run

    refused: list[StoreRefused | JournalCorrupt] = []

    async def until_stopped() -> None:
        try:
            await serve(config, target_id)
        except (StoreRefused, JournalCorrupt) as exc:
            refused.append(exc)  # one line for the operator, without a traceback

    code = run(until_stopped)
    if refused:
        log.critical("target %d cannot start: %s", target_id, refused[0])
        return EXIT_FAILED
    return code

"""The trio shell of :mod:`client.session`: callers wait here for the metadata service.

A call is sent on the socket by the caller's own task; the reader task wakes the caller with the answer.  There
is no queue and no other task in between.
"""

from __future__ import annotations

import errno
import logging
import os
import random
import time
from collections.abc import Callable
from typing import Any, Final, Protocol

import outcome
import trio

from client import limits
from client.attributes import attr_untrusted
from client.namecache import NameCache, Stamp, Touched
from client.session import Session, State
from client.session_events import (
    Abandon,
    Attached,
    Close,
    Closed,
    Complete,
    Connect,
    Connected,
    Disconnected,
    Drop,
    Event,
    HandleClosed,
    Kind,
    Reason,
    Received,
    Send,
    SessionLost,
    Submit,
    Tick,
    ViewLearned,
)
from wire.codec import encode, unpack_untrusted
from wire.delegation import CreateDelegated, DelegationRecall
from wire.errors import OK, FileSystemError, WireError, to_errno
from wire.ids import PROTOCOL_VERSION
from wire.messages import Answer, CacheLease, Hello, KeepCache, Recall, Recalled, Role
from wire.ops import Create, Link, Mkdir, Mknod, Open, Rename, Rmdir, Symlink
from wire.peer import Connection, ConnectionLost, dial

log = logging.getLogger(__name__)

_OPENS: Final = (Create, CreateDelegated, Open)
_MAKES: Final = (Create, Mkdir, Mknod, Symlink, Link)
"""Requests whose answer tells of a name, and so may come with a cache lease."""
_QUIET: Final = frozenset((Reason.CONNECT_FAILED, Reason.CONNECT_TIMEOUT, Reason.CLOSING))
"""Reasons logged as one line per outage, not per attempt."""


Told = Callable[[int, bytes, Stamp | None, bytes], None]
"""What is called with (status, body, the cache's stamp if the answer came under a lease, capability or b"")."""


class Ahead(Protocol):
    """Who answers callers ahead of the service (client.births)."""

    def is_ahead(self) -> bool:
        """Whether :meth:`clear` may have to wait."""
        ...

    async def clear(self, op: Any) -> None:
        """Wait until *op* may be sent: the service knows everything that it may be about."""
        ...

    def on_recall(self, directories: tuple[int, ...]) -> None:
        """These delegations are wanted back."""
        ...

    def on_attached(self) -> None:
        """The session goes on at another replica, or is a new one."""
        ...

    def on_session_lost(self) -> None: ...

    def on_doubt(self) -> None:
        """A request that nobody waited for any more may have taken a directory away."""
        ...


class _Link:
    """A connection that is made or dialled."""

    __slots__ = ("address", "conn", "dialling")

    def __init__(self, address: str) -> None:
        self.address = address
        self.conn: Connection | None = None
        self.dialling = trio.CancelScope()


class MetadataClient:
    """Requests and queries to the metadata service, whichever of its replicas is alive."""

    def __init__(
        self,
        cluster: bytes,
        replicas: tuple[tuple[int, str], ...],
        name: str,
        *,
        prefer: int | None = None,
        soft_after: float | None = None,
        aside: int = 0,
    ) -> None:
        """*replicas*: ((id, address), ...); *name* is what the replicas' logs call us (host:pid:mountpoint).

        *prefer*, *soft_after*, *aside*: see :class:`client.session.Session`."""
        entropy = random.SystemRandom()
        self.uuid = os.urandom(16)
        """In our Hello, here and to targets: capabilities are good for that alone."""
        self._hello = Hello(PROTOCOL_VERSION, cluster, Role.CLIENT, name, self.uuid, 0, "main")
        self._core = Session(
            name,
            os.urandom(16),
            replicas,
            random.Random(entropy.getrandbits(64)),
            prefer=prefer,
            soft_after=soft_after,
            aside=aside,
            new_key=lambda: os.urandom(16),
            kernel_ms=lambda: self.cache.kernel_ms(boottime()),
        )
        self._waiting: dict[int, trio.lowlevel.Task] = {}
        """token -> the task that waits for it."""
        self._token = 0
        self.cache = NameCache()
        self._leased: Stamp | None = None
        """Of the answer that is being taken in, if it came under a lease."""
        self._granted = b""
        """The capability that came with it."""
        self._given_up: list[tuple[int, Any, Touched]] = []
        """Requests that nobody waits for and that may be executed yet: what they touch is not cached before they are
        over."""
        self._keeps = 0
        self._kept_at: dict[int, float] = {}
        """When each KeepCache that is not answered yet was sent."""
        self._asked_at = 0.0
        """When the lease was last asked for."""
        self._recalled_at = 0.0
        """From when all recalls so far are done."""
        self._told: dict[int, Told] = {}
        """token -> what is called with the answer, where no task waits for it."""
        self.ahead: Ahead | None = None
        self._early: dict[int, tuple[int, bytes]] = {}
        """Answers given before their caller began to wait (within its own step)."""
        self._conn: Connection | None = None
        """The one the session is attached over."""
        self._conn_number = 0
        self._links: dict[int, _Link] = {}
        """connection number -> every connection that is made or dialled, that one included."""
        self._nursery: trio.Nursery | None = None
        self._timer = trio.CancelScope()
        self._timer_at = float("inf")
        self._attached = trio.Event()
        self.ended = trio.Event()
        """The session is over, as :meth:`close` asked."""
        self._down_since: float | None = None
        self.generation = 0
        """Counts sessions lost: a handle opened in an earlier one is stale."""

    # -- callers

    async def request(self, op: Any) -> Any:
        """Have the service execute *op* (a request of wire.ops) exactly once; its result.

        Raises :class:`FileSystemError` with the status. Cancelling the caller does not undo the request: it may be
        executed yet.
        """
        result, _ = await self.request_granting(op)
        return result

    async def request_granting(self, op: Any, shown: bytes = b"") -> tuple[Any, bytes]:
        """As :meth:`request`: (result, the capability that came with it or b""). *shown*: the capability that *op*
        needs (see :meth:`client.capabilities.Access.request`)."""
        cache = self.cache
        self._use_cache()
        if self.ahead is not None and self.ahead.is_ahead():
            await self.ahead.clear(op)  # no checkpoint between this and the call
        touched = cache.begin(op)
        token = self._token + 1
        try:
            status, body, stamp, granted = await self._call(Kind.REQUEST, op, shown)
        except trio.Cancelled:
            self._given_up.append((token, op, touched))
            raise
        if status == errno.ETIMEDOUT and self._core.is_outstanding(token):
            self._given_up.append((token, op, touched))
            raise FileSystemError(status, type(op).__name__)
        if status != OK:
            cache.end(op, touched, False, None, None)
            raise FileSystemError(status, type(op).__name__)
        result = unpack_untrusted(body)
        cache.end(op, touched, True, attr_untrusted(result) if isinstance(op, _MAKES) else None, stamp)
        return result, granted

    async def query(self, op: Any) -> Any:
        """Ask the service *op* (a query of wire.ops); its result. Raises :class:`FileSystemError` with the status."""
        result, _ = await self.query_granting(op)
        return result

    async def query_granting(self, op: Any, shown: bytes = b"") -> tuple[Any, bytes]:
        """As :meth:`query`: (result, the capability that came with it or b""). *shown*: as for requests."""
        if self.ahead is not None and self.ahead.is_ahead():
            await self.ahead.clear(op)
        status, body, _, granted = await self._call(Kind.QUERY, op, shown)
        if status != OK:
            raise FileSystemError(status, type(op).__name__)
        return unpack_untrusted(body), granted

    async def query_leased(self, op: Any) -> tuple[int, Any, Stamp | None]:
        """As :meth:`query`, but (status, result, the cache's stamp if the answer may be kept under the lease)."""
        self._use_cache()
        if self.ahead is not None and self.ahead.is_ahead():
            await self.ahead.clear(op)
        status, body, stamp, _ = await self._call(Kind.QUERY, op)
        return status, unpack_untrusted(body) if status == OK else None, stamp

    async def ask(self, op: Any) -> tuple[int, Any]:
        """Have the service execute *op*, a request that changes nothing that is kept here and that others may wait for:
        (status, result)."""
        status, body, _, _ = await self._call(Kind.REQUEST, op, first=True)
        return _result(op, status, body)

    async def look(self, op: Any) -> tuple[int, Any]:
        """Ask the service *op*, a query, whatever is unborn: (status, result)."""
        status, body, _, _ = await self._call(Kind.QUERY, op)
        return _result(op, status, body)

    def submit(self, op: Any, told: Told) -> None:
        """As :meth:`ask`, without waiting: *told* is called with the answer."""
        self._token = token = self._token + 1
        self._told[token] = told
        self._step(Submit(token, Kind.REQUEST, encode(op), isinstance(op, _OPENS), first=True))

    async def _call(
        self, kind: Kind, op: Any, shown: bytes = b"", *, first: bool = False
    ) -> tuple[int, bytes, Stamp | None, bytes]:
        self._token = token = self._token + 1
        now = trio.current_time()
        self._carry_out(self._core.step(Submit(token, kind, encode(op), isinstance(op, _OPENS), shown, first), now))
        if self._early:
            # Refused within the step, without any answer from outside.
            early = self._early.pop(token, None)
            if early is not None:
                await trio.lowlevel.checkpoint()
                status, body = early
                if status == OK:
                    raise AssertionError("a call cannot succeed before it was answered")
                return status, body, None, b""
        task = trio.lowlevel.current_task()
        self._waiting[token] = task

        def abort(_raise_cancel: Any) -> trio.lowlevel.Abort:
            del self._waiting[token]
            self._step(Abandon(token))
            return trio.lowlevel.Abort.SUCCEEDED

        answer: tuple[int, bytes, Stamp | None, bytes] = await trio.lowlevel.wait_task_rescheduled(abort)
        return answer

    def handle_closed(self, ino: int) -> None:
        """A handle that an Open or Create counted is closed (told to the replica in batches)."""
        self._step(HandleClosed(ino))

    async def wait_attached(self) -> None:
        """Wait until some replica has taken the session for the first time."""
        await self._attached.wait()

    @property
    def address(self) -> str:
        """Of the replica in use (or being tried)."""
        return self._core.address

    @property
    def core(self) -> Session:
        """For reports and tests; not to be stepped."""
        return self._core

    # -- the shell

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve callers until :meth:`close` is done (or cancelled)."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._keep_cache)
            task_status.started()
            try:
                await self._run_timer()
            finally:
                # Callers may outlive us by a moment; they are told that it is over.
                self._nursery = None
                self.ended.set()
                for link in self._links.values():
                    if link.conn is not None:
                        link.conn.close("client ended")
            nursery.cancel_scope.cancel()

    async def _run_timer(self) -> None:
        while not self.ended.is_set():
            self._timer_at = self._core.next_deadline()
            with trio.CancelScope(deadline=self._timer_at) as self._timer:
                await self.ended.wait()
            if not self.ended.is_set():
                self._step(Tick())

    async def close(self) -> None:
        """Close the session (a bounded wait for a replica to confirm it) and end :meth:`run`."""
        self._step(Close())
        await self.ended.wait()

    def _step(self, event: Event) -> None:
        self._carry_out(self._core.step(event, trio.current_time()))

    def _carry_out(self, effects: list[Any]) -> None:
        """Carry out *effects* in order. What breaks on the way becomes an event of its own afterwards."""
        broken: ConnectionLost | None = None
        number = 0
        told: list[tuple[Told, int, bytes, Stamp | None, bytes]] = []
        for effect in effects:
            kind = type(effect)
            if kind is Send:
                conn = self._conn if effect.conn == self._conn_number else self._connection(effect.conn)
                if conn is not None and broken is None:
                    try:
                        conn.send(effect.message)
                    except ConnectionLost as exc:
                        broken, number = exc, effect.conn
            elif kind is Complete:
                task = self._waiting.pop(effect.token, None)
                if task is not None:
                    answer = (effect.status, effect.body, self._leased, self._granted)
                    trio.lowlevel.reschedule(task, outcome.Value(answer))
                elif effect.token in self._told:
                    call = self._told.pop(effect.token)
                    told.append((call, effect.status, effect.body, self._leased, self._granted))
                else:
                    self._early[effect.token] = (effect.status, effect.body)
            else:
                self._rare(effect)
        if broken is not None:
            # Not within a caller's step: the reader task finds the connection closed and says so itself.
            log.debug("connection %d: %s", number, broken)
        deadline = self._core.next_deadline()
        if deadline < self._timer_at:
            self._timer_at = self._timer.deadline = deadline
        # Last: they may have more to send.
        for call, status, body, stamp, granted in told:
            call(status, body, stamp, granted)

    def _connection(self, number: int) -> Connection | None:
        link = self._links.get(number)
        return None if link is None else link.conn

    def _rare(self, effect: Any) -> None:
        match effect:
            case Connect(conn=conn, address=address):
                assert self._nursery is not None
                self._links[conn] = _Link(address)
                self._nursery.start_soon(self._serve_connection, conn, address)
            case Drop():
                self._drop(effect)
            case Attached(address=address, session=session, fresh=fresh, conn=conn):
                self._conn, self._conn_number = self._connection(conn), conn
                lasted = "" if self._down_since is None else f" after {trio.current_time() - self._down_since:.2f} s"
                self._down_since = None
                verb = "opened" if fresh else "goes on"
                log.info("session %d %s at %s%s", session, verb, address, lasted)
                self._attached.set()
                if self.ahead is not None:
                    self.ahead.on_attached()
            case SessionLost(session=session, unknown=unknown, handles=handles):
                self.generation += 1
                log.error(
                    "session %d has expired: %d requests have an unknown outcome (their callers get EIO), "
                    "%d open handles are stale", session, unknown, handles,
                )  # fmt: skip
                if self.ahead is not None:
                    self.ahead.on_session_lost()
            case ViewLearned(generation=generation, epoch=epoch, members=members):
                log.info("view %d.%d: replicas %s", generation, epoch, ", ".join(f"{i} ({a})" for i, a in members))
            case Closed(told=told):
                if not told:
                    log.warning("the session could not be closed; it will expire by itself")
                self.ended.set()
            case _:
                raise AssertionError(f"effect {effect!r} is not known here")

    def _drop(self, drop: Drop) -> None:
        link = self._links.pop(drop.conn, None)
        address = "a replica" if link is None else link.address
        if drop.standby:
            log.debug("the connection with %s that stood by: %s (%s)", address, drop.reason.value, drop.detail)
        elif drop.reason not in _QUIET:
            log.warning("leaving %s: %s (%s)", address, drop.reason.value, drop.detail)
        elif drop.reason is not Reason.CLOSING and self._down_since is None:
            log.warning("%s: %s (%s); trying the others", address, drop.reason.value, drop.detail)
        if self._down_since is None and not drop.standby:
            self._down_since = trio.current_time()
        if drop.conn == self._conn_number:
            self._conn, self._conn_number = None, 0
            # What was kept is this replica's word. The attachment elsewhere will say that we have let go of it, so it
            # is dropped before: `drop` comes before the message that attaches, and nobody else runs in between.
            self.cache.lost()
            self._kept_at.clear()
        if link is not None:
            link.dialling.cancel()
            if link.conn is not None:
                link.conn.close(drop.reason.value)

    async def _serve_connection(self, number: int, address: str) -> None:
        """Dial, then feed the core what comes in until the connection ends."""
        link = self._links.get(number)
        if link is None:
            return  # dropped before it was begun
        conn: Connection | None = None
        why = "dropped"
        with link.dialling:
            try:
                conn = await dial(address, self._hello)
            except (ConnectionLost, ValueError) as exc:
                why = str(exc)
        if conn is None or number not in self._links or self._nursery is None:
            if conn is not None:
                conn.close("given up")
            self._ended(number, why)
            return
        link.conn = conn
        self._nursery.start_soon(conn.run_writer)
        try:
            self._step(Connected(number))
            core = self._core
            while True:
                message, _ = await conn.receive()
                if isinstance(message, CacheLease | Recall):
                    self._on_cache(conn, message)
                    continue
                if isinstance(message, DelegationRecall):
                    if self.ahead is not None:
                        self.ahead.on_recall(message.parents)
                    continue
                self._leased = self.cache.stamp if isinstance(message, Answer) and message.lease else None
                self._granted = message.capability if isinstance(message, Answer) else b""
                self._carry_out(core.step(Received(number, message), trio.current_time()))
                self._leased = None
                self._granted = b""
        except ConnectionLost as exc:
            why = str(exc)
        except WireError as exc:
            log.warning("%s: %s", conn.where, exc)
            why = f"protocol: {exc}"
        finally:
            conn.close(why)
        self._ended(number, why)

    def _ended(self, number: int, why: str) -> None:
        """Connection *number* is no more; the core knows that already if it was dropped."""
        if number in self._links:
            self._step(Disconnected(number, why))

    # -- the cache lease

    async def _keep_cache(self) -> None:
        """Extend the cache lease while the cache is of use."""
        while True:
            await trio.sleep(limits.CACHE_KEEP_S)
            for call in [c for c in self._given_up if not self._core.is_outstanding(c[0])]:
                self._given_up.remove(call)
                _, op, touched = call
                self.cache.end(op, touched, False, None, None)
                if self.ahead is not None and isinstance(op, Rename | Rmdir):
                    self.ahead.on_doubt()
            now = boottime()
            if now - self.cache.used <= limits.CACHE_IDLE_S:
                self._ask_lease(now)

    def _use_cache(self) -> None:
        """An operation begins. After a pause the lease has lapsed: asked for first, the operation's answer counts."""
        self.cache.used = now = boottime()
        if now >= self.cache.until and now - self._asked_at > limits.CACHE_ASK_S:
            self._ask_lease(now)

    def _ask_lease(self, now: float) -> None:
        conn = self._conn
        if conn is None or self._core.state is not State.READY:
            return
        self._asked_at = now
        self._keeps += 1
        self._kept_at[self._keeps] = now
        try:
            conn.send(KeepCache(self._keeps))
        except ConnectionLost as exc:
            log.debug("cache lease: %s", exc)  # the reader task sees it, too, and carries on elsewhere

    def _on_cache(self, conn: Connection, message: CacheLease | Recall) -> None:
        if isinstance(message, CacheLease):
            sent = self._kept_at.pop(message.number, None)
            if sent is not None and conn is self._conn:
                self.cache.renewed(message.epoch, sent + message.lease_us / 1e6)
            return
        now = boottime()
        self._recalled_at = max(self._recalled_at, self.cache.recall(message.inodes, message.names, now))
        if self._recalled_at <= now:
            self._say_recalled(conn, message.number)
        elif self._nursery is not None:
            # Recalled speaks for all recalls before it as well, so they are answered in order.
            self._nursery.start_soon(self._recalled_later, conn, message.number, self._recalled_at - now)

    async def _recalled_later(self, conn: Connection, number: int, delay: float) -> None:
        """The kernel may use entries of a directory a moment longer."""
        await trio.sleep(delay)
        self._say_recalled(conn, number)

    def _say_recalled(self, conn: Connection, number: int) -> None:
        try:
            conn.send(Recalled(number))
        except ConnectionLost as exc:
            log.debug("recall %d: %s", number, exc)  # the replica waits for our lease to run out instead


def _result(op: Any, status: int, body: bytes) -> tuple[int, Any]:
    """(status, result) of what nobody waits for who could be told that the answer makes no sense."""
    try:
        return status, unpack_untrusted(body) if status == OK else None
    except WireError as exc:
        log.error("the answer to a %s: %s", type(op).__name__, exc)
        return errno.EPROTO, None


def boottime() -> float:
    """Seconds of the clock that leases are measured by: it goes on during suspend."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def errno_of(exc: FileSystemError) -> int:
    """The errno an application sees for *exc*."""
    try:
        return to_errno(exc.status)
    except ValueError:  # a status of a newer service: nothing better is known here
        return errno.EIO

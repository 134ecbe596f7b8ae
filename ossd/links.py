"""Connections from this target to other targets: dialled when needed, calls multiplexed by their number.

A call ends with its answer, or with :class:`Unreachable` when the connection breaks; what then is for the chain's
version to say (:mod:`ossd.copies`), not for a connection.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import outcome
import trio

from ossd import limits
from wire.errors import WireError
from wire.ids import PROTOCOL_VERSION
from wire.messages import Answer, Hello, Ping, Pong, Role
from wire.peer import Buffer, Connection, ConnectionLost, dial

log = logging.getLogger(__name__)


class Unreachable(Exception):
    """The other target does not answer; whether it has done what was asked is not known."""


class Link:
    """Calls to target *target*."""

    def __init__(self, nursery: trio.Nursery, target: int, address: str, hello: Hello) -> None:
        self.target = target
        self.address = address
        self._hello = hello
        self._pending: dict[int, trio.lowlevel.Task] = {}
        self._last = 0
        self._conn: Connection | None = None
        self._dialling: trio.Event | None = None
        self._pause_until = 0.0
        self._pause = limits.LINK_BACKOFF_FIRST_S
        self._nursery = nursery

    async def call(self, make: Callable[[int], Any], bulk: Buffer = b"") -> tuple[Answer, Buffer]:
        """Send *make(call)* with *bulk* and wait for its answer. Raises :class:`Unreachable`."""
        conn = self._conn or await self._connected()
        self._last += 1
        number = self._last
        try:
            conn.send(make(number), bulk)
        except ConnectionLost as exc:
            raise Unreachable(str(exc)) from exc
        self._pending[number] = trio.lowlevel.current_task()

        def abort(_raise_cancel: Any) -> trio.lowlevel.Abort:
            del self._pending[number]
            return trio.lowlevel.Abort.SUCCEEDED

        answer: tuple[Answer, Buffer] = await trio.lowlevel.wait_task_rescheduled(abort)
        return answer

    async def _connected(self) -> Connection:
        """The connection, made by whoever comes first; the others wait for him."""
        if self._dialling is not None:
            await self._dialling.wait()
            if self._conn is None:
                raise Unreachable(f"target {self.target} was not reached")
            return self._conn
        self._dialling = done = trio.Event()
        try:
            await trio.sleep(max(0.0, self._pause_until - trio.current_time()))
            conn = await dial(self.address, self._hello)
        except ConnectionLost as exc:
            self._pause_until = trio.current_time() + self._pause
            self._pause = min(2 * self._pause, limits.LINK_BACKOFF_MAX_S)
            raise Unreachable(str(exc)) from exc
        finally:
            self._dialling = None
            done.set()
        self._pause = limits.LINK_BACKOFF_FIRST_S
        self._conn = conn
        self._nursery.start_soon(self._serve, conn)
        return conn

    async def _serve(self, conn: Connection) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(conn.run_writer)
            try:
                while True:
                    message, bulk = await conn.receive()
                    if isinstance(message, Answer):
                        task = self._pending.pop(message.call, None)
                        if task is not None:
                            trio.lowlevel.reschedule(task, outcome.Value((message, bulk)))
                    elif isinstance(message, Ping):
                        conn.send(Pong(message.number, True))
            except ConnectionLost as exc:
                log.info("link with target %d: %s", self.target, exc)
            except WireError as exc:
                log.warning("link with target %d: %s", self.target, exc)
            finally:
                conn.close("left")
                self._broken(conn)
            nursery.cancel_scope.cancel()

    def _broken(self, conn: Connection) -> None:
        if self._conn is not conn:
            return
        self._conn = None
        pending, self._pending = self._pending, {}
        for task in pending.values():
            trio.lowlevel.reschedule(task, outcome.Error(Unreachable(conn.closed or "closed")))

    def close(self) -> None:
        """Break the connection: who waits for an answer goes on."""
        if self._conn is not None:
            self._conn.close("given up")


class Links:
    """All links of target *me*."""

    def __init__(self, cluster: bytes, me: int, uuid: bytes, run: int) -> None:
        self._hello = Hello(PROTOCOL_VERSION, cluster, Role.TARGET, str(me), uuid, run, "main")
        self._links: dict[int, Link] = {}
        self.nursery: trio.Nursery | None = None

    def get(self, target: int, address: str) -> Link:
        """The link to *target*, which is reached at *address*."""
        link = self._links.get(target)
        if link is None or link.address != address:
            assert self.nursery is not None, "it is set before anything is served"
            if link is not None:
                link.close()
            link = self._links[target] = Link(self.nursery, target, address, self._hello)
        return link

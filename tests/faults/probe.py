"""Queries to one replica, again and again, whatever it looks like from outside.

A client leaves a replica that is silent or does not serve; what such a replica would answer is never seen then. A probe
stays: its queries lie in the socket of a replica that is stopped and in the queue of one that is cut off, and what
they are answered in the end is judged like all else. Queries need no session.
"""

from __future__ import annotations

from typing import Any, Final

import trio

from client.attributes import attr_untrusted
from client.credentials import ROOT
from daemon.config import Config, ReplicaConfig
from tests.faults.log import Log, seen
from wire import messages as msg
from wire import ops
from wire.codec import encode, unpack_untrusted
from wire.errors import OK, SERVICE_BASE
from wire.ids import PROTOCOL_VERSION
from wire.peer import Connection, ConnectionLost, dial

PACE_S: Final = 0.03
REDIAL_S: Final = 0.1
UNANSWERED_MAX: Final = 60
"""Queries that may wait at the replica: two seconds of them."""


class Probe:
    """See the module. *directories*: what the sessions have found, by name."""

    def __init__(self, config: Config, replica: ReplicaConfig, log: Log, directories: dict[bytes, int]) -> None:
        self._address = replica.address
        self._name = f"probe {replica.id}"
        self._hello = msg.Hello(
            PROTOCOL_VERSION, config.cluster.id, msg.Role.CLIENT, self._name, bytes(16), 0, "main"
        )
        self._log = log
        self._directories = directories
        self._asked: dict[int, int] = {}
        """call -> number in the log"""
        self._call = 0
        self._scope = trio.CancelScope()
        self.cells: list[tuple[str, int, bytes]] = []
        """(cell, which of its directories, the directory's name): asked about in turn."""

    def stop(self) -> None:
        self._scope.cancel()

    async def run(self) -> None:
        with self._scope:
            while True:
                try:
                    conn = await dial(self._address, self._hello)
                    await self._ask_and_listen(conn)
                except ConnectionLost:
                    await trio.sleep(REDIAL_S)  # it is down, or cut off: that is what this is about
                finally:
                    self._forget()
        self._forget()

    def _forget(self) -> None:
        for k in self._asked.values():
            self._log.nothing_said(k)
        self._asked.clear()

    async def _ask_and_listen(self, conn: Connection) -> None:
        """Until the connection breaks: raises ConnectionLost."""
        lost: ConnectionLost | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(conn.run_writer)
                nursery.start_soon(self._ask, conn)
                # Kept and raised outside, because a nursery would wrap it in an exception group.
                try:
                    while True:
                        message, _ = await conn.receive()
                        self._take(conn, message)
                except ConnectionLost as exc:
                    lost = exc
                nursery.cancel_scope.cancel()
        finally:
            conn.close()
        assert lost is not None
        raise lost

    async def _ask(self, conn: Connection) -> None:
        at = 0
        while conn.closed is None:
            await trio.sleep(PACE_S)
            at += 1
            if len(self._asked) >= UNANSWERED_MAX or not self.cells:
                continue
            cell, directory, name = self.cells[at % len(self.cells)]
            ino = self._directories.get(name)
            if ino is not None:
                self._call += 1
                self._asked[self._call] = self._log.begun(self._name, cell, ("readdir", directory))
                try:
                    conn.send(msg.QueryCall(self._call, encode(ops.ReadDir(ROOT, ino, 0, 512))))
                except ConnectionLost:
                    return  # the listener finds the same

    def _take(self, conn: Connection, message: Any) -> None:
        match message:
            case msg.Ping():
                conn.send(msg.Pong(message.number, True))
            case msg.Answer():
                k = self._asked.pop(message.call)
                if message.status == OK:
                    found, _ = unpack_untrusted(message.body)
                    entries = sorted((int(name[1:]), seen(attr_untrusted(attr))) for name, _, attr in found)
                    self._log.ended(k, OK, entries)
                elif message.status >= SERVICE_BASE:
                    self._log.nothing_said(k)  # it does not serve, and says so
                else:
                    self._log.ended(k, message.status, None)

"""The witness that a storage target hosts: a vote on the next view, and nothing else. See vsync.voter."""

from __future__ import annotations

import logging
import os
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import trio

from daemon.acquaintances import Acquaintances
from daemon.journal import FLUSH_MAX_S, Journal, JournalFailed, Watch
from vsync.records import Decided, Flushed, Record
from vsync.view import genesis
from vsync.voter import Witness
from wire.ids import PROTOCOL_VERSION, REPLICA_ID_MAX, number_untrusted
from wire.messages import Hello, Ping, Pong, Role, Welcome
from wire.peer import Connection, ConnectionLost

if TYPE_CHECKING:
    from daemon.config import Config

log = logging.getLogger(__name__)

WITNESS_NAME: Final = "witness"
"""Directory of the witness's journal in the target's data directory."""
WATCH_S: Final = 1.0


class WitnessHost:
    """One witness in this process."""

    def __init__(self, config: Config, number: int, directory: Path) -> None:
        """Raises :class:`daemon.journal.JournalCorrupt`."""
        self.id = number
        replicas = tuple(r.id for r in config.replicas if not r.joins)
        witnesses = tuple(v.id for v in config.voters if v.witness)
        first: list[Record] = [Decided(genesis(replicas, witnesses)), Flushed(0)]
        self.journal = Journal(directory, config.cluster.id, number, first)
        self._witness = Witness(self.journal.durable)
        self._met = Acquaintances(self.journal)
        self._conns: dict[int, Connection] = {}
        self._after: deque[tuple[int, list[tuple[int, Any]]]] = deque()
        self._on_disk = 0
        self._failed: JournalFailed | None = None
        self._wake = trio.Event()

    def start(self) -> None:
        """Start the journal's thread; call from within trio."""
        token = trio.lowlevel.current_trio_token()

        def done(ticket: int) -> None:
            token.run_sync_soon(self._durable, ticket)

        def failed(error: JournalFailed) -> None:
            token.run_sync_soon(self._fail, error)

        self.journal.start(done, failed)

    def close(self) -> None:
        self.journal.close()

    def _fail(self, error: JournalFailed) -> None:
        self._failed = error
        self._wake.set()

    async def watch(self) -> None:
        """Ends the daemon when the journal cannot be written: a vote that may be lost must not be given."""
        watch = Watch(WATCH_S)
        while True:
            with trio.move_on_after(WATCH_S):
                await self._wake.wait()
            if self._failed is not None:
                raise self._failed
            if watch.stuck(self.journal.busy_since):
                log.critical("witness %d: a flush has not come back for %.0f s", self.id, FLUSH_MAX_S)
                os._exit(1)  # the stuck thread could not be joined

    # -- conversations

    def judge(self, hello: Hello) -> str | None:
        """Why a connecting replica is refused, or None."""
        # Which replicas belong to the cluster is in the state that only they have; one that does not finds nobody else
        # to make a view with.
        replica = number_untrusted(hello.name) or 0
        if not 0 < replica <= REPLICA_ID_MAX or replica == self.id:
            return f"replica {hello.name!r} does not belong to this cluster"
        return self._met.judge(replica, hello.uuid, hello.incarnation)

    def welcome(self) -> Welcome:
        journal = self.journal
        return Welcome(PROTOCOL_VERSION, Role.REPLICA, str(self.id), journal.uuid, journal.durable.incarnation)

    async def converse(self, conn: Connection, hello: Hello) -> None:
        """Serve one replica's connection until it ends or is superseded."""
        peer = int(hello.name)
        self._met.introduce(peer, hello.uuid, hello.incarnation)
        old = self._conns.get(peer)
        if old is not None:
            old.close("superseded by a newer connection")
        self._conns[peer] = conn
        try:
            while True:
                message, _ = await conn.receive()
                if type(message) is Ping:
                    conn.send(Pong(message.number, True))  # the connection works: no more is said by it
                else:
                    self._step(peer, message)
        finally:
            if self._conns.get(peer) is conn:
                del self._conns[peer]

    def _step(self, peer: int, message: Any) -> None:
        out = self._witness.step(peer, message)
        for note in out.notes:
            log.info("witness %d: %s", self.id, note)
        # An answer without a record, a refusal for instance, still waits for what was recorded before it.
        self._after.append((out.ticket, out.after))
        if out.records and self.journal.append_now(out.ticket, out.records):
            self._on_disk = out.ticket
        self._durable(self._on_disk)

    def _durable(self, ticket: int) -> None:
        """What was promised, accepted or learned is on disk: say so."""
        self._on_disk = max(self._on_disk, ticket)
        while self._after and self._after[0][0] <= ticket:
            for peer, message in self._after.popleft()[1]:
                conn = self._conns.get(peer)
                if conn is not None:
                    try:
                        conn.send(message)
                    except ConnectionLost as exc:
                        log.debug("witness %d: answer to replica %d dropped: %s", self.id, peer, exc)

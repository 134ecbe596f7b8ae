"""Connections between metadata replicas, and from a replica to the witnesses.

Three connections per pair of replicas (:data:`wire.group.CHANNEL_OF`): control (heartbeats, seal, votes), data
(messages and acknowledgements), bulk (feeds, contents, snapshots).  Of two
replicas the one with the higher id dials; witnesses are dialled.  A newer connection supersedes an older one
of the same peer and channel, whose frames are dropped from then on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import Any, Final

import trio

from daemon.acquaintances import Acquaintances
from wire.codec import encode
from wire.errors import WireError
from wire.group import CHANNEL_OF, CHANNELS
from wire.ids import PROTOCOL_VERSION, REPLICA_ID_MAX, number_untrusted
from wire.messages import Hello, Ping, Pong, Role
from wire.peer import Buffer, Connection, ConnectionLost, dial

log = logging.getLogger(__name__)

WITNESS_CHANNELS: Final = ("control",)
"""Of :data:`wire.group.CHANNELS`, what there is with a witness."""
REDIAL_MIN_S: Final = 0.02
REDIAL_MAX_S: Final = 0.25
"""A replica that comes back is linked within a quarter of a second."""
CONNECT_S: Final = 0.5
"""A connection is made within this time or tried anew: the kernel's own second attempt comes after a second."""
LOOK_S: Final = 0.25
"""How often the one who dialled looks whether both hear each other; twice in a row not, and it dials anew."""
WITNESS_LOOK_S: Final = 0.5
"""As LOOK_S, for a witness. It is needed when a view changes, which takes as long as that at least."""


class Links:
    """All group connections of one replica."""

    def __init__(
        self,
        me: int,
        uuid: bytes,
        incarnation: int,
        cluster: bytes,
        *,
        met: Acquaintances,
        received: Callable[[int, Any, Buffer], None],
        up: Callable[[int], None],
        down: Callable[[int], None],
        works: Callable[[int], bool],
    ) -> None:
        """*received*, *up*, *down* are called from the connection's task. A peer is up when all channels stand: a
        member whose data connection is still being dialled would lose what it is sent, and everybody would wait until
        that is noticed. It is down when the control connection breaks.
        *works*: whether this replica and that peer hear each other."""
        self.me = me
        self._hello = (me, uuid, incarnation, cluster)
        self._met = met
        self._received = received
        self._up = up
        self._down = down
        self._works = works
        self._up_now: set[int] = set()
        self._there: dict[int, trio.Event] = {}
        """Peer -> set, and replaced, when one of its channels is dialled with success: the others need not wait."""
        self._conns: dict[tuple[int, str], Connection] = {}
        self._last: tuple[Any, bytes] = (None, b"")
        self._ponged: set[int] = set()
        """Witnesses that have answered since they were looked at last."""

    # -- sending

    def send(self, peer: int, message: Any, bulk: Buffer = b"") -> None:
        """Send if there is a connection; else the message is lost, as on any network."""
        conn = self._conns.get((peer, CHANNEL_OF.get(type(message), "control")))
        if conn is None:
            return
        if self._last[0] is not message:
            self._last = (message, encode(message))  # one encoding for all receivers of a multicast
        try:
            conn.send_meta(self._last[1], bulk)
        except ConnectionLost as exc:
            log.debug("to replica %d: %s", peer, exc)  # its reader sees the same and reports the link down

    def bulk(self, peer: int) -> Connection | None:
        """The bulk connection with *peer*, for who wants to drain it."""
        return self._conns.get((peer, "bulk"))

    # -- who may connect

    def judge(self, hello: Hello, refusal: Callable[[int], str | None]) -> str | None:
        """Why a connecting replica is refused, or None. *refusal*: why one of that number is, whoever it may be."""
        replica = number_untrusted(hello.name) or 0
        if not 0 < replica <= REPLICA_ID_MAX or replica == self.me:
            return f"replica {hello.name!r} does not belong to this cluster"
        return refusal(replica) or self._met.judge(replica, hello.uuid, hello.incarnation)

    def judge_watchdog(self, hello: Hello) -> str | None:
        """Why the one who says that a replica is dead is not believed, or None: it knows the disk of the dead."""
        replica = number_untrusted(hello.name)
        if replica is None or not self._met.is_disk_of(replica, hello.uuid):
            return f"a watchdog of {hello.name!r} that does not know its replica's disk"
        return None

    def drop(self, peer: int, why: str) -> None:
        """Hang up on *peer*."""
        for channel in CHANNELS:
            conn = self._conns.get((peer, channel))
            if conn is not None:
                conn.close(why)

    def linked(self, peers: Collection[int]) -> bool:
        """The control link with one of *peers* stands."""
        return any(channel == "control" and peer in peers for peer, channel in self._conns)

    # -- connections

    async def accepted(self, conn: Connection, hello: Hello) -> None:
        """Serve a connection that a peer made, until it breaks."""
        self._met.introduce(int(hello.name), hello.uuid, hello.incarnation)
        channel = hello.channel if hello.channel in CHANNELS else "control"
        await self._serve(conn, int(hello.name), channel, CHANNELS)

    async def keep(self, peer: int, address: str, channel: str, channels: tuple[str, ...] = CHANNELS) -> None:
        """Dial *peer* and serve the connection, one of *channels*, again and again, for ever."""
        me, uuid, incarnation, cluster = self._hello
        hello = Hello(PROTOCOL_VERSION, cluster, Role.REPLICA, str(me), uuid, incarnation, channel)
        wait = REDIAL_MIN_S
        said = ""
        while True:
            try:
                conn = await dial(address, hello, CONNECT_S)
            except ConnectionLost as exc:
                if str(exc) != said:
                    said = str(exc)
                    (log.warning if "refused:" in said else log.debug)("no %s link with %d: %s", channel, peer, said)
                with trio.move_on_after(wait):
                    await self._there.setdefault(peer, trio.Event()).wait()
                wait = min(2 * wait, REDIAL_MAX_S)
                continue
            welcome = conn.hello
            assert welcome is not None
            reason = self._met.judge(peer, welcome.uuid, welcome.incarnation)
            if welcome.role != Role.REPLICA or reason is not None:
                log.warning("not linked with %d at %s: %s", peer, address, reason or f"it is a {welcome.role}")
                conn.close()
                await trio.sleep(REDIAL_MAX_S)
                continue
            wait, said = REDIAL_MIN_S, ""
            self._there.pop(peer, trio.Event()).set()
            self._met.introduce(peer, welcome.uuid, welcome.incarnation)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(conn.run_writer)
                if channels == WITNESS_CHANNELS:
                    nursery.start_soon(self._watch_witness, peer, conn)
                elif channel == "control":
                    nursery.start_soon(self._watch, peer)
                await self._serve(conn, peer, channel, channels)
                nursery.cancel_scope.cancel()

    async def _watch(self, peer: int) -> None:
        """Hang up on a silent peer, to dial it anew. Returns then.

        1. A network is cut for a while. 2. TCP sends again what was lost, after twice the time at each attempt. 3. The
        cut is over, and a connection that works in one direction, or on one of the channels, is silent on another for
        as long again as the cut has lasted. One that is dialled now works at once.
        """
        missed = 0
        while missed < 2:
            await trio.sleep(LOOK_S)
            missed = 0 if self._works(peer) else missed + 1
        self.drop(peer, "silent: dialled anew")

    async def _watch_witness(self, peer: int, conn: Connection) -> None:
        """As :meth:`_watch`. A witness says nothing unless it is asked, so it is pinged."""
        missed = number = 0
        while missed < 2:
            number += 1
            self._ponged.discard(peer)
            try:
                conn.send(Ping(number))
            except ConnectionLost:
                return  # whoever serves it has found out, too
            await trio.sleep(WITNESS_LOOK_S)
            missed = 0 if peer in self._ponged else missed + 1
        self.drop(peer, "silent: dialled anew")

    async def _serve(self, conn: Connection, peer: int, channel: str, needed: tuple[str, ...]) -> None:
        old = self._conns.get((peer, channel))
        if old is not None:
            old.close("superseded by a newer connection")
            self._gone(old, peer, channel)
        self._conns[peer, channel] = conn
        conn.where = f"replica {peer} ({channel})"
        if peer not in self._up_now and all((peer, one) in self._conns for one in needed):
            log.info("linked with replica %d", peer)
            self._up_now.add(peer)
            self._up(peer)
        try:
            while True:
                message, bulk = await conn.receive()
                if self._conns.get((peer, channel)) is not conn:
                    return  # superseded: what it still brings is void
                if type(message) is Pong:
                    self._ponged.add(peer)
                    continue
                self._received(peer, message, bulk)
        except ConnectionLost as exc:
            log.debug("%s: %s", conn.where, exc)
        except WireError as exc:
            log.warning("link with replica %d (%s) dropped: %s", peer, channel, exc)
        finally:
            conn.close()
            self._gone(conn, peer, channel)

    def _gone(self, conn: Connection, peer: int, channel: str) -> None:
        if self._conns.get((peer, channel)) is conn:
            del self._conns[peer, channel]
            if channel == "control" and peer in self._up_now:
                self._up_now.discard(peer)
                log.info("link with replica %d is down: %s", peer, conn.closed)
                self._down(peer)

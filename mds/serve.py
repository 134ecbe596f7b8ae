"""The metadata replica's process: sockets, the journal's thread, timers, writing the state. See mds.replica for
what is done with what they bring."""

from __future__ import annotations

import gc
import logging
import os
import random
import sys
import time
from typing import Any, Final

import trio

from daemon.acquaintances import Acquaintances
from daemon.config import Config
from daemon.journal import FLUSH_MAX_S, Journal, JournalCorrupt, JournalFailed, Watch
from daemon.process import run
from mds import limits, snapshot
from mds.caches import LEASE_US
from mds.links import CHANNELS, Links
from mds.machine import Bootstrap, StateMachine
from mds.reclaim import Reclaimer
from mds.replica import Client, Replica
from mds.store import Store, StoreCorrupt, StoreFailed
from mds.tending import Tending
from vsync import effects as ev
from vsync.machine import Machine
from vsync.records import Decided, Flushed, Record
from vsync.view import START, Position, describe_epoch, genesis
from wire import messages as msg
from wire.codec import pack
from wire.errors import OK
from wire.group import SnapshotPart
from wire.ids import PROTOCOL_VERSION
from wire.peer import Buffer, Connection, ConnectionLost, Listener

log = logging.getLogger(__name__)

SWITCH_INTERVAL_S: Final = 0.0005
"""How long the interpreter lets one thread run while another waits: the loop must not wait for a writer's slice."""
GC_THRESHOLD: Final = (20_000, 20, 50)
"""Messages live for a millisecond and hold no cycles: the default, a pass per 700 objects, finds nothing."""
ACTIVE_TICK_US: Final = 3_000
"""Shortest sleep of the timer in an active view: under load its deadline moves with every message."""
IDLE_TICK_US: Final = 10_000
"""Longest sleep of the timer while no view is active: deadlines come and go quickly then."""


def now_us() -> int:
    """The group's clock: goes on during suspend, so a lease never outlives one."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000


class Process:
    """Everything of one replica that lives as long as the process; also the Shell of its Replica."""

    def __init__(self, config: Config, replica_id: int, token: trio.lowlevel.TrioToken) -> None:
        self.config = config
        self.me = replica_id
        self.base = config.replica(replica_id).data
        self.cluster = config.cluster.id
        self.token = token
        self._addresses = {r.id: r.address for r in config.replicas}
        replicas = tuple(sorted(self._addresses))
        witnesses = {v.id: v.address for v in config.voters if v.witness}
        self._witnesses = witnesses
        self.base.mkdir(parents=True, exist_ok=True)
        self.state_path = self.base / "state"
        first: list[Record] = [Decided(genesis(replicas, tuple(witnesses))), Flushed(0)]
        self.journal = Journal(self.base / "journal", self.cluster, replica_id, first)
        snapshot.clear_leftovers(self.base, self.state_path)  # the journal's lock is held: nobody else is at work here
        self._bootstrap = Bootstrap(config.storage.stripe_size, config.storage.stripe_count, config.storage.copies)
        state = StateMachine(Store.open(self.state_path), replica_id, self._bootstrap)
        position = Position.unpack_untrusted(state.position) if state.position is not None else START
        group = Machine(
            replica_id, replicas, self.journal.durable, position,
            rng=random.Random(os.urandom(16)), now=now_us(), lent=LEASE_US,
        )
        self.incarnation = self.journal.durable.incarnation
        self.links = Links(
            replica_id,
            self.journal.uuid,
            self.incarnation,
            self.cluster,
            met=Acquaintances(self.journal),
            received=self._group_message,
            up=lambda peer: self.replica.group_event(ev.LinkUp(peer)),
            down=lambda peer: self.replica.group_event(ev.LinkDown(peer)),
        )
        self.replica = Replica(replica_id, group, state, self)
        self.reclaimer = Reclaimer(self.replica, self.cluster, self.journal.uuid)
        self.tending = Tending(self.replica, self.cluster, self.journal.uuid)
        self.fatal = trio.Event()
        self.error: Exception | None = None
        self._written = position
        self._state_lock = trio.Lock()
        self._receiver = snapshot.Receiver(self.base)
        self._installing = False
        self._timer_scope: trio.CancelScope | None = None
        self._timer_until = 0
        self._nursery: trio.Nursery | None = None
        self._journal_waiters: list[tuple[int, trio.Event]] = []
        log.info(
            "replica %d, incarnation %d: state at index %d, log up to view %s",
            replica_id, self.incarnation, position.index, describe_epoch(group.core.newest.epoch),
        )  # fmt: skip

    # -- Shell

    def now(self) -> int:
        return now_us()

    def stamp_ns(self) -> int:
        return time.time_ns()

    def append(self, ticket: int, records: list[Record]) -> bool:
        return self.journal.append_now(ticket, records)

    def link_send(self, peer: int, message: Any) -> None:
        self.links.send(peer, message)

    def send_snapshot(self, peer: int) -> None:
        assert self._nursery is not None
        self._nursery.start_soon(self._send_snapshot, peer)

    def address_of(self, replica: int) -> str:
        return self._addresses[replica]

    # -- the journal's thread

    def _durable(self, ticket: int) -> None:
        self.replica.durable(ticket)
        self._wake_timer()
        while self._journal_waiters and self._journal_waiters[0][0] <= ticket:
            self._journal_waiters.pop(0)[1].set()

    def _journal_failed(self, error: JournalFailed) -> None:
        self._die(error)

    def _die(self, error: Exception) -> None:
        """Stop the process: nothing that is not durable may be told to anyone any more."""
        if self.error is None:
            self.error = error
            self.fatal.set()

    def start_journal(self) -> None:
        token = self.token

        def done(ticket: int) -> None:
            token.run_sync_soon(self._durable, ticket)

        def failed(error: JournalFailed) -> None:
            token.run_sync_soon(self._journal_failed, error)

        self.journal.start(done, failed)

    # -- messages

    def _group_message(self, peer: int, message: Any, bulk: Buffer) -> None:
        if isinstance(message, SnapshotPart):
            self._snapshot_part(message, bulk)
            return
        self.replica.group_event(ev.Received(peer, message))
        self._wake_timer()

    def judge(self, hello: msg.Hello) -> str | None:
        """Who may connect here."""
        if hello.role == msg.Role.REPLICA:
            return self.links.judge(hello, set(self._addresses))
        if hello.role in (msg.Role.CLIENT, msg.Role.ADMIN):
            return None
        return f"a metadata replica has no use for a {hello.role}"

    def welcome(self, hello: msg.Hello) -> msg.Welcome:
        return msg.Welcome(PROTOCOL_VERSION, msg.Role.REPLICA, str(self.me), self.journal.uuid, self.incarnation)

    async def serve_connection(self, conn: Connection, hello: msg.Hello) -> None:
        """One accepted connection, until it ends."""
        if hello.role == msg.Role.REPLICA:
            await self.links.accepted(conn, hello)
            return
        conn.where = f"{hello.role} {hello.name}"
        client = Client(_Sender(conn), hello.name)
        self.replica.client_joined(client)
        try:
            while True:
                message, _ = await conn.receive()
                if isinstance(message, msg.StatusCall):
                    client.send(msg.Answer(message.call, OK, pack(self.status())))
                else:
                    self.replica.client_message(client, message)
        finally:
            self.replica.client_left(client)

    def status(self) -> dict[str, Any]:
        """What `lockstep status` shows of this replica."""
        replica, core = self.replica, self.replica.group.core
        newest = core.newest
        return {
            "role": "mds",
            "id": self.me,
            "state": "active" if replica.active else ("learner" if core.outside else "changing view"),
            "generation": newest.epoch >> 40,
            "epoch": newest.epoch,
            "members": list(newest.members),
            "voters": list(newest.voters),
            "index": core.history.index,
            "digest": replica.state.digest.hex(),
            "sessions": replica.state.session_count,
            "inodes": replica.state.inodes,
            "clients": sorted(c.name for c in replica.clients if c.session),
            "incarnation": self.incarnation,
            "log_bytes": self.journal.size,
            "unwritten_bytes": replica.state.store.pending_bytes,
            "requests": replica.answered,
            "queries": replica.queried,
            "open_files": len(replica.handles),
            "readable": replica.group.may_read(now_us()),
        }

    # -- time

    async def timer(self) -> None:
        """Step the group's Tick when its deadline comes."""
        while True:
            now = now_us()
            until = self.replica.group.next_deadline()
            if not self.replica.active:
                until = min(until, now + IDLE_TICK_US)
            else:
                until = max(until, now + ACTIVE_TICK_US)
            self._timer_until = until
            if until > now:
                with trio.CancelScope() as self._timer_scope:
                    await trio.sleep((until - now) / 1e6)
                self._timer_scope = None
            else:
                await trio.lowlevel.checkpoint()  # what has arrived is taken in before timers
            if now_us() >= self._timer_until:
                self.replica.group_event(ev.Tick())

    def _wake_timer(self) -> None:
        """The deadline may have come nearer. By less than the shortest sleep it does not count: re-armed with every
        message, the timer would never fire under load, and heartbeats and leases would end."""
        nearer = self.replica.group.next_deadline() + ACTIVE_TICK_US
        if self._timer_scope is not None and nearer < self._timer_until:
            self._timer_scope.cancel()

    async def maintenance(self) -> None:
        """Work owed, and a look at the disk's pulse."""
        watch = Watch(limits.MAINTENANCE_S)
        count = 0
        while True:
            await trio.sleep(limits.MAINTENANCE_S)
            count += 1
            if watch.stuck(self.journal.busy_since):
                log.critical("a flush of the journal has not come back for %.0f s: the disk is unusable", FLUSH_MAX_S)
                os._exit(1)  # the stuck thread could not be joined
            self.replica.maintain(look_at_sessions=count % limits.EXPIRY_EVERY == 0)
            await self.reclaimer.round()

    # -- state on disk

    async def committer(self) -> None:
        while True:
            await trio.sleep(limits.COMMIT_INTERVAL_S)
            async with self._state_lock:
                await self.commit()

    async def commit(self) -> None:
        """Write what was applied to LMDB, in a thread; then the journal may let go of it."""
        position = self.replica.group.position()
        if position == self._written or not self.replica.at_rest:
            return  # nothing new; or something failed half-way, and what is delivered is not what is applied
        state = self.replica.state
        state.set_position(position.pack())
        layer = state.store.freeze()
        if layer is None:
            return
        await trio.to_thread.run_sync(state.store.write, layer)
        state.store.release(layer)
        self._written = position
        self.journal.trim(position)

    async def _send_snapshot(self, peer: int) -> None:
        conn = self.links.bulk(peer)
        try:
            if conn is None:
                return
            async with self._state_lock:
                await self.commit()
                started = time.monotonic()
                size = await snapshot.send(
                    self.replica.state.store, self.base, self.replica.group.transfer.views_for_snapshot(), conn
                )
            log.info("sent a snapshot of %d bytes to learner %d in %.2f s", size, peer, time.monotonic() - started)
        except (ConnectionLost, trio.TooSlowError) as exc:
            log.warning("the snapshot for learner %d broke off: %s", peer, exc or "it takes nothing")
        except StoreFailed as exc:
            log.error("no snapshot for learner %d: %s", peer, exc)
        finally:
            self.replica.group_event(ev.SnapshotSent(peer))

    def _snapshot_part(self, m: SnapshotPart, bulk: Buffer) -> None:
        self.replica.group.transfer.receiving(now_us())
        if not self.replica.group.transfer.learning or self._installing:
            return  # while one is installed, another (asked for meanwhile) must not take its place on disk
        if self._receiver.part(m, bulk):
            assert self._nursery is not None
            self._installing = True
            self._nursery.start_soon(self._install_snapshot, m.views)

    async def _install_snapshot(self, views: tuple[Any, ...]) -> None:
        """Install the received state."""
        try:
            async with self._state_lock:
                await self._replace_state(views)
        finally:
            self._installing = False

    async def _replace_state(self, views: tuple[Any, ...]) -> None:
        """Replace the state by the received one. The group takes no event meanwhile: its history jumps."""
        await trio.to_thread.run_sync(self._receiver.sync)
        received = Store.open(self._receiver.path)
        blob = StateMachine(received, self.me).position
        received.close()
        assert blob is not None, "a snapshot is sent after the position was stored"
        if not self.replica.group.may_install(blob):
            log.info("a snapshot is of no use any more: dropped")
            return
        position = Position.unpack_untrusted(blob)
        self.replica.hold()
        out = self.replica.group.step(ev.SnapshotInstalled(blob, views), now_us())
        on_disk = trio.Event()
        self._journal_waiters.append((out.ticket, on_disk))
        self.journal.append(out.ticket, out.records)
        await on_disk.wait()
        # The journal has let go of what the snapshot replaces; with the old state a restart would only learn again.
        self.replica.state.store.close()
        snapshot.swap_in(self.base, self.state_path)
        self._written = position
        for note in out.notes:
            log.info("%s", note)
        self.replica.resume(StateMachine(Store.open(self.state_path), self.me, self._bootstrap))

    # -- life

    async def run(self, task_status: trio.TaskStatus[int]) -> None:
        listener = Listener(self.config.replica(self.me).address)
        self.start_journal()
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(
                    listener.serve, nursery, self.cluster, self.judge, self.welcome, self.serve_connection
                )
                for peer, address in sorted(self._addresses.items()):
                    if peer < self.me:
                        for channel in CHANNELS:
                            nursery.start_soon(self.links.keep, peer, address, channel, msg.Role.REPLICA)
                for witness, address in sorted(self._witnesses.items()):
                    nursery.start_soon(self.links.keep, witness, address, "control", msg.Role.REPLICA)
                nursery.start_soon(self.timer)
                nursery.start_soon(self.committer)
                nursery.start_soon(self.maintenance)
                nursery.start_soon(self.tending.run)
                gc.collect()
                gc.freeze()  # what lives as long as the process is not looked at again
                gc.set_threshold(*GC_THRESHOLD)
                task_status.started(listener.port)
                await self.fatal.wait()
                assert self.error is not None
                raise self.error
        finally:
            listener.close()
            if self.error is None:
                self._stop_cleanly()

    def _stop_cleanly(self) -> None:
        """Write the state, so that the next start has nothing to replay. Blocking: everything else has ended."""
        self.journal.close()
        state = self.replica.state
        position = self.replica.group.position()
        # 1. The process ends while a snapshot is installed, or by an error half-way. 2. The group's position is ahead
        # of the state. 3. Stored together they say for ever that the state holds what it never saw.
        # Test: test_replica.test_after_an_error_half_way_nothing_more_is_applied.
        if self.replica.at_rest and position != self._written:
            state.set_position(position.pack())
            layer = state.store.freeze()
            if layer is not None:
                state.store.write(layer)
        state.store.close()


class _Sender:
    """A client's connection as the replica sees it: a lost one is found out by its reader."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn

    def send(self, message: Any) -> None:
        try:
            self._conn.send(message)
        except ConnectionLost as exc:
            log.debug("%s: %s", self._conn.where, exc)


async def serve(
    config: Config, replica_id: int, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED
) -> None:
    """Run metadata replica *replica_id* until cancelled. ``started`` gives the port.

    Raises JournalCorrupt, StoreCorrupt with what to do about it; OSError when the address is taken.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    process = Process(config, replica_id, trio.lowlevel.current_trio_token())
    await process.run(task_status)


def main(config: Config, replica_id: int) -> int:
    """Run the daemon in the foreground; the result is the exit code."""

    async def start() -> None:
        try:
            await serve(config, replica_id)
        except* (JournalCorrupt, StoreCorrupt, StoreFailed, JournalFailed) as group:
            for exc in group.exceptions:
                log.critical("%s", exc)
            raise SystemExit(1) from None

    return run(start)

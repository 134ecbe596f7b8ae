"""The metadata replica's process: sockets, the journal's thread, timers, writing the state. See mds.replica for
what is done with what they bring."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import random
import sys
import time
from typing import Any

import trio

from daemon import memory
from daemon.acquaintances import Acquaintances
from daemon.config import Config
from daemon.exits import EXIT_FAILED, EXIT_OK, EXIT_REMOVED, EXIT_RESTART, EXIT_UNUSABLE
from daemon.guarded import Guard
from daemon.journal import FLUSH_MAX_S, Journal, JournalCorrupt, JournalFailed, JournalInUse, Watch
from daemon.process import run
from mds import aside, audit, ending, limits, snapshot, trust
from mds.beginning import beginning, is_new
from mds.caches import LEASE_US
from mds.exports import squash_of
from mds.links import Links
from mds.machine import StateMachine
from mds.reclaim import Reclaimer
from mds.replica import Replica
from mds.roster import Follower, Known, Removed, body_of, first_contact
from mds.shell import Client
from mds.store import Store, StoreCorrupt, StoreDamaged, StoreFailed
from mds.telling import told_by
from mds.tending import Tending
from mds.trimming import Trimmer
from mds.verify import trusted_or_verified
from vsync import effects as ev
from vsync.limits import VIEWS_UNCOMMITTED
from vsync.machine import Machine
from vsync.records import Record
from vsync.view import START, Position, describe_epoch
from wire import messages as msg
from wire.codec import pack, to_tuple
from wire.errors import OK, Status
from wire.group import Digests, LetGo, Obituary, SnapshotPart
from wire.ids import PROTOCOL_VERSION
from wire.peer import Buffer, Connection, ConnectionLost, Listener

log = logging.getLogger(__name__)


def now_us() -> int:
    """The group's clock: goes on during suspend, so a lease never outlives one."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000


class Process:
    """Everything of one replica that lives as long as the process; also the Shell of its Replica."""

    def __init__(
        self,
        config: Config,
        replica_id: int,
        token: trio.lowlevel.TrioToken,
        guard: Guard | None = None,
        joined: Known | None = None,
    ) -> None:
        """*guard*: the pipe to the watchdog. *joined*: what a new replica was told of the cluster that it joins."""
        self.config = config
        self.me = replica_id
        self.base = config.replica(replica_id).data
        self.cluster = config.cluster.id
        self.token = token
        self.base.mkdir(mode=0o700, parents=True, exist_ok=True)  # the keys of capabilities are in there
        self.state_path = self.base / "state"
        first, self._bootstrap = beginning(config, joined)
        self.journal = Journal(self.base / "journal", self.cluster, replica_id, first)
        snapshot.clear_leftovers(self.base, self.state_path)  # the journal's lock is held: nobody else is at work here
        self._read_whole = trusted_or_verified(self.state_path)
        state = StateMachine(Store.open(self.state_path), replica_id, self._bootstrap)
        position = Position.unpack_untrusted(state.position) if state.position is not None else START
        self.journal.state_found(position)
        replicas = tuple(sorted({*state.roster.replica_ids, replica_id}))
        group = Machine(replica_id, replicas, self.journal.durable, position,
                        rng=random.Random(os.urandom(16)), now=now_us(), lent=LEASE_US)  # fmt: skip
        self.incarnation = self.journal.durable.incarnation
        self.links = Links(
            replica_id, self.journal.uuid, self.incarnation, self.cluster,
            met=Acquaintances(self.journal),
            received=self._group_message,
            up=lambda peer: self.replica.group_event(ev.LinkUp(peer)),
            down=lambda peer: self.replica.group_event(ev.LinkDown(peer)),
            works=lambda peer: self.replica.group.hear_each_other(peer),
        )
        self._commit_soon = trio.Event()
        self._rest = memory.Rest()
        self._views_uncommitted = 0
        """View events (and changes of the roster) since what was last written."""
        self.guard = guard
        if guard is not None:
            guard.tell_identity(self.incarnation, self.journal.uuid)  # nobody has met this incarnation yet
        self.follower = Follower(replica_id, self.cluster, self.links, guard, self._die)
        self.replica = Replica(replica_id, group, state, self, aside.kept_alarm(self.state_path))
        self.membership_changed()
        self.reclaimer = Reclaimer(self.replica, self.cluster, self.journal.uuid)
        self.trimmer = Trimmer(self.replica, self.cluster, self.journal.uuid)
        self.tending = Tending(self.replica, self.cluster, self.journal.uuid)
        self.fatal = trio.Event()
        self.error: Exception | None = None
        self._written = position, state.low
        """Up to where the state is on disk: (position, up to which index everything was executed by then)."""
        self._state_lock = trio.Lock()
        self._receiver = snapshot.Receiver(self.base)
        self._outgoing = snapshot.Outgoing()
        self._installing = False
        self._timer_scope: trio.CancelScope | None = None
        self._timer_until = 0
        self._nursery: trio.Nursery | None = None
        self._journal_waiters: list[tuple[int, trio.Event]] = []
        log.info(
            "replica %d, incarnation %d: state at index %d, log up to view %s",
            replica_id, self.incarnation, position.index,
            describe_epoch(group.core.newest.epoch) if group.core.history.views else "none yet",
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

    def membership_changed(self) -> None:
        replica = getattr(self, "replica", None)
        if replica is not None:
            newest = replica.group.core.newest
            self.follower.update(replica.state.roster, (*newest.members, *newest.voters))
            self._views_uncommitted += 1
            if self._views_uncommitted >= VIEWS_UNCOMMITTED:
                self._commit_soon.set()

    def keep_alarm(self, tie: str) -> None:
        aside.keep_alarm(self.state_path, tie)

    def give_up_state(self, why: str, asked: bool) -> None:
        assert self._nursery is not None
        self._nursery.start_soon(self._give_up, ending.GivenUp(why, asked))

    async def _give_up(self, end: ending.GivenUp) -> None:
        await self.leave()
        self._die(end.if_left(self.replica.group.core.outside))

    # -- the journal's thread

    def _durable(self, ticket: int) -> None:
        self.replica.durable(ticket)
        self._wake_timer()
        while self._journal_waiters and self._journal_waiters[0][0] <= ticket:
            self._journal_waiters.pop(0)[1].set()

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
            token.run_sync_soon(self._die, error)

        self.journal.start(done, failed)

    # -- messages

    def _group_message(self, peer: int, message: Any, bulk: Buffer) -> None:
        if isinstance(message, SnapshotPart | LetGo | Digests) and peer in self.replica.group.core.strangers:
            return  # of other sessions, and of another state (the group machine knows what to do with the rest)
        if isinstance(message, SnapshotPart):
            self._snapshot_part(message, bulk)
            return
        if isinstance(message, LetGo):
            self.replica.let_go(message)
            return
        if isinstance(message, Digests):
            self.replica.comparing.told(peer, message)
            return
        self.replica.group_event(ev.Received(peer, message))
        self._wake_timer()

    def judge(self, hello: msg.Hello) -> str | None:
        """Who may connect here."""
        if hello.role == msg.Role.REPLICA:
            return self.links.judge(hello, lambda replica: self.follower.refusal(replica, self.replica.active))
        if hello.role == msg.Role.WATCHDOG:
            return self.links.judge_watchdog(hello)
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
        if hello.role == msg.Role.WATCHDOG:
            await self._hear_watchdog(conn, hello)
            return
        squash = squash_of(self.config.exports, conn.host)
        admin = hello.role == msg.Role.ADMIN and squash is None
        client = Client(_Sender(conn), hello.name, uuid=hello.uuid, squash=squash)
        self.replica.client_joined(client)
        try:
            while True:
                message, _ = await conn.receive()
                if isinstance(message, msg.StatusCall):
                    client.send(msg.Answer(message.call, OK, pack(self.status())))
                elif isinstance(message, msg.RosterCall | msg.ControlCall) and admin:
                    await self._administer(client, message)
                elif isinstance(message, msg.CopyCall) and admin:
                    await self._give_copy(client, message, conn)
                else:
                    self.replica.client_message(client, message)
        finally:
            self.replica.client_left(client)

    async def _hear_watchdog(self, conn: Connection, hello: msg.Hello) -> None:
        """The watchdog of another replica says that it is dead."""
        message, _ = await conn.receive()
        if not isinstance(message, Obituary) or str(message.replica) != hello.name:
            log.warning("%s sent %s, which is not its replica's obituary", conn.where, message)
            return
        log.info("incarnation %d of replica %d is dead, its watchdog says", message.incarnation, message.replica)
        self.replica.group_event(ev.Died(message.replica, message.incarnation))
        self._wake_timer()
        conn.send(msg.Answer(0, OK, b""))

    async def _administer(self, client: Client, message: msg.RosterCall | msg.ControlCall) -> None:
        if isinstance(message, msg.RosterCall):
            newest = to_tuple(self.replica.group.core.newest)
            client.send(msg.Answer(message.call, OK, pack(body_of(self.replica.state.roster, newest))))
            return
        log.warning("%s says: %s", client.name, message.what)
        if message.what in ("force", "trust"):
            self.replica.comparing.trust()
            if message.what == "force":
                self.replica.group_event(ev.ForceView())
            self._wake_timer()
            client.send(msg.Answer(message.call, OK, pack(None)))
            return
        if message.what == "resync":
            alone = not self.may_resync()
            client.send(msg.Answer(message.call, Status.NOT_SERVING if alone else OK, pack(None)))
            if not alone:
                self.replica.comparing.give_up("an administrator gives it up", asked=True)
            return
        await self.leave()
        client.send(msg.Answer(message.call, OK, pack(None)))
        self._die(ending.Asked(EXIT_RESTART if message.what == "restart" else EXIT_OK))

    async def _give_copy(self, client: Client, message: msg.CopyCall, conn: Connection) -> None:
        if not self.replica.at_rest or not self.replica.active:
            client.send(msg.Answer(message.call, Status.NOT_SERVING, b""))
            return
        try:
            size = await self._send_state(conn)
            log.info("gave %s a copy of the state, %d bytes", client.name, size)
        except (trio.TooSlowError, StoreFailed) as exc:
            log.warning("the copy of the state for %s broke off: %s", client.name, exc or "it takes nothing")
            client.send(msg.Answer(message.call, Status.NOT_SERVING, b""))

    async def leave(self) -> None:
        """Have a view decided without this replica, so that nobody has to find out that it is gone. Bounded."""
        replica = self.replica
        with trio.move_on_after(limits.LEAVE_S) as scope:
            # What clients were lent comes back while this replica still serves: the others need not wait for it.
            replica.stop_lending()
            while not replica.lending.all_returned:  # noqa: ASYNC110  (the cores are pure: they have no event to wait for)
                await trio.sleep(limits.LEAVE_LOOK_S)
            replica.group_event(ev.Leave())
            self._wake_timer()
            while not replica.group.may_stop:  # noqa: ASYNC110
                await trio.sleep(limits.LEAVE_LOOK_S)  # the machine's own timers do the work
        if scope.cancelled_caught:
            log.warning("no view without this replica within %.0f s: the others will find out", limits.LEAVE_S)
        else:
            log.info("left out of the view")

    def status(self) -> dict[str, Any]:
        """See :mod:`mds.telling`."""
        return told_by(self)

    # -- time

    async def timer(self) -> None:
        """Step the group's Tick when its deadline comes."""
        while True:
            now = now_us()
            until = self.replica.group.next_deadline()
            if not self.replica.active:
                until = min(until, now + limits.IDLE_TICK_US)
            else:
                until = max(until, now + limits.ACTIVE_TICK_US)
            self._timer_until = until
            if until > now:
                with trio.CancelScope(deadline=trio.current_time() + (until - now) / 1e6) as self._timer_scope:
                    await trio.sleep_forever()
                self._timer_scope = None
            else:
                await trio.lowlevel.checkpoint()  # what has arrived is taken in before timers
            if now_us() >= self._timer_until:
                self.replica.group_event(ev.Tick())

    def _wake_timer(self) -> None:
        """The deadline may have come nearer. By less than the shortest sleep it does not count: re-armed with every
        message, the timer would never fire under load, and heartbeats and leases would end.

        Or it has moved away. Then the timer sleeps on for a while, never beyond the deadline: to wake up for nothing
        every few milliseconds costs as much as a message. (No further than the shortest sleep: the deadline that a
        message has moved away the next one brings back.)
        """
        scope = self._timer_scope
        if scope is None:
            return
        deadline = self.replica.group.next_deadline()
        if deadline + limits.ACTIVE_TICK_US < self._timer_until:
            scope.cancel()
            return
        until = min(deadline, now_us() + limits.ACTIVE_TICK_US)
        if until > self._timer_until + limits.ACTIVE_TICK_US // 2:
            scope.deadline += (until - self._timer_until) / 1e6
            self._timer_until = until

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
            newest = self.replica.group.core.newest
            self.follower.judge_ourselves(self.replica.state.roster, (*newest.members, *newest.voters))
            self.replica.maintain(look_at_sessions=count % limits.EXPIRY_EVERY == 0)

    async def errands(self) -> None:
        """Work owed to storage targets. One that does not answer keeps nothing else waiting."""
        while True:
            await trio.sleep(limits.MAINTENANCE_S)
            await self.reclaimer.round()
            await self.trimmer.round()

    # -- state on disk

    async def committer(self) -> None:
        while True:
            with trio.move_on_after(limits.COMMIT_INTERVAL_S):
                await self._commit_soon.wait()
            self._commit_soon = trio.Event()
            async with self._state_lock:
                wrote = await self.commit()
            if self._rest.begins(idle=not wrote):
                await trio.to_thread.run_sync(memory.give_back)

    async def commit(self) -> bool:
        """Write what was applied to LMDB, in a thread; then the journal may let go of it. False: it was nothing."""
        position, state = self.replica.group.position(), self.replica.state
        stands = position, state.low
        if stands == self._written or not self.replica.at_rest:
            return False  # nothing new; or something failed half-way, and what is delivered is not what is applied
        self._views_uncommitted = 0
        state.set_position(position.pack())
        layer = state.store.freeze()
        if layer is None:
            return False
        settled = state.low == position.index - 1
        total = await trio.to_thread.run_sync(state.store.write, layer)
        state.store.release(layer)
        if settled:
            self.replica.comparing.written(position.index - 1, total)
        self._written = stands
        self.journal.trim(position)
        return True

    async def _send_snapshot(self, peer: int) -> None:
        conn = self.links.bulk(peer)
        try:
            if conn is None:
                return
            started = time.monotonic()
            size = await self._send_state(conn, learner=True)
            log.info("sent a snapshot of %d bytes to learner %d in %.2f s", size, peer, time.monotonic() - started)
        except (ConnectionLost, trio.TooSlowError) as exc:
            log.warning("the snapshot for learner %d broke off: %s", peer, exc or "it takes nothing")
        except StoreFailed as exc:
            log.error("no snapshot for learner %d: %s", peer, exc)
        finally:
            self.replica.group_event(ev.SnapshotSent(peer))

    async def _send_state(self, conn: Connection, learner: bool = False) -> int:
        """What is applied by now, as a snapshot; its size. Raises as :meth:`mds.snapshot.Outgoing.send`."""
        async with contextlib.AsyncExitStack() as held:
            await held.enter_async_context(self._state_lock)
            await self.commit()
            core, views = self.replica.group.core, self.replica.group.transfer.views_for_snapshot()
            store, void = self.replica.state.store, lambda: learner and core.withheld
            return await self._outgoing.send(store, views, conn, held.aclose, void)

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
        await self._outgoing.end()
        # The journal has let go of what the snapshot replaces; with the old state a restart would only learn again.
        self.replica.state.store.close()
        snapshot.swap_in(self.base, self.state_path)
        state = StateMachine(Store.open(self.state_path), self.me, self._bootstrap)
        self._written = position, state.low
        for note in out.notes:
            log.info("%s", note)
        self.replica.resume(state)

    # -- life

    async def run(self, task_status: trio.TaskStatus[Process]) -> None:
        listener = Listener(self.config.replica(self.me).address)
        self.start_journal()
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(
                    listener.serve, nursery, self.cluster, self.judge, self.welcome, self.serve_connection
                )
                self.follower.start(nursery)
                nursery.start_soon(self.follower.ask_when_lonely, self._lonely)
                if self.guard is not None:
                    nursery.start_soon(self.guard.beat)
                nursery.start_soon(self.timer)
                nursery.start_soon(self.committer)
                nursery.start_soon(self.maintenance)
                nursery.start_soon(self.errands)
                nursery.start_soon(self.tending.run)
                nursery.start_soon(audit.audit, lambda: self.replica.state.store, self._read_whole, self._die)
                gc.collect()
                gc.freeze()  # what lives as long as the process is not looked at again
                gc.set_threshold(*limits.GC_THRESHOLD)
                task_status.started(self)
                await self.fatal.wait()
                assert self.error is not None
                raise self.error
        finally:
            listener.close()
            if self.error is None or isinstance(self.error, ending.Asked | ending.GivenUp | Removed):
                self._stop_cleanly()

    def _lonely(self) -> bool:
        """No other replica talks to us."""
        return not self.replica.active and not self.links.linked(self.follower.replicas)

    def _stop_cleanly(self) -> None:
        """Write the state, so that the next start has nothing to replay. Blocking: everything else has ended."""
        self.journal.close()
        state = self.replica.state
        position = self.replica.group.position()
        # 1. The process ends while a snapshot is installed, or by an error half-way. 2. The group's position is ahead
        # of the state. 3. Stored together they say for ever that the state holds what it never saw.
        # Test: test_replica.test_after_an_error_half_way_nothing_more_is_applied.
        if self.replica.at_rest and (position, state.low) != self._written:
            state.set_position(position.pack())
            layer = state.store.freeze()
            if layer is not None:
                state.store.write(layer)
        state.store.close()
        trust.imprint(self.state_path)

    def may_resync(self) -> bool:
        """Others have all that this replica has: it is with them in an active view (or was, when it failed)."""
        return self.replica.active and len(self.replica.group.core.newest.members) > 1


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
    config: Config,
    replica_id: int,
    guard: Guard | None = None,
    join: str | None = None,
    *,
    task_status: trio.TaskStatus[Process] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run metadata replica *replica_id* until cancelled. ``started`` gives its Process.

    *join*: address of a replica of the cluster that this one, if it is new, joins.

    Raises JournalCorrupt, StoreCorrupt with what to do about it; Removed; OSError when the address is taken.
    """
    sys.setswitchinterval(limits.SWITCH_INTERVAL_S)
    me = config.replica(replica_id)
    joined = None
    if (me.joins or join is not None) and is_new(config, replica_id):
        others = tuple(r.address for r in config.replicas if r.id != replica_id)
        joined = await first_contact(replica_id, (join, *others) if join else others, config.cluster.id)
    process = Process(config, replica_id, trio.lowlevel.current_trio_token(), guard, joined)
    await process.run(task_status)


def main(config: Config, replica_id: int, guard: Guard | None = None, join: str | None = None) -> int:
    """Run the daemon in the foreground; the result is the exit code."""
    running: list[Process] = []

    async def start() -> int:
        code = EXIT_OK
        try:
            async with trio.open_nursery() as nursery:
                running.append(await nursery.start(serve, config, replica_id, guard, join))
        except* JournalInUse as group:
            code = ending.said(group, EXIT_FAILED)
        except* (JournalCorrupt, StoreCorrupt, StoreFailed, JournalFailed) as group:
            code = ending.said(group, EXIT_UNUSABLE)
            damaged = all(isinstance(exc, StoreDamaged) for exc in ending.leaves_of(group))
            if damaged and running and running[0].may_resync() and audit.set_aside(running[0].state_path):
                log.error("the damaged state is kept in %s; another is taken from the others", audit.ASIDE)
                code = EXIT_RESTART
        except* ending.GivenUp as group:
            code = aside.give_up(running[0].state_path, ending.leaves_of(group))
        except* Removed as group:
            code = ending.said(group, EXIT_REMOVED)
        except* ending.Asked as group:
            code = next(exc.code for exc in ending.leaves_of(group) if isinstance(exc, ending.Asked))
        return code

    async def leave() -> None:
        for process in running:
            await process.leave()

    return run(start, leave)

"""A whole metadata service in one thread: real replicas over real machines and real state, simulated everything else.

Sockets, journals and time are those of tests.sim; every message goes through its bytes. A seed decides what takes how
long, so a run comes out the same each time it is made. Clients do what client.session does, as little of it as stories
need: attach, number requests, send again elsewhere, declare handles.
"""

from __future__ import annotations

import errno
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final

from mds.batch import Decoded, decode_batch
from mds.caches import LEASE_US
from mds.check import check
from mds.machine import Bootstrap, Outcome, StateMachine
from mds.namespace.layout import INLINE
from mds.replica import Replica
from mds.schema import META, META_POSITION, META_WAITING
from mds.shell import Client
from mds.store import Store
from tests.mds import harness
from tests.sim.clock import MS, SECOND, Scheduler
from tests.sim.disk import After, Disk
from tests.sim.network import Network, pairs_of
from vsync import effects as ev
from vsync.machine import Machine
from vsync.records import Decided, Flushed, Record
from vsync.view import START, Position, genesis
from vsync.voter import Witness
from wire import messages as msg
from wire import ops
from wire.codec import decode, encode, unpack_untrusted
from wire.delegation import CreateDelegated
from wire.errors import OK, SERVICE_BASE, Status
from wire.group import Digests, LetGo
from wire.inline import WriteInline

TOP: Final = harness.TOP
ROOT: Final = harness.ROOT
START_NS: Final = 1_700_000_000_000_000_000
IDLE_TICK: Final = 10 * MS
MAINTENANCE: Final = 100 * MS
LOOK_EVERY: Final = 5
"""Sessions are looked at with every so many rounds of maintenance."""
PING: Final = 150 * MS
SILENCE: Final = 1 * SECOND
KEEP: Final = 80 * MS
STEPS_MAX: Final = 2_000_000
OWN: Final = ((META.number, META_POSITION), (META.number, META_WAITING))
CHANGING: Final = (
    ops.Create, ops.Mkdir, ops.Mknod, ops.Symlink, ops.Link, ops.Unlink, ops.Rmdir, ops.Rename, ops.SetAttr,
    WriteInline,
)  # fmt: skip


def through_bytes(message: Any) -> Any:
    """The message as it arrives."""
    again = decode(encode(message))
    assert again == message, f"{message} came back as {again}"
    return again


class Line:
    """A connection of a client with one life of a replica. What is under way when it breaks is lost."""

    def __init__(self, world: Group, user: User, node: Node) -> None:
        self.world = world
        self.user = user
        self.node = node
        self.life = node.life
        self.up = True
        self.stalled = False
        """Nothing gets to the client any more, but nobody notices."""
        self._arrives = [0, 0]
        self.client = Client(self, user.name, uuid=user.uuid)
        node.lines.append(self)
        node.take(lambda: node.replica.client_joined(self.client))

    def _after_delay(self, direction: int, happen: Callable[[Any], None], message: Any) -> None:
        clock = self.world.clock
        at = max(clock.now + self.world.rng.randrange(50, 400), self._arrives[direction])
        self._arrives[direction] = at
        clock.after(at - clock.now, happen, message)

    def send(self, message: Any) -> None:
        """The replica to its client (mds.shell.ClientConnection)."""
        if self.up:
            self.world.saying(self.user, self.node, message)
            self._after_delay(0, self._to_client, through_bytes(message))

    def ask(self, message: Any) -> None:
        """The client to the replica."""
        if self.up:
            self._after_delay(1, self._to_replica, through_bytes(message))

    def _to_client(self, message: Any) -> None:
        if self.up and not self.stalled and self.user.line is self:
            self.user.receive(message)

    def _to_replica(self, message: Any) -> None:
        if self.up and self.node.life == self.life:
            self.node.take(lambda: self.node.replica.client_message(self.client, message))

    def cut(self, noticed_after: int = 0, lost_after: int = 0) -> None:
        """The connection breaks; the client knows soon after *lost_after*, the replica after *noticed_after*."""
        if not self.up:
            return
        self.up = False
        self.world.clock.after(lost_after + self.world.rng.randrange(1, 5 * MS), self.user.lost, self)
        self.world.clock.after(noticed_after, self._noticed)

    def _noticed(self) -> None:
        node = self.node
        if self in node.lines:
            node.lines.remove(self)
            node.take(lambda: node.replica.client_left(self.client))


def _never(why: str) -> None:
    """No disk fails here."""
    raise AssertionError(why)


class Journal(Disk):
    """A disk that is sometimes so fast that what is appended is on it at once."""

    def append_now(self, records: list[Record], after: After) -> bool:
        return not self._flushing and self._rng.random() >= 0.5 and super().append_now(records, after)


class Node:
    """One replica: what mds.serve does for it, with simulated means. It is the Shell of its Replica."""

    def __init__(self, me: int, world: Group) -> None:
        self.me = me
        self.world = world
        self.base = world.path / f"replica-{me}"
        self.base.mkdir()
        self.disk = Journal(world.clock, world.rng, list(world.first), self._flushed, _never)
        self.offset = world.rng.randrange(1, 1000 * SECOND)
        self.skew = self.offset
        """What its clock of the day shows more than true time."""
        self.running = False
        self.paused = False
        self._inbox: list[Callable[[], None]] = []
        self._taken = 0
        self.life = 0
        self.lines: list[Line] = []
        self.replica: Replica
        self.store: Store
        self.snapshots = 0
        """Snapshots installed."""
        self.alarm = ""
        """What is kept with the state of a tie."""
        self.given_up = 0
        """States that were given up."""
        self._written = START, 0
        self._timer_at = -1
        self._waiters: list[tuple[int, Callable[[], None]]] = []

    # -- life

    def start(self) -> None:
        world = self.world
        self.life += 1
        self.running = True
        self.store = Store.open(self.base / "state")
        state = self._state()
        position = Position.unpack_untrusted(state.position) if state.position is not None else START
        self._written = position, state.low
        durable = self.disk.start()
        rng = Random(world.rng.getrandbits(32))
        group = Machine(self.me, world.replica_ids, durable, position, rng=rng, now=self.now(), lent=LEASE_US)
        self.replica = Replica(self.me, group, state, self, self.alarm)
        self._timer_at = -1
        self.take(lambda: self.replica.group_event(ev.Tick()))
        world.clock.after(world.rng.randrange(MAINTENANCE), self._maintain, self.life, 0)
        world.clock.after(world.rng.randrange(world.commit_pace), self._commit_sometimes, self.life)

    def _state(self) -> StateMachine:
        """The state machine over the store; what it executes is noted."""
        state = StateMachine(self.store, self.me, self.world.bootstrap)
        for index, outcome in state.taken_up:
            self.world.applied(index, [outcome], [None])
        apply = state.apply

        def noted(index: int, origin: int, batch: bytes, known: Decoded | None = None) -> list[Outcome]:
            outcomes = apply(index, origin, batch, known)
            self.world.applied(index, outcomes, decode_batch(batch)[1])
            return outcomes

        execute = state.execute

        def noted_alone(index: int, k: int, op: Any) -> Outcome:
            outcome = execute(index, k, op)
            self.world.applied(index, [outcome], [op])
            return outcome

        state.apply = noted  # type: ignore[method-assign]
        state.execute = noted_alone  # type: ignore[method-assign]
        return state

    def pause(self) -> None:
        """SIGSTOP: nothing happens here any more, and what comes in waits."""
        self.paused = True

    def wake(self) -> None:
        """SIGCONT. Input comes before timers, as mds.serve has it."""
        self.paused = False
        inbox, self._inbox = self._inbox, []
        for happen in inbox:
            self.take(happen)
        self.take(lambda: self.replica.group_event(ev.Tick()))

    def kill(self) -> None:
        """SIGKILL, or the power: what is not in the journal or the state's database is lost."""
        self.running = False
        self.paused = False
        self._inbox.clear()
        self.disk.crash()
        self.store.close()
        self._waiters.clear()
        lines, self.lines = self.lines, []
        for line in lines:
            line.cut(lost_after=self.world.rng.randrange(self.world.notice) if self.world.notice else 0)
        self.world.network.process_died(self.me)

    def take(self, happen: Callable[[], None]) -> None:
        """Something happens to the replica."""
        if not self.running:
            return
        if self.paused:
            self._inbox.append(happen)
            return
        happen()
        self._taken += 1
        if self._taken % self.world.validate_every == 0:
            self.replica.group.validate()
            self.replica.caches.validate()
            self.replica.schedule.validate()
        self._arm()

    # -- Shell

    def now(self) -> int:
        return self.offset + self.world.clock.now

    def stamp_ns(self) -> int:
        return START_NS + 1000 * (self.skew + self.world.clock.now)

    def append(self, ticket: int, records: list[Record]) -> bool:
        if self.world.fast_disks and not self._waiters and self.disk.append_now(records, []):
            return True
        self.disk.append(ticket, records, [])
        return False

    def link_send(self, peer: int, message: Any) -> None:
        self.world.network.send(self.me, peer, through_bytes(message))

    def send_snapshot(self, peer: int) -> None:
        self.commit()
        world = self.world
        path = world.path / f"snapshot-{world.rng.getrandbits(64):x}"
        self.store.copy_to(path)
        views = self.replica.group.transfer.views_for_snapshot()
        connection = world.network.number(self.me, peer)
        took = world.rng.randrange(MS, 50 * MS)
        world.clock.after(took, self._snapshot_sent, self.life, peer, connection, path, views)

    def membership_changed(self) -> None:
        """Links are the network's, here."""

    def keep_alarm(self, tie: str) -> None:
        assert self.world.may_differ, f"a false alarm at {self.me}: {tie} ({self.world.describe()})"
        self.alarm = tie

    def give_up_state(self, why: str, asked: bool) -> None:
        assert self.world.may_differ, f"a false alarm at {self.me}: {why} ({self.world.describe()})"
        self.world.clock.after(MS, self._give_up, self.life)

    def _give_up(self, life: int) -> None:
        """The process ends, its state is moved away, and its watchdog starts it again."""
        if life == self.life and self.running:
            self.kill()
            self.world.certify(self.me)
            self.given_up += 1
            self.alarm = ""
            (self.base / "state").rename(self.base / f"given-up-{self.given_up}")
            self.start()

    def _snapshot_sent(self, life: int, peer: int, connection: int, path: Path, views: tuple[Any, ...]) -> None:
        if connection and self.world.network.number(self.me, peer) == connection:
            self.world.nodes[peer].install(path, views)
        if self.life == life:
            self.take(lambda: self.replica.group_event(ev.SnapshotSent(peer)))

    # -- journal, timer, maintenance

    def _flushed(self, done: list[tuple[int, Any]]) -> None:
        ticket = done[-1][0]
        self.take(lambda: self.replica.durable(ticket))
        while self._waiters and self._waiters[0][0] <= ticket:
            self._waiters.pop(0)[1]()

    def handle(self, peer: int, what: Any) -> None:
        if isinstance(what, LetGo):
            self.take(lambda: self.replica.let_go(what))
            return
        if isinstance(what, Digests):
            self.take(lambda: self.replica.comparing.told(peer, what))
            return
        event = what if isinstance(what, ev.LinkUp | ev.LinkDown) else ev.Received(peer, what)
        self.take(lambda: self.replica.group_event(event))

    def _arm(self) -> None:
        clock = self.world.clock
        wait = self.replica.group.next_deadline() - self.now()
        if not self.replica.active:
            wait = min(wait, IDLE_TICK)
        at = clock.now + max(200, wait)
        if self._timer_at < clock.now or at < self._timer_at:
            self._timer_at = at
            clock.after(at - clock.now, self._timer, self.life, at)

    def _timer(self, life: int, at: int) -> None:
        if life == self.life and self.running and not self.paused and at == self._timer_at:
            self._timer_at = -1
            self.take(lambda: self.replica.group_event(ev.Tick()))

    def _maintain(self, life: int, count: int) -> None:
        if life == self.life and self.running and not self.paused:
            self.take(lambda: self.replica.maintain(look_at_sessions=count % LOOK_EVERY == LOOK_EVERY - 1))
        if life == self.life:
            self.world.clock.after(MAINTENANCE, self._maintain, life, count + 1)

    # -- state on disk

    def _commit_sometimes(self, life: int) -> None:
        if life == self.life and self.running:
            if not self.paused:
                self.commit()
            pace = self.world.commit_pace
            self.world.clock.after(self.world.rng.randrange(pace // 4, 2 * pace), self._commit_sometimes, life)

    def commit(self) -> None:
        position, state = self.replica.group.position(), self.replica.state
        stands = position, state.low
        if stands == self._written or self._waiters:
            return
        assert position.index == state.index + 1 or position == START, "the state has applied what is delivered"
        state.set_position(position.pack())
        layer = self.store.freeze()
        if layer is not None:
            settled = state.low == position.index - 1
            total = self.store.write(layer)
            self.store.release(layer)
            if settled:
                self.replica.comparing.written(position.index - 1, total)
        self._written = stands
        self.disk.trim(position)

    def install(self, path: Path, views: tuple[Any, ...]) -> None:
        """A snapshot has arrived whole: what mds.serve does with it."""
        if not self.running or self.paused or self._waiters:
            return
        received = Store.open(path)
        blob = StateMachine(received, self.me).position
        received.close()
        assert blob is not None
        replica = self.replica
        if not replica.group.may_install(blob):
            return
        replica.hold()
        out = replica.group.step(ev.SnapshotInstalled(blob, views), self.now())

        def on_disk() -> None:
            self.store.close()
            shutil.rmtree(self.base / "state")
            path.rename(self.base / "state")
            self.store = Store.open(self.base / "state")
            self.alarm = ""
            state = self._state()
            self._written = Position.unpack_untrusted(blob), state.low
            self.snapshots += 1
            self.take(lambda: replica.resume(state))

        self._waiters.append((out.ticket, on_disk))
        self.disk.append(out.ticket, out.records, [])


class WitnessNode:
    """A voter without metadata."""

    def __init__(self, me: int, world: Group) -> None:
        self.me = me
        self.world = world
        self.disk = Disk(world.clock, world.rng, [], self._flushed, _never)
        self.running = False

    def start(self) -> None:
        self.running = True
        self._witness = Witness(self.disk.start())

    def kill(self) -> None:
        self.running = False
        self.disk.crash()
        self.world.network.process_died(self.me)

    def handle(self, peer: int, what: Any) -> None:
        if not self.running or isinstance(what, ev.LinkUp | ev.LinkDown):
            return
        out = self._witness.step(peer, what)
        if out.after:
            self.disk.append(out.ticket, out.records, out.after)

    def _flushed(self, done: list[tuple[int, Any]]) -> None:
        for _, after in done:
            for peer, message in after:
                self.world.network.send(self.me, peer, through_bytes(message))


@dataclass(eq=False)
class Call:
    """A request or query of a client, over all its attempts."""

    op: Any
    began: int
    slot: int = -1
    """-1: a query."""
    number: int = 0
    status: int = -1
    """-1: not answered."""
    body: Any = None
    shown: bytes = b""
    """The capability that it shows."""
    granted: bytes = b""
    """The one that came with the answer."""
    ended: int = 0
    answers: int = 0
    refusals: list[int] = field(default_factory=list)
    """Statuses of the service that were not the end of it."""

    @property
    def done(self) -> bool:
        return self.status >= 0

    @property
    def ok(self) -> bool:
        return self.status == OK


class User:
    """A client. It follows the service by itself, unless told to stay (``follows``)."""

    def __init__(self, world: Group, name: str, slots: int = 64) -> None:
        self.world = world
        self.name = name
        self.uuid = name.encode()[:16].ljust(16, b"-")
        """In its Hello, as it were."""
        self.slots = slots
        self.key = world.rng.randbytes(16)
        self.session = 0
        self.follows = True
        self.attached = False
        self.expired = False
        self.at = 0
        """The replica it is connected with, or was last."""
        self.line: Line | None = None
        self.handles: Counter[int] = Counter()
        self.pending: dict[int, Call] = {}
        """By call number on the present connection: outstanding there."""
        self.calls: list[Call] = []
        """Outstanding at all."""
        self.heard = 0
        self.seen: list[Any] = []
        """Everything received, but for answers, pongs and leases."""
        self._call = 0
        self._numbers: Counter[int] = Counter()
        self._opening = 0
        self.attempt = 0
        # The cache (a caching client only).
        self.kept: dict[int, int] = {}
        """Inode -> delivery index up to which what is kept of it is true."""
        self.told: dict[int, int] = {}
        """Call -> delivery index at which it was answered under a lease."""
        self.until = 0
        self.epochs: list[int] = []
        self.answers_recalls = True
        self._kept_at: dict[int, int] = {}

    # -- connecting

    def connect(self, replica: int) -> User:
        """Turn to *replica*: carry the session on there, or open one."""
        assert self.line is None
        self.at = replica
        node = self.world.nodes[replica]
        if not node.running or (0, replica) in self.world.client_cuts:
            if self.follows:
                self.world.clock.after(20 * MS, self._next, replica)
            return self
        self.attached = False
        self.pending.clear()
        self.heard = self.world.clock.now
        self.line = Line(self.world, self, node)
        self._call += 1
        self._opening = self._call
        self.attempt += 1
        if self.session:
            handles = tuple(sorted(self.handles.items()))
            self.line.ask(msg.AttachSession(self._call, self.session, self.key, self.attempt, handles))
        else:
            self.line.ask(msg.OpenSession(self._call, self.key, self.name, self.slots, self.attempt))
        if self.follows:
            self.world.clock.after(PING, self._ping, self.line)
        return self

    def _next(self, replica: int) -> None:
        if self.line is None and self.follows and not self.expired and self.at == replica:
            ids = self.world.replica_ids
            self.connect(ids[(ids.index(replica) + 1) % len(ids)])

    def lost(self, line: Line) -> None:
        if self.line is line:
            self.leave()

    def leave(self, again: bool = False, noticed_after: int = 0) -> None:
        """Give the connection up; go on elsewhere (*again*: at the same replica) if it follows the service."""
        if self.line is not None:
            line, self.line = self.line, None
            line.cut(noticed_after)
        self.attached = False
        self.kept.clear()
        self.until = 0
        if self.follows and not self.expired:
            if again:
                self.world.clock.after(MS, self._again)
            else:
                self.world.clock.after(5 * MS, self._next, self.at)

    def _again(self) -> None:
        if self.line is None:
            self.connect(self.at)

    def _ping(self, line: Line) -> None:
        if self.line is not line:
            return
        if self.world.clock.now - self.heard > SILENCE:
            self.leave()
            return
        line.ask(msg.Ping(1))
        self.world.clock.after(PING, self._ping, line)

    # -- calls

    def request(self, op: Any, slot: int = -1, shown: bytes = b"") -> Call:
        """Begin a request, in a free slot if none is given, that shows a capability."""
        busy = {call.slot for call in self.calls}
        if slot < 0:
            slot = next(s for s in range(self.slots) if s not in busy)
        assert slot not in busy, "one request at a time in a slot"
        self._numbers[slot] += 1
        call = Call(op, self.world.clock.now, slot, self._numbers[slot], shown=shown)
        self.calls.append(call)
        self._send(call)
        return call

    def query(self, op: Any, shown: bytes = b"") -> Call:
        call = Call(op, self.world.clock.now, shown=shown)
        self.calls.append(call)
        self._send(call)
        return call

    def _send(self, call: Call) -> None:
        if self.line is None or not self.attached or call.done:
            return
        self._call += 1
        self.pending[self._call] = call
        if call.slot < 0:
            self.line.ask(msg.QueryCall(self._call, encode(call.op), call.shown))
        else:
            op = encode(call.op)
            self.line.ask(msg.RequestCall(self._call, self.session, call.slot, call.number, op, call.shown))

    def close(self, ino: int, count: int = 1) -> None:
        """Close handles of *ino*."""
        assert self.handles[ino] >= count
        self.handles[ino] -= count
        if not self.handles[ino]:
            del self.handles[ino]
        if self.line is not None:
            self.line.ask(msg.CloseHandles(((ino, count),)))

    # -- what comes back

    def receive(self, message: Any) -> None:
        self.heard = self.world.clock.now
        match message:
            case msg.Answer():
                self._answer(message)
            case msg.Pong():
                pass
            case msg.Ping(number):
                assert self.line is not None
                self.line.ask(msg.Pong(number, False))
            case msg.CacheLease(number, epoch, lease_us):
                if self.epochs and epoch != self.epochs[-1]:
                    self.kept.clear()
                if not self.epochs or epoch != self.epochs[-1]:
                    self.epochs.append(epoch)
                if lease_us:
                    self.until = max(self.until, self._kept_at[number] + lease_us)
            case msg.Recall(number, inodes):
                self.seen.append(message)
                self.kept = {i: at for i, at in self.kept.items() if i not in inodes} if inodes else {}
                if self.answers_recalls and self.line is not None:
                    self.line.ask(msg.Recalled(number))
            case _:
                self.seen.append(message)

    def _answer(self, answer: msg.Answer) -> None:
        if answer.call == self._opening:
            self._opened(answer)
            return
        call = self.pending.pop(answer.call, None)
        if call is None:
            return
        call.answers += 1
        if answer.status >= SERVICE_BASE and answer.status != Status.STALE_NUMBER:
            call.refusals.append(answer.status)
            if answer.status in (Status.NOT_SERVING, Status.NOT_ATTACHED):
                if self.follows:
                    self.leave(again=answer.status == Status.NOT_ATTACHED)
                return
            if answer.status == Status.OVERLOADED:
                self.world.clock.after(10 * MS, self._send, call)
                return
        self.calls.remove(call)
        call.status = answer.status
        call.granted = answer.capability
        call.ended = self.world.clock.now
        if call.ok:
            call.body = unpack_untrusted(answer.body)
            if isinstance(call.op, ops.Create | CreateDelegated):
                self.handles[call.body[0]] += 1
            elif isinstance(call.op, ops.Open):
                self.handles[call.body[0][0]] += 1
            if answer.lease:
                for ino in inodes_told(call):
                    self.kept.setdefault(ino, self.told[answer.call])

    def _opened(self, answer: msg.Answer) -> None:
        if answer.status == Status.SESSION_UNKNOWN:
            self.expired = True
            self.leave()
        elif answer.status != OK:
            if self.follows:
                self.leave()
        else:
            if not self.session:
                self.session = unpack_untrusted(answer.body)
            self.attached = True
            for call in list(self.calls):
                self._send(call)

    # -- the cache

    def caches(self) -> User:
        """From now on it keeps its cache lease up."""
        self._keep(0)
        return self

    def _keep(self, number: int) -> None:
        if self.line is not None and self.attached:
            self._kept_at[number] = self.world.clock.now
            self.line.ask(msg.KeepCache(number))
        self.world.clock.after(KEEP, self._keep, number + 1)

    def may_use(self, ino: int) -> bool:
        """Whether it answers what is asked about *ino* from its cache, now."""
        return ino in self.kept and self.world.clock.now < self.until


def inodes_told(call: Call) -> set[int]:
    """What an answer under a lease is about."""
    op = call.op
    if isinstance(op, CreateDelegated):
        return {op.ino}
    if isinstance(op, ops.Lookup) or hasattr(op, "parent"):
        return {op.parent, call.body[0]}
    if isinstance(op, ops.ReadDir):
        return {op.ino, *(attr[0] for _, _, attr in call.body[0])}
    return {op.ino}


class Group:
    """Replicas, witnesses, clients; started, in one view, and ready."""

    def __init__(self, path: Path, seed: int = 0, replicas: int = 3, witnesses: int = 0, inline: int = INLINE) -> None:
        self.path = path
        self.seed = seed
        self.rng = Random(seed)
        self.clock = Scheduler()
        self.commit_pace = 400 * MS
        self.fast_disks = bool(seed % 2)
        self.replica_ids = tuple(range(1, replicas + 1))
        witness_ids = tuple(range(101, 101 + witnesses))
        self.bootstrap = Bootstrap(
            root_mode=0o777,
            inline=inline,
            replicas=tuple((r, f"replica-{r}") for r in self.replica_ids),
            witnesses=tuple((w, f"witness-{w}") for w in witness_ids),
        )
        self.first: list[Record] = [Decided(genesis(self.replica_ids, witness_ids)), Flushed(0)]
        self.network = Network(
            self.clock, self.rng, pairs_of(self.replica_ids, witness_ids), self._ready, lambda a, b: True, self._input
        )
        self.network.delay = self.rng.choice((200, 400, 2000))
        self.nodes = {r: Node(r, self) for r in self.replica_ids}
        self.witnesses = {w: WitnessNode(w, self) for w in witness_ids}
        self.users: list[User] = []
        self.client_cuts: set[tuple[int, int]] = set()
        self.may_differ = False
        """A story in which states differ; in all others an alarm is a false one."""
        self.validate_every = 1
        """A replica is looked at closely after so many things that happen to it."""
        self.notice = 0
        """A client notices at most so long after it that the process of its replica is gone."""
        self.executed: dict[tuple[int, int, int], int] = {}
        """(session, slot, number) -> the one index at which it was executed, at every replica."""
        self.processes: list[Node | WitnessNode] = [*self.nodes.values(), *self.witnesses.values()]
        for process in self.processes:
            process.start()
        self.network.connect_all()
        self.until(lambda: self.view() == self.replica_ids)

    # -- the world

    def _process(self, who: int) -> Node | WitnessNode:
        return self.nodes[who] if who in self.nodes else self.witnesses[who]

    def _ready(self, who: int) -> bool:
        return self._process(who).running

    def _input(self, who: int, peer: int, what: Any) -> None:
        self._process(who).handle(peer, what)

    def run(self, us: int) -> None:
        """Let time pass."""
        end = self.clock.now + us
        reached: list[bool] = []
        self.clock.after(us, reached.append, True)
        while not reached:
            self.clock.run_one()
        assert self.clock.now == end

    def until(self, reached: Callable[[], Any], within: int = 20 * SECOND) -> None:
        """Let things happen until *reached*."""
        end = self.clock.now + within
        while not reached():
            in_time = self.clock.now < end and self.clock.happened < STEPS_MAX
            assert in_time, f"it does not come to that; {self.describe()}"
            self.clock.run_one()

    def describe(self) -> str:
        def one(node: Node) -> str:
            if not node.running:
                return f"{node.me} is down"
            core = node.replica.group.core
            return f"{node.me} {'active' if node.replica.active else 'inactive'} in {core.newest.members}"

        return f"seed {self.seed}, {self.clock.now / 1000:.1f} ms: " + "; ".join(map(one, self.nodes.values()))

    def view(self) -> tuple[int, ...] | None:
        """The members of the view that all of them are active in, or None."""
        for node in self.nodes.values():
            if node.running and node.replica.active:
                view = node.replica.group.core.newest
                up = [self.nodes[m] for m in view.members]
                if all(n.running and n.replica.group.active_view == view.epoch for n in up):
                    return view.members
        return None

    # -- faults

    def kill(self, replica: int) -> None:
        self.nodes[replica].kill()

    def certify(self, replica: int) -> None:
        """Its watchdog tells everyone who can be told that the process which was killed last is dead."""
        node = self.nodes[replica]
        died = ev.Died(replica, node.replica.group.core.incarnation)
        for other in self.nodes.values():
            if other is not node:
                other.take(lambda other=other: other.replica.group_event(died))  # type: ignore[misc]

    def restart(self, replica: int) -> None:
        if not self.nodes[replica].running:
            self.nodes[replica].start()

    def isolate(self, replica: int) -> None:
        """Cut all its links with other replicas, at once and in both directions. Clients still reach it."""
        for other in (*self.replica_ids, *self.witnesses):
            if other != replica:
                self.network.cut(replica, other)
                self.network.cut(other, replica)

    def heal(self) -> None:
        self.client_cuts.clear()
        self.network.heal(set(self.network.cuts))

    # -- clients

    def user(self, name: str = "user", at: int = 1) -> User:
        """A client that is attached to replica *at*."""
        made = User(self, name)
        self.users.append(made)
        made.connect(at)
        self.until(lambda: made.attached)
        return made

    def complete(self, *calls: Call, within: int = 20 * SECOND) -> Call:
        """Let things happen until the calls are answered. Returns the last."""
        self.until(lambda: all(call.done for call in calls), within)
        return calls[-1]

    def ask(self, user: User, op: Any) -> Any:
        """The result of a query or request that succeeds."""
        begin = user.query if type(op) not in CHANGING else user.request
        call = self.complete(begin(op))
        assert call.ok, f"{op} answered {call.status}"
        return call.body

    def applied(self, index: int, outcomes: list[Outcome], operations: list[Any]) -> None:
        """A replica has applied what is in the batch at *index*. An operation is None where it is not known here."""
        for outcome in outcomes:
            if outcome.store_reply:
                request = outcome.session, outcome.slot, outcome.number
                assert self.executed.setdefault(request, index) == index, f"{request} is executed twice"

    def saying(self, user: User, node: Node, message: Any) -> None:
        """A replica is about to answer: is what it says true for every cache?

        [mds.caches: when a request is answered anywhere, no cache anywhere holds what it changed]
        """
        if not isinstance(message, msg.Answer) or message.status != OK:
            return
        if message.lease:
            user.told[message.call] = node.replica.state.index
        call = user.pending.get(message.call)
        if call is None or call.slot < 0:
            return
        index = self.executed[user.session, call.slot, call.number]
        changed = {getattr(call.op, "parent", getattr(call.op, "ino", 0))}  # 0: nothing that is kept
        if isinstance(call.op, ops.Unlink | ops.Rmdir):
            changed.add(unpack_untrusted(message.body))
        for other in self.users:
            stale = [ino for ino in changed if other is not user and other.may_use(ino) and other.kept[ino] < index]
            assert not stale, f"{call.op} is answered and {other.name} may use {stale} ({self.describe()})"

    # -- the end

    def settle(self) -> None:
        """Everything heals; all replicas come into one view and to one index."""
        self.heal()
        for process in self.processes:
            process.disk.slow = 0
            if not process.running:
                process.start()
            elif isinstance(process, Node) and process.paused:
                process.wake()
        self.until(lambda: self.view() == self.replica_ids, 60 * SECOND)
        self.until(lambda: len({n.replica.group.position() for n in self.nodes.values()}) == 1, 10 * SECOND)

    def finish(self) -> None:
        """At the end of each story: the replicas are alike in everything, nothing is broken, nobody is kept waiting."""
        self.settle()
        self.until(lambda: not any(u.calls for u in self.users if u.line is not None and u.attached))
        self.run(2 * MAINTENANCE)
        self.settle()
        states = [node.replica.state for node in self.nodes.values()]
        for node in self.nodes.values():
            node.replica.validate()
            node.replica.pending.validate()
            assert not node.replica.pending.keys(), "all that was delivered is applied"
            assert check(node.store) == []
        assert len({(state.index, state.digest) for state in states}) == 1, "equal digests at equal index"
        for node in self.nodes.values():
            node.commit()
            node.replica.comparing.alarm.validate()
        self.until(lambda: len({n.replica.comparing.alarm.records.latest for n in self.nodes.values()}) == 1)
        # When a state was last written is each one's own matter, so the position in it is, and what waited there.
        first, *others = [
            [record for record in harness.contents(state.store) if record[:2] not in OWN] for state in states
        ]
        assert all(other == first for other in others)

    def close(self) -> None:
        for node in self.nodes.values():
            if node.running:
                node.running = False
                node.store.close()


def create(name: bytes, parent: int = TOP) -> ops.Create:
    return ops.Create(ROOT, parent, name, 0o644)


def mkdir(name: bytes, parent: int = TOP) -> ops.Mkdir:
    return ops.Mkdir(ROOT, parent, name, 0o777)


def unlink(name: bytes, parent: int = TOP) -> ops.Unlink:
    return ops.Unlink(ROOT, parent, name)


def lookup(name: bytes, parent: int = TOP) -> ops.Lookup:
    return ops.Lookup(ROOT, parent, name)


def names(group: Group, user: User, parent: int = TOP) -> list[bytes]:
    entries, end = group.ask(user, ops.ReadDir(ROOT, parent, 0, 4096))
    assert end
    return [name for name, _, _ in entries]


def gone(status: int) -> bool:
    """The inode is no more."""
    return status in (errno.ESTALE, errno.ENOENT)

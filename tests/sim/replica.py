"""A metadata replica in miniature: the production group machine, and around it what mds.replica and mds.serve are.

It keeps the contract of vsync.effects.Effects as the real shell does, and no more than that: requests wait to become
a batch, are applied in history's order and answered; queries are parked while the lease lapses or a conflicting
message is in the log; the state is committed now and then; snapshots are taken while requests go on.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

from tests.sim.clock import MS, SkewedClock
from tests.sim.disk import Flushed
from tests.sim.holding import LENT, At, Keeping, Part, Waiting
from tests.sim.processes import Process, World
from tests.sim.state import Request, Roster, State, pack_batch, unpack_batch
from vsync import effects as ev
from vsync import limits
from vsync.effects import Delivered, Effects, Event
from vsync.machine import Machine
from vsync.records import Entry, Trimmed
from vsync.records import Flushed as FlushedRecord
from vsync.register import REGISTERS_KEPT
from vsync.view import START, Position

QUEUE_MAX: Final = 64
PARKED_MAX: Final = 512
BATCH: Final = 4
PEERS_MAX: Final = 12
"""Processes there are at most in a run."""
VIEWS_UNDELIVERED: Final = 4
"""Views that are decided one upon the other in a run, at most, without any of them becoming active."""
HOLD_ON: Final = 1500 * MS
"""Clients may stay for so long while no view is active here (mds.limits.HOLD_ON_US)."""
NOT_SERVING: Final = "not serving"

Key = tuple[int, int, int]


@dataclass(slots=True)
class Query:
    """A question about *key* (number: the client's name for it), parked until it may be answered."""

    client: int
    connection: int
    number: int
    key: int
    arrived: frozenset[Key]
    """What was pending when it came: it waits for nothing later."""
    waits: set[Key] = field(default_factory=set)


class Replica(Process):
    """One metadata replica."""

    def __init__(
        self, me: int, world: World, rng: Random, clock: SkewedClock, roster: Roster, everyone: tuple[int, ...],
        first: list[Any], inline: bool, holding: float = 0.0, keeping_rng: Random | None = None,
    ) -> None:  # fmt: skip
        """*holding*: see tests.sim.setup."""
        super().__init__(me, world, rng, first)
        self._holding = holding
        self._keeping_rng = keeping_rng if keeping_rng is not None else rng
        self.clock = clock
        self._roster = roster
        self._everyone = everyone
        self._inline = inline
        self._founder = bool(first)
        self.replaced = False
        """Its disk was: what the old one held is gone, and nobody may count on it."""
        self._life = 0
        self._forget_state()

    def _forget_state(self) -> None:
        self.committed = (START, State(self._roster))
        """What the state's database holds, with its position: a restart begins there."""

    def replace_disk(self) -> None:
        super().replace_disk()
        self._forget_state()
        self.replaced = True

    def lose_state(self) -> None:
        """The database is gone, the journal is not."""
        self._forget_state()

    @property
    def bereft(self) -> bool:
        """Its state does not reach up to where the journal begins: only a snapshot will do."""
        trimmed = max((r.index for r in self.disk.records if isinstance(r, Trimmed)), default=0)
        return self.committed[0].index < trimmed

    # -- life

    def start(self) -> None:
        self.running = True
        self._life += 1
        self.index = self.committed[0].index
        self.state = self.committed[1].copy()
        self._queue: deque[Request] = deque()
        self._waiting: dict[tuple[int, int], int] = {}
        self._parked: list[Query] = []
        self._pending: dict[Key, frozenset[int]] = {}
        self._late = Waiting()
        self._keeping = Keeping(self._keeping_rng, self._holding) if self._holding else None
        self._events: deque[Event] = deque()
        self._busy = False
        self._on_disk = 0
        self._uncommitted = 0
        """View events delivered since the last commit."""
        self._returned: set[tuple[int, int]] = set()
        """(replica, incarnation) of the dead whose clients have said that they keep nothing of what it lent."""
        self._installing: tuple[int, Position, State] | None = None
        """A snapshot whose state is committed when the journal has the ticket on disk."""
        self._timer_at = -1
        self._inactive_since: int | None = self.now
        self._was_outside = False
        self._take_up()
        durable = self.disk.start()
        rng = Random(self.rng.getrandbits(32))
        self.machine = self._make_machine(durable, rng)
        for entry in self.machine.core.history.undelivered():
            self._entered(entry)
        if self._founder or self.index:
            self._events.append(ev.Roster(*self.state.roster))
        self.step(ev.Tick())

    def _make_machine(self, durable: Any, rng: Random) -> Machine:
        return Machine(self.me, self._everyone, durable, self.committed[0], rng=rng, now=self.now,
                       lent=LENT if self._holding else 0)  # fmt: skip

    def _take_up(self) -> None:
        """Nobody is answered by this, and nobody asks here before a later view is active."""
        for at, outcome in self.state.take_up():
            self.world.checkers.applied(self.me, at, outcome)

    @property
    def now(self) -> int:
        return self.clock.local(self.world.clock.now)

    @property
    def serving(self) -> bool:
        """Clients may stay: active, or in the middle of a view change that has not taken long yet."""
        since = self._inactive_since
        return since is None or (not self.machine.core.outside and self.now - since < HOLD_ON)

    # -- input

    def handle(self, kind: str, *args: Any) -> None:
        if kind == "input":
            peer, what = args
            self.step(what if isinstance(what, ev.LinkUp | ev.LinkDown) else ev.Received(peer, what))
        elif kind == "flushed":
            self._carried_out(args[0])
        elif kind == "request":
            self._request(*args)
        elif kind == "query":
            self._query(*args)
        elif kind == "event":
            if isinstance(args[0], ev.Leave):
                self._call_back()
            if isinstance(args[0], ev.ChangeView) and not self.machine.core.history.views:
                return  # no administrator can ask that of a replica which has joined and not been told of a view yet
            self.step(args[0])
        elif kind == "let go":
            self._let_go(*args)
        elif kind == "returned":
            self._returned.add(args[0])
            self.step(ev.Tick())
        elif kind == "snapshot":
            self._snapshot_came(*args)
        elif kind == "snapshot sent":
            life, peer = args
            if life == self._life:
                self.step(ev.SnapshotSent(peer))

    def _carried_out(self, done: Flushed) -> None:
        life = self._life
        each = self.rng.random() < 0.5  # one DurableUpTo for each ticket, or one for all of them
        for ticket, after in done:
            self._send_after(after)
            if each and self._life == life and self.running:
                self._durable(ticket)
        if not each and self._life == life and self.running:
            self._durable(done[-1][0])

    def _send_after(self, after: list[tuple[int, Any]]) -> None:
        for peer, message in after:
            if peer == self.me:
                self.step(ev.Received(peer, message))
            else:
                self.world.send(self.me, peer, message)

    def _durable(self, ticket: int) -> None:
        if self._installing is not None and ticket >= self._installing[0]:
            if self._installing[1].index > self.committed[0].index:
                self.committed = self._installing[1:]
            self._installing = None
        self._on_disk = max(self._on_disk, ticket)
        self.step(ev.DurableUpTo(ticket))

    # -- clients

    def _request(self, client: int, connection: int, request: Request) -> None:
        if not self.serving or len(self._queue) >= QUEUE_MAX:
            self.world.answer(self.me, client, connection, request.number, NOT_SERVING)
            return
        self._waiting[client, request.number] = connection
        self._queue.append(request)
        self._run()

    def _query(self, client: int, connection: int, number: int, key: int) -> None:
        if not self.serving or len(self._parked) >= PARKED_MAX:
            self.world.answer(self.me, client, connection, number, NOT_SERVING)
            return
        query = Query(client, connection, number, key, frozenset(self._pending))
        if not self._answer(query):
            self._parked.append(query)

    def _answer(self, query: Query) -> bool:
        """Answer from our own state, if that is allowed now: see mds.replica.Replica._answer."""
        if query.waits or not self.machine.may_read(self.now):
            return False
        query.waits = self._conflicts(query)
        if query.waits:
            return False
        late = [at[0] for at, request in self.state.waiting.items() if request.key == query.key]
        self.world.checkers.read(self.me, query.number, query.key, min(late, default=self.index))
        value = self.state.values.get(query.key)
        if not any(query.key in keys for keys in self._pending.values()):
            self._lend(query.key)
        self.world.answer(self.me, query.client, query.connection, query.number, value)
        return True

    def _conflicts(self, query: Query) -> set[Key]:
        """[10-group: a query waits for every conflicting message in the log that is not applied yet]"""
        return {k for k, keys in self._pending.items() if query.key in keys and k in query.arrived}

    def _unpark(self) -> None:
        parked, self._parked = self._parked, []
        for query in parked:
            query.waits = {k for k in query.waits if k in self._pending}
            if not self._answer(query):
                self._parked.append(query)

    def _turn_away(self) -> None:
        """Left out of the view: every client goes on elsewhere, with what it has outstanding."""
        for (client, number), connection in self._waiting.items():
            self.world.answer(self.me, client, connection, number, NOT_SERVING)
        for query in self._parked:
            self.world.answer(self.me, query.client, query.connection, query.number, NOT_SERVING)
        self._waiting.clear()
        self._parked.clear()
        self._queue.clear()
        if self._keeping is not None:
            self._keeping.forget()

    # -- steps

    def step(self, event: Event) -> None:
        """One event of the group, and what follows from it."""
        self._events.append(event)
        self._run()

    def _run(self) -> None:
        if self._busy:
            return
        self._busy = True
        life = self._life
        while self.running and self._life == life:
            if self._events:
                self._one(self._events.popleft())
            elif self._queue and self.machine.may_submit:
                batch = [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]
                self._one(ev.Submit(pack_batch(batch)))
            else:
                break
        if self._life != life:
            return
        self._busy = False
        if self.running:
            if self._parked:
                self._unpark()
            self._arm()

    def _one(self, event: Event) -> None:
        machine, world, life = self.machine, self.world, self._life
        learning = machine.transfer.learning or machine.core.outside
        out = machine.step(event, self.now)
        machine.validate()
        if out.notes:
            world.trace(self.me, *out.notes)
        for peer, message in out.send:
            world.send(self.me, peer, message)
        inline = False
        if out.records or out.after:
            world.checkers.recorded(out.records)
            inline = self._inline and self.disk.append_now(out.records, out.after)
            if not inline:
                self.disk.append(out.ticket, out.records, out.after)
        for entry in out.dropped:
            self._left(entry)
        for entry in out.appended:
            self._entered(entry)
        if out.history or out.cleared:
            self._apply(out, learning)
        if self._life != life:
            return
        if inline:
            for peer, message in out.after:
                if peer == self.me:
                    self._events.append(ev.Received(peer, message))
                else:
                    world.send(self.me, peer, message)
            self._events.append(ev.DurableUpTo(out.ticket))
        for peer in out.snapshot_for:
            self._send_snapshot(peer)
        self._watch_activity()
        if self._returned:
            back = [dead for dead in machine.awaits_return(self.now) if dead in self._returned]
            self._events.extend(ev.Returned(*dead) for dead in back)
            world.checkers.shortened += len(back)
        world.stepped(self, out)

    def _watch_activity(self) -> None:
        if self.machine.active_view is not None:
            self._inactive_since = None
            self._was_outside = False
            return
        if self._inactive_since is None:
            self._inactive_since = self.now
        outside = self.machine.core.outside
        if outside and not self._was_outside:
            self._turn_away()
        self._was_outside = outside

    def _entered(self, entry: Entry) -> None:
        requests = unpack_batch(entry.payload)
        self._pending[entry[:3]] = frozenset(r.key for r in requests)
        if self._keeping is not None and self.running:
            self._recall([((*entry[:3], k), request.key) for k, request in enumerate(requests)])

    # -- what clients keep

    def _lend(self, key: int) -> None:
        """A client is told of *key* what nothing in the log is about to change: it may keep that."""
        if self._keeping is None:
            return
        until = self._keeping.lend(key, self.now, self.machine.read_until())
        if until:
            now = self.world.clock.now
            self.world.checkers.lends(self.me, key, self.index, now, now + self.clock.until(until, now))

    def _recall(self, parts: list[tuple[Part, int]]) -> None:
        """Messages are in the log: what of them contradicts a client here is held, and that is said before they are
        acknowledged."""
        assert self._keeping is not None
        world = self.world
        now = self.now
        recalled = self._keeping.recall([part for part, _ in parts], now, self.machine.read_until())
        found = {one[0]: one for one in recalled}
        for part, key in parts:
            lent = self._keeping.call_back(part, key, now)
            if lent is not None:
                found[part] = max(lent, found.get(part, lent), key=lambda one: one[1])
                back = self.clock.until(lent[1], world.clock.now)
                world.clock.after(back, self._lent_is_back, self._life, key, world.clock.now)
        for part, lets_go, until in found.values():
            after = self.clock.until(lets_go, world.clock.now)
            end = world.clock.now + self.clock.until(until, world.clock.now)
            world.checkers.holds(self.me, part, world.clock.now + after, end)
            world.clock.after(after, self.take, "let go", self._life, part)
        if found:
            self._events.append(ev.Holding(frozenset(self._keeping.held)))

    def _lent_is_back(self, life: int, key: int, since: int) -> None:
        if life == self._life and self.running:
            self.world.checkers.back(self.me, key, since)

    def _call_back(self) -> None:
        """It is to leave: before it says so its clients have let go of everything."""
        if self._keeping is not None:
            for key in self._keeping.stop():
                self.world.checkers.back(self.me, key, self.world.clock.now)
            self.world.checkers.let_go(self.me, self.world.clock.now)
            self.step(ev.Holding(frozenset()))

    def _let_go(self, life: int, part: Part) -> None:
        if life == self._life and self._keeping is not None:
            self._keeping.held.discard(part)
            self.step(ev.Holding(frozenset(self._keeping.held)))

    def _left(self, entry: Entry) -> None:
        """Dropped from the log undelivered: it never happened, so ours are sent again if somebody still waits."""
        self._pending.pop(entry[:3], None)
        if entry.sender == self.me and not self.machine.core.outside:
            for request in unpack_batch(entry.payload):
                if (request.client, request.number) in self._waiting:
                    self._queue.append(request)

    def _apply(self, out: Effects, learning: bool) -> None:
        """*learning*: it is fed, so what it does is seen by nobody before it is in a later view."""
        checkers = self.world.checkers
        checkers.delivered(self, out.history)
        for item in out.history:
            assert item.index == self.index, f"item {item.index} for a state at {self.index}"
            self.index += 1
            if not isinstance(item, Delivered):
                checkers.begins(self.me, item.view.epoch, self.world.clock.now)
                self._late.clear_all()
                self._execute_late(learning)
                assert not self._late, "nothing waits for what comes after a view event"
                self._uncommitted += 1
                continue
            key = item.entry[:3]
            requests = unpack_batch(item.entry.payload)
            if not item.held and not self._late:
                for k, request in enumerate(requests):
                    self._execute((item.index, k), (*key, k), request, learning)
                self._pending.pop(key, None)
                continue
            for k, request in enumerate(requests):
                self.state.waiting[item.index, k] = request
                self._late.deliver((item.index, k), (*key, k), request, k in item.held)
            self._execute_late(learning)
            if not any(part[:3] == key for part in self._late.parts.values()):
                self._pending.pop(key, None)
        for part in out.cleared:
            self._late.clear(part)
            self._execute_late(learning)
        assert self.index == self.machine.position().index
        checkers.same_hash(self.machine.position())
        if self._uncommitted >= limits.VIEWS_UNCOMMITTED:
            self.commit()

    def _execute_late(self, learning: bool) -> None:
        """Execute what waits and need not, in any order."""
        while (at := self._late.next(self._keeping_rng)) is not None:
            self.world.checkers.late += 1
            part = self._late.parts[at]
            self._execute(at, part, self.state.waiting.pop(at), learning)
            self._late.executed(at)
            if not any(other[:3] == part[:3] for other in self._late.parts.values()):
                self._pending.pop(part[:3], None)

    def _execute(self, at: At, part: Part, request: Request, learning: bool) -> None:
        checkers = self.world.checkers
        if not learning:
            checkers.executes(self.me, part, self.world.clock.now)
            checkers.changes(self.me, at[0], request.key, self.world.clock.now)
        roster = self.state.roster
        o = self.state.execute(request)
        checkers.applied(self.me, at, o)
        connection = self._waiting.pop((o.client, o.number), None) if o is not None else None
        if o is not None and connection is not None:
            checkers.answering(o.client, o.number, at[0])
            self.world.answer(self.me, o.client, connection, o.number, o.reply)
        if self.state.roster != roster:
            self._roster_changed(at[0] + 1)

    def _roster_changed(self, index: int) -> None:
        self._events.append(ev.Roster(*self.state.roster))
        self.world.roster_changed(index, self.state.roster)

    # -- time

    def _arm(self) -> None:
        """One timer, at the machine's next deadline."""
        world = self.world
        at = world.clock.now + max(200, self.clock.until(self.machine.next_deadline(), world.clock.now))
        if self._timer_at < world.clock.now or at < self._timer_at:
            self._timer_at = at
            world.clock.after(at - world.clock.now, self._timer, self._life, at)

    def _timer(self, life: int, at: int) -> None:
        if life != self._life or not self.running or self.paused or at != self._timer_at:
            return
        self._timer_at = -1
        if self.now >= self.machine.next_deadline():
            self.step(ev.Tick())
        else:
            self._arm()

    def wake(self) -> None:
        """Go on after a pause: input before timers, as the rule says, or the other way round, as it may happen."""
        life = self._life
        timers_first = self.rng.random() < 0.3
        self.paused = False
        if timers_first:
            self.step(ev.Tick())
        super().wake()
        if self.running and self._life == life and not timers_first and not self.paused:
            self.step(ev.Tick())

    @property
    def changing(self) -> bool:
        if not self.running or self.paused:
            return False
        machine = self.machine
        return machine.change.attempt is not None or (machine.active_view is None and not machine.core.outside)

    def crash(self) -> None:
        self._life += 1
        self.world.checkers.holder_died(self.me, self.world.clock.now)
        super().crash()

    # -- state

    def commit(self) -> None:
        """The state's database now holds what is applied; sometimes the journal is trimmed behind it."""
        self.committed = (self.machine.position(), self.state.copy())
        self._uncommitted = 0
        if self.rng.random() < 0.5:
            self.disk.trim(self.committed[0])

    def has(self, entry: Entry, index: int) -> bool:
        """Whether *entry* (item *index* of history) would survive a power cut here."""
        return entry[:3] in self.disk.held or self.committed[0].index > index or self.replaced

    def has_flushed(self, epoch: int) -> bool:
        """Whether the view of *epoch* is flushed here, by what is on disk."""
        return any(isinstance(r, FlushedRecord) and r.epoch == epoch for r in self.disk.records)

    def _send_snapshot(self, peer: int) -> None:
        world = self.world
        self.commit()
        snapshot = (*self.committed, self.machine.transfer.views_for_snapshot())
        took = self.rng.randrange(2 * MS, 300 * MS)
        world.clock.after(took, world.install, self.me, peer, world.connection(self.me, peer), snapshot)
        world.clock.after(took, self.take, "snapshot sent", self._life, peer)

    def _snapshot_came(self, position: Position, state: State, views: tuple[Any, ...]) -> None:
        if not self.machine.may_install(position.pack()):
            return
        self.world.trace(self.me, f"installs a snapshot at index {position.index}")
        self._turn_away()
        self.index = position.index
        roster = self.state.roster
        for part in self._late.parts.values():
            self._pending.pop(part[:3], None)
        self._late = Waiting()
        self.state = state.copy()
        self._take_up()
        # The state on disk is replaced before the journal knows of it, or after: both must do.
        if self.rng.random() < 0.5:
            self.committed = (position, state)
        else:
            self._installing = (self.machine.core.ticket + 1, position, state)
        self.step(ev.SnapshotInstalled(position.pack(), views))
        self.world.checkers.same_hash(self.machine.position())
        self.world.checkers.snapshot(self)
        if self.state.roster != roster:
            self._roster_changed(self.index)
            self._run()

    # -- bounds

    def bounded(self) -> None:
        """Everything kept in memory has a bound, whatever happened."""
        machine = self.machine
        core, history = machine.core, machine.core.history
        peers = PEERS_MAX
        views = limits.VIEWS_KEPT + limits.VIEWS_UNCOMMITTED + VIEWS_UNDELIVERED
        assert len(history.views) <= views, f"{len(history.views)} views"
        assert len(core.acceptor.registers) <= REGISTERS_KEPT + 1, f"{len(core.acceptor.registers)} registers"
        kept = limits.RECENT_ITEMS * limits.PINNED  # when the last snapshot has arrived it goes down with the next item
        assert history.index - history.items_first <= kept, "items kept for learners"
        assert len(machine.transfer.learners) <= peers and len(machine.transfer.snapshots) <= peers
        assert len(core.leases.granted) <= peers and len(core.leases.held) <= peers
        assert len(core.leases.promises(self.now)) <= 16 * peers, "promises"
        assert len(core.flushed) <= 2 * limits.VIEWS_KEPT + 64, f"{len(core.flushed)} flushed epochs"
        undelivered = history.undelivered()
        late = {part[:3] for part in self._late.parts.values()}
        assert {e[:3] for e in undelivered} | late == set(self._pending), "what queries wait for is there"
        assert set(self._late.parts) == set(self.state.waiting)
        if self._keeping is not None:
            assert len(self._keeping.held) <= BATCH * limits.IN_FLIGHT * peers * 2, f"{len(self._keeping.held)} held"
        if machine.active_view is not None:  # one that has just started has all that was not committed
            assert len(undelivered) <= 2 * limits.IN_FLIGHT * peers, f"{len(undelivered)} undelivered"
        assert len(self._queue) <= QUEUE_MAX * 2 and len(self._waiting) <= QUEUE_MAX * 4

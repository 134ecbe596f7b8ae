"""The processes of a simulated cluster: the shell around a replica's machine and around a witness, in miniature.

They keep the contract of vsync.effects.Effects as a real shell does, and no more than that.
"""

from __future__ import annotations

from collections import deque
from random import Random
from typing import Any, Protocol

from tests.sim.checkers import Checkers
from tests.sim.clock import MS, Scheduler, SkewedClock
from tests.sim.disk import Disk, Flushed
from vsync.effects import (
    ChangeView,
    Delivered,
    DurableUpTo,
    Effects,
    Event,
    LinkDown,
    LinkUp,
    Received,
    SnapshotInstalled,
    SnapshotSent,
    Submit,
    Tick,
)
from vsync.machine import Machine
from vsync.records import Decided, Entry
from vsync.records import Flushed as FlushedRecord
from vsync.view import START, Position
from vsync.voter import Witness
from wire.group import View


class World(Protocol):
    """What a process needs of the cluster around it."""

    clock: Scheduler
    rng: Random
    checkers: Checkers

    def send(self, sender: int, peer: int, message: Any) -> None: ...

    def connection(self, a: int, b: int) -> int: ...

    def install(self, feeder: int, peer: int, connection: int, snapshot: tuple[Position, tuple[Any, ...]]) -> None: ...

    def trace(self, who: int, *what: Any) -> None: ...


class Process:
    """What replicas and witnesses have in common: a life, a disk, and an input queue that fills while paused."""

    def __init__(self, me: int, world: World, first: list[Any]) -> None:
        self.me = me
        self.world = world
        self.disk = Disk(world.clock, world.rng, first, self._flushed)
        self.running = False
        self.paused = False
        self._inbox: deque[tuple[Any, ...]] = deque()

    def _flushed(self, done: Flushed) -> None:
        self.take("flushed", done)

    def take(self, *item: Any) -> None:
        """Input: handled now, or when the process is awake again."""
        if not self.running:
            return
        if self.paused:
            self._inbox.append(item)
        else:
            self.handle(*item)

    def handle(self, kind: str, *args: Any) -> None:
        raise NotImplementedError

    @property
    def changing(self) -> bool:
        """In the middle of a view change."""
        return False

    def crash(self) -> None:
        self.running = False
        self.paused = False
        self._inbox.clear()
        self.disk.crash()

    def wake(self) -> None:
        """Go on after a pause: input comes before timers."""
        self.paused = False
        while self._inbox and self.running:
            self.handle(*self._inbox.popleft())


class WitnessProcess(Process):
    """A voter without metadata."""

    def start(self) -> None:
        self.running = True
        self._witness = Witness(self.disk.start())

    def handle(self, kind: str, *args: Any) -> None:
        if kind == "input":
            peer, what = args
            if isinstance(what, LinkUp | LinkDown):
                return
            out = self._witness.step(peer, what)
            self._witness.validate()
            assert not out.send
            if out.after:
                self.disk.append(out.ticket, out.records, out.after)
        else:
            for _, after in args[0]:
                for peer, message in after:
                    self.world.send(self.me, peer, message)


class Replica(Process):
    """A metadata replica: its machine, and a state that is the number of history items applied.

    Every item applied is compared with the one history (see Checkers), so the number says it all.
    """

    def __init__(self, me: int, world: World, replicas: tuple[int, ...], clock: SkewedClock, genesis: View) -> None:
        super().__init__(me, world, [Decided(genesis), FlushedRecord(genesis.epoch)])
        self.clock = clock
        self.committed = START
        """What the state's database holds; a restart begins there."""
        self.index = 0
        """Items applied."""
        self._replicas = replicas
        self._life = 0
        self._asked: set[bytes] = set()
        self._again: deque[bytes] = deque()
        """Own messages that were dropped: they are in no history, so they are sent again."""
        self._installing: tuple[int, Position] | None = None
        """A snapshot whose state is committed when the journal has the ticket on disk."""
        self._timer_at = -1

    # -- life

    def start(self) -> None:
        self.running = True
        self._life += 1
        self._asked.clear()
        self._again.clear()
        self._installing = None
        self.index = self.committed.index
        durable = self.disk.start()
        rng = Random(self.world.rng.getrandbits(32))
        self.machine = Machine(self.me, self._replicas, durable, self.committed, rng=rng, now=self.now)
        self._timer_at = -1
        self.step(Tick())

    @property
    def now(self) -> int:
        return self.clock.local(self.world.clock.now)

    # -- input

    def handle(self, kind: str, *args: Any) -> None:
        if kind == "input":
            peer, what = args
            self.step(what if isinstance(what, LinkUp | LinkDown) else Received(peer, what))
        elif kind == "flushed":
            self._carried_out(args[0])
        elif kind == "change":
            self.step(ChangeView("for no reason"))
        elif kind == "snapshot":
            self._snapshot_came(*args)
        elif kind == "snapshot sent":
            life, peer = args
            if life == self._life:
                self.step(SnapshotSent(peer))

    def _carried_out(self, done: Flushed) -> None:
        life = self._life
        if self._installing is not None and done[-1][0] >= self._installing[0]:
            if self._installing[1].index > self.committed.index:
                self.committed = self._installing[1]
            self._installing = None
        each = self.world.rng.random() < 0.5  # one DurableUpTo for each ticket, or one for all of them
        for ticket, after in done:
            for peer, message in after:
                if peer == self.me:
                    self.step(Received(peer, message))
                else:
                    self.world.send(self.me, peer, message)
            if each:
                self.step(DurableUpTo(ticket))
        if not each and self._life == life:
            self.step(DurableUpTo(done[-1][0]))

    @property
    def changing(self) -> bool:
        if not self.running or self.paused:
            return False
        machine = self.machine
        return machine.change.attempt is not None or (machine.active_view is None and not machine.core.outside)

    def submit(self, payload: bytes) -> bool:
        """A client asks this replica."""
        if not self.running or self.paused or not self.machine.may_submit:
            return False
        self._asked.add(payload)
        self.step(Submit(payload))
        return True

    def readable(self, key: int | None) -> bool:
        """A query about *key* (None: about everything) may be answered now, from the present state."""
        if not self.running or self.paused or not self.machine.may_read(self.now):
            return False
        # [10-group: a query waits for every conflicting message in the log that is not applied yet]
        return not any(key is None or e.payload[-1] == key for e in self.machine.core.history.undelivered())

    # -- output

    def step(self, event: Event) -> None:
        machine = self.machine
        world = self.world
        out = machine.step(event, self.now)
        if out.notes:
            world.trace(self.me, *out.notes)
        if out.records or out.after:
            world.checkers.recorded(out.records)
            self.disk.append(out.ticket, out.records, out.after)
        for peer, message in out.send:
            world.send(self.me, peer, message)
        if out.history:
            self._apply(out)
        for peer in out.snapshot_for:
            self._send_snapshot(peer)
        machine.validate()
        for entry in out.dropped:
            if entry.sender == self.me and entry.payload in self._asked and not machine.core.outside:
                self._again.append(entry.payload)
        if self._again and machine.may_submit:
            self.step(Submit(self._again.popleft()))
        else:
            self._arm()

    def _apply(self, out: Effects) -> None:
        checkers = self.world.checkers
        checkers.delivered(self, out.history)
        for item in out.history:
            assert item.index == self.index, f"item {item.index} for a state at {self.index}"
            self.index += 1
            if isinstance(item, Delivered) and item.entry.payload in self._asked:
                self._asked.discard(item.entry.payload)
                checkers.answered(item)
        assert self.index == self.machine.position().index
        checkers.same_hash(self.machine.position())

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
            self.step(Tick())
        else:
            self._arm()

    def wake(self) -> None:
        """Go on after a pause: input before timers, as the rule says, or the other way round, as it may happen."""
        life = self._life
        timers_first = self.world.rng.random() < 0.3
        self.paused = False
        if timers_first:
            self.step(Tick())
        super().wake()
        if self.running and self._life == life and not timers_first:
            self.step(Tick())

    # -- state

    def commit(self) -> None:
        """The state's database now holds what is applied; sometimes the journal is trimmed behind it."""
        self.committed = self.machine.position()
        if self.world.rng.random() < 0.5:
            self.disk.trim(self.committed)

    def has(self, entry: Entry, index: int) -> bool:
        """Whether *entry* (item *index* of history) would survive a power cut here."""
        return entry[:3] in self.disk.held or self.committed.index > index

    def has_flushed(self, epoch: int) -> bool:
        """Whether the view of *epoch* is flushed here, by what is on disk."""
        return any(isinstance(r, FlushedRecord) and r.epoch == epoch for r in self.disk.records)

    def _send_snapshot(self, peer: int) -> None:
        world = self.world
        snapshot = (self.machine.position(), self.machine.transfer.views_for_snapshot())
        took = world.rng.randrange(2 * MS, 300 * MS)
        world.clock.after(took, world.install, self.me, peer, world.connection(self.me, peer), snapshot)
        world.clock.after(took, self.take, "snapshot sent", self._life, peer)

    def _snapshot_came(self, position: Position, views: tuple[Any, ...]) -> None:
        if not self.machine.may_install(position.pack()):
            return
        self.world.trace(self.me, f"installs a snapshot at index {position.index}")
        self._asked.clear()
        self._again.clear()
        self.index = position.index
        # The state on disk is replaced before the journal knows of it, or after: both must do.
        if self.world.rng.random() < 0.5:
            self.committed = position
        else:
            self._installing = (self.machine.core.ticket + 1, position)
        self.step(SnapshotInstalled(position.pack(), views))
        self.world.checkers.same_hash(self.machine.position())

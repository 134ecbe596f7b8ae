"""What the processes of a simulated cluster have in common, and the witness. The replica is in tests.sim.replica."""

from __future__ import annotations

from collections import deque
from random import Random
from typing import Any, Protocol

from tests.sim.checkers import Checkers
from tests.sim.clock import Scheduler
from tests.sim.disk import Disk, Flushed
from tests.sim.state import Roster, State
from vsync.effects import Effects, LinkDown, LinkUp
from vsync.register import REGISTERS_KEPT
from vsync.view import Position
from vsync.voter import Witness

Snapshot = tuple[Position, State, tuple[Any, ...]]


class World(Protocol):
    """What a process needs of the cluster around it."""

    clock: Scheduler
    checkers: Checkers

    def send(self, sender: int, peer: int, message: Any) -> None: ...

    def connection(self, a: int, b: int) -> int: ...

    def install(self, feeder: int, peer: int, connection: int, snapshot: Snapshot) -> None: ...

    def answer(self, replica: int, client: int, connection: int, number: int, reply: Any) -> None: ...

    def stopped(self, who: int, reason: str) -> None: ...

    def roster_changed(self, index: int, roster: Roster) -> None: ...

    def stepped(self, replica: Any, out: Effects) -> None: ...

    def trace(self, who: int, *what: Any) -> None: ...


class Process:
    """A life, a disk, and an input queue that fills while paused."""

    def __init__(self, me: int, world: World, rng: Random, first: list[Any]) -> None:
        self.me = me
        self.world = world
        self.rng = rng
        self._first = first
        self.disk = self._new_disk()
        self.running = False
        self.paused = False
        self._inbox: deque[tuple[Any, ...]] = deque()

    def _new_disk(self) -> Disk:
        return Disk(self.world.clock, self.rng, list(self._first), self._flushed, self._stop)

    def replace_disk(self) -> None:
        """The machine comes back with an empty disk: another identity, whatever its number says."""
        assert not self.running
        self.disk = self._new_disk()

    def _flushed(self, done: Flushed) -> None:
        self.take("flushed", done)

    def _stop(self, reason: str) -> None:
        """The disk cannot be served from: nothing that waited for it is told to anyone."""
        self.world.stopped(self.me, reason)

    def start(self) -> None:
        raise NotImplementedError

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

    def bounded(self) -> None:
        """Assert that what it keeps in memory stays below its bounds."""

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
        while self._inbox and self.running and not self.paused:
            self.handle(*self._inbox.popleft())


class WitnessProcess(Process):
    """A voter without metadata."""

    def start(self) -> None:
        self.running = True
        self.witness = Witness(self.disk.start())

    def handle(self, kind: str, *args: Any) -> None:
        if kind == "input":
            peer, what = args
            if isinstance(what, LinkUp | LinkDown):
                return
            out = self.witness.step(peer, what)
            self.witness.validate()
            for to, message in out.send:
                self.world.send(self.me, to, message)
            if out.after or out.records:
                self.disk.append(out.ticket, out.records, out.after)
        elif kind == "flushed":
            for _, after in args[0]:
                for peer, message in after:
                    self.world.send(self.me, peer, message)

    def bounded(self) -> None:
        assert len(self.witness.acceptor.registers) <= REGISTERS_KEPT + 1, "registers"

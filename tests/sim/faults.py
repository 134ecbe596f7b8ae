"""Carries out a schedule of faults on a simulated cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from typing import Any, Protocol

from tests.sim.clients import Client, Lines
from tests.sim.clock import MS, Scheduler
from tests.sim.network import Network, Pair
from tests.sim.processes import Process
from tests.sim.replica import Replica
from tests.sim.schedule import Fault
from tests.sim.stories import STORIES, Moment, Story
from vsync.effects import ChangeView, Effects, ViewEvent
from vsync.records import Decided, Flushed, Sealed
from wire.group import Accept, Seal, SealReport


class Town(Protocol):
    """The cluster, as far as faults act on it."""

    seed: int
    clock: Scheduler
    network: Network
    lines: Lines
    processes: dict[int, Process]
    replicas: dict[int, Replica]
    clients: list[Client]

    @property
    def working(self) -> tuple[int, ...]: ...

    def restart(self, who: int) -> None: ...

    def crash(self, who: int, certified: bool = False) -> None: ...

    def may_lose(self, who: int) -> bool: ...

    def lose_disk(self, who: int) -> None: ...

    def administer(self, what: str, rng: Random) -> None: ...

    def leave(self, who: int, down: int) -> None: ...

    def trace(self, who: int, *what: object) -> None: ...


Waiter = tuple[Moment, Callable[[int | None], None]]


class Faults:
    """The faults of one run, until :meth:`stop`."""

    def __init__(self, town: Town, schedule: Sequence[Fault]) -> None:
        self._town = town
        self._stopped = False
        self._waiters: list[Waiter] = []
        self.replicas = town.replicas
        for fault in schedule:
            town.clock.after(fault.at - town.clock.now, self._happen, fault)

    def stop(self) -> None:
        self._stopped = True
        self._waiters.clear()

    # -- moments

    def stepped(self, replica: Replica, out: Effects) -> None:
        """A replica made a step: was it what somebody waits for? What follows happens after the step."""
        for waiter in list(self._waiters):
            moment, go_on = waiter
            if (not moment.who or replica.me in moment.who) and _is(moment.what, replica, out):
                self._waiters.remove(waiter)
                self._town.clock.after(0, go_on, replica.me)

    def _wait(self, moment: Moment, go_on: Callable[[int | None], None]) -> None:
        waiter = (moment, go_on)
        self._waiters.append(waiter)
        self._town.clock.after(moment.within, self._gave_up, waiter)

    def _gave_up(self, waiter: Waiter) -> None:
        if waiter in self._waiters:
            self._waiters.remove(waiter)
            waiter[1](None)

    def _tell(self, story: Story, value: Any = None) -> None:
        if self._stopped:
            return
        try:
            what = story.send(value)
        except StopIteration:
            return
        if isinstance(what, Moment):
            self._wait(what, partial(self._tell, story))
        else:
            self._town.clock.after(what, self._tell, story)

    # -- what stories do

    @property
    def working(self) -> tuple[int, ...]:
        return self._town.working

    def crash(self, who: int, certified: bool = False) -> None:
        if self._town.processes[who].running:
            self._town.crash(who, certified)

    def restart(self, who: int) -> None:
        self._town.restart(who)

    def cut(self, a: int, b: int, sharp: bool, unnoticed_by: int = 0) -> None:
        """Nothing gets through between *a* and *b*; *sharp*: their connection breaks at once, else it only stalls."""
        self._town.trace(0, f"{a} and {b} are cut from each other")
        self._town.network.cut(a, b, breaks=False)
        self._town.network.cut(b, a, breaks=False)
        if sharp:
            self._town.network.break_connection(a, b, fast=True, unnoticed_by=unnoticed_by)

    def pause(self, who: int, length: int) -> None:
        self._pause(who, length)

    def mend(self, a: int, b: int) -> None:
        self._town.trace(0, f"{a} and {b} reach each other")
        self._town.network.heal({(a, b), (b, a)})

    def reset(self, a: int, b: int) -> None:
        self._town.network.break_connection(a, b, fast=True)

    def connect(self, a: int, b: int) -> None:
        self._town.network.connect(a, b)

    def lose_data(self, a: int, b: int) -> None:
        self._town.network.lose_data(a, b)

    def slow(self, who: int, level: int) -> None:
        self._town.processes[who].disk.slow = level

    # -- what happens

    def _happen(self, fault: Fault) -> None:
        if self._stopped:
            return
        town = self._town
        town.trace(0, fault)
        rng = Random(f"{town.seed} fault {fault.number}")
        story = STORIES.get(fault.kind)
        if story is not None:
            if fault.args[0] in town.working:
                self._tell(story(self, rng, fault.args[0]))
            return
        match fault.kind, fault.args:
            case "crash", (who, down, certified):
                self._crash(who, down, certified)
            case "pause", (who, length):
                self._pause(who, length)
            case "power cut", downs:
                self._power_cut(downs)
            case "cut", (a, b, length):
                self._cut({(a, b), (b, a)}, length)
            case "one-way cut", (a, b, length):
                self._cut({(a, b)}, length)
            case "break", (a, b, _):
                town.network.break_connection(a, b, fast=rng.random() < 0.3)
            case "lose data", (a, b, _):
                town.network.lose_data(a, b)
            case "isolate", (who, length):
                self._cut({pair for x in town.processes if x != who for pair in ((x, who), (who, x))}, length)
            case "clients cut", (who, length):
                town.lines.cut.add(who)
                town.clock.after(length, town.lines.cut.discard, who)
            case "slow disk", (who, level, length):
                town.processes[who].disk.slow = level
                town.clock.after(length, self.slow, who, 0)
            case "hang", (who, length):
                town.processes[who].disk.hangs_until = town.clock.now + length
            case "fail", (who,):
                if town.may_lose(who) and town.processes[who].running:
                    town.processes[who].disk.fails = True
            case "swap disk", (who,):
                if town.may_lose(who):
                    town.lose_disk(who)
            case "lose state", (who,):
                if town.may_lose(who):
                    self._crash(who, rng.randrange(5 * MS, 200 * MS), False)
                    town.replicas[who].lose_state()
            case "hiccups", (share, length):
                town.network.hiccup = share
                town.clock.after(length, self._no_hiccups)
            case "duel", some:
                for who, delay in some:
                    town.clock.after(delay, town.replicas[who].take, "event", ChangeView("for no reason"))
            case "when", (what, skip, then, victim, length):
                self._tell(self._when(rng, what, skip, then, victim, length))
            case "client dies", ():
                rng.choice(town.clients).die()
            case "administer", (what,):
                town.administer(what, rng)
            case "leave", (who, down):
                town.leave(who, down)
            case _:
                raise AssertionError(f"no such fault: {fault}")

    def _when(self, rng: Random, what: str, skip: int, then: str, victim: str, length: int) -> Story:
        """At the moment *what*, after *skip* others like it, something happens to who makes it, or to another."""
        who = None
        for _ in range(skip + 1):
            who = yield Moment(what, (), 3000 * MS)
        if who is None:
            return
        yield rng.randrange(0, rng.choice((1, 300, 5 * MS)) + 1)
        others = [p for p in sorted(self._town.processes) if p != who]
        if victim == "another" and others:
            who = rng.choice(others)
            others = [p for p in sorted(self._town.processes) if p != who]
        self._town.trace(0, f"when one {what}: {then} {who}")
        match then:
            case "crash":
                self._crash(who, length, rng.random() < 0.5)
            case "pause":
                self._pause(who, length)
            case "isolate":
                self._cut({pair for x in others for pair in ((x, who), (who, x))}, length)
            case "power cut":
                self._power_cut([rng.randrange(length // 2, length + 2) for _ in self._town.processes])
            case "cut" | "break" if others:
                other = rng.choice(others)
                if then == "cut":
                    self._cut({(who, other), (other, who)}, length)
                else:
                    self._town.network.break_connection(who, other, fast=True)

    def _crash(self, who: int, down: int, certified: bool) -> None:
        if self._town.processes[who].running:
            self._town.crash(who, certified)
            self._town.clock.after(down, self._town.restart, who)

    def _power_cut(self, downs: Sequence[int]) -> None:
        for who, down in zip(sorted(self._town.processes), downs, strict=False):
            self._crash(who, down, False)

    def _pause(self, who: int, length: int) -> None:
        process = self._town.processes[who]
        if process.running and not process.paused:
            process.paused = True
            self._town.clock.after(length, self._wake, who)

    def _cut(self, cuts: set[Pair], length: int) -> None:
        network = self._town.network
        those = {(a, b) for a, b in cuts if (min(a, b), max(a, b)) in network.pairs}
        for a, b in sorted(those):
            network.cut(a, b)
        self._town.clock.after(length, network.heal, those)

    def _wake(self, who: int) -> None:
        process = self._town.processes[who]
        if process.running and process.paused:
            self._town.trace(who, "awake")
            process.wake()

    def _no_hiccups(self) -> None:
        self._town.network.hiccup = 0.0


def _is(what: str, replica: Replica, out: Effects) -> bool:
    """Whether this step of *replica* was the moment called *what*."""
    match what:
        case "starts":
            return any(isinstance(m, Seal) for _, m in out.send) and replica.machine.change.attempt is not None
        case "seals":
            return any(isinstance(r, Sealed) for r in out.records)
        case "reports":
            return any(isinstance(m, SealReport) for peer, m in [*out.after, *out.send] if peer != replica.me)
        case "proposes":
            return any(isinstance(m, Accept) for _, m in out.send)
        case "learns":
            return any(isinstance(r, Decided) for r in out.records)
        case "flushes":
            return any(isinstance(r, Flushed) for r in out.records)
        case "activates":
            return replica.machine.active_view is not None and any(isinstance(i, ViewEvent) for i in out.history)
    raise AssertionError(f"no moment is called {what}")

"""What goes wrong in a simulated cluster, and when: crashes, pauses, cuts, breaks, slow disks, power cuts."""

from __future__ import annotations

from random import Random
from typing import Protocol

from tests.sim.clock import MS, Scheduler
from tests.sim.network import Network, Pair
from tests.sim.processes import Process, Replica

KINDS = (
    "crash", "pause", "cut", "one-way cut", "isolate", "break", "lose data", "slow disk", "hiccups", "power cut",
    "mid-change", "duels",
)  # fmt: skip


class Town(Protocol):
    """The cluster, as far as faults act on it."""

    clock: Scheduler
    rng: Random
    network: Network
    processes: dict[int, Process]
    replicas: dict[int, Replica]

    def restart(self, who: int) -> None: ...

    def crash(self, who: int) -> None: ...

    def trace(self, who: int, *what: object) -> None: ...


class Faults:
    """Random faults until :meth:`stop`; how many of which kind is drawn once per run."""

    def __init__(self, town: Town) -> None:
        rng = town.rng
        self._town = town
        self._stopped = False
        self._pace = rng.choice((40, 100, 250, 600)) * MS
        # A few kinds only in most runs: each deserves runs in which it is not drowned by the others.
        kinds = [k for k in KINDS if rng.random() < 0.45] or [rng.choice(KINDS)]
        self._kinds = [k for k in kinds for _ in range(1 if k == "power cut" else rng.choice((2, 4, 8)))]
        self._down = rng.choice((30, 100, 300, 1000)) * MS
        """About how long a process stays down or paused."""
        self._cut = rng.choice((60, 200, 700, 2000)) * MS
        if "mid-change" in kinds:
            self._kinds = [k for k in self._kinds if k != "mid-change"]
            self._watch()
        if "duels" in kinds:
            self._kinds = [k for k in self._kinds if k != "duels"]
            self._duel()
        if self._kinds:
            town.clock.after(rng.randrange(1500 * MS), self._next)

    def stop(self) -> None:
        self._stopped = True

    def _next(self) -> None:
        self._town.clock.after(self._town.rng.randrange(self._pace // 8, 2 * self._pace), self._happen)

    def _happen(self) -> None:
        if self._stopped:
            return
        self._next()
        town, rng = self._town, self._town.rng
        kind = rng.choice(self._kinds)
        everyone = sorted(town.processes)
        who = rng.choice(everyone)
        process = town.processes[who]
        match kind:
            case "crash":
                if process.running:
                    town.crash(who)
                    town.clock.after(self._some(self._down), town.restart, who)
            case "power cut":
                town.trace(0, "power cut")
                for each in everyone:
                    if town.processes[each].running:
                        town.crash(each)
                        town.clock.after(self._some(self._down), town.restart, each)
            case "pause":
                if process.running and not process.paused:
                    town.trace(who, "paused")
                    process.paused = True
                    town.clock.after(self._some(self._down), self._wake, who)
            case "cut" | "one-way cut" | "break" | "lose data":
                if len(everyone) > 1:
                    a, b = rng.sample(everyone, 2)
                    self._between(kind, a, b)
            case "isolate":
                self._start_cut({pair for x in everyone if x != who for pair in ((x, who), (who, x))})
            case "slow disk":
                process.disk.slow = rng.choice((1, 1, 2))
                town.trace(who, "slow disk", process.disk.slow)
                town.clock.after(self._some(self._cut), self._faster, who)
            case "hiccups":
                town.network.hiccup = rng.choice((0.0, 0.02, 0.3))

    def _watch(self) -> None:
        """Now and then something happens to a replica that is just changing the view."""
        if self._stopped:
            return
        town, rng = self._town, self._town.rng
        town.clock.after(rng.randrange(2 * MS, 10 * MS), self._watch)
        for who, process in sorted(town.processes.items()):
            if process.changing and rng.random() < 0.04:
                match rng.choice(("crash", "crash", "pause", "cut", "isolate", "break")):
                    case "crash":
                        town.crash(who)
                        town.clock.after(self._some(self._down), town.restart, who)
                    case "pause":
                        process.paused = True
                        town.clock.after(self._some(self._down), self._wake, who)
                    case "isolate":
                        self._start_cut({pair for x in town.processes if x != who for pair in ((x, who), (who, x))})
                    case kind:
                        others = [x for x in sorted(town.processes) if x != who]
                        if others:
                            self._between(kind, who, rng.choice(others))

    def _duel(self) -> None:
        """Any replica starts a view change, for no reason and while others do."""
        if self._stopped:
            return
        town, rng = self._town, self._town.rng
        town.clock.after(rng.randrange(self._pace // 4, 2 * self._pace), self._duel)
        for who in rng.sample(sorted(town.replicas), min(len(town.replicas), rng.choice((1, 1, 2)))):
            town.clock.after(rng.randrange(20 * MS), town.replicas[who].take, "change")

    def _some(self, about: int) -> int:
        return self._town.rng.randrange(about // 8, 2 * about)

    def _between(self, kind: str, a: int, b: int) -> None:
        network = self._town.network
        if kind == "cut":
            self._start_cut({(a, b), (b, a)})
        elif kind == "one-way cut":
            self._start_cut({(a, b)})
        elif (min(a, b), max(a, b)) in network.pairs:
            self._town.trace(a, kind, b)
            if kind == "break":
                network.break_connection(a, b)
            else:
                network.lose_data(a, b)

    def _start_cut(self, cuts: set[Pair]) -> None:
        network = self._town.network
        cuts = {(a, b) for a, b in cuts if (min(a, b), max(a, b)) in network.pairs}
        self._town.trace(0, "cut", sorted(cuts))
        for a, b in sorted(cuts):
            network.cut(a, b)
        self._town.clock.after(self._some(self._cut), self._heal, cuts)

    def _heal(self, cuts: set[Pair]) -> None:
        self._town.trace(0, "heal", sorted(cuts))
        self._town.network.heal(cuts)

    def _wake(self, who: int) -> None:
        process = self._town.processes[who]
        if process.running and process.paused:
            self._town.trace(who, "awake")
            process.wake()

    def _faster(self, who: int) -> None:
        self._town.processes[who].disk.slow = 0

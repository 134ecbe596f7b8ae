"""A run: faults one after the other under load, each followed by the judgement of what clients saw.

What ``N passed, 0 failed`` counts: a round per fault (every answer given in it has its place in one order, every
session is answered again), and the checks of the end, each named as it is made.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import IO, Final

from admin import network
from tests.faults.disk_faults import DISK_FAULTS, OWN_DISK_FAULTS
from tests.faults.menu import NETWORK_FAULTS, PROCESS_FAULTS, Fault
from tests.faults.site import Broken, Site, site
from tests.faults.watchdog_faults import CUT_WATCHDOG_FAULTS, WATCHDOG_FAULTS

WORKERS: Final = 2
WARM_S: Final = 0.5
"""Of load between two faults."""


@dataclass(slots=True)
class Result:
    """What a run has shown."""

    passed: int = 0
    failures: list[str] = field(default_factory=list)
    faults: dict[str, int] = field(default_factory=dict)

    @property
    def line(self) -> str:
        return f"{self.passed} passed, {len(self.failures)} failed"


def menu_of(with_network: bool) -> list[tuple[Fault, int]]:
    """What can be done here."""
    more = (*NETWORK_FAULTS, *OWN_DISK_FAULTS, *CUT_WATCHDOG_FAULTS) if with_network else ()
    return [*PROCESS_FAULTS, *DISK_FAULTS, *WATCHDOG_FAULTS, *more]


def schedule(choices: list[tuple[Fault, int]], rng: Random, faults: int) -> list[Fault]:
    """*faults* of them by weight; each at least once when there is room for that."""
    kinds = [fault for fault, _ in choices]
    chosen = kinds if faults >= 2 * len(kinds) else []
    chosen = chosen + rng.choices(kinds, [weight for _, weight in choices], k=faults - len(chosen))
    rng.shuffle(chosen)
    return chosen


def length_of(rng: Random) -> float:
    """How long a fault lasts: often around leases and suspicion, sometimes long after all has been decided."""
    return rng.choice((rng.uniform(0.05, 0.5), rng.uniform(0.3, 1.2), rng.uniform(0.3, 1.2), rng.uniform(1.0, 3.0)))


class Run:
    """One run on one cluster."""

    def __init__(self, here: Site, seed: int, result: Result) -> None:
        self._site = here
        self._rng = Random(seed)
        self._result = result
        self._judged = 0

    def all(self, faults: list[Fault]) -> None:
        """Carry out *faults*, then look at everything once more."""
        here, rng = self._site, self._rng
        for _ in range(WORKERS):
            here.add_worker(rng.getrandbits(32))
        here.next_round()
        here.progress()
        for fault in faults:
            self._result.faults[fault.__name__] = self._result.faults.get(fault.__name__, 0) + 1
            with fault(here, rng):
                here.hold(length_of(rng))
            here.nobody_ended()
            if rng.random() < 0.5:
                here.whole()
            here.progress()
            here.hold(rng.uniform(0, 2 * WARM_S))
            here.next_round()
            here.progress()  # everybody has found the new cells before the next fault
            self._judge_finished()
        self._finish()

    def _judge_finished(self) -> None:
        """Rounds whose last operations are answered; the others are judged later."""
        here = self._site
        here.history.take()
        while self._judged + 1 < here.round and here.round_is_over(self._judged + 1):
            self._judged += 1
            self._check(f"round {self._judged}", here.judge_round(self._judged), quiet=True)

    def _check(self, what: str, wrong: list[str], quiet: bool = False) -> None:
        if wrong:
            self._result.failures += wrong
            for text in wrong:
                self._site.say(f"FAILED {what}: {text}")
        else:
            self._result.passed += 1
            if not quiet:
                self._site.say(f"passed: {what}")

    def _finish(self) -> None:
        here = self._site
        here.whole()
        here.stop_workers()
        while self._judged < here.round:
            self._judged += 1
            self._check(f"round {self._judged}", here.judge_round(self._judged), quiet=True)
        here.read_back(self._rng.getrandbits(32))
        wrong = [problem for cell in here.history.cells() for problem in here.history.judge(cell)]
        self._check("everything answered is there at the end, read at every replica", wrong)
        here.replicas_equal()
        self._check("all replicas have one digest at one index", [])
        self._check("no replica was taken for one with another state", here.alarms())
        self._check("what they have on disk is consistent, and the same", here.check_states())


def run(out: IO[str], seed: int, faults: int, keep: Path | None = None, only: str = "") -> Result:
    """One cluster, *faults* faults (of those with a word of *only* in their name); *keep*: for logs of a failed run."""
    result = Result()
    began = time.monotonic()
    refusal = network.refusal()
    print(f"seed {seed}, {faults} faults, {os.cpu_count()} cores", file=out, flush=True)
    if refusal is not None:
        print(f"LEFT OUT: partitions and full disks ({refusal})", file=out, flush=True)
    with site(out) as here:
        try:
            words = only.split(",")
            choices = [
                (fault, weight)
                for fault, weight in menu_of(here.net is not None)
                if any(word in fault.__name__ for word in words)
            ]
            Run(here, seed, result).all(schedule(choices, Random(seed), faults))
        except Broken as exc:
            result.failures.append(str(exc))
            here.say(f"FAILED: {exc}")
        finally:
            if keep is not None and (result.failures or not result.passed):
                here.keep_logs(keep)
        history = here.history
        more = "".join(f", {count} {what}" for what, count in sorted(here.counts.items()))
        print(
            f"{sum(result.faults.values())} faults, {history.operations} operations answered, {history.unknown} of "
            f"unknown outcome, at most {history.hardest} configurations{more}, {time.monotonic() - began:.0f} s",
            file=out,
        )
    print(", ".join(f"{count} {name}" for name, count in sorted(result.faults.items())), file=out)
    print(f"seed {seed}: {result.line}", file=out, flush=True)
    return result

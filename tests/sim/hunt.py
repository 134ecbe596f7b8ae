"""Hunts the mutants: for each, runs of the simulator one after the other until one of them notices.

The runs are those of the seeds that ``make sim`` runs without any mutant, so what catches a mutant here is part of what
a change of the real protocol has to pass.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tests.sim.cluster import Cluster
from tests.sim.mutants import MUTANTS, Mutant, in_force
from tests.sim.schedule import profile_of
from tests.sim.setup import setup_of

SEEDS: Final = range(2000)
"""Seeds that may be tried."""
RUNS_MAX: Final = 100
"""Runs that may be tried for one mutant."""


@dataclass(frozen=True, slots=True)
class Caught:
    """How a mutant ended. ``seed`` is None if it got away."""

    name: str
    runs: int
    seed: int | None
    how: str


def hunt_one(mutant: Mutant) -> Caught:
    """Run after run until one notices *mutant*."""
    runs = 0
    for seed in SEEDS:
        if not fits(mutant, seed):
            continue
        if runs == RUNS_MAX:
            break
        runs += 1
        how = noticed(mutant, seed)
        if how is not None:
            return Caught(mutant.name, runs, seed, how)
    return Caught(mutant.name, runs, None, "")


def fits(mutant: Mutant, seed: int) -> bool:
    """Whether the run of *seed* is one of those that are after the rule of *mutant*."""
    if mutant.profiles and profile_of(seed).name not in mutant.profiles:
        return False
    return not mutant.holding or setup_of(seed).holding > 0


def noticed(mutant: Mutant, seed: int) -> str | None:
    """What the run of *seed* has to say about *mutant*; None: nothing."""
    with in_force(mutant):
        try:
            Cluster(seed).run()
        except Exception as exc:  # noqa: BLE001 - a core that breaks down notices as well as a checker does
            return f"{type(exc).__name__}: {exc}".splitlines()[0]
    return None


def hunt(names: Sequence[str], processes: int) -> int:
    """Hunt the mutants *names*, or all. Prints a line each; returns the exit status."""
    unknown = set(names) - {m.name for m in MUTANTS}
    if unknown:
        print(f"no such mutants: {sorted(unknown)}; there are {[m.name for m in MUTANTS]}", file=sys.stderr)
        return 2
    chosen = [m for m in MUTANTS if not names or m.name in names]
    began = time.monotonic()
    uncaught = []
    with multiprocessing.get_context("fork").Pool(processes, maxtasksperchild=1) as pool:
        for mutant, caught in zip(chosen, pool.imap(_by_name, [m.name for m in chosen]), strict=True):
            if caught.seed is None:
                uncaught.append(mutant.name)
                print(f"{mutant.name:30} UNCAUGHT after {caught.runs} seeds: {mutant.rule}", flush=True)
            else:
                print(f"{mutant.name:30} {caught.runs:3} seeds (seed {caught.seed}): {caught.how[:110]}", flush=True)
    print(f"{len(chosen)} mutants, {len(uncaught)} uncaught {uncaught or ''}, {time.monotonic() - began:.0f} s")
    return 1 if uncaught else 0


def _by_name(name: str) -> Caught:
    return hunt_one(next(m for m in MUTANTS if m.name == name))

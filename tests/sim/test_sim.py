"""The simulator in the default run: a few seeds, a run repeated, its checkers, some mutants. ``make sim`` runs more.

Every mutant is hunted by ``make sim MUTANTS=1``.
"""

from __future__ import annotations

import ast
import inspect
import os
import subprocess
import sys
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Final

import pytest

from tests.sim.__main__ import attempt, shrink
from tests.sim.cluster import Cluster
from tests.sim.hunt import SEEDS, fits, noticed
from tests.sim.linear import Operation, illegal
from tests.sim.mutants import MUTANTS, in_force
from tests.sim.schedule import PROFILES
from tests.sim.setup import BROKEN_IN_A_HURRY, HURRY, SMALL, setup_of
from vsync import limits

ROOT = Path(__file__).parents[2]
BATCH = 12
REGRESSIONS = {
    69: "two replicas replaced in a row: removed voters that were still needed were never asked",
    571: "a write under way when a run ended unhealed was read, and missing in the history that is checked",
    639: "a replica that started anew kept every view that was ever decided",
    646: "the story of a leave needs somebody who stays",
    719: "a replica that was started again had flushed a view at once, while clients of its earlier life kept things",
    755: "the story of a cut needs somebody to be cut off from",
    787: "a witness was retired by the order before the one that added it",
    903: "a replica whose state was committed long ago kept every view since",
    1753: "the only replica was replaced by one that is down: the old one goes on, and clients are told where it is",
}
"""Seed -> what it once found."""


@pytest.mark.parametrize("first", range(0, 60, BATCH))
def test_seeds(first: int) -> None:
    """Clusters of 1 to 5 replicas and up to 3 witnesses under faults; each must keep the promises, and converge."""
    for seed in range(first, first + BATCH):
        result = attempt(seed)
        assert result.failure is None, f"seed {seed}; see it with: python -m tests.sim --seed {seed} --trace"


@pytest.mark.parametrize("seed", REGRESSIONS)
def test_what_was_found_once(seed: int) -> None:
    assert attempt(seed).failure is None, REGRESSIONS[seed]


def test_every_profile_is_run() -> None:
    """The first seeds cover every profile, so that what catches a mutant is in every long run."""
    assert {setup_of(seed).profile for seed in range(len(PROFILES))} == {p.name for p in PROFILES}


@pytest.mark.parametrize(
    ("bounds", "broken"), [({}, ()), (SMALL, ()), (HURRY, BROKEN_IN_A_HURRY), ({**SMALL, **HURRY}, BROKEN_IN_A_HURRY)]
)
def test_what_runs_change_of_the_limits_keeps_their_inequalities(
    bounds: dict[str, int], broken: tuple[str, ...]
) -> None:
    """But for those that are named."""
    module = ast.parse(inspect.getsource(limits))
    claims = [ast.unparse(found.test) for found in module.body if isinstance(found, ast.Assert)]
    known = {**vars(limits), **bounds}
    assert len(claims) > 8 and set(bounds) <= set(vars(limits))
    assert tuple(claim for claim in claims if not eval(claim, dict(known))) == broken


def test_clients_keep_what_messages_contradict() -> None:
    """Much is held in some runs, requests wait for that, and views change meanwhile."""
    keeping = islice((s for s in SEEDS if setup_of(s).holding), 12)
    held = late = views = 0
    for seed in keeping:
        cluster = Cluster(seed)
        cluster.run()
        held += cluster.checkers.held
        late += cluster.checkers.late
        views += cluster.checkers.views_after_holds
    assert held > 100 and late > 50 and views > 10


def test_clients_of_the_dead_let_go() -> None:
    """There are views that wait for what the dead has lent, and no longer when it is back."""
    shortened = 0
    for seed in islice((s for s in SEEDS if setup_of(s).returning), 24):
        cluster = Cluster(seed)
        cluster.run()
        shortened += cluster.checkers.shortened
    assert shortened > 5


def test_a_seed_reproduces_the_run() -> None:
    first, again = Cluster(7), Cluster(7)
    first.run()
    again.run()
    assert first.tail == again.tail
    assert first.checkers.history == again.checkers.history
    assert first.checkers.operations == again.checkers.operations


def test_a_seed_reproduces_the_run_in_another_process() -> None:
    """Whatever the hashes of strings are: nothing depends on the order of a set."""
    for seed in (5, 19):
        told = set()
        for hash_seed in ("1", "2"):
            done = subprocess.run(
                [sys.executable, "-m", "tests.sim", "--seed", str(seed)],
                cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": hash_seed}, capture_output=True, text=True, check=True,
            )  # fmt: skip
            told.add(done.stdout)
        assert len(told) == 1
        assert attempt(seed).digest in told.pop()


def test_a_failing_run_is_shrunk() -> None:
    """Of the faults of a run that fails those are left that it takes."""
    mutant = next(m for m in MUTANTS if m.name == "lease-100-ms-too-long")
    setup = next(s for s in map(setup_of, range(2, 200, len(PROFILES))) if noticed(mutant, s.seed) is not None)
    with in_force(mutant):
        small = shrink(setup)
        assert attempt(small).failure is not None
        assert 1 <= len(small.schedule) <= len(setup.schedule)
        for fault in small.schedule:
            fewer = replace(small, schedule=tuple(f for f in small.schedule if f != fault))
            assert attempt(fewer).failure is None, "every fault that is left is needed"


QUICKLY_CAUGHT: Final[dict[str, tuple[int, ...]]] = {
    "acknowledge-before-flush": (1, 5, 8),
    "deliver-before-stable": (0, 1),
    "query-ignores-the-log": (0, 1, 2),
    "lease-100-ms-too-long": (50, 98, 122),
    "no-hold": (2, 21, 26),
    "restart-without-hold": (532, 916, 1204),
    "grant-while-sealed": (6, 30, 54),
    "certificate-of-another-life": (45, 69, 93),
    "two-voters-at-once": (19, 283, 427),
    "promise-broken": (13, 37, 61),
    "refusal-not-learned": (63, 111),
    "base-never-flushed": (65, 89, 113),
    "execute-before-clear": (4,),
    "flushed-while-holding": (4,),
    "overtaken-word": (5,),
    "lent-by-members": (438, 508),
    "lent-by-an-earlier-life": (719,),
    "unnamed-ends-with-the-view": (1665,),
}
"""Mutant -> seeds that have caught it, tried first: what happens in them changes with any change of the protocol."""
RUNS_MAX: Final = 60
"""Runs that may be tried for one mutant."""


@pytest.mark.parametrize("name", QUICKLY_CAUGHT)
def test_the_simulator_notices(name: str) -> None:
    """Without the rule a promise is broken, within a few runs."""
    mutant = next(m for m in MUTANTS if m.name == name)
    fitting = (s for s in SEEDS if fits(mutant, s))
    seeds = islice(chain(QUICKLY_CAUGHT[name], fitting), RUNS_MAX)
    assert any(noticed(mutant, seed) is not None for seed in seeds)


# -- the checker of linearizability


def op(called: int, returned: int | None, wrote: int | None, saw: int | None) -> Operation:
    return Operation(1, 0, called, returned, wrote, saw)


@pytest.mark.parametrize(
    ("operations", "legal"),
    [
        ([], True),
        ([op(1, 2, 7, None), op(3, 4, None, 7)], True),
        ([op(1, 2, 7, None), op(3, 4, None, None)], False),  # a stale read
        ([op(1, 4, 7, None), op(2, 3, None, None)], True),  # at the same time: before
        ([op(1, 4, 7, None), op(2, 3, None, 7)], True),  # or after
        ([op(1, 6, 7, None), op(2, 3, None, 7), op(4, 5, None, None)], False),  # seen, and then not any more
        ([op(1, None, 7, None), op(2, 3, None, 7)], True),  # never answered, and done
        ([op(1, None, 7, None), op(2, 3, None, None)], True),  # never answered, and not done
        ([op(1, None, 7, None), op(2, 3, None, 7), op(4, 5, None, None)], False),
        ([op(1, 2, 7, None), op(3, 4, 8, 7), op(5, 6, None, 7)], False),
        ([op(1, 5, 7, 8), op(2, 6, 8, None), op(3, 4, None, 8)], True),
        ([op(1, 2, 7, None), op(3, 4, 8, None)], False),  # a lost write
    ],
)
def test_linearizability(operations: list[Operation], legal: bool) -> None:
    assert (illegal(operations) is None) == legal

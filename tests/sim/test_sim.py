"""The simulator in the default run: a few seeds, a run repeated, and every mutant caught. ``make sim`` runs more."""

from __future__ import annotations

import pytest

from tests.sim.cluster import Cluster
from tests.sim.mutants import MUTANTS, Mutant, in_force

BATCH = 15


@pytest.mark.parametrize("first", range(0, 150, BATCH))
def test_seeds(first: int) -> None:
    """Clusters of 1 to 5 replicas and up to 3 witnesses under faults; each must keep the promises, and converge."""
    for seed in range(first, first + BATCH):
        cluster = Cluster(seed)
        try:
            cluster.run()
        except AssertionError as exc:
            exc.add_note(f"seed {seed}; see it with: python -m tests.sim --seed {seed} --trace")
            raise


def test_a_seed_reproduces_the_run() -> None:
    first, again = Cluster(7), Cluster(7)
    first.run()
    again.run()
    assert first.tail == again.tail
    assert first.checkers.history == again.checkers.history
    assert first.clock.happened == again.clock.happened


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.rule.replace(" ", "-"))
def test_the_simulator_notices(mutant: Mutant) -> None:
    """Without the rule a promise is broken; with it the same seed passes."""
    with in_force(mutant), pytest.raises(AssertionError):
        Cluster(mutant.caught_by).run()
    Cluster(mutant.caught_by).run()

"""Everything about a run that is decided before it begins, drawn from its seed: to be printed, and shrunk."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Final

from tests.sim.clock import MS, SECOND
from tests.sim.schedule import Fault, draw, profile_of

SMALL: Final = {"JOIN_CLOSE": 4, "FEED_WINDOW": 8, "FEED_ITEMS": 3, "RECENT_ITEMS": 12, "VIEWS_KEPT": 3}
"""Bounds of vsync.limits in runs that are to reach them often: feeds that are cut, snapshots, views forgotten."""
HURRY: Final = {
    "SEAL_WAIT": 60 * MS,
    "DECIDE_WAIT": 120 * MS,
    "PROGRESS_WAIT": 60 * MS,
    "PROGRESS_WAIT_MAX": 1000 * MS,
    "RANK_STEP": 20 * MS,
    "FETCH_RETRY": 30 * MS,
    "JOIN_RETRY": 100 * MS,
    "JOIN_STAY_MIN": 60 * MS,
}
"""Times of vsync.limits in runs that are to see many views: no promise rests on any of these.

They do not keep every inequality of that module (BROKEN_IN_A_HURRY). Above all a replica without an active view begins
to change it while leases of the last one still run. In production that takes an attempt that has failed, or an
administrator (``ChangeView`` may come at any moment); here it is usual, and some rules are for nothing else: with a
PROGRESS_WAIT above LEASE, of 30 hurried runs each, the mutants inherited-hold-forgotten, restart-without-hold and
lent-by-members were noticed in none (as it is in 4, 2 and 3), chain-forgotten in 1 (5), absent-counts-as-not-flushed in
2 (8).
"""
BROKEN_IN_A_HURRY: Final = (
    "LEASE < PROGRESS_WAIT",
    "SEAL_WAIT > 2 * HEARTBEAT",
    "PROGRESS_WAIT > SEAL_WAIT + HEARTBEAT and DECIDE_WAIT > SEAL_WAIT",
)
"""What vsync.limits asserts and HURRY does not keep."""


@dataclass(frozen=True, slots=True)
class Setup:
    """One run. Times in us."""

    seed: int
    profile: str
    replicas: tuple[int, ...]
    witnesses: tuple[int, ...]
    spares: tuple[int, ...]
    """Replicas and a witness that administrators may add."""
    forced: bool
    """At the end one replica alone begins a new generation, and the others find their way back to it."""
    bounds: tuple[tuple[str, int], ...]
    """What vsync.limits is in this run."""
    delay: int
    drift_ppm: int
    keys: int
    clients: int
    client_pace: int
    reader_pace: int
    commit_pace: int
    holding: float
    """Share of the parts of messages that contradict what a client of some replica keeps, at each replica; 0: clients
    keep nothing."""
    returning: float
    """Share of the certified deaths after which the clients of the dead say that they have let go of what it lent."""
    inline: bool
    """Journals write to a fast disk at once, as the real one does; else in the background always."""
    safety: int
    schedule: tuple[Fault, ...]

    def __str__(self) -> str:
        lines = [
            f"seed {self.seed}, profile {self.profile}: replicas {list(self.replicas)}, witnesses "
            f"{list(self.witnesses)}, {self.clients} clients that keep {self.holding:g}, {self.keys} keys, "
            f"{self.safety / SECOND:g} s"
        ]
        lines += [f"  {fault}" for fault in self.schedule]
        return "\n".join(lines)


def setup_of(seed: int) -> Setup:
    """The run of *seed*, the same on every machine and for ever while this function does not change."""
    profile = profile_of(seed)
    rng = Random(f"{seed} setup")
    replicas = tuple(range(1, rng.choice(profile.replicas) + 1))
    witnesses = tuple(range(101, 101 + rng.choice(profile.witnesses)))
    bounds = {**(SMALL if rng.random() < profile.small else {}), **(HURRY if rng.random() < profile.hurry else {})}
    safety = rng.choice(profile.safety) * SECOND
    return Setup(
        seed=seed,
        profile=profile.name,
        replicas=replicas,
        witnesses=witnesses,
        spares=(len(replicas) + 1, len(replicas) + 2, 101 + len(witnesses)),
        forced=rng.random() < 0.1,
        bounds=tuple(sorted(bounds.items())),
        delay=rng.choice(profile.delay),
        drift_ppm=rng.choice(profile.drift),
        # A query waits for what is in the log about its key: to be answered by a replica that is cut off it has to be
        # about another one, so hunters of stale answers have several keys, and not too many requests.
        keys=rng.choice((4, 8)) if profile.busy else rng.choice((1, 2, 4)),
        clients=rng.choice((2, 3)) if profile.busy else rng.choice((2, 3, 5)),
        client_pace=rng.choice((6, 15) if profile.busy else (4, 15, 60)) * MS,
        reader_pace=rng.choice((6, 12) if profile.busy else (20, 60)) * MS,
        commit_pace=rng.choice((20, 200, 2000)) * MS,
        holding=Random(f"{seed} holding").choice((0.1, 0.3, 0.5) if profile.lending else (0.0, 0.0, 0.0, 0.1, 0.5)),
        returning=0.7 if profile.lending else 0.0,
        inline=rng.random() < 0.4,
        safety=safety,
        schedule=tuple(draw(Random(f"{seed} schedule"), profile, replicas, witnesses, safety)),
    )

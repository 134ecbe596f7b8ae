"""What is going to go wrong in a run, as plain data drawn from its seed: to be printed, and shrunk.

A fault names everything it needs; what it decides while it happens, it draws from a stream of its own, so that a run
without one of its neighbours is as near to the same as can be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from tests.sim.clock import MS, SECOND


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong, ``at`` (us) in the safety phase. ``number`` stays its own when others are left out."""

    number: int
    at: int
    kind: str
    args: tuple[Any, ...]

    def __str__(self) -> str:
        shown = ", ".join(f"{a / 1000:g} ms" if type(a) is int and a >= MS else str(a) for a in self.args)
        return f"#{self.number:<3} at {self.at / 1000:8.1f} ms  {self.kind}: {shown}"


@dataclass(frozen=True, slots=True)
class Profile:
    """What a run is after: the cluster that suits it, and which faults it is made of."""

    name: str
    kinds: tuple[tuple[str, int], ...]
    """(kind, weight); every one of them in every run."""
    replicas: tuple[int, ...] = (1, 2, 2, 3, 3, 3, 3, 4, 5)
    witnesses: tuple[int, ...] = (0, 0, 1, 1, 2, 3)
    some: bool = False
    """Of the kinds only some are drawn: each deserves runs in which it is not drowned by the others."""
    pace: tuple[int, ...] = (40, 100, 250, 600)
    """About every so many ms something happens."""
    hurry: float = 0.6
    """Share of runs with short waits between the attempts at a view change."""
    small: float = 0.4
    """Share of runs with small bounds."""
    delay: tuple[int, ...] = (200, 1000, 8000)
    drift: tuple[int, ...] = (0, 1000, 40_000)
    busy: bool = False
    """Many requests and questions."""
    lending: bool = False
    """Clients always keep something, and those of the dead often say that they have let go of it."""
    safety: tuple[int, ...] = (3, 5, 7)


GENERAL: Final = Profile(
    "general",
    (
        ("crash", 4), ("pause", 4), ("cut", 4), ("one-way cut", 4), ("isolate", 4), ("break", 4), ("lose data", 4),
        ("slow disk", 4), ("hiccups", 3), ("power cut", 1), ("when", 6), ("duel", 4), ("clients cut", 2), ("hang", 1),
        ("fail", 1), ("lose state", 1), ("client dies", 1), ("cut off", 2), ("amnesia", 1), ("administer", 3),
        ("leave", 2),
    ),
    some=True,
)  # fmt: skip
PROFILES: Final = (
    GENERAL,
    GENERAL,
    Profile("readers cut off", (("cut off", 6), ("break", 1)), (2, 3, 3), (1, 2), pace=(700,), hurry=1.0,
            delay=(200, 1000), drift=(0, 40_000, 40_000), busy=True),
    GENERAL,
    Profile("amnesia", (("amnesia", 6), ("break", 1)), (2, 2, 3), (1, 2), pace=(700,), hurry=1.0, delay=(200, 1000),
            drift=(0, 40_000), busy=True),
    GENERAL,
    Profile("late grants", (("late grant", 1),), (3,), (2, 3), pace=(1100,), hurry=1.0, small=0.2, delay=(200,),
            drift=(0, 1000), busy=True, safety=(7,)),
    GENERAL,
    Profile("proposers", (("proposer dies", 6), ("duel", 1), ("slow disk", 1)), (3, 3, 5), (0, 0, 1, 2), pace=(150,),
            hurry=1.0, delay=(200, 1000)),
    Profile("loans", (("killed young", 6), ("storm", 6), ("alone", 4), ("crash", 1), ("leave", 1)), (2, 2, 3, 3, 4),
            (0, 1, 2), pace=(400, 800), hurry=0.5, delay=(200, 1000, 8000), drift=(0, 40_000), busy=True, lending=True),
    Profile("seals", (("forgotten seal", 1),), (3,), (2,), pace=(1800,), hurry=0.0, small=0.0, delay=(200,),
            busy=True, safety=(7,)),
    GENERAL,
    Profile("sleepers", (("pause", 8), ("crash", 1), ("clients cut", 1)), (2, 3, 3, 4), (0, 1, 2), pace=(250, 600),
            drift=(0, 40_000), busy=True),
    Profile("crossings", (("crossing", 1),), (3,), (0,), pace=(1000,), hurry=0.0, small=0.0, delay=(200,), safety=(7,)),
    Profile("in the middle", (("when", 10), ("duel", 3), ("crash", 1), ("lose data", 1)), (2, 3, 3, 4, 5),
            pace=(40, 100)),
    Profile("old hands", (("old hand", 1),), (3,), (0, 2), pace=(2500,), hurry=0.0, small=0.0, delay=(200,),
            safety=(5,)),
    Profile("power", (("power cut", 3), ("when", 4), ("slow disk", 2), ("lose state", 1)), (2, 3, 3, 4), pace=(250,),
            busy=True),
    Profile("bases", (("nobody flushed", 1),), (3,), (2,), pace=(2000,), hurry=1.0, small=0.0, delay=(200,),
            busy=True, safety=(7,)),
    Profile("disks", (("slow disk", 6), ("hang", 2), ("fail", 2), ("crash", 3), ("swap disk", 1), ("power cut", 1)),
            (2, 3, 3, 4, 5), pace=(100, 250, 600)),
    Profile("administrators", (("administer", 5), ("leave", 3), ("crash", 3), ("pause", 1), ("when", 3), ("cut", 2),
            ("fail", 1), ("power cut", 1), ("cut off", 1)), (1, 2, 3, 3, 4), pace=(100, 250)),
    Profile("ballots", (("ballot again", 1),), (3,), (0,), pace=(1500,), hurry=0.0, delay=(200,), safety=(7,)),
    Profile("certificates", (("second life", 8), ("crash", 2), ("leave", 1)), (2, 3, 3), (1, 2),
            pace=(1200,), safety=(5, 7), hurry=1.0, delay=(200,), busy=True),
    Profile("leaving", (("leaving", 5), ("leave", 1), ("administer", 1)), (3, 3, 4), (0, 1, 2), pace=(600,), hurry=1.0,
            delay=(200,), busy=True),
    Profile("learners", (("isolate", 3), ("crash", 4), ("lose data", 2), ("when", 2), ("cut", 2), ("lose state", 1)),
            (2, 3, 4), pace=(250, 600), small=1.0, busy=True),
)  # fmt: skip
"""Seed s runs under profile s modulo their number."""

AIMED: Final = (
    "cut off", "leaving", "ballot again", "second life", "amnesia", "late grant", "forgotten seal", "proposer dies",
    "crossing", "old hand", "nobody flushed", "killed young", "storm", "alone",
)  # fmt: skip
"""Kinds that are told as stories (tests.sim.stories), about one replica."""
MOMENTS: Final = ("starts", "seals", "reports", "proposes", "learns", "flushes", "activates")
"""What a replica does on the way to the next view, as tests.sim.faults tells it from its effects."""


def profile_of(seed: int) -> Profile:
    return PROFILES[seed % len(PROFILES)]


def draw(rng: Random, profile: Profile, replicas: Sequence[int], witnesses: Sequence[int], until: int) -> list[Fault]:
    """The faults of one run."""
    kinds = [(k, w * rng.choice((1, 2, 4)) if profile.some else w) for k, w in profile.kinds
             if not profile.some or rng.random() < 0.4] or [profile.kinds[0]]  # fmt: skip
    names, weights = [k for k, _ in kinds], [w for _, w in kinds]
    pace = rng.choice(profile.pace) * MS
    draws = Draws(rng, list(replicas), list(witnesses))
    faults: list[Fault] = []
    at = rng.randrange(100 * MS, 1200 * MS)
    while at < until - 100 * MS:
        kind = rng.choices(names, weights)[0]
        args = draws.args(kind)
        if args is not None:
            faults.append(Fault(len(faults), at, kind, args))
        at += rng.randrange(pace // 8, 2 * pace)
    return faults


class Draws:
    """The particulars of faults."""

    def __init__(self, rng: Random, replicas: list[int], witnesses: list[int]) -> None:
        self._rng = rng
        self._replicas = replicas
        self._everyone = replicas + witnesses
        self._down = rng.choice((30, 100, 300, 1000)) * MS
        """About how long a process stays down or paused."""
        self._cut = rng.choice((60, 200, 700, 2000)) * MS

    def args(self, kind: str) -> tuple[Any, ...] | None:
        """What a fault of *kind* needs to know; None: there is nobody it could befall."""
        rng = self._rng
        who = rng.choice(self._everyone)
        replica = rng.choice(self._replicas)
        match kind:
            case "crash":
                return who, self._some(self._down), rng.random() < 0.7
            case "pause":
                return who, self._some(self._down)
            case "power cut":
                return tuple(self._some(self._down) for _ in self._everyone)
            case "cut" | "one-way cut" | "break" | "lose data":
                if len(self._everyone) < 2:
                    return None
                a, b = rng.sample(self._everyone, 2)
                return a, b, self._some(self._cut)
            case "isolate":
                return who, self._some(self._cut)
            case "clients cut":
                return replica, self._some(self._cut)
            case "slow disk":
                return who, rng.choice((1, 1, 2)), self._some(self._cut)
            case "hang":
                return who, rng.randrange(200 * MS, 4 * SECOND)
            case "fail" | "swap disk" | "lose state":
                return (replica if kind == "lose state" else who,)
            case "hiccups":
                return rng.choice((0.02, 0.3)), self._some(self._cut)
            case "duel":
                some = rng.sample(self._replicas, min(len(self._replicas), rng.choice((1, 1, 2, 3))))
                return tuple((r, rng.randrange(20 * MS)) for r in some)
            case "when":
                what = rng.choice(("crash", "crash", "pause", "isolate", "break", "cut", "power cut"))
                victim = rng.choice(("itself", "itself", "another"))
                return rng.choice(MOMENTS), rng.choice((0, 0, 1, 3)), what, victim, self._some(self._down)
            case "client dies":
                return ()
            case "administer":
                return (rng.choice(("add", "remove", "replace", "replace", "witness")),)
            case "leave":
                return replica, self._some(self._down)
            case _ if kind in AIMED:
                return (replica,) if len(self._replicas) > 1 else None
        raise AssertionError(f"no fault is called {kind}")

    def _some(self, about: int) -> int:
        return self._rng.randrange(about // 8, 2 * about)

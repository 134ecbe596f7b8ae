"""Faults that take aim: each is a story told by a generator, which yields how long to wait, or the moment to wait for.

They are for rules whose breach takes several things to happen in a row, within milliseconds: a schedule drawn at
random meets one of these in a million seeds, and the rule is as load-bearing as any.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from random import Random
from typing import Any, Final, Protocol

from tests.sim.clock import MS
from tests.sim.replica import Replica
from vsync.effects import ChangeView, Leave


@dataclass(frozen=True, slots=True)
class Moment:
    """Wait until one of *who* (empty: anybody) does *what* (see schedule.MOMENTS), for at most *within* us."""

    what: str
    who: tuple[int, ...]
    within: int


Story = Generator["int | Moment", Any, None]
"""Yields a time (us) or a Moment; a moment's value is the replica, or None when it did not come."""


class Stage(Protocol):
    """What a story may do (see tests.sim.faults)."""

    replicas: dict[int, Replica]

    @property
    def working(self) -> tuple[int, ...]: ...

    def crash(self, who: int, certified: bool = False) -> None: ...

    def restart(self, who: int) -> None: ...

    def cut(self, a: int, b: int, sharp: bool, unnoticed_by: int = 0) -> None: ...

    def pause(self, who: int, length: int) -> None: ...

    def mend(self, a: int, b: int) -> None: ...

    def reset(self, a: int, b: int) -> None: ...

    def connect(self, a: int, b: int) -> None: ...

    def lose_data(self, a: int, b: int) -> None: ...

    def slow(self, who: int, level: int) -> None: ...


def cut_off(stage: Stage, rng: Random, who: int) -> Story:
    """*who* is cut off from all others at one stroke. They notice at once; it notices nothing, or is paused besides,
    and clients still reach it and ask it, up to the moment when its lease runs out and beyond."""
    others = [r for r in stage.working if r != who]
    if not others:
        return  # nobody else is at work: there is nothing to be cut off from
    notices = rng.choice((0, 0, 0, *others))
    for other in others:
        stage.cut(who, other, True, unnoticed_by=who if notices != other else 0)
    if rng.random() < 0.3:
        stage.pause(who, rng.randrange(200 * MS, 450 * MS))
    if rng.random() < 0.3:
        # The others are at the next view change before the first one is through.
        yield rng.randrange(5 * MS, 200 * MS)
        stage.replicas[rng.choice(others)].take("event", ChangeView("an administrator wants one"))
    yield rng.randrange(300 * MS, 900 * MS)
    for other in others:
        stage.mend(who, other)


def leaving(stage: Stage, rng: Random, who: int) -> Story:
    """*who* asks to be left out and answers the seal; then it is cut off and does not learn what became of it. The
    others do not wait for its leases: sealed, it reads nothing, whatever it was promised."""
    others = [r for r in stage.working if r != who]
    if not others:
        return  # the last one cannot leave
    stage.replicas[who].take("event", Leave())
    stage.replicas[min(others)].take("event", ChangeView("an administrator wants one"))
    yield Moment("reports", (who,), 100 * MS)
    yield rng.randrange(200, 3 * MS)
    for other in others:
        stage.cut(who, other, True, unnoticed_by=who)
    yield rng.randrange(200 * MS, 500 * MS)
    for other in others:
        stage.mend(who, other)
    stage.crash(who)
    yield rng.randrange(1 * MS, 50 * MS)
    stage.restart(who)


def amnesia(stage: Stage, rng: Random, who: int) -> Story:
    """As above, and all the others start again at that moment: nobody remembers what *who* was promised."""
    others = [r for r in stage.working if r != who]
    for other in others:
        stage.cut(who, other, True, unnoticed_by=who)
    yield rng.randrange(20 * MS)
    for other in others:
        stage.crash(other)
    yield rng.randrange(1 * MS, 10 * MS)
    for other in others:
        stage.restart(other)
    yield rng.randrange(300 * MS, 800 * MS)
    for other in others:
        stage.mend(who, other)


def proposer_dies(stage: Stage, rng: Random, who: int) -> Story:
    """A coordinator dies with its proposal half told, and is back at once; voters are slow to say what they did."""
    slow = [r for r in stage.working if r != who and rng.random() < 0.6]
    for r in slow:
        stage.slow(r, 1)
    for _ in range(rng.choice((1, 2, 3))):
        stage.replicas[who].take("event", ChangeView("an administrator wants one"))
        moment = yield Moment("proposes", (who,), 200 * MS)
        if moment is None:
            break
        away = [r for r in stage.working if r != who and rng.random() < 0.4]
        yield rng.randrange(0, 100)
        for r in away:
            stage.reset(who, r)
        yield rng.randrange(0, rng.choice((500, 3 * MS, 20 * MS)))
        stage.crash(who)
        yield rng.randrange(100, rng.choice((1 * MS, 10 * MS)))
        stage.restart(who)
        yield rng.randrange(1 * MS, 30 * MS)
    yield rng.randrange(20 * MS, 150 * MS)
    for r in slow:
        stage.slow(r, 0)


def second_life(stage: Stage, rng: Random, who: int) -> Story:
    """*who* dies, its watchdog certifies that, and it is a member again; then it is cut off. The certificate was about
    its earlier life."""
    stage.crash(who, True)
    yield rng.randrange(5 * MS, 30 * MS)
    stage.restart(who)
    yield Moment("activates", (who,), 2500 * MS)
    yield rng.randrange(60 * MS, 150 * MS)
    yield from cut_off(stage, rng, who)


def ballot_again(stage: Stage, rng: Random, who: int) -> Story:
    """1. *who* proposes: Y accepts, slowly, X hears nothing, *who* dies. 2. It is back at once and proposes another
    view; X and Y hear nothing of that. 3. What Y has to say of the first proposal arrives. With the same ballot it
    would be taken for an answer to the second.
    """
    if len(stage.working) != 3:
        return
    x, y = rng.sample([r for r in stage.working if r != who], 2)
    stage.slow(who, 1)
    stage.replicas[who].take("event", ChangeView("an administrator wants one"))
    first = yield Moment("proposes", (who,), 250 * MS)
    stage.reset(who, x)
    stage.slow(y, 2)
    yield rng.randrange(220, 500)
    stage.crash(who)
    yield rng.randrange(100, 500)
    stage.slow(who, 0)
    stage.restart(who)
    stage.connect(who, x)
    stage.connect(who, y)
    yield rng.randrange(500, 3 * MS)
    stage.replicas[who].take("event", ChangeView("an administrator wants one"))
    second = yield Moment("proposes", (who,), 250 * MS)
    if first is not None and second is not None:
        stage.reset(who, x)
        stage.reset(who, y)
        yield Moment("learns", (who,), 400 * MS)
    stage.cut(who, x, True)
    stage.cut(who, y, True)
    stage.slow(y, 0)
    yield rng.randrange(100 * MS, 700 * MS)
    stage.replicas[x].take("event", ChangeView("an administrator wants one"))
    yield rng.randrange(450 * MS, 600 * MS)
    stage.mend(who, x)
    stage.mend(who, y)


def late_grant(stage: Stage, rng: Random, who: int) -> Story:
    """1. J is out of the view of A and B. 2. A and B do not hear each other for almost as long as A's promise to B
    runs. 3. J seals A, which reports what is left of the promise. 4. B's heartbeats come through: A, sealed, must not
    answer them, for what J has decided by now goes by what was reported. 5. B is cut off before it learns anything.
    """
    if len(stage.working) != 3:
        return
    j = who
    a, b = rng.sample([r for r in stage.working if r != j], 2)
    stage.cut(j, a, True)
    stage.cut(j, b, True)
    yield Moment("activates", (a,), 1500 * MS)
    yield Moment("activates", (b,), 20 * MS)
    yield rng.randrange(60 * MS, 120 * MS)
    stage.cut(a, b, False)
    stage.mend(j, a)
    yield rng.randrange(230 * MS, 290 * MS)
    stage.replicas[j].take("event", ChangeView("an administrator wants one"))
    yield Moment("seals", (a,), 20 * MS)
    stage.mend(a, b)
    yield rng.randrange(400, 1500)
    stage.cut(a, b, True, unnoticed_by=b)
    if stage.replicas[a].machine.core.newest.members != (a,):
        yield Moment("learns", (a,), 20 * MS)
    stage.cut(j, a, True)
    yield rng.randrange(300 * MS, 400 * MS)
    for one, other in ((a, b), (j, b), (j, a)):
        stage.mend(one, other)


def forgotten_seal(stage: Stage, rng: Random, who: int) -> Story:
    """1. B decides the view of A and B with the witnesses; neither A nor C hears of it. 2. B tells C. 3. C seals A for
    the view after that: A learns of the view of A and B at that moment, has not flushed it and says so. 4. A dies and
    is back at once: it is sealed still, or it flushes and activates with B what C has concluded never will be active.
    """
    if len(stage.working) != 3:
        return
    c = who
    a, b = rng.sample([r for r in stage.working if r != c], 2)
    stage.cut(c, a, False)
    stage.cut(c, b, False)
    stage.replicas[b].take("event", ChangeView("an administrator wants one"))
    proposed = yield Moment("proposes", (b,), 250 * MS)
    stage.cut(a, b, False)
    learned = yield Moment("learns", (b,), 50 * MS)
    if proposed is not None and learned is not None:
        stage.mend(c, b)
        yield Moment("learns", (c,), 20 * MS)
        stage.cut(c, b, False)
        level = rng.choice((0, 1))
        stage.slow(a, level)
        stage.mend(c, a)
        stage.replicas[c].take("event", ChangeView("an administrator wants one"))
        yield Moment("reports", (a,), 20 * MS)
        yield rng.randrange(*((300, 1 * MS) if level else (600, 2 * MS)))
        stage.crash(a)
        stage.cut(c, a, False)
        stage.slow(a, 0)
        stage.mend(a, b)
        yield rng.randrange(500, 3 * MS)
        stage.restart(a)
        yield rng.randrange(600 * MS, 800 * MS)
    for one, other in ((a, b), (c, a), (c, b)):
        stage.mend(one, other)


def crossing(stage: Stage, rng: Random, who: int) -> Story:
    """1. P's proposal is on its way to X when nothing of P's gets through any more. 2. Q has X promise a higher ballot
    and proposes another view. 3. Both proposals arrive at X, which accepts the second only: it has promised to.
    """
    if len(stage.working) != 3:
        return
    p = who
    q, x = rng.sample([r for r in stage.working if r != p], 2)
    stage.replicas[p].take("event", ChangeView("an administrator wants one"))
    proposed = yield Moment("proposes", (p,), 250 * MS)
    if proposed is not None:
        stage.cut(p, x, False)
        stage.cut(p, q, True, unnoticed_by=p)
        for _ in range(3):  # the first ballot may be too low
            yield 3 * MS
            stage.replicas[q].take("event", ChangeView("an administrator wants one"))
            proposed = yield Moment("proposes", (q,), 30 * MS)
            if proposed is not None:
                break
        stage.mend(p, x)
        yield rng.randrange(100 * MS, 600 * MS)
        stage.mend(p, q)


def old_hand(stage: Stage, rng: Random, who: int) -> Story:
    """*who* has coordinated so many changes that its ballots are far above all others, and dies with a proposal that
    was promised to. Whoever is to go on has to get above that, and cannot count up to there."""
    for _ in range(rng.randrange(40, 60)):
        stage.replicas[who].take("event", ChangeView("an administrator wants one"))
        moment = yield Moment("activates", (who,), 100 * MS)
        if moment is None:
            return
    stage.replicas[who].take("event", ChangeView("an administrator wants one"))
    moment = yield Moment("proposes", (who,), 100 * MS)
    if moment is not None:
        stage.crash(who)
        yield rng.randrange(1 * MS, 50 * MS)
        stage.restart(who)


def nobody_flushed(stage: Stage, rng: Random, who: int) -> Story:
    """1. What A and C multicast does not reach B; then C dies. 2. A decides the view of A and B, in which B is to get
    from A what it lacks. 3. A dies when B has learned of the view and before A itself has flushed it. 4. B goes on
    with the witnesses: from the view before, for what the one of A and B begins with is nowhere to be had.
    """
    if len(stage.working) != 3:
        return
    a = who
    b, c = rng.sample([r for r in stage.working if r != a], 2)
    stage.cut(a, b, False)
    stage.cut(b, c, False)
    yield rng.randrange(20 * MS, 60 * MS)
    stage.crash(c)
    stage.lose_data(a, b)
    stage.mend(a, b)
    yield rng.randrange(100, 1 * MS)
    stage.replicas[a].take("event", ChangeView("an administrator wants one"))
    proposed = yield Moment("proposes", (a,), 200 * MS)
    if proposed is not None:
        stage.slow(a, 2)
        learned = yield Moment("learns", (b,), 100 * MS)
        if learned is not None:
            stage.crash(a)
            stage.slow(a, 0)
            yield Moment("learns", (b,), 2500 * MS)
            yield rng.randrange(1 * MS, 10 * MS)
            stage.restart(a)
        stage.slow(a, 0)
    stage.mend(b, c)
    stage.restart(c)


def killed_young(stage: Stage, rng: Random, who: int) -> Story:
    """Somebody dies on the way into a view, or soon after it, while what is lent in the one before is in use, and is
    back at once or when all of that has run out; several times over."""
    others = [r for r in stage.working if r != who]
    if not others:
        return
    for _ in range(rng.choice((1, 2, 3, 4))):
        stage.replicas[rng.choice((who, *others))].take("event", ChangeView("an administrator wants one"))
        what = rng.choice(("activates", "activates", "flushes", "learns", "reports", "seals"))
        yield Moment(what, rng.choice(((who,), (rng.choice(others),), ())), 300 * MS)
        yield rng.randrange(0, rng.choice((300, 3 * MS, 30 * MS, 150 * MS, 260 * MS)))
        victim = rng.choice((who, who, who, rng.choice(others)))
        stage.crash(victim, rng.random() < 0.8)
        yield rng.randrange(50, rng.choice((1 * MS, 8 * MS, 60 * MS, 280 * MS)))
        stage.restart(victim)
        if rng.random() < 0.5:
            yield Moment("activates", (victim,), 1500 * MS)
            yield rng.randrange(0, 200 * MS)


def storm(stage: Stage, rng: Random, who: int) -> Story:
    """Views are asked for faster than they become active, by everybody, while replicas die, sleep and lose frames."""
    everyone = list(stage.working)
    if len(everyone) < 2:
        return
    down: list[int] = []
    for _ in range(rng.randrange(6, 25)):
        one, other = rng.sample(everyone, 2)
        what = rng.choices(("change", "crash", "reset", "lose", "pause"), (55, 20, 10, 7, 8))[0]
        if what == "change":
            stage.replicas[one].take("event", ChangeView("an administrator wants one"))
        elif what == "crash":
            stage.crash(one, rng.random() < 0.6)
            down.append(one)
        elif what == "reset":
            stage.reset(one, other)
        elif what == "lose":
            stage.lose_data(one, other)
        else:
            stage.pause(one, rng.randrange(1 * MS, 200 * MS))
        yield rng.randrange(100, rng.choice((2 * MS, 20 * MS, 80 * MS)))
        for r in [r for r in down if rng.random() < 0.6]:
            stage.restart(r)
            down.remove(r)
    for r in down:
        stage.restart(r)


def alone(stage: Stage, rng: Random, who: int) -> Story:
    """*who* is cut off until one side goes on alone, and lends to its clients what nobody else has promised anything
    for. When they meet again somebody dies, is cut off, sleeps or slows down on the way into each common view."""
    others = [r for r in stage.working if r != who]
    if not others:
        return
    for other in others:
        stage.cut(who, other, True)
    yield Moment("activates", (who,), 1500 * MS)
    yield Moment("activates", (), 300 * MS)
    yield rng.randrange(20 * MS, 400 * MS)
    for other in others:
        stage.mend(who, other)
    for _ in range(rng.choice((1, 2, 3))):
        what = rng.choice(("reports", "learns", "flushes", "activates", "proposes"))
        yield Moment(what, rng.choice(((who,), (rng.choice(others),), ())), 1500 * MS)
        yield rng.randrange(0, rng.choice((300, 2 * MS, 20 * MS, 200 * MS)))
        victim = rng.choice((who, *others))
        happens = rng.choices(("dies", "cut off", "sleeps", "slows down"), (40, 30, 15, 15))[0]
        if happens == "dies":
            stage.crash(victim, rng.random() < 0.7)
            yield rng.randrange(50, rng.choice((1 * MS, 30 * MS, 300 * MS)))
            stage.restart(victim)
        elif happens == "cut off":
            for other in others:
                stage.cut(who, other, True, unnoticed_by=rng.choice((0, who)))
            yield rng.randrange(1 * MS, 400 * MS)
            for other in others:
                stage.mend(who, other)
        elif happens == "sleeps":
            stage.pause(victim, rng.randrange(20 * MS, 400 * MS))
        else:
            stage.slow(victim, rng.choice((1, 2)))
            yield rng.randrange(1 * MS, 200 * MS)
            stage.slow(victim, 0)


STORIES: Final[dict[str, Callable[[Stage, Random, int], Story]]] = {
    "cut off": cut_off,
    "leaving": leaving,
    "second life": second_life,
    "amnesia": amnesia,
    "proposer dies": proposer_dies,
    "ballot again": ballot_again,
    "late grant": late_grant,
    "forgotten seal": forgotten_seal,
    "crossing": crossing,
    "old hand": old_hand,
    "nobody flushed": nobody_flushed,
    "killed young": killed_young,
    "storm": storm,
    "alone": alone,
}

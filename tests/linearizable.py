"""Pure. Whether a history of operations on one object is linearizable: one order of them explains every answer.

The order must respect time (an operation that ended before another began comes first) and the object's sequential
model. This is the just-in-time search of G. Lowe ("Testing for linearizability", 2016), the breadth-first cousin of
Wing and Gong's: events are taken in order of time, and a set of *configurations* is kept, each a state of the object
with the operations under way that have taken effect in it. An operation takes effect as late as can be: when it ends,
or when another one that ends needs it. No configuration left: no order explains the operation that ended last.

An operation whose outcome nobody knows (its client died) never ends: it may take effect at any time after it began,
or never. Real processes (tests.faults) are judged by this; the simulator has one for registers alone
(tests.sim.linear). A history of several objects is checked one object at a time, which is sound (linearizability is
local).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeVar

S = TypeVar("S", bound=Hashable)

CONFIGURATIONS_MAX: Final = 200_000
"""More than these at once, and the search is given up (and the run fails): too many outcomes are unknown."""


@dataclass(frozen=True, slots=True, eq=False)
class Operation:
    """What one client asked and was told. Times are of one clock that all clients share."""

    client: Any
    what: Any
    began: int
    ended: int | None
    """None: the outcome is unknown."""
    answer: Any = None

    def __str__(self) -> str:
        end = "never" if self.ended is None else str(self.ended)
        told = "nothing" if self.ended is None else repr(self.answer)
        return f"[{self.began} .. {end}] {self.client}: {self.what} -> {told}"


class Model(Protocol[S]):
    """A sequential object."""

    def initial(self) -> S: ...

    def step(self, state: S, op: Operation) -> Iterable[S]:
        """The states in which *op*, carried out in *state*, may leave the object and be answered as it was.

        None of them: it cannot have been. More than one: the answer (or its absence) leaves something open. The state
        itself, unchanged, must be told as the very same object.
        """
        ...

    def reads(self, op: Operation) -> bool:
        """Whether *op*, answered as it was, changes nothing in any state (a failure, say). False is always right."""
        ...


@dataclass(frozen=True, slots=True)
class Verdict(Generic[S]):
    """The outcome; true when the history is linearizable."""

    impossible: Operation | None
    """No order explains its answer."""
    before: tuple[S, ...] = ()
    """States the object may have been in when it took effect (some of them)."""
    around: tuple[Operation, ...] = ()
    """Operations under way at the time."""
    configurations: int = 0
    """The most there were at once."""
    states: tuple[S, ...] = ()
    """What the object may be at the end."""

    def __bool__(self) -> bool:
        return self.impossible is None


class SearchTooBig(Exception):
    """The history is too much for this search."""


Configuration = tuple[S, frozenset[int]]
"""A state, and which of the operations under way have taken effect in it."""


def check(model: Model[S], history: Sequence[Operation]) -> Verdict[S]:
    """Search for an order. Raises :class:`SearchTooBig`."""
    # At one instant, beginnings come before ends: the two operations overlap.
    events = [(op.began, 0, k) for k, op in enumerate(history)]
    events += [(op.ended, 1, k) for k, op in enumerate(history) if op.ended is not None]
    events.sort()
    under_way: dict[int, Operation] = {}
    configurations: set[Configuration[S]] = {(model.initial(), frozenset())}
    most = 1
    for _, ends, k in events:
        if not ends:
            under_way[k] = history[k]
            configurations = {_effortless(model, c, under_way, (k,)) for c in configurations}
            continue
        found = _after(model, configurations, under_way, k)
        if not found:
            states = tuple(dict.fromkeys(state for state, _ in configurations))[:8]
            return Verdict(history[k], states, tuple(under_way.values()), most)
        del under_way[k]
        configurations = found
        most = max(most, len(found))
    return Verdict(None, configurations=most, states=tuple({state for state, _ in configurations}))


def _effortless(
    model: Model[S], configuration: Configuration[S], under_way: dict[int, Operation], which: Iterable[int]
) -> Configuration[S]:
    """*configuration* with those of the operations *which* taken for done that only read and fit as it is.

    It loses nothing: whatever may follow without them may follow with them. That is not so for an operation which
    happens to change nothing now (a write of the same value): it may be needed later.
    """
    state, done = configuration
    more = [
        j
        for j in which
        if j not in done
        and under_way[j].ended is not None
        and model.reads(under_way[j])
        and _only_itself(state, model.step(state, under_way[j]))
    ]
    return (state, done.union(more)) if more else configuration


def _only_itself(state: S, after: Iterable[S]) -> bool:
    states = list(after)
    return len(states) == 1 and states[0] is state


def _after(
    model: Model[S], before: set[Configuration[S]], under_way: dict[int, Operation], k: int
) -> set[Configuration[S]]:
    """The configurations in which operation *k* has taken effect, with whatever must have come before it."""
    found: set[Configuration[S]] = set()
    seen = set(before)
    todo = list(before)
    while todo:
        state, done = todo.pop()
        if k in done:
            found.add((state, done - {k}))
            continue
        for j, op in under_way.items():
            if j in done:
                continue
            for after in model.step(state, op):
                if after is state and op.ended is None:
                    continue  # without an effect it may as well never happen
                new = _effortless(model, (after, done | {j}), under_way, under_way)
                if new not in seen:
                    seen.add(new)
                    todo.append(new)
        if len(seen) > CONFIGURATIONS_MAX:
            raise SearchTooBig(f"{len(seen)} configurations around {under_way[k]}")
    return found

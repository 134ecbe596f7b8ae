"""Clients that write and read, fail over and ask again; readers that stay with one replica; administrators.

What goes between a client and a replica may be lost, at any time and in either direction, without the replicas
noticing anything among themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, Final, Protocol

from tests.sim.checkers import Checkers
from tests.sim.clock import MS, Scheduler
from tests.sim.linear import Operation
from tests.sim.processes import Process
from tests.sim.replica import NOT_SERVING
from tests.sim.state import ROSTER_KEY, Request, Roster

READS_OPEN: Final = 24
"""Questions a reader has open at most: a paused replica answers all of them when it wakes."""


class Town(Protocol):
    """The cluster, as far as its clients see it."""

    clock: Scheduler
    checkers: Checkers
    processes: dict[int, Process]

    @property
    def serving_ids(self) -> tuple[int, ...]: ...


class Lines:
    """The way between clients and replicas, and the count of what happens on it."""

    def __init__(self, town: Town, rng: Random) -> None:
        self._town = town
        self._rng = rng
        self.cut: set[int] = set()
        """Replicas that no client reaches."""
        self._asking: dict[int, Asker] = {}
        self._events = 0
        self._numbers = 0

    def event(self) -> int:
        """The place of what happens now, in the order of everything that happens at clients."""
        self._events += 1
        return self._events

    def number(self) -> int:
        """A name for a query."""
        self._numbers += 1
        return self._numbers

    def add(self, asker: Asker) -> None:
        self._asking[asker.me] = asker

    def ask(self, asker: Asker, replica: int, kind: str, *what: Any) -> None:
        if replica not in self.cut:
            self._town.clock.after(self._rng.randrange(50, 900), self._arrive, asker, replica, kind, what)

    def _arrive(self, asker: Asker, replica: int, kind: str, what: tuple[Any, ...]) -> None:
        process = self._town.processes[replica]
        if process.running:
            process.take(kind, asker.me, *what)
        elif self._rng.random() < 0.8:  # a process that is gone refuses, a machine that is gone says nothing
            self._town.clock.after(self._rng.randrange(50, 900), asker.answered, *what[:1], -1, NOT_SERVING)

    def answer(self, replica: int, client: int, connection: int, number: int, reply: Any) -> None:
        if replica not in self.cut:
            asker = self._asking[client]
            self._town.clock.after(self._rng.randrange(50, 900), asker.answered, connection, number, reply)


class Asker(Protocol):
    me: int

    def answered(self, connection: int, number: int, reply: Any) -> None: ...


class Client:
    """One client: an operation at a time, asked of one replica after the other until it is answered."""

    def __init__(self, me: int, town: Town, lines: Lines, rng: Random, keys: int, pace: int) -> None:
        self.me = me
        self.town = town
        self.lines = lines
        self.rng = rng
        self._keys = keys
        self._pace = pace
        self._patience = rng.choice((40, 120, 350)) * MS
        self._writes = rng.choice((0.3, 0.6, 1.0))
        self._number = 0
        self._connection = 0
        self._at = rng.choice(town.serving_ids)
        self._asked: tuple[int, int, int | Roster | None] | None = None
        """(number, key, value to be written or None) of what is under way."""
        self._called = 0
        self._dead = False
        self.stopped = False
        lines.add(self)

    @property
    def idle(self) -> bool:
        return self._asked is None or self._dead

    def start(self) -> None:
        self.town.clock.after(self.rng.randrange(self._pace), self._next)

    def die(self) -> None:
        """Gone for good: what it had asked for may happen or not."""
        if self._asked is not None and self._asked[2] is not None and isinstance(self._asked[2], int):
            _, key, value = self._asked
            self.lines_record(key, value, None, None)
        self._dead = True

    def _next(self) -> None:
        if self.stopped or self._dead or self._asked is not None:
            return
        key = self.rng.randrange(self._keys)
        if self.rng.random() < self._writes:
            self.write(key)
        else:
            number = self.lines.number()
            self.town.checkers.asked(number, key)
            self._begin((number, key, None))

    def write(self, key: int, value: int | Roster | None = None) -> None:
        """Ask for *value* (None: a new one) to be written."""
        self._number += 1
        self._begin((self._number, key, self.me << 24 | self._number if value is None else value))

    def _begin(self, what: tuple[int, int, int | Roster | None]) -> None:
        self._asked = what
        self._called = self.lines.event()
        self._ask()

    def _ask(self) -> None:
        assert self._asked is not None
        number, key, value = self._asked
        self._connection += 1
        if value is not None:
            self.lines.ask(self, self._at, "request", self._connection, Request(self.me, number, key, value))
        else:
            self.lines.ask(self, self._at, "query", self._connection, number, key)
        patience = self.rng.randrange(self._patience, 3 * self._patience)
        self.town.clock.after(patience, self._lost_patience, self._connection)

    def _lost_patience(self, connection: int) -> None:
        if connection == self._connection and self._asked is not None and not self._dead:
            self._elsewhere()

    def _elsewhere(self) -> None:
        """Ask again: what was asked before may yet arrive, so it carries the same number."""
        self._at = self.rng.choice(self.town.serving_ids)
        self._ask()

    def answered(self, connection: int, number: int, reply: Any) -> None:
        if connection != self._connection or self._asked is None or self._dead:
            return  # of a connection that was given up
        if reply == NOT_SERVING:
            self.town.clock.after(self.rng.randrange(1 * MS, 30 * MS), self._lost_patience, connection)
            return
        assert number == self._asked[0]
        _, key, value = self._asked
        self._asked = None
        if key != ROSTER_KEY:
            assert not isinstance(value, tuple)
            if value is not None:
                self.town.checkers.answered(self.me, number, key)
            self.lines_record(key, value, reply, self.lines.event())
        self.done(reply)
        if not self.stopped:
            self.town.clock.after(self.rng.randrange(self._pace // 4, 2 * self._pace), self._next)

    def done(self, reply: Any) -> None:
        """What was under way is answered."""

    def lines_record(self, key: int, wrote: int | None, saw: int | None, returned: int | None) -> None:
        operation = Operation(self.me, key, self._called, returned, wrote, saw)
        self.town.checkers.operations.append(operation)


class Reader:
    """Asks one replica again and again, whatever that has to say or however long it takes."""

    def __init__(self, me: int, town: Town, lines: Lines, rng: Random, keys: int, pace: int, replica: int) -> None:
        self.me = me
        self.town = town
        self.lines = lines
        self.rng = rng
        self._keys = keys
        self._pace = pace
        self.replica = replica
        self._open: dict[int, tuple[int, int]] = {}
        self.stopped = False
        lines.add(self)

    def start(self) -> None:
        self.town.clock.after(self.rng.randrange(self._pace), self._next)

    def _next(self) -> None:
        if self.stopped:
            return
        self.town.clock.after(self.rng.randrange(self._pace // 4, 2 * self._pace), self._next)
        self.ask(self.rng.randrange(self._keys))  # also if it was removed: it may not know

    def ask(self, key: int) -> int:
        if len(self._open) >= READS_OPEN:
            del self._open[min(self._open)]  # that one is given up
        number = self.lines.number()
        self._open[number] = (key, self.lines.event())
        self.town.checkers.asked(number, key)
        self.lines.ask(self, self.replica, "query", number, number, key)
        return number

    def answered(self, connection: int, number: int, reply: Any) -> None:
        asked = self._open.pop(connection, None)
        if asked is not None and reply != NOT_SERVING:
            key, called = asked
            operation = Operation(self.me, key, called, self.lines.event(), None, reply)
            self.town.checkers.operations.append(operation)


class Administrator(Client):
    """Asks for one roster after the other, as a client asks for a write."""

    def __init__(self, me: int, town: Town, lines: Lines, rng: Random, done: Callable[[Any], None]) -> None:
        super().__init__(me, town, lines, rng, 1, 100 * MS)
        self._done = done

    def _next(self) -> None:
        """It asks for what the plan says only."""

    def order(self, roster: Roster) -> bool:
        """Ask for *roster*, unless the last order is not answered yet."""
        if self._asked is not None:
            return False
        self.write(ROSTER_KEY, roster)
        return True

    def done(self, reply: Any) -> None:
        self._done(reply)

"""Pure. Who may execute: the read/update/write lock table of the thesis (C. Engelmann, 2008, Table 4.1).

==============  =======  =======  =====
held \\ asked    read     update   write
==============  =======  =======  =====
read            execute  execute  queue
update          execute  queue    queue
write           queue    queue    queue
==============  =======  =======  =====

A request asks for all its locks at once, in delivery order, and holds its place in the line of each key until it is
released. It executes when none of those before it in any of its lines is in its way; what waits counts as held, so
what conflicts keeps the total order, and nobody can wait in a circle: everyone waits for earlier requests only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable
from typing import Any, Final, Generic, TypeVar

READ: Final = 0
UPDATE: Final = 1
WRITE: Final = 2
MODES: Final = ("read", "update", "write")

EXECUTES: Final = (
    (True, True, False),
    (True, False, False),
    (False, False, False),
)
"""Table 4.1: by what is held and what is asked."""

Key = Hashable
Locks = tuple[tuple[Key, int], ...]
"""Each key once, with its mode."""

R = TypeVar("R", bound=Hashable)


class Line(Generic[R]):
    """Everyone who asked for one key and has not been released, in order of asking."""

    __slots__ = ("held", "waiting", "waiting_writes")

    def __init__(self) -> None:
        self.held = [0, 0, 0]
        """How many hold the key, by mode."""
        self.waiting: deque[tuple[R, int]] = deque()
        self.waiting_writes = 0

    def strongest(self) -> int:
        """The mode among those in the line that leaves the least to who comes now; -1 when nobody is there."""
        held = self.held
        if held[WRITE] or self.waiting_writes:
            return WRITE
        if held[UPDATE] or self.waiting:  # without a write among them, only updates wait
            return UPDATE
        return READ if held[READ] else -1

    def free(self, mode: int) -> bool:
        """Whether those that hold the key let *mode* in."""
        held = self.held
        if held[WRITE]:
            return False
        if mode == READ:
            return True
        return not held[UPDATE] if mode == UPDATE else not held[UPDATE] and not held[READ]

    def pass_on(self, released: int) -> list[R]:
        """A holder in mode *released* has gone: give the key to those who wait and may have it now, in order."""
        given: list[R] = []
        stay: list[tuple[R, int]] = []
        while self.waiting:
            request, mode = self.waiting[0]
            if not self.free(mode) or (mode == WRITE and stay):
                if mode == WRITE or released != WRITE:
                    break
                # An update that waits for another one lets reads pass. Those that are behind it came while somebody
                # wrote, so they are there to be let in only when that has just ended.
                stay.append(self.waiting.popleft())
                continue
            self.waiting.popleft()
            self.held[mode] += 1
            self.waiting_writes -= mode == WRITE
            given.append(request)
        self.waiting.extendleft(reversed(stay))
        return given


class LockTable(Generic[R]):
    """See the module. Requests are any hashable things; each is declared once and released once."""

    def __init__(self, uncounted: Iterable[Key] = ()) -> None:
        """*uncounted*: keys that everybody reads; two who do are no cell of the table worth counting."""
        self._lines: dict[Key, Line[R]] = {}
        self._locks: dict[R, Locks] = {}
        self._lacking: dict[R, int] = {}
        """Requests that wait -> how many of their keys they do not have."""
        self._uncounted = frozenset(uncounted)
        self.cells = [[0, 0, 0], [0, 0, 0], [0, 0, 0]]
        """How often a lock was asked for (second place) while somebody was in the line (first place: the strongest of
        them). Whether it was given or queued the cell says by itself: :data:`EXECUTES`."""
        self.declared = 0
        self.queued = 0
        """Requests declared, and those among them that had to wait for others."""

    def __len__(self) -> int:
        return len(self._locks)

    def strongest(self, key: Key) -> int:
        """See :meth:`Line.strongest`."""
        line = self._lines.get(key)
        return -1 if line is None else line.strongest()

    def declare(self, request: R, locks: Locks) -> bool:
        """*request* asks for *locks*. True: it has them all."""
        assert request not in self._locks, "declared once"
        self._locks[request] = locks
        self.declared += 1
        lacking = 0
        for key, mode in locks:
            line = self._lines.get(key)
            if line is None:
                line = self._lines[key] = Line()
                line.held[mode] = 1
                continue
            before = line.strongest()
            given = before < 0 or EXECUTES[before][mode]
            if before >= 0 and not (given and key in self._uncounted):
                self.cells[before][mode] += 1
            if given:
                line.held[mode] += 1
            else:
                line.waiting.append((request, mode))
                line.waiting_writes += mode == WRITE
                lacking += 1
        if lacking:
            self._lacking[request] = lacking
            self.queued += 1
        return not lacking

    def release(self, request: R) -> list[R]:
        """*request*, which has its locks, is done. Returns those who have all of theirs by that, in no special order
        but the same one everywhere."""
        assert request not in self._lacking, "who waits is not done"
        ready: list[R] = []
        for key, mode in self._locks.pop(request):
            line = self._lines[key]
            line.held[mode] -= 1
            for other in line.pass_on(mode):
                self._lacking[other] -= 1
                if not self._lacking[other]:
                    del self._lacking[other]
                    ready.append(other)
            if line.strongest() < 0:
                del self._lines[key]
        return ready

    def statistics(self) -> dict[str, Any]:
        """For `lockstep status`: by what is held and what is asked, how often executed and how often queued."""
        return {
            "declared": self.declared,
            "queued": self.queued,
            "cells": {
                held: {
                    asked: {"executed": count if EXECUTES[h][a] else 0, "queued": 0 if EXECUTES[h][a] else count}
                    for a, asked in enumerate(MODES)
                    for count in (self.cells[h][a],)
                }
                for h, held in enumerate(MODES)
            },
        }

    def validate(self) -> None:
        """Assert that lines and requests agree, and that nobody waits who need not."""
        lacking: dict[R, int] = {}
        held: dict[Key, list[int]] = {}
        waiting = {(key, request) for key, line in self._lines.items() for request, _ in line.waiting}
        for request, locks in self._locks.items():
            for key, mode in locks:
                if (key, request) in waiting:
                    lacking[request] = lacking.get(request, 0) + 1
                else:
                    held.setdefault(key, [0, 0, 0])[mode] += 1
        assert lacking == self._lacking
        for key, line in self._lines.items():
            assert line.held == held.get(key, [0, 0, 0]), key
            assert line.waiting_writes == sum(mode == WRITE for _, mode in line.waiting)
            assert line.strongest() >= 0, "an empty line is taken away"
            assert line.held[WRITE] <= 1 and line.held[UPDATE] <= 1
            before = max((m for m in (READ, UPDATE, WRITE) if line.held[m]), default=-1)
            for _, mode in line.waiting:
                assert before >= 0 and not EXECUTES[before][mode], f"somebody waits for {key} without a reason"
                before = max(before, mode)

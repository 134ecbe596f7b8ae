"""A simulated journal: records are appended, become durable some time later, and what was not is lost in a crash."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from tests.sim.clock import MS, Scheduler
from vsync.records import Decided, Durable, Entry, Record, Reset, Started, cut_off
from vsync.view import Position

After = list[tuple[int, Any]]
Flushed = list[tuple[int, After]]
"""What a flush made durable: (ticket, messages that waited for it), in order."""


class Disk:
    """The journal of one process."""

    def __init__(self, clock: Scheduler, rng: Random, first: list[Record], flushed: Callable[[Flushed], None]) -> None:
        self._clock = clock
        self._rng = rng
        self._flushed = flushed
        self._waiting: list[tuple[int, list[Record], After]] = []
        self._flushing = 0
        self._life = 0
        self.records: list[Record] = []
        """What is durable, in order."""
        self.held: set[tuple[int, int, int]] = set()
        """(epoch, sender, seq) of the entries durable and not cut off."""
        self.incarnation = 0
        self.slow = 0
        """0: a fast disk. 1: a busy one. 2: one that nearly hangs."""
        self._write(first)

    def append(self, ticket: int, records: list[Record], after: After) -> None:
        """Append *records*; *after* is handed back with the flush that makes them durable."""
        self._waiting.append((ticket, records, after))
        if not self._flushing:
            self._start_flush()

    def _start_flush(self) -> None:
        self._flushing = len(self._waiting)
        longest = (400, 25 * MS, 700 * MS)[self.slow]
        self._clock.after(self._rng.randrange(longest // 8, longest), self._end_flush, self._life)

    def _end_flush(self, life: int) -> None:
        if life != self._life:
            return  # the process that flushed is dead
        done, self._waiting = self._waiting[: self._flushing], self._waiting[self._flushing :]
        self._flushing = 0
        for _, records, _ in done:
            self._write(records)
        if self._waiting:
            self._start_flush()
        self._flushed([(ticket, after) for ticket, _, after in done])

    def _write(self, records: list[Record]) -> None:
        self.records.extend(records)
        for record in records:
            if isinstance(record, Entry):
                self.held.add(record[:3])
            elif isinstance(record, Decided):
                self.held = {name for name in self.held if not cut_off(record.view, *name)}
            elif isinstance(record, Reset):
                self.held = {name for name in self.held if name[0] > record.epoch}

    def crash(self) -> None:
        """The process is gone: of what was not flushed, some beginning may have reached the disk."""
        self._life += 1
        lost = [record for _, records, _ in self._waiting for record in records]
        if lost:
            self._write(lost[: self._rng.randrange(len(lost) + 1)])
        self._waiting = []
        self._flushing = 0

    def start(self) -> Durable:
        """What a starting process finds; the start itself is recorded first."""
        self.incarnation += 1
        self._write([Started(self.incarnation)])
        durable = Durable()
        for record in self.records:
            durable.apply(record)
        return durable

    def trim(self, position: Position) -> None:
        """Drop the entries that the state committed at *position* holds."""
        delivered = dict(position.delivered)

        def needed(epoch: int, sender: int, seq: int) -> bool:
            return epoch > position.epoch or (epoch == position.epoch and seq > delivered.get(sender, 0))

        self.records = [r for r in self.records if not isinstance(r, Entry) or needed(*r[:3])]
        self.held = {name for name in self.held if needed(*name)}

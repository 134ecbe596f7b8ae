"""A simulated journal: records are appended, become durable some time later, and what was not is lost in a crash.

It may be slow, hang, or fail; one that has failed is never used again under its uuid.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, Final

from tests.sim.clock import MS, SECOND, Scheduler
from vsync.records import Decided, Durable, Entry, Met, Record, Reset, Started, Trimmed, cut_off
from vsync.view import Position

After = list[tuple[int, Any]]
Flushed = list[tuple[int, After]]
"""What a flush made durable: (ticket, messages that waited for it), in order."""

HUNG: Final = 3 * SECOND
"""A flush that takes longer stops its process (daemon.journal.FLUSH_MAX_S, shortened)."""


class Disk:
    """The journal of one process.

    *flushed* is called with what a flush made durable, *died* when the process has to stop for its disk.
    """

    def __init__(
        self,
        clock: Scheduler,
        rng: Random,
        first: list[Record],
        flushed: Callable[[Flushed], None],
        died: Callable[[str], None],
    ) -> None:
        self._clock = clock
        self._rng = rng
        self._flushed = flushed
        self._died = died
        self._waiting: list[tuple[int, list[Record], After]] = []
        self._flushing = 0
        self._life = 0
        self.uuid = rng.randbytes(16)
        self.records: list[Record] = []
        """What is durable, in order."""
        self.held: set[tuple[int, int, int]] = set()
        """(epoch, sender, seq) of the entries durable and not cut off."""
        self.incarnation = 0
        self.slow = 0
        """0: a fast disk. 1: a busy one. 2: one that nearly hangs."""
        self.hangs_until = 0
        self.fails = False
        """The next write or flush will fail."""
        self.poisoned = False
        """One has failed: the disk may have lost what it acknowledged, and is never opened again."""
        self._write(first)

    def append(self, ticket: int, records: list[Record], after: After) -> None:
        """Append *records*; *after* is handed back with the flush that makes them durable."""
        self._waiting.append((ticket, records, after))
        if not self._flushing:
            self._start_flush()

    def append_now(self, records: list[Record], after: After) -> bool:
        """As the real journal does with a fast disk that is idle: written and on disk at once, if that is possible."""
        if self._waiting or self.slow or self.fails or self.hangs_until > self._clock.now:
            return False
        self._write(records)
        return True

    def _start_flush(self) -> None:
        self._flushing = len(self._waiting)
        longest = (400, 25 * MS, 700 * MS)[self.slow]
        took = self._rng.randrange(longest // 8, longest)
        if self.hangs_until > self._clock.now + took:
            took = self.hangs_until - self._clock.now
        if took > HUNG:
            self._clock.after(HUNG, self._hung, self._life)
        else:
            self._clock.after(took, self._end_flush, self._life)

    def _hung(self, life: int) -> None:
        if life == self._life:
            self._died("a flush does not come back")

    def _end_flush(self, life: int) -> None:
        if life != self._life:
            return  # the process that flushed is dead
        if self.fails:
            self.fails = False
            self.poisoned = True
            self._died("a flush failed")
            return
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
        assert not self.poisoned, "a poisoned disk is not opened"
        self.incarnation += 1
        self._write([Started(self.incarnation)])
        durable = Durable()
        for record in self.records:
            durable.apply(record)
        return durable

    def met(self, peer: int) -> bytes | None:
        """The disk that *peer* had when it was first met."""
        return next((r.uuid for r in self.records if isinstance(r, Met) and r.peer == peer), None)

    def introduce(self, peer: int, uuid: bytes) -> None:
        """*peer* was met; on disk before it matters (the real journal writes it with what comes next)."""
        self._write([Met(peer, uuid)])

    def trim(self, position: Position) -> None:
        """Drop the entries that the state committed at *position* holds."""
        delivered = dict(position.delivered)

        def needed(epoch: int, sender: int, seq: int) -> bool:
            return epoch > position.epoch or (epoch == position.epoch and seq > delivered.get(sender, 0))

        kept = [r for r in self.records if not isinstance(r, Entry) or needed(*r[:3])]
        if len(kept) < len(self.records):
            self.records = [*kept, Trimmed(position.index)]
            self.held = {name for name in self.held if needed(*name)}

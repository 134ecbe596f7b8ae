"""What must be true of any run, whatever happened: told what the replicas deliver, answer and read, and nothing else.

The checkers know the promises (docs: group layer), not how a replica keeps them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from vsync.effects import Delivered, ViewEvent
from vsync.records import AcceptedValue, Decided, Entry, Record
from vsync.view import Position
from wire.group import View


class Violation(AssertionError):
    """A promise was broken."""


class Holder(Protocol):
    """A replica, as far as the checkers look at it."""

    me: int

    def has(self, entry: Entry, index: int) -> bool: ...


class Checkers:
    """The one history, and what was promised about it."""

    def __init__(self, replica: Callable[[int], Holder]) -> None:
        self._replica = replica
        self.history: list[Entry | View] = []
        """What anybody delivered, by index."""
        self._hashes: dict[int, bytes] = {}
        self._payloads: set[bytes] = set()
        self.views: dict[int, View] = {}
        """Decided views."""
        self.last_active = 0
        """Epoch of the last view whose event anybody delivered."""
        self._answers: dict[bytes, int] = {}
        self._last_answer: dict[int | None, int] = {}
        self.reads = 0

    # -- promises 1, 3, 4, 5

    def recorded(self, records: list[Record]) -> None:
        """One view is decided for an epoch."""
        for record in records:
            if isinstance(record, Decided):
                known = self.views.setdefault(record.view.epoch, record.view)
                if known != record.view:
                    raise Violation(f"two views decided: {known} and {record.view}")
            elif isinstance(record, AcceptedValue) and record.view.epoch != record.epoch:
                raise Violation(f"register {record.epoch} holds the view of {record.view.epoch}")

    def delivered(self, by: Holder, items: Sequence[Delivered | ViewEvent]) -> None:
        """Replica *by* delivered *items*: the next of the one history, and safe where they are new to it."""
        fresh: list[tuple[int, Entry]] = []
        for item in items:
            what = item.entry if isinstance(item, Delivered) else item.view
            if item.index < len(self.history):
                before = self.history[item.index]
                if before != what:
                    raise Violation(f"replica {by.me}: item {item.index} is {what}, history has {before}")
                continue
            if item.index != len(self.history):
                raise Violation(f"replica {by.me} delivers item {item.index}, history ends at {len(self.history)}")
            self.history.append(what)
            if isinstance(what, Entry):
                if what.payload in self._payloads:
                    raise Violation(f"replica {by.me}: item {item.index} is {what}, delivered before")
                self._payloads.add(what.payload)
                fresh.append((item.index, what))
            else:
                self.last_active = max(self.last_active, what.epoch)
        views = [item.view for item in items if isinstance(item, ViewEvent)]
        for index, entry in fresh:
            # Delivered within its view; or on the way into a later one, whose members have all flushed it.
            members = (views[-1] if views else self.views[entry.epoch]).members
            for member in members:
                if not self._replica(member).has(entry, index):
                    raise Violation(f"replica {by.me} delivers {entry}, item {index}, not safe at {member}")

    def same_hash(self, at: Position) -> None:
        """Equal index, equal history hash."""
        if self._hashes.setdefault(at.index, at.hash) != at.hash:
            raise Violation(f"two history hashes at index {at.index}")

    # -- promise 6

    def answered(self, item: Delivered) -> None:
        """The replica that was asked for this item answers its client."""
        payload = item.entry.payload
        self._answers[payload] = item.index
        for key in (payload[-1], None):
            self._last_answer[key] = max(item.index, self._last_answer.get(key, -1))

    def newest_answer(self, key: int | None) -> int:
        """Index of the last item about *key* (None: any) that was answered so far."""
        return self._last_answer.get(key, -1)

    def read(self, by: int, key: int | None, began: int, index: int) -> None:
        """Replica *by* answers a query about *key* from a state of *index* items.

        *began*: :meth:`newest_answer` when the query began.
        """
        self.reads += 1
        if began >= index:
            raise Violation(f"stale read at replica {by}: state of {index} items misses item {began}, answered before")

    # -- promise 2

    @property
    def answers(self) -> int:
        return len(self._answers)

    def is_answered(self, payload: bytes) -> bool:
        return payload in self._answers

    def finish(self) -> None:
        """Every answered request is in history where it was answered."""
        for payload, index in self._answers.items():
            item = self.history[index]
            if not isinstance(item, Entry) or item.payload != payload:
                raise Violation(f"{payload!r} was answered as item {index}, which is {item}")

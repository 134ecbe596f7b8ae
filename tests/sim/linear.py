"""Is a history of reads and writes linearizable?  The algorithm of Wing and Gong with Lowe's memory of what was tried,
one register at a time, as in porcupine: search for an order of the operations that a single register could have shown,
in which nothing comes before what had ended when it began; never try the same set of operations and value twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation on one register, as its client saw it. Times: places in the order in which things happened."""

    client: int
    key: int
    called: int
    returned: int | None
    """None: no answer ever came, it may have happened at any time since, or never."""
    wrote: int | None
    """The value written; None: a read."""
    saw: int | None
    """The value read, or the one that the write replaced."""

    def __str__(self) -> str:
        did = f"reads {self.saw}" if self.wrote is None else f"writes {self.wrote} over {self.saw}"
        return f"[{self.called}, {self.returned if self.returned is not None else 'never'}] client {self.client} {did}"


class _Node:
    """A call or a return, in a list from which pairs are lifted and put back."""

    __slots__ = ("after", "before", "match", "number", "operation")

    def __init__(self, operation: Operation | None, number: int) -> None:
        self.operation = operation
        self.number = number
        self.match: _Node | None = None
        """Of a call: its return."""
        self.before: _Node | None = None
        self.after: _Node | None = None

    def lift(self) -> None:
        """Take this call and its return out."""
        for node in (self, self.match):
            assert node is not None and node.before is not None
            node.before.after = node.after
            if node.after is not None:
                node.after.before = node.before

    def unlift(self) -> None:
        for node in (self.match, self):
            assert node is not None and node.before is not None
            node.before.after = node
            if node.after is not None:
                node.after.before = node


def illegal(operations: Iterable[Operation]) -> list[Operation] | None:
    """None: linearizable. Else the operations that overlap the place where every order fails, of one key."""
    keys: dict[int, list[Operation]] = {}
    for operation in operations:
        if operation.returned is not None or operation.wrote is not None:  # a read without answer says nothing
            keys.setdefault(operation.key, []).append(operation)
    for _, those in sorted(keys.items()):
        stuck = _stuck(those)
        if stuck is not None:
            return stuck
    return None


def _stuck(operations: list[Operation]) -> list[Operation] | None:
    head = _chain(operations)
    value: int | None = None
    done = 0
    tried: set[tuple[int, int | None]] = set()
    taken: list[tuple[_Node, int | None]] = []
    furthest = 0.0
    at = head.after
    while head.after is not None:
        assert at is not None
        if at.match is not None:
            operation = at.operation
            assert operation is not None
            fits = operation.returned is None or operation.saw == value
            then = operation.wrote if operation.wrote is not None else value
            if fits and (state := (done | 1 << at.number, then)) not in tried:
                tried.add(state)
                taken.append((at, value))
                done, value = state
                at.lift()
                at = head.after
            else:
                at = at.after
            continue
        if at.operation is not None and at.operation.returned is None:
            return None  # what is left was never answered: it need not have happened
        assert at.operation is not None and at.operation.returned is not None
        furthest = max(furthest, at.operation.returned)
        while True:
            if not taken:
                return [o for o in operations if o.called <= furthest and (o.returned or inf) >= furthest - 40]
            at, value = taken.pop()
            done &= ~(1 << at.number)
            at.unlift()
            # A read that fits now may as well come first: it changes nothing. So only of writes another is tried.
            if at.operation is not None and at.operation.wrote is not None:
                break
        at = at.after
    return None


def _chain(operations: list[Operation]) -> _Node:
    events: list[tuple[float, int, _Node]] = []
    for number, operation in enumerate(sorted(operations, key=lambda o: o.called)):
        call, back = _Node(operation, number), _Node(operation, number)
        call.match = back
        events.append((operation.called, number, call))
        events.append((inf if operation.returned is None else operation.returned, number, back))
    head = last = _Node(None, -1)
    for _, _, node in sorted(events, key=lambda e: e[:2]):
        node.before, last.after = last, node
        last = node
    return head

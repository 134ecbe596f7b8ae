"""The rules of one object, as tables and as properties."""

from __future__ import annotations

import errno
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ossd import objects
from ossd.objects import Order, SyncBook, Truncations, Turn, pending, readable, visible_size

# --- truncation -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("last", "truncations", "expected"),
    [
        (0, (), (None, 0)),
        (7, (), (None, 7)),
        (0, ((1, 100),), (100, 1)),
        (1, ((1, 100),), (None, 1)),
        (2, ((1, 100),), (None, 2)),  # a client that knows the file from before: never trim newer data again
        (0, ((1, 100), (2, 50)), (50, 2)),
        (1, ((1, 100), (2, 200)), (200, 2)),
        (0, ((1, 100), (2, 200)), (100, 2)),  # cut to 100, then extended: what lay above 100 is gone for ever
        (1, ((1, 5), (2, 200)), (200, 2)),
        (3, ((2, 0), (4, 10), (5, 20)), (10, 5)),
        (0, ((2, 10), (1, 5)), (5, 2)),  # in no order
        (0, ((1, 0),), (0, 1)),
        (2**64 - 2, ((2**64 - 1, 2**64 - 1),), (2**64 - 1, 2**64 - 1)),
    ],
)
def test_pending(last: int, truncations: Truncations, expected: tuple[int | None, int]) -> None:
    assert pending(last, truncations) == expected


truncation_lists = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 50)), max_size=5).map(tuple)


@given(st.integers(0, 6), truncation_lists, truncation_lists)
def test_a_truncation_is_carried_out_once(last: int, first: Truncations, more: Truncations) -> None:
    length, after = pending(last, first)
    assert after >= last
    assert (length is None) == (after == last)
    assert pending(after, first) == (None, after), "again: nothing to do"
    together = pending(last, first + more)
    assert together[1] == max(after, pending(last, more)[1])


@given(st.integers(0, 60), st.integers(0, 6), truncation_lists)
def test_a_read_sees_what_a_trim_would_leave(size: int, last: int, truncations: Truncations) -> None:
    length, after = pending(last, truncations)
    trimmed = size if length is None else min(size, length)
    assert visible_size(size, last, truncations) == trimmed
    assert visible_size(trimmed, after, truncations) == trimmed


@pytest.mark.parametrize(
    ("size", "offset", "length", "expected"),
    [(10, 0, 10, 10), (10, 0, 11, 10), (10, 9, 5, 1), (10, 10, 5, 0), (10, 2**62, 5, 0), (0, 0, 5, 0), (10, 3, 0, 0)],
)
def test_readable(size: int, offset: int, length: int, expected: int) -> None:
    assert readable(size, offset, length) == expected


# --- order ----------------------------------------------------------------------------------------


def test_order_of_one_object() -> None:
    """Two reads run together; a write waits for them; a read after it waits for the write; then both go on."""
    order: Order[str] = Order()
    read1, read2 = order.enter("x", True), order.enter("x", True)
    write, read3, read4, last = (order.enter("x", shared) for shared in (False, True, True, False))
    assert [t.granted for t in (read1, read2, write, read3, read4, last)] == [True, True, False, False, False, False]
    assert order.leave(read2) == []
    assert order.leave(read1) == [write]
    assert order.leave(write) == [read3, read4]
    assert order.leave(read3) == []
    assert order.leave(read4) == [last]
    assert "x" in order
    assert order.leave(last) == []
    assert "x" not in order
    assert len(order) == 0


def test_objects_do_not_wait_for_each_other() -> None:
    order: Order[str] = Order()
    assert order.enter("x", False).granted
    assert order.enter("y", False).granted
    assert len(order) == 2


def test_who_gives_up_waiting_is_skipped() -> None:
    """A connection breaks while its write waits between two reads: the second joins the first."""
    order: Order[str] = Order()
    read1, write, read2 = (order.enter("x", shared) for shared in (True, False, True))
    assert order.leave(write) == [read2]
    assert order.leave(read1) == []
    assert order.leave(read2) == []


class OrderMachine(RuleBasedStateMachine):
    """Whatever comes and goes: exclusive turns are alone, nobody overtakes, nobody is forgotten."""

    def __init__(self) -> None:
        super().__init__()
        self.order: Order[int] = Order()
        self.turns: list[Turn[int]] = []

    @rule(key=st.integers(0, 1), shared=st.booleans())
    def enter(self, key: int, shared: bool) -> None:
        self.turns.append(self.order.enter(key, shared))

    @precondition(lambda self: bool(self.turns))
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        turn = data.draw(st.sampled_from(self.turns))
        before = [t for t in self.turns if not t.granted]
        granted = self.order.leave(turn)
        self.turns.remove(turn)
        assert [t for t in before if t.granted] == granted

    @invariant()
    def valid(self) -> None:
        self.order.validate()
        for key in (0, 1):
            mine = [t for t in self.turns if t.key == key]
            granted = [t.granted for t in mine]
            assert granted == sorted(granted, reverse=True), "in the order they came"


TestOrderMachine = OrderMachine.TestCase


# --- lost writes ----------------------------------------------------------------------------------


def test_a_sync_without_trouble() -> None:
    book = SyncBook()
    book.wrote("a")
    assert (book.writes, book.synced) == (1, 0)
    assert not book.clean
    book.done(book.writes)
    assert (book.writes, book.synced) == (1, 1)
    assert book.told("a") == 0


def test_each_writer_is_told_once() -> None:
    """Two clients write one object; a third syncs it; the disk has lost it."""
    book = SyncBook()
    book.wrote("a")
    book.wrote("b")
    book.failed(book.writes, errno.EIO)
    assert book.owes
    assert book.clean, "asking the kernel again would only give a false success"
    assert book.told("c") == 0, "it lost nothing (whose own sync failed is told by that)"
    assert book.told("a") == errno.EIO
    assert book.told("a") == 0
    assert book.owes
    book.done(book.writes)
    assert book.told("b") == errno.EIO, "the later success does not bring its data back"
    assert not book.owes


def test_who_writes_afterwards_hears_nothing() -> None:
    book = SyncBook()
    book.wrote("a")
    book.failed(book.writes, errno.EIO)
    book.wrote("b")
    book.done(book.writes)
    assert book.told("b") == 0
    assert book.told("a") == errno.EIO


def test_a_write_during_the_sync() -> None:
    """1. a writes. 2. A sync begins. 3. a and b write. 4. The sync succeeds: it covers 1 only. 5. The next fails."""
    book = SyncBook()
    book.wrote("a")
    begun = book.writes
    book.wrote("a")
    book.wrote("b")
    book.done(begun)
    assert not book.clean
    book.failed(book.writes, errno.ENOSPC)
    assert (book.told("a"), book.told("b")) == (errno.ENOSPC, errno.ENOSPC)


def test_a_write_during_a_sync_that_fails() -> None:
    """No telling which pages were lost, so who wrote meanwhile is told as well; its data is synced again."""
    book = SyncBook()
    book.wrote("a")
    begun = book.writes
    book.wrote("b")
    book.failed(begun, errno.EIO)
    assert not book.clean
    assert (book.told("a"), book.told("b")) == (errno.EIO, errno.EIO)
    book.failed(book.writes, errno.EIO)
    assert (book.told("a"), book.told("b")) == (0, errno.EIO)


def test_clients_without_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "SYNCERS_MAX", 3)
    book = SyncBook()
    for k in range(5):
        book.wrote(str(k))
    book.failed(book.writes, errno.EIO)
    assert book.owes
    assert book.told("somebody") == errno.EIO, "too many to remember: the next one is told, at least"
    assert not book.owes


@given(st.lists(st.tuples(st.sampled_from(["write", "begin", "done", "failed"]), st.sampled_from("abc"))))
def test_nobody_loses_data_unheard(steps: list[tuple[str, str]]) -> None:
    """Against a model that keeps for each client whether it has writes that are neither on disk nor owned up to."""
    book = SyncBook()
    at_risk: dict[str, list[int]] = {}
    owed: set[str] = set()
    begun: int | None = None
    for what, client in steps:
        if what == "write":
            book.wrote(client)
            at_risk.setdefault(client, []).append(book.writes)
        elif what == "begin":
            begun = book.writes
        elif begun is not None:
            if what == "failed":
                book.failed(begun, errno.EIO)
                owed |= {c for c, numbers in at_risk.items() if any(n <= begun for n in numbers)}
            else:
                book.done(begun)
            for numbers in at_risk.values():
                numbers[:] = [n for n in numbers if n > begun]
            assert book.synced >= begun
            begun = None
    assert book.clean == (not any(at_risk.values()))
    told: dict[str, Any] = {client: book.told(client) for client in "abc"}
    assert all(told[client] == errno.EIO for client in owed)

"""mds.locks: Table 4.1, cell by cell, and what it leads to for whole lines of requests."""

from __future__ import annotations

from random import Random

import pytest

from mds.locks import EXECUTES, MODES, READ, UPDATE, WRITE, Locks, LockTable

CELLS = [
    ("read", "read", True), ("read", "update", True), ("read", "write", False),
    ("update", "read", True), ("update", "update", False), ("update", "write", False),
    ("write", "read", False), ("write", "update", False), ("write", "write", False),
]  # fmt: skip


@pytest.mark.parametrize(("held", "asked", "executes"), CELLS)
def test_each_cell(held: str, asked: str, executes: bool) -> None:
    table: LockTable[str] = LockTable()
    assert table.declare("first", (("k", MODES.index(held)),))
    assert table.declare("second", (("k", MODES.index(asked)),)) == executes
    table.validate()
    assert table.release("first") == ([] if executes else ["second"])
    table.release("second")
    assert len(table) == 0
    cell = table.statistics()["cells"][held][asked]
    assert cell == {"executed": int(executes), "queued": int(not executes)}
    assert table.statistics()["declared"] == 2 and table.statistics()["queued"] == int(not executes)


def test_what_conflicts_keeps_its_order_and_what_does_not_passes() -> None:
    """A write that waits is in the way of a read after it, or it might wait for ever."""
    table: LockTable[str] = LockTable()
    assert table.declare("r1", (("k", READ),))
    assert not table.declare("w2", (("k", WRITE), ("other", WRITE)))
    assert not table.declare("r3", (("k", READ),))
    assert not table.declare("w4", (("other", WRITE),))
    assert table.declare("w5", (("elsewhere", WRITE),))
    table.validate()
    assert table.release("r1") == ["w2"]
    assert table.release("w5") == []
    assert table.release("w2") == ["r3", "w4"]
    table.validate()


def test_reads_pass_updates_that_wait_for_each_other() -> None:
    table: LockTable[str] = LockTable()
    assert table.declare("w1", (("k", WRITE),))
    for name, mode in (("u2", UPDATE), ("u3", UPDATE), ("r4", READ), ("w5", WRITE), ("r6", READ)):
        assert not table.declare(name, (("k", mode),))
    assert table.release("w1") == ["u2", "r4"]
    table.validate()
    assert table.release("r4") == []
    assert table.release("u2") == ["u3"]
    assert table.release("u3") == ["w5"]
    assert table.release("w5") == ["r6"]


def test_keys_that_all_read_are_counted_only_when_somebody_waits() -> None:
    table: LockTable[str] = LockTable(uncounted=["all"])
    table.declare("r1", (("all", READ),))
    table.declare("r2", (("all", READ),))
    assert table.cells[READ][READ] == 0
    table.declare("w3", (("all", WRITE),))
    assert table.cells[READ][WRITE] == 1


def before(locks: Locks, other: Locks) -> bool:
    """Whether two sets conflict."""
    asked = dict(other)
    return any(key in asked and not EXECUTES[mode][asked[key]] for key, mode in locks)


@pytest.mark.parametrize("seed", range(60))
def test_a_request_executes_exactly_when_nothing_before_it_is_in_its_way(seed: int) -> None:
    """Against the definition: a request is free when no earlier one that is not released conflicts with it."""
    rng = Random(seed)
    table: LockTable[int] = LockTable()
    alive: dict[int, Locks] = {}
    ready: set[int] = set()
    for number in range(120):
        keys = rng.sample("abcd", rng.randrange(1, 4))
        locks: Locks = tuple((key, rng.choice((READ, READ, UPDATE, WRITE))) for key in keys)
        if table.declare(number, locks):
            ready.add(number)
        alive[number] = locks
        while ready and rng.random() < 0.55:
            done = rng.choice(sorted(ready))
            ready.remove(done)
            del alive[done]
            ready.update(table.release(done))
        table.validate()
        assert ready == {
            n for n, mine in alive.items() if not any(before(other, mine) for m, other in alive.items() if m < n)
        }
    while ready:  # and nobody is left waiting
        done = rng.choice(sorted(ready))
        ready.remove(done)
        del alive[done]
        ready.update(table.release(done))
    assert not alive and len(table) == 0

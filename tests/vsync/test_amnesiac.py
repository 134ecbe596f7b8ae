"""A replica whose state was lost after its journal had been trimmed: it votes, and takes no other part."""

from __future__ import annotations

from random import Random

from vsync.effects import Received, SnapshotInstalled
from vsync.machine import Machine
from vsync.records import Durable, Sealed
from vsync.view import NO_HASH, START, Position, genesis, pack_views
from wire.group import Prepare, Promise, Seal, SealReport, View

GENESIS = genesis((1, 2, 3), ())
ONE = View(1, (1, 2, 3), GENESIS.voters, 0, (), 0)


def machine(trimmed: int, position: Position = START) -> Machine:
    durable = Durable(incarnation=2, sealed=1, views={0: GENESIS, 1: ONE}, flushed={0, 1}, trimmed=trimmed)
    return Machine(2, (1, 2, 3), durable, position, rng=Random(1), now=0)


def test_without_what_the_journal_was_trimmed_of_it_reports_nothing() -> None:
    """1. The journal is trimmed up to index 10. 2. The state directory is lost. 3. The only other replica with view 1
    is down. A report "flushed view 1, log empty" would make an empty file system the base of the next view."""
    group = machine(trimmed=10)
    out = group.step(Received(3, Seal(3, "test", pack_views([ONE, View(2, (1,), GENESIS.voters, 1, (), 0)]))), 10)
    assert Sealed(3) in out.records
    assert not [m for _, m in out.after if isinstance(m, SealReport)]


def test_with_a_state_as_new_as_that_it_reports() -> None:
    position = Position(1, (), 10, NO_HASH)
    out = machine(trimmed=10, position=position).step(Received(3, Seal(2, "test", pack_views([ONE]))), 10)
    assert [m for _, m in out.after if isinstance(m, SealReport)]


def test_it_votes() -> None:
    out = machine(trimmed=10).step(Received(3, Prepare(2, (1, 3, 1))), 10)
    assert [m for _, m in out.after if isinstance(m, Promise)]


def test_a_snapshot_ends_it() -> None:
    group = machine(trimmed=10)
    views = pack_views([View(2, (1, 3), GENESIS.voters, 1, (), 0)])
    group.step(SnapshotInstalled(Position(2, (), 12, NO_HASH).pack(), views), 10)
    assert not group.core.amnesiac
    three = View(3, (1, 3), GENESIS.voters, 2, (), 0)
    out = group.step(Received(3, Seal(4, "test", pack_views([three]))), 20)
    assert [m for _, m in out.after if isinstance(m, SealReport)]

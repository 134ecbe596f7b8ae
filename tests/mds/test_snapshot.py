"""Snapshots on disk: what a crash leaves, and what may not take the place of one that is being installed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from mds import limits
from mds.snapshot import DATA, INCOMING, Outgoing, Receiver, clear_leftovers
from mds.store import Store
from wire.group import SnapshotPart
from wire.peer import ConnectionLost


def test_a_crash_between_the_two_renames_leaves_the_old_state(tmp_path: Path) -> None:
    state = tmp_path / "state"
    aside = tmp_path / "replaced-x" / "state"
    aside.mkdir(parents=True)
    (aside / DATA).write_bytes(b"old")
    (tmp_path / INCOMING).mkdir()
    clear_leftovers(tmp_path, state)
    assert (state / DATA).read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_a_state_in_place_is_left_alone(tmp_path: Path) -> None:
    state = tmp_path / "state"
    for path, text in [(state, b"new"), (tmp_path / "replaced-x" / "state", b"old")]:
        path.mkdir(parents=True)
        (path / DATA).write_bytes(text)
    clear_leftovers(tmp_path, state)
    assert (state / DATA).read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_nothing_is_added_to_a_complete_snapshot(tmp_path: Path) -> None:
    receiver = Receiver(tmp_path)
    digest = hashlib.blake2b(b"all", digest_size=16).digest()
    assert receiver.part(SnapshotPart(0, True, digest, b"", ()), b"all")
    # The next part of a longer one, from another feeder.
    assert not receiver.part(SnapshotPart(1, False, b"", b"", ()), b"more")
    assert (tmp_path / INCOMING / DATA).read_bytes() == b"all"
    assert (tmp_path / INCOMING / DATA).stat().st_mode & 0o777 == 0o600, "keys are in it"


class Taker:
    """A connection that takes everything at once, and in the midst of it comes doubt about the state."""

    def __init__(self, doubt_after: int = 99, closed: str | None = None) -> None:
        self.doubt_after = doubt_after
        self.closed = closed
        self.parts: list[SnapshotPart] = []

    def send(self, part: SnapshotPart, bulk: bytes) -> None:
        self.parts.append(part)

    async def drain(self) -> None:
        """Taken already."""

    def in_doubt(self) -> bool:
        return len(self.parts) >= self.doubt_after


async def _nothing() -> None:
    """Nobody waits for the beginning."""


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """One that is sent in several parts."""
    monkeypatch.setattr(limits, "SNAPSHOT_PART", 4 << 10)
    opened = Store.open(tmp_path / "state")
    yield opened
    opened.close()


def send(store: Store, taker: Taker) -> None:
    async def run() -> None:
        await Outgoing().send(store, (), taker, _nothing, taker.in_doubt)  # type: ignore[arg-type]

    trio.run(run)


@pytest.mark.parametrize("doubt_after", [0, 1, 2])
def test_a_copy_that_is_in_doubt_is_never_complete(store: Store, doubt_after: int) -> None:
    """Whoever got it whole would count like a replica that has come to the same state by itself."""
    taker = Taker(doubt_after)
    with pytest.raises(ConnectionLost, match="in doubt"):
        send(store, taker)
    assert len(taker.parts) == doubt_after and not any(part.last for part in taker.parts)


def test_who_does_not_take_a_copy_is_no_error_of_ours(store: Store) -> None:
    """1. A learner dies, or `lockstep dump` is interrupted, while a copy is sent. 2. That it is so must come to the
    sender as what it is: in a group of exceptions it passes all who wait for it, and ends the replica."""
    with pytest.raises(ConnectionLost, match="it died"):
        send(store, Taker(closed="it died"))
    whole = Taker()
    send(store, whole)
    assert whole.parts[-1].last and len(whole.parts) > 2

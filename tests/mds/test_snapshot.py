"""Snapshots on disk: what a crash leaves, and what may not take the place of one that is being installed."""

from __future__ import annotations

import hashlib
from pathlib import Path

from mds.snapshot import DATA, INCOMING, Receiver, clear_leftovers
from wire.group import SnapshotPart


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

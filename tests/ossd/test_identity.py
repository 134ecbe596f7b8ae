"""Whose disk it is, and when a client must be told that its unsynced writes may be gone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ossd import identity
from ossd.identity import (
    StoreRefused,
    begin_incarnation,
    end_incarnation,
    format_directory,
    lock_directory,
    read_identity,
)

CLUSTER = b"0123456789abcdef"
OTHER = b"fedcba9876543210"


@pytest.fixture
def made(tmp_path: Path) -> Path:
    path = tmp_path / "disks" / "t1"
    format_directory(path, CLUSTER, 1)
    return path


def test_a_new_disk(made: Path) -> None:
    found = read_identity(made, CLUSTER, 1)
    assert (found.version, found.cluster, found.target, len(found.uuid)) == (2, CLUSTER, 1, 16)
    assert len(list((made / "objects").iterdir())) == identity.FANOUT
    assert format_directory(made.parent / "t2", CLUSTER, 1).uuid != found.uuid


def test_formatting_that_was_interrupted_goes_on(made: Path) -> None:
    """A crash before the format file is written: the directories are there, empty."""
    (made / "format").rename(made / "format.new")
    (made / "objects" / "3ff").rmdir()
    format_directory(made, CLUSTER, 1)
    assert read_identity(made, CLUSTER, 1).target == 1
    assert (made / "objects" / "3ff").is_dir()


def test_lost_and_found_is_no_stranger(tmp_path: Path) -> None:
    (tmp_path / "t" / "lost+found").mkdir(parents=True)
    format_directory(tmp_path / "t", CLUSTER, 1)


def test_a_directory_of_somebody_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(StoreRefused, match=r"holds 'thesis.tex' but no file 'format'.*empty directory"):
        format_directory(tmp_path, CLUSTER, 1)


def test_objects_without_identity(made: Path) -> None:
    """Somebody has removed the format file: the objects are not to be taken for a new target's."""
    (made / "format").unlink()
    (made / "objects" / "000" / "0000000000000001.0000").touch()
    with pytest.raises(StoreRefused, match=r"holds objects but no file 'format'.*backup"):
        format_directory(made, CLUSTER, 1)


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (CLUSTER.hex(), OTHER.hex(), f"the disk belongs to cluster {OTHER.hex()}.*correct the data directory"),
        ("target = 1", "target = 2", "the disk is target 2, and was to be served as target 1; correct"),
        ("format = 2", "format = 9", r"format 9 is not known here \(known: 2\); run the release"),
        ("format = 2", "format = [1]", "damaged"),
        ("uuid", "uuit", "damaged .*KeyError.*restore the file from a backup"),
        ('uuid = "', 'uuid = "00', "damaged"),
        ('uuid = "', 'uuid = "xx', "damaged"),
        ("target = 1", 'target = "1"', "damaged"),
        ("target = 1", "target 1", "damaged"),
        (CLUSTER.hex(), "", "damaged"),
    ],
)
def test_refused(made: Path, old: str, new: str, why: str) -> None:
    """The message names the file, what is wrong with it, and what to do."""
    where = made / "format"
    text = where.read_text()
    assert old in text
    where.write_text(text.replace(old, new))
    with pytest.raises(StoreRefused, match=why) as caught:
        read_identity(made, CLUSTER, 1)
    assert str(caught.value).startswith(str(where))


def test_a_format_file_that_is_binary_or_empty(made: Path) -> None:
    for data in (b"", b"\xff\xfe\x00"):
        (made / "format").write_bytes(data)
        with pytest.raises(StoreRefused, match="damaged"):
            read_identity(made, CLUSTER, 1)


def test_served_once(made: Path) -> None:
    fd = lock_directory(made)
    with pytest.raises(StoreRefused, match="another process serves this directory; stop that process"):
        lock_directory(made)
    os.close(fd)
    os.close(lock_directory(made))


# --- incarnation ----------------------------------------------------------------------------------


def test_a_clean_stop_loses_nothing(made: Path) -> None:
    assert begin_incarnation(made, "boot1") == 1
    end_incarnation(made, 1, "boot1", lost=False)
    assert begin_incarnation(made, "boot2") == 1, "the machine was started again, but everything had been synced"


def test_a_crash_of_the_daemon_loses_nothing(made: Path) -> None:
    assert begin_incarnation(made, "boot1") == 1
    assert begin_incarnation(made, "boot1") == 1


def test_a_crash_of_the_machine_may_have_lost_something(made: Path) -> None:
    assert begin_incarnation(made, "boot1") == 1
    assert begin_incarnation(made, "boot2") == 2
    assert begin_incarnation(made, "boot3") == 3


def test_without_a_boot_id_every_crash_counts(made: Path) -> None:
    assert begin_incarnation(made, "") == 1
    assert begin_incarnation(made, "") == 2


def test_writes_known_to_be_lost(made: Path) -> None:
    assert begin_incarnation(made, "boot1") == 1
    end_incarnation(made, 1, "boot1", lost=True)
    assert begin_incarnation(made, "boot1") == 2
    assert begin_incarnation(made, "boot1") == 2, "told once is enough: it is another incarnation by now"


def test_a_damaged_starts_file(made: Path) -> None:
    (made / "starts").write_text("incarnation = many\n")
    with pytest.raises(StoreRefused, match="starts: is damaged"):
        begin_incarnation(made, "boot1")


def test_the_boot_id(monkeypatch: pytest.MonkeyPatch) -> None:
    assert identity.boot_id() == identity.boot_id()
    monkeypatch.setattr(identity, "_BOOT_ID", Path("/nonexistent"))
    assert identity.boot_id() == ""

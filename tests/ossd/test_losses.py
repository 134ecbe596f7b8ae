"""A disk that has lost writes is not relied on after the next start, however this one ends. See ossd.losses."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ossd import identity
from ossd.store import Store
from tests.ossd.disks import CLUSTER, FaultyDisk, copy_of
from tests.ossd.storing import A, sync, write


def opened(path: Path, disk: FaultyDisk | None = None, boot: str = "this") -> Store:
    return Store.open(path, CLUSTER, 1, disk=disk, boot=boot)


@pytest.fixture
def lossy(path: Path) -> Store:
    """A store that has lost a write and has told everybody."""
    disk = FaultyDisk()
    store = opened(path, disk)
    write(store, A, 0, b"a", client="a")
    disk.faults["fdatasync"] = [errno.EIO]
    assert sync(store, A, "a") == errno.EIO
    assert sync(store, A, "a") == 0
    return store


def test_a_clean_stop_afterwards_says_so(lossy: Store, path: Path, memory: Path) -> None:
    """What the disk has not got is forgotten by the kernel, and every sync from then on succeeds."""
    lossy.close()
    assert list(memory.iterdir()) == []
    again = opened(path)
    assert again.incarnation == lossy.incarnation + 1
    again.close()
    again = opened(path)
    assert again.incarnation == lossy.incarnation + 1, "nothing was lost in that run"
    again.close()


def test_a_kill_afterwards_does_not_undo_it(lossy: Store, path: Path, tmp_path: Path) -> None:
    lossy.losses.written()
    left = copy_of(path, tmp_path / "left")
    lossy.close()  # and with it the note in memory goes
    again = opened(left)
    assert again.incarnation == lossy.incarnation + 1
    again.close()


def test_a_disk_that_is_read_only_by_then(
    path: Path, tmp_path: Path, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it can be written there: it is known as long as this kernel runs, and then by the boot id."""

    def refuse(*_: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    disk = FaultyDisk()
    store = opened(path, disk)
    write(store, A, 0, b"a", client="a")
    with monkeypatch.context() as context:
        context.setattr(identity, "write_durably", refuse)
        disk.faults["fdatasync"] = [errno.EROFS]
        assert sync(store, A, "a") == errno.EROFS
        with pytest.raises(OSError, match="Read-only"):
            store.close()
    assert len(list(memory.iterdir())) == 1
    left = copy_of(path, tmp_path / "left")
    again = opened(path)
    assert again.incarnation == store.incarnation + 1
    assert list(memory.iterdir()) == [], "once is enough"
    again.close()
    rebooted = opened(left, boot="another")
    assert rebooted.incarnation == store.incarnation + 1
    rebooted.close()


@pytest.mark.parametrize("end", [Store.close, lambda store: None], ids=["stopped", "killed"])
def test_what_was_left_in_the_page_cache_cannot_be_written(
    path: Path, tmp_path: Path, end: Callable[[Store], None]
) -> None:
    class Broken(FaultyDisk):
        def sync_file_system(self, path: Path) -> None:  # type: ignore[override]
            raise OSError(errno.EIO, "Input/output error")

    store = opened(path)
    end(store)
    again = opened(copy_of(path, tmp_path / "left"), Broken())
    assert again.incarnation == store.incarnation + 1
    again.close()
    if end is not Store.close:
        store.close()

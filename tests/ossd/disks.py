"""Disks with faults, in place of ossd.store.Disk."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ossd.store import TRIM_ATTR, Disk

CLUSTER = b"0123456789abcdef"


class FaultyDisk(Disk):
    """Fails where it is told to: ``faults[call]`` holds an errno for each of the next calls (0: no fault)."""

    def __init__(self) -> None:
        self.faults: dict[str, list[int]] = {}
        self.calls: list[str] = []
        self.free = 1 << 40
        for name in (
            "open", "close", "pread", "preadv", "pwrite", "ftruncate", "fsync", "fdatasync", "setxattr", "getxattr",
            "unlink", "sync_directory",
        ):  # fmt: skip
            setattr(self, name, self._faulty(name, getattr(Disk, name)))

    def _faulty(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            self.calls.append(name)
            faults = self.faults.get(name)
            if faults:
                number = faults.pop(0)
                if number:
                    raise OSError(number, os.strerror(number))
            return real(*args)

        return call

    def statvfs(self, path: object) -> Any:
        """A disk of 2**41 bytes of which ``free`` are free."""

        class Answer:
            f_frsize = 1
            f_blocks = 1 << 41
            f_bavail = self.free

        return Answer


class ShortDisk(FaultyDisk):
    """A disk that fills up in the middle of a write: takes *room* more bytes, then ENOSPC."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

        def pwrite(fd: int, data: Any, offset: int) -> int:
            if not self.room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            done = os.pwrite(fd, bytes(memoryview(data)[: self.room]), offset)
            self.room -= done
            return done

        self.pwrite = pwrite


# --- crashes --------------------------------------------------------------------------------------


class Crash(Exception):
    """The machine stops here. Not an OSError: nobody catches it."""


Change = tuple[str, Any, Any]
"""("data", offset, bytes), ("size", length, None) or ("trim", value, None)"""


@dataclass
class Image:
    """One object as a crash can leave it: what is on disk for certain, and changes that may be, each by itself."""

    exists: bool = False
    entry_pending: bool = False
    data: bytes = b""
    trim: bytes | None = None
    changes: list[Change] = field(default_factory=list)

    def apply(self, change: Change) -> None:
        what, a, b = change
        if what == "data":
            padded = self.data.ljust(a, b"\0")
            self.data = padded[:a] + b + padded[a + len(b) :]
        elif what == "size":
            self.data = self.data[:a].ljust(a, b"\0")
        else:
            self.trim = a

    def settle(self, kinds: tuple[str, ...]) -> None:
        """The disk holds all changes of these *kinds*."""
        for change in self.changes:
            if change[0] in kinds:
                self.apply(change)
        self.changes = [c for c in self.changes if c[0] not in kinds]

    def outcomes(self) -> Iterator[Image]:
        """Every state that a crash may leave: any of the changes, and of a new entry either."""
        for count in range(len(self.changes) + 1):
            for chosen in itertools.combinations(self.changes, count):
                image = Image(self.exists, False, self.data, self.trim)
                for change in chosen:
                    image.apply(change)
                yield image
        if self.entry_pending:
            yield Image()


class CrashDisk(Disk):
    """A disk that keeps nothing but what was synced, in whatever order suits it least; for one object.

    Stricter than any file system: each change since the last sync may be on disk or not, independently, and
    fdatasync covers neither attributes nor a smaller size.  ``crash_at`` is the number of the call that the
    machine does not survive.
    """

    def __init__(self, crash_at: int) -> None:
        self.crash_at = crash_at
        self.count = 0
        self.image = Image()
        self._fds: set[int] = set()
        self.open = self._open  # type: ignore[assignment]
        self.pwrite = self._pwrite
        self.ftruncate = self._ftruncate
        self.setxattr = self._setxattr  # type: ignore[assignment]
        self.fsync = self._fsync  # type: ignore[assignment]
        self.fdatasync = self._fdatasync  # type: ignore[assignment]
        self.sync_directory = self._sync_directory

    def _step(self) -> None:
        self.count += 1
        if self.count == self.crash_at:
            raise Crash

    def _open(self, path: str, flags: int, mode: int = 0o777) -> int:
        self._step()
        fd = os.open(path, flags, mode)
        if flags & os.O_CREAT:
            self.image.exists = self.image.entry_pending = True
        return fd

    def _pwrite(self, fd: int, data: Any, offset: int) -> int:
        self._step()
        self.image.changes.append(("data", offset, bytes(data)))
        return os.pwrite(fd, data, offset)

    def _ftruncate(self, fd: int, length: int) -> None:
        self._step()
        self.image.changes.append(("size", length, None))
        os.ftruncate(fd, length)

    def _setxattr(self, fd: int, name: str, value: bytes) -> None:
        self._step()
        assert name == TRIM_ATTR
        self.image.changes.append(("trim", value, None))
        os.setxattr(fd, name, value)

    def _fsync(self, fd: int) -> None:
        self._step()
        os.fsync(fd)
        self.image.settle(("data", "size", "trim"))

    def _fdatasync(self, fd: int) -> None:
        self._step()
        os.fdatasync(fd)
        self.image.settle(("data",))

    def _sync_directory(self, path: Path) -> None:
        self._step()
        Disk.sync_directory(path)
        self.image.entry_pending = False


def put_back(image: Image, where: Path) -> None:
    """Make *where* the object's file as *image* says."""
    where.unlink(missing_ok=True)
    if image.exists:
        where.write_bytes(image.data)
        if image.trim is not None:
            os.setxattr(where, TRIM_ATTR, image.trim)


def copy_of(path: Path, to: Path) -> Path:
    """A copy of a target's data directory as a crash would leave it (nothing stopped cleanly)."""
    return Path(shutil.copytree(path, to))

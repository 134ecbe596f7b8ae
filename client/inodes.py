"""What the kernel holds of us: open file handles and open directories. Of inodes it looked up we keep nothing."""

from __future__ import annotations

import os
from collections import deque
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from client.attributes import Attr
from client.io import FileData
from client.readahead import ReadAhead
from wire.errors import OK
from wire.ops import Cred

T = TypeVar("T")


@dataclass(eq=False, slots=True)
class FileHandle:
    """One open file description."""

    number: int
    data: FileData
    flags: int
    pid: int
    """Who opened it (0: not known)."""
    generation: int
    """Of the session it was opened in: stale when that was lost."""
    errors: int
    """Write errors of the file that this handle has been told of."""
    ahead: ReadAhead
    privileged: bool
    """Root opened it. What is written counts as written by who opened, as with NFS; Linux asks who writes."""

    @property
    def append(self) -> bool:
        return bool(self.flags & os.O_APPEND)

    @property
    def direct(self) -> bool:
        return bool(self.flags & os.O_DIRECT)

    @property
    def synchronous(self) -> bool:
        return bool(self.flags & os.O_DSYNC)  # O_SYNC includes it


@dataclass(eq=False, slots=True)
class DirectoryHandle:
    """One open directory: the entries fetched but not handed out yet."""

    number: int
    ino: int
    cred: Cred
    pid: int
    attr: Attr | None = None
    """As it was when it was opened, where that was known."""
    buffer: deque[tuple[bytes, int, Attr]] = field(default_factory=deque)
    position: int = 0
    """Cookie after which ``buffer`` goes on."""
    complete: bool = False
    """Nothing comes after ``buffer``."""
    capability: bytes = b""
    """For the rest of the listing; empty where it comes as root's, or has not begun."""
    error: int = OK

    def forget(self) -> None:
        """What was fetched is not to be handed out."""
        self.buffer.clear()
        self.complete = False


class HandleTable(Generic[T]):
    """Handles by number; a number is not used again while the mount lives."""

    def __init__(self, before_first: int = 0) -> None:
        self._open: dict[int, T] = {}
        self._last = before_first

    def next_number(self) -> int:
        self._last += 1
        return self._last

    def add(self, number: int, handle: T) -> None:
        self._open[number] = handle

    def get(self, number: int) -> T:
        return self._open[number]

    def find(self, number: int) -> T | None:
        return self._open.get(number)

    def remove(self, number: int) -> T | None:
        return self._open.pop(number, None)

    def values(self) -> list[T]:
        return list(self._open.values())

    def __len__(self) -> int:
        return len(self._open)

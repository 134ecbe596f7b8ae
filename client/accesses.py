"""Pure. Reads that should move atime by relatime, as Linux mounts have it, collected until they are told."""

from __future__ import annotations

from typing import Final

from client import limits
from client.attributes import Attr
from wire import ops

DAY_NS: Final = 24 * 3600 * 10**9


def moves_atime(attr: Attr, now_ns: int) -> bool:
    """Whether a read at *now_ns* moves atime by relatime: it is no younger than the last change, or a day old."""
    return attr.atime_ns <= attr.mtime_ns or attr.atime_ns <= attr.ctime_ns or now_ns - attr.atime_ns >= DAY_NS


class Accesses:
    """When each file was read from last, until that is told. What does not fit is forgotten: it is atime, no more."""

    def __init__(self) -> None:
        self._read: dict[int, int] = {}

    def note(self, attr: Attr, now_ns: int) -> None:
        """A process that saw *attr* has read from the file."""
        if moves_atime(attr, now_ns) and (len(self._read) < limits.ACCESSES_MAX or attr.ino in self._read):
            # After what it saw, whatever our clock says: the service drops what is before the last change.
            self._read[attr.ino] = max(now_ns, attr.ctime_ns + 1)

    def forget(self, ino: int) -> None:
        """Somebody here sets atime himself: what was read before is over."""
        self._read.pop(ino, None)

    def take(self) -> ops.Accessed | None:
        """What is to be told now, at most a message full."""
        if not self._read:
            return None
        chosen = sorted(self._read)[: ops.ACCESSED_MAX]
        return ops.Accessed(tuple((ino, self._read.pop(ino)) for ino in chosen))

    def __contains__(self, ino: int) -> bool:
        return ino in self._read

    def __len__(self) -> int:
        return len(self._read)

"""How much memory a process keeps that it does not use.

glibc's malloc gives back only what lies at the end of its heap. A table of some megabytes that grows leaves a hole, and
what is kept of the history lies between messages long gone: a replica with a million files held 75 MB and used 50.
"""

from __future__ import annotations

import ctypes
from typing import Final

LARGE_BYTES: Final = 512 << 10
"""What is so large is mapped by itself, and gone when it is freed. Left alone glibc raises this to 32 MiB by and by.
Messages are smaller, mostly: mapping one costs as much as copying it."""
TRIM_BYTES: Final = 4 << 20
"""So much may be free at the end of the heap."""
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
"""mallopt(3)."""


def keep_apart() -> None:
    """At the start of a process: what is large is allocated apart from what is small."""
    _tell("mallopt", _M_MMAP_THRESHOLD, LARGE_BYTES)
    _tell("mallopt", _M_TRIM_THRESHOLD, TRIM_BYTES)


def give_back() -> None:
    """Return to the system what is free, also in the midst of the heap. Blocking, some milliseconds per 100 MB; who
    allocates memory meanwhile waits, so it is for times of rest."""
    _tell("malloc_trim", 0)


def _tell(function: str, *numbers: int) -> None:
    called = getattr(ctypes.CDLL(None), function, None)
    if called is not None:  # another C library has no such function, and its own ways
        called(*numbers)


class Rest:
    """Tells the beginning of a time of rest."""

    def __init__(self) -> None:
        self._worked = True

    def begins(self, idle: bool) -> bool:
        """One look: nothing was to be done (*idle*), for the first time since something was."""
        begins = idle and self._worked
        self._worked = not idle
        return begins

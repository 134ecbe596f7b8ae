"""What a worker writes down: the history, on its way to the one who judges it.

One JSON object per line, written at once: ``{"k", "s", "c", "t", "w"}`` when an operation begins (number, who, cell,
time, what) and ``{"k", "t", "a"}`` with its answer when it ends, without ``a`` when nobody answered a query. Times
are nanoseconds of the clock that all processes of this host share. An operation that fails in a way no application
should see is written down as it is: the checker finds no order that explains it.
"""

from __future__ import annotations

import itertools
import json
import os
import stat
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from client.attributes import Attr
from client.service import errno_of
from tests.faults.cells import DIRECTORY, FILE
from wire.errors import FileSystemError


def seen(attr: Attr) -> tuple[int, str, int, int]:
    return attr.ino, DIRECTORY if stat.S_ISDIR(attr.mode) else FILE, attr.nlink, attr.mtime_ns


class Log:
    """The history of this process, on its way to the one who judges it. A killed process leaves whole lines."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._numbers = itertools.count(1)

    def _line(self, **what: Any) -> None:
        os.write(self._fd, json.dumps(what, separators=(",", ":")).encode() + b"\n")

    def begun(self, who: str, cell: str, what: tuple[Any, ...]) -> int:
        """An operation is about to be asked for; its number."""
        k = next(self._numbers)
        self._line(k=k, s=who, c=cell, t=time.monotonic_ns(), w=what)
        return k

    def ended(self, k: int, status: int, result: Any) -> None:
        self._line(k=k, t=time.monotonic_ns(), a=(status, result))

    def nothing_said(self, k: int) -> None:
        """Whoever was asked is gone; only for what changes nothing."""
        self._line(k=k, t=time.monotonic_ns())

    async def operation(self, session: int, cell: str, what: tuple[Any, ...], run: Callable[[], Awaitable[Any]]) -> Any:
        """Carry out *run* and write it down; its result, or None when it failed."""
        k = self.begun(str(session), cell, what)
        try:
            result = await run()
        except FileSystemError as exc:
            self.ended(k, errno_of(exc), None)
            return None
        self.ended(k, 0, result)
        return result

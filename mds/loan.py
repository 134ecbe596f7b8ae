"""How a worker thread that writes a layer gets to run beside a busy event loop."""

from __future__ import annotations

import threading
from typing import Final

SLICE: Final = 512
"""Records put between two looks at whether the event loop waits (some 0.3 ms of work)."""
LEND_EVERY: Final = 16
"""Transactions of the event loop between two slices it waits for: 16 make about 100 records, a slice stores 512."""
LEND_MAX_S: Final = 0.002
assert SLICE > LEND_EVERY * 16, "a layer is written faster than the next one fills"


class Loan:
    """How the event loop lets a writing worker run: by standing still for a slice of its records now and then.

    lmdb gives the interpreter lock up and takes it again for every single record. Against a loop that is busy each
    taking costs up to a switch interval, and a layer that needs 10 ms of work takes 20 s. A loop that waits for one
    slice per few transactions loses only what the slice costs, and the layer is written as fast as it is due.
    """

    __slots__ = ("_done", "_since", "_waiting", "wanted")

    def __init__(self) -> None:
        self.wanted = False
        self._waiting = False
        self._since = 0
        self._done = threading.Semaphore(0)

    def __enter__(self) -> None:
        """Worker: records are about to be put."""
        self.wanted = True

    def __exit__(self, *exc: object) -> None:
        """Worker: all are put (the commit after it is one call and needs no help)."""
        self.wanted = False
        self.slice_done()

    def slice_done(self) -> None:
        """Worker: a slice is put."""
        if self._waiting:
            self._waiting = False
            self._done.release()

    def lend(self) -> None:
        """Event loop: wait for a slice, every few calls. The timeout bounds the pause; nothing depends on it."""
        self._since += 1
        if self._since >= LEND_EVERY:
            self._since = 0
            self._waiting = True
            self._done.acquire(timeout=LEND_MAX_S)
            self._waiting = False

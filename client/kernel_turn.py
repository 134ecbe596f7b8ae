"""Who reads the kernel's next request: pyfuse3's read lock, handed on only when that is of use.

pyfuse3 runs several workers, of which one at a time waits for the kernel under a lock.  A worker that has read a
request releases the lock, and trio's lock then wakes the next worker: two rounds of the event loop per request, one of
them for a change of hands.  Most requests are answered at once, by the worker that read them, before anyone else could
run.  So here the lock is only put down, and who comes back finds it where it was.  An operation that is about to wait
says so (:meth:`Turn.pass_on`), and a worker that ends, too: then the next one is woken.

pyfuse3 looks its trio up when it needs it (that is how pyfuse3.asyncio replaces it); :func:`install` puts this lock
there and leaves everything else as it is.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final

import outcome
import pyfuse3
import trio


class Turn(trio.abc.Instrument):
    """The lock. ``async with`` as pyfuse3 uses it; released, it stays put until somebody comes or it is passed on."""

    def __init__(self) -> None:
        self._free = True
        self._waiting: deque[trio.lowlevel.Task] = deque()

    async def __aenter__(self) -> None:
        if self._free:
            self._free = False
            return
        task = trio.lowlevel.current_task()
        self._waiting.append(task)

        def abort(_raise_cancel: Any) -> trio.lowlevel.Abort:
            self._waiting.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    async def __aexit__(self, *exc: object) -> None:
        self._free = True

    def pass_on(self) -> None:
        """Whoever put the turn down may not be back soon: the next worker takes it."""
        if self._free and self._waiting:
            self._free = False
            trio.lowlevel.reschedule(self._waiting.popleft(), outcome.Value(None))

    def task_exited(self, task: trio.lowlevel.Task) -> None:
        """From trio, as an instrument: a worker that has ended (unmounted, or one too many) does not come back."""
        self.pass_on()


TURN: Final = Turn()
"""pyfuse3 has one session per process, and makes its lock once."""


class _Trio:
    """The module trio with another Lock."""

    def __init__(self) -> None:
        self.lowlevel = trio.lowlevel

    def Lock(self) -> Turn:
        return TURN

    def __getattr__(self, name: str) -> Any:
        return getattr(trio, name)


def install() -> None:
    """Make pyfuse3 use the turn. Call it within trio.run, before pyfuse3.main."""
    pyfuse3.trio = _Trio()  # type: ignore[attr-defined]
    trio.lowlevel.add_instrument(TURN)

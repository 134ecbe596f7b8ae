"""Who reads the kernel's next request: pyfuse3's read lock, handed on only when that is of use.

pyfuse3 runs several workers, of which one at a time waits for the kernel under a lock.  A worker that has read a
request releases the lock, and trio's lock then wakes the next worker: two rounds of the event loop per request, one of
them for a change of hands.  Most requests are answered at once, by the worker that read them, before anyone else could
run.  So here the lock is only put down, and who comes back finds it where it was.  An operation that is about to wait
says so (:meth:`Turn.pass_on`), and a worker that ends, too: then the next one is woken.

The same for the waiting itself: to wait through trio costs two system calls and a round of the event loop, and a
program that works through many files comes back with its next request some 20 us after an answer.  So the worker
looks first whether the kernel has one, and where no operation is in work it stays in that look for a moment
(:class:`_Kernel`).

pyfuse3 looks its trio up when it needs it (that is how pyfuse3.asyncio replaces it); :func:`install` puts this lock
there and leaves everything else as it is.
"""

from __future__ import annotations

import select
from collections import deque
from collections.abc import Collection
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


REQUESTS_IN_A_ROW: Final = 16
"""After so many requests that were there at once, everybody else gets a turn: the session's connection above all."""
LINGER_S: Final = 50e-6
"""How long a mount with no operation in work stays with the kernel, asleep, before it goes back to its event loop. That
is what anything else that comes in (a recall, the next ping) is delayed by at most."""


class _Kernel:
    """The module trio.lowlevel with another way to wait for the kernel's requests."""

    def __init__(self, in_work: Collection[object]) -> None:
        """*in_work*: the operations that are. Is it empty, the kernel's next request is what is waited for."""
        self._in_work = in_work
        self._at_once = 0

    async def wait_readable(self, fd: int) -> None:
        """As trio's; in most cases without a checkpoint."""
        if self._at_once < REQUESTS_IN_A_ROW:
            self._at_once += 1
            try:
                if select.select((fd,), (), (), 0.0 if self._in_work else LINGER_S)[0]:
                    return
            except ValueError:  # the descriptor is beyond what select() knows, or closed: trio says which
                pass
        self._at_once = 0
        await trio.lowlevel.wait_readable(fd)

    def __getattr__(self, name: str) -> Any:
        return getattr(trio.lowlevel, name)


class _Trio:
    """The module trio with another Lock."""

    def __init__(self, in_work: Collection[object]) -> None:
        self.lowlevel = _Kernel(in_work)

    def Lock(self) -> Turn:
        return TURN

    def __getattr__(self, name: str) -> Any:
        return getattr(trio, name)


def install(in_work: Collection[object] = ()) -> None:
    """Make pyfuse3 use the turn. Call it within trio.run, before pyfuse3.main. *in_work*: see :class:`_Kernel`."""
    pyfuse3.trio = _Trio(in_work)  # type: ignore[attr-defined]
    trio.lowlevel.add_instrument(TURN)

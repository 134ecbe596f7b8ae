"""Pure. When a watchdog kills the process it guards, and when it starts it again.

A replica that is *stopped* (SIGSTOP) is seen to be: the kernel tells its parent, however loaded the machine is.  It
can do nothing until somebody continues it, its clients wait for it, and the others must first suspect it (300 ms) and
then wait out what they promised it (up to another 300 ms).  So it is killed sooner than they would suspect it, and its
death certified: that costs it a restart and spares everybody else the waiting.  What stops a process in passing (a
debugger, a checkpoint) is done within a few milliseconds.

A replica that *hangs* (its event loop does not come round) is only known by its silence, and so is one that gets no
CPU.  The others go on without either, so killing is not urgent, and the bound is generous.  It is counted in looks of
our own, each for at most two intervals, so that a machine that slept or a watchdog that was stopped counts nothing;
and the time in which the process was ready to run and got no CPU, which the kernel tells, does not count either: a
loaded machine causes no kill.
"""

from __future__ import annotations

from typing import Final

BEAT_S: Final = 0.25
"""How often the guarded process says that its event loop goes round."""
LOOK_S: Final = 0.05
"""How often the watchdog looks at a process that is stopped or silent."""
STOPPED_S: Final = 0.2
"""A process that has been stopped for so long is killed."""
HANG_S: Final = 12.0
"""One that has been silent for so long, although it had a CPU, is killed. Longer than a flush may take before the
journal ends the process itself (daemon.journal.FLUSH_MAX_S): it knows more about why."""
RESTART_FIRST_S: Final = 0.25
"""A dead process is started again after this: the view change that its death causes has the machine for itself."""
RESTART_MAX_S: Final = 10.0
STABLE_S: Final = 10.0
"""One that has run for so long is started again after the shortest wait."""

assert 3 * LOOK_S < STOPPED_S
assert STOPPED_S <= 0.25, "sooner than the other replicas suspect it (vsync.limits.SILENCE_MIN), its death included"
assert HANG_S > 20 * BEAT_S


class Pulse:
    """Whether one process is alive, judged by what it and the kernel tell."""

    def __init__(self) -> None:
        self.armed = False
        """It has beaten once: a start may take as long as it takes (the log is replayed), nobody depends on it yet."""
        self._stopped = 0.0
        self._silent = 0.0

    def beat(self) -> None:
        """It says that its loop goes round."""
        self.armed = True
        self._silent = 0.0

    @property
    def silent_s(self) -> float:
        """Since its last beat, as far as it counts."""
        return self._silent

    def look(self, passed_s: float, waited_s: float, stopped: bool) -> str | None:
        """One look, *passed_s* after the one before; meanwhile it waited *waited_s* for a CPU. Why to kill it, or
        None."""
        passed = min(passed_s, 2 * LOOK_S)
        if stopped:
            self._stopped += passed
            return f"stopped for {self._stopped:.1f} s" if self._stopped >= STOPPED_S else None
        self._stopped = 0.0
        if self.armed:
            self._silent += max(0.0, passed - max(0.0, waited_s))
        return f"hung for {self._silent:.0f} s" if self._silent >= HANG_S else None


class Restarts:
    """How long to wait before the next start: longer each time it does not live long."""

    def __init__(self) -> None:
        self._next = RESTART_FIRST_S

    def pause(self, lived_s: float) -> float:
        """The process has died after *lived_s*."""
        if lived_s >= STABLE_S:
            self._next = RESTART_FIRST_S
        pause, self._next = self._next, min(2 * self._next, RESTART_MAX_S)
        return pause

"""Simulated time: one queue of what is going to happen, and the skewed clocks that replicas read."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from random import Random
from typing import Any, Final

MS: Final = 1000
SECOND: Final = 1_000_000
DRIFT_PPM: Final = 40_000
"""A clock runs at most this much too fast or too slow: two of them just inside the leases' margin, far beyond a real
one.  A process that is paused, or a machine that is suspended, finds that its clock went on (CLOCK_BOOTTIME)."""


class Scheduler:
    """True time (us, starts at 0) and the events to come; two at the same time happen as they were planned."""

    def __init__(self) -> None:
        self.now = 0
        self.happened = 0
        self._planned = 0
        self._heap: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []

    def after(self, delay: int, happen: Callable[..., None], *args: Any) -> None:
        """Call *happen* with *args* when *delay* has passed."""
        self._planned += 1
        heapq.heappush(self._heap, (self.now + delay, self._planned, happen, args))

    def run_one(self) -> None:
        """Let the next thing happen."""
        self.now, _, happen, args = heapq.heappop(self._heap)
        self.happened += 1
        happen(*args)


class SkewedClock:
    """What one machine's clock shows: an offset, and a rate a little off."""

    def __init__(self, rng: Random, drift_ppm: int) -> None:
        assert drift_ppm <= DRIFT_PPM
        self._offset = rng.randrange(1, 100 * SECOND)
        # The extremes matter most.
        self._ppm = rng.choice((-drift_ppm, drift_ppm, rng.randrange(-drift_ppm, drift_ppm + 1)))

    def local(self, true: int) -> int:
        """This clock's time at true time *true*."""
        return self._offset + true + true * self._ppm // 1_000_000

    def until(self, local: int, true: int) -> int:
        """True time to wait from *true* until this clock shows at least *local*."""
        return max(0, (local - self.local(true)) * 1_000_000 // (1_000_000 + self._ppm) + 1)

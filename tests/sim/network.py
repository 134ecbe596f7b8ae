"""A simulated network: connections between processes, each with a few channels that keep their order.

A cut stalls what is sent in its direction; when it lasts, the connection breaks and what was under way is lost.
The two ends notice a break at different times; a new connection supersedes one whose break was not noticed yet.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import combinations
from random import Random
from typing import Any, Final

from tests.sim.clock import MS, Scheduler
from vsync.effects import LinkDown, LinkUp
from wire.codec import decode, encode
from wire.group import CHANNEL_OF

CONTROL, DATA, BULK = range(3)
CHANNEL: Final[dict[type, int]] = {kind: {"data": DATA, "bulk": BULK}[name] for kind, name in CHANNEL_OF.items()}
CODEC_SHARE: Final = 0.1
"""Share of messages that go through bytes; all of them would cost half of the simulator's speed."""

Pair = tuple[int, int]


class Network:
    """All connections.

    *ready(p)* tells whether process p can shake hands; *agree(a, b)* whether two that can accept each other;
    *deliver(p, peer, what)* hands it its input.
    """

    def __init__(
        self,
        clock: Scheduler,
        rng: Random,
        pairs: list[Pair],
        ready: Callable[[int], bool],
        agree: Callable[[int, int], bool],
        deliver: Callable[[int, int, Any], None],
    ) -> None:
        self._clock = clock
        self._rng = rng
        self._ready = ready
        self._agree = agree
        self._deliver = deliver
        self.pairs = pairs
        self._number = dict.fromkeys(pairs, 0)
        self._up = dict.fromkeys(pairs, False)
        self._thinks_up = {end: False for a, b in pairs for end in ((a, b), (b, a))}
        self._queues: dict[tuple[int, int, int], deque[tuple[int, Any]]] = {
            (a, b, channel): deque() for a, b in self._thinks_up for channel in (CONTROL, DATA, BULK)
        }
        self._moving: set[tuple[int, int, int]] = set()
        self.lost = 0
        """Messages that were under way when their connection broke."""
        self.cuts: set[Pair] = set()
        """Directions in which nothing gets through."""
        self.delay = 300
        """Usual delay (us) of a message."""
        self.hiccup = 0.0
        """Share of messages that take much longer."""

    def number(self, a: int, b: int) -> int:
        """Number of the present connection of *a* and *b*, 0 if there is none."""
        pair = (a, b) if a < b else (b, a)
        return self._number[pair] if self._up[pair] else 0

    # -- messages

    def send(self, a: int, b: int, message: Any) -> None:
        pair = (a, b) if a < b else (b, a)
        if not self._up[pair]:
            return
        rng = self._rng
        delay = rng.randrange(self.delay // 4, self.delay)
        if self.hiccup and rng.random() < self.hiccup:
            delay = rng.randrange(MS, 150 * MS)
        if rng.random() < CODEC_SHARE:
            again = decode(encode(message))
            assert again == message, f"{message} came back as {again}"
            message = again
        key = (a, b, CHANNEL.get(type(message), CONTROL))
        self._queues[key].append((self._clock.now + delay, message))
        if key not in self._moving:
            self._move(key)

    def _move(self, key: tuple[int, int, int]) -> None:
        queue = self._queues[key]
        if queue and key[:2] not in self.cuts:
            self._moving.add(key)
            self._clock.after(max(0, queue[0][0] - self._clock.now), self._arrive, key)

    def _arrive(self, key: tuple[int, int, int]) -> None:
        self._moving.discard(key)
        queue = self._queues[key]
        a, b, _ = key
        if not queue or (a, b) in self.cuts:
            return
        if queue[0][0] <= self._clock.now:
            message = queue.popleft()[1]
            self._move(key)
            self._deliver(b, a, message)
        else:
            self._move(key)

    # -- connections

    def connect_all(self) -> None:
        """Connect whoever can."""
        for a, b in self.pairs:
            self._connect(a, b)

    def connect(self, a: int, b: int) -> None:
        """Connect these two now, if they can."""
        self._connect(min(a, b), max(a, b))

    def _connect(self, a: int, b: int) -> None:
        if self._up[a, b]:
            return
        shaken = self._ready(a) and self._ready(b) and (a, b) not in self.cuts and (b, a) not in self.cuts
        if not shaken or not self._agree(a, b):
            self._clock.after(self._rng.randrange(30 * MS, 100 * MS), self._connect, a, b)
            return
        self._up[a, b] = True
        self._number[a, b] += 1
        for end, peer in ((a, b), (b, a)):
            if self._thinks_up[end, peer]:
                self._deliver(end, peer, LinkDown(peer))
            self._thinks_up[end, peer] = True
            self._deliver(end, peer, LinkUp(peer))

    def break_connection(self, a: int, b: int, fast: bool = False, unnoticed_by: int = 0) -> None:
        """What was under way between *a* and *b* is lost; each notices in its own time, then they try again.

        *fast*: a reset, noticed and mended within a few milliseconds.  *unnoticed_by*: that end goes on for a while as
        if nothing had happened."""
        a, b = min(a, b), max(a, b)
        if not self._up.get((a, b), False):
            return  # down already; or two witnesses, who have nothing to say to each other
        self._up[a, b] = False
        noticed, mended = (2 * MS, (1 * MS, 5 * MS)) if fast else (150 * MS, (20 * MS, 200 * MS))
        for x, y in ((a, b), (b, a)):
            for channel in (CONTROL, DATA, BULK):
                self.lost += len(self._queues[x, y, channel])
                self._queues[x, y, channel].clear()
            late = 2000 * MS if x == unnoticed_by else 0
            self._clock.after(late + self._rng.randrange(1, noticed), self._notice, x, y, self._number[a, b])
        self._clock.after(self._rng.randrange(*mended), self._connect, a, b)

    def _notice(self, end: int, peer: int, number: int) -> None:
        pair = (min(end, peer), max(end, peer))
        if number == self._number[pair] and self._thinks_up[end, peer]:
            self._thinks_up[end, peer] = False
            self._deliver(end, peer, LinkDown(peer))

    def lose_data(self, a: int, b: int) -> None:
        """The data and the bulk connection broke and came back at once, which nobody is told of: what was under way on
        them is lost, in both directions."""
        for x, y in ((a, b), (b, a)):
            for channel in (DATA, BULK):
                if (x, y, channel) in self._queues:  # two witnesses have nothing to say to each other
                    self.lost += len(self._queues[x, y, channel])
                    self._queues[x, y, channel].clear()

    def process_died(self, who: int) -> None:
        """Its connections break; the dead notice nothing."""
        for a, b in self.pairs:
            if who in (a, b):
                self._thinks_up[(a, b) if a == who else (b, a)] = False
                self.break_connection(a, b)

    # -- cuts

    def cut(self, a: int, b: int, breaks: bool = True) -> None:
        """Nothing gets from *a* to *b* from now on; after a while the connection *breaks* (or never: a slow path)."""
        self.cuts.add((a, b))
        pair = (min(a, b), max(a, b))
        if breaks:
            self._clock.after(self._rng.randrange(200 * MS, 2000 * MS), self._keepalive, a, b, self._number[pair])

    def _keepalive(self, a: int, b: int, number: int) -> None:
        if (a, b) in self.cuts and self.number(a, b) == number:
            self.break_connection(a, b)

    def heal(self, cuts: set[Pair]) -> None:
        """What the cuts held up gets through at last."""
        for a, b in sorted(cuts & self.cuts):
            self.cuts.discard((a, b))
            for channel in (CONTROL, DATA, BULK):
                if (a, b, channel) not in self._moving:
                    self._move((a, b, channel))


def pairs_of(replicas: tuple[int, ...], witnesses: tuple[int, ...]) -> list[Pair]:
    """Who talks to whom: replicas to each other and to witnesses."""
    return list(combinations(replicas, 2)) + [(r, w) for r in replicas for w in witnesses]

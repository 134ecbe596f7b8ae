"""Small things the tests of the group layer are made of, with defaults that do not matter where they are left out."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from typing import Any

from vsync import limits
from vsync.effects import Effects, Event, LinkUp
from vsync.leases import UNKNOWN
from vsync.machine import Machine
from vsync.records import Durable, Entry
from vsync.view import START, Position, genesis
from wire.group import Ack, Data, Heartbeat, SealReport, View

MS = 1000
NOW = 5_000 * MS
"""When machines start in these tests."""


def entry(epoch: int, sender: int, seq: int, clock: int) -> Entry:
    return Entry(epoch, sender, seq, clock, b"%d.%d.%d" % (epoch, sender, seq))


def view(
    epoch: int,
    members: tuple[int, ...],
    base: int,
    cut: dict[int, int] | None = None,
    hold_ms: int = 0,
    owed: tuple[tuple[int, int, int], ...] = (),
) -> View:
    """A view of a cluster whose voters are replicas 1 to 3."""
    return View(epoch, members, (1, 2, 3), base, tuple(sorted((cut or {}).items())), hold_ms, owed)


def report(
    epoch: int,
    flushed: Iterable[int] = (0,),
    received: dict[int, dict[int, int]] | None = None,
    promises: Iterable[tuple[int, int, int]] = (),
    hold_ms: int = 0,
    index: int = 1,
    hears: tuple[int, ...] = (1, 2, 3),
    lent_ms: int = 0,
    leaving: bool = False,
) -> SealReport:
    tops = tuple((e, tuple(sorted(t.items()))) for e, t in sorted((received or {}).items()))
    return SealReport(epoch, tuple(flushed), tops, tuple(promises), hold_ms, index, hears, lent_ms, leaving)


def owed_since_start(*peers: int, left_ms: int = limits.LEASE // MS) -> tuple[tuple[int, int, int], ...]:
    """What a restarted replica reports of promises: it may have made one to each of *peers*, whatever incarnation."""
    return tuple((peer, UNKNOWN, left_ms) for peer in peers)


def heartbeat(top: int, active: int, sealed: int, flushed: int, **more: Any) -> Heartbeat:
    usual: dict[str, Any] = {"stamp": NOW, "index": 0, "clock": 0, "own": 0, "hears": (1, 2, 3)}
    usual.update(received=(), durable=(), delivered=())
    usual.update(more)
    return Heartbeat(top, active, sealed, flushed, **usual)


def data(epoch: int, seq: int, clock: int, payload: bytes = b"x", members: int = 2) -> Data:
    return Data(epoch, seq, clock, (0,) * members, (0,) * members, payload)


def ack(epoch: int, clock: int, own: int, durable: tuple[int, ...], delivered: tuple[int, ...] | None = None) -> Ack:
    return Ack(epoch, clock, own, durable, (0,) * len(durable) if delivered is None else delivered)


class Driven:
    """A machine with its time: ``step`` also validates, ``settle`` makes everything recorded durable."""

    def __init__(
        self,
        me: int,
        replicas: tuple[int, ...] = (1, 2, 3),
        durable: Durable | None = None,
        position: Position = START,
        linked: tuple[int, ...] = (),
        lent: int = 0,
    ) -> None:
        self.now = NOW
        durable = durable or Durable(1, 0, {0: genesis(replicas, ())}, {0})
        self.machine = Machine(me, replicas, durable, position, rng=Random(1), now=self.now, lent=lent)
        for peer in linked:
            self.step(LinkUp(peer))

    def step(self, event: Event, after_ms: int = 0) -> Effects:
        self.now += after_ms * MS
        out = self.machine.step(event, self.now)
        self.machine.validate()
        return out


def messages(out: Effects, kind: type) -> list[tuple[int, Any]]:
    """What *out* sends at once, of one kind."""
    return [(peer, m) for peer, m in out.send if isinstance(m, kind)]

"""A few machines and witnesses that talk to each other: perfect disks, a network that loses only what is cut or down.

For stories of several view changes in a row; what can go wrong on the way is the simulator's business (tests/sim).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any

from tests.vsync.builders import MS, NOW
from vsync.effects import (
    Delivered,
    DurableUpTo,
    Effects,
    Event,
    ForceView,
    LinkDown,
    LinkUp,
    Received,
    Roster,
    SnapshotInstalled,
    SnapshotSent,
    Submit,
    Tick,
)
from vsync.machine import Machine
from vsync.records import Decided, Durable, Flushed, Record, Started
from vsync.view import START, Position, genesis
from vsync.voter import Witness
from wire.group import View


class Town:
    """Replicas 1 to *replicas* and some witnesses, active in a first view."""

    def __init__(self, replicas: int, witnesses: tuple[int, ...] = (), level: str = "safe", lent: int = 0) -> None:
        """*lent*: how long clients may go by what a replica has told them (us)."""
        self.level = level
        self.lent = lent
        self.now = NOW
        first = genesis(tuple(range(1, replicas + 1)), witnesses)
        self.roster = Roster(first.members, first.voters)
        self.records: dict[int, list[Record]] = {}
        self.positions: dict[int, Position] = {}
        self.lives: dict[int, int] = {}
        self.machines: dict[int, Machine] = {}
        self.witnesses: dict[int, Witness] = {}
        self.hashes: dict[int, bytes] = {}
        """History hash at each index: one history."""
        self.payloads: list[bytes] = []
        """What was delivered, in order, by whoever was first."""
        self._delivered = 0
        self._said: deque[tuple[int, int, Any]] = deque()
        self.links: set[frozenset[int]] = set()
        self.cuts: set[frozenset[int]] = set()
        for witness in witnesses:
            self.add_witness(witness)
        for replica in first.members:
            self.records[replica] = [Decided(first), Flushed(0)]
            self.start(replica)
        self.until(lambda: self.active(*first.members))

    # -- who is there

    def start(self, replica: int) -> None:
        """Start a replica, for the first time (then it is a newcomer) or again."""
        records = self.records.setdefault(replica, [])
        self.lives[replica] = self.lives.get(replica, 0) + 1
        records.append(Started(self.lives[replica]))
        durable = Durable()
        for record in records:
            durable.apply(record)
        position = self.positions.get(replica, START)
        known = tuple({*self.roster.replicas, replica})
        rng = Random(replica)
        machine = Machine(replica, known, durable, position, rng=rng, now=self.now, level=self.level, lent=self.lent)
        self.machines[replica] = machine
        self.step(replica, self.roster)
        self._link(replica)

    def stop(self, replica: int) -> None:
        """The process ends; its links break."""
        self.positions[replica] = self.machines.pop(replica).position()
        for pair in [p for p in self.links if replica in p]:
            self.links.discard(pair)
            (other,) = pair - {replica}
            if other in self.machines:
                self.step(other, LinkDown(replica))

    def add_witness(self, witness: int) -> None:
        self.records[witness] = []
        self.witnesses[witness] = Witness(Durable())
        self._link(witness)

    def _link(self, who: int) -> None:
        for other in [*self.machines, *self.witnesses]:
            pair = frozenset((who, other))
            if other == who or pair in self.links or pair in self.cuts or not pair & self.machines.keys():
                continue
            self.links.add(pair)
            for end, peer in ((who, other), (other, who)):
                if end in self.machines:
                    self.step(end, LinkUp(peer))

    def cut(self, a: int, b: int) -> None:
        pair = frozenset((a, b))
        self.cuts.add(pair)
        self.links.discard(pair)
        for end, peer in ((a, b), (b, a)):
            if end in self.machines:
                self.step(end, LinkDown(peer))

    def heal(self) -> None:
        self.cuts.clear()
        for who in [*self.machines, *self.witnesses]:
            self._link(who)

    def want(self, replicas: tuple[int, ...], voters: tuple[int, ...]) -> None:
        """The ordered state has another roster now."""
        self.roster = Roster(replicas, voters)
        for replica in list(self.machines):
            self.step(replica, self.roster)

    def force(self, replica: int) -> Effects:
        """The last resort: what *replica* does not have is in no history any more."""
        out = self.step(replica, ForceView())
        index = self.machines[replica].position().index
        self.hashes = {i: h for i, h in self.hashes.items() if i <= index}
        self._delivered = index
        return out

    # -- what happens

    def step(self, replica: int, event: Event) -> Effects:
        machine = self.machines[replica]
        out = machine.step(event, self.now)
        machine.validate()
        self.records[replica] += out.records
        self._said.extend((replica, peer, m) for peer, m in [*out.send, *out.after])
        for item in out.history:
            if item.index == self._delivered:
                self._delivered += 1
                if isinstance(item, Delivered):
                    self.payloads.append(item.entry.payload)
        position = machine.position()
        if out.history:
            assert self.hashes.setdefault(position.index, position.hash) == position.hash, "two histories"
        for peer in out.snapshot_for:
            self._snapshot(replica, peer)
        if out.records:
            self.step(replica, DurableUpTo(out.ticket))
        return out

    def _snapshot(self, feeder: int, peer: int) -> None:
        position = self.machines[feeder].position().pack()
        views = self.machines[feeder].transfer.views_for_snapshot()
        self.step(feeder, SnapshotSent(peer))
        if peer in self.machines and self.machines[peer].may_install(position):
            self.step(peer, SnapshotInstalled(position, views))

    def run(self, ms: int = 0) -> None:
        """Everything said is heard, and timers fire, for *ms*."""
        end = self.now + ms * MS
        while True:
            while self._said:
                sender, peer, message = self._said.popleft()
                if sender != peer and frozenset((sender, peer)) not in self.links:
                    continue
                if peer in self.machines:
                    self.step(peer, Received(sender, message))
                elif peer in self.witnesses:
                    out = self.witnesses[peer].step(sender, message)
                    self.witnesses[peer].validate()
                    self.records[peer] += out.records
                    self._said.extend((peer, to, m) for to, m in out.after)
            if self.now >= end:
                return
            deadline = min((m.next_deadline() for m in self.machines.values()), default=end)
            self.now = min(end, max(self.now + 1 * MS, deadline))
            for replica, machine in list(self.machines.items()):
                if machine.next_deadline() <= self.now:
                    self.step(replica, Tick())

    def until(self, reached: Callable[[], bool], within_ms: int = 20_000) -> int:
        """Run until *reached*; returns how long it took (ms)."""
        began = self.now
        while not reached():
            assert self.now - began < within_ms * MS, f"never: {self.describe()}"
            self.run(5)
        return (self.now - began) // MS

    # -- what is

    def view(self) -> View:
        """The newest view anybody knows."""
        return max((m.core.newest for m in self.machines.values()), key=lambda v: v.epoch)

    def active(self, *members: int) -> bool:
        """All of *members* are active in one view of exactly them."""
        views = {self.machines[m].core.newest for m in members if self.machines[m].active_view is not None}
        return (
            len(views) == 1
            and next(iter(views)).members == members
            and all(self.machines[m].active_view is not None for m in members)
        )

    def settled(self, *members: int) -> bool:
        """Active in a view of *members*, which all say that the roster is reached."""
        return self.active(*members) and all(self.machines[m].standing().settled for m in members)

    def submit(self, replica: int, payload: bytes) -> None:
        """A request at *replica*, until it is delivered at all members."""
        self.until(lambda: self.machines[replica].may_submit)
        self.step(replica, Submit(payload))
        self.until(lambda: payload in self.payloads)
        index = self._delivered
        self.until(lambda: all(self.machines[m].position().index >= index for m in self.view().members))

    def views_decided(self) -> list[View]:
        """Every view in anybody's journal, by epoch."""
        found = {r.view.epoch: r.view for records in self.records.values() for r in records if isinstance(r, Decided)}
        return [found[e] for e in sorted(found)]

    def describe(self) -> str:
        return "; ".join(
            f"{r}: {m.active_view} sealed {m.core.sealed} {m.core.newest} index {m.position().index}"
            for r, m in self.machines.items()
        )

"""One member of a group without a file system: machine, links and journal of production, and nothing that applies.

A process of its own, started by :mod:`bench.total_order`::

    python -m bench.group_member DIRECTORY ID LEVEL PORT...

PORTs are the members' on loopback, in the order of their numbers from 1.  It prints ``ready`` when a view of all is
active.  Each line on standard input, ``PHASE COUNT PAUSE_US HEARTBEAT_US``, is answered by one JSON object when COUNT
messages of its own are delivered here, one after the other: their latencies in microseconds, from the call that submits
a message to its delivery at its sender.  Before each message it waits for a random time of up to PAUSE_US.
"""

from __future__ import annotations

import gc
import json
import os
import random
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import trio

from daemon import logs
from daemon.acquaintances import Acquaintances
from daemon.journal import Journal
from mds.limits import ACTIVE_TICK_US, GC_THRESHOLD, SWITCH_INTERVAL_S
from mds.links import Links
from vsync import effects as ev
from vsync import limits
from vsync.machine import Machine
from vsync.records import Decided, Flushed
from vsync.view import genesis
from wire.group import CHANNELS
from wire.ids import PROTOCOL_VERSION
from wire.messages import Hello, Role, Welcome
from wire.peer import Buffer, Connection, Listener

CLUSTER: Final = b"bench.totalorder"
PAYLOAD: Final = bytes(64)
"""About what a create is on the wire, without its names."""


def now_us() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000


class Member:
    """Carries out what the machine says, like mds.replica and mds.serve; what is delivered is only timed."""

    def __init__(self, directory: Path, me: int, level: str, ports: list[int], token: trio.lowlevel.TrioToken) -> None:
        self.me = me
        self.ports = ports
        members = tuple(range(1, len(ports) + 1))
        self.journal = Journal(directory / f"journal-{me}", CLUSTER, me, [Decided(genesis(members, ())), Flushed(0)])
        self.machine = Machine(
            me, members, self.journal.durable, rng=random.Random(os.urandom(16)), now=now_us(), level=level
        )
        self.links = Links(
            me,
            self.journal.uuid,
            self.journal.durable.incarnation,
            CLUSTER,
            met=Acquaintances(self.journal),
            received=self._received,
            up=lambda peer: self.event(ev.LinkUp(peer)),
            down=lambda peer: self.event(ev.LinkDown(peer)),
            works=self.machine.hear_each_other,
        )
        self._there = trio.Event()
        self._ended = 0.0
        """Our message is delivered, and when it was."""
        self._moved = trio.Event()
        """Set, and replaced, at every event."""
        self._token = token
        self._events: deque[ev.Event] = deque()
        self._running = False
        self._on_disk = 0
        self._after: deque[tuple[int, list[tuple[int, Any]]]] = deque()
        self._timer = trio.CancelScope()
        self._timer_until = 0

    @property
    def together(self) -> bool:
        """A view of all is active."""
        return self.machine.active_view is not None and len(self.machine.core.newest.members) == len(self.ports)

    # -- events and effects

    def event(self, event: ev.Event) -> None:
        self._events.append(event)
        if self._running:
            return
        self._running = True
        while self._events:
            self._carry_out(self.machine.step(self._events.popleft(), now_us()))
        self._running = False
        if self._moved.statistics().tasks_waiting:
            self._moved.set()
            self._moved = trio.Event()
        if self._timer_until > self.machine.next_deadline() + ACTIVE_TICK_US:
            self._timer.cancel()

    def _carry_out(self, out: ev.Effects) -> None:
        for peer, message in out.send:
            self.links.send(peer, message)
        written = bool(out.records) and self.journal.append_now(out.ticket, out.records)
        for item in out.history:
            if isinstance(item, ev.Delivered) and item.entry.sender == self.me:
                self._ended = time.perf_counter()
                self._there.set()
        if written:
            self._durable(out.ticket)
        if out.after:
            self._after.append((out.ticket, out.after))
            self._send_after()

    def _durable(self, ticket: int) -> None:
        self._on_disk = max(self._on_disk, ticket)
        self._send_after()
        self.event(ev.DurableUpTo(ticket))

    def _send_after(self) -> None:
        while self._after and self._after[0][0] <= self._on_disk:
            for peer, message in self._after.popleft()[1]:
                if peer == self.me:
                    self._events.append(ev.Received(peer, message))
                else:
                    self.links.send(peer, message)

    def _received(self, peer: int, message: Any, bulk: Buffer) -> None:
        self.event(ev.Received(peer, message))

    # -- tasks

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve for ever."""
        listener = Listener(f"127.0.0.1:{self.ports[self.me - 1]}")
        self.journal.start(
            lambda ticket: self._token.run_sync_soon(self._durable, ticket),
            lambda error: os._exit(1),  # nothing that is not on disk may be told
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.serve, nursery, CLUSTER, self._judge, self._welcome, self.links_accepted)
            for peer in range(1, self.me):
                for channel in CHANNELS:
                    address = f"127.0.0.1:{self.ports[peer - 1]}"
                    nursery.start_soon(self.links.keep, peer, address, channel)
            nursery.start_soon(self._tick)
            task_status.started()

    def _judge(self, hello: Hello) -> str | None:
        fits = hello.role == Role.REPLICA and hello.name.isdigit() and 0 < int(hello.name) <= len(self.ports)
        return None if fits else "no member of this benchmark"

    def _welcome(self, hello: Hello) -> Welcome:
        durable = self.journal.durable
        return Welcome(PROTOCOL_VERSION, Role.REPLICA, str(self.me), self.journal.uuid, durable.incarnation)

    async def links_accepted(self, conn: Connection, hello: Hello) -> None:
        await self.links.accepted(conn, hello)

    async def _tick(self) -> None:
        while True:
            self._timer_until = max(self.machine.next_deadline(), now_us() + ACTIVE_TICK_US)
            with trio.CancelScope() as self._timer:
                await trio.sleep(max(0, self._timer_until - now_us()) / 1e6)
            if now_us() >= self._timer_until:
                self.event(ev.Tick())

    async def send(self, count: int, pause_us: int) -> list[float]:
        """Send *count* messages, each when the one before is delivered; their latencies."""
        latencies = []
        for _ in range(count):
            if pause_us:
                await trio.sleep(random.random() * pause_us / 1e6)
            await self.until(lambda: self.machine.may_submit)
            self._there = trio.Event()
            began = time.perf_counter()
            self.event(ev.Submit(PAYLOAD))
            await self._there.wait()
            latencies.append((self._ended - began) * 1e6)
        return latencies

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until *holds*, which an event must bring about."""
        while not holds():
            await self._moved.wait()


async def serve(directory: Path, me: int, level: str, ports: list[int]) -> None:
    member = Member(directory, me, level, ports, trio.lowlevel.current_trio_token())
    async with trio.open_nursery() as nursery:
        await nursery.start(member.run)
        await member.until(lambda: member.together)
        print("ready", flush=True)
        async with trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())) as commands:
            rest = b""
            async for data in commands:
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    phase, count, pause_us, heartbeat_us = line.decode().split()
                    # The original's interval is ten times ours; only this process, and only this benchmark, has it.
                    # With it goes the lease, which is asked for at once where it has lapsed: by another heartbeat.
                    setattr(limits, "LEASE", limits.LEASE * int(heartbeat_us) // limits.HEARTBEAT)  # noqa: B010
                    setattr(limits, "HEARTBEAT", int(heartbeat_us))  # noqa: B010  Final for everybody else
                    latencies = await member.send(int(count), int(pause_us))
                    print(json.dumps({"phase": phase, "latencies_us": latencies}), flush=True)
        nursery.cancel_scope.cancel()
    member.journal.close()


def main(argv: list[str]) -> int:
    if len(argv) < 4:
        print("usage: python -m bench.group_member DIRECTORY ID LEVEL PORT...", file=sys.stderr)
        return 2
    directory, me, level, *ports = argv
    logs.setup(f"member-{me}")
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLD)
    trio.run(serve, Path(directory), int(me), level, [int(port) for port in ports])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Connections to storage targets: dialled on demand, one per target, calls multiplexed by their number.

Changes go to the head of the file's chain, reads to any target that serves it. Every call here is idempotent
(ObjectWrite, Read, Truncate, Sync, TargetStat): when a target does not answer, the storage map is asked whom to turn to
now, and the call is made again there. Where nobody else has the data the target is waited for (hard), or its calls end
in ETIMEDOUT (soft).
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import outcome
import trio

from client import limits
from client.acks import Ack
from wire.chains import OFFLINE, Members, answer_untrusted, path, readers
from wire.codec import encode
from wire.errors import OK, FileSystemError, Status, WireError, describe
from wire.ids import PROTOCOL_VERSION
from wire.messages import Answer, Hello, Ping, Pong, Role
from wire.peer import Connection, ConnectionLost, dial

log = logging.getLogger(__name__)

Buffer = bytes | bytearray | memoryview
Bulk = Buffer | tuple[Buffer, ...]


@dataclass(slots=True)
class _Pending:
    meta: bytes
    bulk: Bulk
    size: int
    task: trio.lowlevel.Task | None = None


class Unanswered(Exception):
    """A target does not answer; whether it has done what was asked is not known."""


class TargetLink:
    """The connection to one target and the calls it owes us."""

    def __init__(self, nursery: trio.Nursery, target: int, address: str, hello: Hello) -> None:
        self.target = target
        self.address = address
        self._hello = hello
        self._pending: dict[int, _Pending] = {}
        """call number -> what is not answered, in the order it was first sent."""
        self._next = 1
        self._conn: Connection | None = None
        self.offline = False
        """What the map said of it last; it may be reached all the same."""
        self._ever = False
        """It has been dialled."""
        self._wanted = trio.Event()
        self._room = trio.Event()
        """Set, and replaced, whenever bytes in flight have become fewer."""
        self._inflight = 0
        self._heard_at = 0.0
        self._asked_at: float | None = None
        nursery.start_soon(self._run)

    async def call(self, make: Callable[[int], Any], bulk: Bulk = b"", size: int = 0) -> tuple[Answer, Buffer]:
        """Send the message *make(call)* with *bulk* (*size* bytes) and wait for its answer: that, and its bulk data.

        Raises :class:`Unanswered`.
        """
        if size:
            while self._inflight and self._inflight + size > limits.TARGET_INFLIGHT_MAX:
                await self._room.wait()
            self._inflight += size
        number = self._next
        self._next += 1
        pending = _Pending(encode(make(number)), bulk, size, trio.lowlevel.current_task())
        self._pending[number] = pending
        if self._asked_at is None:
            self._asked_at = trio.current_time()
        if self._conn is not None:
            try:
                self._conn.send_meta(pending.meta, bulk)
            except ConnectionLost as exc:
                log.debug("target %d: %s", self.target, exc)
        self._wanted.set()

        def abort(_raise_cancel: Any) -> trio.lowlevel.Abort:
            del self._pending[number]
            if not self._pending:
                self._asked_at = None
            return trio.lowlevel.Abort.SUCCEEDED

        try:
            answer: tuple[Answer, Buffer] = await trio.lowlevel.wait_task_rescheduled(abort)
            return answer
        finally:
            if size:
                self._inflight -= size
                self._room.set()
                self._room = trio.Event()

    async def _run(self) -> None:
        """Be connected whenever something is owed to us."""
        pause = limits.TARGET_BACKOFF_FIRST_S
        down_since: float | None = None
        while True:
            if not self._pending:
                self._wanted = trio.Event()
                await self._wanted.wait()
            try:
                conn = await dial(self.address, self._hello)
                self._ever = True
            except ConnectionLost as exc:
                self._ever = True
                if down_since is None:
                    down_since = trio.current_time()
                    log.warning("target %d does not answer: %s", self.target, exc)
                self.give_up(f"target {self.target} does not answer")
                await trio.sleep(pause)  # the pause before the next attempt, nothing is waited for by it
                pause = min(pause * 2, limits.TARGET_BACKOFF_MAX_S)
                continue
            pause = limits.TARGET_BACKOFF_FIRST_S
            if down_since is not None:
                log.warning("target %d is back after %.1f s", self.target, trio.current_time() - down_since)
                down_since = None
            await self._serve(conn)
            self.give_up("the connection broke")

    def give_up(self, why: str) -> None:
        """Nothing that is outstanding is answered here any more: each caller looks whom to turn to."""
        pending, self._pending = self._pending, {}
        self._asked_at = None
        for one in pending.values():
            if one.task is not None:
                trio.lowlevel.reschedule(one.task, outcome.Error(Unanswered(why)))

    def cut(self) -> None:
        """The map says that this target is offline: a connection that hangs is of no use."""
        if self._conn is not None:
            self._conn.close("it is offline")
        self.give_up("it is offline")

    @property
    def waits_since(self) -> float | None:
        """Since when calls have been outstanding without any sign from the target."""
        return None if self._asked_at is None else max(self._asked_at, self._heard_at)

    async def _serve(self, conn: Connection) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(conn.run_writer)
            nursery.start_soon(self._watch, conn)
            try:
                self._heard_at = trio.current_time()
                for pending in list(self._pending.values()):
                    conn.send_meta(pending.meta, pending.bulk)
                self._conn = conn
                await self._receive(conn)
            except ConnectionLost as exc:
                log.info("target %d: %s", self.target, exc)
            except WireError as exc:
                log.warning("target %d: %s", self.target, exc)
            finally:
                self._conn = None
                conn.close("left")
            nursery.cancel_scope.cancel()

    async def _receive(self, conn: Connection) -> None:
        while True:
            message, bulk = await conn.receive()
            self._heard_at = trio.current_time()
            if type(message) is Answer:
                pending = self._pending.pop(message.call, None)
                if pending is not None and pending.task is not None:
                    trio.lowlevel.reschedule(pending.task, outcome.Value((message, bulk)))
                self._asked_at = self._heard_at if self._pending else None
            elif type(message) is Ping:
                conn.send(Pong(message.number, True))
            elif type(message) is not Pong:
                raise WireError(f"a {type(message).__name__} from a target")

    async def _watch(self, conn: Connection) -> None:
        """Ping while something is owed; a target that says nothing for TARGET_SILENCE_S is dialled again."""
        number = 0
        while True:
            await trio.sleep(limits.TARGET_PING_S)
            if self._asked_at is None:
                continue
            now = trio.current_time()
            if now - max(self._heard_at, self._asked_at) > limits.TARGET_SILENCE_S:
                conn.close(f"silent for {limits.TARGET_SILENCE_S:g} s")
                return
            number += 1
            try:
                conn.send(Ping(number))
            except ConnectionLost:
                return  # the receiver has found out, too

    @property
    def down(self) -> bool:
        """It was dialled last in vain, or the connection broke since."""
        return self._conn is None and self._ever

    @property
    def outstanding(self) -> int:
        return len(self._pending)

    def close(self) -> None:
        if self._conn is not None:
            self._conn.close("client ends")


StorageMapSource = Callable[[], Awaitable[Any]]


class Targets:
    """All storage targets, by the chains that files name."""

    def __init__(
        self,
        nursery: trio.Nursery,
        cluster: bytes,
        name: str,
        uuid: bytes,
        source: StorageMapSource,
        soft_after: float | None,
    ) -> None:
        """*uuid*: what capabilities are made for. *source* asks the metadata service for the storage map
        (wire.ops.StorageMap's result).
        """
        self._nursery = nursery
        self._hello = Hello(PROTOCOL_VERSION, cluster, Role.CLIENT, name, uuid, 0, "main")
        self._source = source
        self._soft_after = soft_after
        self._links: dict[int, TargetLink] = {}
        self._chains: dict[int, tuple[int, Members]] = {}
        self._losses: dict[int, int] = {}
        self._turn = 0
        self._version = -1
        self._asking: trio.Event | None = None
        self._fetched = 0
        self._stat_at = float("-inf")
        self._stat = (0, 0)

    async def call(
        self,
        chain: int,
        make: Callable[[int, int], Any],
        bulk: Bulk = b"",
        size: int = 0,
        *,
        read: bool = False,
        answered: Callable[[Ack], None] | None = None,
    ) -> Buffer:
        """The message *make(call, chain version)* to the chain's head, or (*read*) to any target that may answer it;
        what comes back as bulk data. *answered* is told under what it was carried out, before this returns.

        Raises :class:`FileSystemError`. Soft mode: ETIMEDOUT, the call may have been carried out.
        """
        if self._soft_after is None:
            return await self._call(chain, make, bulk, size, read, answered)
        with trio.move_on_after(self._soft_after):
            return await self._call(chain, make, bulk, size, read, answered)
        raise FileSystemError(errno.ETIMEDOUT, f"chain {chain}")

    async def _call(
        self,
        chain: int,
        make: Callable[[int, int], Any],
        bulk: Bulk,
        size: int,
        read: bool,
        answered: Callable[[Ack], None] | None,
    ) -> Buffer:
        pause = limits.OVERLOADED_FIRST_S
        bad: set[int] = set()
        since = trio.current_time()
        told = False
        while True:
            version, link = await self._link_of(chain, read, bad)
            lost = self._losses.get(chain, 0)  # as of that version; the call may outlast it
            try:
                answer, data = await link.call(lambda call: make(call, version), bulk, size)  # noqa: B023 - at once
            except Unanswered as exc:
                log.debug("chain %d: %s", chain, exc)
                status = int(Status.NOT_SERVING)
            else:
                status = answer.status
            if status == OK:
                if told:
                    log.warning("chain %d goes on after %.1f s", chain, trio.current_time() - since)
                if answered is not None:
                    answered(Ack(version, lost))
                return data
            if status in (Status.CORRUPT, errno.EIO) and read:
                bad.add(link.target)  # it could not mend it, or its disk fails: another copy may be good
                if bad >= set(readers(self._chains[chain][1])):
                    raise FileSystemError(status, f"chain {chain}: no good copy")
                continue
            if status not in (Status.STALE_CHAIN, Status.OVERLOADED, Status.NOT_SERVING):
                raise FileSystemError(status, f"target {link.target}")
            if not told and trio.current_time() - since > limits.TARGET_TOLD_S:
                told = True
                log.warning("chain %d: target %d: %s; its calls wait", chain, link.target, describe(status))
            await trio.sleep(pause)  # the protocol's pause: nothing was done there
            pause = min(pause * 2, limits.CHAIN_PAUSE_MAX_S)
            if status != Status.OVERLOADED:
                await self._refresh()

    async def _link_of(self, chain: int, read: bool, bad: set[int]) -> tuple[int, TargetLink]:
        if chain not in self._chains:
            await self._refresh()
            if chain not in self._chains:
                raise FileSystemError(errno.EIO, f"chain {chain} is not in the storage map")
        version, members = self._chains[chain]
        order = readers(members) if read else path(members)
        links = [self._links[t] for t in order if t in self._links and t not in bad]
        if not links:
            raise FileSystemError(errno.EIO, f"chain {chain} has no target")
        if read and len(links) > 1:
            self._turn += 1
            at = self._turn % len(links)
            # Those that answer before those that were lost; of these the one with the least outstanding.
            return version, min(links[at:] + links[:at], key=lambda link: (link.down, link.outstanding))
        return version, links[0]

    async def _refresh(self) -> None:
        """Fetch the storage map; callers that come while it is being fetched share the answer."""
        before = self._fetched
        while self._asking is not None:
            await self._asking.wait()
            if self._fetched != before:
                return  # else whoever asked was cancelled: it is our turn
        self._asking = done = trio.Event()
        try:
            (version, targets, chains), losses = answer_untrusted(await self._source())
            self._fetched += 1
        except ValueError as exc:
            raise FileSystemError(errno.EPROTO, str(exc)) from exc
        finally:
            self._asking = None
            done.set()
        if version < self._version:
            return  # answered by a replica that lags
        self._version = version
        for number, address, state, _ in targets:
            link = self._links.get(number)
            if link is None:
                self._links[number] = TargetLink(self._nursery, number, address, self._hello)
            elif link.address != address:
                log.info("target %d moved from %s to %s", number, link.address, address)
                link.address = address  # dialled there from the next connection on
            if link is not None and state == OFFLINE and not link.offline:
                link.cut()
            if link is not None:
                link.offline = state == OFFLINE
        self._chains = {chain: (its_version, members) for chain, its_version, members in chains}
        self._losses = dict(losses)

    async def watch(self) -> None:
        """Look at the map when a target says nothing: calls to one that is marked offline are made elsewhere."""
        while True:
            await trio.sleep(limits.TARGET_LOOK_S)
            before = trio.current_time() - limits.TARGET_LOOK_S
            if all(link.waits_since is None or link.waits_since > before for link in self._links.values()):
                continue
            try:
                await self._refresh()
            except FileSystemError as exc:
                log.info("storage map: %s", exc)

    async def space(self, stat: Callable[[int], Any], decode: Callable[[bytes], Any]) -> tuple[int, int]:
        """(total bytes, free bytes) of all targets that answer; asked at most once in STAT_CACHE_S."""
        now = trio.current_time()
        if now - self._stat_at < limits.STAT_CACHE_S:
            return self._stat
        await self._refresh()
        sums = [0, 0]

        async def ask(link: TargetLink) -> None:
            try:
                answer, _ = await link.call(stat)
            except Unanswered as exc:
                log.debug("space: %s", exc)
                return
            if answer.status == OK:
                total, free, _objects = decode(answer.body)
                sums[0] += total
                sums[1] += free

        with trio.move_on_after(limits.STAT_TIMEOUT_S):
            async with trio.open_nursery() as nursery:
                for link in self._links.values():
                    nursery.start_soon(ask, link)
        self._stat_at, self._stat = now, (sums[0], sums[1])
        return self._stat

    def close(self) -> None:
        for link in self._links.values():
            link.close()

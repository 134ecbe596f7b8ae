"""A whole service in one process for the client's tests: one metadata replica that applies requests at once, and
storage targets. The real state machine and the real ossd, without a group, over real loopback sockets.

    python -m tests.client.one_replica DIR --targets 2        prints a line of JSON when it serves; SIGTERM stops it

Faults, for tests in the same process: :class:`Faults`. Clients are lent everything or nothing: whoever asks for
a cache lease has it, and a request of another client calls all of it back. Delegations are recalled as by a real
replica, and never taken away.
"""

from __future__ import annotations

import argparse
import errno
import json
import logging
import os
import signal
import sys
import time
import tomllib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from client.mount import ClusterConfig
from daemon.config import ClusterConfig as ClusterPart
from daemon.config import Config, ReplicaConfig, StorageConfig, TargetConfig
from mds.capabilities import Signer
from mds.exports import Squash
from mds.handles import Handles
from mds.locksets import in_the_way, look
from mds.machine import Bootstrap, Outcome, StateMachine
from mds.rights import NEEDED, Rights
from mds.shell import Client
from mds.store import Store
from ossd import identity
from ossd import serve as ossd
from wire import messages as msg
from wire import ops, targetops
from wire.capability import KEY_BYTES
from wire.codec import decode, encode, pack
from wire.delegation import DelegationRecall, RecallDelegations, Undelegate
from wire.errors import OK, Status, WireError
from wire.fileops import Renew
from wire.ids import PROTOCOL_VERSION
from wire.peer import Connection, ConnectionLost, Listener, dial
from wire.storage import Beat, BeatSaid

CLUSTER = bytes(range(16))
REPLICA = 1
LEASE_S = 5.0
"""No test fails because the machine was busy."""
log = logging.getLogger(__name__)


@dataclass
class Faults:
    """What the replica does wrong from now on."""

    lose_replies: int = 0
    """So many answers to requests are not sent; the connection breaks instead, after the request was applied."""
    not_serving: int = 0
    """So many calls are refused as NOT_SERVING."""
    overloaded: int = 0
    hold: trio.Event | None = None
    """Requests and queries are not looked at before this is set."""
    squash: Squash | None = None
    """Of the credentials in queries; no fault, but an export."""
    hold_kinds: tuple[type, ...] = ()
    """Those of these kinds only; other requests and queries pass them."""
    no_leases: bool = False
    refuse: dict[type, int] = field(default_factory=dict)
    """Kind of request -> the status that one is answered without being executed."""


class OneReplica:
    """The metadata service."""

    def __init__(self, path: Path, storage: StorageConfig) -> None:
        self.faults = Faults()
        self.store = Store.open(path)
        bootstrap = Bootstrap(storage.stripe_size, storage.stripe_count, storage.copies, storage.inline)
        self.machine = StateMachine(self.store, REPLICA, bootstrap)
        self.handles = Handles()
        self.executed = 0
        self.connections: set[Connection] = set()
        self.attached: dict[int, Connection] = {}
        self.returned = trio.Event()
        """Set, and replaced, when a delegation has ended."""
        self.requests: list[object] = []
        """What clients have had executed, in order."""
        self._lent: dict[Connection, float] = {}
        self._recalls: dict[Connection, int] = {}
        self._let_go: dict[tuple[Connection, int], trio.Event] = {}
        self._entry = 0
        self.signer = Signer(self.machine, time.time_ns)
        self.rights = Rights(self.signer)
        if not self.machine.members:
            self.machine.view_event(self.machine.index + 1, 1, 1, (REPLICA,))
            self.rotate_keys()
            self.rotate_keys()

    def close(self) -> None:
        layer = self.store.freeze()
        if layer is not None:
            self.store.write(layer)
            self.store.release(layer)
        self.store.close()

    def rotate_keys(self) -> None:
        self.apply(targetops.KeyRotate(self.machine.keys.rotations, os.urandom(KEY_BYTES)))

    def apply(self, op: object, session: int = 0, slot: int = REPLICA, number: int = 0) -> Outcome:
        data = op if isinstance(op, bytes) else encode(op)
        if not session:
            self._entry = number = self._entry + 1
        index = self.machine.index + 1
        (outcome,) = self.machine.apply(index, REPLICA, pack(((time.time_ns(), session, slot, number, data),)))
        self.executed += 1
        if self.store.pending_bytes > 8 << 20:
            layer = self.store.freeze()
            if layer is not None:
                self.store.write(layer)
                self.store.release(layer)
        for ino in outcome.orphaned:
            if not self.handles.is_open(ino):
                self.release([ino])
        return outcome

    def release(self, inos: list[int]) -> None:
        orphans = tuple(ino for ino in inos if self.machine.is_orphan(ino))
        if orphans:
            self.apply(ops.OrphanAnswer(REPLICA, orphans, ()))

    async def converse(self, conn: Connection, hello: msg.Hello) -> None:
        who = Client(conn, hello.name, uuid=hello.uuid)
        self.connections.add(conn)
        try:
            async with trio.open_nursery() as nursery:
                try:
                    while True:
                        message, _ = await conn.receive()
                        asks = isinstance(message, msg.RequestCall | msg.QueryCall)
                        if asks and self.faults.hold is not None and not self.faults.hold_kinds:
                            await self.faults.hold.wait()
                        self._take(who, message, nursery)
                finally:
                    nursery.cancel_scope.cancel()
        except* ConnectionLost as exc:
            log.debug("%s: %s", conn.where, exc)
        finally:
            self.connections.discard(conn)
            self._lent.pop(conn, None)
            for (of, _), event in self._let_go.items():
                if of is conn:
                    event.set()
            if self.attached.get(who.session) is conn:
                del self.attached[who.session]

    def _take(self, who: Client, message: object, nursery: trio.Nursery) -> None:
        conn = who.conn
        match message:
            case msg.QueryCall(call, data, shown):
                if not self._refused(conn, call):
                    self._now_or_later(nursery, who, decode(data), self._query, (call, data, shown))
            case msg.RequestCall(call, session, slot, number, data, shown):
                if not self._refused(conn, call):
                    asked = self.rights.asked(who, decode(data), shown, time.monotonic_ns() // 1000)
                    self._now_or_later(nursery, who, asked, self._request, (call, session, slot, number, asked))
            case msg.OpenSession(call, key, client, slots, attempt):
                outcome = self.apply(ops.SessionOpen(key, client, slots, REPLICA, attempt))
                who.session = decode_int(outcome.body)
                self.handles.declare(who.session, ())
                self.attached[who.session] = conn
                conn.send(msg.Answer(call, OK, pack(who.session)))
            case msg.AttachSession(call, number_of, key, attempt, handles):
                outcome = self.apply(ops.SessionAttach(number_of, key, REPLICA, attempt))
                if outcome.status == OK:
                    who.session = number_of
                    self.handles.declare(number_of, handles)
                    self.attached[number_of] = conn
                conn.send(msg.Answer(call, outcome.status, outcome.body))
                self._ask_back(who.session)
            case msg.CloseSession(call, number_of, key):
                self.apply(ops.SessionClose(number_of, key))
                self._changed()
                self.release(self.handles.forget(number_of))
                conn.send(msg.Answer(call, OK, pack(None)))
            case msg.CloseHandles(handles):
                self.release([ino for ino, count in handles if self.handles.close(who.session, ino, count)])
            case msg.Ping(number):
                conn.send(msg.Pong(number, True))
            case msg.KeepCache(number):
                if not self.faults.no_leases:
                    self._lent[conn] = time.monotonic() + LEASE_S
                    conn.send(msg.CacheLease(number, 1, int(LEASE_S * 800_000)))
            case msg.Recalled(number):
                if (event := self._let_go.pop((conn, number), None)) is not None:
                    event.set()
            case _:
                log.info("ignored: %r", message)

    # -- what is lent and delegated

    def _changed(self) -> None:
        self.returned.set()
        self.returned = trio.Event()

    def _in_the_way(self, who: Client, op: Any, *, query: bool) -> list[int]:
        """Directories delegated to somebody else that *op* depends on."""
        delegated = self.machine.delegated
        if not delegated:
            return []
        if not query:
            return in_the_way(delegated, who.session, op, look(self.store, op))
        read = self.machine.query(op, self.handles).read
        return [ino for ino in read if ino in delegated and delegated[ino][0] != who.session]

    def _ask_back(self, session: int) -> None:
        conn = self.attached.get(session)
        mine = tuple(sorted(d for d, now in self.machine.delegated.items() if now == (session, True)))
        if mine and conn is not None:
            conn.send(DelegationRecall(mine))

    def _now_or_later(
        self, nursery: trio.Nursery, who: Client, op: Any, do: Callable[..., None], args: tuple[Any, ...]
    ) -> None:
        """*do(who, *args)* when nothing is in the way of *op*."""
        held = self.faults.hold is not None and isinstance(op, self.faults.hold_kinds)
        query = do == self._query
        others = not query and any(conn is not who.conn for conn in self._lent)
        if not (held or others or self._in_the_way(who, op, query=query)):
            do(who, *args)
            return

        async def later() -> None:
            if held and self.faults.hold is not None:
                await self.faults.hold.wait()
            while met := self._in_the_way(who, op, query=query):
                self.apply(RecallDelegations(tuple(met)))
                for session in {self.machine.delegated[ino][0] for ino in met}:
                    self._ask_back(session)
                await self.returned.wait()
            if not query:
                for conn in [conn for conn in self._lent if conn is not who.conn]:
                    await self._recall(conn)
            do(who, *args)

        nursery.start_soon(later)

    async def _recall(self, conn: Connection) -> None:
        until = self._lent[conn]
        number = self._recalls[conn] = self._recalls.get(conn, 0) + 1
        event = self._let_go[conn, number] = trio.Event()
        conn.send(msg.Recall(number, (), ()))
        with trio.move_on_after(until - time.monotonic()):
            await event.wait()

    def _request(self, who: Client, call: int, session: int, slot: int, number: int, asked: Any) -> None:
        conn = who.conn
        if (status := self.faults.refuse.pop(type(asked), None)) is not None:
            conn.send(msg.Answer(call, status, b""))
            return
        outcome = self.apply(asked, session, slot, number)
        self.requests.append(asked)
        if isinstance(asked, Undelegate):
            self._changed()
        if self.faults.lose_replies:
            self.faults.lose_replies -= 1
            conn.close("reply lost")
            return
        if outcome.opened and outcome.status == OK:
            self.handles.open(session, outcome.opened)
        granted = self.signer.replied(who.uuid, asked, outcome)
        conn.send(msg.Answer(call, outcome.status, outcome.body, conn in self._lent, granted))

    def _refused(self, conn: Connection, call: int) -> bool:
        if self.faults.not_serving:
            self.faults.not_serving -= 1
            conn.send(msg.Answer(call, Status.NOT_SERVING, b""))
            return True
        if self.faults.overloaded:
            self.faults.overloaded -= 1
            conn.send(msg.Answer(call, Status.OVERLOADED, b""))
            return True
        return False

    def _query(self, client: Client, call: int, data: bytes, shown: bytes) -> None:
        conn, uuid, session = client.conn, client.uuid, client.session
        try:
            op = decode(data)
        except WireError:
            conn.send(msg.Answer(call, Status.BAD_MESSAGE, b""))
            return
        if self.faults.squash is not None:
            op = self.faults.squash.applied(op)
        if isinstance(op, ops.ReadDir):
            op = self.rights.listing(client, op, shown)
        status = self.rights.judge(client, op, shown, time.monotonic_ns() // 1000) if type(op) in NEEDED else OK
        if status != OK:
            conn.send(msg.Answer(call, status, b""))
            return
        result = self.machine.query(op, self.handles)
        if isinstance(op, ops.Open) and result.status == OK:
            self.handles.open(session, op.ino)
        renews = isinstance(op, Renew) and op.old and result.status == OK
        if renews and not self.signer.renewable(uuid, session, op, self.handles.has(session, op.ino)):
            conn.send(msg.Answer(call, errno.EACCES, b""))
            return
        if isinstance(op, ops.ReadDir):
            granted = self.signer.listed(uuid, session, op, result.body)
        else:
            granted = self.signer.answered(uuid, session, op, result.body) if result.status == OK else b""
        conn.send(msg.Answer(call, result.status, result.body, conn in self._lent, granted))


def decode_int(body: bytes) -> int:
    from wire.codec import unpack_untrusted

    value = unpack_untrusted(body)
    assert isinstance(value, int)
    return value


@dataclass
class Cluster:
    """A running service."""

    config: Config
    replica: OneReplica
    nursery: trio.Nursery
    targets: list[tuple[trio.CancelScope, trio.Event]]
    """What stops each target that was started, and its end."""

    async def stop_target(self) -> None:
        """Stop the target that was started last; it has let go of its disk when this returns."""
        scope, ended = self.targets.pop()
        scope.cancel()
        await ended.wait()

    async def crash_target(self, *, power_cut: bool) -> int:
        """End the target that was started last without anything being synced, by a power cut or by kill -9; its number,
        to start it again. What is on its disk is as it was: whoever has bytes lost in a power cut removes them."""
        number = len(self.targets)
        path = self.config.targets[number - 1].data
        await self.stop_target()
        starts = tomllib.loads((path / identity.STARTS_NAME).read_text())
        boot = "an earlier run of the kernel" if power_cut else identity.boot_id()
        identity._write_starts(path, starts["incarnation"], boot, clean=False, lost=False)
        return number

    async def start_target(self, number: int) -> int:
        """Start storage target *number*; its port."""
        started: list[int] = []

        async def run(task_status: trio.TaskStatus[None]) -> None:
            ended = trio.Event()
            with trio.CancelScope() as scope:
                self.targets.append((scope, ended))
                async with trio.open_nursery() as nursery:
                    started.append(await nursery.start(ossd.serve, self.config, number))
                    task_status.started()
            ended.set()

        await self.nursery.start(run)
        # On a port of its own each time, as a daemon that has moved would be.
        where = f"127.0.0.1:{started[0]}"
        self.replica.apply(ops.TargetSet(number, where, number.to_bytes(16, "big")))
        await self.nursery.start(self._tend, number, where)
        return started[0]

    async def _tend(self, number: int, where: str, *, task_status: trio.TaskStatus[None]) -> None:
        """As the keeper does: enter each run of the target, and tell it the map as often as it changes."""
        machine = self.replica.machine
        try:
            conn = await dial(where, msg.Hello(PROTOCOL_VERSION, CLUSTER, msg.Role.MDS, "1", bytes(16), 0, "main"))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(conn.run_writer)
                conn.send(Beat(1, 0, 0, b""))
                said, _ = await conn.receive()
                assert isinstance(said, BeatSaid)
                assert isinstance(conn.hello, msg.Welcome)
                self.replica.apply(targetops.TargetUp(number, said.run, conn.hello.incarnation))
                while True:
                    found = machine.storage_map()
                    body = pack(found) if said.version < found[0] else b""
                    conn.send(Beat(2, said.clock_us, found[0], body, machine.keys.keys))
                    said, _ = await conn.receive()
                    assert isinstance(said, BeatSaid)
                    if said.version == machine.storage_map()[0]:
                        task_status.started()
                        break
                while True:
                    await trio.sleep(0.02)
                    found = machine.storage_map()
                    body = pack(found) if said.version < found[0] else b""
                    conn.send(Beat(2, said.clock_us, found[0], body, machine.keys.keys))
                    said, _ = await conn.receive()
                    assert isinstance(said, BeatSaid)
        except* ConnectionLost:
            log.debug("target %d is gone", number)


@asynccontextmanager
async def one_replica(
    base: Path,
    targets: int = 1,
    *,
    stripe_size: int = 1 << 20,
    stripe_count: int = 4,
    inline: int = 4096,
    copies: int = 1,
    port: int = 0,
    start_targets: bool = True,
) -> AsyncIterator[Cluster]:
    """The service with its data below *base*, on free ports (kept in *base* for the next start).

    Without *start_targets* the targets are in the configuration, and nobody has started them yet.
    """
    storage = StorageConfig(stripe_size, stripe_count, copies, inline)
    replica = OneReplica(base / "mds", storage)
    listener = Listener(f"127.0.0.1:{port or _kept_port(base, 'mds')}")
    _keep_port(base, "mds", listener.port)
    address = f"127.0.0.1:{listener.port}"
    members = tuple(
        TargetConfig(k, f"127.0.0.1:{_kept_port(base, f'target-{k}')}", base / f"target-{k}")
        for k in range(1, targets + 1)
    )
    replicas = (ReplicaConfig(REPLICA, address, base / "mds"),)
    config = Config(base / "lockstep.toml", ClusterPart("test", CLUSTER), replicas, members, storage)
    welcome = msg.Welcome(PROTOCOL_VERSION, msg.Role.MDS, str(REPLICA), bytes(16), 1)

    async def converse(conn: Connection, hello: msg.Hello) -> None:
        await replica.converse(conn, hello)

    try:
        async with trio.open_nursery() as nursery:
            cluster = Cluster(config, replica, nursery, [])
            for target in members if start_targets else ():
                _keep_port(base, f"target-{target.id}", await cluster.start_target(target.id))
            nursery.start_soon(listener.serve, nursery, CLUSTER, lambda hello: None, lambda hello: welcome, converse)
            yield cluster
            nursery.cancel_scope.cancel()
    finally:
        listener.close()
        replica.close()


def _kept_port(base: Path, name: str) -> int:
    file = base / f"{name}.port"
    return int(file.read_text()) if file.exists() else 0


def _keep_port(base: Path, name: str, port: int) -> None:
    (base / f"{name}.port").write_text(str(port))


async def _main(base: Path, targets: int, stripe_size: int) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with one_replica(base, targets, stripe_size=stripe_size) as cluster:
            print(json.dumps({"replica": cluster.config.replicas[0].address}), flush=True)
            async for _ in signals:
                break


@dataclass(frozen=True)
class _Member:
    id: int
    address: str


@dataclass(frozen=True)
class _Cluster:
    name: str
    id: bytes


@dataclass(frozen=True)
class _Config:
    cluster: _Cluster
    replicas: tuple[_Member, ...]


def config_of(address: str) -> ClusterConfig:
    """What a client needs of the configuration."""
    return _Config(_Cluster("test", CLUSTER), (_Member(REPLICA, address),))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("base", type=Path)
    parser.add_argument("--targets", type=int, default=1)
    parser.add_argument("--stripe-size", type=int, default=1 << 20)
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    trio.run(_main, args.base, args.targets, args.stripe_size)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A target over real loopback sockets: order, backpressure, errors, refusals, stop and start."""

from __future__ import annotations

import dataclasses
import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from daemon.config import ClusterConfig, Config, ReplicaConfig, TargetConfig
from daemon.config import write as write_config
from ossd import target as target_module
from ossd.identity import StoreRefused
from ossd.serve import serve
from ossd.store import Buffer, Disk, Store
from wire.capability import ALL_FILES, DELETE, READ, TRUNCATE, WRITE, sign
from wire.codec import pack, unpack_untrusted
from wire.errors import OK, Status
from wire.messages import (
    Answer,
    Hello,
    ObjectDelete,
    ObjectKey,
    ObjectRead,
    ObjectSync,
    ObjectTruncate,
    ObjectWrite,
    Ping,
    Pong,
    QueryCall,
    Role,
    StatusCall,
    TargetStat,
    Welcome,
)
from wire.peer import Connection, ConnectionLost, Listener, dial
from wire.storage import Beat, BeatSaid, ObjectList

CLUSTER = b"0123456789abcdef"
KEY = ObjectKey(5, 0)


def config_of(path: Path, address: str = "127.0.0.1:0") -> Config:
    return Config(
        path / "lockstep.toml",
        ClusterConfig("test", CLUSTER),
        (ReplicaConfig(1, "127.0.0.1:1", path / "m1"),),
        (TargetConfig(1, address, path / "t1"),),
    )


KEYS = (b"n" * 32, b"c" * 32, b"p" * 32)
"""What the keeper says capabilities are signed with: the next, the current, the previous key."""
CLIENT = b"uuid of a client"
FAR_US = 2**60


def token_for(
    ino: int, *, chains: tuple[int, ...] = (), rights: int = READ | WRITE | TRUNCATE, until_us: int = FAR_US
) -> bytes:
    """A capability as a replica gives it; *chains*: of the file's columns."""
    return sign(KEYS[1], CLIENT, rights, ino, 1, until_us, chains)


class Caller:
    """A client of the target: answers are paired with calls, whatever their order. It shows a good capability with
    every call that has a place for one, unless :attr:`capable` is false."""

    def __init__(self, conn: Connection, role: str = Role.CLIENT) -> None:
        self.conn = conn
        self.role = role
        self.capable = True
        self._last = 0
        self._answers: dict[int, tuple[Answer, Buffer]] = {}
        self._came = trio.Condition()
        self.said: Any = None

    async def run(self) -> None:
        try:
            while True:
                msg, bulk = await self.conn.receive()
                async with self._came:
                    if isinstance(msg, BeatSaid):
                        self.said = msg
                    else:
                        self._answers[msg.call] = msg, bulk
                    self._came.notify_all()
        except ConnectionLost:
            async with self._came:
                self._came.notify_all()

    def send(self, cls: Callable[..., Any], *args: Any, bulk: Buffer = b"") -> int:
        self._last += 1
        message = cls(self._last, *args)
        if self.capable and isinstance(message, ObjectWrite | ObjectRead | ObjectTruncate | ObjectSync):
            chains = (message.chain,) * (message.key.column + 1)
            message = dataclasses.replace(message, capability=token_for(message.key.ino, chains=chains))
        elif self.capable and isinstance(message, ObjectDelete):
            message = dataclasses.replace(message, capability=token_for(ALL_FILES, rights=DELETE))
        self.conn.send(message, bulk)
        return self._last

    async def answer(self, call: int) -> tuple[int, Any, bytes]:
        """(status, body, bulk)"""
        with trio.fail_after(20):
            async with self._came:
                while call not in self._answers:
                    if self.conn.closed is not None:
                        raise ConnectionLost(self.conn.closed)
                    await self._came.wait()
        msg, bulk = self._answers.pop(call)
        return msg.status, unpack_untrusted(msg.body) if msg.body else None, bytes(bulk)

    async def call(self, cls: Callable[..., Any], *args: Any, bulk: Buffer = b"") -> tuple[int, Any, bytes]:
        return await self.answer(self.send(cls, *args, bulk=bulk))

    async def beat(self, *chains: tuple[int, int, Any], version: int = 1, known: bool = True) -> None:
        """As the keeper: this is the map, and you serve."""
        await self.answer_to_beat(Beat(1, 0, 0, b""))
        run = self.said.run if known else 1
        found = (version, ((1, "127.0.0.1:1", "serving", run),), chains)
        await self.answer_to_beat(Beat(2, 0, version, pack(found), KEYS))
        assert self.said.version == version

    async def answer_to_beat(self, beat: Beat) -> None:
        self.conn.send(beat)
        with trio.fail_after(20):
            async with self._came:
                while self.said is None or self.said.number != beat.number:
                    await self._came.wait()

    async def write(self, offset: int, data: Buffer, key: ObjectKey = KEY, known: Any = ()) -> int:
        return (await self.call(ObjectWrite, key, 1, 1, known, offset, bulk=data))[0]

    async def read(self, offset: int = 0, length: int = 1 << 20, key: ObjectKey = KEY, known: Any = ()) -> bytes:
        status, _, data = await self.call(ObjectRead, key, 1, 1, known, offset, length)
        assert status == OK
        return data

    async def sync(self, key: ObjectKey = KEY) -> int:
        return (await self.call(ObjectSync, key, 1, 1))[0]


@asynccontextmanager
async def calling(port: int, role: str = Role.CLIENT, name: str = "host:1:/mnt") -> AsyncIterator[Caller]:
    conn = await dial(f"127.0.0.1:{port}", Hello(1, CLUSTER, role, name, CLIENT, 0, "main"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(conn.run_writer)
        caller = Caller(conn, role)
        nursery.start_soon(caller.run)
        try:
            yield caller
        finally:
            conn.close()


@asynccontextmanager
async def target(path: Path) -> AsyncIterator[int]:
    """A target that serves *path*; stopped cleanly at the end."""
    async with trio.open_nursery() as nursery:
        port = await nursery.start(serve, config_of(path), 1)
        async with calling(port, Role.MDS, "1") as keeper:
            await keeper.beat((1, 1, ((1, "serving"),)))
        yield port
        nursery.cancel_scope.cancel()


@pytest.fixture
async def port(tmp_path: Path) -> AsyncIterator[int]:
    async with target(tmp_path) as number:
        yield number


@pytest.fixture
async def client(port: int) -> AsyncIterator[Caller]:
    async with calling(port) as caller:
        yield caller


@pytest.fixture
async def mds(port: int) -> AsyncIterator[Caller]:
    async with calling(port, Role.MDS, "1") as caller:
        yield caller


class GatedDisk:
    """Lets a test hold system calls back: those that it names wait for :meth:`open`, in their threads."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
        self._gate = threading.Event()
        self.waiting = 0
        self.begun: list[str] = []
        for name in names:
            monkeypatch.setattr(Disk, name, staticmethod(self._gated(name, getattr(Disk, name))))

    def _gated(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            self.begun.append(name)
            if threading.current_thread() is not threading.main_thread():
                self.waiting += 1
                assert self._gate.wait(20), "the test forgot to open the gate"
                self.waiting -= 1
            return real(*args)

        return call

    def open(self) -> None:
        self._gate.set()

    async def reached(self, count: int = 1) -> None:
        """Wait until *count* calls wait here."""
        with trio.fail_after(20):
            while self.waiting < count:
                await trio.testing.wait_all_tasks_blocked(0.001)


def in_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing on the event loop: as with large data or a slow disk."""
    monkeypatch.setattr(target_module, "INLINE_MAX", 0)


# --- data -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [False, True])
async def test_bytes_come_back(client: Caller, monkeypatch: pytest.MonkeyPatch, threads: bool) -> None:
    if threads:
        in_threads(monkeypatch)
    assert await client.read() == b""
    assert await client.write(0, b"hello") == OK
    assert await client.write(10, b"world") == OK
    assert await client.read() == b"hello" + bytes(5) + b"world"
    assert await client.read(12, 2) == b"rl"
    assert await client.read(15, 100) == b""
    assert await client.read(0, 0) == b""
    assert await client.write(3, b"") == OK
    assert await client.read(0, 100, ObjectKey(5, 1)) == b"", "another column, another object"


@pytest.mark.parametrize("size", [4096, 1 << 20, 8 << 20])
async def test_bulk(client: Caller, size: int) -> None:
    data = os.urandom(size)
    assert await client.write(size, data) == OK
    assert await client.read(size, size) == data
    assert await client.sync() == OK


@pytest.mark.parametrize("threads", [False, True])
async def test_truncations(client: Caller, monkeypatch: pytest.MonkeyPatch, threads: bool) -> None:
    if threads:
        in_threads(monkeypatch)
    assert await client.write(0, b"0123456789") == OK
    assert await client.read(known=((1, 4),)) == b"0123"
    assert await client.read() == b"0123456789", "a read does not trim"
    assert await client.write(8, b"x", known=((1, 4),)) == OK
    assert await client.read(known=((1, 4),)) == b"0123" + bytes(4) + b"x"
    assert await client.call(ObjectTruncate, KEY, 1, 1, ((1, 4), (2, 2))) == (OK, None, b"")
    assert await client.read() == b"01"
    assert await client.call(ObjectTruncate, KEY, 1, 1, ()) == (OK, None, b"")


async def test_operations_on_one_object_run_as_received(client: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    """All sent before any is answered: each read sees exactly the writes before it."""
    in_threads(monkeypatch)
    calls = []
    for number in range(60):
        calls.append((number, client.send(ObjectWrite, KEY, 1, 1, (), 0, bulk=b"%08d" % number)))
        for _ in range(number % 3):
            calls.append((number, client.send(ObjectRead, KEY, 1, 1, (), 0, 8)))
    for number, call in calls:
        status, _, data = await client.answer(call)
        assert status == OK
        assert data in (b"", b"%08d" % number)


async def test_clients_write_one_object(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """N-to-1: many clients, interleaved blocks, large and small, in threads and on the event loop."""
    monkeypatch.setattr(target_module, "INLINE_MAX", 20_000)
    clients, blocks, size = 6, 20, 30_000

    async def one(number: int) -> None:
        async with calling(port, name=f"host:{number}:/mnt") as client:
            calls = []
            for k in range(blocks):
                length = size if k % 2 else size // 2
                place = (k * clients + number) * size
                calls.append(client.send(ObjectWrite, KEY, 1, 1, (), place, bulk=bytes([number + 1]) * length))
            for call in calls:
                assert (await client.answer(call))[0] == OK
            assert await client.sync() == OK

    async with trio.open_nursery() as nursery:
        for number in range(clients):
            nursery.start_soon(one, number)
    async with calling(port) as client:
        for k in range(blocks):
            for number in range(clients):
                length = size if k % 2 else size // 2
                data = await client.read((k * clients + number) * size, size)
                assert data[:length] == bytes([number + 1]) * length
                assert not any(data[length:])


async def test_a_slow_object_does_not_stop_others(client: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await client.write(0, b"a") == OK
    gate = GatedDisk(monkeypatch, "fdatasync")
    sync = client.send(ObjectSync, KEY, 1, 1)
    await gate.reached()
    assert await client.write(0, b"b", ObjectKey(6, 0)) == OK
    assert await client.write(1, b"c") == OK, "nor does a sync stop writes to its own object"
    assert await client.read() == b"ac"
    gate.open()
    assert (await client.answer(sync))[0] == OK


async def test_a_write_waits_for_reads_and_reads_for_the_write(
    client: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_threads(monkeypatch)
    assert await client.write(0, b"old") == OK
    gate = GatedDisk(monkeypatch, "pread", "pwrite")
    reads = [client.send(ObjectRead, KEY, 1, 1, (), 0, 3) for _ in range(3)]
    write = client.send(ObjectWrite, KEY, 1, 1, (), 0, bulk=b"new")
    last = client.send(ObjectRead, KEY, 1, 1, (), 0, 3)
    await gate.reached(3)
    assert gate.begun == ["pread"] * 3, "the reads together, the write not yet"
    gate.open()
    for call in reads:
        assert (await client.answer(call))[2] == b"old"
    assert (await client.answer(write))[0] == OK
    assert (await client.answer(last))[2] == b"new"


async def test_syncs_share_their_work(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many clients sync one object at the end of a step: the disk is asked twice, not once for each."""
    async with calling(port) as client:
        assert await client.write(0, b"a") == OK
        gate = GatedDisk(monkeypatch, "fdatasync")
        first = client.send(ObjectSync, KEY, 1, 1)
        await gate.reached()
        assert await client.write(1, b"b") == OK
        others = [client.send(ObjectSync, KEY, 1, 1) for _ in range(10)]
        assert await client.read() == b"ab"
        gate.open()
        for call in [first, *others]:
            assert (await client.answer(call))[0] == OK
        assert gate.begun == ["fdatasync"] * 2


async def test_sync_of_nothing(client: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = GatedDisk(monkeypatch, "fdatasync", "fsync")
    assert await client.sync() == OK
    gate.open()
    assert await client.write(0, b"a") == OK
    assert await client.sync() == OK
    assert await client.sync() == OK
    assert gate.begun == ["fdatasync"]


async def test_delete(client: Caller, mds: Caller) -> None:
    for column in range(3):
        assert await client.write(0, b"x", ObjectKey(5, column)) == OK
    assert await mds.call(ObjectDelete, 1, 1, ((5, 0), (5, 1), (5, 0), (77, 3))) == (OK, None, b"")
    assert await client.read() == b""
    assert await client.read(key=ObjectKey(5, 2)) == b"x"
    assert await mds.call(ObjectDelete, 1, 1, ((5, 0), (5, 1))) == (OK, None, b""), "done already"
    assert await mds.call(ObjectDelete, 1, 1, ()) == (OK, None, b"")


async def test_delete_comes_after_the_writes_before_it(
    client: Caller, mds: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_threads(monkeypatch)
    gate = GatedDisk(monkeypatch, "pwrite")
    write = client.send(ObjectWrite, KEY, 1, 1, (), 0, bulk=b"x")
    await gate.reached()
    delete = mds.send(ObjectDelete, 1, 1, ((6, 0), (5, 0), (7, 0)))
    other = mds.send(ObjectDelete, 1, 1, ((7, 0), (5, 0), (6, 0)))
    assert (await mds.call(TargetStat))[0] == OK, "the deletes were received before this"
    gate.open()
    for caller, call in ((client, write), (mds, delete), (mds, other)):
        assert (await caller.answer(call))[0] == OK
    assert await client.read() == b""


# --- limits ---------------------------------------------------------------------------------------


async def test_a_client_that_takes_no_answers(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks for much and reads nothing: what it costs is bounded, and others are served meanwhile."""
    monkeypatch.setattr(target_module, "BYTES_MAX", 4 << 20)
    monkeypatch.setattr(target_module, "CONNECTION_BYTES_MAX", 4 << 20)
    async with calling(port) as client:
        assert await client.write(0, bytes(1 << 20)) == OK
    hello = Hello(1, CLUSTER, Role.CLIENT, "greedy", CLIENT, 0, "main")
    greedy = await dial(f"127.0.0.1:{port}", hello)
    for call in range(200):
        greedy.send(ObjectRead(call, KEY, 1, 1, (), 0, 1 << 20, token_for(KEY.ino, chains=(1,))))
    async with calling(port) as client:
        for _ in range(20):
            assert await client.write(0, b"x") == OK
            assert len(await client.read(0, 1 << 20)) == 1 << 20
        status = (await client.call(StatusCall))[1]
        assert status["bytes_under_way"] <= 6 << 20
        with trio.fail_after(30):
            for _ in range(200):
                msg, bulk = await greedy.receive()
                assert (msg.status, len(bulk)) == (OK, 1 << 20)
    greedy.close()


async def test_many_operations_at_a_time(client: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above OPERATIONS_MAX the target stops reading; it goes on when some are done."""
    in_threads(monkeypatch)
    monkeypatch.setattr(target_module, "OPERATIONS_MAX", 4)
    gate = GatedDisk(monkeypatch, "pwrite")
    calls = [client.send(ObjectWrite, ObjectKey(5, k), 1, 1, (), 0, bulk=b"x") for k in range(12)]
    await gate.reached(4)
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert gate.waiting == 4
    gate.open()
    for call in calls:
        assert (await client.answer(call))[0] == OK


async def test_a_slow_disk_is_kept_off_the_event_loop(client: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small write took long: the next ones go to threads, though small."""
    names: list[str] = []
    real = Disk.pwrite

    def pwrite(*args: Any) -> int:
        names.append("loop" if threading.current_thread() is threading.main_thread() else "thread")
        return real(*args)

    monkeypatch.setattr(Disk, "pwrite", staticmethod(pwrite))
    monkeypatch.setattr(target_module, "SLOW_S", -1.0)
    monkeypatch.setattr(target_module, "SLOW_AVOIDED_S", 3600.0)
    for _ in range(3):
        assert await client.write(0, b"x") == OK
    assert names == ["loop", "thread", "thread"]


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [False, True])
@pytest.mark.parametrize(
    ("raised", "told"),
    [(errno.EIO, errno.EIO), (errno.ENOSPC, errno.ENOSPC), (errno.EDQUOT, errno.EDQUOT), (errno.EMFILE, errno.EIO)],
)
async def test_disk_errors(
    client: Caller, monkeypatch: pytest.MonkeyPatch, threads: bool, raised: int, told: int
) -> None:
    """The writer is told, the target goes on."""
    if threads:
        in_threads(monkeypatch)
    assert await client.write(0, b"abc") == OK

    def fail(*args: Any) -> int:
        raise OSError(raised, os.strerror(raised))

    with monkeypatch.context() as context:
        context.setattr(Disk, "pwrite", staticmethod(fail))
        context.setattr(Disk, "pread", staticmethod(fail))
        context.setattr(Disk, "preadv", staticmethod(fail))
        context.setattr(Disk, "unlink", staticmethod(fail))
        assert await client.write(0, b"xyz") == told
        assert (await client.call(ObjectRead, KEY, 1, 1, (), 0, 3))[0] == told
    assert await client.read() == b"abc"
    counted = (await client.call(StatusCall))[1]["disk_errors"]
    assert (counted == 0) == (raised in (errno.ENOSPC, errno.EDQUOT))


async def test_lost_writes_are_told_to_each_client(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Known by its name, so also over a new connection."""

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    async with calling(port, name="a") as a:
        assert await a.write(0, b"a") == OK
    async with calling(port, name="b") as b:
        assert await b.write(1, b"b") == OK
        with monkeypatch.context() as context:
            context.setattr(Disk, "fdatasync", staticmethod(fail))
            assert await b.sync() == errno.EIO
        assert await b.sync() == OK
    async with calling(port, name="c") as c:
        assert await c.sync() == OK
    async with calling(port, name="a") as a:
        assert await a.sync() == errno.EIO
        assert await a.sync() == OK


async def test_bad_messages_are_answered(
    client: Caller, port: int, caplog: pytest.LogCaptureFixture
) -> None:
    client.conn.send_meta(pack((102, 7001, (100, 5, -1), 1, 1, (), 0, 10, b"")))
    assert (await client.answer(7001))[0] == Status.BAD_MESSAGE
    assert "bad message: from 127.0.0.1" in caplog.text
    assert "ObjectKey: object 5.-1" in caplog.text
    client.conn.send_meta(pack((101, 7002, (100, 5, 0), 1, 1, ((1,),), 0, b"")), b"data of it")
    assert (await client.answer(7002))[0] == Status.BAD_MESSAGE
    assert (await client.call(QueryCall, b"op"))[0] == Status.BAD_MESSAGE
    assert "QueryCall from a peer of role client" in caplog.text
    assert (await client.call(ObjectDelete, 1, 1, ((5, 0),)))[0] == Status.BAD_MESSAGE, "clients delete nothing"
    assert (await client.call(ObjectSync, KEY, 1, 1, bulk=b"what for"))[0] == Status.BAD_MESSAGE
    client.conn.send_meta(pack((11, -1)))  # no call: nothing to answer
    assert await client.write(0, b"x") == OK
    assert await client.read() == b"x"


async def test_too_many_bad_messages(client: Caller, port: int, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(target_module.BAD_MESSAGES_MAX + 1):
        client.send(QueryCall, b"op")
    with pytest.raises(ConnectionLost):
        await client.answer(target_module.BAD_MESSAGES_MAX + 1)
    assert "connection dropped" in caplog.text
    async with calling(port) as other:
        assert await other.write(0, b"x") == OK


async def test_garbage(client: Caller, port: int, caplog: pytest.LogCaptureFixture) -> None:
    client.conn._sock.send(b"\xff" * 16)
    with pytest.raises(ConnectionLost):
        await client.sync()
    assert "frame announces a message of" in caplog.text
    async with calling(port) as other:
        assert await other.write(0, b"x") == OK


async def test_a_client_that_goes_in_the_middle(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits is given up, what runs is done; turns are passed on."""
    in_threads(monkeypatch)
    gate = GatedDisk(monkeypatch, "pwrite")
    async with calling(port, name="gone") as gone:
        for k in range(8):
            gone.send(ObjectWrite, KEY, 1, 1, (), k, bulk=b"x")
        await gate.reached()
    async with calling(port) as client:
        write = client.send(ObjectWrite, KEY, 1, 1, (), 20, bulk=b"y")
        assert (await client.call(TargetStat))[0] == OK
        gate.open()
        assert (await client.answer(write))[0] == OK
        data = await client.read()
        assert data[0:1] == b"x"
        assert data[20:] == b"y"
        assert (await client.call(StatusCall))[1]["bytes_under_way"] == 0


# --- status, roles, start and stop ----------------------------------------------------------------


async def test_status(port: int, client: Caller) -> None:
    assert await client.write(0, b"x") == OK
    status, body, _ = await client.call(TargetStat)
    assert status == OK
    total, free, _objects = body
    assert total > free > 0
    async with calling(port, Role.ADMIN, "lockstep status") as admin:
        known = (await admin.call(StatusCall))[1]
        assert (known["role"], known["id"], known["witness"], known["format"]) == ("ossd", 1, None, 2)
        assert known["bytes_total"] == total
        assert known["connections"] == 2
        assert (known["disk_errors"], known["incarnation"]) == (0, 1)
        assert isinstance(client.conn.hello, Welcome)
        assert known["uuid"] == client.conn.hello.uuid.hex()
        assert (await admin.call(ObjectRead, KEY, 1, 1, (), 0, 1))[0] == Status.BAD_MESSAGE


async def test_the_count_of_objects(tmp_path: Path) -> None:
    async with target(tmp_path) as port, calling(port) as client:
        for column in range(7):
            assert await client.write(0, b"x", ObjectKey(9, column)) == OK
    async with target(tmp_path) as port, calling(port) as client:
        with trio.fail_after(20):
            while not (await client.call(StatusCall))[1]["objects_counted"]:
                await trio.testing.wait_all_tasks_blocked()
        assert (await client.call(TargetStat))[1][2] == 7


async def test_ping(port: int) -> None:
    conn = await dial(f"127.0.0.1:{port}", Hello(1, CLUSTER, Role.CLIENT, "c", bytes(16), 0, "main"))
    conn.send(Pong(1, True))
    conn.send(Ping(77))
    with trio.fail_after(10):
        assert await conn.receive() == (Pong(77, True), b"")
    conn.close()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"role": Role.REPLICA, "name": "1"}, "target 1 hosts no witness"),
        ({"cluster": b"another cluster!"}, "cluster"),
        ({"version": 2}, "protocol version 2"),
    ],
)
async def test_refused(port: int, changes: dict[str, Any], why: str) -> None:
    hello = dataclasses.replace(Hello(1, CLUSTER, Role.CLIENT, "c", bytes(16), 0, "main"), **changes)
    with pytest.raises(ConnectionLost, match=why):
        await dial(f"127.0.0.1:{port}", hello)
    async with calling(port) as client:
        assert await client.write(0, b"x") == OK


@pytest.mark.parametrize("name", ["²", "1" * 250, "x", "-1"])
async def test_a_target_that_is_none(port: int, name: str) -> None:
    """str.isdigit says yes to some of these, and int no: whoever says so must not end the daemon."""
    conn = await dial(f"127.0.0.1:{port}", Hello(1, CLUSTER, Role.TARGET, name, bytes(16), 0, "main"))
    conn.close()
    async with calling(port) as client:
        assert await client.write(0, b"x") == OK


async def test_what_somebody_else_has_put_among_the_objects(tmp_path: Path) -> None:
    """It is no object, and whoever asks for a list of them does not end the daemon by it."""
    async with target(tmp_path) as port, calling(port) as client:
        assert await client.write(0, b"x") == OK
        (made,) = (tmp_path / "t1" / "objects").glob("*/*")
        for name in ("README", ".made.swp", made.name + ".bak", "1.2"):
            (made.parent / name).touch()
        async with calling(port, Role.ADMIN) as admin:
            status, _, listed = await admin.call(ObjectList, 0, int(made.parent.name, 16), 1)
        ino, column = (int(part, 16) for part in made.name.split("."))
        assert (status, unpack_untrusted(listed)) == (OK, ((ino, column, 1),))


async def test_stop_and_start(tmp_path: Path) -> None:
    async with target(tmp_path) as port, calling(port) as client:
        assert await client.write(0, b"0123456789") == OK
        assert (await client.call(ObjectTruncate, KEY, 1, 1, ((1, 5),)))[0] == OK
        first = client.conn.hello
    async with target(tmp_path) as port, calling(port) as client:
        assert client.conn.hello == first, "same disk, nothing lost: same uuid, same incarnation"
        assert await client.read() == b"01234"
        assert await client.write(5, b"x", known=((1, 5),)) == OK
        assert await client.read() == b"01234x"


async def test_a_stop_syncs_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = GatedDisk(monkeypatch, "fdatasync")
    gate.open()
    async with target(tmp_path) as port, calling(port) as client:
        assert await client.write(0, b"x") == OK
        assert gate.begun == []
    assert gate.begun == ["fdatasync"]
    assert "clean = true" in (tmp_path / "t1" / "starts").read_text()


async def test_a_stop_with_operations_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in a thread is done before the objects are closed."""
    gate = GatedDisk(monkeypatch, "fdatasync")
    async with trio.open_nursery() as nursery:
        port = await nursery.start(serve, config_of(tmp_path), 1)
        async with calling(port, Role.MDS, "1") as keeper:
            await keeper.beat((1, 1, ((1, "serving"),)))
        conn = await dial(f"127.0.0.1:{port}", Hello(1, CLUSTER, Role.CLIENT, "c", CLIENT, 0, "main"))
        token = token_for(KEY.ino, chains=(1,))
        conn.send(ObjectWrite(1, KEY, 1, 1, (), 0, token), b"x")
        conn.send(ObjectSync(2, KEY, 1, 1, token))
        conn.send(ObjectSync(3, KEY, 1, 1, token))
        await gate.reached()
        nursery.cancel_scope.cancel()
        gate.open()
    conn.close()
    Store.open(tmp_path / "t1", CLUSTER, 1).close()


async def test_a_wrong_disk_is_refused(tmp_path: Path) -> None:
    Store.open(tmp_path / "t1", CLUSTER, 2).close()
    with pytest.raises(StoreRefused, match="is target 2, and was to be served as target 1"):
        await serve(config_of(tmp_path), 1)
    config = config_of(tmp_path, f"127.0.0.1:{free_port()}")
    write_config(config)
    command = [sys.executable, "-c", PROGRAM, str(config.path)]
    run = await trio.run_process(command, capture_stderr=True, check=False)
    assert run.returncode == 1
    assert b"target 1 cannot start: " in run.stderr
    assert b"Traceback" not in run.stderr, "one line tells the operator all there is"


def free_port() -> int:
    listener = Listener("127.0.0.1:0")
    listener.close()
    return listener.port


PROGRAM = """
import logging, sys
logging.basicConfig(level=logging.INFO, stream=sys.stderr)
from daemon.config import load
from ossd.serve import main
sys.exit(main(load(sys.argv[1]), 1))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signals(tmp_path: Path, number: signal.Signals) -> None:
    """A process of its own: it serves, is told to stop, and exits with 0 and everything on disk."""
    config = config_of(tmp_path, "127.0.0.1:2")
    write_config(config)
    program = PROGRAM.replace("from ossd.serve import main", _ANY_PORT)
    async with trio.open_nursery() as nursery:
        run = partial(trio.run_process, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False)
        process = await nursery.start(run, [sys.executable, "-c", program, str(config.path)])
        with trio.fail_after(30):
            line = b""
            while b"\n" not in line:
                line += await process.stdout.receive_some(64)
            async with calling(int(line)) as client, calling(int(line), Role.MDS, "1") as keeper:
                await keeper.beat((1, 1, ((1, "serving"),)))
                assert await client.write(0, b"x") == OK
                process.send_signal(number)
                assert await process.wait() == 0
    assert "clean = true" in (tmp_path / "t1" / "starts").read_text()
    store = Store.open(tmp_path / "t1", CLUSTER, 1)
    file = store.fetch((5, 0), create=False)
    assert file is not None
    assert store.read(file, 0, 10, ()) == b"x"
    store.release(file)
    store.close()


_ANY_PORT = """
import ossd.serve
from wire.peer import Listener
class Anywhere(Listener):
    def __init__(self, address):
        super().__init__("127.0.0.1:0")
        print(self.port, flush=True)
ossd.serve.Listener = Anywhere
from ossd.serve import main
"""

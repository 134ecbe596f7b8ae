"""A target in this process over real loopback sockets, and who talks to it: clients, replicas, the keeper."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from daemon.config import ClusterConfig, Config, ReplicaConfig, TargetConfig
from ossd import target as target_module
from ossd.serve import serve
from ossd.store import Buffer, Disk
from wire.capability import ALL_FILES, DELETE, READ, TRUNCATE, WRITE, sign
from wire.codec import pack, unpack_untrusted
from wire.errors import OK
from wire.messages import (
    Answer,
    Hello,
    ObjectDelete,
    ObjectKey,
    ObjectRead,
    ObjectSync,
    ObjectTruncate,
    ObjectWrite,
    Role,
)
from wire.peer import Connection, ConnectionLost, dial
from wire.storage import Beat, BeatSaid

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

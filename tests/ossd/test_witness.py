"""The witness in a target's process: what it answers, and when."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from ossd.witness import WitnessHost
from wire.group import Prepare, Promise, Stored, View, Views
from wire.messages import Hello, Ping, Pong, Role
from wire.peer import ConnectionLost

LOW, HIGH = (1, 1, 1), (1, 2, 1)
CONFIG: Any = SimpleNamespace(
    replicas=[SimpleNamespace(id=1, joins=False), SimpleNamespace(id=2, joins=False)],
    voters=[SimpleNamespace(id=9, witness=True)],
    cluster=SimpleNamespace(id=bytes(16)),
)


class FakeConnection:
    def __init__(self) -> None:
        self._send, self.sent = trio.open_memory_channel[Any](100)
        self.brings: list[Any] = []

    async def receive(self) -> tuple[Any, bytes]:
        await trio.lowlevel.checkpoint()
        if not self.brings:
            raise ConnectionLost("all is said")
        return self.brings.pop(0), b""

    def send(self, message: Any) -> None:
        self._send.send_nowait(message)


async def test_what_needs_no_record_is_answered_all_the_same(tmp_path: Path) -> None:
    """1. The witness promises a high ballot. 2. A proposer with a lower one asks: it has to be told the higher one,
    though there is nothing to write, or it would try again and again from below. 3. A view that is known already is
    confirmed."""
    host = WitnessHost(CONFIG, 9, tmp_path)
    host.start()
    conn: Any = FakeConnection()
    host._conns[1] = conn
    known = Views(((View.TAG, 0, (1, 2), (1, 2, 9), -1, (), 0, ()),))  # type: ignore[attr-defined]
    try:
        for question, answer in (
            (Prepare(1, HIGH), Promise(1, HIGH, ())),
            (Prepare(1, LOW), Promise(1, HIGH, ())),
            (known, Stored(0)),
        ):
            host._step(1, question)
            assert await conn.sent.receive() == answer
    finally:
        host.close()


async def test_a_ping_tells_that_the_connection_works(tmp_path: Path) -> None:
    host = WitnessHost(CONFIG, 9, tmp_path)
    conn: Any = FakeConnection()
    conn.brings.append(Ping(7))
    hello = Hello(1, bytes(16), Role.REPLICA, "1", b"a replica's disk", 1, "control")
    host.start()
    try:
        with pytest.raises(ConnectionLost):
            await host.converse(conn, hello)
        assert conn.sent.receive_nowait() == Pong(7, True)
    finally:
        host.close()

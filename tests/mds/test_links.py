"""Connections between replicas: what is dialled anew, and when."""

from __future__ import annotations

import contextlib
from collections import deque
from pathlib import Path
from typing import Any

import pytest
import trio

from daemon.acquaintances import Acquaintances
from daemon.journal import Journal
from mds.links import WITNESS_CHANNELS, Links
from vsync.records import Decided
from vsync.view import genesis
from wire.group import CHANNELS, Fetch, Seal
from wire.ids import PROTOCOL_VERSION
from wire.messages import Hello, Pong, Role, Welcome
from wire.peer import Connection, ConnectionLost, Listener

CLUSTER = b"sixteen bytes id"


ODD = ("", "0", "256", "-1", "x", "²", "1" * 5000)
"""What no replica is called. str.isdigit says yes to some of it, and int says no."""


class End:
    """One replica's links, and what happens to them."""

    def __init__(self, directory: Path, me: int) -> None:
        self.me = me
        self.journal = Journal(directory / str(me), CLUSTER, me, [Decided(genesis((1, 2), ()))])
        self.looks: deque[bool] = deque()
        """What it finds whenever it looks whether both hear each other; nothing: they do."""
        self.happened: list[str] = []
        self.came: list[Any] = []
        self.changed = trio.Event()
        self.links = Links(
            me,
            self.journal.uuid,
            self.journal.durable.incarnation,
            CLUSTER,
            met=Acquaintances(self.journal),
            received=lambda _peer, message, _bulk: self._note(message=message),
            up=lambda _peer: self._note("up"),
            down=lambda _peer: self._note("down"),
            works=self._works,
        )

    def _works(self, _peer: int) -> bool:
        found = self.looks.popleft() if self.looks else True
        self._note("")
        return found

    def _note(self, what: str = "", message: Any = None) -> None:
        if what:
            self.happened.append(what)
        elif message is not None:
            self.came.append(message)
        self.changed.set()
        self.changed = trio.Event()

    async def until(self, happened: list[str], linked: int) -> None:
        while self.happened != happened or sum(1 for c in CHANNELS if self.conn(c)) != linked:
            with trio.move_on_after(0.01):  # the data and the bulk connection tell nobody when they stand
                await self.changed.wait()

    def conn(self, channel: str) -> Any:
        return self.links._conns.get((3 - self.me, channel))

    def welcome(self, _hello: Hello) -> Welcome:
        incarnation = self.journal.durable.incarnation
        return Welcome(PROTOCOL_VERSION, Role.REPLICA, str(self.me), self.journal.uuid, incarnation)


async def test_a_silent_link_is_dialled_anew_on_all_channels(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mds.links.LOOK_S", 0.01)
    one, two = End(tmp_path, 1), End(tmp_path, 2)
    listener = Listener("127.0.0.1:0")
    nursery.start_soon(
        listener.serve, nursery, CLUSTER, lambda hello: one.links.judge(hello, lambda _: None), one.welcome,
        one.links.accepted,
    )  # fmt: skip
    address = f"127.0.0.1:{listener.port}"
    with trio.fail_after(60):
        for number, channel in enumerate(CHANNELS, 1):
            assert two.happened == one.happened == [], "a peer is up when everything that it is sent arrives"
            nursery.start_soon(two.links.keep, 1, address, channel)
            await two.until(["up"] if number == 3 else [], number)
            await one.until(["up"] if number == 3 else [], number)
        before = [two.conn(channel) for channel in CHANNELS]
        two.looks.extend((True, False, True, True))
        while two.looks:
            await two.changed.wait()
        after = [two.conn(channel) for channel in CHANNELS]
        assert after == before, "a link that works is left alone, and one look that finds it silent is but a moment"
        two.looks.extend((False, False))
        await two.until(["up", "down", "up"], 3)
        assert not two.looks
        assert all(two.conn(channel) is not old for channel, old in zip(CHANNELS, before, strict=True))
        while one.happened[-1] != "up" or not one.came:  # the listener's end may learn of the new one first
            two.links.send(1, Seal(1, "over the new one", ()))
            two.links.send(1, Fetch(1, ()))
            with trio.move_on_after(0.1):
                await one.changed.wait()
    nursery.cancel_scope.cancel()
    one.journal.close()
    two.journal.close()


async def test_a_silent_witness_is_dialled_anew(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cut comes and goes, and the connection from before it would stay silent for as long again."""
    monkeypatch.setattr("mds.links.WITNESS_LOOK_S", 0.01)
    end, witness = End(tmp_path, 1), End(tmp_path, 2)
    pings: list[list[int]] = []
    silent = False

    async def converse(conn: Connection, _hello: Hello) -> None:
        mine: list[int] = []
        pings.append(mine)
        with contextlib.suppress(ConnectionLost):
            while True:
                message, _ = await conn.receive()
                mine.append(message.number)
                if not silent:
                    conn.send(Pong(message.number, True))
                end._note()

    listener = Listener("127.0.0.1:0")
    nursery.start_soon(listener.serve, nursery, CLUSTER, lambda _: None, witness.welcome, converse)
    nursery.start_soon(end.links.keep, 2, f"127.0.0.1:{listener.port}", "control", WITNESS_CHANNELS)
    with trio.fail_after(60):
        while not pings or len(pings[0]) < 5:
            await end.changed.wait()
        assert end.happened == ["up"] and len(pings) == 1
        silent = True
        while len(pings) < 2:
            await end.changed.wait()
        silent = False
        await end.until(["up", "down", "up"], 1)
        assert end.came == [], "pongs are the link's own business"
    nursery.cancel_scope.cancel()
    end.journal.close()
    witness.journal.close()


@pytest.mark.parametrize("name", ODD)
def test_whoever_has_no_number_is_no_replica(tmp_path: Path, name: str) -> None:
    end = End(tmp_path, 1)
    hello = Hello(PROTOCOL_VERSION, CLUSTER, Role.REPLICA, name, bytes(16), 1, "control")
    assert "does not belong" in (end.links.judge(hello, lambda replica: None) or "")
    assert "does not know" in (end.links.judge_watchdog(hello) or "")
    end.journal.close()

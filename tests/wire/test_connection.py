"""One connection: frames of every size both ways, peers that do not read, closing while others wait."""

from __future__ import annotations

import random
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
import trio.testing

from wire import peer
from wire.codec import encode, pack
from wire.errors import BadMessage, WireError
from wire.framing import BULK_MAX, META_MAX, header
from wire.messages import Answer, Ping, Pong
from wire.peer import Connection, ConnectionLost


@pytest.fixture
async def pair() -> AsyncIterator[tuple[Connection, Connection]]:
    a, b = socket.socketpair()
    for sock in (a, b):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
    ends = Connection(a, "a"), Connection(b, "b")
    yield ends
    for end in ends:
        end.close()


def data(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


SIZES = [0, 1, 7, 8, 4096, peer.RECV_SIZE - 20, peer.RECV_SIZE, peer.RECV_SIZE + 1, 1 << 20, BULK_MAX]


async def test_frames_of_all_sizes_both_ways(pair: tuple[Connection, Connection], nursery: trio.Nursery) -> None:
    """Both ends send everything before either has read: the writers feed the sockets meanwhile."""
    for end in pair:
        nursery.start_soon(end.run_writer)
        for number, size in enumerate(SIZES):
            end.send(Ping(number), data(size, number))
    with trio.fail_after(30):
        for end in pair:
            for number, size in enumerate(SIZES):
                msg, bulk = await end.receive()
                assert msg == Ping(number)
                assert len(bulk) == size
                assert bytes(bulk) == data(size, number)
    nursery.cancel_scope.cancel()


async def test_kinds_of_bulk(pair: tuple[Connection, Connection], nursery: trio.Nursery) -> None:
    a, b = pair
    nursery.start_soon(a.run_writer)
    whole = data(300_000)
    kinds: list[Any] = [
        whole,
        bytearray(whole),
        memoryview(whole),
        (whole[:100], bytearray(whole[100:200_000]), b"", memoryview(whole)[200_000:]),
        (),
        (b"",),
    ]
    for kind in kinds:
        a.send(Ping(1), kind)
    a.send_meta(encode(Ping(2)))
    for kind in kinds:
        _, bulk = await b.receive()
        assert bytes(bulk) == (whole if len(kind) > 1 else b"")
    assert (await b.receive())[0] == Ping(2)
    nursery.cancel_scope.cancel()


async def test_the_largest_message(pair: tuple[Connection, Connection], nursery: trio.Nursery) -> None:
    a, b = pair
    nursery.start_soon(a.run_writer)
    body = data(META_MAX - 64)
    a.send(Answer(1, 0, body), b"x")
    assert await b.receive() == (Answer(1, 0, body), b"x")
    with pytest.raises(AssertionError, match="allowed"):
        a.send(Answer(1, 0, data(META_MAX)))
    nursery.cancel_scope.cancel()


async def test_in_single_bytes(pair: tuple[Connection, Connection]) -> None:
    """The network may cut anywhere."""
    a, b = pair
    got: list[Any] = []

    async def reader() -> None:
        for _ in range(2):
            got.append(await b.receive())

    meta = encode(Ping(300))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader)
        for byte in (header(len(meta), 3) + meta + b"xyz") * 2:
            a._sock.send(bytes((byte,)))
            await trio.testing.wait_all_tasks_blocked()
    assert got == [(Ping(300), b"xyz")] * 2


async def test_receive_may_be_cancelled_anywhere(pair: tuple[Connection, Connection]) -> None:
    """A client that gives up waiting and asks again later must not find itself in the middle of a frame."""
    a, b = pair
    meta = encode(Answer(1, 0, data(100)))
    frame = header(len(meta), 50) + meta + data(50)
    got = []
    for byte in frame * 2:
        with trio.move_on_after(0):
            got.append(await b.receive())
        a._sock.send(bytes((byte,)))
    with trio.fail_after(5):
        got.append(await b.receive())
    assert got == [(Answer(1, 0, data(100)), data(50))] * 2


async def test_a_bad_message_is_skipped_with_its_bulk(pair: tuple[Connection, Connection]) -> None:
    a, b = pair
    a.send_meta(pack((14, -1)), b"rest of it")
    a.send_meta(pack((14, "x")))
    a.send(Ping(1))
    for _ in range(2):
        with pytest.raises(BadMessage):
            await b.receive()
    assert await b.receive() == (Ping(1), b"")


async def test_oversize(pair: tuple[Connection, Connection]) -> None:
    a, b = pair
    a._sock.send((META_MAX + 1).to_bytes(4, "big") + bytes(4))
    with pytest.raises(WireError, match="allowed"):
        await b.receive()


# --- peers that do not read -----------------------------------------------------------------------


async def test_a_peer_that_never_reads_is_cut_off(
    pair: tuple[Connection, Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    """OUTBOUND_MAX bounds what one slow peer can cost."""
    monkeypatch.setattr(peer, "OUTBOUND_MAX", 1 << 20)
    a, _ = pair
    for _ in range(16):
        a.send(Ping(0), bytes(65536))
    with pytest.raises(ConnectionLost, match="the peer does not read"):
        a.send(Ping(1), bytes(1 << 20))
    assert a.closed is not None
    assert a.outbound_bytes == 0
    with pytest.raises(ConnectionLost, match="the peer does not read"):
        a.send(Ping(1))
    with pytest.raises(ConnectionLost, match="the peer does not read"):
        await a.receive()


async def test_drain_waits_for_a_slow_reader(
    pair: tuple[Connection, Connection], nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer, "OUTBOUND_HIGH", 1 << 20)
    a, b = pair
    nursery.start_soon(a.run_writer)
    sent = 0

    async def writer() -> None:
        nonlocal sent
        for number in range(64):
            await a.drain()
            a.send(Ping(number), bytes(1 << 18))
            sent += 1
            assert a.outbound_bytes <= (1 << 20) + (1 << 18) + 100

    async with trio.open_nursery() as writing:
        writing.start_soon(writer)
        writing.start_soon(writer)  # two may wait at a time
        await trio.testing.wait_all_tasks_blocked()
        assert sent < 10, "the writers wait: nobody reads"
        for _ in range(128):
            await b.receive()
    assert sent == 128
    nursery.cancel_scope.cancel()


# --- closing --------------------------------------------------------------------------------------


async def test_close_wakes_everybody(
    pair: tuple[Connection, Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits in receive, drain or run_writer is told, none waits for ever."""
    monkeypatch.setattr(peer, "OUTBOUND_HIGH", 1000)
    a, _ = pair
    woken: list[str] = []

    async def receiver() -> None:
        with pytest.raises(ConnectionLost, match="enough"):
            await a.receive()
        woken.append("receive")

    async def drainer() -> None:
        await a.drain()
        woken.append("drain")

    async def writer() -> None:
        await a.run_writer()
        woken.append("writer")

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receiver)
            nursery.start_soon(writer)
            await trio.testing.wait_all_tasks_blocked()
            a.send(Ping(1), bytes(1 << 20))
            nursery.start_soon(drainer)
            await trio.testing.wait_all_tasks_blocked()
            assert woken == []
            a.close("enough")
    assert sorted(woken) == ["drain", "receive", "writer"]
    a.close("again: harmless")
    assert a.closed == "enough"


async def test_an_idle_writer_ends_at_close(pair: tuple[Connection, Connection]) -> None:
    a, _ = pair
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.run_writer)
            await trio.testing.wait_all_tasks_blocked()
            a.close()


async def test_the_other_end_closes(pair: tuple[Connection, Connection], nursery: trio.Nursery) -> None:
    """What was sent before arrives first; then the reason is known to senders, too."""
    a, b = pair
    a.send(Pong(1, True))
    a.close()
    assert await b.receive() == (Pong(1, True), b"")
    with pytest.raises(ConnectionLost, match="closed by the peer"):
        await b.receive()
    with pytest.raises(ConnectionLost, match="closed by the peer"):
        b.send(Ping(1))


async def test_sending_to_who_is_gone(pair: tuple[Connection, Connection]) -> None:
    a, b = pair
    b._sock.close()
    b.closed = "gone without a word"
    with pytest.raises(ConnectionLost, match="send:"):
        a.send(Ping(1))
    assert a.closed is not None
    assert repr(a) == "<Connection a>"


async def test_a_writer_that_finds_the_peer_gone(
    pair: tuple[Connection, Connection],
) -> None:
    """The socket breaks while data wait to be sent: the writer notes it, drain ends, send says why."""
    a, b = pair
    a.send(Ping(1), bytes(8 << 20))
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.run_writer)
            nursery.start_soon(a.drain)
            await trio.testing.wait_all_tasks_blocked()
            b._sock.close()
            b.closed = "gone without a word"
    with pytest.raises(ConnectionLost, match="send:"):
        a.send(Ping(2))


async def test_a_busy_connection_lets_others_run(pair: tuple[Connection, Connection], nursery: trio.Nursery) -> None:
    """A peer that never stops sending does not keep the loop for itself."""
    a, b = pair
    nursery.start_soon(a.run_writer)
    for _ in range(16):
        a.send(Ping(1), bytes(1 << 20))
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    nursery.start_soon(other)
    for _ in range(16):
        await b.receive()
    assert turns > 16
    nursery.cancel_scope.cancel()

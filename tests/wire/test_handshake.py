"""The handshake: who is refused, that the log says why, and that the listener serves the next one."""

from __future__ import annotations

import dataclasses
import logging
import socket
from collections.abc import AsyncIterator, Callable

import pytest
import trio
import trio.testing

from wire import peer
from wire.codec import encode
from wire.errors import WireError
from wire.framing import header
from wire.messages import Hello, Ping, Pong, Refused, Role, Welcome
from wire.peer import Connection, ConnectionLost, Listener, dial

CLUSTER = b"0123456789abcdef"
HELLO = Hello(1, CLUSTER, Role.CLIENT, "host:1:/mnt", bytes(16), 0, "main")
WELCOME = Welcome(1, Role.TARGET, "7", b"u" * 16, 3)


def judge(hello: Hello) -> str | None:
    return None if hello.role == Role.CLIENT else f"role {hello.role} has no business here"


async def echo(conn: Connection, hello: Hello) -> None:
    """Answers pings, until the connection ends."""
    while True:
        msg, bulk = await conn.receive()
        conn.send(Pong(msg.number, True), bulk)


@pytest.fixture
async def address(nursery: trio.Nursery) -> AsyncIterator[str]:
    listener = Listener("127.0.0.1:0")
    nursery.start_soon(listener.serve, nursery, CLUSTER, judge, lambda hello: WELCOME, echo)
    yield f"127.0.0.1:{listener.port}"
    listener.close()


async def raw(address: str) -> Connection:
    """A connection that has not shaken hands."""
    host, port = peer.split_address(address)
    stream = await trio.open_tcp_stream(host, port)
    return Connection(socket.socket(fileno=stream.socket.detach()), "test")


async def assert_serving(address: str) -> None:
    with trio.fail_after(10):
        conn = await dial(address, HELLO)
        assert conn.hello == WELCOME
        conn.send(Ping(5), b"data")
        assert await conn.receive() == (Pong(5, True), b"data")
        conn.close()


async def test_welcome(address: str) -> None:
    await assert_serving(address)
    await assert_serving(address)


@pytest.mark.parametrize(
    ("hello", "why"),
    [
        (dataclasses.replace(HELLO, version=2), "protocol version 2, this is 1"),
        (dataclasses.replace(HELLO, version=0), "protocol version 0, this is 1"),
        (dataclasses.replace(HELLO, cluster=b"another cluster!"), f"cluster {b'another cluster!'.hex()}, this is"),
        (dataclasses.replace(HELLO, role=Role.REPLICA), "role replica has no business here"),
    ],
)
async def test_refused(address: str, caplog: pytest.LogCaptureFixture, hello: Hello, why: str) -> None:
    """A process of another cluster or release, or one that took a wrong address from a configuration."""
    with pytest.raises(ConnectionLost, match=why), trio.fail_after(10):
        await dial(address, hello)
    assert [r.levelno for r in caplog.records if why in r.getMessage()] == [logging.WARNING]
    await assert_serving(address)


def hello_frame(**changes: object) -> bytes:
    meta = encode(dataclasses.replace(HELLO, **changes))  # type: ignore[arg-type]
    return header(len(meta), 0) + meta


def framed(meta: bytes) -> bytes:
    return header(len(meta), 0) + meta


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "frame announces a message of"),
        (bytes(64), "frame without a message"),
        (b"\xff" * 64, "frame announces a message of"),
        (framed(b"\xc1" * 10), "not msgpack"),
        (framed(b"\x93\x01\x02\x03"), "Hello: 2 fields, 7 expected"),
        (framed(encode(Ping(1))), "handshake begins with Ping"),
        (hello_frame(role="king"), "unknown role 'king'"),
        (hello_frame(cluster=b"short"), "cluster id is not 16 bytes"),
        (hello_frame(uuid=b"short"), "uuid is not 16 bytes"),
        (hello_frame(channel="telepathy"), "unknown channel 'telepathy'"),
        (hello_frame(name="x" * 300), "name over 255"),
        ((4097).to_bytes(4, "big") + bytes(4), "4096 allowed"),
        ((10).to_bytes(4, "big") + (1).to_bytes(4, "big"), "1 bytes of data, 0 allowed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_garbage(address: str, caplog: pytest.LogCaptureFixture, data: bytes, why: str) -> None:
    """A port scanner, a browser, a program with another idea of the protocol: told why, logged, cut off."""
    conn = await raw(address)
    with trio.fail_after(10):
        conn._sock.send(data)
        try:
            answer, _ = await conn.receive()
        except ConnectionLost:
            answer = None  # what we sent beyond what was read makes the kernel reset the connection
        assert answer is None or (isinstance(answer, Refused) and why in answer.reason)
        with pytest.raises(ConnectionLost):
            await conn.receive()
    conn.close()
    assert [r.levelno for r in caplog.records if why in r.getMessage()] == [logging.WARNING]
    await assert_serving(address)


async def test_gone_before_it_was_done(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A load balancer's health check connects and leaves."""
    caplog.set_level(logging.INFO)
    conn = await raw(address)
    conn._sock.send(hello_frame()[:20])
    conn.close()
    await _until(lambda: "closed by the peer before the handshake was done" in caplog.text)
    await assert_serving(address)


async def test_silence(address: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who connects and says nothing is let go after HANDSHAKE_TIMEOUT_S."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(peer, "HANDSHAKE_TIMEOUT_S", 0.05)
    conn = await raw(address)
    with trio.fail_after(10), pytest.raises(ConnectionLost, match="closed by the peer"):
        await conn.receive()
    conn.close()
    assert "silent before the handshake was done" in caplog.text
    monkeypatch.undo()
    await assert_serving(address)


async def test_garbage_after_the_handshake(address: str, caplog: pytest.LogCaptureFixture) -> None:
    """The limits are wider then, and the reason is logged all the same."""
    conn = await dial(address, HELLO)
    conn._sock.send(b"\xff" * 16)
    with trio.fail_after(10), pytest.raises(ConnectionLost):
        await conn.receive()
    conn.close()
    assert "connection dropped: from 127.0.0.1" in caplog.text
    assert "frame announces a message of 4294967295 bytes" in caplog.text
    await assert_serving(address)


async def test_many_at_a_time(address: str, nursery: trio.Nursery) -> None:
    """Some shake hands, some are silent, some talk nonsense: they do not disturb each other."""
    silent = [await raw(address) for _ in range(20)]
    for conn in silent[::2]:
        conn._sock.send(bytes(8))
    async with trio.open_nursery() as several:
        for _ in range(20):
            several.start_soon(assert_serving, address)
    for conn in silent:
        conn.close()


# --- the side that dials --------------------------------------------------------------------------


async def answering(nursery: trio.Nursery, data: bytes | None) -> str:
    """The address of a listener that answers each connection with *data* (None: nothing, and stays)."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    listener.setblocking(False)

    async def run() -> None:
        with listener:
            await trio.lowlevel.wait_readable(listener)
            conn, _ = listener.accept()
            with conn:
                if data is None:
                    await trio.sleep_forever()
                await trio.lowlevel.wait_readable(conn)
                conn.recv(8192)
                conn.sendall(data or b"")

    nursery.start_soon(run)
    return f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "closed by the peer"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "frame announces a message of"),
        (framed(encode(Ping(1))), "answered the handshake with Ping"),
        (framed(encode(dataclasses.replace(WELCOME, version=9))), "answered the handshake with Welcome"),
        (framed(encode(dataclasses.replace(WELCOME, incarnation=2**63))), "incarnation"),
        (framed(encode(Refused("go away"))), "refused: go away"),
    ],
)
async def test_dialling_something_else(nursery: trio.Nursery, data: bytes, why: str) -> None:
    with trio.fail_after(10), pytest.raises(ConnectionLost, match=why):
        await dial(await answering(nursery, data), HELLO)


async def test_dialling_who_is_silent(nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    address = await answering(nursery, None)
    monkeypatch.setattr(peer, "HANDSHAKE_TIMEOUT_S", 0.05)
    with trio.fail_after(10), pytest.raises(ConnectionLost, match="TooSlowError"):
        await dial(address, HELLO)
    nursery.cancel_scope.cancel()


async def test_dialling_nobody() -> None:
    listener = Listener("127.0.0.1:0")
    address = f"127.0.0.1:{listener.port}"
    listener.close()
    with trio.fail_after(10), pytest.raises(ConnectionLost, match=address):
        await dial(address, HELLO)


@pytest.mark.parametrize("host", ["a..b", "a" * 250, "≠.", "\udcff"])
async def test_dialling_what_cannot_be_a_host(host: str) -> None:
    """An address comes from an administrator by way of the state: it must not end whoever dials it."""
    with pytest.raises(ConnectionLost, match=":7001"):
        await dial(f"{host}:7001", HELLO)


async def test_an_address_that_is_taken() -> None:
    listener = Listener("127.0.0.1:0")
    with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{listener.port}"):
        Listener(f"127.0.0.1:{listener.port}")
    listener.close()


@pytest.mark.parametrize("address", ["", "host", ":1", "host:", "host:x", "host:0", "host:65536", "host:-1", "host:²"])
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(ValueError, match="is not HOST:PORT"):
        peer.split_address(address)


def test_addresses() -> None:
    assert peer.split_address("a.b:1") == ("a.b", 1)
    assert peer.split_address("[::1]:7001") == ("::1", 7001)


async def _until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(10):
        while not condition():
            await trio.testing.wait_all_tasks_blocked(0.001)


def test_a_wire_error_is_for_people() -> None:
    assert str(WireError("what and where")) == "what and where"

"""Bytes that are not our protocol, from a raw socket: refused with a logged reason, and the daemon goes on."""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio

from admin.ask import status_of
from tests.live import Live
from wire.codec import decode, encode, pack
from wire.framing import BULK_MAX, HEADER, META_MAX
from wire.ids import PROTOCOL_VERSION
from wire.messages import Hello, QueryCall, Refused, Role, StatusCall, Welcome

pytestmark = pytest.mark.system

DAEMONS = ("mds-1", "mds-3", "ossd-1", "ossd-3")


@contextmanager
def raw(live: Live, name: str) -> Iterator[socket.socket]:
    host, _, port = live.cluster.daemon(name).address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=15) as sock:
        yield sock


def frame(meta: bytes, bulk: bytes = b"") -> bytes:
    return HEADER.pack(len(meta), len(bulk)) + meta + bulk


def hello(live: Live, version: int = PROTOCOL_VERSION, cluster: bytes | None = None, role: str = Role.ADMIN) -> bytes:
    mine = cluster if cluster is not None else live.cluster.config.cluster.id
    # Packed by hand where a Hello of ours would not allow the value.
    return pack((Hello.TAG, version, mine, role, "raw", bytes(16), 0, "main"))  # type: ignore[attr-defined]


def everything(sock: socket.socket) -> bytes:
    """What the daemon sends until it closes; it must close, not go silent."""
    data = b""
    while True:
        try:
            chunk = sock.recv(65536)
        except ConnectionResetError:
            return data  # closed with bytes of ours unread: as good as an end
        if not chunk:
            return data
        data += chunk


def answered(data: bytes) -> object:
    meta, _ = HEADER.unpack_from(data)
    return decode(data[HEADER.size : HEADER.size + meta])


def still_serves(live: Live, name: str, pid: int) -> None:
    who = live.cluster.identity(name)
    assert who is not None
    assert who.pid == pid, "the very same process"
    answers(live, name)


def answers(live: Live, name: str) -> None:
    """The daemon answers a status call: it is alive and has not lost its wits. Raises AskError."""
    trio.run(status_of, live.cluster.config, live.cluster.daemon(name).address, 10.0)


@pytest.fixture(params=DAEMONS)
def daemon(request: pytest.FixtureRequest, cluster: Live) -> Iterator[str]:
    """Each daemon in turn; afterwards it must be the same process and answer."""
    name: str = request.param
    who = cluster.cluster.identity(name)
    assert who is not None
    yield name
    still_serves(cluster, name, who.pid)


def logged(live: Live, name: str, text: str) -> bool:
    return text in live.cluster.log_file(name).read_text(encoding="utf-8", errors="replace")


@pytest.mark.parametrize(
    ("what", "data", "reason"),
    [
        ("an HTTP request", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "frame announces"),
        ("zeros", bytes(64), "frame without a message"),
        ("an oversized message", HEADER.pack(META_MAX, 0), f"frame announces a message of {META_MAX} bytes"),
        ("the largest message", HEADER.pack(2**32 - 1, 2**32 - 1), f"message of {2**32 - 1} bytes"),
        ("bulk before the handshake", HEADER.pack(10, BULK_MAX), f"frame announces {BULK_MAX} bytes of data"),
        ("no msgpack", frame(b"\xc1\xc1\xc1"), "not msgpack"),
        ("a number", frame(pack(7)), "no leading tag"),
        ("an unknown tag", frame(pack((65000, 1))), "unknown message tag 65000"),
        ("too few fields", frame(pack((1, 2))), "fields"),
        ("a message that is no Hello", frame(encode(StatusCall(1))), "handshake begins with StatusCall"),
        ("nesting without end", frame(b"\x91" * 4000), "not msgpack"),
    ],
)
def test_garbage_is_refused_and_logged(cluster: Live, daemon: str, what: str, data: bytes, reason: str) -> None:
    with raw(cluster, daemon) as sock:
        sock.sendall(data)
        said = everything(sock)
    if said:
        told = answered(said)
        assert isinstance(told, Refused), what
        assert reason in told.reason
    assert logged(cluster, daemon, reason), what


def test_another_version_cluster_or_role_is_refused_with_the_reason(cluster: Live, daemon: str) -> None:
    other = bytes(15) + b"\1"
    for meta, reason in (
        (hello(cluster, version=PROTOCOL_VERSION + 1), f"protocol version {PROTOCOL_VERSION + 1}"),
        (hello(cluster, cluster=other), f"cluster {other.hex()}"),
        (hello(cluster, cluster=b"short"), "cluster id is not 16 bytes"),
        (hello(cluster, role="emperor"), "unknown role 'emperor'"),
    ):
        with raw(cluster, daemon) as sock:
            sock.sendall(frame(meta))
            told = answered(everything(sock))
        assert isinstance(told, Refused)
        assert reason in told.reason
        assert logged(cluster, daemon, reason)


@pytest.mark.parametrize(
    ("what", "data"),
    [
        ("zeros", bytes(64)),
        ("oversize", HEADER.pack(META_MAX + 1, 0)),
        ("oversize bulk", HEADER.pack(10, BULK_MAX + 1)),
        ("no msgpack", frame(b"\xc1")),
        ("unknown tag", frame(pack((65000,)))),
        ("invalid", frame(pack((StatusCall.TAG, -1)))),  # type: ignore[attr-defined]
        ("wrong type", frame(pack((StatusCall.TAG, "one")))),  # type: ignore[attr-defined]
    ],
)
def test_garbage_after_the_handshake_ends_the_connection_at_most(
    cluster: Live, daemon: str, what: str, data: bytes
) -> None:
    """A message that is well-formed but not acceptable may be answered with an error; anything else ends it."""
    with raw(cluster, daemon) as sock:
        sock.sendall(frame(hello(cluster)))
        assert isinstance(answered(sock.recv(4096)), Welcome)
        sock.sendall(data)
        if what not in ("zeros", "oversize", "oversize bulk"):
            sock.shutdown(socket.SHUT_WR)  # so that it ends in this case, too
        everything(sock)


def test_a_query_that_holds_garbage_is_answered_not_executed(cluster: Live) -> None:
    """The frame is fine, the operation in it is not: that client gets an error, or is cut off; the replica goes on."""
    who = cluster.cluster.identity("mds-1")
    assert who is not None
    for op in (b"", b"\xc1", pack((999, 1)), pack((81, 0)), random.Random(3).randbytes(200)):
        with raw(cluster, "mds-1") as sock:
            sock.sendall(frame(hello(cluster, role=Role.CLIENT)))
            assert isinstance(answered(sock.recv(4096)), Welcome)
            sock.sendall(frame(encode(QueryCall(1, op))))
            assert len(sock.recv(4096)) >= 0
    still_serves(cluster, "mds-1", who.pid)


def test_a_connection_that_says_nothing_or_half_a_frame_holds_up_nobody(cluster: Live, daemon: str) -> None:
    with raw(cluster, daemon), raw(cluster, daemon) as half:
        half.sendall(struct.pack("!I", 20))
        answers(cluster, daemon)


def test_random_bytes_in_random_pieces(cluster: Live, daemon: str) -> None:
    source = random.Random(11)
    for _ in range(20):
        with raw(cluster, daemon) as sock:
            if source.random() < 0.5:
                sock.sendall(frame(hello(cluster)))
            try:
                for _ in range(source.randrange(1, 5)):
                    sock.sendall(source.randbytes(source.randrange(1, 3000)))
            except (BrokenPipeError, ConnectionResetError):
                continue  # refused before everything was sent


def test_the_mounts_have_noticed_nothing(cluster: Live) -> None:
    one, two = cluster.mounts["one"], cluster.mounts["two"]
    (one / "still").write_text("here")
    assert (two / "still").read_text() == "here"
    cluster.settled()

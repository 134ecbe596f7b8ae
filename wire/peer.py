"""The trio shell of the wire: one framed connection, dialling, listening, the handshake.

Reads and writes go straight to the non-blocking socket and wait for the kernel only when it says so; on the
request path that is one system call per frame and no task switch.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

import trio

from wire.codec import decode, encode
from wire.errors import WireError
from wire.framing import HANDSHAKE_LIMITS, HEADER, Limits, header, parse_header_untrusted
from wire.ids import PROTOCOL_VERSION, number_untrusted
from wire.messages import Hello, Refused, Welcome

log = logging.getLogger(__name__)

Buffer = bytes | bytearray | memoryview

RECV_SIZE: Final = 64 << 10
"""Bytes asked of the kernel at a time; what a frame has beyond these is received straight into its own buffer."""
OUTBOUND_MAX: Final = 64 << 20
"""Bytes that may wait to be sent on one connection; a peer that lets more pile up is cut off."""
OUTBOUND_HIGH: Final = 4 << 20
"""Senders that can wait (:meth:`Connection.drain`) do so above this."""
HANDSHAKE_TIMEOUT_S: Final = 5.0
KEEPALIVE_IDLE_S: Final = 30
KEEPALIVE_PROBES: Final = 3
"""A connection whose other host is gone is noticed after this much silence and so many probes, 10 s apart; where it
matters sooner than that the two ends ping each other."""
READS_WITHOUT_CHECKPOINT: Final = 16
"""A busy connection lets other tasks run after so many reads in a row."""


class ConnectionLost(Exception):
    """The connection is closed, by the peer, by us, or because it broke; the text says which."""


class Connection:
    """One framed connection over TCP. ``send`` never blocks; ``receive`` is for one task only."""

    def __init__(self, sock: socket.socket, where: str) -> None:
        sock.setblocking(False)
        with contextlib.suppress(OSError):  # not a TCP socket (socketpair in tests): nothing to set
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
        self.where = where
        self.hello: Hello | Welcome | None = None
        self.limits = Limits()
        self.closed: str | None = None
        self._sock = sock
        self._in = b""
        self._at = 0
        # What is known of the frame being received, kept here so that receive() may be cancelled anywhere.
        self._lengths: tuple[int, int] | None = None
        self._meta: Buffer | None = None
        self._part: bytearray | None = None
        self._part_have = 0
        self._out: deque[Buffer] = deque()
        self._out_bytes = 0
        self._writable = trio.Event()
        self._drained = trio.Event()
        self._reads = 0
        self._dry = False

    @property
    def host(self) -> str:
        """The address that the other end connects from, "" when it is gone."""
        try:
            return str(self._sock.getpeername()[0])
        except OSError:
            return ""

    def __repr__(self) -> str:
        return f"<Connection {self.where}>"

    @property
    def outbound_bytes(self) -> int:
        """Bytes accepted by :meth:`send` that the kernel has not taken yet."""
        return self._out_bytes

    # -- sending

    def send(self, msg: Any, bulk: Buffer | tuple[Buffer, ...] = b"") -> None:
        """Queue *msg* with *bulk* and hand the kernel what it takes now. Raises :class:`ConnectionLost`.

        *bulk* is not copied: its bytes must not change afterwards.
        """
        self.send_meta(encode(msg), bulk)

    def send_meta(self, meta: bytes, bulk: Buffer | tuple[Buffer, ...] = b"") -> None:
        """As :meth:`send`, for a message that is encoded already (one encoding, several receivers)."""
        if self.closed is not None:
            raise ConnectionLost(self.closed)
        parts = bulk if type(bulk) is tuple else (bulk,)
        size = sum(map(len, parts))
        head = header(len(meta), size) + meta
        if self._out:
            sent = 0
        else:
            try:
                sent = self._sock.sendmsg((head, *parts)) if size else self._sock.send(head)
            except BlockingIOError:
                sent = 0
            except OSError as exc:
                self._lost(f"send: {exc.strerror}")
                raise ConnectionLost(str(self.closed)) from exc
            if sent == len(head) + size:
                return
        for part in (head, *parts):
            if sent < len(part):
                self._push(memoryview(part)[sent:] if sent else part)
            sent = max(0, sent - len(part))
        if self._out_bytes > OUTBOUND_MAX:
            self._lost(f"{self._out_bytes} bytes unsent: the peer does not read")
            raise ConnectionLost(str(self.closed))
        self._writable.set()

    def _push(self, part: Buffer) -> None:
        self._out.append(part)
        self._out_bytes += len(part)

    def _write_some(self) -> None:
        """Hand the kernel what it takes of the queue. Sets ``closed`` when the connection is broken."""
        while self._out:
            parts = [self._out[k] for k in range(min(len(self._out), 64))]
            try:
                sent = self._sock.sendmsg(parts)
            except BlockingIOError:
                break
            except OSError as exc:
                self._lost(f"send: {exc.strerror}")
                return
            self._out_bytes -= sent
            while sent:
                first = self._out.popleft()
                if sent < len(first):
                    self._out.appendleft(memoryview(first)[sent:])
                    break
                sent -= len(first)
        if self._out_bytes < OUTBOUND_HIGH:
            self._drained.set()

    async def run_writer(self) -> None:
        """Send what did not fit at once; returns when the connection is closed. One task per connection."""
        while self.closed is None:
            if not self._out:
                await self._writable.wait()
                self._writable = trio.Event()
                continue
            try:
                await trio.lowlevel.wait_writable(self._sock)
            except (trio.ClosedResourceError, OSError, ValueError):
                return  # closed meanwhile: `closed` says why
            self._write_some()

    async def drain(self) -> None:
        """Wait until less than OUTBOUND_HIGH bytes are unsent, or the connection is closed."""
        while self._out_bytes >= OUTBOUND_HIGH and self.closed is None:
            if self._drained.is_set():
                self._drained = trio.Event()
            await self._drained.wait()

    # -- receiving

    async def receive(self) -> tuple[Any, Buffer]:
        """The next message and its bulk data (b"" if none).

        Raises :class:`ConnectionLost` when there is no more, :class:`wire.errors.BadMessage` for a message that is not
        acceptable (the next call gives the next one), any other :class:`wire.errors.WireError` for bytes that are not
        our protocol (the caller closes the connection and logs the reason).  May be cancelled without losing any.
        """
        if self._lengths is None:
            while len(self._in) - self._at < HEADER.size:
                await self._fill()
            self._lengths = parse_header_untrusted(self._in, self.limits, self._at)
            self._at += HEADER.size
        meta_len, bulk_len = self._lengths
        if self._meta is None:
            self._meta = await self._take(meta_len)
        bulk = await self._take(bulk_len) if bulk_len else b""
        meta, self._meta, self._lengths = self._meta, None, None
        return decode(meta), bulk

    async def _take(self, size: int) -> Buffer:
        """The next *size* bytes. When cancelled, it goes on where it was when it is called again."""
        if self._part is None:
            end = self._at + size
            if end <= len(self._in):
                taken = self._in[self._at : end]
                self._at = end
                return taken
            self._part = bytearray(size)
            self._part_have = len(self._in) - self._at
            self._part[: self._part_have] = memoryview(self._in)[self._at :]
            self._in, self._at = b"", 0
        with memoryview(self._part) as view:
            while self._part_have < size:
                rest = view[self._part_have :]
                self._part_have += await self._recv(partial(self._sock.recv_into, rest))
        part, self._part = self._part, None
        return part

    async def _fill(self) -> None:
        rest = self._in[self._at :]  # less than a header
        chunk = await self._recv(partial(self._sock.recv, RECV_SIZE))
        # The kernel had no more: waiting without another try saves a system call and an exception per frame.
        self._dry = len(chunk) < RECV_SIZE
        self._in, self._at = rest + chunk, 0

    async def _recv(self, read: Callable[[], Any]) -> Any:
        """What *read* gives, waiting for the socket where there is nothing to read."""
        self._reads += 1
        if self._reads >= READS_WITHOUT_CHECKPOINT:
            self._reads = 0
            await trio.lowlevel.checkpoint()
        while True:
            if self.closed is not None:
                raise ConnectionLost(self.closed)  # a closed socket has no descriptor that could be waited for
            if self._dry:
                self._dry = False
                self._reads = 0
                try:
                    await trio.lowlevel.wait_readable(self._sock)
                except (trio.ClosedResourceError, ValueError) as exc:
                    raise ConnectionLost(self.closed or "closed") from exc
            if self.closed is not None:
                raise ConnectionLost(self.closed)
            try:
                got = read()
            except BlockingIOError:
                self._dry = True
                continue
            except OSError as exc:
                self._lost(f"receive: {exc.strerror}")
                raise ConnectionLost(str(self.closed)) from exc
            if not got:
                self._lost("closed by the peer")
                raise ConnectionLost(str(self.closed))
            return got

    # -- closing

    def _lost(self, reason: str) -> None:
        if self.closed is None:
            self.close(reason)

    def close(self, reason: str = "closed here") -> None:
        """Close at once; unsent bytes are dropped. Harmless when closed already."""
        if self.closed is not None:
            return
        self.closed = reason
        self._out.clear()
        self._out_bytes = 0
        trio.lowlevel.notify_closing(self._sock)
        self._sock.close()
        self._writable.set()
        self._drained.set()


def split_address(address: str) -> tuple[str, int]:
    """``HOST:PORT`` (host may be [v6]) as a pair. Raises :class:`ValueError` that names the address."""
    host, colon, port = address.rpartition(":")
    number = number_untrusted(port) or 0
    if not colon or not host or not 0 < number < 65536:
        raise ValueError(f"address {address!r} is not HOST:PORT")
    return host.strip("[]"), number


async def dial(address: str, hello: Hello, connect_s: float = HANDSHAKE_TIMEOUT_S) -> Connection:
    """Connect to *address*, which may take *connect_s*, and shake hands; the caller runs the connection's
    ``run_writer`` from then on.

    Raises :class:`ConnectionLost` when nobody answers within HANDSHAKE_TIMEOUT_S, or refuses (with its reason).
    """
    host, port = split_address(address)
    conn: Connection | None = None
    try:
        with trio.fail_after(HANDSHAKE_TIMEOUT_S):
            with trio.fail_after(connect_s):
                stream = await trio.open_tcp_stream(host, port)
            # The stdlib socket under trio's: from here on this class does its own waiting.
            conn = Connection(_unwrap(stream.socket), f"to {address}")
            conn.limits = HANDSHAKE_LIMITS
            conn.send(hello)
            answer, _ = await conn.receive()
    except (OSError, UnicodeError, trio.TooSlowError, WireError, ConnectionLost) as exc:  # Unicode: no name of a host
        if conn is not None:
            conn.close()
        raise ConnectionLost(f"{address}: {str(exc) or type(exc).__name__}") from exc
    except BaseException:
        if conn is not None:
            conn.close()
        raise
    if isinstance(answer, Refused):
        conn.close()
        raise ConnectionLost(f"{address} refused: {answer.reason}")
    if not isinstance(answer, Welcome) or answer.version != PROTOCOL_VERSION:
        conn.close()
        raise ConnectionLost(f"{address}: answered the handshake with {type(answer).__name__}")
    conn.hello = answer
    conn.limits = Limits()
    return conn


def _unwrap(sock: trio.socket.SocketType) -> socket.socket:
    fd = sock.detach()
    return socket.socket(fileno=fd)


Handler = Callable[[Connection, Hello], Awaitable[None]]
Judge = Callable[[Hello], str | None]
Greeter = Callable[[Hello], Welcome]
"""Who answers depends on who asks: a target and the witness it hosts share an address."""


async def _admit(conn: Connection, cluster: bytes, judge: Judge, welcome: Greeter) -> Hello | None:
    """Listener's half of the handshake: the Hello, or None when the connection was refused and logged."""
    reason: str | None
    try:
        with trio.fail_after(HANDSHAKE_TIMEOUT_S):
            hello, _ = await conn.receive()
        if not isinstance(hello, Hello):
            reason = f"handshake begins with {type(hello).__name__}"
        elif hello.version != PROTOCOL_VERSION:
            reason = f"protocol version {hello.version}, this is {PROTOCOL_VERSION}"
        elif hello.cluster != cluster:
            reason = f"cluster {hello.cluster.hex()}, this is {cluster.hex()}"
        else:
            reason = judge(hello)
        if reason is None:
            assert isinstance(hello, Hello)
            conn.hello = hello
            conn.limits = Limits()
            conn.send(welcome(hello))
            return hello
    except WireError as exc:
        reason = str(exc)
    except (ConnectionLost, trio.TooSlowError) as exc:
        log.info("connection refused: %s: %s before the handshake was done", conn.where, str(exc) or "silent")
        conn.close()
        return None
    log.warning("connection refused: %s: %s", conn.where, reason)
    try:
        conn.send(Refused(str(reason)[:1024]))
    except ConnectionLost:
        log.debug("%s was gone before it could be told why", conn.where)
    conn.close()
    return None


class Listener:
    """A listening TCP socket; :meth:`serve` accepts for ever."""

    def __init__(self, address: str) -> None:
        """Binds at once (port 0: a free one). Raises :class:`OSError` that names the address."""
        host, _, port = address.rpartition(":")
        host = host.strip("[]")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._sock.bind((host, int(port)))
            self._sock.listen(256)
        except OSError as exc:
            self._sock.close()
            raise OSError(exc.errno, f"cannot listen on {address}: {exc.strerror}") from exc
        self._sock.setblocking(False)
        self.port: int = self._sock.getsockname()[1]

    async def serve(
        self, nursery: trio.Nursery, cluster: bytes, judge: Judge, welcome: Greeter, handler: Handler
    ) -> None:
        """Accept; for each admitted connection run *handler* in *nursery* until it returns or the link breaks."""
        while True:
            try:
                sock, addr = self._sock.accept()
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._sock)
                continue
            except OSError as exc:
                if exc.errno in (errno.ECONNABORTED, errno.EPROTO, errno.ENETDOWN, errno.EHOSTUNREACH):
                    continue  # that one connection failed before we took it (accept(2): treat like EAGAIN)
                if exc.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    log.error("cannot accept a connection: %s; trying again in 0.1 s", exc.strerror)
                    await trio.sleep(0.1)  # wait for descriptors to be given back
                    continue
                raise
            conn = Connection(sock, f"from {addr[0]}:{addr[1]}")
            nursery.start_soon(self._run, nursery, conn, cluster, judge, welcome, handler)

    async def _run(
        self,
        nursery: trio.Nursery,
        conn: Connection,
        cluster: bytes,
        judge: Judge,
        welcome: Greeter,
        handler: Handler,
    ) -> None:
        conn.limits = HANDSHAKE_LIMITS
        try:
            hello = await _admit(conn, cluster, judge, welcome)
            if hello is None:
                return
            nursery.start_soon(conn.run_writer)
            await handler(conn, hello)
        except ConnectionLost as exc:
            log.debug("%s: %s", conn.where, exc)
        except WireError as exc:
            log.warning("connection dropped: %s: %s", conn.where, exc)
        finally:
            conn.close()

    def close(self) -> None:
        """Stop listening."""
        self._sock.close()

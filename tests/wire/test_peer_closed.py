"""wire.peer: reading from a connection that this side has closed."""

from __future__ import annotations

import socket

import pytest
import trio

from wire.messages import Ping
from wire.peer import Connection, ConnectionLost


async def test_receive_after_close_says_that_it_is_closed() -> None:
    """A handler drops its peer for what it said and comes back to receive: two of them must not meet at fd -1."""
    for _ in range(2):
        ours, theirs = socket.socketpair()
        with theirs:
            conn, peer = Connection(ours, "ours"), Connection(theirs, "theirs")
            peer.send(Ping(1))
            message, _ = await conn.receive()
            assert message == Ping(1)
            conn.close("enough of it")
            with pytest.raises(ConnectionLost, match="enough of it"), trio.fail_after(5):
                await conn.receive()

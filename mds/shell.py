"""What a replica asks of the process around it (see mds.serve), and how it knows the clients there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from mds.exports import Squash
from vsync.records import Record


class ClientConnection(Protocol):
    """What a replica needs of a connection with a client or tool."""

    def send(self, message: Any) -> None: ...


class Shell(Protocol):
    """What the replica asks of the process around it; none of these waits."""

    def now(self) -> int: ...
    def stamp_ns(self) -> int: ...
    def append(self, ticket: int, records: list[Record]) -> bool: ...
    def link_send(self, peer: int, message: Any) -> None: ...
    def send_snapshot(self, peer: int) -> None: ...
    def membership_changed(self) -> None: ...
    def keep_alarm(self, tie: str) -> None: ...
    def give_up_state(self, why: str, asked: bool) -> None: ...


@dataclass(slots=True, eq=False)
class Client:
    """One connected client (or tool)."""

    conn: ClientConnection
    name: str
    session: int = 0
    squash: Squash | None = None
    """What becomes of the credentials in its requests; None: they count as they are."""
    gone: bool = False
    uuid: bytes = bytes(16)
    """Of its Hello: its capabilities are good for that alone."""
    refused: int = 0
    """Refusals for what it has shown that are not logged yet (mds.rights)."""
    told_us: int | None = None
    """When such were logged last."""

    def send(self, message: Any) -> None:
        """Send, unless the connection is gone: the client asks again elsewhere."""
        if not self.gone:
            self.conn.send(message)

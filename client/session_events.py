"""Pure. What goes into :class:`client.session.Session` (events) and what comes out (effects)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any


class Kind(Enum):
    """What a call is, as far as failover is concerned."""

    REQUEST = "request"
    """Changes state: has a slot and a number, is sent again after failover and executed once."""
    QUERY = "query"
    """Changes nothing: is asked again after failover."""


# --- events ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Submit:
    """A caller asks. ``opens``: a success counts an open handle of the inode in the answer (Open, Create).
    ``capability``: what is shown with it. ``first``: others may wait for it, and it waits for none (client.births)."""

    token: int
    kind: Kind
    op: bytes
    opens: bool = False
    capability: bytes = b""
    first: bool = False


@dataclass(frozen=True, slots=True)
class Abandon:
    """The caller of *token* has stopped waiting: its answer interests nobody any more."""

    token: int


@dataclass(frozen=True, slots=True)
class HandleClosed:
    """One handle of inode *ino*, counted by an Open or Create, is closed."""

    ino: int


@dataclass(frozen=True, slots=True)
class Connected:
    """The handshake of connection number *conn* is done."""

    conn: int


@dataclass(frozen=True, slots=True)
class Disconnected:
    """Connection *conn* could not be made, or is gone. Also what a protocol error on it becomes."""

    conn: int
    why: str


@dataclass(frozen=True, slots=True)
class Received:
    """A message came in on connection *conn*."""

    conn: int
    message: Any


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed (see ``next_deadline``)."""


@dataclass(frozen=True, slots=True)
class Close:
    """The client ends: close the session if a replica is there to be told, and then everything."""


Event = Submit | Abandon | HandleClosed | Connected | Disconnected | Received | Tick | Close


# --- effects --------------------------------------------------------------------------------------


class Reason(Enum):
    """Why a connection was left; logged and counted."""

    CONNECT_FAILED = "could not connect"
    CONNECT_TIMEOUT = "connecting took too long"
    ATTACH_TIMEOUT = "attaching took too long"
    ATTACH_REFUSED = "the replica would not attach the session"
    BROKEN = "the connection broke"
    SILENT = "the replica fell silent"
    NOT_SERVING = "the replica does not serve"
    NOT_ATTACHED = "the session is not attached there any more"
    SESSION_UNKNOWN = "the replica does not know the session"
    DROPPED = "the replica is not in the new view"
    NOT_NEEDED = "the connection is not needed"
    CLOSING = "the client ends"


@dataclass(frozen=True, slots=True)
class Connect:
    """Dial *address*; the connection is number *conn* from now on."""

    conn: int
    address: str


@dataclass(frozen=True, slots=True)
class Send:
    """Send *message* on connection *conn* (which is the connected one)."""

    conn: int
    message: Any


@dataclass(frozen=True, slots=True)
class Drop:
    """Close connection *conn*, or stop dialling it; nothing more from it is wanted."""

    conn: int
    reason: Reason
    detail: str
    standby: bool = False
    """It was the second connection: the session is not concerned."""


@dataclass(frozen=True, slots=True)
class Complete:
    """The caller of *token* has its answer: *status* (wire.errors) and, when it is 0, *body*."""

    token: int
    status: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Attached:
    """The session is served by the replica at *address*, over connection *conn*. ``fresh``: it is a new session (the
    first, or after loss)."""

    address: str
    session: int
    fresh: bool
    conn: int


@dataclass(frozen=True, slots=True)
class SessionLost:
    """The session had expired: open handles are stale, *unknown* requests ended in EIO with unknown outcome."""

    session: int
    unknown: int
    handles: int


@dataclass(frozen=True, slots=True)
class ViewLearned:
    """A newer view of the metadata service: its members as ((id, address), ...)."""

    generation: int
    epoch: int
    members: tuple[tuple[int, str], ...]


@dataclass(frozen=True, slots=True)
class Closed:
    """The session is over; nothing follows."""

    told: bool
    """Whether a replica confirmed it; else the session expires by itself."""


Effect = Connect | Send | Drop | Complete | Attached | SessionLost | ViewLearned | Closed

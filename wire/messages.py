"""Pure. What clients, replicas, targets and tools say to each other around the operations of :mod:`wire.ops`."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from wire import ids
from wire.capability import SIZE_MAX as CAPABILITY_MAX
from wire.codec import message


class Role(StrEnum):
    """What a process says it is when it connects."""

    CLIENT = "client"
    REPLICA = "replica"
    """Control connection between two metadata replicas, or from a replica to a witness."""
    TARGET = "target"
    ADMIN = "admin"
    MDS = "mds"
    """A metadata replica as a client of a storage target (reclaiming objects)."""
    WATCHDOG = "watchdog"
    """The parent of a metadata replica, when that has died: it sends one wire.group.Obituary, answered by Answer with
    call 0, and closes. ``uuid`` is that of the replica's journal, ``incarnation`` the one that has died."""


ROLES: Final = frozenset(Role)


@message(1)
class Hello:
    """First frame of whoever dials. The receiver may conclude nothing before it has accepted it."""

    version: int
    cluster: bytes
    """The cluster's id, 16 bytes."""
    role: str
    name: str
    """Client: host:pid:mountpoint; replica: its number; target: its number."""
    uuid: bytes
    """The disk's identity (replica, witness, target), a client's random one (its capabilities are good for that alone),
    or 16 zero bytes."""
    incarnation: int
    """Counts starts of a replica or witness, so that a superseded connection is told apart; else 0."""
    channel: str
    """``main`` or, between replicas, ``control``, ``data`` or ``bulk``."""

    def invalid(self) -> str | None:
        if len(self.cluster) != 16:
            return "cluster id is not 16 bytes"
        if len(self.uuid) != 16:
            return "uuid is not 16 bytes"
        if self.role not in ROLES:
            return f"unknown role {self.role[:32]!r}"
        if self.channel not in ("main", "control", "data", "bulk"):
            return f"unknown channel {self.channel[:32]!r}"
        if len(self.name) > 255:
            return "name over 255 characters"
        return None if 0 <= self.incarnation < 2**63 else "incarnation"


@message(2)
class Welcome:
    """Answer of whoever listens: the connection is accepted. Same fields, the listener's own.

    A storage target's ``incarnation`` moves on when unsynced writes may have been lost (ossd.identity): the keeper
    tells it to the metadata service, whose state says what chains have lost by that (wire.targetops.TargetUp).
    """

    version: int
    role: str
    name: str
    uuid: bytes
    incarnation: int

    def invalid(self) -> str | None:
        if len(self.uuid) != 16 or self.role not in ROLES:
            return "uuid or role"
        return None if 0 <= self.incarnation < 2**63 else "incarnation"


@message(3)
class Refused:
    """The connection is not accepted, for *reason*; the listener closes it."""

    reason: str

    def invalid(self) -> str | None:
        return None if len(self.reason) <= 1024 else "reason over 1024 characters"


# --- client <-> metadata replica ------------------------------------------------------------------


@message(4)
class RequestCall:
    """A client's state-changing request. *op*, an encoded wire.ops request, is executed once per
    (session, slot, number).

    ``call`` pairs the answer with it on this connection only. ``capability``: shown with what needs one (mds.rights),
    checked by the replica that it comes to, and not ordered.
    """

    call: int
    session: int
    slot: int
    number: int
    op: bytes
    capability: bytes = b""

    def invalid(self) -> str | None:
        if (reason := bad_capability(self.capability)) is not None:
            return reason
        if not 0 <= self.call < 2**63:
            return "call"
        if not 0 < self.session < 2**63:
            return f"session {self.session}"
        if not 0 <= self.slot < 1024:
            return f"slot {self.slot}"
        return None if 0 < self.number < 2**63 else f"number {self.number}"


@message(5)
class QueryCall:
    """A client's query: *op* is an encoded wire.ops query. ``capability``: as in RequestCall."""

    call: int
    op: bytes
    capability: bytes = b""

    def invalid(self) -> str | None:
        return bad_capability(self.capability) or (None if 0 <= self.call < 2**63 else "call")


@message(6)
class Answer:
    """To a call: *status* (wire.errors) and, when it is 0, *body*: the result as msgpack.

    ``lease``: the client may keep what this tells of the inodes asked about, and of those in the result, for as long
    as its cache lease runs (KeepCache) and until they are recalled (Recall).
    ``capability``: with the answer to Open, Create, Renew and a truncation: what targets want to see, and the service
    when it is asked about the file's data (wire.capability); with a page of a listing: what is shown with those that
    follow. Empty when there is no signing key yet.
    """

    call: int
    status: int
    body: bytes
    lease: bool = False
    capability: bytes = b""

    def invalid(self) -> str | None:
        return bad_capability(self.capability) or (None if self.call >= 0 and self.status >= 0 else "call or status")


@message(7)
class OpenSession:
    """A client asks for a session (the replica orders SessionOpen). Answer body: session number.

    ``attempt``: as in AttachSession.
    """

    call: int
    key: bytes
    client: str
    slots: int
    attempt: int

    def invalid(self) -> str | None:
        if len(self.key) != 16:
            return "session key is not 16 bytes"
        if not 0 < self.attempt < 2**63:
            return f"attempt {self.attempt}"
        return None if 1 <= self.slots <= 1024 and len(self.client) <= 255 else "slots or client"


@message(8)
class AttachSession:
    """A client carries its session on here and declares its open handles. Answer body: None.

    The answer means: every declared inode that is an orphan is pinned by this replica.  ``attempt`` rises with every
    connection of the client: a message that was overtaken by a later one, at whichever replica, is void (NOT_ATTACHED).
    The client has dropped what its cache was lent before; its kernel may use entries for ``kernel_ms`` more.
    """

    call: int
    session: int
    key: bytes
    attempt: int
    handles: tuple[tuple[int, int], ...]
    """((inode, number of open handles), ...)"""
    kernel_ms: int = 0

    def invalid(self) -> str | None:
        if len(self.key) != 16 or not 0 < self.session < 2**63:
            return "session or key"
        if not 0 < self.attempt < 2**63:
            return f"attempt {self.attempt}"
        if not 0 <= self.kernel_ms < 60_000:
            return f"{self.kernel_ms} ms in the kernel"
        return _bad_handles(self.handles)


@message(9)
class CloseSession:
    """A client unmounts. Answer body: None."""

    call: int
    session: int
    key: bytes

    def invalid(self) -> str | None:
        return None if len(self.key) == 16 and 0 < self.session < 2**63 else "session or key"


@message(10)
class CloseHandles:
    """One-way, batched: the client has closed *count* handles of *inode*, as ((inode, count), ...).

    The replica counts a handle for each Open and Create it answers with success; a client that gave up
    waiting for such an answer closes the handle when the answer comes late.
    """

    handles: tuple[tuple[int, int], ...]

    def invalid(self) -> str | None:
        return _bad_handles(self.handles)


@message(11)
class Ping:
    """Liveness between a client and its replica or target, both ways; the answer is Pong with the same number."""

    number: int

    def invalid(self) -> str | None:
        return None if self.number >= 0 else "number"


@message(12)
class Pong:
    """See Ping. ``serving``: this replica is active in a view (a client attached to one that is not moves on)."""

    number: int
    serving: bool

    def invalid(self) -> str | None:
        return None if self.number >= 0 else "number"


@message(16)
class KeepCache:
    """A client asks for its cache lease to be extended, several times a second while it uses its cache."""

    number: int

    def invalid(self) -> str | None:
        return None if self.number >= 0 else "number"


@message(17)
class CacheLease:
    """Answer to KeepCache: the lease runs for ``lease_us`` from the moment the client *sent* that (0: not now).

    ``epoch``: leases were taken away without asking when it is another one than last time (or than of the replica
    before): the client drops all it keeps.
    """

    number: int
    epoch: int
    lease_us: int

    def invalid(self) -> str | None:
        return None if self.number >= 0 and self.epoch >= 0 and 0 <= self.lease_us < 2**40 else "a negative number"


@message(18)
class Recall:
    """A replica wants these inodes (none: all) out of the client's cache before it acknowledges a request.

    The client drops what it keeps of them, makes sure that its kernel does, and answers Recalled.  Answers sent
    before this message are covered, later ones not.  ``names``: those of them whose own name, or the right to pass
    through them, may change: the client's kernel may know these without having asked.
    """

    number: int
    inodes: tuple[int, ...]
    names: tuple[int, ...]

    def invalid(self) -> str | None:
        if not all(type(i) is int and 0 < i < 2**63 for i in self.inodes + self.names):
            return "an entry that is no inode number"
        return None if self.number > 0 else "number"


@message(19)
class Recalled:
    """A client has let go of what Recall *number* and all before it named."""

    number: int

    def invalid(self) -> str | None:
        return None if self.number > 0 else "number"


@message(13)
class ViewChanged:
    """A replica tells its clients each new view: the replicas to turn to, as ((id, address), ...)."""

    generation: int
    epoch: int
    members: tuple[tuple[int, str], ...]
    replicas: tuple[tuple[int, str], ...] = ()
    """All that belong to the cluster, members or not: whoever is not among them was removed (empty: not told)."""

    def invalid(self) -> str | None:
        for item in self.members + self.replicas:
            if type(item) is not tuple or len(item) != 2 or type(item[0]) is not int or type(item[1]) is not str:
                return "a replica that is not (id, address)"
        return None if self.generation >= 0 and self.epoch >= 0 else "generation or epoch"


@message(14)
class StatusCall:
    """The admin tool asks a replica or target for its status. Answer body: a dict of plain values."""

    call: int

    def invalid(self) -> str | None:
        return None if self.call >= 0 else "call"


@message(15)
class AdminCall:
    """The admin tool asks a replica to order *op*, an encoded wire.ops request that belongs to no session (TargetSet,
    and changes of the roster). Only on a connection with role admin. Answered by Answer like a request; sent again to
    any replica when its outcome is unknown, so *op* must be idempotent.
    """

    call: int
    op: bytes

    def invalid(self) -> str | None:
        return None if 0 <= self.call < 2**63 else "call"


@message(28)
class RosterCall:
    """The admin tool, or a replica that starts for the first time, asks who belongs to the cluster. Only with role
    admin.

    Answer body: ``(roster, view)``: mds.namespace.roster.Roster and the newest decided view the replica knows, each as
    a tuple.  What it knows: another replica may know better.
    """

    call: int

    def invalid(self) -> str | None:
        return None if 0 <= self.call < 2**63 else "call"


CONTROLS: Final = ("leave", "restart", "force", "resync", "trust")


@message(29)
class ControlCall:
    """The admin tool tells this very replica to do something. Only on a connection with role admin. Answer body: None.

    ``leave``: be left out of the view, answer, and stop for good; ``restart``: the same, and start again; ``force``:
    begin a new generation as its only member and voter, because the others will never come back (10-group: forced
    view); ``resync``: set the own state aside, and take that of the others; ``trust``: the state here may count
    again, after it could not be told which replica's is right (mds.alarm): compare it anew.
    """

    call: int
    what: str

    def invalid(self) -> str | None:
        return None if 0 <= self.call < 2**63 and self.what in CONTROLS else "call or what"


@message(30)
class CopyCall:
    """The admin tool wants the whole state, as this replica has applied it by now. Only with role admin.

    Answered by wire.group.SnapshotPart, one after the other, of which the last says so; or by Answer with a status.
    """

    call: int

    def invalid(self) -> str | None:
        return None if 0 <= self.call < 2**63 else "call"


# --- anyone <-> storage target --------------------------------------------------------------------

# ``capability`` of those below: who comes as a client shows what the metadata service gave it (wire.capability). It is
# checked before anything else is done: EACCES, or CAPABILITY_EXPIRED when another one may do.


@message(100)
class ObjectKey:
    """Which object: column *column* of inode *ino*."""

    ino: int
    column: int

    def invalid(self) -> str | None:
        return None if 0 < self.ino < 2**63 and 0 <= self.column < 65536 else f"object {self.ino}.{self.column}"


@message(101)
class ObjectWrite:
    """Write the frame's bulk data at *offset* of the object. Answer: OK, after the data is in the target's
    page cache; ObjectSync makes it durable.  ENOSPC when the target is full; nothing is written then.

    ``truncations``: the inode's unsettled truncations in terms of this object: ``((seq, length), ...)``,
    oldest first; the target trims by those it has not carried out before it writes.
    """

    call: int
    key: ObjectKey
    chain: int
    chain_version: int
    truncations: tuple[tuple[int, int], ...]
    offset: int
    capability: bytes = b""

    def invalid(self) -> str | None:
        bad = bad_truncations(self.truncations) or bad_capability(self.capability)
        return bad or (None if 0 <= self.offset < 2**63 else "offset")


@message(102)
class ObjectRead:
    """Read *length* bytes at *offset*. Answer: OK with what there is as the frame's bulk data.

    Shorter than asked where the object ends (the client fills with zeros up to the file's size).
    """

    call: int
    key: ObjectKey
    chain: int
    chain_version: int
    truncations: tuple[tuple[int, int], ...]
    offset: int
    length: int
    capability: bytes = b""

    def invalid(self) -> str | None:
        if not 0 <= self.offset < 2**63 or not 0 <= self.length <= 8 << 20:
            return f"offset {self.offset} length {self.length}"
        return bad_truncations(self.truncations) or bad_capability(self.capability)


@message(103)
class ObjectTruncate:
    """Carry out *truncations* now, durably. Answer: OK (also when there is no such object)."""

    call: int
    key: ObjectKey
    chain: int
    chain_version: int
    truncations: tuple[tuple[int, int], ...]
    capability: bytes = b""

    def invalid(self) -> str | None:
        return bad_truncations(self.truncations) or bad_capability(self.capability)


@message(104)
class ObjectDelete:
    """Delete these objects of *chain* at all its targets, durably; those that are not there are done already.

    From a replica, with a capability of its own, to the head of the chain; and down the chain. Answer: OK.
    """

    call: int
    chain: int
    chain_version: int
    keys: tuple[tuple[int, int], ...]
    capability: bytes = b""

    def invalid(self) -> str | None:
        for item in self.keys:
            if type(item) is not tuple or len(item) != 2 or not all(type(x) is int and 0 <= x < 2**63 for x in item):
                return "a key that is not (inode, column)"
        return bad_capability(self.capability)


@message(105)
class ObjectSync:
    """Make all earlier writes to the object durable. Answer: OK, or the errno of a write that was lost."""

    call: int
    key: ObjectKey
    chain: int
    chain_version: int
    capability: bytes = b""

    def invalid(self) -> str | None:
        return bad_capability(self.capability)


@message(106)
class TargetStat:
    """Space of the target. Answer body: ``(total bytes, free bytes, objects)``."""

    call: int

    def invalid(self) -> str | None:
        return None


def _bad_handles(items: tuple[tuple[int, int], ...]) -> str | None:
    for item in items:
        if type(item) is not tuple or len(item) != 2 or not all(type(x) is int and 0 < x < 2**63 for x in item):
            return "a handle that is not (inode, count)"
    return None


def bad_capability(token: bytes) -> str | None:
    return None if len(token) <= CAPABILITY_MAX else f"a capability of {len(token)} bytes"


def bad_truncations(items: tuple[tuple[int, int], ...]) -> str | None:
    if len(items) > 64:
        return f"{len(items)} truncations"
    for item in items:
        if type(item) is not tuple or len(item) != 2 or not all(type(x) is int and 0 <= x <= ids.U64_MAX for x in item):
            return "a truncation that is not (seq, length)"
    return None

"""Pure. The group machine's way in (events) and way out (effects)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vsync.records import Entry, Record
from wire.group import View

# --- events ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Received:
    """A message came from *peer* (over its present connection)."""

    peer: int
    message: Any


@dataclass(frozen=True, slots=True)
class LinkUp:
    """The control connection with *peer* stands."""

    peer: int


@dataclass(frozen=True, slots=True)
class LinkDown:
    """The control connection with *peer* broke: what was in flight is lost."""

    peer: int


@dataclass(frozen=True, slots=True)
class DurableUpTo:
    """Every record of effects with ``ticket`` at most this is on disk."""

    ticket: int


@dataclass(frozen=True, slots=True)
class Holding:
    """These parts, (epoch, sender, sequence number, number of the part), of messages in the log must be executed
    nowhere: a client of this replica may still use what contradicts them.

    All of them, whenever that changes. What a message adds is stepped before the DurableUpTo that covers the message;
    nothing is added later.
    """

    parts: frozenset[tuple[int, int, int, int]]


@dataclass(frozen=True, slots=True)
class Submit:
    """Multicast *payload*; allowed while ``Machine.may_submit``."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Tick:
    """The deadline has passed."""


@dataclass(frozen=True, slots=True)
class SnapshotInstalled:
    """The shell has replaced the state by a snapshot taken at *position* (packed); *views* came with it."""

    position: bytes
    views: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class SnapshotSent:
    """The snapshot for *peer* has been handed over (or failed: the peer will ask again)."""

    peer: int


@dataclass(frozen=True, slots=True)
class ChangeView:
    """An administrator wants a view change [10-group: Views]: it may come at any moment and do no harm."""

    reason: str


@dataclass(frozen=True, slots=True)
class Roster:
    """What the ordered state says: who may be a member (*replicas*), who shall vote (*voters*: replicas and witnesses).

    Stepped at start, when an applied request changed it, and after a snapshot; it may come at any moment.
    """

    replicas: tuple[int, ...]
    voters: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Leave:
    """This replica is to stop and asks to be left out.

    The shell has called back all that it lent to clients (see Machine.read_until, which is in the past from now on).
    It may be stepped again; ``Machine.may_stop`` tells when the others go on without us.
    """


@dataclass(frozen=True, slots=True)
class Died:
    """Certificate of *peer*'s watchdog: that incarnation, and every one before it, has ended and reads nothing more."""

    peer: int
    incarnation: int


@dataclass(frozen=True, slots=True)
class Returned:
    """Nothing is used any more of what *peer* lent in that *incarnation*, which is certified to be dead.

    To be stepped while ``Machine.awaits_return`` names it: the log is complete then, so it is known to whom it lent.
    """

    peer: int
    incarnation: int


@dataclass(frozen=True, slots=True)
class ForceView:
    """Last resort of an administrator who has made sure that no other replica runs: a view of this replica alone, of a
    new generation, decided here. What only others have is lost [10-group: forced view]."""


Event = (
    Received
    | LinkUp
    | LinkDown
    | DurableUpTo
    | Holding
    | Submit
    | Tick
    | SnapshotInstalled
    | SnapshotSent
    | ChangeView
    | Roster
    | Leave
    | Died
    | Returned
    | ForceView
)

# --- effects --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Delivered:
    """The message is next in history: apply it, but for the parts *held*, which wait for ``Effects.cleared`` or for the
    next view event (see vsync.holds)."""

    index: int
    entry: Entry
    held: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class ViewEvent:
    """The view is next in history. ``here``: this replica is an active member of it now."""

    index: int
    view: View


@dataclass(slots=True)
class Effects:
    """What one step asks of the shell, to be carried out in this order.

    1. append ``records`` to the journal, in order, under ``ticket``;
    2. send ``send`` at once;
    3. hand ``history`` to the state machine, in order, and after it ``cleared``;
    4. when everything up to ``ticket`` is on disk: send ``after`` (a peer that is this replica itself means:
       step Received from itself), then step DurableUpTo.
    """

    ticket: int = 0
    records: list[Record] = field(default_factory=list)
    send: list[tuple[int, Any]] = field(default_factory=list)
    after: list[tuple[int, Any]] = field(default_factory=list)
    history: list[Delivered | ViewEvent] = field(default_factory=list)
    cleared: list[tuple[int, int, int, int]] = field(default_factory=list)
    """(epoch, sender, sequence number, part) that was delivered as held and may be executed."""
    appended: list[Entry] = field(default_factory=list)
    """Entries that entered the log and are not delivered: queries that conflict with them wait."""
    dropped: list[Entry] = field(default_factory=list)
    """Entries that left the log undelivered (beyond a cut)."""
    snapshot_for: list[int] = field(default_factory=list)
    """Learners that need a snapshot of the state from here."""
    notes: list[str] = field(default_factory=list)
    """What happened, for the log: one line each, with its reason."""

"""Pure. What metadata replicas and witnesses say to each other (the group layer, see vsync).

An *epoch* on the wire is one number, ``generation << EPOCH_BITS | epoch``: a forced view starts a new
generation, and comparing two epochs compares (generation, epoch).  A *vector* is a tuple of numbers, one
per member of the epoch's view in the order of ``View.members``.
"""

from __future__ import annotations

from typing import Final

from wire import ids
from wire.codec import message

EPOCH_BITS: Final = 40
EPOCH_MAX: Final = 2**62

WANTS_MAX: Final = 256
"""Ranges of entries asked for in one Fetch; the rest is asked for when these have come."""
PROMISES_MAX: Final = 1024
"""Promises told in one message: some incarnations of each of at most 255 replicas, within one lease time."""

Ballot = tuple[int, int, int]
"""(round, proposer, incarnation): unique for ever, because incarnations are durable and never repeat."""


def _bad_ids(items: tuple[int, ...], what: str) -> str | None:
    if not all(type(i) is int and 0 < i <= ids.REPLICA_ID_MAX for i in items) or list(items) != sorted(set(items)):
        return f"{what} {items} are not distinct, sorted replica ids"
    return None


def _bad_vector(items: tuple[int, ...], what: str) -> str | None:
    if len(items) <= ids.REPLICA_ID_MAX:
        for i in items:  # a loop and no generator: each message with a request passes here four times
            if type(i) is not int or not 0 <= i <= ids.U64_MAX:
                break
        else:
            return None
    return f"{what} is not a vector of sequence numbers"


def _bad_pairs(items: tuple[tuple[int, int], ...], what: str) -> str | None:
    for item in items:
        if type(item) is not tuple or len(item) != 2 or not all(type(x) is int and 0 <= x <= ids.U64_MAX for x in item):
            return f"{what} are not pairs of numbers"
    return None


def _bad_promises(items: tuple[tuple[int, int, int], ...], what: str) -> str | None:
    if len(items) > PROMISES_MAX:
        return f"{len(items)} {what}"
    for item in items:
        if type(item) is not tuple or len(item) != 3 or not all(type(x) is int and 0 <= x <= ids.U64_MAX for x in item):
            return f"{what} are not (peer, incarnation, ms)"
    return None


def _bad_parts(items: tuple[tuple[int, int, int], ...], what: str) -> str | None:
    for item in items:
        if type(item) is not tuple or len(item) != 3 or not all(type(x) is int and 0 <= x <= ids.U64_MAX for x in item):
            return f"{what} are not (sender, sequence number, part)"
    return None


def _bad_ballot(ballot: tuple[int, int, int]) -> str | None:
    if type(ballot) is not tuple or len(ballot) != 3 or not all(type(x) is int and 0 <= x < 2**63 for x in ballot):
        return f"ballot {ballot}"
    return None


def _bad_epoch(epoch: int) -> str | None:
    return None if 0 <= epoch < EPOCH_MAX else f"epoch {epoch}"


@message(200)
class View:
    """One configuration of the group. Decided once per epoch, by the register, and never changed.

    ``base`` is the epoch whose messages up to ``cut`` (pairs of sender and sequence number) come before this
    view in history; -1 for the first view.  ``hold_ms``: how long a member waits before it activates, because
    clients of somebody left out may still read what it lent them.  ``owed``: (peer, incarnation, ms), read leases
    promised to one left out who did not answer the seal: a member waits for each, or for the certificate that this
    incarnation is dead.  With the highest incarnation, about which there is no certificate: what a member has lent, if
    a later view leaves it out.
    """

    epoch: int
    members: tuple[int, ...]
    voters: tuple[int, ...]
    base: int
    cut: tuple[tuple[int, int], ...]
    hold_ms: int
    owed: tuple[tuple[int, int, int], ...] = ()

    def invalid(self) -> str | None:
        if not -1 <= self.base < self.epoch < EPOCH_MAX:
            return f"base {self.base} of epoch {self.epoch}"
        if not self.members or not self.voters:
            return "a view without members or voters"
        if not 0 <= self.hold_ms <= 3_600_000:
            return f"hold of {self.hold_ms} ms"
        return (
            _bad_ids(self.members, "members")
            or _bad_ids(self.voters, "voters")
            or _bad_pairs(self.cut, "cut")
            or _bad_promises(self.owed, "owed")
        )


@message(201)
class Data:
    """A member multicasts a batch; what it knows to be durable and what it has delivered ride along (see Ack)."""

    epoch: int
    seq: int
    clock: int
    durable: tuple[int, ...]
    delivered: tuple[int, ...]
    payload: bytes
    held: tuple[tuple[int, int, int], ...] = ()
    unclear: tuple[tuple[int, int, int], ...] = ()

    def invalid(self) -> str | None:
        if self.seq < 1 or self.clock < 1:
            return f"seq {self.seq} clock {self.clock}"
        return (
            _bad_epoch(self.epoch)
            or _bad_vector(self.durable, "durable")
            or _bad_vector(self.delivered, "delivered")
            or _bad_parts(self.held, "held")
            or _bad_parts(self.unclear, "unclear")
        )


@message(202)
class Ack:
    """A member tells what is durable in its log; ``own`` is its own last sequence number sent.

    The receiver may take ``clock`` as the sender's only when it has all the sender's messages up to ``own``.
    ``delivered`` is a prefix of the epoch's order: all of it is durable at every member, so the receiver has it, too,
    and may deliver it.  ``held``, parts (sender, sequence number, part) of durable messages that the sender holds back,
    and ``unclear``, parts of delivered ones that somebody may hold as far as it knows, are all there are (see
    vsync.holds).
    """

    epoch: int
    clock: int
    own: int
    durable: tuple[int, ...]
    delivered: tuple[int, ...]
    held: tuple[tuple[int, int, int], ...] = ()
    unclear: tuple[tuple[int, int, int], ...] = ()

    def invalid(self) -> str | None:
        return (
            _bad_epoch(self.epoch)
            or _bad_vector(self.durable, "durable")
            or _bad_vector(self.delivered, "delivered")
            or _bad_parts(self.held, "held")
            or _bad_parts(self.unclear, "unclear")
        )


@message(203)
class Heartbeat:
    """Every replica to every other, each heartbeat interval, and at once when ``flushed`` moves.

    ``top``: the sender knows all decided views up to this (-1: none); ``active``: epoch active in, or -1; ``sealed``;
    ``flushed``: highest epoch flushed.  ``stamp`` is the sender's clock (us), returned by a Grant.  ``index``: how far
    it has delivered.  The vectors are about ``active`` (empty when there is none): they repeat what an Ack says, so
    that a lost one does no lasting harm.  ``hears``: whom the sender hears.  ``incarnation``: the sender's; a Grant is
    a promise to this one.
    """

    top: int
    active: int
    sealed: int
    flushed: int
    stamp: int
    index: int
    clock: int
    own: int
    received: tuple[int, ...]
    durable: tuple[int, ...]
    delivered: tuple[int, ...]
    hears: tuple[int, ...]
    incarnation: int = 0
    held: tuple[tuple[int, int, int], ...] = ()
    unclear: tuple[tuple[int, int, int], ...] = ()

    def invalid(self) -> str | None:
        if not 0 <= self.incarnation <= ids.U64_MAX:
            return f"incarnation {self.incarnation}"
        if not all(-1 <= e < EPOCH_MAX for e in (self.top, self.active, self.flushed)):
            return f"top {self.top} active {self.active} flushed {self.flushed}"
        return (
            _bad_epoch(self.sealed)
            or _bad_vector(self.received, "received")
            or _bad_vector(self.durable, "durable")
            or _bad_vector(self.delivered, "delivered")
            or _bad_parts(self.held, "held")
            or _bad_parts(self.unclear, "unclear")
            or _bad_ids(self.hears, "hears")
        )


@message(204)
class Grant:
    """Answer to a Heartbeat by a member active in ``epoch``: a promise to be in no view without the receiver
    until the lease time has passed since this was sent."""

    epoch: int
    stamp: int

    def invalid(self) -> str | None:
        return _bad_epoch(self.epoch)


@message(205)
class Seal:
    """A coordinator starts the change to ``epoch`` and asks for reports.

    ``views``: the decided ones from the view its history is in.  A receiver that missed one of them may hold what that
    one cut off: it must learn the cut before it reports, or what others have dropped (and sent again) would come back.
    """

    epoch: int
    reason: str
    views: tuple[tuple, ...]  # type: ignore[type-arg]  # encoded views; see vsync.view.unpack_views

    def invalid(self) -> str | None:
        return _bad_epoch(self.epoch) or (None if len(self.reason) < 256 else "reason")


@message(206)
class SealReport:
    """Answer to Seal, sent when the seal and the log are durable.

    ``flushed``: epochs flushed; ``received``: (epoch, ((sender, seq), ...)); ``promises``: (peer, incarnation,
    remaining ms) of the leases the reporter granted, or must wait for since an earlier view; ``hold_ms``: what is left
    of the hold it observes; ``index``: delivered.  ``lent_ms``: so long may clients still read by themselves what the
    reporter lent them: it reads nothing itself any more, being sealed.  ``leaving``: it asks to be left out.
    """

    epoch: int
    flushed: tuple[int, ...]
    received: tuple[tuple[int, tuple[tuple[int, int], ...]], ...]
    promises: tuple[tuple[int, int, int], ...]
    hold_ms: int
    index: int
    hears: tuple[int, ...]
    lent_ms: int = 0
    leaving: bool = False

    def invalid(self) -> str | None:
        for item in self.received:
            if type(item) is not tuple or len(item) != 2 or type(item[0]) is not int or type(item[1]) is not tuple:
                return "received is not (epoch, pairs)"
            reason = _bad_pairs(item[1], "received")
            if reason is not None:
                return reason
        if not all(type(e) is int and -1 <= e < EPOCH_MAX for e in self.flushed):
            return "flushed"
        if not 0 <= self.hold_ms <= 3_600_000 or not 0 <= self.lent_ms <= 3_600_000:
            return f"hold of {self.hold_ms} ms, {self.lent_ms} ms lent"
        return _bad_epoch(self.epoch) or _bad_promises(self.promises, "promises") or _bad_ids(self.hears, "hears")


@message(207)
class Views:
    """Decided views the sender thinks the receiver does not know."""

    views: tuple[tuple, ...]  # type: ignore[type-arg]

    def invalid(self) -> str | None:
        return None


@message(208)
class Prepare:
    """Register, phase 1: promise to accept nothing below ``ballot`` for ``epoch``."""

    epoch: int
    ballot: tuple[int, int, int]

    def invalid(self) -> str | None:
        return _bad_epoch(self.epoch) or _bad_ballot(self.ballot)


@message(209)
class Promise:
    """Answer to Prepare, durable: with the accepted (ballot, value) of that epoch, or ().

    A ``ballot`` above the one prepared is a refusal: the voter has promised that one to another proposer.
    """

    epoch: int
    ballot: tuple[int, int, int]
    accepted: tuple  # type: ignore[type-arg]

    def invalid(self) -> str | None:
        if self.accepted and (len(self.accepted) != 2 or type(self.accepted[1]) is not tuple):
            return "accepted is not (ballot, value)"
        accepted = _bad_ballot(self.accepted[0]) if self.accepted else None
        return _bad_epoch(self.epoch) or _bad_ballot(self.ballot) or accepted


@message(210)
class Accept:
    """Register, phase 2: accept ``value`` (an encoded view) for ``epoch``."""

    epoch: int
    ballot: tuple[int, int, int]
    value: View

    def invalid(self) -> str | None:
        if self.value.epoch != self.epoch:
            return "the value is another epoch's view"
        return _bad_epoch(self.epoch) or _bad_ballot(self.ballot)


@message(211)
class Accepted:
    """Answer to Accept, durable."""

    epoch: int
    ballot: tuple[int, int, int]

    def invalid(self) -> str | None:
        return _bad_epoch(self.epoch) or _bad_ballot(self.ballot)


@message(212)
class Fetch:
    """A member of view ``epoch`` that is flushing asks for entries: (epoch, sender, first, last)."""

    epoch: int
    wants: tuple[tuple[int, int, int, int], ...]

    def invalid(self) -> str | None:
        if len(self.wants) > WANTS_MAX:
            return f"{len(self.wants)} wants"
        for item in self.wants:
            numbers = type(item) is tuple and all(type(x) is int and 0 <= x <= ids.U64_MAX for x in item)
            if not numbers or len(item) != 4:
                return "a want that is not (epoch, sender, first, last)"
        return _bad_epoch(self.epoch)


@message(213)
class Content:
    """Answer to Fetch: entries (epoch, sender, seq, clock, payload), each sender's in order."""

    epoch: int
    entries: tuple[tuple[int, int, int, int, bytes], ...]

    def invalid(self) -> str | None:
        for item in self.entries:
            if type(item) is not tuple or len(item) != 5 or type(item[4]) is not bytes:
                return "an entry that is not (epoch, sender, seq, clock, payload)"
            if not all(type(x) is int and 0 <= x <= ids.U64_MAX for x in item[:4]):
                return "an entry with a bad number"
        return _bad_epoch(self.epoch)


@message(214)
class Join:
    """A replica outside the active view asks a member to feed it, from its position in history."""

    epoch: int
    index: int
    hash: bytes
    empty: bool
    """It has no state at all (or gave it up): only a snapshot will do."""

    def invalid(self) -> str | None:
        return None if -1 <= self.epoch < EPOCH_MAX and self.index >= 0 and len(self.hash) == 16 else "position"


@message(215)
class Feed:
    """A member to its learner: history items from ``index`` on, in order.

    An item is ``(epoch, sender, seq, clock, payload)`` for a message, or an encoded view for a view event.
    """

    index: int
    items: tuple[tuple, ...]  # type: ignore[type-arg]

    def invalid(self) -> str | None:
        if not all(type(item) is tuple and len(item) >= 5 for item in self.items):
            return "an item that is no message and no view"
        return None if self.index >= 0 else "index"


@message(216)
class FeedAck:
    """A learner to whom feeds it: delivered up to here."""

    index: int

    def invalid(self) -> str | None:
        return None if self.index >= 0 else "index"


@message(217)
class SnapshotPart:
    """One part of a snapshot, its bytes as the frame's bulk data, on the bulk connection.

    ``number`` counts from 0; ``position`` and ``views`` are the same in each; ``last`` ends it, ``digest`` is the
    BLAKE2b-16 of all parts (only in the last).
    """

    number: int
    last: bool
    digest: bytes
    position: bytes
    views: tuple[tuple, ...]  # type: ignore[type-arg]

    def invalid(self) -> str | None:
        return None if self.number >= 0 and len(self.digest) in (0, 16) else "number or digest"


@message(218)
class Stored:
    """Answer of a witness to Views, sent when they are durable: it knows the view of ``epoch``, and votes for no
    epoch up to there any more."""

    epoch: int

    def invalid(self) -> str | None:
        return _bad_epoch(self.epoch)


@message(219)
class Obituary:
    """Certificate of death, by the process that watches over ``replica`` and saw it end: this incarnation, and every
    one before it, reads nothing any more, so promises given to it are void."""

    replica: int
    incarnation: int

    def invalid(self) -> str | None:
        if not 0 < self.replica <= ids.REPLICA_ID_MAX or not 0 <= self.incarnation < ids.U64_MAX:
            return f"replica {self.replica} incarnation {self.incarnation}"
        return None


@message(220)
class LetGo:
    """One replica tells the others what a client's AttachSession has told it: from ``ms`` on, the client uses nothing
    any more of what a replica lent to its cache before this ``attempt``. It matters where that replica has died."""

    session: int
    attempt: int
    ms: int

    def invalid(self) -> str | None:
        if not 0 < self.session < 2**63 or not 0 < self.attempt < 2**63:
            return f"session {self.session} attempt {self.attempt}"
        return None if 0 <= self.ms < 60_000 else f"{self.ms} ms"


Found = tuple[tuple[int, int], ...]
"""(replica, index), ascending."""
Mark = tuple[int, int, Found, Found]
"""(index, value there, up to where whom was found to be alike, from where whom was found to differ); index -1: none."""


def _bad_mark(mark: Mark) -> str | None:
    if type(mark) is not tuple or len(mark) != 4 or type(mark[2]) is not tuple or type(mark[3]) is not tuple:
        return "a mark that is not (index, value, alike, unlike)"
    index, value, alike, unlike = mark
    if type(index) is not int or type(value) is not int or not -1 <= index < 2**62 or not 0 <= value <= ids.U64_MAX:
        return f"a mark at index {index!r}"
    if len(alike) > ids.REPLICA_ID_MAX or len(unlike) > ids.REPLICA_ID_MAX:
        return "a mark about too many"
    return _bad_pairs(alike, "alike") or _bad_pairs(unlike, "unlike")


@message(221)
class Digests:
    """What the state of a member of view ``epoch`` comes to, told every other member several times a second (see
    mds.alarm). The receiver compares it with its own at an equal index.

    ``applied``: the digest of everything applied; ``written``: the sum over all records, at the index of a commit.
    ``ask``: the sender has found a difference and wants to be answered with the receiver's own at once.
    """

    epoch: int
    ask: bool
    applied: Mark
    written: Mark

    def invalid(self) -> str | None:
        return _bad_epoch(self.epoch) or _bad_mark(self.applied) or _bad_mark(self.written)


CHANNELS: Final = ("control", "data", "bulk")
"""Connections between two replicas, so that a megabyte of snapshot never stands before a heartbeat."""
CHANNEL_OF: Final = {Data: "data", Ack: "data", Feed: "bulk", Content: "bulk", SnapshotPart: "bulk"}
"""What goes over which; everything else is control."""

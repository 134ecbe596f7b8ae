"""Pure. What goes into a replica's or witness's journal, and what comes out of it at start."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from wire.group import Ballot, View


class Entry(NamedTuple):
    """A message in the log. (epoch, sender, seq) names it for ever; clock and sender order it."""

    epoch: int
    sender: int
    seq: int
    clock: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Sealed:
    """The process does nothing more in any epoch below."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Decided:
    """The view was learned. Implies truncation: see :meth:`vsync.history.History.learn`."""

    view: View


@dataclass(frozen=True, slots=True)
class Flushed:
    """Everything before the view of this epoch is in the log."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Promised:
    """The register of ``epoch`` accepts nothing below ``ballot``."""

    epoch: int
    ballot: Ballot


@dataclass(frozen=True, slots=True)
class AcceptedValue:
    """The register of ``epoch`` has accepted ``view`` at ``ballot`` (which it thereby promises, too)."""

    epoch: int
    ballot: Ballot
    view: View


@dataclass(frozen=True, slots=True)
class Reset:
    """A snapshot was installed: entries of all epochs up to ``epoch`` are void, history goes on from there.

    The Trimmed that follows says at which index; after a forced view that may be a lower one than before."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Started:
    """The process was started once more: ballots carry the number, so that none is ever used twice."""

    incarnation: int


@dataclass(frozen=True, slots=True)
class Met:
    """Replica or witness ``peer`` has the disk ``uuid``: with another disk it would be another voter."""

    peer: int
    uuid: bytes


@dataclass(frozen=True, slots=True)
class Trimmed:
    """The state held everything up to history index ``index`` when older entries were dropped from the journal: with a
    state older than that the journal is not enough."""

    index: int


Record = Entry | Sealed | Decided | Flushed | Promised | AcceptedValue | Reset | Started | Met | Trimmed


@dataclass(slots=True)
class RegisterState:
    """One epoch's register at one voter."""

    promised: Ballot | None = None
    accepted_at: Ballot | None = None
    value: View | None = None


@dataclass(slots=True)
class Durable:
    """What the journal holds, rebuilt by applying its records in order (the shell does it at start).

    ``incarnation`` has been raised, durably, for this start.  ``met``: disk of each peer ever met.
    """

    incarnation: int = 0
    sealed: int = 0
    views: dict[int, View] = field(default_factory=dict)
    flushed: set[int] = field(default_factory=set)
    registers: dict[int, RegisterState] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    met: dict[int, bytes] = field(default_factory=dict)
    trimmed: int = 0

    def apply(self, record: Record) -> None:
        """Apply one record, in journal order."""
        match record:
            case Entry():
                self.entries.append(record)
            case Sealed(epoch):
                self.sealed = max(self.sealed, epoch)
            case Decided(view):
                if view.epoch not in self.views:
                    self.views[view.epoch] = view
                    self.entries = [e for e in self.entries if not cut_off(view, e.epoch, e.sender, e.seq)]
            case Flushed(epoch):
                self.flushed.add(epoch)
            case Promised(epoch, ballot):
                self.registers.setdefault(epoch, RegisterState()).promised = ballot
            case AcceptedValue(epoch, ballot, view):
                self.registers[epoch] = RegisterState(ballot, ballot, view)
            case Reset(epoch):
                self.entries = [e for e in self.entries if e.epoch > epoch]
                self.trimmed = 0
            case Started(incarnation):
                self.incarnation = max(self.incarnation, incarnation)
            case Met(peer, uuid):
                self.met.setdefault(peer, uuid)
            case Trimmed(index):
                self.trimmed = max(self.trimmed, index)


def cut_off(view: View, epoch: int, sender: int, seq: int) -> bool:
    """Whether the decision of *view* drops entry (epoch, sender, seq) from every log [10-group, rule 4]."""
    if epoch == view.base:
        return seq > next((last for who, last in view.cut if who == sender), 0)
    return view.base < epoch < view.epoch

"""Pure. The register that decides the next view: one single-decree Paxos instance per epoch.

The narrow interface behind which another register (etcd's create-if-absent) can stand: :class:`Proposer`
proposes a view for an epoch and learns the one that is decided, which may be another's.
:class:`Acceptor` is the voter's half, at replicas and witnesses; it is of no interest to an external register.
"""

from __future__ import annotations

from typing import Any

from vsync.effects import Effects
from vsync.records import AcceptedValue, Promised, RegisterState
from wire.codec import to_tuple
from wire.group import Accept, Accepted, Ballot, Prepare, Promise, View

REGISTERS_KEPT = 64
"""Epochs whose registers a voter keeps. Older ones are refused: who proposes there is told the views it missed."""


class Acceptor:
    """Durable registers of one voter."""

    def __init__(self, registers: dict[int, RegisterState]) -> None:
        floor = max(registers, default=0) - REGISTERS_KEPT
        self.registers = {epoch: state for epoch, state in registers.items() if epoch >= floor}

    @property
    def floor(self) -> int:
        """Lowest epoch still voted on."""
        return max(self.registers, default=0) - REGISTERS_KEPT

    def on_prepare(self, peer: int, m: Prepare, out: Effects) -> None:
        if m.epoch < self.floor:
            return  # forgotten: the proposer is far behind and will be told so by replicas
        state = self._at(m.epoch)
        if state.promised is not None and m.ballot <= state.promised:
            # A higher ballot is under way, or was when its proposer died. [Ballots are never reused, so equal means a
            # duplicate.] Without being told, a proposer would count its rounds up to there one attempt at a time.
            if m.ballot < state.promised:
                out.after.append((peer, Promise(m.epoch, state.promised, ())))
            return
        state.promised = m.ballot
        out.records.append(Promised(m.epoch, m.ballot))
        accepted = (state.accepted_at, to_tuple(state.value)) if state.value is not None else ()
        out.after.append((peer, Promise(m.epoch, m.ballot, accepted)))

    def on_accept(self, peer: int, m: Accept, out: Effects) -> None:
        if m.epoch < self.floor:
            return
        state = self._at(m.epoch)
        if state.promised is not None and m.ballot < state.promised:
            return  # promised to a higher ballot
        state.promised = state.accepted_at = m.ballot
        state.value = m.value
        out.records.append(AcceptedValue(m.epoch, m.ballot, m.value))
        out.after.append((peer, Accepted(m.epoch, m.ballot)))

    def _at(self, epoch: int) -> RegisterState:
        state = self.registers.get(epoch)
        if state is None:
            state = self.registers[epoch] = RegisterState()
            for old in [e for e in self.registers if e < self.floor]:
                del self.registers[old]
        return state


class Proposer:
    """One attempt to decide the view of one epoch with one ballot, among *voters*."""

    def __init__(self, epoch: int, ballot: Ballot, voters: tuple[int, ...], value: View) -> None:
        assert value.epoch == epoch
        self.epoch = epoch
        self.ballot = ballot
        self.voters = voters
        self.value = value
        self.decided: View | None = None
        self._promises: dict[int, tuple[Any, ...]] = {}
        self._accepted: set[int] = set()
        self._accepting = False

    @property
    def promised(self) -> bool:
        """A majority has promised, and is asked to accept."""
        return self._accepting

    @property
    def _majority(self) -> int:
        return len(self.voters) // 2 + 1

    def start(self, out: Effects) -> None:
        """Ask every voter, this replica's own register included."""
        out.send.extend((v, Prepare(self.epoch, self.ballot)) for v in self.voters)

    def on_promise(self, peer: int, m: Promise, adopt: Any, out: Effects) -> None:
        """*adopt* turns an accepted value into a View (raises WireError on nonsense)."""
        if m.epoch != self.epoch or m.ballot != self.ballot or peer not in self.voters or self._accepting:
            return
        self._promises[peer] = m.accepted
        if len(self._promises) < self._majority:
            return
        accepted = [p for _, p in sorted(self._promises.items()) if p]
        if accepted:
            # Somebody may have decided it: that one whole, not ours [10-group, rule 3].
            self.value = adopt(max(accepted, key=lambda p: p[0])[1])
        self._accepting = True
        out.send.extend((v, Accept(self.epoch, self.ballot, self.value)) for v in self.voters)

    def on_accepted(self, peer: int, m: Accepted) -> None:
        if m.epoch != self.epoch or m.ballot != self.ballot or peer not in self.voters or not self._accepting:
            return
        self._accepted.add(peer)
        if len(self._accepted) >= self._majority:
            self.decided = self.value

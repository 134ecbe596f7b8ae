"""Pure. Whom we hear. Silence is counted in our own ticks of at most H each: a process that was paused itself
must not throw out the healthy ones when it wakes."""

from __future__ import annotations

from dataclasses import dataclass

from vsync import limits
from wire.group import Heartbeat

MIN_TICKS = -(-limits.SILENCE_MIN // limits.HEARTBEAT)
MAX_TICKS = limits.SILENCE_MAX // limits.HEARTBEAT
JITTER_MAX = -(-MAX_TICKS // 2)
"""More would only be forgotten later: twice this is the longest patience there is."""
JITTER_STEP = 2
"""Ticks that a silence which cost a view adds, 200 ms of patience: enough that a peer which stalls again and again is
borne with after a few times, and little enough that a second failure soon after is noticed in half a second."""


@dataclass(slots=True)
class Peer:
    """What the detector knows of one replica."""

    linked: bool = False
    silent: int = MAX_TICKS + 1
    """Own ticks since it was heard."""
    jitter: int = 0
    """The silence (ticks) that twice covers: it adapts to silences that ended by themselves, and fades."""
    timely: int = 0
    """Ticks in which it was heard since a tick was taken off that."""
    before: int | None = None
    """The jitter before a silence that cost the active view."""
    said: Heartbeat | None = None
    """Its last heartbeat."""
    broken: bool = False
    """Its link broke since it was last heard."""
    relied_on: bool = False
    """It was active in a view with us, and is not known to have failed since. Silences of others cost nobody anything
    and teach nothing: after a cut, a connection's retransmissions come in bursts until it is taken in again."""

    @property
    def patience(self) -> int:
        return min(max(MIN_TICKS, 2 * self.jitter), MAX_TICKS)


class Detector:
    """Suspicion of every other replica."""

    def __init__(self, peers: list[int]) -> None:
        self.peers = {p: Peer() for p in peers}

    def watch(self, peers: list[int], linked: set[int]) -> None:
        """From now on *peers* are of interest, and nobody else; some may be *linked* already."""
        for gone in self.peers.keys() - set(peers):
            del self.peers[gone]
        for p in peers:
            if p not in self.peers:
                self.peers[p] = Peer(linked=p in linked)

    def link_up(self, peer: int) -> None:
        self.peers[peer].linked = True

    def link_down(self, peer: int) -> None:
        p = self.peers[peer]
        p.linked = False
        p.broken = True

    def heard(self, peer: int) -> None:
        """Something came from *peer*."""
        p = self.peers[peer]
        borne = p.silent <= p.patience
        if p.relied_on and 1 < p.silent <= MAX_TICKS:
            # A silence that was borne cost nothing, so twice as long is borne from now on. One that was not may have
            # been a real failure, and the next one too: it makes us a little more patient, not slow.
            jitter = p.silent if borne else p.patience // 2 + JITTER_STEP
            if not borne:
                p.before = p.jitter
            if jitter >= p.jitter:
                p.jitter = min(jitter, JITTER_MAX)
                p.timely = 0
        p.relied_on = p.relied_on and borne
        p.silent = 0
        if p.linked:
            p.broken = False

    def activated(self, members: tuple[int, ...]) -> None:
        """We are active in a view of *members*. Of one that is left out for its silence, that silence still counts."""
        for peer, p in self.peers.items():
            p.relied_on = peer in members or (p.relied_on and p.silent > p.patience)
            p.before = None

    def left_out(self) -> None:
        """The others have gone on without us: it was not they who were silent, so there is nothing to learn from it.
        Else whoever was cut off and is back would be the last to notice that another one fails then."""
        for p in self.peers.values():
            if p.before is not None:
                p.jitter = p.before
                p.before = None
            p.relied_on = False

    def said(self, peer: int, heartbeat: Heartbeat) -> None:
        self.peers[peer].said = heartbeat

    def last(self, peer: int) -> Heartbeat | None:
        """The last heartbeat of a peer that is still heard."""
        return self.peers[peer].said if self.hears(peer) else None

    def tick(self) -> None:
        """One own tick passed."""
        for p in self.peers.values():
            p.silent = min(p.silent + 1, MAX_TICKS + 1)
            if p.jitter and p.silent == 1:
                p.timely += 1
                if p.timely >= limits.JITTER_FADE:
                    p.timely = 0
                    p.jitter -= 1

    def hears(self, peer: int) -> bool:
        """Not suspected: linked, and not silent for longer than its patience."""
        p = self.peers[peer]
        return p.linked and not p.broken and p.silent <= p.patience

    def hear_each_other(self, group: tuple[int, ...], other: int) -> bool:
        """Whether, by their last heartbeats, everyone of *group* (we or peers) hears *other* and it hears them."""
        mine = self.last(other)
        if mine is None:
            return False
        for member in group:
            if member in self.peers and member != other:
                said = self.last(member)
                if said is None or other not in said.hears:
                    return False
            if member not in mine.hears:
                return False
        return True

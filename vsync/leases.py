"""Pure. Mutual read leases: who promised us, whom we promised, until when, and what ends a promise early.

A promise is made to one incarnation of one replica: "we are in no view without you until then". It protects what that
incarnation reads, and what its clients read by themselves from what it lent them (at most ``lent`` longer). So there is
nothing left to wait for

- when the holder has answered the seal of the view: a sealed replica reads nothing and lends nothing, until it is in
  a later view; how long its clients may go on it says itself (``SealReport.lent_ms``);
- ``lent`` after a certificate that the incarnation is dead, or at once when besides all whom it lent to have let go
  (``Returned``): only a replica that has flushed the view to come knows who they are, so it shortens its own wait with
  that, and never what it reports or decides.

A new view carries what is owed to those it leaves out, by incarnation, so a certificate that comes late still counts.
"""

from __future__ import annotations

from typing import Final

from vsync import limits
from wire.ids import U64_MAX

UNKNOWN: Final = U64_MAX
"""The incarnation in a promise of which a restarted granter knows only that it may have been made: no certificate is
about it."""

Promise = tuple[int, int, int]
"""(peer, incarnation, until)"""


class Leases:
    """Promises given outlive a view; leases held belong to one epoch. Times are microseconds of our own clock."""

    def __init__(self, lent: int = 0) -> None:
        self.lent = lent
        """How long clients may read, at most, after the replica that lent to them has ended (us)."""
        self.granted: dict[int, tuple[int, int]] = {}
        """Peer -> (when we last answered its heartbeat, its incarnation): in no view without it for LEASE from then."""
        self.held: dict[int, int] = {}
        """Peer -> stamp (our clock) of our latest heartbeat it answered in the present epoch."""
        self._owed: dict[tuple[int, int], int] = {}
        """(peer, incarnation) -> until: promises of others that a view obliges us to, and those of our earlier life."""
        self._dead: dict[int, tuple[int, int]] = {}
        """Peer -> (highest incarnation known to be dead, when what it lent has run out)."""
        self._returned: set[tuple[int, int]] = set()
        """(peer, incarnation) of the dead who have nothing out any more, as far as the newest view is concerned."""

    def activate(self) -> None:
        """A view became active: leases of the one before are nothing any more."""
        self.held.clear()

    # -- promises given

    def grant(self, peer: int, incarnation: int, now: int) -> bool:
        """We answer *peer*'s heartbeat, active in the same view, now. False: one of an incarnation that has ended, it
        gets no answer.

        A later incarnation takes the place of the one before: it is active, so it has waited for what that one lent.
        What we owe to an incarnation that nobody could name is of that one or of one before, and this promise outlasts
        it: from now on a certificate counts.
        """
        if incarnation < self.granted.get(peer, (0, 0))[1] or incarnation <= self._dead.get(peer, (-1, 0))[0]:
            return False
        self.granted[peer] = (now, incarnation)
        self._owed.pop((peer, UNKNOWN), None)
        return True

    def owe(self, peer: int, incarnation: int, until: int, now: int) -> None:
        """A promise that is not our own binds us, too."""
        for key in [key for key, end in self._owed.items() if end <= now]:
            del self._owed[key]
        self._owed[peer, incarnation] = max(until, self._owed.get((peer, incarnation), until))

    def died(self, peer: int, incarnation: int, now: int) -> bool:
        """A certificate. False: nothing new."""
        if incarnation <= self._dead.get(peer, (-1, 0))[0]:
            return False
        self._dead[peer] = (incarnation, now + self.lent)
        return True

    def bound(self, peer: int, incarnation: int, until: int) -> int:
        """*until*, or earlier by what we know of the death of that incarnation."""
        dead, then = self._dead.get(peer, (-1, 0))
        return min(until, then) if incarnation <= dead else until

    def dead_ms(self, now: int) -> dict[int, tuple[int, int]]:
        """Certificates: peer -> (incarnation, for how many ms what it lent may still be used)."""
        return {p: (inc, max(0, -(-(until - now) // limits.MS))) for p, (inc, until) in self._dead.items()}

    def promised_until(self, peer: int) -> int | None:
        """When our own promise to *peer* ends (None: none was given since start)."""
        given = self.granted.get(peer)
        return None if given is None else self.bound(peer, given[1], given[0] + limits.LEASE)

    def promises(self, now: int) -> list[Promise]:
        """All that still run, our own and those that bind us."""
        ends = dict(self._owed)
        for peer, (given, incarnation) in self.granted.items():
            ends[peer, incarnation] = max(given + limits.LEASE, ends.get((peer, incarnation), 0))
        bounded = [(peer, inc, self.bound(peer, inc, until)) for (peer, inc), until in sorted(ends.items())]
        return [promise for promise in bounded if promise[2] > now]

    def owed_until(self, members: tuple[int, ...]) -> int:
        """Until when a view of *members* waits because of those it leaves out (its members have answered its seal)."""
        ends = [
            self.bound(peer, inc, until)
            for (peer, inc), until in self._owed.items()
            if peer not in members and (peer, inc) not in self._returned
        ]
        return max(ends, default=0)

    def awaits_return(self, members: tuple[int, ...], now: int) -> list[tuple[int, int]]:
        """(peer, incarnation) of the dead for whom a view of *members* waits only because of what they lent."""
        return [
            (peer, inc)
            for (peer, inc), until in self._owed.items()
            if peer not in members
            and (peer, inc) not in self._returned
            and inc <= self._dead.get(peer, (-1, 0))[0]
            and self.bound(peer, inc, until) > now
        ]

    def returned(self, peer: int, incarnation: int) -> None:
        """See :class:`vsync.effects.Returned`."""
        self._returned.add((peer, incarnation))

    def new_view(self) -> None:
        """Another view is to come: what was returned was so by the log of the one before."""
        self._returned.clear()

    # -- leases held

    def hold(self, peer: int, stamp: int) -> None:
        """*peer* answered our heartbeat of *stamp*."""
        self.held[peer] = max(stamp, self.held.get(peer, stamp))

    def valid(self, peers: list[int], now: int) -> bool:
        """Whether every one of *peers* has promised us this moment."""
        return self.valid_until(peers) > now

    def valid_until(self, peers: list[int]) -> int:
        """When the first of the promises of *peers* runs out: far away for no peers, long ago if one never did."""
        span = limits.LEASE - limits.LEASE_MARGIN
        return min((self.held.get(p, -span) + span for p in peers), default=1 << 62)

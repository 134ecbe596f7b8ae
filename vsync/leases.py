"""Pure. Mutual read leases: who promised us, and whom we promised, and until when."""

from __future__ import annotations

from vsync import limits


class Leases:
    """Promises given outlive a view; leases held belong to one epoch. Times are microseconds of our own clock."""

    def __init__(self) -> None:
        self.granted: dict[int, int] = {}
        """Peer -> when we last answered its heartbeat: we are in no view without it for LEASE after that."""
        self.held: dict[int, int] = {}
        """Peer -> stamp (our clock) of our latest heartbeat it answered in the present epoch."""

    def activate(self) -> None:
        """A view became active: leases of the one before are nothing any more."""
        self.held.clear()

    def grant(self, peer: int, now: int) -> None:
        """We answer *peer*'s heartbeat now."""
        self.granted[peer] = now

    def hold(self, peer: int, stamp: int) -> None:
        """*peer* answered our heartbeat of *stamp*."""
        self.held[peer] = max(stamp, self.held.get(peer, stamp))

    def promised_until(self, peer: int) -> int | None:
        """When our promise to *peer* ends (None: none was ever given since start)."""
        given = self.granted.get(peer)
        return None if given is None else given + limits.LEASE

    def valid(self, peers: list[int], now: int) -> bool:
        """Whether every one of *peers* has promised us this moment."""
        return self.valid_until(peers) > now

    def valid_until(self, peers: list[int]) -> int:
        """When the first of the promises of *peers* runs out: far away for no peers, long ago if one never did."""
        span = limits.LEASE - limits.LEASE_MARGIN
        return min((self.held.get(p, -span) + span for p in peers), default=1 << 62)

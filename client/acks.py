"""Pure. What is acknowledged and not synced, and what tells that it may be gone.

A write is acknowledged when it is in the page caches of all members of its chain that serve. If the machines of all of
them go down before it is synced, its bytes are gone, and a later sync would find nothing to do and succeed. The ordered
state knows when that has happened (mds.namespace.chains.loses) and keeps the chain's version of that moment; every
answer of a target is given under one version of its chain. So two numbers tell, whoever has come into the chain or left
it in between, and however often.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Ack(NamedTuple):
    """An answer that a change, or a sync, has been carried out."""

    version: int
    """Of the chain, under which all members have carried it out."""
    lost: int
    """The chain's in wire.chains.Losses as of that version; 0: nothing was ever lost."""


@dataclass(slots=True)
class Unsynced:
    """What one column of a file was given since its last sync: a number, however much that is."""

    since: int = 0
    """The earliest version of its chain under which any of it was acknowledged; 0: nothing was, as far as we know."""

    def add(self, ack: Ack) -> None:
        """A write was acknowledged."""
        self.since = min(self.since or ack.version, ack.version)

    def join(self, other: Unsynced) -> None:
        """*other* is not synced, either."""
        if other.since:
            self.since = min(self.since or other.since, other.since)

    def take_lost(self, now: Ack) -> bool:
        """Whether some of it may be gone, as the answer *now* shows. Told once: it is forgotten."""
        if not 0 < self.since < now.lost:
            return False
        # A sync covers all of it. After a write its answer is added: what was acknowledged between this loss and the
        # next one may count as of then, the next one has a later version.
        self.since = 0
        return True

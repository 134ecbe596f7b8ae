"""Whose disk a voter has: met once, remembered durably, and from then on nobody else passes for it."""

from __future__ import annotations

from daemon.journal import Journal
from vsync.records import Met


class Acquaintances:
    """The voters this one has met, each with the uuid of its journal and its latest incarnation."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._disks = dict(journal.durable.met)
        self._incarnations: dict[int, int] = {}

    def judge(self, peer: int, uuid: bytes, incarnation: int) -> str | None:
        """Why voter *peer* with that disk and incarnation is not to be talked to, or None."""
        known = self._disks.get(peer)
        if known is not None and known != uuid:
            return (
                f"replica {peer} has another disk than before ({uuid.hex()}, was {known.hex()}): its votes would be "
                f"void, it must be replaced under a new number"
            )
        if incarnation < self._incarnations.get(peer, 0):
            return f"incarnation {incarnation} of replica {peer} is superseded"
        return None

    def is_disk_of(self, peer: int, uuid: bytes) -> bool:
        """*peer* has been met, with this disk."""
        return self._disks.get(peer) == uuid

    def introduce(self, peer: int, uuid: bytes, incarnation: int) -> None:
        """*peer* was accepted."""
        if peer not in self._disks:
            self._disks[peer] = uuid
            # Ticket 0 is before all others: nobody waits for it, it goes to disk with what comes next or at once.
            self._journal.append(0, [Met(peer, uuid)])
        self._incarnations[peer] = incarnation

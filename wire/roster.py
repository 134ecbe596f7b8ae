"""Pure. The requests that change who belongs to the cluster. An administrator asks for them; see
mds.namespace.roster."""

from __future__ import annotations

from wire import ids
from wire.codec import message


def _bad_voter(number: int, by: str) -> str | None:
    if not 0 < number <= ids.REPLICA_ID_MAX:
        return f"voter {number}"
    return None if 0 < len(by) <= 255 else "by: nobody, or over 255 characters"


@message(60)
class ReplicaSet:
    """Roster change: *replica* belongs to the cluster and is reached at *address* (added, or moved there).

    ``by``: who asks, for people. Result: the roster's version. Idempotent. EEXIST: the number is a witness's, or was
    removed before (a number is never given to another disk); EADDRINUSE: the address is another's.
    """

    replica: int
    address: str
    by: str

    def invalid(self) -> str | None:
        return _bad_voter(self.replica, self.by) or ids.bad_address(self.address)


@message(61)
class ReplicaRemove:
    """Roster change: *replica* belongs to the cluster no more, for ever. Result: the roster's version. Idempotent.

    ENOENT: there never was one; EBUSY: it is the last.
    """

    replica: int
    by: str

    def invalid(self) -> str | None:
        return _bad_voter(self.replica, self.by)


@message(62)
class WitnessSet:
    """Roster change: witness *witness* votes and is reached at *address*. As ReplicaSet."""

    witness: int
    address: str
    by: str

    def invalid(self) -> str | None:
        return _bad_voter(self.witness, self.by) or ids.bad_address(self.address)


@message(63)
class WitnessRemove:
    """Roster change: *witness* has no vote any more, for ever. As ReplicaRemove (there may be no witness left)."""

    witness: int
    by: str

    def invalid(self) -> str | None:
        return _bad_voter(self.witness, self.by)


RosterRequest = ReplicaSet | ReplicaRemove | WitnessSet | WitnessRemove

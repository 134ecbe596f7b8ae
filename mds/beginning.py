"""What a metadata replica's journal and state begin with, where there is none yet."""

from __future__ import annotations

from daemon.config import Config
from mds import schema
from mds.machine import Bootstrap
from mds.roster import Known
from mds.store import Store
from mds.verify import trusted_or_verified
from vsync.records import Decided, Flushed, Record
from vsync.view import genesis


def beginning(config: Config, joined: Known | None) -> tuple[list[Record], Bootstrap]:
    """What a journal and a state begin with, where there is none yet.

    The replicas of a new cluster are all members of its first view and begin with the same state, from the
    configuration that they share.  One that joins later knows no view at all, which for the group is a newcomer: it
    takes a snapshot, wherever history may begin, and until then it only has to know where the others are.
    """
    storage = config.storage
    if joined is None:
        replicas = tuple((r.id, r.address) for r in config.replicas if not r.joins)
        witnesses = tuple((v.id, v.address) for v in config.voters if v.witness)
        first = genesis(tuple(n for n, _ in replicas), tuple(n for n, _ in witnesses))
        return [Decided(first), Flushed(0)], Bootstrap(
            storage.stripe_size,
            storage.stripe_count,
            storage.copies,
            storage.inline,
            replicas=tuple(sorted(replicas)),
            witnesses=witnesses,
        )
    roster = joined.roster
    return [], Bootstrap(
        storage.stripe_size,
        storage.stripe_count,
        storage.copies,
        storage.inline,
        replicas=roster.replicas,
        witnesses=roster.witnesses,
    )


def is_new(config: Config, replica_id: int) -> bool:
    """This replica has no state: it was never started, or not long enough to get one."""
    path = config.replica(replica_id).data / "state"
    if not path.exists():
        return True
    trusted_or_verified(path)
    store = Store.open(path)
    try:
        return store.get(schema.META, schema.META_APPLIED) is None
    finally:
        store.close()

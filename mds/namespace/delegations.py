"""Pure. What is delegated to which session (:mod:`wire.delegation`), as it stands in the state.

A directory is delegated to at most one session. Nothing that depends on its entries or attributes is executed or
answered for anybody else meanwhile, so its holder knows by itself whether a name is there.
"""

from __future__ import annotations

from typing import NamedTuple

from mds import limits, schema
from mds.namespace.scope import Delegated, Scope
from mds.store import Store
from wire.codec import pack, unpack_untrusted
from wire.delegation import NUMBERS


class Holder(NamedTuple):
    """A record of HOLDERS."""

    blocks: tuple[int, ...] = ()
    """The first number of each block that the session may use, in the order in which they were given."""
    revoked: tuple[int, ...] = ()
    """Directories taken away from it of which it has not said that it knows, ascending: it is told when it attaches."""

    def owns(self, number: int) -> bool:
        """Whether the session may give *number* to a file."""
        return any(first <= number < first + NUMBERS for first in self.blocks)


def load(store: Store) -> dict[int, Delegated]:
    """All delegations: directory -> (session, whether it is wanted back)."""
    found: dict[int, Delegated] = {}
    for key, value in store.scan(schema.DELEGATIONS, b"", None):
        session, recalled = unpack_untrusted(value)
        found[int.from_bytes(key, "big")] = session, bool(recalled)
    return found


def holder(store: Store, session: int) -> Holder:
    """What *session* may use; nothing when it never was delegated anything."""
    raw = store.get(schema.HOLDERS, schema.u64(session))
    return Holder() if raw is None else Holder(*unpack_untrusted(raw))


def put_holder(store: Store, session: int, record: Holder) -> None:
    blocks = record.blocks[-limits.BLOCKS_OF_ONE :]
    store.put(schema.HOLDERS, schema.u64(session), pack((blocks, tuple(sorted(record.revoked)))))


def paused(scope: Scope) -> bool:
    """Whether nothing more is to be delegated now."""
    raw = scope.store.get(schema.META, schema.META_PAUSE)
    return raw is not None and scope.now < unpack_untrusted(raw)[0]


def pause(scope: Scope) -> None:
    scope.store.put(schema.META, schema.META_PAUSE, pack((scope.now + limits.DELEGATION_PAUSE_NS,)))


def put(scope: Scope, directory: int, session: int, recalled: bool) -> None:
    """*directory* is delegated to *session*, and wanted back if *recalled*."""
    scope.store.put(schema.DELEGATIONS, schema.u64(directory), pack((session, int(recalled))))
    scope.redelegated[directory] = session, recalled


def end(scope: Scope, directory: int) -> None:
    """*directory* is delegated to nobody any more."""
    scope.store.delete(schema.DELEGATIONS, schema.u64(directory))
    scope.redelegated[directory] = None


def end_all(scope: Scope, session: int) -> None:
    """*session* has ended: what was delegated to it is not any more."""
    for directory, (whose, _) in sorted(scope.delegated.items()):
        if whose == session:
            end(scope, directory)
    if scope.store.get(schema.HOLDERS, schema.u64(session)) is not None:
        scope.store.delete(schema.HOLDERS, schema.u64(session))

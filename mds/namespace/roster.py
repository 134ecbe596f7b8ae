"""Pure. The roster, part of the state: who belongs to the cluster, and where each is reached.

A new state takes it from the configuration; afterwards it changes by requests alone (:mod:`mds.namespace.ops.roster`).
Who is removed stays in it as such, with who did it and when: its number is never given to another disk, and whoever
comes with it is told why it is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from mds import schema
from mds.store import Store
from wire.codec import pack, unpack_untrusted
from wire.errors import WireError

REPLICA: Final = 1
WITNESS: Final = 2
REMOVED_REPLICA: Final = 3
REMOVED_WITNESS: Final = 4
"""Kinds of records."""

Addresses = tuple[tuple[int, str], ...]
"""((id, address), ...), ascending by id."""


@dataclass(frozen=True, slots=True)
class Roster:
    """The whole of it at one index."""

    version: int = 0
    replicas: Addresses = ()
    witnesses: Addresses = ()
    removed: tuple[tuple[int, str, str, int], ...] = ()
    """((id, last address, by whom, state's time in ns), ...), ascending by id."""

    @property
    def replica_ids(self) -> tuple[int, ...]:
        """Who may be a member."""
        return tuple(number for number, _ in self.replicas)

    @property
    def voter_ids(self) -> tuple[int, ...]:
        """Who shall be a voter."""
        return tuple(sorted(number for number, _ in (*self.replicas, *self.witnesses)))

    def address_of(self, voter: int) -> str | None:
        """Where the replica or witness is reached, or was before it was removed."""
        known = {number: address for number, address, _, _ in self.removed}
        return (known | dict(self.replicas) | dict(self.witnesses)).get(voter)

    def removal_of(self, voter: int) -> str | None:
        """Who removed the voter and when, for people; None when it was not."""
        for number, _, by, time_ns in self.removed:
            if number == voter:
                when = datetime.fromtimestamp(time_ns // 1_000_000_000, UTC)
                return f"{by} at {when:%Y-%m-%d %H:%M:%S} UTC"
        return None

    def to_tuple(self) -> tuple[Any, ...]:
        """As it travels (wire.messages.RosterCall)."""
        return (self.version, self.replicas, self.witnesses, self.removed)


def from_tuple_untrusted(value: Any) -> Roster:
    """Back from :meth:`Roster.to_tuple`. Raises :class:`wire.errors.WireError`."""
    match value:
        case (int(version), tuple(replicas), tuple(witnesses), tuple(removed)):
            pairs = (*replicas, *witnesses)
            good = all(
                type(p) is tuple and len(p) == 2 and type(p[0]) is int and type(p[1]) is str for p in pairs
            ) and all(type(r) is tuple and [type(x) for x in r] == [int, str, str, int] for r in removed)
            if good:
                return Roster(version, replicas, witnesses, removed)
    raise WireError("not a roster")


def load(store: Store) -> Roster:
    """The roster in *store*."""
    found: dict[int, list[Any]] = {REPLICA: [], WITNESS: [], REMOVED_REPLICA: []}
    for key, value in store.scan(schema.ROSTER, b"", None):
        kind, address, by, time_ns = unpack_untrusted(value)
        number = key[0]
        if kind in (REPLICA, WITNESS):
            found[kind].append((number, address))
        else:
            found[REMOVED_REPLICA].append((number, address, by, time_ns))
    return Roster(version(store), tuple(found[REPLICA]), tuple(found[WITNESS]), tuple(found[REMOVED_REPLICA]))


def version(store: Store) -> int:
    raw = store.get(schema.META, schema.META_ROSTER)
    return 0 if raw is None else int(unpack_untrusted(raw)[0])


def write_first(store: Store, replicas: Iterable[tuple[int, str]], witnesses: Iterable[tuple[int, str]]) -> None:
    """A new state's roster, from the configuration."""
    for kind, voters in ((REPLICA, replicas), (WITNESS, witnesses)):
        for number, address in voters:
            store.put(schema.ROSTER, schema.voter_key(number), pack((kind, address, "the configuration", 0)))
    store.put(schema.META, schema.META_ROSTER, pack((0,)))

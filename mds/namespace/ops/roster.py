"""Pure. ReplicaSet, ReplicaRemove, WitnessSet, WitnessRemove: who belongs to the cluster.

What the group makes of it (who is a member, who votes) follows from the roster, not from these requests: they may
come in any number and order, from several administrators, and be sent again; the coordinator of the view brings
members and voters there, one voter per view.
"""

from __future__ import annotations

import errno
from typing import Any

from mds import schema
from mds.namespace import roster
from mds.namespace.scope import Scope
from wire.codec import pack, unpack_untrusted
from wire.errors import FileSystemError
from wire.roster import ReplicaRemove, ReplicaSet, WitnessRemove, WitnessSet


def set_replica(scope: Scope, op: ReplicaSet) -> Any:
    return _set(scope, op.replica, roster.REPLICA, op.address, op.by)


def set_witness(scope: Scope, op: WitnessSet) -> Any:
    return _set(scope, op.witness, roster.WITNESS, op.address, op.by)


def remove_replica(scope: Scope, op: ReplicaRemove) -> Any:
    if roster.load(scope.store).replica_ids == (op.replica,):
        raise FileSystemError(errno.EBUSY)
    return _remove(scope, op.replica, roster.REPLICA, roster.REMOVED_REPLICA, op.by)


def remove_witness(scope: Scope, op: WitnessRemove) -> Any:
    return _remove(scope, op.witness, roster.WITNESS, roster.REMOVED_WITNESS, op.by)


def _set(scope: Scope, number: int, kind: int, address: str, by: str) -> int:
    now = roster.load(scope.store)
    raw = scope.store.get(schema.ROSTER, schema.voter_key(number))
    if raw is not None:
        was, where, _, _ = unpack_untrusted(raw)
        if was != kind:
            raise FileSystemError(errno.EEXIST)
        if where == address:
            return now.version
    if any(where == address and (kind == roster.REPLICA or other in now.replica_ids)
           for other, where in (*now.replicas, *now.witnesses) if other != number):  # fmt: skip
        raise FileSystemError(errno.EADDRINUSE)
    return _put(scope, number, kind, address, by)


def _remove(scope: Scope, number: int, kind: int, removed: int, by: str) -> int:
    raw = scope.store.get(schema.ROSTER, schema.voter_key(number))
    was, address, _, _ = unpack_untrusted(raw) if raw is not None else (0, "", "", 0)
    if was == removed:
        return roster.version(scope.store)
    if was != kind:
        raise FileSystemError(errno.ENOENT)
    return _put(scope, number, removed, address, by)


def _put(scope: Scope, number: int, kind: int, address: str, by: str) -> int:
    store = scope.store
    version = roster.version(store) + 1
    store.put(schema.ROSTER, schema.voter_key(number), pack((kind, address, by, scope.now)))
    store.put(schema.META, schema.META_ROSTER, pack((version,)))
    scope.roster_changed = True
    return version

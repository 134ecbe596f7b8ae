"""Pure. Delegate, CreateDelegated, Undelegate, RecallDelegations, RevokeDelegations: see :mod:`wire.delegation`.

CreateDelegated does what Create does, with the number and the time that the client has told its application already:
whatever it predicted of the file and of the directory is what comes out.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any, Final

from mds import limits, schema
from mds.namespace import acl, delegations, entries, inline, layout, quota
from mds.namespace.inode import S_IFREG, Inode
from mds.namespace.perm import W, X, need, without_set_id
from mds.namespace.scope import Scope
from wire.delegation import (
    DIRECTORIES_MAX,
    NUMBERS,
    CreateDelegated,
    Delegate,
    RecallDelegations,
    RevokeDelegations,
    Undelegate,
)
from wire.errors import FileSystemError, Status

LATE_NS: Final = 60_000_000_000
"""A client that says it made a file longer ago than that has another clock: then it was made now."""


def delegate(scope: Scope, op: Delegate) -> Any:
    above = scope.inode(op.parent)
    if not above.is_dir:
        raise FileSystemError(errno.ENOTDIR)
    need(above, op.cred, W | X)
    default = scope.storage.default
    limit = layout.policy_of(layout.of_directory(scope.store, op.parent, above), default).inline
    if not limit or not scope.block or not scope.session or not _may_be(scope, op.parent, above):
        return None
    known = delegations.holder(scope.store, scope.session)
    if len(known.revoked) >= limits.DELEGATIONS_OF_ONE and op.parent not in known.revoked:
        return None  # it does not say that it has heard of them
    revoked = tuple(ino for ino in known.revoked if ino != op.parent)
    record = delegations.Holder((*known.blocks, scope.block), revoked)
    delegations.put_holder(scope.store, scope.session, record)
    if op.parent not in scope.delegated:
        delegations.put(scope, op.parent, scope.session, recalled=False)
    return above.attr(op.parent), scope.block, NUMBERS, limit, scope.now


def _may_be(scope: Scope, ino: int, above: Inode) -> bool:
    """Whether directory *ino* may be delegated to the session, or is."""
    whose = scope.delegated.get(ino)
    if whose is not None:
        return whose == (scope.session, False)
    own = sum(session == scope.session for session, _ in scope.delegated.values())
    if own >= limits.DELEGATIONS_OF_ONE or len(scope.delegated) >= DIRECTORIES_MAX or delegations.paused(scope):
        return False
    # What the client predicts: nothing is refused for a quota, permissions come from the mode, times go on.
    if above.quota or quota.counting(scope.store) or max(above.mtime_ns, above.ctime_ns) > scope.now:
        return False
    return not above.xattrs or scope.store.get(schema.XATTRS, schema.xattr_key(ino, acl.DEFAULT)) is None


def create(scope: Scope, op: CreateDelegated) -> Any:
    store, ino = scope.store, op.ino
    if (
        not delegations.holder(store, scope.session).owns(ino)
        or scope.find(ino) is not None
        or store.get(schema.RECLAIM, schema.u64(ino)) is not None
    ):
        raise FileSystemError(errno.EACCES)
    when = min(op.time_ns, scope.now)
    if when < scope.now - LATE_NS:
        when = scope.now
    made = entries.Making(ino, when)
    _, inode, above = entries.make(scope, op.cred, op.parent, op.name, S_IFREG | op.mode & 0o7777, made)
    layout.give(store, scope.storage, ino, inode, op.parent, above)
    if op.end > inode.inline:
        raise FileSystemError(Status.STALE_LAYOUT)
    if op.pieces:
        inline.write(scope, ino, inode, op.pieces)
        inode.size = op.end
        inode.mtime_ns = inode.ctime_ns = max(when, min(op.mtime_ns, scope.now))
        if not op.privileged:
            inode.mode = without_set_id(inode.mode)
    scope.put(ino, inode)
    scope.put(op.parent, above)
    scope.opened = ino
    return inode.attr(ino)


def undelegate(scope: Scope, op: Undelegate) -> Any:
    given = frozenset(op.parents)
    for directory in op.parents:
        if directory in scope.delegated and scope.delegated[directory][0] == scope.session:
            delegations.end(scope, directory)
    known = delegations.holder(scope.store, scope.session)
    if not given.isdisjoint(known.revoked):
        left = tuple(ino for ino in known.revoked if ino not in given)
        delegations.put_holder(scope.store, scope.session, known._replace(revoked=left))
    return None


def recall(scope: Scope, op: RecallDelegations) -> Any:
    for directory in op.parents:
        if directory in scope.delegated and not scope.delegated[directory][1]:
            delegations.put(scope, directory, scope.delegated[directory][0], recalled=True)
    if op.pause:
        delegations.pause(scope)
    return None


def revoke(scope: Scope, op: RevokeDelegations) -> Any:
    for directory, session in op.delegations:
        if scope.delegated.get(directory) == (session, True):
            delegations.end(scope, directory)
            known = delegations.holder(scope.store, session)
            revoked = tuple({*known.revoked, directory})
            delegations.put_holder(scope.store, session, known._replace(revoked=revoked))
    return None


APPLY: Final[dict[type, Callable[[Scope, Any], Any]]] = {
    Delegate: delegate,
    CreateDelegated: create,
    Undelegate: undelegate,
}
APPLY_INTERNAL: Final[dict[type, Callable[[Scope, Any], Any]]] = {
    RecallDelegations: recall,
    RevokeDelegations: revoke,
}

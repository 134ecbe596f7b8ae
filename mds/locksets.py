"""Pure. Which locks each request takes (:mod:`mds.locks`), and what its origin has to look up before it can be told.

Keys are inode numbers, names ``(parent, name)``, and the tuples below. A request that puts a name into a directory or
takes one out holds ``update`` on the directory: that lets it read the directory's record whole, and change the number
of entries, the link count and the times. Who holds ``read`` on a directory may look at everything else in it: that it
is there, what it is, whose, its mode, its policy.

Where the locks depend on the state (which inode a name stands for), the origin looks before it multicasts, and the
entry says what it *saw*. If that is not so any more when the request is to be executed, the plan is stale: the request
is answered so at every replica, changes nothing, and the origin plans it again. What comes without a plan, and what
is not known here, takes the lock on everything.

Locks are each replica's own affair: whoever keeps what conflicts in the order of delivery ends in the same state. So
two things are decided by what stands here, where it is certain that no request that waits here can make it untrue
(:func:`locks_of`): in which quotas something is counted, and whether what a ReclaimDone deletes is there.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterable
from typing import Any, Final

from mds import schema, sessions
from mds.locks import READ, UPDATE, WRITE, Key, Locks
from mds.namespace import entries, quota
from mds.namespace.inode import S_IFDIR, decode
from mds.namespace.queries import STORAGE_MAP
from mds.namespace.scope import Delegated
from mds.store import Store
from wire import ops, quotaops, targetops
from wire.delegation import CreateDelegated, Delegate, RecallDelegations, RevokeDelegations, Undelegate
from wire.fileops import Denied, Reserve
from wire.inline import GrownOut, GrowOut, InlineRequest, WriteInline
from wire.roster import RosterRequest

Seen = tuple[int, ...]
"""What an origin saw: inodes behind names (0: there is no such name), see :func:`look`."""

EVERYTHING: Final = ("everything",)
"""Read by all; written by who cannot say what it touches."""
STORAGE: Final = ("storage",)
"""The storage map."""
ROSTER: Final = ("roster",)
TREE: Final = ("tree",)
"""Which directory is in which: what a directory that moves elsewhere must not be changed under."""
SESSIONS: Final = ("sessions",)
"""Which sessions there are."""
QUOTAS: Final = ("quotas",)
"""What is counted in any quota: read by who knows in which one, and locks that (:func:`quota_key`); written by who does
not. A limit refuses who comes last, so all that is counted in the same keeps its order. Without a quota nobody takes
this lock."""
PLACES: Final = ("places",)
"""Written by who may change in which quota something is counted."""

DELEGATIONS: Final = ("delegations",)
"""How many directories are delegated."""

_DIRECTORY: Final = S_IFDIR >> 12
_NOTHING: Final[frozenset[int]] = frozenset()
_MAKES: Final = (ops.Create, ops.Mkdir, ops.Mknod, ops.Symlink, CreateDelegated)
_WHOLE: Final[Locks] = ((EVERYTHING, WRITE),)


def session_key(session: int) -> Key:
    return "session", session


def quota_key(top: int) -> Key:
    """*top*: a quota root that lies in no other one. With it goes what is counted in those below."""
    return "quota", top


def slot_key(session: int, slot: int) -> Key:
    return "slot", session, slot


# --- what the origin sees -------------------------------------------------------------------------


def _behind(store: Store, parent: int, name: bytes) -> tuple[int, bool]:
    """(inode, whether it is a directory) behind a name; (0, False) when there is none."""
    entry = entries.find(store, parent, name)
    return (0, False) if entry is None else (entry[0], entry[1] == _DIRECTORY)


def _look_name(store: Store, op: Any) -> Seen:
    return (_behind(store, op.parent, op.name)[0],)


def _look_rename(store: Store, op: Any) -> Seen:
    source, down = _behind(store, op.parent, op.name)
    target, up = _behind(store, op.new_parent, op.new_name)
    return source, target, int(op.parent != op.new_parent and (down or up))


def _look_session(store: Store, op: Any) -> Seen:
    return (sessions.by_key(store, op.key) or 0,)


_LOOK: Final[dict[type, tuple[int, Callable[[Store, Any], Seen]]]] = {
    ops.Unlink: (1, _look_name),
    ops.Rmdir: (1, _look_name),
    ops.Rename: (3, _look_rename),
    ops.SessionOpen: (1, _look_session),
}
"""Requests whose locks depend on the state -> how many numbers their origin sees, and how."""


def look(store: Store, op: Any) -> Seen | None:
    """What the origin of *op* sees now, which goes into its entry; None: its locks need no look.

    Unlink, Rmdir: (inode,). Rename: (source, target, 1 if a directory changes its place in the tree). SessionOpen: (the
    session that has the key,).
    """
    how = _LOOK.get(type(op))
    return None if how is None else how[1](store, op)


def seen_untrusted(op: Any, entry: Any) -> Seen | None:
    """What the origin of this (well-formed) entry saw, if it tells and that is of the right form for *op*."""
    if len(entry) < 6:
        return None
    how = _LOOK.get(type(op))
    seen = entry[5]
    return seen if how is not None and type(seen) is tuple and len(seen) == how[0] else None


# --- what a request locks -------------------------------------------------------------------------


def _name_removed(op: Any, seen: Seen) -> list[tuple[Key, int]]:
    name = (op.parent, op.name)
    if not seen[0]:
        return [(op.parent, READ), (name, READ)]
    return [(op.parent, UPDATE), (name, WRITE), (seen[0], WRITE)]


def _directory_removed(op: Any, seen: Seen) -> list[tuple[Key, int]]:
    locks = _name_removed(op, seen)
    if seen[0]:
        locks.append((DELEGATIONS, WRITE))  # it may be delegated to whoever removes it
    return locks


def _renamed(op: Any, seen: Seen) -> list[tuple[Key, int]]:
    old, new = (op.parent, op.name), (op.new_parent, op.new_name)
    source, target, tree = seen
    if not source:
        return [(op.parent, READ), (op.new_parent, READ), (old, READ), (new, READ)]
    locks: list[tuple[Key, int]] = [(op.parent, UPDATE), (op.new_parent, UPDATE), (old, WRITE), (new, WRITE)]
    locks.append((source, WRITE))
    if target:
        locks.append((target, WRITE))
    if tree:
        locks.append((TREE, WRITE))
    return locks


_PLANNED: Final[dict[type, Callable[[Any, Seen], list[tuple[Key, int]]]]] = {
    ops.Unlink: _name_removed,
    ops.Rmdir: _directory_removed,
    ops.Rename: _renamed,
    ops.SessionOpen: lambda op, seen: [(SESSIONS, WRITE), *([(session_key(seen[0]), WRITE)] if seen[0] else [])],
}


def _made(op: Any) -> list[tuple[Key, int]]:
    return [(op.parent, UPDATE), ((op.parent, op.name), WRITE), (STORAGE, READ)]


def _inode(op: Any) -> list[tuple[Key, int]]:
    return [(op.ino, WRITE)]


def _session_ended(op: Any) -> list[tuple[Key, int]]:
    return [(EVERYTHING, WRITE)]  # what is delegated to it is part of the state


def _redelegated(op: Any) -> list[tuple[Key, int]]:
    return [(DELEGATIONS, WRITE), *((ino, WRITE) for ino in op.parents)]


def _revoked(op: Any) -> list[tuple[Key, int]]:
    held = [(DELEGATIONS, WRITE), *((ino, WRITE) for ino, _ in op.delegations)]
    return [*held, *((session_key(session), WRITE) for _, session in op.delegations)]


def _attribute(op: Any) -> list[tuple[Key, int]]:
    # Where a tree is counted changes with this one, and with all that comes of it.
    return [(EVERYTHING, WRITE)] if op.name == quota.ATTRIBUTE else [(op.ino, WRITE), (STORAGE, READ)]


_LOCKS: Final[dict[type, Callable[[Any], list[tuple[Key, int]]]]] = {
    **dict.fromkeys(_MAKES, _made),
    **dict.fromkeys((ops.SetAttr, ops.Commit, ops.Settle, Reserve, WriteInline, GrownOut), _inode),
    **dict.fromkeys((ops.SetXattr, ops.RemoveXattr), _attribute),
    GrowOut: lambda op: [(op.ino, WRITE), (STORAGE, READ)],
    Denied: lambda op: [],
    ops.Link: lambda op: [(op.ino, WRITE), (op.parent, UPDATE), ((op.parent, op.name), WRITE)],
    # Of an inode that somebody reads, atime is nobody's business.
    ops.Accessed: lambda op: [(ino, UPDATE) for ino, _ in op.files],
    ops.OrphanAnswer: lambda op: [(ino, WRITE) for ino in (*op.released, *op.pinned)],
    ops.ReclaimDone: lambda op: [(ino, WRITE) for ino in op.inos],
    ops.SessionAttach: lambda op: [(session_key(op.session), WRITE)],
    ops.SessionClose: _session_ended,
    ops.SessionExpire: _session_ended,
    ops.TargetSet: lambda op: [(STORAGE, WRITE)],
    **dict.fromkeys(typing.get_args(targetops.TargetRequest), lambda op: [(STORAGE, WRITE)]),
    **dict.fromkeys(typing.get_args(RosterRequest), lambda op: [(ROSTER, WRITE)]),
    Delegate: lambda op: [(DELEGATIONS, WRITE), (op.parent, WRITE), (STORAGE, READ), (QUOTAS, READ)],
    CreateDelegated: lambda op: [*_made(op), (op.ino, WRITE)],
    **dict.fromkeys((Undelegate, RecallDelegations), _redelegated),
    RevokeDelegations: _revoked,
}


def _counted(op: Any, seen: Seen | None) -> tuple[int, ...]:
    """Inodes that are counted where the request may change what quotas count: inodes, and sizes of files."""
    if isinstance(op, _MAKES):
        return (op.parent,)
    if isinstance(op, ops.Commit | WriteInline) or (isinstance(op, ops.SetAttr) and op.valid & ops.SET_SIZE):
        return (op.ino,)
    if isinstance(op, ops.OrphanAnswer):
        return op.released
    if seen is None or not seen[0]:
        return ()
    if isinstance(op, ops.Unlink | ops.Rmdir):
        return (seen[0],)
    if isinstance(op, ops.Rename) and (op.parent != op.new_parent or seen[1]):
        return (op.parent, op.new_parent, *filter(None, seen[:2]))
    return ()


def _quotas(op: Any, seen: Seen | None, store: Store, unsettled: bool) -> list[tuple[Key, int]]:
    """What *op* locks because of quotas."""
    counted = _counted(op, seen)
    if not counted or not (unsettled or quota.exists(store)):
        return []
    tops = None if unsettled else {_top(store, ino) for ino in counted}
    if tops is None or None in tops:
        return [(QUOTAS, WRITE), *([(PLACES, WRITE)] if isinstance(op, ops.Rename) else [])]
    if isinstance(op, ops.Rename) and len(tops) > 1:
        return [(QUOTAS, WRITE), (PLACES, WRITE)]
    return [(QUOTAS, READ), *((quota_key(top), WRITE) for top in tops if top)]


def _top(store: Store, ino: int) -> int | None:
    """The uppermost quota root that inode *ino* is counted in, 0: none. None: there is no such inode (yet)."""
    record = store.get(schema.INODES, schema.u64(ino))
    if record is None:
        return None
    top = 0
    for root, _ in quota.chain(store, decode(record).quota):
        top = root
    return top


def _reclaimed_here(store: Store, op: ops.ReclaimDone) -> bool:
    """All that it deletes is there.

    1. Who queues objects for deletion holds their file; what they are called it finds out when it is executed. 2. The
    replica that has executed it has them deleted and says so, while here it may still wait. 3. A record is put once,
    so where it is, whoever puts it is not among those who wait.
    """
    return all(store.get(schema.RECLAIM, schema.u64(ino)) is not None for ino in op.inos)


def locks_of(
    op: Any, session: int, slot: int, seen: Seen | None, fresh: int, store: Store, unsettled: bool = False
) -> Locks:
    """The locks of one request, each key once, by *op* and what its origin has *seen*; in two points (see the module)
    by what stands in the *store* here, too. *unsettled*: somebody who writes EVERYTHING or PLACES comes before it and
    waits.

    *op* None: it does not decode, and is answered so. *fresh*: the number that what it makes gets; nobody else can know
    it by then, but a client might guess.
    """
    if op is None:
        found: list[tuple[Key, int]] = []
    elif seen is not None:
        found = _PLANNED[type(op)](op, seen)
    else:
        tell = _LOCKS.get(type(op))
        if tell is None:
            return _WHOLE
        if isinstance(op, ops.ReclaimDone) and not _reclaimed_here(store, op):
            return _WHOLE
        found = tell(op)
    found += _quotas(op, seen, store, unsettled)
    if isinstance(op, (*_MAKES, ops.SessionOpen)):
        found.append((fresh if not isinstance(op, ops.SessionOpen) else session_key(fresh), WRITE))
    if session:
        # The reply is kept in the slot; that the session is there is part of every request of it.
        found.append((slot_key(session, slot), WRITE))
        found.append((session_key(session), WRITE if isinstance(op, Delegate | Undelegate) else READ))
    found.append((EVERYTHING, READ))
    return _merged(found)


def _merged(found: Iterable[tuple[Key, int]]) -> Locks:
    """Each key once, with the strongest mode asked: update lets read what read does, write everything."""
    merged: dict[Key, int] = {}
    for key, mode in found:
        if mode > merged.get(key, -1):
            merged[key] = mode
    return tuple(merged.items())


# --- what queries and caches wait for -------------------------------------------------------------


def _touches_name(op: Any, seen: Seen) -> frozenset[int]:
    return frozenset((op.parent, seen[0])) if seen[0] else _NOTHING


def _touches_rename(op: Any, seen: Seen) -> frozenset[int]:
    return frozenset((op.parent, op.new_parent, *filter(None, seen[:2]))) if seen[0] else _NOTHING


def _parent(op: Any) -> frozenset[int]:
    return frozenset((op.parent,))


def _one(op: Any) -> frozenset[int]:
    return frozenset((op.ino,))


def _nothing(op: Any) -> frozenset[int]:
    return _NOTHING


def _storage(op: Any) -> frozenset[int]:
    return frozenset((STORAGE_MAP,))


_TOUCHES: Final[dict[type, Callable[[Any], frozenset[int]]]] = {
    **dict.fromkeys(_MAKES, _parent),
    **dict.fromkeys((ops.SetAttr, ops.Commit, ops.Settle, ops.SetXattr, ops.RemoveXattr, Reserve), _one),
    **dict.fromkeys(typing.get_args(InlineRequest), _one),
    quotaops.QuotaWork: _nothing,  # where an inode is counted is but a hint to caches
    **dict.fromkeys(
        (ops.SessionOpen, ops.SessionAttach, ops.SessionClose, ops.SessionExpire, ops.ReclaimDone), _nothing
    ),
    **dict.fromkeys(typing.get_args(RosterRequest), _nothing),
    ops.Link: lambda op: frozenset((op.ino, op.parent)),
    ops.Accessed: lambda op: frozenset(ino for ino, _time in op.files),
    ops.OrphanAnswer: lambda op: frozenset(op.released + op.pinned),
    ops.TargetSet: _storage,
    **dict.fromkeys(typing.get_args(targetops.TargetRequest), _storage),
    **dict.fromkeys((targetops.KeyRotate, targetops.TargetSpace, Denied), _nothing),
    Delegate: _parent,  # others are to let go of it, and what they ask waits, before its holder answers anything
    **dict.fromkeys((Undelegate, RecallDelegations), _nothing),
    RevokeDelegations: lambda op: frozenset(ino for ino, _ in op.delegations),
}

_TOUCHES_SEEN: Final[dict[type, Callable[[Any, Seen], frozenset[int]]]] = {
    ops.Unlink: _touches_name,
    ops.Rmdir: _touches_name,
    ops.Rename: _touches_rename,
}


def touched(op: Any, seen: Seen | None = None) -> frozenset[int] | None:
    """Inodes of which the request may change what a query sees (attributes, entries, extended attributes): those that
    it locks to update or write. A query takes an update that is on its way like a write.

    None where that is not known: then it is any of them. With a plan it is known, for a stale one changes nothing.
    """
    if seen is not None:
        planned = _TOUCHES_SEEN.get(type(op))
        if planned is not None:
            return planned(op, seen)
    tell = _TOUCHES.get(type(op))
    return tell(op) if tell is not None else None


def touched_of(item: Any, op: Any) -> frozenset[int] | None:
    """:func:`touched` of an entry and its operation (None: it is none)."""
    return touched(op, seen_untrusted(op, item)) if op is not None else _NOTHING


def touched_by(items: tuple[Any, ...], decoded: list[Any]) -> frozenset[int] | None:
    """:func:`touched` of a message: of its entries and their operations."""
    if len(decoded) == 1:
        return touched_of(items[0], decoded[0])
    found: set[int] = set()
    for item, op in zip(items, decoded, strict=True):
        one = touched_of(item, op)
        if one is None:
            return None
        found |= one
    return frozenset(found)


def renamed(op: Any, seen: Seen | None) -> frozenset[int]:
    """Inodes whose names change, as far as it is known."""
    if seen is None or type(op) not in _TOUCHES_SEEN:
        return _NOTHING
    return frozenset(filter(None, seen[:2]))


# --- what delegations are in the way of -----------------------------------------------------------

_OF_DELEGATIONS: Final = (Delegate, Undelegate, RecallDelegations, RevokeDelegations)


def depends(op: Any, seen: Seen | None) -> frozenset[int] | None:
    """Inodes, directories that are delegated to others among them perhaps, that decide what comes of the request, or
    that it changes. All of them are locked by it. None: any of them."""
    if isinstance(op, _OF_DELEGATIONS) or op is None:
        return _NOTHING
    found = touched(op, seen)
    if found is None or seen is None:
        return found
    # That a name is not there changes nothing, and the answer says so.
    if isinstance(op, ops.Unlink | ops.Rmdir):
        return found | {op.parent}
    return found | {op.parent, op.new_parent} if isinstance(op, ops.Rename) else found


def undelegated(op: Any, seen: Seen | None) -> frozenset[int] | None:
    """Inodes that must not be delegated, to whoever asks neither, before the request is executed. None: none must."""
    if isinstance(op, ops.SetXattr | ops.RemoveXattr) and op.name == quota.ATTRIBUTE and op.cred.uid == 0:
        # What its holder has answered already must not be refused for a quota. Other users are refused in any case:
        # they are not to have everything called back by asking.
        return None
    if not isinstance(op, ops.Rename) or seen is None or not seen[0]:
        return _NOTHING
    source, target, tree = seen  # what takes a directory's place ends it; one that moves may come into a quota
    return frozenset(filter(None, (source if tree else 0, target)))


def in_the_way(delegated: dict[int, Delegated], session: int, op: Any, seen: Seen | None) -> list[int]:
    """Directories whose delegations keep *session* (0: none) from *op*; *seen*: what its origin has, or would have,
    seen."""
    inodes, free = depends(op, seen), undelegated(op, seen)
    if free is None:
        return list(delegated)
    if inodes is None:
        return [ino for ino, (whose, _) in delegated.items() if whose != session]
    found = [ino for ino in inodes if ino in delegated and delegated[ino][0] != session]
    return found + [ino for ino in free if ino in delegated] if free else found

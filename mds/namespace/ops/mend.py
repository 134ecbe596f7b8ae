"""Pure. Mend: one thing that fsck has found is put right, if it is still so. See wire.mending.

What fsck saw is a state some time ago. So what it says is looked at again here, but for counts, which only a look at
all entries tells. There the wrong count that fsck saw must be the present one: what clients do moves the true one along
with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from mds import schema
from mds.namespace import entries, quota
from mds.namespace.inode import DIRECTORY_SIZE, S_IFDIR, Inode
from mds.namespace.layout import STRIPE_SIZE
from mds.namespace.scope import Scope
from wire import ids, mending
from wire.codec import pack
from wire.mending import Mend

LOST: Final = b"lost+found"


def apply(scope: Scope, op: Mend) -> Any:
    return _MEND[op.kind](scope, op)


def _entry(scope: Scope, op: Mend) -> bool:
    found = entries.find(scope.store, op.parent, op.name)
    if found is None or found[0] != op.ino or scope.find(op.ino) is not None:
        return False
    entries.remove(scope.store, op.parent, op.name, found[2])
    above = scope.find(op.parent)
    if above is not None:
        above.entries = max(0, above.entries - 1)
        above.nlink -= found[1] == S_IFDIR >> 12
        above.mtime_ns = above.ctime_ns = scope.now
        scope.put(op.parent, above)
    return True


def _cookie(scope: Scope, op: Mend) -> bool:
    found = entries.find(scope.store, op.parent, op.name)
    if found is None:
        return False
    ino, _, cookie = found
    key, value = schema.cookie_key(op.parent, cookie), schema.u64(ino) + op.name
    if scope.store.get(schema.COOKIES, key) == value:
        return False
    scope.store.put(schema.COOKIES, key, value)
    return True


def _stray(scope: Scope, op: Mend) -> bool:
    key = schema.cookie_key(op.parent, op.ino)
    value = scope.store.get(schema.COOKIES, key)
    if value is None:
        return False
    found = entries.find(scope.store, op.parent, value[8:])
    if found is not None and found[2] == op.ino:
        return False
    scope.store.delete(schema.COOKIES, key)
    return True


def _links(scope: Scope, op: Mend) -> bool:
    inode = scope.find(op.ino)
    if inode is None or inode.nlink != op.was or not op.now:
        return False
    inode.nlink = op.now
    scope.put(op.ino, inode)
    return True


def _count(scope: Scope, op: Mend) -> bool:
    inode = scope.find(op.ino)
    if inode is None or not inode.is_dir or inode.entries != op.was:
        return False
    inode.entries = op.now
    scope.put(op.ino, inode)
    return True


def _tally(scope: Scope, op: Mend) -> bool:
    if scope.inodes != op.was or op.now < 1:
        return False
    scope.inodes = op.now
    return True


def _nameless(scope: Scope, op: Mend) -> bool:
    inode = scope.find(op.ino)
    if inode is None or inode.nlink != op.was or op.ino == ids.ROOT_INO:
        return False
    if scope.store.get(schema.ORPHANS, schema.u64(op.ino)) is not None:
        return False  # open files wait there until they are closed
    if not inode.nlink:
        entries.erase(scope, op.ino, inode)
        return True
    name = b"#%d" % op.ino
    where, lost = _lost_and_found(scope)
    if entries.find(scope.store, where, name) is not None:
        return False
    entries.put(scope.store, where, name, op.ino, inode.mode >> 12, scope.fresh)
    lost.entries += 1
    lost.mtime_ns = lost.ctime_ns = scope.now
    if inode.is_dir:
        inode.parent = where
        lost.nlink += 1
    else:
        inode.nlink = 1
    inode.ctime_ns = scope.now
    scope.put(op.ino, inode)
    scope.put(where, lost)
    quota.recount(scope, where, lost)
    return True


def _lost_and_found(scope: Scope) -> tuple[int, Inode]:
    """(number, inode) of the directory, which is made if need be."""
    found = entries.find(scope.store, ids.ROOT_INO, LOST)
    inode = scope.find(found[0]) if found is not None else None
    if found is not None and inode is not None and inode.is_dir:
        return found[0], inode
    ino, now = scope.fresh, scope.now
    inode = Inode(S_IFDIR | 0o700, 2, 0, 0, 0, DIRECTORY_SIZE, now, now, now, None, (), 0, 0, ids.ROOT_INO, 0)
    root = scope.inode(ids.ROOT_INO)
    if root.quota:
        inode.quota = root.quota
        quota.charge(scope, root.quota, 0, 1, 1, enforce=False)
    name = LOST if found is None else LOST + b".%d" % ino
    entries.put(scope.store, ids.ROOT_INO, name, ino, S_IFDIR >> 12, ino)
    root.entries += 1
    root.nlink += 1
    root.mtime_ns = root.ctime_ns = now
    scope.put(ids.ROOT_INO, root)
    scope.inodes += 1
    return ino, inode


def _sums(scope: Scope, op: Mend) -> bool:
    record = quota.find(scope.store, op.ino)
    field = mending.SUMS[op.kind]
    if record is None or getattr(record, field) != op.was:
        return False
    setattr(record, field, op.now)
    record.look_at_soft(scope.now)
    scope.store.put(schema.QUOTAS, schema.u64(op.ino), record.encode())
    return True


def _objects(scope: Scope, op: Mend) -> bool:
    key = schema.u64(op.ino)
    if scope.find(op.ino) is not None or scope.store.get(schema.RECLAIM, key) is not None or not op.chains:
        return False
    if op.ino >= scope.fresh:
        return False  # it has not been made yet
    chains = {int.from_bytes(k, "big") for k, _ in scope.store.scan(schema.CHAINS, b"", None)}
    if not chains.issuperset(op.chains):
        return False
    scope.store.put(schema.RECLAIM, key, pack((STRIPE_SIZE, op.chains)))
    return True


_MEND: Final[dict[str, Callable[[Scope, Mend], bool]]] = {
    mending.ENTRY: _entry,
    mending.COOKIE: _cookie,
    mending.STRAY: _stray,
    mending.LINKS: _links,
    mending.COUNT: _count,
    mending.TALLY: _tally,
    mending.NAMELESS: _nameless,
    mending.OBJECTS: _objects,
    **dict.fromkeys(mending.SUMS, _sums),
}

"""Pure. OrphanAnswer: whether a replica's clients still have unlinked inodes open.

When a file's last name goes, every replica of the view owes an answer (:func:`mds.namespace.entries.drop_link`).
Released takes the replica off the inode's list, and with the last one the inode is gone. Pinned puts it on (again):
also a replica that was not on it, to which a client with an open handle has moved. An inode that is no orphan (any
more) is passed over.
"""

from __future__ import annotations

from typing import Any

from mds import schema
from mds.namespace import entries
from mds.namespace.scope import Scope
from wire.codec import pack, unpack_untrusted
from wire.ops import OrphanAnswer


def apply(scope: Scope, op: OrphanAnswer) -> Any:
    # Pins first: an answer that says both about one inode means that the handle is closed by now.
    for ino in op.pinned:
        _answer(scope, op.replica, ino, pinned=True)
    for ino in op.released:
        _answer(scope, op.replica, ino, pinned=False)
    return None


def _answer(scope: Scope, replica: int, ino: int, pinned: bool) -> None:
    store = scope.store
    key = schema.u64(ino)
    raw = store.get(schema.ORPHANS, key)
    if raw is None:
        return
    before = unpack_untrusted(raw)
    owing = tuple(item for item in before if item[0] != replica)
    if pinned:
        owing = tuple(sorted((*owing, (replica, True))))
    if owing == before:
        return
    if pinned:
        store.put(schema.OWED, schema.owed_key(replica, ino), b"")
    else:
        store.delete(schema.OWED, schema.owed_key(replica, ino))
    if owing:
        store.put(schema.ORPHANS, key, pack(owing))
        return
    store.delete(schema.ORPHANS, key)
    entries.erase(scope, ino, scope.inode(ino))

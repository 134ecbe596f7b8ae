"""Pure. Settle: all storage targets have carried out a file's truncations up to a number; it forgets them.

No time moves: nothing that an application sees has changed.
"""

from __future__ import annotations

from typing import Any

from mds import schema
from mds.namespace.scope import Scope
from wire.ops import Settle


def apply(scope: Scope, op: Settle) -> Any:
    inode = scope.inode(op.ino)
    kept = tuple(item for item in inode.truncations if item[0] > op.seq)
    if kept != inode.truncations:
        inode.truncations = kept
        scope.put(op.ino, inode)
        if not kept:
            scope.store.delete(schema.TRIMS, schema.u64(op.ino))
    return None

"""Pure. ReclaimDone: the objects of removed inodes are deleted at every storage target; they leave the queue."""

from __future__ import annotations

from typing import Any

from mds import schema
from mds.namespace.scope import Scope
from wire.ops import ReclaimDone


def apply(scope: Scope, op: ReclaimDone) -> Any:
    for ino in op.inos:
        key = schema.u64(ino)
        if scope.store.get(schema.RECLAIM, key) is not None:
            scope.store.delete(schema.RECLAIM, key)
    return None

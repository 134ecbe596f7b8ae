"""Pure. TargetSet: a storage target and where it is reached.

A new target gets a chain of its own number. One that moved keeps its chain. Another disk under a known number is
refused (EEXIST): it would answer for objects that it does not hold.
"""

from __future__ import annotations

import errno
from typing import Any

from mds import schema
from mds.namespace import layout
from mds.namespace.scope import Scope
from wire.codec import pack, unpack_untrusted
from wire.errors import FileSystemError
from wire.ops import TargetSet


def apply(scope: Scope, op: TargetSet) -> Any:
    store = scope.store
    version, stripe_size, stripe_count = layout.meta(store)
    key = schema.target_key(op.target)
    raw = store.get(schema.TARGETS, key)
    if raw is not None:
        address, state, uuid = unpack_untrusted(raw)
        if uuid != op.uuid:
            raise FileSystemError(errno.EEXIST)
        if address == op.address:
            return version
        store.put(schema.TARGETS, key, pack((op.address, state, uuid)))
    else:
        store.put(schema.TARGETS, key, pack((op.address, layout.SERVING, op.uuid)))
        store.put(schema.CHAINS, schema.chain_key(op.target), pack((1, (op.target,))))
    store.put(schema.META, schema.META_STORAGE, pack((version + 1, stripe_size, stripe_count)))
    scope.storage_changed = True
    return version + 1

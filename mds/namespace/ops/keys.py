"""Pure. KeyRotate: the keys that capabilities are signed with (:mod:`wire.capability`).

Ordered, so that every replica signs with the same and a rotation survives whoever proposed it. The key itself comes
with the request: whoever has it ordered has drawn it, and executing it draws nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from mds import schema
from mds.namespace.scope import Scope
from mds.store import Store
from wire.capability import KEYS_MAX
from wire.codec import pack, unpack_untrusted
from wire.targetops import KeyRotate


class Keys(NamedTuple):
    """The record ``keys`` of META."""

    rotations: int = 0
    """How often they were rotated."""
    since_ns: int = 0
    """The state's time of the last rotation."""
    keys: tuple[bytes, ...] = ()
    """Newest first: the next one, the current one, the one before."""


def load(store: Store) -> Keys:
    raw = store.get(schema.META, schema.META_KEYS)
    return Keys() if raw is None else Keys(*unpack_untrusted(raw))


def apply(scope: Scope, op: KeyRotate) -> Any:
    old = load(scope.store)
    if op.count != old.rotations:
        return old.rotations  # 1. Ordered by a keeper.  2. Its successor, who had not seen that, ordered another.
    new = Keys(old.rotations + 1, scope.now, (op.key, *old.keys)[:KEYS_MAX])
    scope.store.put(schema.META, schema.META_KEYS, pack(tuple(new)))
    scope.keys_changed = True
    return new.rotations

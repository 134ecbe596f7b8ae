"""Pure. The storage map (targets and chains, part of the state) and the layout a new file gets from it."""

from __future__ import annotations

from typing import Any, Final

from mds import schema
from mds.namespace.inode import Layout
from mds.store import Store
from wire.codec import unpack_untrusted

STRIPE_SIZE: Final = 1 << 20
STRIPE_COUNT: Final = 4
SERVING: Final = "serving"

StorageMap = tuple[int, tuple[tuple[int, str, str], ...], tuple[tuple[int, int, tuple[int, ...]], ...]]
"""(version, ((target, address, state), ...), ((chain, version, (target, ...)), ...)), each ascending by number."""


class Storage:
    """The storage map in memory: it is small, and every create needs it. Read again after each change."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.map: StorageMap = (0, (), ())
        self._layouts: list[Layout] = []
        self.load()

    def load(self) -> None:
        """Take the map from the store."""
        store = self._store
        version, stripe_size, stripe_count = meta(store)
        targets: list[Any] = []
        for key, value in store.scan(schema.TARGETS, b"", None):
            address, state, _uuid = unpack_untrusted(value)
            targets.append((int.from_bytes(key, "big"), address, state))
        chains: list[Any] = []
        for key, value in store.scan(schema.CHAINS, b"", None):
            chains.append((int.from_bytes(key, "big"), *unpack_untrusted(value)))
        self.map = (version, tuple(targets), tuple(chains))
        numbers = [chain[0] for chain in chains]
        width = min(stripe_count, len(numbers))
        doubled = numbers + numbers
        self._layouts = [(stripe_size, tuple(doubled[at : at + width])) for at in range(len(numbers))]

    def layout(self, ino: int) -> Layout | None:
        """For new file *ino*: the first chain goes round with the numbers. None while there is no chain at all."""
        if not self._layouts:
            return None
        # The index and the entry within the batch both count: either alone is often constant, or even.
        turn = (ino >> schema.NUMBER_BITS) + (ino & (schema.BATCH_ENTRIES_MAX - 1))
        return self._layouts[turn % len(self._layouts)]


def meta(store: Store) -> tuple[int, int, int]:
    """(version, stripe_size, stripe_count) as stored."""
    raw = store.get(schema.META, schema.META_STORAGE)
    assert raw is not None, "the machine writes it before anything is applied"
    version, stripe_size, stripe_count = unpack_untrusted(raw)
    return version, stripe_size, stripe_count

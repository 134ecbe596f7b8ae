"""Pure. Views as values: naming epochs, packing views, and a replica's position in history."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Final

from wire.codec import from_tuple_untrusted, pack, to_tuple, unpack_untrusted
from wire.errors import WireError
from wire.group import EPOCH_BITS, View

HASH_SIZE: Final = 16
NO_HASH: Final = bytes(HASH_SIZE)


def generation_of(epoch: int) -> int:
    """The generation part of an epoch number."""
    return epoch >> EPOCH_BITS


def describe_epoch(epoch: int) -> str:
    """An epoch as people read it: ``12``, or ``g1.12`` after a forced view."""
    generation, rest = divmod(epoch, 1 << EPOCH_BITS)
    return f"g{generation}.{rest}" if generation else str(rest)


def first_of(generation: int) -> int:
    """The first epoch of a generation."""
    return generation << EPOCH_BITS


NOWHERE: Final = View(-1, (), (), -1, (), 0)
"""What a replica that was never told any view has for its newest one; in no message."""


def genesis(replicas: tuple[int, ...], witnesses: tuple[int, ...]) -> View:
    """The first view of a new cluster: every replica a member, every replica and witness a voter."""
    return View(0, tuple(sorted(replicas)), tuple(sorted(replicas + witnesses)), -1, (), 0)


def pack_views(views: list[View]) -> tuple[tuple[Any, ...], ...]:
    """Views as they travel in Seal, Views, Feed and SnapshotPart."""
    return tuple(to_tuple(v) for v in views)


def unpack_view_untrusted(item: Any) -> View:
    """One view back. Raises :class:`wire.errors.WireError`."""
    view = from_tuple_untrusted(item)
    if not isinstance(view, View):
        raise WireError(f"a {type(view).__name__} where a view belongs")
    return view


@dataclass(frozen=True, slots=True)
class Position:
    """How far a replica has delivered: *index* items of history, the last view event being *epoch*'s.

    ``delivered``: (sender, seq) pairs within that epoch.  ``hash`` chains all items delivered.
    """

    epoch: int
    delivered: tuple[tuple[int, int], ...]
    index: int
    hash: bytes

    def pack(self) -> bytes:
        return pack((self.epoch, self.delivered, self.index, self.hash))

    @staticmethod
    def unpack_untrusted(data: bytes) -> Position:
        """Raises :class:`wire.errors.WireError`."""
        parts = unpack_untrusted(data)
        if type(parts) is not tuple or len(parts) != 4 or type(parts[3]) is not bytes or type(parts[1]) is not tuple:
            raise WireError("not a position in history")
        return Position(*parts)


START: Final = Position(-1, (), 0, NO_HASH)
"""The position of a replica that has delivered nothing, not even the first view event."""


def chain_message(before: bytes, epoch: int, sender: int, seq: int, clock: int, payload: bytes) -> bytes:
    """The history hash after a message."""
    h = hashlib.blake2b(before, digest_size=HASH_SIZE)
    h.update(b"%d %d %d %d " % (epoch, sender, seq, clock))
    h.update(payload)
    return h.digest()


def chain_view(before: bytes, view: View) -> bytes:
    """The history hash after a view event."""
    return hashlib.blake2b(before + pack(to_tuple(view)), digest_size=HASH_SIZE).digest()

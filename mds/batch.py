"""Pure. What a message of a replica is: a batch of entries, each a request with its session, slot and number.

An entry is ``(time_ns, session, slot, number, op)``, and after it perhaps what its origin saw (:mod:`mds.locksets`).
"""

from __future__ import annotations

from typing import Any

from mds import schema
from wire import ops
from wire.codec import decode, unpack_untrusted
from wire.errors import WireError

Decoded = tuple[tuple[Any, ...], list[Any]]
"""A batch: (its entries, their operations; None for one that is none)."""


def decode_batch(batch: bytes) -> Decoded:
    entries = entries_untrusted(batch)
    return entries, [decode_entry(entry) for entry in entries]


def decode_entry(entry: Any) -> Any:
    """The operation of an entry; None when it is none, or the entry is malformed."""
    if not well_formed(entry):
        return None
    try:
        return decode(entry[4])
    except WireError:
        return None


def entries_untrusted(batch: bytes) -> tuple[Any, ...]:
    try:
        entries = unpack_untrusted(batch)
    except WireError:
        return ()
    if type(entries) is not tuple or len(entries) > schema.BATCH_ENTRIES_MAX:
        return ()
    return entries


def well_formed(entry: Any) -> bool:
    """(time_ns, session, slot, number, op), and after it perhaps what the origin saw (mds.locksets), each in its
    bounds."""
    if type(entry) is not tuple:
        return False
    if len(entry) == 6:
        if type(entry[5]) is not tuple or {*map(type, entry[5])} - {int}:
            return False
    elif len(entry) != 5:
        return False
    time_ns, session, slot, number, op = entry[:5]
    return (
        type(time_ns) is int
        and type(session) is int
        and type(slot) is int
        and type(number) is int
        and type(op) is bytes
        and 0 <= time_ns <= ops.TIME_NS_MAX
        and 0 <= session < 2**63
        and 0 <= slot < 65536
        and 0 <= number < 2**64
    )

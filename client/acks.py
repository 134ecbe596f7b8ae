"""Pure. Who has acknowledged what is not synced yet, and what tells that a power cut has taken it.

A write is acknowledged when it is in the page caches of all members of its chain that serve.  Where that is one target,
and its machine goes down before the write is synced, the bytes are gone, and a later sync would find nothing to do and
succeed.  Such a target comes back with another incarnation (:class:`wire.messages.Welcome`), by which it is known.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from wire.chains import copies_of

Life = tuple[bytes, int]
"""(uuid of the disk, incarnation): the same for as long as nothing acknowledged can have been lost there."""

_MOVES: Final = 4
"""Changes of a chain, at least, by which its only copy can have been replaced and be the only one again: another is
synced, the first comes back from a power cut, is synced from that one, the other one goes."""


class Ack(NamedTuple):
    """An answer that a change, or a sync, has been carried out."""

    chain: int
    version: int
    """The chain's."""
    target: int
    """Who answered: the head."""
    alone: bool
    """No other member had everything then."""
    life: Life


def lost(before: Ack, now: Ack) -> bool:
    """Whether what *before* acknowledged, and no sync covers, may be gone as the answer *now* of the same chain shows.

    Never where another copy had it: chains of more copies may have changed meanwhile so that a target that has lost it
    was given it again.  A file with one copy can have that only by being moved away and back again.
    """
    return (
        before.alone
        and now.alone
        and before.target == now.target
        and before.life != now.life
        and (copies_of(now.chain) == 1 or now.version - before.version < _MOVES)
    )


def take_lost(acks: set[Ack], now: Ack) -> bool:
    """Whether any of *acks* is :func:`lost`; these are taken out, so that it is told once."""
    gone = {ack for ack in acks if lost(ack, now)}
    acks -= gone
    return bool(gone)

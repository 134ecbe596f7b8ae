"""Pure. Chains as the metadata service, targets and clients know them: members, states, who heads, who follows.

A chain is an ordered list of targets with equal copies, and a version that every change of it moves. Writes enter at
the first member that serves and pass down; reads are answered by any that serves (30-data).

==========  ==============================================================================================
serving     has everything that was answered; takes writes and answers reads
draining    the same, and leaves the chain as soon as another serves in its place
syncing     takes writes and is given what it lacks; answers no reads
offline     takes nothing: the others go on, and give it what it missed when it is back
==========  ==============================================================================================
"""

from __future__ import annotations

from typing import Any, Final

SERVING: Final = "serving"
DRAINING: Final = "draining"
SYNCING: Final = "syncing"
OFFLINE: Final = "offline"
STATES: Final = frozenset((SERVING, DRAINING, SYNCING, OFFLINE))
HOLDS: Final = frozenset((SERVING, DRAINING))
"""States in which a member has everything."""

COPIES_MAX: Final = 3
"""Copies of a file's data at most: more make writing slower and nothing safer than a backup would."""
HEAD_BITS: Final = 16
PART_BITS: Final = 24
PARTS: Final = 4
"""Chains of one copy that are made for each target: what is moved is whole chains, so a target that joins three others
is given three of their twelve."""

Member = tuple[int, str]
Members = tuple[Member, ...]
"""((target, state), ...)"""
StorageMap = tuple[int, tuple[tuple[int, str, str, int], ...], tuple[tuple[int, int, Members], ...]]
"""(version, ((target, address, state, run), ...), ((chain, version, members), ...)), each ascending by number."""

EMPTY: Final[StorageMap] = (0, (), ())
Losses = tuple[tuple[int, int], ...]
"""((chain, version), ...), ascending by number: what was acknowledged under an earlier version of the chain, and was
synced under none before this one, may be gone. Chains of which that is true of nothing are left out."""


def chain_of(copies: int, first: int, part: int = 0) -> int:
    """Number of the chain of *copies* copies that was made for target *first*, its *part*-th."""
    return part << PART_BITS | (copies - 1) << HEAD_BITS | first


def copies_of(chain: int) -> int:
    return (chain >> HEAD_BITS & (1 << PART_BITS - HEAD_BITS) - 1) + 1


def path(members: Members) -> tuple[int, ...]:
    """The targets that a write passes, in order: those that hold everything, then those that are being synced."""
    return tuple(t for t, state in members if state in HOLDS) + tuple(t for t, state in members if state == SYNCING)


def holders(members: Members) -> tuple[int, ...]:
    """The targets that have everything."""
    return tuple(t for t, state in members if state in HOLDS)


def readers(members: Members) -> tuple[int, ...]:
    """The targets that may answer reads: who is to leave does so only as long as nobody else can."""
    return tuple(t for t, state in members if state == SERVING) or holders(members)


def state_in(members: Members, target: int) -> str | None:
    for number, state in members:
        if number == target:
            return state
    return None


def answer_untrusted(value: Any) -> tuple[StorageMap, Losses]:
    """*value* as what wire.ops.StorageMap is answered. Raises :class:`ValueError` when it is not."""
    try:
        found, losses = value
        good = all(type(chain) is int and type(version) is int for chain, version in losses)
    except (TypeError, ValueError) as exc:
        raise ValueError(f"not a storage map with losses: {exc}") from exc
    if not good:
        raise ValueError("losses that are not (chain, version)")
    return map_untrusted(found), losses


def map_untrusted(value: Any) -> StorageMap:
    """*value* as a storage map. Raises :class:`ValueError` when it is none."""
    try:
        version, targets, chains = value
        good = type(version) is int
        for target, address, state, run in targets:
            good = good and type(target) is int and type(address) is str and state in STATES and type(run) is int
        for chain, number, members in chains:
            good = good and type(chain) is int and type(number) is int
            good = good and all(type(t) is int and state in STATES for t, state in members)
    except (TypeError, ValueError) as exc:
        raise ValueError(f"not a storage map: {exc}") from exc
    if not good:
        raise ValueError("not a storage map: a field of another type")
    made: StorageMap = value
    return made

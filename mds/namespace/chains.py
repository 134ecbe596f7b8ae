"""Pure. How chains change: who serves, who is being synced, who takes whose place. See :mod:`wire.chains`.

Each function takes a chain's members and gives the new ones, or the same when nothing changes; the caller moves the
version on. What holds after each: a member that was serving and is the last one stays serving, whatever becomes of its
target, because nobody else has the data.
"""

from __future__ import annotations

from collections.abc import Mapping

from wire.chains import (
    COPIES_MAX,
    DRAINING,
    HOLDS,
    OFFLINE,
    PARTS,
    SERVING,
    SYNCING,
    Members,
    chain_of,
    copies_of,
    holders,
)


def put(members: Members, target: int, state: str) -> Members:
    """*members* with *target*'s state changed."""
    return tuple((t, state if t == target else s) for t, s in members)


def down(members: Members, target: int) -> Members:
    """*target* does not answer."""
    state = dict(members).get(target)
    if state is None or state == OFFLINE or holders(members) == (target,):
        return members
    return put(members, target, OFFLINE)


def up(members: Members, target: int, restarted: bool) -> Members:
    """*target* answers again; *restarted*: in another run of its process, which has forgotten what was under way."""
    state = dict(members).get(target)
    if state is None or holders(members) == (target,):
        return members
    if state == OFFLINE or (restarted and state in HOLDS):
        return put(members, target, SYNCING)
    return members


def leaving(chain: int, members: Members) -> int | None:
    """Who may leave when there are copies enough without it: the first that is draining, or else is offline.

    (1. Somebody is synced in the place of one that drains. 2. That one dies before it has left.)
    """
    states = [state for _, state in members]
    if DRAINING in states and len(holders(members)) > copies_of(chain):
        return members[states.index(DRAINING)][0]
    if OFFLINE in states and states.count(SERVING) >= copies_of(chain):
        return members[states.index(OFFLINE)][0]
    return None


def surplus(chain: int, members: Members) -> tuple[int, ...]:
    """Those of whom one is too many: more serve than there should be copies, and none of them is to leave yet. Left by
    moves that were interrupted."""
    serving = tuple(target for target, state in members if state == SERVING)
    return serving if len(serving) > copies_of(chain) and len(serving) == len(holders(members)) else ()


def move(chain: int, members: Members, target: int, instead_of: int) -> Members:
    """*target* comes in to be synced; *instead_of* leaves when it is. One change at a time per chain. Instead of 0: of
    nobody, where a member was lost for good."""
    states = dict(members)
    if target in states:
        return members
    if not instead_of:
        return (*members, (target, SYNCING)) if len(members) < copies_of(chain) else members
    if states.get(instead_of) not in HOLDS | {OFFLINE}:
        return members
    made = tuple((t, s) for t, s in members if t != instead_of or s != OFFLINE)  # who is offline has nothing to give
    if states[instead_of] in HOLDS:
        made = put(made, instead_of, DRAINING)
    return (*made, (target, SYNCING))


def without(members: Members, target: int) -> Members:
    return tuple(m for m in members if m[0] != target)


def missing(targets: tuple[int, ...], chains: Mapping[int, Members]) -> list[tuple[int, Members]]:
    """Chains that *targets* (ascending, those that may get data) should head and do not: (chain, members), ....

    Every target has PARTS chains of one copy. For each larger number of copies it heads one chain; its other members
    are those that have the fewest places in chains of so many copies, next in the ring first.
    """
    made: dict[int, Members] = {}
    for copies in range(1, min(COPIES_MAX, len(targets)) + 1):
        places = dict.fromkeys(targets, 0)
        for chain, members in chains.items():
            if copies_of(chain) == copies:
                for target, _ in members:
                    if target in places:
                        places[target] += 1
        for at, first in enumerate(targets):
            if copies == 1:
                parts = (chain_of(1, first, part) for part in range(PARTS))
                made.update((number, ((first, SERVING),)) for number in parts if number not in chains)
                continue
            number = chain_of(copies, first)
            if number in chains:
                continue
            ring = targets[at + 1 :] + targets[:at]
            others = sorted(ring, key=lambda t: places[t])[: copies - 1]
            members = tuple((t, SERVING) for t in (first, *others))
            for target, _ in members:
                places[target] += 1
            made[number] = members
    return sorted(made.items())

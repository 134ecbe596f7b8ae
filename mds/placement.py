"""Pure. How full the storage targets are, in terms that placement goes by, and when that is news worth ordering.

A target's *level* says how much of new files it should get: 16 for the one with the most free space, for the others
their share of that in sixteenths, and 0 for one that is nearly full: it gets none as long as another has room. The
keeper hears of free space with every heartbeat (wire.storage.BeatSaid) and has the levels ordered when they have moved
noticeably (wire.targetops.TargetSpace): every replica lays a new file out alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from wire.targetops import LEVEL_MAX

FULL_SHARE: Final = 50
"""A target with less than a 50th of its space free is nearly full..."""
ROOM_SHARE: Final = 25
"""... until it has a 25th: what one file takes or gives back must not move it to and fro."""
NEWS: Final = 2
"""A level that has moved by so much is ordered anew."""


def levels(spaces: Mapping[int, tuple[int, int]], before: Mapping[int, int]) -> dict[int, int]:
    """The level of each target of *spaces*, (total, free) bytes; *before*: the levels that were ordered last."""
    most = max((free for _, free in spaces.values()), default=0)
    found = {}
    for target, (total, free) in sorted(spaces.items()):
        share = ROOM_SHARE if before.get(target) == 0 else FULL_SHARE
        found[target] = 0 if free * share < total else max(1, free * LEVEL_MAX // most)
    return found


def news(spaces: Mapping[int, tuple[int, int]], before: Mapping[int, int]) -> tuple[tuple[int, int], ...]:
    """((target, level), ...) to be ordered, ascending: of all targets heard of, or none.

    A target that *before* does not name counts as LEVEL_MAX.
    """
    now = levels(spaces, before)
    for target, level in now.items():
        old = before.get(target, LEVEL_MAX)
        if abs(level - old) >= NEWS or (level == 0) != (old == 0):
            return tuple(sorted(now.items()))
    return ()


def wheel(weights: Mapping[int, int]) -> list[int]:
    """Chains, by their *weights* of 0 to LEVEL_MAX, in the order in which new files begin with them.

    Each comes as often as its weight says, spread over the whole. Where all are nearly full, all come alike.
    """
    turns = [int(f"{k:04b}"[::-1], 2) for k in range(LEVEL_MAX)]
    made = [chain for turn in turns for chain, weight in sorted(weights.items()) if weight > turn]
    even = len(set(weights.values())) <= 1
    return sorted(weights) if even or not made else made

"""Pure. How full the storage targets are, in terms that placement goes by, and when that is news worth ordering.

A target's *share* says how much of new files it should get: 16 for the one with the most free space, for others
their share of that in sixteenths, and 0 for one that is nearly full: it gets none as long as another has room. The
keeper hears of free space with every heartbeat (wire.storage.BeatSaid) and has the shares ordered when they have moved
noticeably (wire.targetops.TargetSpace): every replica lays a new file out alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from wire.targetops import SHARE_MAX

FULL_PART: Final = 50
"""A target with less than a 50th of its space free is nearly full..."""
ROOM_PART: Final = 25
"""... until it has a 25th: what one file takes or gives back must not move it to and fro."""
NEWS: Final = 2
"""A share that has moved by so much is ordered anew."""


def shares(spaces: Mapping[int, tuple[int, int]], before: Mapping[int, int]) -> dict[int, int]:
    """The share of each target of *spaces*, (total, free) bytes; *before*: the shares that were ordered last."""
    most = max((free for _, free in spaces.values()), default=0)
    found = {}
    for target, (total, free) in sorted(spaces.items()):
        part = ROOM_PART if before.get(target) == 0 else FULL_PART
        found[target] = 0 if free * part < total else max(1, free * SHARE_MAX // most)
    return found


def news(spaces: Mapping[int, tuple[int, int]], before: Mapping[int, int]) -> tuple[tuple[int, int], ...]:
    """((target, share), ...) to be ordered, ascending: of all targets heard of, or none.

    A target that *before* does not name counts as SHARE_MAX.
    """
    now = shares(spaces, before)
    for target, share in now.items():
        old = before.get(target, SHARE_MAX)
        if abs(share - old) >= NEWS or (share == 0) != (old == 0):
            return tuple(sorted(now.items()))
    return ()


def wheel(weights: Mapping[int, int]) -> list[int]:
    """Chains, by their *weights* of 0 to SHARE_MAX, in the order in which new files begin with them.

    Each comes as often as its weight says, spread over the whole. Where all are nearly full, all come alike.
    """
    turns = [int(f"{k:04b}"[::-1], 2) for k in range(SHARE_MAX)]
    made = [chain for turn in turns for chain, weight in sorted(weights.items()) if weight > turn]
    even = len(set(weights.values())) <= 1
    return sorted(weights) if even or not made else made

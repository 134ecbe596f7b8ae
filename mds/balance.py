"""Pure. Which chain of one copy is to be moved so that targets are as full as each other.

How many chains a target has says little of how full it is: one that has just come has as many as the others, and
nothing in them. So the keeper has targets weigh theirs, all at about the same time, and goes by what they found until
it asks again. A chain keeps its weight wherever it goes, so what is decided by one weighing comes to an end: with each
move the fuller of two targets gets emptier, and the other one does not get as full as that was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from wire.chains import SERVING, StorageMap, copies_of

AGAIN_US: Final = 3600_000_000
"""Weights are found anew after so long: to weigh, a target reads the names and sizes of all its objects."""
LEAST: Final = 16 << 20
"""Bytes: targets that differ by less are equal, and chains of less than a 16th of it are not worth a move."""
TOLERANCE: Final = 7 / 8
"""A target must not get fuller by a move than this part of what the other one was."""


@dataclass(slots=True)
class Balance:
    """See the module."""

    number: int = 0
    """Of the weighing that is asked for; 0: none yet."""
    _asked_us: int = 0
    _targets: frozenset[int] = frozenset()
    _weights: dict[int, int] = field(default_factory=dict)
    """Chain -> bytes."""

    def ask(self, targets: frozenset[int], now: int) -> None:
        """Have *targets* weigh their chains, when others were asked, or long ago. *now*: microseconds, never 0."""
        if targets != self._targets or now - self._asked_us >= AGAIN_US:
            self.number = self._asked_us = now
            self._targets = targets
            self._weights = {}

    def found(self, number: int, weights: tuple[tuple[int, int], ...]) -> None:
        """A target has found that there are so many bytes of its chains. What was found first counts: whoever starts
        again finds what was written since, too, and the others did not."""
        if number == self.number:
            for chain, size in weights:
                self._weights.setdefault(chain, size)

    def move(self, found: StorageMap, spaces: Mapping[int, tuple[int, int]]) -> tuple[int, int, int, int] | None:
        """(chain, its version, to whom, from whom), or None. *spaces*: (total, free) bytes of the targets that may give
        and take."""
        totals = {target: total for target, (total, _) in spaces.items() if total}
        mine: dict[int, list[tuple[int, int, int]]] = {target: [] for target in totals}
        loads = dict.fromkeys(mine, 0)
        for chain, version, members in found[2]:
            if copies_of(chain) != 1:
                continue
            if chain not in self._weights or len(members) != 1:
                return None  # not all is known yet, or something is on its way: one at a time
            target, state = members[0]
            if target in mine and state == SERVING:
                mine[target].append((self._weights[chain], chain, version))
                loads[target] += self._weights[chain]
        if not loads:
            return None
        full = {target: loads[target] / totals[target] for target in mine}
        to = min(full, key=lambda t: (full[t], t))
        for giver in sorted(full, key=lambda t: (-full[t], t)):
            if (full[giver] - full[to]) * totals[giver] < LEAST:
                break
            best: tuple[float, int, int] | None = None
            for size, chain, version in mine[giver]:
                after = (loads[to] + size) / totals[to]
                if size >= LEAST // 16 and after <= TOLERANCE * full[giver] and 2 * size <= spaces[to][1]:
                    rest = max(after, full[giver] - size / totals[giver])
                    best = min(best or (rest, chain, version), (rest, chain, version))
            if best is not None:
                return best[1], best[2], to, giver
        return None

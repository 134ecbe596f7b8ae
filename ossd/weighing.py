"""How much there is of each chain of one copy, for the keeper: it moves some where targets differ (mds.balance)."""

from __future__ import annotations

import logging
from functools import partial

import trio

from ossd import limits
from ossd.copies import Copies
from ossd.identity import FANOUT
from wire.chains import HOLDS, copies_of
from wire.storage import LIST_DIRECTORIES

log = logging.getLogger(__name__)


class Weighing:
    """See the module."""

    def __init__(self, copies: Copies) -> None:
        self._copies = copies
        self._asked = 0
        self._news = trio.Event()
        self.number = 0
        """Of the last weighing that is done."""
        self.weights: tuple[tuple[int, int], ...] = ()
        """((chain, bytes), ...), what it found."""

    def ask(self, number: int) -> None:
        """The keeper wants to know, for the *number*-th time by its count."""
        if number not in (0, self._asked):
            self._asked = number
            self._news.set()

    async def run(self) -> None:
        """For ever: weigh when it is asked for."""
        while True:
            await self._news.wait()
            self._news = trio.Event()
            number = self._asked
            try:
                weights = await self._weigh()
            except OSError as exc:
                log.error("target %d: objects cannot be weighed: %s", self._copies.table.me, exc)
                continue  # this target gives and takes nothing before it is asked again
            self.number, self.weights = number, weights
            log.info(
                "target %d: %d bytes in chains of one copy", self._copies.table.me, sum(size for _, size in weights)
            )

    async def _weigh(self) -> tuple[tuple[int, int], ...]:
        """Look at every object."""
        copies = self._copies
        chains = [chain for chain in copies.table.chains() if copies_of(chain.number) == 1 and chain.mine in HOLDS]
        sizes = {chain.number: 0 for chain in chains}
        for first in range(0, FANOUT, LIST_DIRECTORIES):
            began = trio.current_time()
            for chain, size in await copies.in_thread(partial(copies.store.sizes, first, LIST_DIRECTORIES)):
                if chain in sizes:
                    sizes[chain] += size
            await trio.sleep(limits.CLEAR_PAUSE * (trio.current_time() - began))  # clients' work goes first
        return tuple(sorted(sizes.items()))

"""Objects of chains that this target has left: deleted, in the background.

A chain is moved (mds.keeper): another target is synced, and this one leaves. What it holds of the chain belongs to the
others from then on. It stays for CLEAR_AFTER_S, should somebody still be about to read it here, and then makes room.

What must never happen is that the target comes back into the chain, says what it has, is taken for equal by that, and
then deletes it. So it says what it has only while the map that it goes by makes it a member, it deletes only while that
map does not, maps only go forward, and the two take turns (:attr:`Clearing.turn`).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial

import trio

from ossd import limits
from ossd.copies import Copies
from ossd.identity import FANOUT
from ossd.objectfile import Key
from wire.storage import LIST_DIRECTORIES

log = logging.getLogger(__name__)


class Clearing:
    """See the module."""

    def __init__(
        self, copies: Copies, turns: Callable[[list[Key], Callable[[], Awaitable[None]]], Awaitable[None]]
    ) -> None:
        """*turns* runs something in the exclusive turns of several objects."""
        self._copies = copies
        self._turns = turns
        self.turn = trio.Lock()
        """Held while objects are deleted, and while it is decided that a listing may be given."""

    def is_left(self, chain: int) -> bool:
        """Whether the map has *chain*, and this target is no member of it."""
        known = self._copies.table.get(chain)
        return known is not None and known.mine is None

    def is_member(self, chain: int) -> bool:
        known = self._copies.table.get(chain)
        return known is not None and known.mine is not None

    async def run(self) -> None:
        """For ever: after the first map (chains may have been left while we were away), and whenever one is left."""
        before: set[int] | None = None
        while True:
            moved = self._copies.moved
            table = self._copies.table
            mine = {chain.number for chain in table.chains()}
            if table.version and (before is None or before - mine):
                await trio.sleep(limits.CLEAR_AFTER_S)  # the time it stays; nothing is waited for
                if not await self._all():
                    continue
            if table.version:
                before = mine
            await moved.wait()

    async def _all(self) -> bool:
        """Look at every object; False: the disk has failed, it is to be done again."""
        copies = self._copies
        cleared = 0
        for first in range(0, FANOUT, LIST_DIRECTORIES):
            began = trio.current_time()
            try:
                found = await copies.in_thread(partial(copies.store.belongings, first, LIST_DIRECTORIES))
                left = [((ino, column), chain) for ino, column, chain in found if self.is_left(chain)]
                for at in range(0, len(left), limits.CLEAR_OBJECTS):
                    cleared += await self._some(left[at : at + limits.CLEAR_OBJECTS])
            except OSError as exc:
                log.error("objects of chains that were left cannot be deleted: %s", exc)
                return False
            await trio.sleep(limits.CLEAR_PAUSE * (trio.current_time() - began))  # clients' work goes first
        if cleared:
            log.info("target %d: %d objects of chains that it has left are deleted", copies.table.me, cleared)
        return True

    async def _some(self, objects: list[tuple[Key, int]]) -> int:
        """Delete those of *objects*, (which, of what chain), that are to go yet; how many."""
        gone: list[Key] = []

        async def delete() -> None:
            async with self.turn:
                gone.extend(key for key, chain in objects if self.is_left(chain))
                await self._copies.in_thread(partial(self._copies.store.delete, gone))

        await self._turns([key for key, _ in objects], delete)
        return len(gone)

"""A target that was away is given what it missed, by the member before it in the chain, while clients' work goes on.

Directory by directory both say which objects of the chain they have, with their stamps; what differs takes its turn and
is brought in step block by block (ossd.copies). Of a large object most is given ahead, some blocks in each turn, so
that nobody who writes it waits for all of it; the last turn then compares all and gives what was written meanwhile.

New changes reach the target all the while. Those of an object that it does not have yet are left out there, and the
object is noted (Copies.later); it is not synced before it has been given those, too. When it has everything on disk,
the keeper is told. A change of the chain's version begins it anew: what is equal by then is passed over quickly.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

import trio

from ossd import limits
from ossd.chains import Chain
from ossd.copies import Copies
from ossd.identity import FANOUT
from ossd.ledger import BLOCK, NO_STAMP
from ossd.links import Unreachable
from ossd.objectfile import Key
from wire.chains import HOLDS, SYNCING, state_in
from wire.codec import unpack_untrusted
from wire.errors import OK, WireError, describe
from wire.storage import LIST_DIRECTORIES, ObjectList, TargetFlush

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Progress:
    """How far one target is with one chain."""

    chain: int
    version: int
    target: int
    began: float
    directories: int = 0
    part: float = 0.0
    """How far it is with the next LIST_DIRECTORIES of them."""
    rest: int = 0
    """Bytes of the object under way that it has not got to."""
    objects: int = 0
    """Brought in step."""
    bytes: int = 0
    done: bool = False

    @property
    def share(self) -> float:
        """How much of it is done, 0 to 1, if all directories hold as much."""
        return 1.0 if self.done else (self.directories + self.part * LIST_DIRECTORIES) / (FANOUT + 1)

    def seconds_left(self, now: float) -> float | None:
        """An estimate: the other directories take as long as those before, and what is left of the object under way as
        what was given before; None: nothing is done yet."""
        share, took = self.share, now - self.began
        if not share:
            return None
        return took * (1 - share) / share + (took * self.rest / self.bytes if self.bytes else 0.0)


class Resync:
    """What this target gives to others."""

    def __init__(self, copies: Copies, turn: Callable[[Key, Callable[[], Awaitable[bool]]], Awaitable[bool]]) -> None:
        """*turn* runs something in an object's exclusive turn."""
        self._copies = copies
        self._turn = turn
        self.progress: dict[int, Progress] = {}
        """Chain -> what is under way, or done and not yet seen by the keeper."""

    @property
    def synced(self) -> tuple[tuple[int, int, int], ...]:
        """For the keeper: ((chain, version, target), ...) that are done."""
        return tuple((p.chain, p.version, p.target) for p in self.progress.values() if p.done)

    async def run(self) -> None:
        """Look after every change of the map for members that lack something."""
        async with trio.open_nursery() as nursery:
            while True:
                moved = self._copies.moved
                for number in [n for n, p in self.progress.items() if not self._stands(n, p)]:
                    del self.progress[number]
                for chain in self._copies.table.chains():
                    target = chain.next
                    if chain.mine not in HOLDS or target is None or chain.number in self.progress:
                        continue
                    if state_in(chain.members, target) == SYNCING:
                        begun = Progress(chain.number, chain.version, target, trio.current_time())
                        self.progress[chain.number] = begun
                        nursery.start_soon(self._give, begun)
                await moved.wait()

    def _stands(self, number: int, progress: Progress) -> bool:
        chain = self._copies.table.get(number)
        return chain is not None and (chain.version, chain.next) == (progress.version, progress.target)

    async def _give(self, progress: Progress) -> None:
        """Give one target what it lacks of one chain, until it has it or the chain changes."""
        told = ""
        while self.progress.get(progress.chain) is progress:
            chain = self._copies.table.get(progress.chain)
            if chain is None or not self._stands(progress.chain, progress):
                return
            try:
                await self._through(progress, chain)
            except (Unreachable, OSError) as exc:
                # What our disk cannot read, and no other copy has, holds it up until somebody has removed that file.
                level = logging.WARNING if isinstance(exc, OSError) and str(exc) != told else logging.INFO
                log.log(level, "chain %d: target %d waits to be synced: %s", progress.chain, progress.target, exc)
                told = str(exc)
                await trio.sleep(limits.RESYNC_AGAIN_S)  # the map says that it is there: the next try may do
                continue
            progress.done = True
            seconds = trio.current_time() - progress.began
            log.info(
                "chain %d: target %d is synced: %d objects, %d bytes in %.1f s",
                progress.chain, progress.target, progress.objects, progress.bytes, seconds,
            )  # fmt: skip
            return

    async def _through(self, progress: Progress, chain: Chain) -> None:
        copies = self._copies
        progress.directories, progress.part = 0, 0.0
        for first in range(0, FANOUT, LIST_DIRECTORIES):
            count = min(LIST_DIRECTORIES, FANOUT - first)
            theirs = await self._listing(progress, chain, first, count)
            ours = await copies.in_thread(partial(copies.store.listing, chain.number, first, count))
            mine: dict[Key, tuple[int, int]] = {(ino, column): (v, n) for ino, column, v, n in ours}
            lacking = [
                key
                for key in sorted(mine.keys() | theirs.keys())
                if (stamp := mine.get(key)) is None or stamp != theirs.get(key) or stamp == NO_STAMP
            ]
            for number, key in enumerate(lacking):
                await self._one(progress, chain, key, number / len(lacking), 1 / len(lacking))
            progress.directories, progress.part = first + count, 0.0
        at = (progress.chain, progress.version)
        while True:
            link = copies.link(progress.target)
            if link is None or (await link.call(TargetFlush))[0].status != OK:
                raise Unreachable("it does not get everything on disk")
            if not copies.later.get(at):
                # Nothing has come between: from here on each change reaches it, or waits until it does.
                copies.given.add(at)
                return
            for key in sorted(copies.later[at]):
                await self._one(progress, chain, key, 0.0, 0.0)

    async def _one(self, progress: Progress, chain: Chain, key: Key, part: float, width: float) -> None:
        """Bring *key* in step; meanwhile ``progress.part`` goes from *part* on by *width*."""
        progress.part = part
        for number in range(limits.AHEAD_ROUNDS):
            limited = number < limits.AHEAD_LIMITED
            given = await self._ahead(progress, chain, key, limited, 0.0 if number else width)
            if given <= limits.AHEAD_BLOCKS * BLOCK:
                break
        copies = self._copies

        async def bring() -> bool:
            if not self._stands(progress.chain, progress) or not await copies.bring_in_step(key, chain):
                return False
            copies.later.get((chain.number, chain.version), set()).discard(key)
            return True

        size = await self._counted(progress, key, bring)
        progress.objects += 1
        await trio.sleep(size / limits.RESYNC_BYTES_PER_S)  # the rate, not something waited for

    async def _ahead(self, progress: Progress, chain: Chain, key: Key, limited: bool, width: float) -> int:
        """Go through all of a large object, a part of it in each turn; bytes given."""
        place = (0, 1)
        size = 0
        part = progress.part

        async def some() -> bool:
            nonlocal place
            if not self._stands(progress.chain, progress):
                return False
            place = await self._copies.bring_ahead(key, chain, place[0])
            return True

        while place[0] < place[1]:
            given = await self._counted(progress, key, some)
            size += given
            progress.part = part + width * place[0] / max(1, place[1])
            progress.rest = max(0, place[1] - place[0]) * BLOCK if width else 0
            if limited:
                await trio.sleep(given / limits.RESYNC_BYTES_PER_S)  # the rate, not something waited for
        return size

    async def _counted(self, progress: Progress, key: Key, bring: Callable[[], Awaitable[bool]]) -> int:
        """Do *bring* in the object's turn; bytes given by that. Raises :class:`Unreachable`."""
        size = 0

        async def counted() -> bool:
            nonlocal size
            before = self._copies.brought
            done = await bring()
            size = self._copies.brought - before
            return done

        if not await self._turn(key, counted):
            raise Unreachable("the chain has changed, or the connection broke")
        progress.bytes += size
        return size

    async def _listing(self, progress: Progress, chain: Chain, first: int, count: int) -> dict[Key, tuple[int, int]]:
        link = self._copies.link(progress.target)
        if link is None:
            raise Unreachable("it is not in the map")
        answer, bulk = await link.call(lambda call: ObjectList(call, chain.number, first, count))
        if answer.status != OK:
            raise Unreachable(describe(answer.status))
        try:
            return {(ino, column): (version, number) for ino, column, version, number in unpack_untrusted(bulk)}
        except (WireError, TypeError, ValueError) as exc:
            raise Unreachable(f"a listing that is none: {exc}") from exc

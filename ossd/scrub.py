"""Objects read and checked, copies compared: what `lockstep scrub` has a target do."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import trio

from ossd.chains import Chain
from ossd.copies import Copies, sums_untrusted
from ossd.ledger import BLOCK, ENTRY_SIZE, BadBlock
from ossd.links import Unreachable
from ossd.objectfile import Key, ObjectFile
from wire.chains import holders
from wire.codec import pack
from wire.errors import OK, describe
from wire.messages import ObjectKey
from wire.storage import BlockFetch, ObjectSums, TargetScrub

log = logging.getLogger(__name__)

WRONG_MAX: Final = 100
"""Sentences about what is wrong in one answer; the rest is only counted by whoever reads the log."""


@dataclass(slots=True)
class Found:
    """What one part of a scrub has found."""

    objects: int = 0
    bytes: int = 0
    bad: int = 0
    mended: int = 0
    wrong: list[str] = field(default_factory=list)

    def say(self, what: str) -> None:
        log.error("scrub: %s", what)
        if len(self.wrong) < WRONG_MAX:
            self.wrong.append(what)


class Scrub:
    """See the module."""

    def __init__(self, copies: Copies, turn: Callable[[Key, Callable[[], Awaitable[bool]]], Awaitable[bool]]) -> None:
        self._copies = copies
        self._turn = turn

    async def step(self, msg: TargetScrub) -> bytes:
        """The body of the answer to *msg*."""
        copies = self._copies
        found = Found()
        keys = await copies.in_thread(partial(copies.store.every, msg.first, msg.count))
        for key in keys:
            before = found.bytes
            await self._turn(key, partial(self._object, key, msg.verify, found))
            await trio.sleep((found.bytes - before) / msg.rate)  # the rate, not something waited for
        return pack((found.objects, found.bytes, found.bad, found.mended, tuple(found.wrong)))

    async def _object(self, key: Key, verify: bool, found: Found) -> bool:
        copies = self._copies
        file = await copies.in_thread(partial(copies.store.fetch, key, create=False))
        if file is None:
            return True  # deleted meanwhile
        try:
            found.objects += 1
            bad = {b for b in range(file.ledger.blocks) if not await self._block(file, b, found)}
            chain = copies.table.get(file.ledger.chain)
            if chain is None or chain.mine is None:
                found.say(f"object {key[0]:x}.{key[1]} of chain {file.ledger.chain} has no business here")
            elif verify and not bad and chain.before is None and copies.table.me in holders(chain.members):
                for target in holders(chain.members):
                    if target != copies.table.me:
                        await self._compare(file, chain, target, found)
        finally:
            copies.store.release(file)
        return True

    async def _block(self, file: ObjectFile, block: int, found: Found) -> bool:
        """Whether one block is good, or could be mended."""
        copies = self._copies
        found.bytes += file.ledger.entry(block)[0]
        try:
            await copies.in_thread(partial(copies.store.read_block, file, block))
        except BadBlock:
            found.bad += 1
            if await copies.mend(file, block, file.ledger.chain):
                found.mended += 1
                return True
            found.say(f"object {file.key[0]:x}.{file.key[1]}: block {block} is bad, and there is no other good copy")
            return False
        return True

    async def _compare(self, file: ObjectFile, chain: Chain, target: int, found: Found) -> None:
        """Compare our copy with that of *target*: equal stamps, lengths and contents."""
        copies = self._copies
        wire = ObjectKey(*file.key)
        what = f"object {file.key[0]:x}.{file.key[1]} of chain {chain.number}: target {target}"
        link = copies.link(target)
        if link is None:
            return
        try:
            answer, _ = await link.call(lambda call: ObjectSums(call, wire, 0, max(1, file.ledger.blocks)))
            if answer.status != OK:
                found.say(f"{what} answers {describe(answer.status)}")
                return
            length, trim, entries, stamp = sums_untrusted(answer.body)
            if length < 0 or stamp != file.ledger.stamp:
                found.say(f"{what} has {'no copy' if length < 0 else f'stamp {stamp}'}, ours is {file.ledger.stamp}")
                return
            if length != file.size or trim != file.last:
                found.say(f"{what}: {length} bytes, truncation {trim}; ours {file.size}, {file.last}")
            for block in range(file.ledger.blocks):
                theirs = entries[block * ENTRY_SIZE : (block + 1) * ENTRY_SIZE].ljust(ENTRY_SIZE, b"\0")
                if theirs != file.ledger.raw_entry(block):
                    # Zeros may have been written there and be a hole here.
                    mine = await copies.in_thread(partial(copies.store.read_block, file, block))
                    answer, data = await link.call(partial(_fetch, wire, block, file.ledger.stamp))
                    if answer.status != OK or bytes(data).ljust(BLOCK, b"\0") != mine.ljust(BLOCK, b"\0"):
                        found.say(f"{what}: block {block} differs")
        except Unreachable as exc:
            found.say(f"{what} cannot be compared: {exc}")


def _fetch(key: ObjectKey, block: int, stamp: tuple[int, int], call: int) -> BlockFetch:
    return BlockFetch(call, key, block, *stamp)

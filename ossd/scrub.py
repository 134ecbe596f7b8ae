"""Objects read and checked, copies compared: what `lockstep scrub` has a target do."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import trio

from ossd import limits
from ossd.chains import Chain
from ossd.copies import Copies, sums_untrusted
from ossd.ledger import BLOCK, ENTRY_SIZE, BadBlock
from ossd.links import Unreachable
from ossd.objectfile import Key, ObjectFile
from wire.chains import holders
from wire.codec import pack
from wire.errors import OK, describe
from wire.messages import ObjectKey
from wire.storage import BlockFetch, ObjectSums, Scrubbed, TargetScrub

log = logging.getLogger(__name__)

WRONG_MAX: Final = 100
"""Sentences about what is wrong in one answer; the rest is only counted by whoever reads the log."""


class Scrub:
    """See the module."""

    def __init__(self, copies: Copies, turn: Callable[[Key, Callable[[], Awaitable[bool]]], Awaitable[bool]]) -> None:
        self._copies = copies
        self._turn = turn

    async def step(self, msg: TargetScrub) -> bytes:
        """The body of the answer to *msg*."""
        copies = self._copies
        found = Scrubbed()
        keys = await copies.in_thread(partial(copies.store.every, msg.first, msg.count))
        for key in keys:
            differ: set[int] = set()
            first: int | None = 0
            while first is not None:
                before = found.bytes
                first = await self._some(key, first, msg.verify, found, differ)
                await trio.sleep((found.bytes - before) / msg.rate)  # the rate, not something waited for
        return pack(found.packed())

    async def _some(self, key: Key, first: int, verify: bool, found: Scrubbed, differ: set[int]) -> int | None:
        """Look at some blocks of *key* from *first* on, in one turn: who uses a large object goes on in between.

        The block to go on with, or None. *differ*: targets whose copy is known to be another one.
        """
        following: int | None = None

        async def look() -> bool:
            nonlocal following
            following = await self._object(key, first, verify, found, differ)
            return True

        await self._turn(key, look)
        return following

    async def _object(self, key: Key, first: int, verify: bool, found: Scrubbed, differ: set[int]) -> int | None:
        copies = self._copies
        file = await copies.in_thread(partial(copies.store.fetch, key, create=False))
        if file is None:
            return None  # deleted meanwhile
        try:
            found.objects += not first
            blocks = range(first, min(first + limits.AHEAD_BLOCKS, file.ledger.blocks))
            bad = {b for b in blocks if not await self._block(file, b, found)}
            chain = copies.table.get(file.ledger.chain)
            if chain is None:
                if not first:
                    _say(found, f"object {_name(key)} of chain {file.ledger.chain} has no business here")
            elif verify and not bad and chain.before is None and copies.table.me in holders(chain.members):
                for target in holders(chain.members):
                    if target != copies.table.me and target not in differ:
                        await self._compare(file, chain, target, blocks, found, differ)
            return first + limits.AHEAD_BLOCKS if first + limits.AHEAD_BLOCKS < file.ledger.blocks else None
        finally:
            copies.store.release(file)

    async def _block(self, file: ObjectFile, block: int, found: Scrubbed) -> bool:
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
            _say(found, f"object {_name(file.key)}: block {block} is bad, and there is no other good copy")
            return False
        return True

    async def _compare(
        self, file: ObjectFile, chain: Chain, target: int, blocks: range, found: Scrubbed, differ: set[int]
    ) -> None:
        """Compare *blocks* of our copy with that of *target*: equal stamps, lengths and contents."""
        copies = self._copies
        wire = ObjectKey(*file.key)
        what = f"object {_name(file.key)} of chain {chain.number}: target {target}"
        link = copies.link(target)
        if link is None:
            return

        def wrong(text: str) -> None:
            _say(found, text)
            differ.add(target)

        try:
            answer, _ = await link.call(lambda call: ObjectSums(call, wire, blocks.start, max(1, len(blocks))))
            if answer.status != OK:
                wrong(f"{what} answers {describe(answer.status)}")
                return
            length, trim, entries, stamp = sums_untrusted(answer.body)
            if length < 0 or stamp != file.ledger.stamp:
                wrong(f"{what} has {'no copy' if length < 0 else f'stamp {stamp}'}, ours is {file.ledger.stamp}")
                return
            if length != file.size or trim != file.last:
                wrong(f"{what}: {length} bytes, truncation {trim}; ours {file.size}, {file.last}")
            for block in blocks:
                at = (block - blocks.start) * ENTRY_SIZE
                if entries[at : at + ENTRY_SIZE].ljust(ENTRY_SIZE, b"\0") != file.ledger.raw_entry(block):
                    # Zeros may have been written there and be a hole here.
                    mine = await copies.in_thread(partial(copies.store.read_block, file, block))
                    answer, data = await link.call(partial(_fetch, wire, block, file.ledger.stamp))
                    if answer.status != OK or bytes(data).ljust(BLOCK, b"\0") != mine.ljust(BLOCK, b"\0"):
                        _say(found, f"{what}: block {block} differs")
        except Unreachable as exc:
            wrong(f"{what} cannot be compared: {exc}")


def _name(key: Key) -> str:
    return f"{key[0]:x}.{key[1]}"


def _say(found: Scrubbed, what: str) -> None:
    log.error("scrub: %s", what)
    if len(found.wrong) < WRONG_MAX:
        found.wrong.append(what)


def _fetch(key: ObjectKey, block: int, stamp: tuple[int, int], call: int) -> BlockFetch:
    return BlockFetch(call, key, block, *stamp)

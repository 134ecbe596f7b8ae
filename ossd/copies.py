"""Copies of objects kept equal: changes passed down the chain, and objects brought in step. See :mod:`wire.chains`.

The life of a change: it takes its turn at the object (exclusive), is given a stamp by the head, goes down the chain, is
carried out at the last member first and here when all after us have done it, and only then gives the turn back. So at
most one change per object and chain is under way, what is answered is everywhere, and a change that a full disk refuses
has happened nowhere before it.

A member that does not have the stamp which a change was made for says OUT_OF_STEP and gets, within the same turn, what
it lacks (:meth:`Copies.bring_in_step`). Not so one that is being synced (:mod:`ossd.resync`): nobody waits until it has
been given all of an object. The change is left out there and the object noted, for it to be given later.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import trio

from ossd import limits
from ossd.chains import Chain, ChainTable
from ossd.copystore import CopyStore
from ossd.failure import FAILED
from ossd.ledger import BLOCK, ENTRY_SIZE, NO_STAMP, BadBlock, Stamp
from ossd.links import Link, Links, Unreachable
from ossd.objectfile import Key, ObjectFile
from ossd.objects import Truncations, pending
from ossd.store import Buffer
from wire.chains import HOLDS, OFFLINE, SYNCING, holders, state_in
from wire.codec import unpack_untrusted
from wire.errors import OK, Status, WireError, describe
from wire.messages import Answer, ObjectDelete, ObjectKey
from wire.storage import BlockFetch, ObjectAdopt, ObjectChange, ObjectPatch, ObjectSums

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Change:
    """A write (or, with no *data*, a trim) to one object."""

    key: Key
    chain: int
    offset: int
    data: Buffer
    truncations: Truncations
    client: str
    sender: int | None
    """The member it comes from; None: a client, and this target is the head."""
    before: Stamp = NO_STAMP
    after: Stamp = NO_STAMP
    """As the sender says; the head makes its own."""


class Copies:
    """See the module."""

    def __init__(
        self,
        store: CopyStore,
        table: ChainTable,
        links: Links,
        limiter: trio.CapacityLimiter,
        at_once: Callable[[int, bool], bool],
        took: Callable[[float], None],
    ) -> None:
        """*at_once*: is something of so many bytes for the event loop now, opening an object included (or not)?
        *took* is told afterwards when it was begun.
        """
        self.store = store
        self.table = table
        self.links = links
        self.moved = trio.Event()
        """Set, and replaced, whenever the storage map has changed."""
        self.mended = 0
        """Bad blocks replaced from another copy since the start."""
        self.brought = 0
        """Bytes given to members that lacked them."""
        self.missed: dict[int, float] = {}
        """Targets that take nothing from us -> since when."""
        self.later: dict[tuple[int, int], set[Key]] = {}
        """(chain, version) -> objects of which changes were left out at the next member, which is being synced."""
        self.given: set[tuple[int, int]] = set()
        """(chain, version) whose next member has been given everything: from then on nothing is left out any more."""
        self._limiter = limiter
        self._at_once = at_once
        self._took = took
        self._stamps = 0
        self._asking: dict[trio.CancelScope, Chain] = {}
        """Calls to the next member under way: given up when their chain changes."""

    def install(self, found: Any) -> bool:
        """The keeper has told us the storage map *found*; whether it was news."""
        if not self.table.install(found):
            return False
        for target, address, state, _ in found[1]:
            if state == OFFLINE and target != self.table.me:
                # A link that hangs must not keep what is passed on when it is back.
                self.links.get(target, address).close()
                self.missed.pop(target, None)
        # In another version syncing begins anew, by comparing stamps: what was left out is found by that.
        self.later = {at: keys for at, keys in self.later.items() if self._stands(at)}
        self.given = {at for at in self.given if self._stands(at)}
        for scope, chain in self._asking.items():
            now = self.table.get(chain.number)
            if now is None or now.version != chain.version:
                scope.cancel()
        self.moved.set()
        self.moved = trio.Event()
        return True

    def _stands(self, at: tuple[int, int]) -> bool:
        chain = self.table.get(at[0])
        return chain is not None and chain.version == at[1]

    def stamp(self, chain: Chain) -> Stamp:
        """The stamp of a new change: never given before, because the version is another one in each of our runs."""
        self._stamps += 1
        return chain.version, self._stamps

    async def in_thread(self, work: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(work, limiter=self._limiter)

    # -- changes

    def may_change(self, change: Change, version: int) -> int:
        """OK, or why the change may not enter here."""
        if change.sender is None:
            return self.table.judge_client(change.chain, version)
        return self.table.judge_member(change.chain, version, change.sender)

    async def change(self, change: Change) -> int:
        """Carry out *change* at all members from here on; the object's turn is held. The status to answer."""
        file = self.store.cached(change.key)
        if file is None and self._at_once(len(change.data), True) and self.store.has_room:
            begun = trio.current_time()
            file = self._fetch(change)
            self._took(begun)
        elif file is None:
            file = await self.in_thread(partial(self._fetch, change))
        try:
            return await self._change(change, file)
        finally:
            self.store.release(file)

    def _fetch(self, change: Change) -> ObjectFile:
        if change.sender is not None:
            return self.store.fetch_or_begin_anew(change.key, change.chain)
        file = self.store.fetch(change.key, create=True, chain=change.chain)
        assert file is not None
        return file

    async def _change(self, change: Change, file: ObjectFile) -> int:
        chain = self.table.get(change.chain)
        if chain is None:
            return Status.NOT_SERVING
        if not len(change.data) and pending(file.last, change.truncations)[0] is None and change.sender is None:
            return OK
        await self._look_after(file)
        if change.sender is None:
            if file.ledger.stamp == NO_STAMP and file.size:
                # Void after a kill or a power cut: with a stamp that nobody has, whoever is next gets what is here.
                file.ledger.set_stamp(self.stamp(chain), chain.number, self.store.incarnation)
            before, after = file.ledger.stamp, self.stamp(chain)
        else:
            before, after = change.before, change.after
            if file.ledger.stamp == after:
                return OK  # the answer was lost
            if file.ledger.stamp != before or (before == NO_STAMP and file.size):
                return Status.OUT_OF_STEP
        if len(change.data):
            self.store.expect(file, change.offset + len(change.data))  # a full disk is found out before anybody writes
            if chain.next is not None and change.sender is None:
                await self._look_ahead(change, file)

        def make(call: int, now: Chain) -> ObjectChange:
            return ObjectChange(
                call, ObjectKey(*change.key), now.number, now.version, change.truncations, change.offset,
                change.client, *before, *after,
            )  # fmt: skip

        while True:
            status, version = await self.pass_on(change.chain, change.sender, make, change.data, change.key)
            if status != OK:
                return status
            if file.ledger.stamp != after:
                await self._apply_or_undo(change, file, after)
            now = self.table.get(change.chain)
            if now is None or now.version == version or now.next is None:
                return OK
            # 1. Nobody was behind us. 2. A target came back to be synced, and this object was found equal. 3. Only
            # then our change was carried out here. So whoever is next now gets it, too.

    async def _look_after(self, file: ObjectFile) -> None:
        """After a power cut all of an object is looked at before it is changed, and its stamp is void."""
        if file.ledger.incarnation < self.store.incarnation:
            await self.in_thread(partial(self.store.make_sure, file))

    async def _look_ahead(self, change: Change, file: ObjectFile) -> None:
        """See to it that the blocks of which *change* leaves something are good, and mend them, while the others have
        them as they were, with the stamp that ours has. Only the head need: it changes last, and the others can ask it.
        Raises BadBlock: none is good, and nobody has changed."""
        cut = pending(file.last, change.truncations)[0]
        for block in file.ledger.kept(change.offset, change.offset + len(change.data)):
            if cut is None or (block + 1) * BLOCK <= cut:  # else it goes, or is summed anew
                await self.read_block(file, block, change.chain, at_once=self._at_once(BLOCK, False))

    async def _apply_or_undo(self, change: Change, file: ObjectFile, after: Stamp) -> None:
        try:
            await self._apply(change, file, after)
        except OSError as exc:
            chain = self.table.get(change.chain)
            if exc.errno in FAILED and not isinstance(exc, BadBlock) and chain is not None and self._others(chain):
                # Our disk has failed, and what it shows of acknowledged bytes may be old. We are about to be left out,
                # and are given theirs when we are back.
                raise
            # Those after us have it and we have not: they get back what we have. (Space was seen to before, so this
            # is a disk that was filled by others within this moment, or one that fails while nobody else has all.)
            if chain is not None and chain.next is not None and not await self.bring_in_step(change.key, chain):
                log.error("%s: copies differ until the next change or scrub", file.path)
            raise

    def _others(self, chain: Chain) -> bool:
        """Whether anybody else has all of the chain."""
        return any(target != self.table.me for target in holders(chain.members))

    async def _apply(self, change: Change, file: ObjectFile, after: Stamp) -> None:
        while True:
            try:
                if len(change.data):
                    work = partial(
                        self.store.write, file, change.offset, change.data, change.truncations, change.client, after,
                        change.chain,
                    )  # fmt: skip
                else:
                    work = partial(
                        self.store.truncate, file, change.truncations, change.client, after, change.chain
                    )
                trims = pending(file.last, change.truncations)[0] is not None  # which takes an fsync
                if not trims and self._at_once(len(change.data), False):
                    begun = trio.current_time()
                    work()
                    self._took(begun)
                else:
                    await self.in_thread(work)
                if file.fresh[1] - file.fresh[0] >= limits.START_WRITING_BYTES:
                    await self.in_thread(partial(self.store.start_writing, file))  # may wait for the disk's queue
                return
            except BadBlock as exc:
                if not await self.mend(file, exc.block, change.chain):
                    raise

    async def pass_on(
        self,
        number: int,
        sender: int | None,
        make: Callable[[int, Chain], Any],
        bulk: Buffer,
        key: Key | None,
    ) -> tuple[int, int]:
        """Have all members of chain *number* after this one do what *make* says: (status, version of the chain).

        Goes on over changes of the chain as long as our own place in it is the one the request came to. *key*: the
        object that a member is brought in step with when it says that it is not; its turn is held.
        """
        while True:
            chain = self.table.get(number)
            if chain is None or chain.mine in (None, OFFLINE) or chain.before != sender:
                return Status.STALE_CHAIN, 0
            if chain.next is None:
                return OK, chain.version
            if key is not None and key in self.later.get((chain.number, chain.version), ()):
                return OK, chain.version
            answer = await self._ask(chain, chain.next, _within(make, chain), bulk)
            if answer is not None and answer[0].status == OK:
                self.missed.pop(chain.next, None)
                return OK, chain.version
            status = Status.NOT_SERVING if answer is None else answer[0].status
            if status == Status.OUT_OF_STEP and key is not None:
                if self._leave_out(chain, key):
                    return OK, chain.version
                if await self.bring_in_step(key, chain):
                    self.missed.pop(chain.next, None)
                    continue
            elif status in (errno.ENOSPC, errno.EDQUOT) and key is not None and self._leave_out(chain, key):
                return OK, chain.version  # who is there has room for it, and newcomers may be given more
            elif status not in (Status.NOT_SERVING, Status.STALE_CHAIN, Status.OVERLOADED, Status.OUT_OF_STEP):
                return status, chain.version
            if self.table.get(number) != chain:
                continue  # it has changed: whom we could not reach may be out of it already
            self.missed.setdefault(chain.next, trio.current_time())
            log.debug("chain %d: target %d: %s", number, chain.next, describe(status))
            await self._wait_moved(limits.STEP_PAUSE_S)

    def _leave_out(self, chain: Chain, key: Key) -> bool:
        """Whether the next member need not have this change of *key* now, because it is given the object later.

        It lacks what was before the change as well, or refuses it for want of space, so its stamp of the object is
        another one, or void, until then.
        Where this target is being synced itself, everything after it is synced once that is done.
        """
        assert chain.next is not None
        at = (chain.number, chain.version)
        if state_in(chain.members, chain.next) != SYNCING or at in self.given:
            return False
        self.later.setdefault(at, set()).add(key)
        return True

    async def _ask(
        self, chain: Chain, target: int, make: Callable[[int], Any], bulk: Buffer = b""
    ) -> tuple[Answer, Buffer] | None:
        """*target*'s answer; None: it cannot be reached, or the chain has changed meanwhile."""
        link = self.link(target)
        if link is None:
            return None
        scope = trio.CancelScope()
        self._asking[scope] = chain
        try:
            with scope:
                return await link.call(make, bulk)
        except Unreachable as exc:
            log.debug("target %d: %s", target, exc)
        finally:
            del self._asking[scope]
        return None

    def link(self, target: int) -> Link | None:
        address = self.table.address(target)
        return None if address is None else self.links.get(target, address)

    async def _wait_moved(self, seconds: float) -> None:
        """Until the map has changed, or *seconds* are over."""
        with trio.move_on_after(seconds):
            await self.moved.wait()

    # -- bringing in step

    async def bring_in_step(self, key: Key, chain: Chain) -> bool:
        """Make the next member's copy of *key* equal to ours; the object's turn is held. False: not possible now."""
        assert chain.next is not None
        file = await self.in_thread(partial(self.store.fetch, key, create=False))
        try:
            if file is not None and file.ledger.chain != chain.number:
                return True  # it belongs to another chain, and is brought there by whom it concerns
            if file is None:
                await self._told(chain, lambda call: ObjectDelete(call, chain.number, chain.version, (key,)))
            else:
                await self._bring(file, chain)
        except Unreachable as exc:
            log.info("chain %d: target %d is not brought in step: %s", chain.number, chain.next, exc)
            return False
        finally:
            if file is not None:
                self.store.release(file)
        return True

    async def bring_ahead(self, key: Key, chain: Chain, first: int) -> tuple[int, int]:
        """Give the next member some of the blocks of *key* that it lacks, from block *first* on; the turn is held.

        (Where to go on, of how many blocks in all). Nothing is done about an object that is brought in step in one turn
        (:meth:`bring_in_step`, which follows in any case). Raises :class:`Unreachable`.
        """
        file = await self.in_thread(partial(self.store.fetch, key, create=False))
        if file is None:
            return 0, 0
        try:
            blocks = (file.size + BLOCK - 1) // BLOCK
            if blocks <= limits.AHEAD_BLOCKS or file.ledger.chain != chain.number or first >= blocks:
                return blocks, blocks
            await self.in_thread(partial(self.store.make_sure, file))
            return await self._bring_some(file, chain, first, blocks, limits.AHEAD_BLOCKS), blocks
        finally:
            self.store.release(file)

    async def _bring_some(self, file: ObjectFile, chain: Chain, first: int, blocks: int, most: int) -> int:
        """Compare some blocks from *first* on, give those that differ, *most* of them; the block to go on with."""
        wire = ObjectKey(*file.key)
        count = max(1, min(limits.SUMS_BLOCKS, blocks - first))
        answer = await self._told(chain, partial(_sums, wire, first, count))
        length, _trim, entries, _stamp = sums_untrusted(answer.body)
        for block in range(first, min(first + count, blocks)):
            at = (block - first) * ENTRY_SIZE
            mine = file.ledger.raw_entry(block)
            theirs = entries[at : at + ENTRY_SIZE].ljust(ENTRY_SIZE, b"\0")
            if mine != theirs or (length < 0 and any(mine)):
                if not most:
                    return block
                most -= 1
                await self._send_block(file, block, chain, wire)
        return first + count

    async def _bring(self, file: ObjectFile, chain: Chain) -> None:
        """Raises :class:`Unreachable` when it got in the way of something; then it is done again."""
        await self.in_thread(partial(self.store.make_sure, file))
        wire = ObjectKey(*file.key)
        blocks = (file.size + BLOCK - 1) // BLOCK
        first = 0
        while True:
            first = await self._bring_some(file, chain, first, blocks, blocks)
            if first >= blocks:
                break
        size, trim, stamp = file.size, file.last, file.ledger.stamp
        if stamp == NO_STAMP:
            # Ours was void, too (a kill in the middle of a write, or a ledger that is gone): from now on both have one.
            stamp = self.stamp(chain)
            file.ledger.set_stamp(stamp, chain.number, self.store.incarnation)
        await self._told(
            chain, lambda call: ObjectAdopt(call, wire, chain.number, chain.version, size, trim, *stamp)
        )

    async def _send_block(self, file: ObjectFile, block: int, chain: Chain, wire: ObjectKey) -> None:
        data = await self.read_block(file, block, chain.number)
        self.brought += len(data)
        offset = block * BLOCK
        await self._told(
            chain, lambda call: ObjectPatch(call, wire, chain.number, chain.version, offset), data
        )

    async def read_block(self, file: ObjectFile, block: int, chain: int, at_once: bool = False) -> bytes:
        """The bytes of one block, without the zeros that follow them; mended first if they are bad."""
        while True:
            try:
                if at_once:
                    begun = trio.current_time()
                    data = self.store.read_block(file, block)
                    self._took(begun)
                    return data
                return await self.in_thread(partial(self.store.read_block, file, block))
            except BadBlock as exc:
                if not await self.mend(file, exc.block, chain):
                    raise

    async def _told(self, chain: Chain, make: Callable[[int], Any], bulk: Buffer = b"") -> Answer:
        assert chain.next is not None
        answer = await self._ask(chain, chain.next, make, bulk)
        if answer is None:
            raise Unreachable("the chain has changed, or the connection broke")
        if answer[0].status != OK:
            raise Unreachable(describe(answer[0].status))
        return answer[0]

    # -- mending

    async def mend(self, file: ObjectFile, block: int, chain: int) -> bool:
        """Replace a bad block by another holder's copy of it; whether that was possible. The turn is held, shared
        or not: nobody changes the object meanwhile, and who mends it as well writes the same bytes."""
        known = self.table.get(chain)
        if known is None:
            return False
        wire = ObjectKey(*file.key)
        stamp = file.ledger.stamp
        for target in holders(known.members):
            link = self.link(target) if target != self.table.me else None
            if link is None or known.mine not in HOLDS:
                continue
            try:
                with trio.fail_after(limits.FETCH_S):
                    answer, data = await link.call(lambda call: BlockFetch(call, wire, block, *stamp))
            except (Unreachable, trio.TooSlowError) as exc:
                log.info("block %d of %s from target %d: %s", block, file.path, target, exc or "no answer in time")
                continue
            if answer.status == OK and await self.in_thread(partial(self.store.replace_block, file, block, data)):
                self.mended += 1
                log.warning("%s: block %d mended from target %d", file.path, block, target)
                return True
            log.warning("%s: target %d has no good block %d: %s", file.path, target, block, describe(answer.status))
        return False


def _within(make: Callable[[int, Chain], Any], chain: Chain) -> Callable[[int], Any]:
    return lambda call: make(call, chain)


def _sums(key: ObjectKey, first: int, count: int, call: int) -> ObjectSums:
    return ObjectSums(call, key, first, count)


def sums_untrusted(body: bytes) -> tuple[int, int, bytes, Stamp]:
    """The answer to ObjectSums. Raises :class:`Unreachable` when it is none."""
    try:
        length, trim, entries, version, number = unpack_untrusted(body)
    except (WireError, TypeError, ValueError) as exc:
        raise Unreachable(f"sums that are none: {exc}") from exc
    if type(length) is not int or type(trim) is not int or type(entries) is not bytes:
        raise Unreachable("sums of another type")
    return length, trim, entries, (version, number)

"""What the members of a chain ask of this target, and what the keeper tells it. Part of :mod:`ossd.target`'s table."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from ossd.copies import Change, Copies
from ossd.copystore import CopyStore
from ossd.ledger import BLOCK, NO_STAMP, BadBlock, Damaged
from ossd.objectfile import Key
from ossd.objects import Turn
from ossd.resync import Resync
from ossd.store import Buffer
from wire.capability import ALL_FILES, DELETE
from wire.chains import map_untrusted
from wire.codec import pack, unpack_untrusted
from wire.errors import OK, Status, WireError
from wire.messages import ObjectDelete
from wire.peer import ConnectionLost
from wire.storage import (
    LEASE_US,
    Beat,
    BeatSaid,
    BlockFetch,
    ObjectAdopt,
    ObjectChange,
    ObjectFlush,
    ObjectList,
    ObjectPatch,
    ObjectSums,
    TargetFlush,
)

if TYPE_CHECKING:
    from ossd.target import Peer, Target

log = logging.getLogger(__name__)

Result = tuple[int, bytes, Buffer]
_DONE: Result = (OK, b"", b"")


def now_us() -> int:
    """The clock of leases: it goes on during suspend."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000


class Members:
    """See the module."""

    def __init__(self, target: Target, copies: Copies, resync: Resync) -> None:
        self._target = target
        self._copies = copies
        self._resync = resync
        self._store: CopyStore = target.store
        self._space = (0, 0)
        self._space_at = 0

    def from_members(self) -> dict[type, Callable[[Peer, Any, Buffer], None]]:
        return {
            ObjectChange: self._change,
            ObjectFlush: self._flush,
            ObjectDelete: self.delete,
            ObjectList: self.list_objects,
            ObjectSums: self._sums,
            ObjectPatch: self._patch,
            ObjectAdopt: self._adopt,
            BlockFetch: self._fetch,
            TargetFlush: self._flush_all,
        }

    # -- the keeper

    def beat(self, peer: Peer, msg: Beat, _: Buffer) -> None:
        table = self._copies.table
        if msg.map:
            try:
                found = map_untrusted(unpack_untrusted(msg.map))
            except (WireError, ValueError) as exc:
                raise WireError(f"beat: {exc}") from exc
            if self._copies.install(found):
                log.info("target %d: storage map %d", table.me, table.version)
        if msg.keys:
            self._target.keys.learn(msg.keys)
            log.info("target %d: %d signing keys", table.me, len(msg.keys))
        if msg.echo_us and msg.version == table.version:
            table.extend(msg.echo_us + LEASE_US)
        self._target.weighing.ask(msg.weigh)
        now = now_us()
        if now - self._space_at > 1_000_000:
            self._space, self._space_at = self._store.space(), now
        missed = tuple(t for t, since in self._copies.missed.items() if self._target.long_ago(since))
        said = BeatSaid(
            msg.number, now, table.version, table.run, *self._space, self._resync.synced, missed,
            self._target.keys.fingerprint, self._target.weighing.number, self._target.weighing.weights,
            bool(self._target.failure.reason),
        )  # fmt: skip
        try:
            peer.conn.send(said)
        except ConnectionLost as exc:
            log.debug("beat: %s", exc)

    # -- changes

    def _refused(self, peer: Peer, msg: Any) -> bool:
        status = self._copies.table.judge_member(msg.chain, msg.chain_version, peer.number)
        if status == OK and self._target.refuses(msg.chain):
            status = Status.NOT_SERVING
        if status != OK:
            peer.answer(msg.call, status)
        return status != OK

    def _change(self, peer: Peer, msg: ObjectChange, bulk: Buffer) -> None:
        if self._refused(peer, msg):
            return
        key = (msg.key.ino, msg.key.column)
        change = Change(
            key, msg.chain, msg.offset, bulk, msg.truncations, msg.client, peer.number,
            (msg.before_version, msg.before), (msg.after_version, msg.after),
        )  # fmt: skip
        self._target.change(peer, msg.call, msg.chain_version, change)

    def _flush(self, peer: Peer, msg: ObjectFlush, _: Buffer) -> None:
        if not self._refused(peer, msg):
            self._target.flush(peer, msg.call, (msg.key.ino, msg.key.column), msg.chain, msg.client, peer.number)

    def delete(self, peer: Peer, msg: ObjectDelete, _: Buffer) -> None:
        """From a replica to the head, and from each member to the next."""
        if peer.number:
            if self._refused(peer, msg):
                return
        else:
            status = self._copies.table.judge_client(msg.chain, msg.chain_version)
            if status == OK:
                status = self._target.allows(peer, msg, ALL_FILES, 0, DELETE)
            if status != OK:
                peer.answer(msg.call, status)
                return
        keys = list(dict.fromkeys(msg.keys))
        sender = peer.number or None

        def passed(call: int, now: Any) -> ObjectDelete:
            return ObjectDelete(call, now.number, now.version, tuple(keys))

        async def delete() -> Result:
            while True:
                status, version = await self._copies.pass_on(msg.chain, sender, passed, b"", None)
                if status != OK:
                    return status, b"", b""
                await self._copies.in_thread(partial(self._store.delete, keys))
                now = self._copies.table.get(msg.chain)
                if now is None or now.version == version or now.next is None:
                    return _DONE
                # As with a change: whoever came meanwhile, and was found equal before ours was gone, is told, too.

        self._target.work(peer, msg.call, self._turns(keys), 0, partial(self._target.changing, msg.chain, delete))

    def _turns(self, keys: list[Key]) -> list[Turn[Key]]:
        return [self._target.order.enter(key, shared=False) for key in keys]

    # -- bringing in step

    def _in_thread(
        self, peer: Peer, msg: Any, size: int, work: Callable[[], Result], key: Key | None, changing: int | None = None
    ) -> None:
        """*changing*: the chain of which something is changed by it (0: all of them); None: nothing is."""

        async def run() -> Result:
            return await self._copies.in_thread(work)

        run_ = run if changing is None else partial(self._target.changing, changing, run)
        self._target.work(peer, msg.call, self._turns([key]) if key is not None else [], size, run_)

    def list_objects(self, peer: Peer, msg: ObjectList, _: Buffer) -> None:
        def work() -> Result:
            if not msg.chain:
                return OK, b"", pack(self._store.belongings(msg.first, msg.count))
            return OK, b"", pack(self._store.listing(msg.chain, msg.first, msg.count))

        async def run() -> Result:
            if msg.chain:
                async with self._target.clearing.turn:
                    if not self._target.clearing.is_member(msg.chain):
                        return Status.NOT_SERVING, b"", b""  # our map is older: what is here may be about to go
            return await self._copies.in_thread(work)

        self._target.work(peer, msg.call, [], 0, run)

    def _sums(self, peer: Peer, msg: ObjectSums, _: Buffer) -> None:
        def work() -> Result:
            try:
                file = self._store.fetch(key, create=False)
            except Damaged:
                file = None  # nothing of it can be relied on
            if file is None:
                return OK, pack((-1, 0, b"", 0, 0)), b""
            try:
                return OK, pack(self._store.sums(file, msg.first, msg.count)), b""
            finally:
                self._store.release(file)

        key = (msg.key.ino, msg.key.column)
        self._in_thread(peer, msg, 0, work, key)

    def _patch(self, peer: Peer, msg: ObjectPatch, bulk: Buffer) -> None:
        if self._refused(peer, msg):
            return
        key = (msg.key.ino, msg.key.column)
        if len(bulk) > BLOCK or msg.offset % BLOCK:
            peer.answer(msg.call, Status.BAD_MESSAGE)
            return

        def work() -> Result:
            file = self._store.fetch_or_begin_anew(key, msg.chain)
            try:
                self._store.patch(file, msg.offset, bulk, msg.chain)
            finally:
                self._store.release(file)
            return _DONE

        self._in_thread(peer, msg, len(bulk), work, key, msg.chain)

    def _adopt(self, peer: Peer, msg: ObjectAdopt, _: Buffer) -> None:
        if self._refused(peer, msg):
            return
        key = (msg.key.ino, msg.key.column)

        def work() -> Result:
            file = self._store.fetch_or_begin_anew(key, msg.chain)
            try:
                self._store.adopt(file, msg.length, msg.trim, (msg.stamp_version, msg.stamp), msg.chain)
            finally:
                self._store.release(file)
            return _DONE

        self._in_thread(peer, msg, 0, work, key, msg.chain)

    def _fetch(self, peer: Peer, msg: BlockFetch, _: Buffer) -> None:
        key = (msg.key.ino, msg.key.column)

        def work() -> Result:
            file = self._store.fetch(key, create=False)
            if file is None:
                return Status.OUT_OF_STEP, b"", b""
            try:
                if file.ledger.stamp != (msg.stamp_version, msg.stamp) or file.ledger.stamp == NO_STAMP:
                    return Status.OUT_OF_STEP, b"", b""
                return OK, b"", self._store.read_block(file, msg.block)
            except BadBlock:
                return Status.CORRUPT, b"", b""
            finally:
                self._store.release(file)

        # In no turn: whoever asks holds the object's, at a member where no change can come past him to us, or he is
        # behind us and a change that we carry out meanwhile has another stamp.
        self._in_thread(peer, msg, BLOCK, work, None)

    def _flush_all(self, peer: Peer, msg: TargetFlush, _: Buffer) -> None:
        def work() -> Result:
            self._store.sync_all()
            return _DONE

        self._in_thread(peer, msg, 0, work, None, 0)


Work = Callable[[], Awaitable[Result]]

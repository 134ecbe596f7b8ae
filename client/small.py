"""Files whose bytes are in the metadata, and their way out to objects (see wire.inline).

What is written to such a file is kept as a patch, and told to the service with size and time in one ordered request
when it is committed: at close, fsync, or by age. Reading lays what is not told yet over the bytes that came with the
open, or are asked for by a query, which takes the place of reading objects: it is asked again under the same rules as
data read ahead.

The file is *small* here until its patch has been handed over to the path of objects. That happens when a write goes
beyond the limit, or when the service says that somebody else has let the file grow out; it is never small again.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING

import trio

from client import limits
from client.acks import Ack, Unsynced
from client.attributes import Attr, attr_untrusted
from client.capabilities import Held
from client.gather import Buffer
from client.io import FileData
from client.patch import Patch
from client.pool import FilePool
from client.service import errno_of
from client.striping import split
from wire import ids
from wire.capability import WRITE
from wire.errors import FileSystemError, Status
from wire.fileops import Reserve
from wire.inline import GrownOut, GrowOut, ReadInline, WriteInline
from wire.messages import ObjectKey, ObjectSync, ObjectWrite
from wire.ops import GetAttr, SetAttr

if TYPE_CHECKING:
    from client.births import Birth

Contents = tuple[int, bytes]
"""(version, bytes) of wire.inline.ReadInline."""


class SmallFile(FileData):
    """See the module. Any file: one that is in objects from the start is never small."""

    def __init__(self, pool: FilePool, attr: Attr) -> None:
        super().__init__(pool, attr)
        self._small = attr.inline > 0
        self._patch = Patch()
        """Written here, not told to the service."""
        self._sent = Patch()
        """On its way to the service; older than the patch."""
        self._counted = 0
        """What of both is counted in the pool's ``unsent``."""
        self._known: tuple[bytes, float] | None = None
        """(the bytes at the service, when they were told)."""
        self._asking = trio.Lock()
        """Held while the bytes are asked for, so that answers are taken in in the order in which they were given."""
        self._changes = 0
        """Counts what makes bytes untrue that were asked for before."""
        self.birth: Birth | None = None
        """It is unborn (client.births): nobody but this mount can see it, and the service does not know it yet."""
        self._sent_writes = 0

    @property
    def is_small(self) -> bool:
        return self._small

    # -- attributes

    def _latest(self, attr: Attr) -> Attr:
        old = self.attr
        if attr.inline and not old.inline:
            # 1. Somebody lets the file grow out. 2. We learn of it. 3. An answer from before comes, of the same ctime.
            return attr._replace(inline=0, objects=old.objects, layout=old.layout)
        return attr

    def learn(self, attr: Attr) -> None:
        version = self.version
        super().learn(attr)
        if version != self.version:
            self._forget()

    def _forget(self) -> None:
        self._known = None
        self._changes += 1

    def opened(self, contents: Contents | None, first: bool) -> None:
        """An open was answered with *contents*; *first*: nothing else of this file is under way here."""
        self._known = (contents[1], trio.current_time()) if contents is not None and first else None

    # -- unborn

    def unborn(self, birth: Birth, wait: Callable[[Birth], Awaitable[None]]) -> None:
        """It was made here just now; *wait(birth)* waits until it is born."""
        self.birth = birth
        self.held.born = partial(wait, birth)

    @property
    def has_more(self) -> bool:
        """Of an unborn file: something is written that will not be told with its birth, which has set out."""
        return bool(self._patch)

    def set_out(self) -> tuple[tuple[tuple[int, bytes], ...], int, bool]:
        """The birth is being sent, what is written goes along: (pieces, mtime, whether root alone has written)."""
        assert self._small and not self._sent
        if not self._patch:
            return (), 0, False
        self._sent, self._patch, self._sent_writes = self._patch, Patch(), self._writes
        return self._sent.pieces(), self._mtime_ns, self._privileged

    def came_back(self) -> None:
        """The birth was refused, with what it had: it is sent again, or will be told afterwards."""
        if self._sent:
            self._patch, self._sent = self._patch.over(self._sent), Patch()
            self._count()

    def born(self, attr: Attr) -> None:
        """The service knows it, with what went along."""
        self.birth = self.held.born = None
        self._attr_moves += 1
        self.attr = attr
        if self._sent:
            self._sent = Patch()
            self._settled(self._sent_writes)
            self._forget()
            self._count()

    def never_born(self, code: int) -> None:
        """There will be no such file."""
        self.birth = self.held.born = None
        self._attr_moves += 1
        self._patch, self._sent = Patch(), Patch()
        self._settled(self._writes)
        self._forget()
        self._count()
        self._failed(code, "it could not be made after all")

    def leave(self) -> None:
        """The birth was a user of it, and is none any more."""
        self._pool.let_go(self)

    async def leave_told(self) -> None:
        """The same when what is written has been told."""
        await self.commit_aged()
        await self._pool.release(self)

    # -- writing

    async def write(self, offset: int, data: Buffer, *, append: bool = False, privileged: bool = False) -> int:
        if self._small and len(data):
            if append:
                taken = await self._append_small(data, privileged)
            else:
                taken = await self._write_small(offset, data, privileged)
            if taken:
                return taken
        return await super().write(offset, data, append=append, privileged=privileged)

    async def _write_small(self, offset: int, data: Buffer, privileged: bool) -> int:
        """Bytes taken; 0: the file is not small any more."""
        size = len(data)
        end = offset + size
        while True:
            if not self._small:
                return 0
            if self._truncating is not None:
                await self._truncating.wait()
            elif end > ids.FILE_SIZE_MAX:
                raise FileSystemError(errno.EFBIG)
            elif end > self.attr.inline:
                await self.grow_out()
            elif self._patch.count >= limits.PATCH_PIECES:
                await self.commit()
            else:
                break
        # No checkpoint from here on, as in FileData.write.
        self._take_in(end, data, privileged)
        if self._pool.unsent > limits.MOUNT_DIRTY_MAX:
            await self.commit()
        return size

    async def _append_small(self, data: Buffer, privileged: bool) -> int:
        """As FileData.write appends: where the bytes belong is ordered, and they are told before anything else is."""
        async with self._changing:
            if not self._small:
                return 0
            room = Reserve(self.ino, len(data), self._end)
            (offset, attr), _ = await self._pool.access.request(self.held, WRITE, room)
            self.learn(attr_untrusted(attr))
            if offset + len(data) <= self.attr.inline:
                self._take_in(offset + len(data), data, privileged)
                await self._commit()
                return len(data)
            await self._move_out()
            self._hand_over()
            self._take(offset, data, privileged)
            self._send_run()
            return len(data)

    def write_at_once(self, offset: int, data: Buffer, append: bool, privileged: bool) -> bool:
        """As :meth:`write`, if nothing has to be waited for; else False, and nothing is done."""
        if append and self._appends_here:
            assert self.birth is not None
            self.birth.whole = self.birth.promised = True  # at that place nobody else may append afterwards
            offset = self.size
            append = False
        end = offset + len(data)
        if (
            not self._small
            or self._truncating is not None
            or append
            or not len(data)
            or end > self.attr.inline
            or self._patch.count >= limits.PATCH_PIECES
            or self._pool.unsent > limits.MOUNT_DIRTY_MAX
        ):
            return False
        self._take_in(end, data, privileged)
        return True

    @property
    def _appends_here(self) -> bool:
        """Whether its end is where we see it: nobody else sees it before it is born, with all that was appended."""
        birth = self.birth
        return birth is not None and not birth.sent and not birth.bare and not self._changing.locked()

    def _take_in(self, end: int, data: Buffer, privileged: bool) -> None:
        self._patch.write(end - len(data), data)
        self._count()
        self._noted(end, privileged, trio.current_time())

    def _count(self) -> None:
        grown = len(self._patch) + len(self._sent) - self._counted
        self._counted += grown
        if grown < 0:
            self._pool.freed(-grown)
        else:
            self._pool.unsent += grown

    async def _commit(self) -> None:
        if self._small:
            if await self._commit_small():
                return
            await self.settle()
        await super()._commit()

    async def _commit_small(self) -> bool:
        """Tell the patch. False: it does not belong into the metadata any more, and is on its way to the objects."""
        if self.held.born is not None:
            await self.held.born()
        while self._patch:
            if not self.attr.inline:
                self._hand_over()
                return False
            if self._patch.end > self.attr.inline:  # another layout was set meanwhile
                await self._move_out()
                continue
            writes, end = self._writes, self._patch.end
            self._sent = sent = self._patch
            self._patch = Patch()
            try:
                told = WriteInline(self.ino, self._sent.pieces(), self._mtime_ns, self._privileged)
                attr = await self._tell(told)
            except FileSystemError as exc:
                if exc.status not in (Status.STALE_LAYOUT, errno.ETIMEDOUT):  # "no", for good: see FileData._commit
                    self._sent = Patch()
                    self._settled(writes)
                    self._failed(errno_of(exc), f"{len(sent)} bytes for the metadata, up to {end}, are lost: {exc}")
                if exc.status != Status.STALE_LAYOUT:
                    raise
            else:
                self._sent = Patch()
                self._attr_moves += 1
                self._settled(writes)
                self._learn_own(attr, end)
                self._forget()
                return True
            finally:
                # Not told, or nobody knows (cancelled, timed out): it is told again, with what came after it.
                if self._sent:
                    self._patch, self._sent = self._patch.over(self._sent), Patch()
                self._count()
            await self._look_up()
        return True

    async def _look_up(self) -> None:
        """The attributes as they are, after the service said that ours are old."""
        self._take_layout(attr_untrusted(await self._pool.service.query(GetAttr(self.ino))))

    def _take_layout(self, attr: Attr) -> None:
        self.learn(attr)
        # An answer that came late for the rest, by its ctime, may still be the first to tell where the bytes are.
        if self.attr.inline and not attr.inline:
            self.attr = self.attr._replace(inline=attr.inline, objects=attr.objects, layout=attr.layout)

    # -- growing out

    async def grow_out(self) -> None:
        """The bytes go to objects from now on, whoever is writing the file. Raises :class:`FileSystemError`."""
        async with self._changing:
            if self._small:
                await self._move_out()
                self._hand_over()

    def _hand_over(self) -> None:
        """What is written and not told goes to the objects, before anything that is written later."""
        assert self._small and not self.attr.inline and not self._sent
        self._small = False
        self._forget()
        if self.attr.objects != self.ino:
            self.held.void()
        pieces = self._patch.pieces()
        self._patch = Patch()
        for offset, data in pieces:
            self._pool.unsent += len(data)
            self._launch(offset, (data,))
        self._count()

    async def _move_out(self) -> None:
        """Until the service says that the bytes are in objects. Called with ``_changing`` held."""
        if self.birth is not None and not self.birth.promised:
            self.birth.bare = True  # empty, it is in objects at once
        pause = limits.GROW_FIRST_S
        while self.attr.inline:
            (number, values), granted = await self._pool.access.request(self.held, WRITE, GrowOut(self.ino))
            self._attr_moves += 1
            attr = attr_untrusted(values)
            if number and granted and await self._copied(number, granted):
                try:
                    grown, _ = await self._pool.access.request(self.held, WRITE, GrownOut(self.ino, number))
                    attr = attr_untrusted(grown)
                except FileSystemError as exc:
                    if exc.status != Status.STALE_LAYOUT:
                        raise
                self._attr_moves += 1
            self._take_layout(attr)
            if self.attr.inline:
                # Another mount has changed the bytes, or lets the file grow out itself: who waits longer lets it.
                await trio.sleep(random.uniform(0, pause))
                pause = min(2 * pause, limits.GROW_MAX_S)

    async def _copied(self, number: int, granted: bytes) -> bool:
        """As :meth:`_copy`; also False when it took so long (no target was there) that *granted* has expired."""
        try:
            return await self._copy(number, granted)
        except FileSystemError as exc:
            if exc.status != Status.CAPABILITY_EXPIRED:
                raise
            return False

    async def _copy(self, number: int, granted: bytes) -> bool:
        """Write the bytes of now to the objects of *number*, durably. False: there are none, or a target lost some."""
        held = Held(number, renewable=False)  # the service knows of no file of that number
        held.take(granted, None, trio.current_time())
        values, contents = await self._pool.access.query(self.held, WRITE, ReadInline(self.ino))
        attr = attr_untrusted(values)
        if contents is None or not contents[1]:
            return False
        assert attr.layout is not None, "GrowOut gives no number to a file without a layout"
        data = memoryview(contents[1])
        stripe_size, chains = attr.layout
        columns: dict[int, Unsynced] = {}
        for extent in split(0, len(data), stripe_size, len(chains), limits.EXTENT_MAX):
            key, chain, at = ObjectKey(number, extent.column), chains[extent.column], extent.object_offset
            write = partial(ObjectWrite, key=key, chain=chain, truncations=(), offset=at)
            await self._pool.access.call(
                held,
                WRITE,
                chain,
                lambda call, ver, token, write=write: write(call=call, chain_version=ver, capability=token),  # type: ignore[misc]
                (data[extent.offset : extent.offset + extent.length],),
                extent.length,
                answered=columns.setdefault(extent.column, Unsynced()).add,
            )
        lost = False

        def synced(column: int, ack: Ack) -> None:
            nonlocal lost
            lost = columns[column].take_lost(ack) or lost

        for column in sorted(columns):
            key, chain = ObjectKey(number, column), chains[column]
            sync = partial(ObjectSync, key=key, chain=chain)
            await self._pool.access.call(
                held,
                WRITE,
                chain,
                lambda call, ver, token, sync=sync: sync(call=call, chain_version=ver, capability=token),  # type: ignore[misc]
                answered=partial(synced, column),
            )
        return not lost

    async def fsync(self) -> None:
        if self.held.born is not None:
            await self.held.born()
        if self._small:
            await self.commit()
        await super().fsync()

    # -- reading

    async def read(self, offset: int, size: int, fresh: bool = True) -> Buffer:
        """As :meth:`FileData.read`; with *fresh* the service is asked for the bytes in any case."""
        while self._small:
            if self._truncating is not None:
                await self._truncating.wait()
            elif not self.attr.inline:
                await self.grow_out()
            elif fresh or (found := self.read_known(offset, size)) is None:
                await self._ask()
                fresh = False
            else:
                await trio.lowlevel.checkpoint()
                return found
        return await super().read(offset, size)

    def read_known(self, offset: int, size: int) -> Buffer | None:
        """As :meth:`read`, at once; None when the service has to be asked."""
        known = self._known
        if known is None or self._truncating is not None or trio.current_time() - known[1] > limits.READ_AHEAD_AGE_S:
            return None
        stop = min(offset + size, self.size)
        if stop <= offset:
            return b""
        data = known[0][offset:stop]
        if len(data) == stop - offset and not self._patch and not self._sent:
            return data
        view = bytearray(stop - offset)
        view[: len(data)] = data
        self._sent.lay_over(view, offset)
        self._patch.lay_over(view, offset)
        return view

    async def _ask(self) -> None:
        async with self._asking:
            while True:
                before = self._attr_moves, self._changes
                access, op = self._pool.access, ReadInline(self.ino)
                values, contents = await access.with_either(self.held, partial(access.query, self.held, op=op))
                # Otherwise the answer may be from before what we have done, or learned, meanwhile (FileData.refresh).
                if before == (self._attr_moves, self._changes):
                    break
            self._take_layout(attr_untrusted(values))
            if contents is not None and self._small:
                self._known = (contents[1], trio.current_time())

    # -- truncation

    async def _set_size(self, op: SetAttr) -> Attr:
        attr = await super()._set_size(op)
        self._forget()
        return attr

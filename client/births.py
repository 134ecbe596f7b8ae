"""Files that this mount makes by itself, in directories delegated to it, and has ordered a moment later.

The trio shell of :mod:`client.delegations` and :mod:`client.unborn`. A file is *unborn* from the moment a process here
has been told that it is there until the service has answered CreateDelegated: its birth. That is sent when the file is
closed, when somebody waits for it, or when it is BIRTH_AGE_S old; what was written to it meanwhile goes along, so that
a small file is one ordered request. While births are under way, those that become ready are collected, so that many
small requests travel together.

Nobody else sees anything of a delegated directory. A birth needs no delegation, so all that a recall takes is to
answer nothing by ourselves any more, and to give the directory back when what was answered is ordered.
"""

from __future__ import annotations

import errno
import logging
import os
from collections import deque
from collections.abc import Iterable
from typing import Any, Final

import trio

from client import limits
from client.attributes import Attr, attr_untrusted
from client.delegations import Delegations, new_file
from client.namecache import ABSENT, Stamp
from client.service import MetadataClient, boottime, errno_of
from client.small import SmallFile
from client.unborn import Unborn
from wire import ids, ops
from wire.codec import unpack_untrusted
from wire.delegation import CreateDelegated, Delegate, Undelegate
from wire.errors import OK, FileSystemError, Status, WireError, describe

log = logging.getLogger(__name__)

_NOT_AHEAD: Final = os.O_DSYNC | os.O_DIRECT | getattr(os, "O_TMPFILE", 0) & ~os.O_DIRECTORY
"""Flags of open(2) that want a file to be in place when it returns. (O_SYNC includes O_DSYNC.)"""
_NS: Final = 1_000_000_000


class Birth:
    """One unborn file."""

    __slots__ = (
        "attr", "bare", "block", "closed", "cred", "data", "done", "name", "parent", "promised", "ready",
        "sent", "since", "whole",
    )  # fmt: skip

    def __init__(self, cred: ops.Cred, parent: int, name: bytes, attr: Attr, block: int, since: float) -> None:
        self.cred = cred
        self.parent = parent
        self.name = name
        self.attr = attr
        """As it was when it was made; what the service will say, but for the layout."""
        self.block = block
        """Of the inode number."""
        self.since = since
        self.data: SmallFile
        self.ready = False
        """It is sent, or will be as soon as that is worth it; or it is over."""
        self.sent = False
        self.whole = False
        """What is written goes along, if it may."""
        self.promised = False
        """Nobody else is to see it without what is written: a close(2) has returned, or it was appended to."""
        self.bare = False
        """What is written must not go along: it does not fit, or is to go to objects."""
        self.closed = False
        """The handle that it was made with is closed."""
        self.done = trio.Event()
        """It is born, or never will be."""

    @property
    def ino(self) -> int:
        return self.attr.ino


class Births:
    """See the module."""

    def __init__(self, service: MetadataClient) -> None:
        self._service = service
        self._cache = service.cache
        self.delegations = Delegations()
        self._unborn: Unborn[Birth] = Unborn()
        self._unsent: deque[Birth] = deque()
        """Oldest first; among them those that are sent by now."""
        self._ready: deque[Birth] = deque()
        self._under_way = 0
        self._sending = False
        self._any_unsent = trio.Event()
        self._full = False
        self._room = trio.Event()
        """Set, and replaced, when half of the places for unborn files are free again."""
        self._telling: dict[trio.Event, int] = {}
        """Contents that could not go along with a birth, and that somebody was promised -> the file's directory."""
        self._nursery: trio.Nursery | None = None
        self.moves = 0
        """Counts files made here and births: what the service says of a directory may be from before."""
        service.ahead = self

    async def run(self) -> None:
        """Send what has waited for long, give back what is of no use."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._give_back_unused)
            while True:
                if not self._unsent:
                    self._any_unsent = trio.Event()
                    await self._any_unsent.wait()
                await trio.sleep_until(self._unsent[0].since + limits.BIRTH_AGE_S)
                now = trio.current_time()
                while self._unsent and (self._unsent[0].sent or self._unsent[0].since + limits.BIRTH_AGE_S <= now):
                    self._make_ready(self._unsent.popleft())
                self._send_ready(at_once=True)

    def __len__(self) -> int:
        """Unborn files."""
        return len(self._unborn)

    # -- making

    def make(self, cred: ops.Cred, parent: int, name: bytes, mode: int, flags: int) -> Birth | None:
        """Make *name* in *parent* here, or None: the service has to. Whoever is given a birth calls :meth:`add` with it
        before anything else happens: no checkpoint from the look at what is known to that."""
        delegations = self.delegations
        if parent not in delegations.held or flags & _NOT_AHEAD or self._is_full():
            return None
        above = delegations.of(cred, parent)
        cache = self._cache
        now = boottime()
        if (
            above is None
            or len(name) > ids.NAME_MAX
            or cache.is_barred(parent)
            or cache.lookup(cred, parent, name, now) != ABSENT  # also when the lease does not run
        ):
            self._ask_for_more(cred, parent)
            return None
        number, block = delegations.numbers.take()
        time_ns = delegations.clock.now(int(now * _NS), cache.changed_ns(parent))
        birth = Birth(cred, parent, name, new_file(above.attr, cred, mode, number, above.inline, time_ns), block, 0.0)
        delegations.made(parent, now)
        self._ask_for_more(cred, parent)
        return birth

    def add(self, birth: Birth, data: SmallFile) -> None:
        """*birth*, just made, has the contents *data*, which we use from now on."""
        birth.data = data
        birth.since = trio.current_time()
        data.users += 1
        data.unborn(birth, self.wait)
        self._unborn.add(birth)
        self._cache.made_here(birth.parent, birth.name, birth.attr)
        self._unsent.append(birth)
        self._any_unsent.set()
        self.moves += 1

    async def make_room(self, parent: int) -> None:
        """Wait while there are too many unborn files, if that keeps another from being made in *parent* here."""
        while parent in self.delegations.held and self._is_full():
            self._want(self._unborn)
            await self._room.wait()

    def _is_full(self) -> bool:
        """No other file is made here before half of those that are unborn are born: whoever waits would be passed by
        all who come later, if they were let in one by one."""
        self._full = self._full or len(self._unborn) >= limits.UNBORN_MAX
        return self._full

    # -- births

    def hurry(self, birth: Birth) -> bool:
        """A process has closed the file: it is to be ordered with what is written so far. False: that cannot be said
        any more, some of it may have to be told afterwards."""
        if birth.sent or birth.bare:
            return not birth.data.has_more
        birth.whole = birth.promised = True
        self._make_ready(birth)
        self._send_ready()
        return True

    async def wait(self, birth: Birth) -> None:
        """Until it is born, or never will be."""
        self._want((birth,))
        await birth.done.wait()

    def _want(self, births: Iterable[Birth]) -> None:
        """Somebody waits for them."""
        for birth in births:
            birth.whole = True
            self._make_ready(birth)
        self._send_ready(at_once=True)

    def _make_ready(self, birth: Birth) -> None:
        if not birth.ready:
            birth.ready = True
            self._ready.append(birth)

    def _send_ready(self, *, at_once: bool = False) -> None:
        """Send those that are ready, if that is worth it by now."""
        ready = self._ready
        if not at_once and self._under_way and len(ready) < limits.BIRTHS_TOGETHER:
            return  # with the next answer
        if self._sending:
            return
        self._sending = True  # what is refused at once is looked at by the loop, not within it
        while ready and self._under_way < limits.BIRTHS_UNDER_WAY:
            self._send(ready.popleft())
        self._sending = False

    def _send(self, birth: Birth) -> None:
        birth.sent = True
        self._under_way += 1
        if birth.whole and not birth.bare:
            pieces, mtime_ns, privileged = birth.data.set_out()
        else:
            # By age: whoever writes on will have it told at close, as of any file. Now it might be moved out yet.
            pieces, mtime_ns, privileged = (), 0, False
        attr = birth.attr
        op = CreateDelegated(
            birth.cred, birth.parent, birth.name, attr.mode & 0o7777, attr.ino, attr.ctime_ns, pieces,
            max(mtime_ns, attr.mtime_ns) if pieces else 0, privileged,
        )  # fmt: skip

        def told(status: int, body: bytes, stamp: Stamp | None, granted: bytes) -> None:
            self._under_way -= 1
            self._answered(birth, status, body, stamp, granted)
            if self._ready:
                self._send_ready()

        self._service.submit(op, told)

    def _answered(self, birth: Birth, status: int, body: bytes, stamp: Stamp | None, granted: bytes) -> None:
        if status == OK:
            try:
                attr = attr_untrusted(unpack_untrusted(body))
            except WireError as exc:
                self._fail(birth, errno.EIO, str(exc))
            else:
                self._born(birth, attr, stamp, granted)
            return
        birth.data.came_back()
        if status == Status.STALE_LAYOUT and not birth.bare:
            # The limit of the directory is another one by now: as a file of its kind is made otherwise.
            birth.bare = True
            birth.sent = False
            self._ready.appendleft(birth)
        elif status == Status.OVERLOADED:
            assert self._nursery is not None
            self._nursery.start_soon(self._again, birth)
        else:
            self._fail(birth, errno_of(FileSystemError(status)), describe(status))

    async def _again(self, birth: Birth) -> None:
        await trio.sleep(limits.OVERLOADED_FIRST_S)
        if not birth.done.is_set():
            birth.sent = False
            self._ready.append(birth)
            self._send_ready(at_once=True)

    def _born(self, birth: Birth, attr: Attr, stamp: Stamp | None, granted: bytes) -> None:
        late_ns = birth.attr.ctime_ns - attr.atime_ns
        if late_ns > 0:
            self.delegations.clock.too_late(late_ns)
        data = birth.data
        data.held.take(granted, birth.cred, trio.current_time())
        data.born(attr)
        self._cache.born(birth.parent, birth.name, attr, stamp, late_ns == 0)
        self._over(birth)
        if birth.closed:
            self._service.handle_closed(birth.ino)
        self._let_go(birth)

    def _let_go(self, birth: Birth) -> None:
        """The file is kept by its users alone from now on. What they were promised and could not go along is told."""
        data = birth.data
        if not data.is_dirty or (data.users > 1 and not (birth.promised and birth.bare)):
            data.leave()
            return
        assert self._nursery is not None
        told = trio.Event()
        self._telling[told] = birth.parent

        async def tell() -> None:
            try:
                await data.leave_told()
            finally:
                del self._telling[told]
                told.set()

        self._nursery.start_soon(tell)

    def _fail(self, birth: Birth, code: int, why: str) -> None:
        """The service will not have it."""
        log.error(
            "file %r, made in directory %d as inode %d, is lost: %s", birth.name, birth.parent, birth.ino, why
        )  # fmt: skip
        self._cache.never_born(birth.parent, birth.name, birth.ino)
        birth.data.never_born(code)
        self._over(birth)
        birth.data.leave()

    def _over(self, birth: Birth) -> None:
        self.moves += 1
        birth.ready = True
        self._unborn.remove(birth)
        birth.done.set()
        if self._full and len(self._unborn) <= limits.UNBORN_MAX // 2:
            self._full = False
            self._room.set()
            self._room = trio.Event()

    # -- before anything is asked (client.service.Ahead)

    def is_ahead(self) -> bool:
        return bool(self._unborn or self.delegations.held or self.delegations.asking)

    async def clear(self, op: Any) -> None:
        """Wait until the service knows every file that *op* may be about. No checkpoint after the last look."""
        if isinstance(op, ops.SetAttr | ops.SetXattr | ops.RemoveXattr) and self._may_be_ours(op.ino):
            # What is known of its mode, owner and policy will not be true any more.
            self._give_back((op.ino,))
        # 1. A directory is to be removed, which waits for files elsewhere. 2. A file is made in it. 3. The service
        # removes the directory, empty as far as it knows, before it hears of the file.
        removes = isinstance(op, ops.Rmdir)
        if removes:
            self._cache.bar()
        try:
            before = self._unborn.before(op)
            if before:
                self._want(before)
                for birth in before:
                    await birth.done.wait()
            while (named := self._unborn.named(op)) is not None:
                await self.wait(named)
        finally:
            if removes:
                self._cache.unbar()

    def _may_be_ours(self, ino: int) -> bool:
        return ino in self.delegations.held or ino in self.delegations.asking

    def give_up(self, directory: int) -> None:
        """Make no more files in *directory* here for now."""
        if self._may_be_ours(directory):
            self._give_back((directory,))

    async def settle(self, parent: int) -> None:
        """Everything made in *parent* so far is durable."""
        births = self._unborn.within(parent)
        self._want(births)
        for birth in births:
            await birth.done.wait()

    async def flush_all(self) -> None:
        """Everything made so far is durable, or is known to be lost (unmount)."""
        births = list(self._unborn)
        self._want(births)
        for birth in births:
            await birth.done.wait()

    def is_older(self, moves: int, directory: int) -> bool:
        """Whether what the service said of *directory*, asked when ``self.moves`` was *moves*, may be older than what
        processes here have been told."""
        delegations = self.delegations
        changed = moves != self.moves and (directory in delegations.held or directory in delegations.returning)
        return changed or bool(self._unborn.within(directory))

    # -- asking for directories

    def created(self, cred: ops.Cred, parent: int, ctime_ns: int) -> None:
        """The service has made a file in *parent* for us."""
        self.delegations.clock.was(ctime_ns, int(boottime() * _NS))
        if parent not in self.delegations.held:
            if self.delegations.created(parent, boottime()):
                self._ask(cred, parent)
        else:
            self._ask_for_more(cred, parent)
            nursery = self._nursery
            wanted = not self._cache.is_complete(parent) and self.delegations.may_list(parent, boottime())
            if wanted and nursery is not None:
                nursery.start_soon(self._list, cred, parent)

    def _ask_for_more(self, cred: ops.Cred, parent: int) -> None:
        delegations = self.delegations
        if delegations.numbers.left < limits.NUMBERS_LOW and delegations.needs_numbers(parent, boottime()):
            self._ask(cred, parent)

    def _ask(self, cred: ops.Cred, parent: int) -> None:
        oldest = next(iter(self._unborn), None)
        delegations = self.delegations
        if (
            self._nursery is None
            or self._cache.is_barred(parent)
            or len(delegations.asking) >= limits.ASKING_MAX
            or not delegations.numbers.may_grow(oldest.block if oldest is not None else 0)
        ):
            return
        if parent not in delegations.held and (too_many := delegations.too_many()):
            self._give_back(too_many)
        delegations.asking[parent] = False
        self._nursery.start_soon(self._ask_for, cred, parent)

    async def _ask_for(self, cred: ops.Cred, parent: int) -> None:
        delegations = self.delegations
        generation, attached = self._service.generation, self._service.core.counts.attached
        status, result = await self._service.ask(Delegate(cred, parent))
        if attached != self._service.core.counts.attached:
            # It may have been executed long ago, and the directory taken away since.
            delegations.asking[parent] = True
            delegations.numbers.missed()
        now = boottime()
        if status != OK or generation != self._service.generation:
            log.debug("directory %d is not delegated to us: %s", parent, describe(status))
            kept = delegations.failed(parent, now)
        else:
            try:
                kept = delegations.answered(parent, result, now, int(now * _NS))
            except WireError as exc:
                log.error("directory %d: %s", parent, exc)
                kept = delegations.failed(parent, now)
        if not kept:
            self._give_back((parent,))
        elif parent in delegations.held and not self._cache.is_complete(parent):
            await self._list(cred, parent)

    async def _list(self, cred: ops.Cred, parent: int) -> None:
        """Learn all names in *parent*, which is delegated to us and not too large: then we need not ask for each."""
        if not self._cache.begin_listing(parent):
            return
        found: list[tuple[bytes, int]] = []
        cookie, end = 0, False
        try:
            for _ in range(limits.LIST_PAGES):
                status, result = await self._service.look(ops.ReadDir(cred, parent, cookie, limits.READDIR_BATCH))
                if status != OK:
                    break
                page, end = result
                found += [(name, attr[0]) for name, _, attr in page]
                if end:
                    break
                cookie = page[-1][1]
        finally:
            self._cache.end_listing(parent, found if end and parent in self.delegations.held else None)

    # -- giving them back

    def on_recall(self, directories: tuple[int, ...]) -> None:
        """Nothing is made here in *directories* from now on; they are given back when what was made is ordered."""
        now = boottime()
        for directory in directories:
            self.delegations.refused(directory, now)
        self._give_back(directories)

    def on_attached(self) -> None:
        # 1. We are cut off. 2. A directory is recalled, and taken away because we do not answer. 3. We come back.
        if boottime() - max(self._cache.ran_until, self._cache.until) > limits.LAPSE_S:
            self.on_doubt()

    def on_doubt(self) -> None:
        if self.delegations.held:
            self._give_back(tuple(self.delegations.held))

    def _give_back(self, directories: tuple[int, ...]) -> None:
        """Make nothing here in *directories* any more, as of now; the rest is done in the background, whoever asked."""
        for directory in directories:
            self._cache.given_back(directory)
        mine = self.delegations.take_back(directories)
        if mine and self._nursery is not None:
            self._nursery.start_soon(self._return, mine)

    async def _return(self, directories: tuple[int, ...]) -> None:
        for directory in directories:
            await self.settle(directory)
        # Not for files elsewhere: one whose target is down would keep everything from being given back.
        for told, parent in list(self._telling.items()):
            if parent in directories:
                await told.wait()
        status, _ = await self._service.ask(Undelegate(directories))
        if status != OK:  # else: recalled, they are taken away in a few seconds
            log.info("%d directories could not be given back: %s", len(directories), describe(status))
        self.delegations.returned(directories)

    async def _give_back_unused(self) -> None:
        while True:
            await trio.sleep(limits.DELEGATED_LOOK_S)
            if unused := self.delegations.unused(boottime()):
                self._give_back(unused)

    def on_session_lost(self) -> None:
        for directory in self.delegations.held:
            self._cache.given_back(directory)  # what is being listed is of before
        self.delegations.lost()
        for birth in [birth for birth in self._unborn if not birth.sent]:
            self._fail(birth, errno.EIO, "the session has expired")
        self._ready.clear()

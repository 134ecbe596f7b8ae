"""The open files of one mount together: what they share, and the clock that writes them out."""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from client import limits
from client.attributes import Attr
from client.capabilities import Access
from client.io import FileData
from client.service import MetadataClient
from client.targets import Targets
from wire.errors import FileSystemError

log = logging.getLogger(__name__)


class FilePool:
    """The open files of one mount, and what they share: the memory they may use, the clock that writes them out."""

    def __init__(
        self,
        nursery: trio.Nursery,
        service: MetadataClient,
        targets: Targets,
        make: Callable[[FilePool, Attr], FileData],
    ) -> None:
        self._make = make
        self.nursery = nursery
        self.service = service
        self.targets = targets
        self._open: dict[int, FileData] = {}
        self._dirty: set[FileData] = set()
        self._any_dirty = trio.Event()
        self.unsent = 0
        """Bytes gathered or in flight, of all files."""
        self.room = trio.Event()
        """Set, and replaced, whenever ``unsent`` has become smaller."""
        self.access = Access(service, targets)

    def acquire(self, attr: Attr) -> FileData:
        """The file of *attr*, kept until :meth:`release` was called as often."""
        data = self._open.get(attr.ino)
        if data is None:
            data = self._open[attr.ino] = self._make(self, attr)
        else:
            data.learn(attr)
        data.users += 1
        return data

    async def release(self, data: FileData) -> None:
        """One user less; the last one sees to it that nothing stays unwritten (errors were for close to report)."""
        try:
            if data.users == 1 and data.is_dirty:
                await data.settle()
                await data.commit()
        except FileSystemError as exc:
            log.error("inode %d: written data could not be committed after close: %s", data.ino, exc)
        finally:
            self.let_go(data)

    def let_go(self, data: FileData) -> None:
        """One user less, at once: nothing is unwritten, or another user sees to it."""
        data.users -= 1
        if not data.users and not data.is_dirty:
            self._forget(data)

    def _forget(self, data: FileData) -> None:
        # 1. A file is written and closed. 2. It is opened again: that is another FileData. 3. The first is looked at
        # once more, because it was dirty. It must not take the second with it, whose writes nobody would see any more.
        if self._open.get(data.ino) is data:
            del self._open[data.ino]

    def get(self, ino: int) -> FileData | None:
        return self._open.get(ino)

    def mark_dirty(self, data: FileData) -> None:
        if data not in self._dirty:
            self._dirty.add(data)
            self._any_dirty.set()

    def freed(self, size: int) -> None:
        self.unsent -= size
        self.room.set()
        self.room = trio.Event()

    async def run(self) -> None:
        """Write out what has been gathered for long, commit what has been written for long."""
        while True:
            if not self._dirty:
                self._any_dirty = trio.Event()
                await self._any_dirty.wait()
            await trio.sleep(limits.GATHER_AGE_S / 2)
            now = trio.current_time()
            for data in list(self._dirty):
                if not data.is_dirty:
                    self._dirty.discard(data)
                    if not data.users:
                        self._forget(data)
                elif data.grow_old(now):
                    self.nursery.start_soon(data.commit_aged)

    async def renew_often(self) -> None:
        """See to it that the capabilities of open files do not expire."""
        while True:
            await trio.sleep(limits.RENEW_LOOK_S)
            for data in list(self._open.values()):
                await self.access.renew_due(data.held)

    async def flush_all(self) -> None:
        """Everything written so far to the targets and committed (unmount). Errors are logged."""

        async def flush(data: FileData) -> None:
            try:
                await data.settle()
                await data.commit()
            except FileSystemError as exc:
                log.error("inode %d: written data could not be committed: %s", data.ino, exc)

        async with trio.open_nursery() as nursery:
            for data in list(self._dirty):
                nursery.start_soon(flush, data)

    @property
    def dirty(self) -> frozenset[FileData]:
        return frozenset(data for data in self._dirty if data.is_dirty)

"""One mounted (or opened) file system: inode-level operations, used by the FUSE mount and the Python API alike.

Whoever uses it runs :meth:`Volume.run` in a nursery and calls the operations from other tasks.  They raise
:class:`wire.errors.FileSystemError`; :func:`client.service.errno_of` gives its errno.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
import time
from dataclasses import dataclass
from typing import Any, Final

import trio

from client import limits, listing, quotas
from client.accesses import Accesses
from client.attributes import Attr, attr_untrusted
from client.births import Births
from client.credentials import ROOT
from client.gather import Buffer
from client.inodes import DirectoryHandle, FileHandle, HandleTable
from client.io import FileData
from client.namecache import ABSENT
from client.parallel import WriteFailed
from client.pool import FilePool
from client.readahead import ReadAhead
from client.service import MetadataClient, boottime
from client.small import Contents, SmallFile
from client.targets import Targets
from wire import ids, ops
from wire.capability import WRITE
from wire.codec import unpack_untrusted
from wire.errors import OK, FileSystemError
from wire.messages import TargetStat

log = logging.getLogger(__name__)

CAPABILITY: Final = b"security.capability"
ACL: Final = b"system.posix_acl_access"
DIRECTORY_NUMBERS: Final = 1 << 32
"""Handles of directories are numbered from here on, so that a number tells what it is of."""


@dataclass(frozen=True, slots=True)
class Space:
    """What statfs tells: bytes on all targets that answered, inodes in use."""

    total: int
    free: int
    inodes: int


class Volume:
    """See the module."""

    def __init__(
        self,
        cluster: bytes,
        replicas: tuple[tuple[int, str], ...],
        name: str,
        *,
        prefer: int | None = None,
        soft_after: float | None = None,
        page_cache: bool = False,
        atime: bool = False,
        delegations: bool = False,
    ) -> None:
        """*cluster*: its id; *replicas*: ((id, address), ...); *name*: what logs of servers call us.

        *soft_after*: seconds until an operation that nobody answers ends in ETIMEDOUT (None: hard).
        *page_cache*: a kernel that asks for attributes before it reads is above us.
        *atime*: reading moves it (relatime). What the kernel reads from its own cache is not noticed.
        *delegations*: files are made by ourselves where a directory is delegated to us (client.births).
        """
        who = f"{socket.gethostname()}:{os.getpid()}:{name}"[:255]
        aside = limits.SLOTS_ASIDE if delegations else 0
        self.service = MetadataClient(cluster, replicas, who, prefer=prefer, soft_after=soft_after, aside=aside)
        self.files: HandleTable[FileHandle] = HandleTable()
        self.directories: HandleTable[DirectoryHandle] = HandleTable(DIRECTORY_NUMBERS)
        self._cluster = cluster
        self._who = who
        self._soft_after = soft_after
        self._page_cache = page_cache
        self._atime = atime
        self._accesses = Accesses()
        self._accessed = trio.Event()
        self._rooms = quotas.Rooms(self.service.query, lambda: self.pool.dirty)
        self._births = Births(self.service) if delegations else None
        self._pool: FilePool | None = None
        self._targets: Targets | None = None
        self._flush_until: float | None = None

    # -- life

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve operations until :meth:`close` is done (or cancelled)."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.service.run)

            async def storage_map() -> Any:
                return await self.service.query(ops.StorageMap())

            self._targets = Targets(nursery, self._cluster, self._who, self.service.uuid, storage_map, self._soft_after)
            self._pool = FilePool(nursery, self.service, self._targets, SmallFile)
            if self._births is not None:
                nursery.start_soon(self._births.run)
            nursery.start_soon(self._pool.run)
            nursery.start_soon(self._pool.renew_often)
            nursery.start_soon(self._tell_accesses_often)
            nursery.start_soon(self._targets.watch)
            task_status.started()
            await self.service.ended.wait()
            self._targets.close()
            nursery.cancel_scope.cancel()

    @property
    def pool(self) -> FilePool:
        assert self._pool is not None, "run() has begun"
        return self._pool

    async def flush_all(self) -> None:
        """Write what is pending. For all calls of this together there is UNMOUNT_FLUSH_S: nothing is begun after it."""
        if self._flush_until is None:
            self._flush_until = trio.current_time() + limits.UNMOUNT_FLUSH_S
        with trio.CancelScope(deadline=self._flush_until):
            if self._births is not None:
                await self._births.flush_all()
            await self.pool.flush_all()

    async def close(self) -> None:
        """Write what is pending (see :meth:`flush_all`), close the session, end :meth:`run`."""
        await self.flush_all()
        assert self._flush_until is not None, "flush_all has set it"
        # Of these nobody was promised anything: not worth the time that bytes are.
        with trio.CancelScope(deadline=min(self._flush_until, trio.current_time() + limits.CLOSE_TIMEOUT_S)):
            await self._tell_accesses()
        if self.pool.dirty:
            log.error("%d files have written data that could not be saved: it is lost", len(self.pool.dirty))
        if self._births:
            log.error("%d files were made that could not be ordered: they may be lost", len(self._births))
        await self.service.close()

    # -- attributes and names

    def seen(self, attr: Attr) -> Attr:
        """*attr*, just answered, as a process on this mount must see it: with what is written and not committed."""
        data = self.pool.get(attr.ino)
        if data is None:
            return attr
        data.learn(attr)
        return data.overlay(data.attr)

    def lookup_cached(self, cred: ops.Cred, parent: int, name: bytes) -> Attr | int | None:
        """As :meth:`lookup`, at once: the attributes, ABSENT, or None when the service has to be asked."""
        known = self.service.cache.lookup(cred, parent, name, boottime())
        return self.seen(known) if isinstance(known, Attr) else known

    async def lookup(self, cred: ops.Cred, parent: int, name: bytes) -> Attr:
        known = self.lookup_cached(cred, parent, name)
        if isinstance(known, Attr):
            return known
        if known == ABSENT:
            raise FileSystemError(errno.ENOENT, "Lookup")
        cache = self.service.cache
        moves = self._births.moves if self._births is not None else 0
        status, result, stamp = await self.service.query_leased(ops.Lookup(cred, parent, name))
        if status == errno.ENOENT and stamp is not None:
            cache.learn(parent, name, None, stamp)
        if status != OK:
            raise FileSystemError(status, "Lookup")
        attr = attr_untrusted(result)
        if stamp is not None and name not in (b".", b".."):
            cache.learn(parent, name, attr, stamp)
        if attr.is_directory and self._births is not None and self._births.is_older(moves, attr.ino):
            return await self.getattr(attr.ino)  # asked for its name, it could not wait for what is unborn there
        return self.seen(attr)

    async def kernel_entry_s(self, parent: int, name: bytes, attr: Attr) -> float:
        """For how long the kernel may use the entry *name* of *attr* in *parent* without asking (0.0: not at all)."""
        cache = self.service.cache
        if not attr.is_directory or boottime() >= cache.until:
            return 0.0
        if not cache.knows(parent):
            await self.getattr(parent)
        return cache.kernel_s(parent, name, attr, boottime())

    def getattr_cached(self, ino: int) -> Attr | None:
        """As :meth:`getattr`, at once: None when the service has to be asked."""
        known = self.service.cache.getattr(ino, boottime())
        return None if known is None else self.seen(known)

    async def getattr(self, ino: int) -> Attr:
        known = self.getattr_cached(ino)
        if known is not None:
            return known
        data = self.pool.get(ino)
        if data is not None:
            return await data.refresh()
        cache = self.service.cache
        status, result, stamp = await self.service.query_leased(ops.GetAttr(ino))
        if status != OK:
            raise FileSystemError(status, "GetAttr")
        attr = attr_untrusted(result)
        if stamp is not None:
            cache.learn_attr(attr, stamp)
        return self.seen(attr)

    async def setattr(self, op: ops.SetAttr) -> Attr:
        """Carry out *op*; with SET_SIZE the objects are trimmed when this returns."""
        if op.valid & (ops.SET_ATIME | ops.SET_ATIME_NOW):
            self._accesses.forget(op.ino)
        if not op.valid & ops.SET_SIZE:
            data = self.pool.get(op.ino)
            if data is not None and data.held.born is not None:
                await data.held.born()  # with it comes the capability that is shown
            if data is not None and op.valid & (ops.SET_MTIME | ops.SET_MTIME_NOW):
                # Written before, so committed before: a later commit would move the time that is set now.
                await data.flush()
            # Through a descriptor: whether that is open for writing counts for set-id bits.
            shown = data.held.latest(WRITE) if data is not None and op.handle else b""
            result, _ = await self.service.request_granting(op, shown)
            changed = attr_untrusted(result)
            if op.valid & ops.SET_MODE and changed.mode & 0o111 != 0o111:
                # Whoever may pass through a directory has changed when this returns, for the kernel here, too.
                await self._kernel_forgets(op.ino)
            return self.seen(changed)
        attr = attr_untrusted(await self.service.query(ops.GetAttr(op.ino)))
        if not attr.is_regular:
            return attr_untrusted(await self.service.request(op))  # let the service say what is wrong with it
        data = self.pool.acquire(attr)
        try:
            data.held.truncated_by(op.cred)
            return await data.set_size(op)
        finally:
            with trio.CancelScope(shield=True):  # settles nothing: set_size left nothing pending, or others hold it
                await self.pool.release(data)

    async def _kernel_forgets(self, ino: int) -> None:
        """Wait until the kernel asks before it passes through directory *ino*."""
        await trio.sleep(max(0.0, self.service.cache.kernel_until(ino) - boottime()))

    async def mkdir(self, cred: ops.Cred, parent: int, name: bytes, mode: int) -> Attr:
        return attr_untrusted(await self.service.request(ops.Mkdir(cred, parent, name, mode)))

    async def mknod(self, cred: ops.Cred, parent: int, name: bytes, mode: int, rdev: int) -> Attr:
        return attr_untrusted(await self.service.request(ops.Mknod(cred, parent, name, mode, rdev)))

    async def symlink(self, cred: ops.Cred, parent: int, name: bytes, target: bytes) -> Attr:
        return attr_untrusted(await self.service.request(ops.Symlink(cred, parent, name, target)))

    async def may_link(self, cred: ops.Cred, ino: int) -> bool:
        """Whether protected hard links (proc_sys_fs(5)) let *cred* give *ino* another name."""
        return cred.uid == (await self.getattr(ino)).uid or await self.access(cred, ino, os.R_OK | os.W_OK)

    async def link(self, cred: ops.Cred, ino: int, parent: int, name: bytes) -> Attr:
        return self.seen(attr_untrusted(await self.service.request(ops.Link(cred, ino, parent, name))))

    async def unlink(self, cred: ops.Cred, parent: int, name: bytes) -> None:
        await self.service.request(ops.Unlink(cred, parent, name))

    async def rmdir(self, cred: ops.Cred, parent: int, name: bytes) -> None:
        await self.service.request(ops.Rmdir(cred, parent, name))

    async def rename(
        self, cred: ops.Cred, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int = 0
    ) -> None:
        if flags not in (0, ops.RENAME_NOREPLACE, ops.RENAME_EXCHANGE):
            raise FileSystemError(errno.EINVAL, f"rename flags {flags}")  # RENAME_WHITEOUT: overlay mounts only
        await self.service.request(ops.Rename(cred, parent, name, new_parent, new_name, flags))

    async def readlink(self, ino: int) -> bytes:
        target: bytes = await self.service.query(ops.ReadLink(ino))
        return target

    async def access(self, cred: ops.Cred, ino: int, mask: int) -> bool:
        try:
            await self.service.query(ops.Access(cred, ino, mask))
        except FileSystemError as exc:
            if exc.status == errno.EACCES:
                return False
            raise
        return True

    # -- extended attributes

    def has_no_capability(self, ino: int) -> bool:
        """Whether file *ino* is known to have no CAPABILITY."""
        data = self.pool.get(ino)
        return data is not None and trio.current_time() < data.no_capability_until

    async def getxattr(self, cred: ops.Cred, ino: int, name: bytes) -> bytes:
        if name in quotas.USAGE:
            return await quotas.usage(self.service.query, cred, ino, name)
        data = self.pool.get(ino) if name == CAPABILITY else None
        if data is not None and self.has_no_capability(ino):
            raise FileSystemError(errno.ENODATA)
        try:
            value: bytes = await self.service.query(ops.GetXattr(cred, ino, name))
        except FileSystemError as exc:
            if data is not None and exc.status == errno.ENODATA:
                data.no_capability_until = trio.current_time() + limits.CAPABILITY_CACHE_S
            raise
        return value

    async def setxattr(self, cred: ops.Cred, ino: int, name: bytes, value: bytes, flags: int = 0) -> None:
        await self.service.request(ops.SetXattr(cred, ino, name, value, flags))
        if name == ACL:
            await self._kernel_forgets(ino)
        data = self.pool.get(ino)
        if data is not None:
            data.no_capability_until = 0.0

    async def listxattr(self, cred: ops.Cred, ino: int) -> list[bytes]:
        names = await self.service.query(ops.ListXattr(ino))
        # trusted.* is for the administrator alone (xattr(7)); the query does not say who asks.
        return [name for name in names if cred.uid == 0 or not name.startswith(b"trusted.")]

    async def removexattr(self, cred: ops.Cred, ino: int, name: bytes) -> None:
        await self.service.request(ops.RemoveXattr(cred, ino, name))

    # -- files

    async def create(
        self, cred: ops.Cred, parent: int, name: bytes, mode: int, flags: int, pid: int = 0
    ) -> tuple[FileHandle, Attr]:
        """open(O_CREAT): a new file, or with no O_EXCL the one that is there."""
        births = self._births
        if births is not None:
            await births.make_room(parent)
            if (here := self.create_at_once(cred, parent, name, mode, flags, pid)) is not None:
                return here
        while True:
            generation = self.service.generation
            try:
                made, granted = await self.service.request_granting(ops.Create(cred, parent, name, mode))
            except FileSystemError as exc:
                if exc.status != errno.EEXIST or flags & os.O_EXCL:
                    raise
            else:
                attr = attr_untrusted(made)
                if births is not None:
                    births.created(cred, parent, attr.ctime_ns)
                handle = self._opened(cred, attr, flags, pid, generation, granted, (0, b""))
                # It is new: the kernel need not wait for an answer to know that it has none before it writes.
                handle.data.no_capability_until = trio.current_time() + limits.CAPABILITY_CACHE_S
                return handle, attr
            try:
                there = await self.lookup(cred, parent, name)
                if stat.S_ISLNK(there.mode):
                    # A link came between the kernel's lookup and its create: ESTALE makes it walk the path again.
                    raise FileSystemError(errno.ESTALE)
                handle = await self.open(cred, there.ino, flags, pid)
            except FileSystemError as exc:
                if exc.status != errno.ENOENT:
                    raise
                continue  # removed between our create and our look: create again
            return handle, handle.data.overlay(handle.data.attr)

    def create_at_once(
        self, cred: ops.Cred, parent: int, name: bytes, mode: int, flags: int, pid: int = 0
    ) -> tuple[FileHandle, Attr] | None:
        """As :meth:`create`, at once, of a file that can be made here (client.births); else None."""
        births = self._births
        birth = births.make(cred, parent, name, mode, flags) if births is not None else None
        if birth is None:
            return None
        assert births is not None
        handle = self._opened(cred, birth.attr, flags, pid, self.service.generation, b"", (0, b""))
        data = handle.data
        assert isinstance(data, SmallFile), "the pool was told to make these"
        data.no_capability_until = trio.current_time() + limits.CAPABILITY_CACHE_S
        births.add(birth, data)
        return handle, birth.attr

    async def open(self, cred: ops.Cred, ino: int, flags: int, pid: int = 0) -> FileHandle:
        generation = self.service.generation
        found, granted = await self.service.query_granting(ops.Open(cred, ino, flags))
        told, contents = found
        attr = attr_untrusted(told)
        handle = self._opened(cred, attr, flags, pid, generation, granted, contents)
        if flags & os.O_TRUNC and attr.is_regular:  # with O_RDONLY too: POSIX leaves that open, Linux truncates
            try:
                op = ops.SetAttr(cred, ino, ops.SET_SIZE, 0, 0, 0, 0, 0, 0, True)
                await handle.data.set_size(op)
            except BaseException:
                with trio.CancelScope(shield=True):  # nothing of this handle is pending: this does not wait
                    await self.close_file(handle)
                raise
        return handle

    def _opened(
        self,
        cred: ops.Cred,
        attr: Attr,
        flags: int,
        pid: int,
        generation: int,
        granted: bytes,
        contents: Contents | None,
    ) -> FileHandle:
        """No checkpoint between the answer that counted the handle and this: cancelled, it would be lost."""
        first = self.pool.get(attr.ino) is None
        data = self.pool.acquire(attr)
        assert isinstance(data, SmallFile), "the pool was told to make these"
        data.opened(contents, first)
        data.held.take(granted, cred, trio.current_time())
        ahead = ReadAhead(self.pool.nursery)
        handle = FileHandle(self.files.next_number(), data, flags, pid, generation, data.errors, ahead, cred.uid == 0)
        self.files.add(handle.number, handle)
        return handle

    def _check(self, handle: FileHandle) -> None:
        if handle.generation != self.service.generation:
            raise FileSystemError(errno.ESTALE, "the session this file was opened in has expired")

    def read_known(self, handle: FileHandle, offset: int, size: int) -> Buffer | None:
        """As :meth:`read`, at once: the bytes of a small file, or None when they have to be asked for."""
        self._check(handle)
        data = handle.data
        if handle.direct or not isinstance(data, SmallFile) or (offset + size > data.size and not self._page_cache):
            return None
        found = data.read_known(offset, size)
        if found is not None and self._atime and not handle.flags & os.O_NOATIME:
            self._note_access(data)
        return found

    async def read(self, handle: FileHandle, offset: int, size: int) -> Buffer:
        self._check(handle)
        data = handle.data
        if offset + size > data.size and (handle.direct or not self._page_cache):
            await data.refresh()  # another mount may have written more; the kernel's cache asks by itself
        if self._atime and not handle.flags & os.O_NOATIME:
            self._note_access(data)
        stop = min(offset + size, data.size)
        if handle.direct or data.is_small or stop <= offset or stop - offset >= limits.READ_AHEAD_MAX:
            return await data.read(offset, size, fresh=handle.direct)
        await data.settle_range(offset, stop)
        return await handle.ahead.read(data, offset, stop)

    def _note_access(self, data: FileData) -> None:
        self._accesses.note(data.overlay(data.attr), time.time_ns())
        if len(self._accesses):
            self._accessed.set()

    async def _tell_accesses_often(self) -> None:
        while True:
            await self._accessed.wait()
            await trio.sleep(limits.ACCESSES_AGE_S)
            self._accessed = trio.Event()
            await self._tell_accesses()

    async def _tell_accesses(self) -> None:
        while (told := self._accesses.take()) is not None:
            try:
                await self.service.request(told)
            except FileSystemError as exc:
                log.info("atime of %d files is not kept: %s", len(told.files), exc)

    def write_at_once(self, handle: FileHandle, offset: int, buffer: Buffer) -> bool:
        """As :meth:`write` of all of *buffer*, if nothing has to be waited for; else False, and nothing is done."""
        self._check(handle)
        data = handle.data
        if handle.synchronous or handle.direct or not isinstance(data, SmallFile):
            return False
        if data.attr.quota and offset + len(buffer) > data.size:
            return False  # whether there is room is asked for
        return data.write_at_once(offset, buffer, handle.append, handle.privileged)

    async def write(self, handle: FileHandle, offset: int, buffer: Buffer) -> int:
        self._check(handle)
        data = handle.data
        if data.attr.quota:
            growth = len(buffer) if handle.append else offset + len(buffer) - data.size
            await self._rooms.claim(data.attr.quota, growth)
        taken = await data.write(offset, buffer, append=handle.append, privileged=handle.privileged)
        if handle.synchronous:
            await self.fsync(handle)
        elif handle.direct:
            await data.settle()
            if data.is_small:
                await data.commit()
            handle.errors = self._report(handle)
        return taken

    def _report(self, handle: FileHandle) -> int:
        try:
            return handle.data.report(handle.errors)
        except WriteFailed as exc:
            handle.errors = exc.errors  # told once
            raise

    async def flush(self, handle: FileHandle) -> None:
        """close(2) of one descriptor of this handle: everything written is where every mount sees it."""
        self._check(handle)
        try:
            await handle.data.flush()
        except FileSystemError as exc:
            handle.errors = handle.data.errors
            raise FileSystemError(exc.status, exc.what) from exc
        handle.errors = self._report(handle)

    def flush_nothing(self, handle: FileHandle) -> bool:
        """As :meth:`flush`, at once, if there is nothing to wait for; else False."""
        if not self._is_told(handle.data):
            return False
        self._check(handle)
        handle.errors = self._report(handle)
        return True

    def _is_told(self, data: FileData) -> bool:
        """Whether nobody else will ever see the file without what is written here so far."""
        if self._births is not None and isinstance(data, SmallFile) and data.birth is not None:
            return self._births.hurry(data.birth)
        return not data.is_dirty

    async def fsync(self, handle: FileHandle) -> None:
        self._check(handle)
        try:
            await handle.data.fsync()
        except FileSystemError:
            handle.errors = handle.data.errors
            raise
        handle.errors = self._report(handle)
        if handle.data.ino in self._accesses:
            await self._tell_accesses()

    async def close_file(self, handle: FileHandle) -> None:
        """The last descriptor is closed. Errors were :meth:`flush`'s to tell; later ones are logged."""
        if self.files.remove(handle.number) is None:
            return
        try:
            await self.pool.release(handle.data)
        finally:
            self._closed(handle)

    def close_nothing(self, handle: FileHandle) -> bool:
        """As :meth:`close_file`, at once, if there is nothing to wait for; else False."""
        if not self._is_told(handle.data):
            return False
        if self.files.remove(handle.number) is not None:
            self.pool.let_go(handle.data)
            self._closed(handle)
        return True

    def _closed(self, handle: FileHandle) -> None:
        data = handle.data
        if isinstance(data, SmallFile) and data.birth is not None:
            data.birth.closed = True  # the service counts it with the birth
        elif handle.generation == self.service.generation:
            self.service.handle_closed(data.ino)

    # -- directories

    async def fsync_directory(self, handle: DirectoryHandle) -> None:
        """What was made in it is durable. Everything else was before it was answered."""
        if self._births is not None:
            await self._births.settle(handle.ino)

    async def opendir(self, cred: ops.Cred, ino: int, pid: int = 0) -> DirectoryHandle:
        if cred.uid != 0:
            await self.service.query(ops.Access(cred, ino, os.R_OK))
        handle = DirectoryHandle(self.directories.next_number(), ino, cred, pid, self.getattr_cached(ino))
        self.directories.add(handle.number, handle)
        return handle

    def removed_directory(self, ino: int) -> Attr | None:
        """Of a directory that the service does not know any more: what whoever has it open sees. None: nobody has."""
        return listing.removed(ino, self.directories.values())

    async def entries(self, handle: DirectoryHandle, cookie: int) -> None:
        """See to it that ``handle.buffer`` goes on after *cookie* and is empty only at the end."""
        await listing.fill(self.service.query_granting, handle, cookie, self._births)

    def close_directory(self, number: int) -> None:
        self.directories.remove(number)

    # -- the whole

    async def statfs(self) -> Space:
        inodes, *_ = await self.service.query(ops.StatFs())
        assert self._targets is not None
        total, free = await self._targets.space(TargetStat, unpack_untrusted)
        return Space(total, free, inodes)

    async def resolve(self, path: str | bytes, cred: ops.Cred = ROOT, *, start: int = ids.ROOT_INO) -> Attr:
        """The inode at *path* below *start*; symbolic links are not followed. Raises :class:`FileSystemError`."""
        names = [name for name in os.fsencode(path).split(b"/") if name not in (b"", b".")]
        attr = await self.getattr(start)
        for name in names:
            attr = await self.lookup(cred, attr.ino, name)
        return attr

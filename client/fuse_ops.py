"""The FUSE mount's operations: translation only. Arguments in, one call of :class:`client.volume.Volume`, errno out.

pyfuse3 gives ``ctx`` (who asks) with most operations, but not with those on handles; there the process that
opened the handle stands for the caller where one is needed (see :meth:`LockstepOperations.watch`).
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import stat
import time
import weakref
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

import pyfuse3
import trio

from client import limits
from client.attributes import Attr
from client.cache import CachePolicy
from client.credentials import Credentials
from client.kernel_turn import TURN
from client.namecache import ABSENT
from client.service import errno_of
from client.volume import CAPABILITY, Volume
from wire import ids, ops
from wire.errors import FileSystemError

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

BLOCK: Final = 128 << 10
"""st_blksize: what cp, cat and stdio take as a good size for their buffers."""
NOW_NS: Final = 20_000
SOON_NS: Final = 50_000_000
PROTECTED_HARDLINKS: Final = Path("/proc/sys/fs/protected_hardlinks")
_SIGKILL_BIT: Final = 1 << 8
_PF_EXITING: Final = 0x4
_DOTS: Final = 2
"""Kernel offsets of a listing: 0 start, 1 after ".", 2 after "..", then cookie + _DOTS."""
_HAS_TO_WAIT: Final = object()
"""Instead of an answer: it cannot be given at once."""


class _Running:
    """One operation in work."""

    __slots__ = ("args", "scope", "since")

    def __init__(self, scope: trio.CancelScope, args: tuple[Any, ...]) -> None:
        self.scope = scope
        self.args = args
        self.since = time.monotonic()


def _operation(
    method: Callable[Concatenate[LockstepOperations, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[LockstepOperations, P], Coroutine[Any, Any, T]]:
    """What every operation does around its translation: errors become errnos, and a killed caller ends it."""

    @functools.wraps(method)
    async def run(self: LockstepOperations, /, *args: P.args, **kwargs: P.kwargs) -> T:
        TURN.pass_on()
        with trio.CancelScope() as scope:
            running = _Running(scope, args)
            self.running.add(running)
            try:
                return await method(self, *args, **kwargs)
            except Exception as exc:  # noqa: BLE001 (_as_errno logs it)
                raise _as_errno(method.__name__, args, exc) from None
            finally:
                self.running.discard(running)
        raise pyfuse3.FUSEError(errno.EINTR)  # its caller was killed, see watch()

    return run


def _at_once(
    known: Callable[Concatenate[LockstepOperations, P], Any],
) -> Callable[
    [Callable[Concatenate[LockstepOperations, P], Coroutine[Any, Any, T]]],
    Callable[Concatenate[LockstepOperations, P], Coroutine[Any, Any, T]],
]:
    """For an :func:`_operation` of which *known* often has the answer: what does not wait needs nothing around it that
    could end its waiting, and that is most of what such an operation costs."""

    def around(
        operation: Callable[Concatenate[LockstepOperations, P], Coroutine[Any, Any, T]],
    ) -> Callable[Concatenate[LockstepOperations, P], Coroutine[Any, Any, T]]:
        @functools.wraps(operation)
        async def run(self: LockstepOperations, /, *args: P.args, **kwargs: P.kwargs) -> T:
            try:
                answer = known(self, *args, **kwargs)
            except Exception as exc:  # noqa: BLE001 (_as_errno logs it)
                raise _as_errno(operation.__name__, args, exc) from None
            if answer is _HAS_TO_WAIT:
                return await operation(self, *args, **kwargs)
            return answer  # type: ignore[no-any-return]

        return run

    return around


def _as_errno(operation: str, args: tuple[Any, ...], exc: Exception) -> pyfuse3.FUSEError:
    if isinstance(exc, pyfuse3.FUSEError):
        return exc
    if isinstance(exc, FileSystemError):
        return pyfuse3.FUSEError(errno_of(exc))
    # A bug in one operation must not take the mount from all others.
    log.error("%s%r failed: the caller gets EIO", operation, args[:2], exc_info=exc)
    return pyfuse3.FUSEError(errno.EIO)


class LockstepOperations(pyfuse3.Operations):
    """pyfuse3's interface onto a Volume."""

    supports_dot_lookup = False  # only for NFS export, which needs handles that survive us
    enable_writeback_cache = False  # the kernel would decide on sizes and times; the service does
    enable_acl = False  # the service checks; the kernel would check again, on what it has cached

    def __init__(self, volume: Volume, policy: CachePolicy, root: int = ids.ROOT_INO) -> None:
        """*root*: the inode that is mounted (the file system's root, or a directory below it)."""
        super().__init__()
        self.running: set[_Running] = set()
        self.initialised = trio.Event()
        self._volume = volume
        self._policy = policy
        self._root = root
        self._credentials = Credentials()
        self._protected_hardlinks = _protected_hardlinks()
        self._xattr_asked: weakref.WeakKeyDictionary[trio.lowlevel.Task, tuple[Any, bool]] = weakref.WeakKeyDictionary()
        """By worker: context and outcome of its last getxattr, see setxattr."""

    # -- translation

    def _ino(self, inode: int) -> int:
        return self._root if inode == pyfuse3.ROOT_INODE else inode

    def _entry(self, attr: Attr) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = attr.ino
        entry.st_mode = attr.mode
        entry.st_nlink = attr.nlink
        entry.st_uid = attr.uid
        entry.st_gid = attr.gid
        entry.st_rdev = attr.rdev
        entry.st_size = attr.size
        entry.st_blocks = (attr.size + 511) >> 9
        entry.st_blksize = BLOCK
        entry.st_atime_ns = attr.atime_ns
        entry.st_mtime_ns = attr.mtime_ns
        entry.st_ctime_ns = attr.ctime_ns
        entry.entry_timeout = self._policy.entry_timeout(attr)
        entry.attr_timeout = self._policy.attr_timeout(attr)
        return entry

    def _given(self, attr: Attr) -> pyfuse3.EntryAttributes:
        """An entry that the kernel counts as a lookup. We do not: inode numbers are the service's and need no table
        here, and a count for each would be memory that grows with the largest directory listed."""
        return self._entry(attr)

    def _info(self, number: int, flags: int) -> pyfuse3.FileInfo:
        return pyfuse3.FileInfo(
            fh=number, direct_io=self._policy.bypass_pages(flags), keep_cache=self._policy.keep_pages(flags)
        )

    # -- life

    def init(self) -> None:
        self.initialised.set()

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """Nothing is kept per inode, see :meth:`_given`. Not an _operation: it must not raise whatever happens."""

    def stacktrace(self) -> None:
        log.warning("stack traces are asked for by an attribute; %d operations are in work", len(self.running))

    # -- names and attributes

    def _lookup_known(self, parent_inode: int, name: bytes, ctx: Any) -> Any:
        known = self._volume.lookup_cached(self._credentials.of(ctx), self._ino(parent_inode), name)
        if known is None:
            return _HAS_TO_WAIT
        if known == ABSENT:
            raise pyfuse3.FUSEError(errno.ENOENT)
        assert isinstance(known, Attr)
        # Of a directory the kernel may keep the name for a moment; that takes a look at its parent.
        return _HAS_TO_WAIT if known.is_directory else self._given(known)

    @_at_once(_lookup_known)
    @_operation
    async def lookup(self, parent_inode: int, name: bytes, ctx: Any) -> pyfuse3.EntryAttributes:
        cred = self._credentials.of(ctx)
        parent = self._ino(parent_inode)
        attr = await self._volume.lookup(cred, parent, name)
        entry = self._given(attr)
        if attr.is_directory and not entry.entry_timeout:
            entry.entry_timeout = await self._volume.kernel_entry_s(parent, name, attr)
        return entry

    def _getattr_known(self, inode: int, ctx: Any) -> Any:
        attr = self._volume.getattr_cached(self._ino(inode))
        return _HAS_TO_WAIT if attr is None else self._entry(attr)

    @_at_once(_getattr_known)
    @_operation
    async def getattr(self, inode: int, ctx: Any) -> pyfuse3.EntryAttributes:
        ino = self._ino(inode)
        try:
            return self._entry(await self._volume.getattr(ino))
        except FileSystemError as exc:
            removed = self._volume.removed_directory(ino) if exc.status == errno.ESTALE else None
            if removed is None:
                raise
            return self._entry(removed)

    @_operation
    async def setattr(self, inode: int, attr: Any, fields: Any, fh: int | None, ctx: Any) -> pyfuse3.EntryAttributes:
        valid, soon = _valid_bits(attr, fields)
        cred = self._credentials.of(ctx)
        ino = self._ino(inode)

        def op(bits: int) -> ops.SetAttr:
            size = attr.st_size if bits & ops.SET_SIZE else 0
            uid = attr.st_uid if bits & ops.SET_UID else 0
            gid = attr.st_gid if bits & ops.SET_GID else 0
            mode = attr.st_mode & 0o7777 if bits & ops.SET_MODE else 0
            atime = attr.st_atime_ns if bits & ops.SET_ATIME else 0
            mtime = attr.st_mtime_ns if bits & ops.SET_MTIME else 0
            return ops.SetAttr(cred, ino, bits, mode, uid, gid, size, atime, mtime, fh is not None)

        try:
            return self._entry(await self._volume.setattr(op(valid)))
        except FileSystemError as exc:
            if exc.status != errno.EPERM or not soon:
                raise
        return self._entry(await self._volume.setattr(op(_as_now(valid))))

    @_operation
    async def readlink(self, inode: int, ctx: Any) -> bytes:
        return await self._volume.readlink(self._ino(inode))

    @_operation
    async def access(self, inode: int, mode: int, ctx: Any) -> bool:
        return await self._volume.access(self._credentials.of(ctx), self._ino(inode), mode & 7)

    @_operation
    async def mknod(self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: Any) -> pyfuse3.EntryAttributes:
        cred = self._credentials.of(ctx)
        if not stat.S_IFMT(mode):
            mode |= stat.S_IFREG  # mknod(2): no type means a regular file
        return self._given(await self._volume.mknod(cred, self._ino(parent_inode), name, mode, rdev))

    @_operation
    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: Any) -> pyfuse3.EntryAttributes:
        cred = self._credentials.of(ctx)
        return self._given(await self._volume.mkdir(cred, self._ino(parent_inode), name, mode & 0o7777))

    @_operation
    async def unlink(self, parent_inode: int, name: bytes, ctx: Any) -> None:
        await self._volume.unlink(self._credentials.of(ctx), self._ino(parent_inode), name)

    @_operation
    async def rmdir(self, parent_inode: int, name: bytes, ctx: Any) -> None:
        await self._volume.rmdir(self._credentials.of(ctx), self._ino(parent_inode), name)

    @_operation
    async def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: Any) -> pyfuse3.EntryAttributes:
        cred = self._credentials.of(ctx)
        return self._given(await self._volume.symlink(cred, self._ino(parent_inode), name, target))

    @_operation
    async def rename(
        self, parent_inode_old: int, name_old: bytes, parent_inode_new: int, name_new: bytes, flags: int, ctx: Any
    ) -> None:
        old, new = self._ino(parent_inode_old), self._ino(parent_inode_new)
        await self._volume.rename(self._credentials.of(ctx), old, name_old, new, name_new, flags)

    @_operation
    async def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: Any) -> pyfuse3.EntryAttributes:
        cred = self._credentials.of(ctx)
        if cred.uid and self._protected_hardlinks and not await self._volume.may_link(cred, self._ino(inode)):
            raise pyfuse3.FUSEError(errno.EPERM)
        return self._given(await self._volume.link(cred, self._ino(inode), self._ino(new_parent_inode), new_name))

    # -- files

    @_operation
    async def open(self, inode: int, flags: int, ctx: Any) -> pyfuse3.FileInfo:
        handle = await self._volume.open(self._credentials.of(ctx), self._ino(inode), flags, ctx.pid)
        return self._info(handle.number, flags)

    def _create_at_once(self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: Any) -> Any:
        cred, parent = self._credentials.of(ctx), self._ino(parent_inode)
        made = self._volume.create_at_once(cred, parent, name, mode & 0o7777, flags, ctx.pid)
        if made is None:
            return _HAS_TO_WAIT
        handle, attr = made
        return self._info(handle.number, flags), self._given(attr)

    @_at_once(_create_at_once)
    @_operation
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: Any
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        cred = self._credentials.of(ctx)
        parent = self._ino(parent_inode)
        handle, attr = await self._volume.create(cred, parent, name, mode & 0o7777, flags, ctx.pid)
        return self._info(handle.number, flags), self._given(attr)

    def _read_known(self, fh: int, off: int, size: int) -> Any:
        found = self._volume.read_known(self._volume.files.get(fh), off, size)
        return _HAS_TO_WAIT if found is None else found

    @_at_once(_read_known)
    @_operation
    async def read(self, fh: int, off: int, size: int) -> Any:
        return await self._volume.read(self._volume.files.get(fh), off, size)

    def _write_at_once(self, fh: int, off: int, buf: bytes) -> Any:
        return len(buf) if self._volume.write_at_once(self._volume.files.get(fh), off, buf) else _HAS_TO_WAIT

    @_at_once(_write_at_once)
    @_operation
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        return await self._volume.write(self._volume.files.get(fh), off, buf)

    def _flush_nothing(self, fh: int) -> Any:
        return None if self._volume.flush_nothing(self._volume.files.get(fh)) else _HAS_TO_WAIT

    @_at_once(_flush_nothing)
    @_operation
    async def flush(self, fh: int) -> None:
        await self._volume.flush(self._volume.files.get(fh))

    @_operation
    async def fsync(self, fh: int, datasync: bool) -> None:
        # fdatasync needs the size, too, and the size is committed with the times: no difference.
        await self._volume.fsync(self._volume.files.get(fh))

    def _release_nothing(self, fh: int) -> Any:
        return None if self._volume.close_nothing(self._volume.files.get(fh)) else _HAS_TO_WAIT

    @_at_once(_release_nothing)
    @_operation
    async def release(self, fh: int) -> None:
        await self._volume.close_file(self._volume.files.get(fh))

    # -- directories

    @_operation
    async def opendir(self, inode: int, ctx: Any) -> int:
        handle = await self._volume.opendir(self._credentials.of(ctx), self._ino(inode), ctx.pid)
        return handle.number

    @_operation
    async def readdir(self, fh: int, start_id: int, token: Any) -> None:
        volume = self._volume
        handle = volume.directories.get(fh)
        at = start_id
        while at < _DOTS:
            # The kernel takes the number and the type from these two and counts no lookup for them.
            name = (b".", b"..")[at]
            attr = await self._dot(handle.ino, name)
            at += 1
            if not pyfuse3.readdir_reply(token, name, self._entry(attr), at):
                return
        while True:
            await volume.entries(handle, at - _DOTS)
            if not handle.buffer:
                return
            while handle.buffer:
                name, cookie, attr = handle.buffer[0]
                if not pyfuse3.readdir_reply(token, name, self._entry(volume.seen(attr)), cookie + _DOTS):
                    return
                handle.buffer.popleft()
                handle.position = cookie
                at = cookie + _DOTS

    async def _dot(self, ino: int, name: bytes) -> Attr:
        volume = self._volume
        try:
            if name == b".." and ino != self._root:
                return await volume.lookup(ops.Cred(0, 0, ()), ino, name)
            return await volume.getattr(ino)
        except FileSystemError as exc:
            if exc.status == errno.EACCES:  # root is not root here (exports): the number of ".." stays unknown
                return await volume.getattr(ino)
            if exc.status not in (errno.ESTALE, errno.ENOENT):
                raise
            removed = volume.removed_directory(ino)
            assert removed is not None, "it is open, or nobody would list it"
            return removed

    @_operation
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self._volume.fsync_directory(self._volume.directories.get(fh))

    @_operation
    async def releasedir(self, fh: int) -> None:
        self._volume.close_directory(fh)

    # -- the whole

    @_operation
    async def statfs(self, ctx: Any) -> pyfuse3.StatvfsData:
        space = await self._volume.statfs()
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = 4096
        data.f_blocks = space.total // 4096
        data.f_bfree = data.f_bavail = space.free // 4096
        # Inodes are made as long as there is room for them: what is free is a large number, not a known one.
        data.f_ffree = data.f_favail = 1 << 32
        data.f_files = space.inodes + data.f_ffree
        data.f_namemax = ids.NAME_MAX
        return data

    # -- extended attributes

    @_operation
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: Any) -> None:
        # pyfuse3 keeps XATTR_CREATE and XATTR_REPLACE to itself: with either it asks getxattr first, in the same
        # context. What it was told then must still be so at the service, or of two that create both would succeed.
        asked, there = self._xattr_asked.pop(trio.lowlevel.current_task(), (None, False))
        flags = 0 if asked is not ctx else ops.XATTR_REPLACE if there else ops.XATTR_CREATE
        await self._volume.setxattr(self._credentials.of(ctx), self._ino(inode), name, value, flags)

    def _getxattr_known(self, inode: int, name: bytes, ctx: Any) -> Any:
        if name == CAPABILITY and self._volume.has_no_capability(self._ino(inode)):
            raise pyfuse3.FUSEError(errno.ENODATA)
        return _HAS_TO_WAIT

    @_at_once(_getxattr_known)
    @_operation
    async def getxattr(self, inode: int, name: bytes, ctx: Any) -> bytes:
        if name == CAPABILITY:  # asked before every write
            return await self._volume.getxattr(self._credentials.of(ctx), self._ino(inode), name)
        asked = self._xattr_asked
        asked[trio.lowlevel.current_task()] = (ctx, False)
        value = await self._volume.getxattr(self._credentials.of(ctx), self._ino(inode), name)
        asked[trio.lowlevel.current_task()] = (ctx, True)
        return value

    @_operation
    async def listxattr(self, inode: int, ctx: Any) -> list[bytes]:
        return await self._volume.listxattr(self._credentials.of(ctx), self._ino(inode))

    @_operation
    async def removexattr(self, inode: int, name: bytes, ctx: Any) -> None:
        await self._volume.removexattr(self._credentials.of(ctx), self._ino(inode), name)

    # -- callers that were killed

    async def watch(self) -> None:
        """End operations whose caller was killed while it waited (servers gone, hard mode).

        The kernel keeps a killed process until its request is answered, and tells by FUSE_INTERRUPT; pyfuse3 does
        not pass that on.  So whoever waits for long is looked up in /proc.
        """
        while True:
            await trio.sleep(limits.KILL_CHECK_S)
            if not self.running:
                continue
            before = time.monotonic() - limits.KILL_CHECK_S
            for running in [r for r in self.running if r.since < before]:
                pid = self._caller(running.args)
                if pid and _was_killed(pid):
                    log.info("process %d was killed while it waited", pid)
                    running.scope.cancel()

    def _caller(self, args: tuple[Any, ...]) -> int:
        pid = getattr(args[-1], "pid", None) if args else None
        if pid is not None:
            return int(pid)
        if not args:
            return 0
        handle = self._volume.files.find(args[0]) or self._volume.directories.find(args[0])
        return handle.pid if handle is not None else 0


def _protected_hardlinks() -> bool:
    """proc_sys_fs(5): whether this host lets users link only what is theirs or what they may read and write.

    The kernel asks for that permission where a FUSE file system does not hear of it, and takes it for granted.
    """
    try:
        return PROTECTED_HARDLINKS.read_text(encoding="ascii").strip() != "0"
    except FileNotFoundError:
        return False


def _valid_bits(attr: Any, fields: Any) -> tuple[int, bool]:
    """(SET_ bits, whether a time is so recent that "now" may have been meant).

    pyfuse3 fills in the clock where the kernel said "now" and does not tell; a time that is but microseconds old
    was filled in by it just before. To set "now" needs write permission only, another time ownership (utimensat).
    """
    now = time.time_ns()
    bits = 0
    if fields.update_mode:
        bits |= ops.SET_MODE
    if fields.update_uid:
        bits |= ops.SET_UID
    if fields.update_gid:
        bits |= ops.SET_GID
    if fields.update_size:
        bits |= ops.SET_SIZE
    ages = []
    if fields.update_atime:
        bits |= ops.SET_ATIME
        ages.append(now - attr.st_atime_ns)
    if fields.update_mtime:
        bits |= ops.SET_MTIME
        ages.append(now - attr.st_mtime_ns)
    if not ages:
        return bits, False
    if len(set(ages)) == 1 and 0 <= ages[0] < NOW_NS:
        return _as_now(bits), False
    return bits, all(0 <= age < SOON_NS for age in ages)


def _as_now(bits: int) -> int:
    if bits & ops.SET_ATIME:
        bits = bits & ~ops.SET_ATIME | ops.SET_ATIME_NOW
    if bits & ops.SET_MTIME:
        bits = bits & ~ops.SET_MTIME | ops.SET_MTIME_NOW
    return bits


def _was_killed(pid: int) -> bool:
    """Whether thread *pid* has a SIGKILL pending (any fatal signal becomes one), or is on its way out."""
    try:
        with open(f"/proc/{pid}/status", "rb") as status:
            for line in status:
                if line.startswith((b"SigPnd:", b"ShdPnd:")) and int(line.split()[1], 16) & _SIGKILL_BIT:
                    return True
        with open(f"/proc/{pid}/stat", "rb") as fields:
            # After the name, which is in parentheses and may hold anything: state is field 3, flags field 9 (proc(5)).
            return bool(int(fields.read().rpartition(b")")[2].split()[6]) & _PF_EXITING)
    except (FileNotFoundError, ProcessLookupError):
        return False  # whoever opened the handle is gone; whoever waits now is somebody else
    except OSError as exc:
        log.debug("process %d: %s", pid, os.strerror(exc.errno or 0))
        return False

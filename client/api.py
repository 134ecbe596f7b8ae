"""A small async Python interface to a file system: what benchmarks, tests and the admin tool use.

    async with open_file_system(config) as fs:
        await fs.mkdir("/results")
        async with await fs.open("/results/a", os.O_CREAT | os.O_WRONLY) as file:
            await file.write(b"42\\n")

The same code as the mount's below, without the kernel. Paths are absolute, ``str`` or ``bytes``; symbolic links in
them are followed but for the last name. Errors are ``OSError`` with the errno an application of the mount would see.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import AsyncIterator, Awaitable
from types import TracebackType
from typing import Final, TypeVar

import trio

from client import limits
from client.attributes import Attr
from client.credentials import ROOT
from client.inodes import FileHandle
from client.mount import ClusterConfig, volume_of
from client.options import MountOptions
from client.service import errno_of
from client.volume import Space, Volume
from wire import ids, ops
from wire.errors import FileSystemError

Path = str | bytes
T = TypeVar("T")

SYMLINKS_MAX: Final = 40
"""Links followed in one path, as Linux does (ELOOP)."""


@contextlib.asynccontextmanager
async def open_file_system(
    config: ClusterConfig,
    *,
    name: str = "api",
    options: MountOptions | None = None,
    prefer_replica: int | None = None,
    cred: ops.Cred = ROOT,
) -> AsyncIterator[FileSystem]:
    """A session with the cluster of *config*, closed at the end with everything written flushed."""
    volume = volume_of(config, name, options or MountOptions(), prefer_replica)
    async with trio.open_nursery() as nursery:
        await nursery.start(volume.run)
        try:
            yield FileSystem(volume, cred)
        finally:
            with trio.CancelScope(shield=True):  # bounded: UNMOUNT_FLUSH_S and CLOSE_TIMEOUT_S
                await volume.close()
        nursery.cancel_scope.cancel()


class File:
    """An open file."""

    def __init__(self, volume: Volume, handle: FileHandle, what: Path) -> None:
        self._volume = volume
        self._handle = handle
        self._what = what

    @property
    def ino(self) -> int:
        return self._handle.data.ino

    async def read(self, size: int, offset: int) -> bytes | bytearray | memoryview:
        """At most *size* bytes at *offset*; fewer at the end of the file."""
        return await _os(self._volume.read(self._handle, offset, size), self._what)

    async def write(self, data: bytes | bytearray | memoryview, offset: int = 0) -> int:
        """All of *data* at *offset* (at the end with O_APPEND). *data* must not change until it is flushed."""
        return await _os(self._volume.write(self._handle, offset, data), self._what)

    async def truncate(self, size: int) -> Attr:
        op = ops.SetAttr(ROOT, self.ino, ops.SET_SIZE, 0, 0, 0, size, 0, 0, True)
        return await _os(self._volume.setattr(op), self._what)

    async def stat(self) -> Attr:
        return await _os(self._volume.getattr(self.ino), self._what)

    async def flush(self) -> None:
        """What close does first: errors of earlier writes are raised here."""
        await _os(self._volume.flush(self._handle), self._what)

    async def fsync(self) -> None:
        await _os(self._volume.fsync(self._handle), self._what)

    async def close(self) -> None:
        """Flush and close; the handle is closed even when flushing fails."""
        try:
            await self.flush()
        finally:
            with trio.CancelScope(shield=True):  # bounded by the mount's own soft or hard rule for what is unwritten
                await self._volume.close_file(self._handle)

    async def __aenter__(self) -> File:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class FileSystem:
    """Operations by path, as the process *cred*."""

    def __init__(self, volume: Volume, cred: ops.Cred = ROOT) -> None:
        self.volume = volume
        self.cred = cred

    # -- paths

    async def _walk(self, path: Path, *, follow: bool) -> Attr:
        """The inode at *path*; a symbolic link at its end is followed if *follow*."""
        attr = await self.volume.getattr(ids.ROOT_INO)
        pending = _names(path)[::-1]
        above = [attr]
        links = 0
        while pending:
            name = pending.pop()
            if name == b"..":
                above = above[:-1] or above
                attr = above[-1]
                continue
            attr = await self.volume.lookup(self.cred, above[-1].ino, name)
            if stat.S_ISLNK(attr.mode) and (pending or follow):
                links += 1
                if links > SYMLINKS_MAX:
                    raise FileSystemError(errno.ELOOP)
                target = await self.volume.readlink(attr.ino)
                if target.startswith(b"/"):
                    del above[1:]
                pending += _names(target)[::-1]
                attr = above[-1]
                continue
            if stat.S_ISDIR(attr.mode):
                above.append(attr)
            elif pending:
                raise FileSystemError(errno.ENOTDIR)
        return attr

    async def _parent(self, path: Path) -> tuple[int, bytes]:
        """(directory, last name) of *path*."""
        names = _names(path)
        if not names or names[-1] == b"..":
            raise FileSystemError(errno.EINVAL, "no name")
        above = b"/" + b"/".join(names[:-1])
        attr = await self._walk(above, follow=True)
        return attr.ino, names[-1]

    # -- operations

    async def stat(self, path: Path, *, follow: bool = True) -> Attr:
        return await _os(self._walk(path, follow=follow), path)

    async def exists(self, path: Path) -> bool:
        try:
            await self.stat(path, follow=False)
        except FileNotFoundError:
            return False
        return True

    async def mkdir(self, path: Path, mode: int = 0o777) -> Attr:
        async def run() -> Attr:
            return await self.volume.mkdir(self.cred, *await self._parent(path), mode)

        return await _os(run(), path)

    async def open(self, path: Path, flags: int = os.O_RDONLY, mode: int = 0o666) -> File:
        """As open(2), with O_CREAT, O_EXCL, O_TRUNC, O_APPEND."""

        async def run() -> FileHandle:
            if flags & os.O_CREAT:
                parent, name = await self._parent(path)
                try:
                    handle, _ = await self.volume.create(self.cred, parent, name, mode, flags)
                    return handle
                except FileSystemError as exc:
                    if exc.status != errno.ESTALE or flags & os.O_EXCL:
                        raise
                    # A symbolic link: what it leads to is opened.
            attr = await self._walk(path, follow=not flags & os.O_NOFOLLOW)
            return await self.volume.open(self.cred, attr.ino, flags)

        return File(self.volume, await _os(run(), path), path)

    async def create(self, path: Path, mode: int = 0o666) -> File:
        """A new file, open for reading and writing. Raises FileExistsError."""
        return await self.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, mode)

    async def read_file(self, path: Path) -> bytes:
        """All of a file."""
        pieces = []
        async with await self.open(path) as file:
            at = 0
            while piece := await file.read(limits.EXTENT_MAX, at):
                pieces.append(bytes(piece))
                at += len(piece)
        return b"".join(pieces)

    async def write_file(self, path: Path, data: bytes, mode: int = 0o666) -> None:
        """Make or replace a file's contents."""
        async with await self.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, mode) as file:
            await file.write(data, 0)

    async def listdir(self, path: Path = "/") -> list[bytes]:
        """The names in a directory, without ``.`` and ``..``, in no order that means anything."""
        return [name for name, _ in await self.scandir(path)]

    async def scandir(self, path: Path = "/") -> list[tuple[bytes, Attr]]:
        """(name, attributes) of every entry of a directory."""

        async def run() -> list[tuple[bytes, Attr]]:
            attr = await self._walk(path, follow=True)
            handle = await self.volume.opendir(self.cred, attr.ino)
            found: list[tuple[bytes, Attr]] = []
            at = 0
            try:
                while True:
                    await self.volume.entries(handle, at)
                    if not handle.buffer:
                        return found
                    for name, cookie, its_attr in handle.buffer:
                        found.append((name, its_attr))
                        at = cookie
                    handle.buffer.clear()
                    handle.position = at
            finally:
                self.volume.close_directory(handle.number)

        return await _os(run(), path)

    async def unlink(self, path: Path) -> None:
        async def run() -> None:
            await self.volume.unlink(self.cred, *await self._parent(path))

        await _os(run(), path)

    async def rmdir(self, path: Path) -> None:
        async def run() -> None:
            await self.volume.rmdir(self.cred, *await self._parent(path))

        await _os(run(), path)

    async def rename(self, old: Path, new: Path, flags: int = 0) -> None:
        async def run() -> None:
            parent, name = await self._parent(old)
            await self.volume.rename(self.cred, parent, name, *await self._parent(new), flags)

        await _os(run(), old)

    async def symlink(self, target: Path, path: Path) -> Attr:
        async def run() -> Attr:
            parent, name = await self._parent(path)
            return await self.volume.symlink(self.cred, parent, name, os.fsencode(target))

        return await _os(run(), path)

    async def readlink(self, path: Path) -> bytes:
        async def run() -> bytes:
            return await self.volume.readlink((await self._walk(path, follow=False)).ino)

        return await _os(run(), path)

    async def link(self, old: Path, new: Path) -> Attr:
        async def run() -> Attr:
            attr = await self._walk(old, follow=False)
            return await self.volume.link(self.cred, attr.ino, *await self._parent(new))

        return await _os(run(), old)

    async def chmod(self, path: Path, mode: int) -> Attr:
        async def run() -> Attr:
            attr = await self._walk(path, follow=True)
            return await self.volume.setattr(ops.SetAttr(self.cred, attr.ino, ops.SET_MODE, mode, 0, 0, 0, 0, 0, False))

        return await _os(run(), path)

    async def truncate(self, path: Path, size: int) -> Attr:
        async def run() -> Attr:
            attr = await self._walk(path, follow=True)
            return await self.volume.setattr(ops.SetAttr(self.cred, attr.ino, ops.SET_SIZE, 0, 0, 0, size, 0, 0, False))

        return await _os(run(), path)

    async def statfs(self) -> Space:
        return await _os(self.volume.statfs(), "/")


def _names(path: Path) -> list[bytes]:
    return [name for name in os.fsencode(path).split(b"/") if name not in (b"", b".")]


async def _os(call: Awaitable[T], what: Path) -> T:
    """What *call* gives; its error as the OSError an application would see."""
    try:
        return await call
    except FileSystemError as exc:
        code = errno_of(exc)
        raise OSError(code, os.strerror(code), what) from exc

"""What does the machine allow? An in-memory file system on pyfuse3, with nothing behind it, to run mdtest on.

    python -m bench.floor MOUNTPOINT &        # Ctrl-C or `fusermount3 -u MOUNTPOINT` ends it
    python -m bench.mdtest -d MOUNTPOINT/x -n 1000

Figures of LockstepFS mean something only beside this one, measured on the same machine in the same minutes: it
pays for the kernel, pyfuse3 and trio, and for no network, no disk and no second copy.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import time
from typing import Any

import pyfuse3
import trio


class Node:
    """One inode."""

    __slots__ = ("children", "data", "ino", "mode", "time_ns")

    def __init__(self, ino: int, mode: int) -> None:
        self.ino = ino
        self.mode = mode
        self.time_ns = time.time_ns()
        self.children: dict[bytes, Node] = {}
        self.data = bytearray()


class Memory(pyfuse3.Operations):
    """Just what mdtest asks for; nothing is cached by the kernel, as with a LockstepFS mount without leases."""

    def __init__(self) -> None:
        super().__init__()
        self._nodes = {pyfuse3.ROOT_INODE: Node(pyfuse3.ROOT_INODE, stat.S_IFDIR | 0o755)}
        self._last = int(pyfuse3.ROOT_INODE)

    def _attr(self, node: Node) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino, entry.st_mode, entry.st_nlink, entry.st_size = node.ino, node.mode, 1, len(node.data)
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = node.time_ns
        entry.entry_timeout = entry.attr_timeout = 0
        return entry

    def _make(self, parent: int, name: bytes, mode: int) -> Node:
        self._last += 1
        node = self._nodes[self._last] = Node(self._last, mode)
        self._nodes[parent].children[name] = node
        return node

    async def lookup(self, parent_inode: int, name: bytes, ctx: Any) -> pyfuse3.EntryAttributes:
        node = self._nodes[parent_inode].children.get(name)
        if node is None:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return self._attr(node)

    async def getattr(self, inode: int, ctx: Any) -> pyfuse3.EntryAttributes:
        return self._attr(self._nodes[inode])

    async def setattr(self, inode: int, attr: Any, fields: Any, fh: int | None, ctx: Any) -> pyfuse3.EntryAttributes:
        if fields.update_size:
            del self._nodes[inode].data[attr.st_size :]
        return self._attr(self._nodes[inode])

    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: Any) -> pyfuse3.EntryAttributes:
        return self._attr(self._make(parent_inode, name, stat.S_IFDIR | mode & 0o7777))

    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: Any
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        node = self._make(parent_inode, name, stat.S_IFREG | mode & 0o7777)
        return pyfuse3.FileInfo(fh=node.ino), self._attr(node)

    async def open(self, inode: int, flags: int, ctx: Any) -> pyfuse3.FileInfo:
        return pyfuse3.FileInfo(fh=inode)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        return bytes(self._nodes[fh].data[off : off + size])

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        data = self._nodes[fh].data
        if len(data) < off:
            data.extend(bytes(off - len(data)))
        data[off : off + len(buf)] = buf
        return len(buf)

    async def flush(self, fh: int) -> None:
        pass

    async def fsync(self, fh: int, datasync: bool) -> None:
        pass

    async def release(self, fh: int) -> None:
        pass

    async def unlink(self, parent_inode: int, name: bytes, ctx: Any) -> None:
        del self._nodes[parent_inode].children[name]

    async def rmdir(self, parent_inode: int, name: bytes, ctx: Any) -> None:
        if self._nodes[parent_inode].children[name].children:
            raise pyfuse3.FUSEError(errno.ENOTEMPTY)
        del self._nodes[parent_inode].children[name]

    async def rename(
        self, parent_inode_old: int, name_old: bytes, parent_inode_new: int, name_new: bytes, flags: int, ctx: Any
    ) -> None:
        node = self._nodes[parent_inode_old].children.pop(name_old)
        self._nodes[parent_inode_new].children[name_new] = node

    async def opendir(self, inode: int, ctx: Any) -> int:
        return inode

    async def readdir(self, fh: int, start_id: int, token: Any) -> None:
        for k, (name, node) in enumerate(list(self._nodes[fh].children.items())[start_id:], start_id + 1):
            if not pyfuse3.readdir_reply(token, name, self._attr(node), k):
                return

    async def releasedir(self, fh: int) -> None:
        pass


def main() -> None:
    """Mount on the directory given and serve until it is unmounted."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m bench.floor MOUNTPOINT")
    pyfuse3.init(Memory(), os.path.abspath(sys.argv[1]), {"fsname=floor"})
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close(unmount=True)


if __name__ == "__main__":
    main()

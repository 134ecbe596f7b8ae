"""Pure. Reserve: room at the end of a file for one write with O_APPEND.

open(2): "Before each write(2), the file offset is positioned at the end of the file [...] as a single atomic step".
The step is ordered, so the room of two writes never overlaps, whichever mounts they come from. Times move with the
Commit that follows the write.
"""

from __future__ import annotations

import errno
from typing import Any

from mds.namespace.scope import Scope
from wire import ids
from wire.errors import FileSystemError
from wire.fileops import Reserve


def apply(scope: Scope, op: Reserve) -> Any:
    inode = scope.inode(op.ino)
    if not inode.is_file:
        raise FileSystemError(errno.EISDIR if inode.is_dir else errno.EINVAL)
    end = max(inode.size, op.end) + op.length
    if end > ids.FILE_SIZE_MAX:
        raise FileSystemError(errno.EFBIG)
    inode.size = end
    inode.ctime_ns = scope.now
    scope.put(op.ino, inode)
    return inode.attr(op.ino)

"""Pure. Reserve: room at the end of a file for one write with O_APPEND.

open(2): "Before each write(2), the file offset is positioned at the end of the file [...] as a single atomic step".
The step is ordered, so the room of two writes never overlaps, whichever mounts they come from. The size follows with
the Commit, when the bytes are there: who reads the file meanwhile does not see zeros at its end. Only where two clients
append and the later one commits first, the room of the other is a hole until that has written, and stays one if it
died.
"""

from __future__ import annotations

import errno
from typing import Any

from mds import schema
from mds.namespace.inode import Inode
from mds.namespace.scope import Scope
from wire import ids
from wire.codec import pack, unpack_untrusted
from wire.errors import FileSystemError
from wire.fileops import Reserve


def apply(scope: Scope, op: Reserve) -> Any:
    inode = scope.inode(op.ino)
    if not inode.is_file:
        raise FileSystemError(errno.EISDIR if inode.is_dir else errno.EINVAL)
    key = schema.u64(op.ino)
    given = scope.store.get(schema.APPENDS, key)
    offset = max(inode.size, op.end, 0 if given is None else unpack_untrusted(given)[0])
    if offset + op.length > ids.FILE_SIZE_MAX:
        raise FileSystemError(errno.EFBIG)
    scope.store.put(schema.APPENDS, key, pack((offset + op.length,)))
    return offset, inode.attr(op.ino)


def resized(scope: Scope, ino: int, inode: Inode, truncated: bool) -> None:
    """*inode* has another size. Room up to there is used; a truncation takes all of it back."""
    key = schema.u64(ino)
    given = scope.store.get(schema.APPENDS, key)
    if given is not None and (truncated or unpack_untrusted(given)[0] <= inode.size):
        scope.store.delete(schema.APPENDS, key)

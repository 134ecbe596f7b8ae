"""Pure. Rmdir: remove an empty directory.

rmdir(2). ``.`` is EINVAL and ``..`` ENOTEMPTY. A directory that somebody has open or works in is gone at once:
entries can no longer be made in it (ENOENT), a listing of it says ENOENT (which readdir(3) shows as its end), its
attributes ESTALE.
"""

from __future__ import annotations

import errno
from typing import Any

from mds.namespace import entries
from mds.namespace.perm import need_removal
from mds.namespace.scope import Scope
from wire.errors import FileSystemError
from wire.ops import Rmdir


def apply(scope: Scope, op: Rmdir) -> Any:
    above = entries.directory(scope.store, op.cred, op.parent, op.name)
    if op.name in entries.DOTS:
        raise FileSystemError(errno.EINVAL if op.name == b"." else errno.ENOTEMPTY)
    entry = entries.find(scope.store, op.parent, op.name)
    if entry is None:
        raise FileSystemError(errno.ENOENT)
    ino, _kind, cookie = entry
    inode = scope.inode(ino)
    need_removal(above, inode, op.cred)
    if not inode.is_dir:
        raise FileSystemError(errno.ENOTDIR)
    if inode.entries:
        raise FileSystemError(errno.ENOTEMPTY)
    entries.remove(scope.store, op.parent, op.name, cookie)
    above.entries -= 1
    above.nlink -= 1  # its ".."
    above.mtime_ns = above.ctime_ns = scope.now
    scope.put(op.parent, above)
    entries.erase(scope, ino, inode)
    return ino

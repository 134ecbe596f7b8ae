"""Pure. Link: one more name for an inode.

link(2). Not for directories (EPERM); not for a file whose last name is gone (ENOENT: Linux, too, brings back only what
O_TMPFILE made, which we do not have); LINK_MAX names (EMLINK); not into another
quota (EXDEV). The sysctl protected_hardlinks is the client kernel's.
"""

from __future__ import annotations

import errno
from typing import Any

from mds.namespace import entries, quota
from mds.namespace.scope import Scope
from wire import ids
from wire.errors import FileSystemError
from wire.ops import Link


def apply(scope: Scope, op: Link) -> Any:
    inode = scope.find(op.ino)
    if inode is None:
        raise FileSystemError(errno.ENOENT)
    above = entries.place(scope, op.cred, op.parent, op.name)
    if inode.is_dir:
        raise FileSystemError(errno.EPERM)
    if inode.nlink == 0:
        raise FileSystemError(errno.ENOENT)
    if inode.nlink >= ids.LINK_MAX:
        raise FileSystemError(errno.EMLINK)
    quota.linked(inode, above)
    inode.nlink += 1
    inode.ctime_ns = scope.now
    entries.put(scope.store, op.parent, op.name, op.ino, inode.mode >> 12, scope.fresh)
    above.entries += 1
    above.mtime_ns = above.ctime_ns = scope.now
    scope.put(op.ino, inode)
    scope.put(op.parent, above)
    return inode.attr(op.ino)

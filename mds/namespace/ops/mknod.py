"""Pure. Mknod: a FIFO, socket, device, or a regular file that nobody opens.

mknod(2). Devices need CAP_MKNOD, but for the character device 0:0 (an overlayfs whiteout), which Linux lets anyone
make.
"""

from __future__ import annotations

import errno
import stat
from typing import Any

from mds.namespace import entries, layout
from mds.namespace.scope import Scope
from wire.errors import FileSystemError
from wire.ops import Mknod


def apply(scope: Scope, op: Mknod) -> Any:
    kind = stat.S_IFMT(op.mode)
    whiteout = kind == stat.S_IFCHR and op.rdev == 0
    ino, inode, above = entries.make(scope, op.cred, op.parent, op.name, op.mode)
    if kind in (stat.S_IFCHR, stat.S_IFBLK):
        if op.cred.uid != 0 and not whiteout:
            raise FileSystemError(errno.EPERM)
        inode.rdev = op.rdev
    elif kind == stat.S_IFREG:
        layout.give(scope.store, scope.storage, ino, inode, op.parent, above)
    scope.put(ino, inode)
    scope.put(op.parent, above)
    return inode.attr(ino)

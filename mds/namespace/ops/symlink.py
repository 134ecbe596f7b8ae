"""Pure. Symlink: a symbolic link.

symlink(2). An empty target is ENOENT, one beyond PATH_MAX ENAMETOOLONG; its mode is 0777 and means nothing.
"""

from __future__ import annotations

import errno
from typing import Any

from mds import schema
from mds.namespace import entries
from mds.namespace.inode import S_IFLNK
from mds.namespace.scope import Scope
from wire import ids
from wire.errors import FileSystemError
from wire.ops import Symlink


def apply(scope: Scope, op: Symlink) -> Any:
    if not op.target:
        raise FileSystemError(errno.ENOENT)
    if len(op.target) > ids.SYMLINK_MAX:
        raise FileSystemError(errno.ENAMETOOLONG)
    ino, inode, above = entries.make(scope, op.cred, op.parent, op.name, S_IFLNK | 0o777)
    inode.size = len(op.target)
    scope.store.put(schema.SYMLINKS, schema.u64(ino), op.target)
    scope.put(ino, inode)
    scope.put(op.parent, above)
    return inode.attr(ino)

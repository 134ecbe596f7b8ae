"""Pure. Unlink: take away a name that is not a directory's.

unlink(2). EISDIR for a directory, as Linux has it (POSIX: EPERM). Open handles keep the inode: see
:func:`mds.namespace.entries.drop_link`.
"""

from __future__ import annotations

import errno
from typing import Any

from mds.namespace import entries
from mds.namespace.perm import need_removal
from mds.namespace.scope import Scope
from wire.errors import FileSystemError
from wire.ops import Unlink


def apply(scope: Scope, op: Unlink) -> Any:
    above = entries.directory(scope.store, op.cred, op.parent, op.name)
    if op.name in entries.DOTS:
        raise FileSystemError(errno.EISDIR)
    entry = entries.find(scope.store, op.parent, op.name)
    if entry is None:
        raise FileSystemError(errno.ENOENT)
    ino, _kind, cookie = entry
    inode = scope.inode(ino)
    need_removal(above, inode, op.cred)
    if inode.is_dir:
        raise FileSystemError(errno.EISDIR)
    entries.remove(scope.store, op.parent, op.name, cookie)
    above.entries -= 1
    above.mtime_ns = above.ctime_ns = scope.now
    scope.put(op.parent, above)
    entries.drop_link(scope, ino, inode)
    return ino

"""Pure. Commit: the size and time of writes that are in the storage targets already.

Size only grows, so that the writers of one file never shrink it for each other. mtime becomes the write's time, no
later than the state's time (a client's clock may be fast) and no earlier than it was, unless it stood in the future:
then somebody had set it there, and the write ends that. ``mtime_ns`` 0 leaves mtime alone. Set-id bits go, as with
any write but root's (CAP_FSETID).
"""

from __future__ import annotations

import errno
from typing import Any

from mds.namespace import xattrs
from mds.namespace.ops import reserve
from mds.namespace.perm import without_set_id
from mds.namespace.scope import Scope
from wire.errors import FileSystemError
from wire.ops import Commit


def apply(scope: Scope, op: Commit) -> Any:
    inode = scope.inode(op.ino)
    if not inode.is_file:
        raise FileSystemError(errno.EISDIR if inode.is_dir else errno.EINVAL)
    now = scope.now
    if op.end > inode.size:
        inode.size = op.end
        reserve.resized(scope, op.ino, inode, truncated=False)
    if op.mtime_ns:
        written = min(op.mtime_ns, now)
        inode.mtime_ns = written if inode.mtime_ns > now else max(inode.mtime_ns, written)
    inode.ctime_ns = now
    if not op.privileged:
        inode.mode = without_set_id(inode.mode)
    xattrs.drop_capability(scope, op.ino, inode)
    scope.put(op.ino, inode)
    return inode.attr(op.ino)

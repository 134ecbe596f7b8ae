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
from mds.namespace.inode import Inode
from mds.namespace.ops import reserve
from mds.namespace.perm import without_set_id
from mds.namespace.scope import Scope
from wire.errors import FileSystemError
from wire.ops import Commit


def apply(scope: Scope, op: Commit) -> Any:
    inode = file(scope, op.ino)
    written(scope, op.ino, inode, op.end, op.mtime_ns, op.privileged)
    return inode.attr(op.ino)


def file(scope: Scope, ino: int) -> Inode:
    """Regular file *ino*. Raises EISDIR, EINVAL, ESTALE."""
    inode = scope.inode(ino)
    if not inode.is_file:
        raise FileSystemError(errno.EISDIR if inode.is_dir else errno.EINVAL)
    return inode


def written(scope: Scope, ino: int, inode: Inode, end: int, mtime_ns: int, privileged: bool) -> None:
    """What a write up to *end* does to *inode*, and store it."""
    now = scope.now
    if end > inode.size:
        inode.size = end
        reserve.resized(scope, ino, inode, truncated=False)
    if mtime_ns:
        when = min(mtime_ns, now)
        inode.mtime_ns = when if inode.mtime_ns > now else max(inode.mtime_ns, when)
    inode.ctime_ns = now
    if not privileged:
        inode.mode = without_set_id(inode.mode)
    xattrs.drop_capability(scope, ino, inode)
    scope.put(ino, inode)

"""Pure. SetAttr: chmod(2), chown(2), truncate(2), utimensat(2) in one request.

Who may: mode and times the owner; owner and group as chown says; the size whoever may write (checked at open for a
handle). Each refusal is EPERM where ownership is missing and EACCES where a mode bit is. All is checked before anything
changes. ctime moves with every change, and with a request for none: that is chown(2) to (-1, -1), which everybody may,
or what a kernel sends before somebody writes to a set-gid file that its group may not execute.
"""

from __future__ import annotations

import errno
import stat
from typing import Any, Final

from mds import schema
from mds.namespace import inline, xattrs
from mds.namespace.inode import TRUNCATIONS_MAX, Inode
from mds.namespace.ops import reserve
from mds.namespace.perm import W, allowed, in_group, need, owns, without_set_id
from mds.namespace.scope import Scope
from wire import ops
from wire.codec import pack
from wire.errors import FileSystemError, Status
from wire.ops import Cred, SetAttr

_BOTH_NOW: Final = ops.SET_ATIME_NOW | ops.SET_MTIME_NOW


def apply(scope: Scope, op: SetAttr) -> Any:
    inode = scope.inode(op.ino)
    _check(inode, op)
    now = scope.now
    if op.valid & (ops.SET_UID | ops.SET_GID):
        _chown(scope, inode, op)
    if op.valid & ops.SET_MODE:
        _chmod(inode, op)
    if not op.valid and not inode.is_dir:
        inode.mode = without_set_id(inode.mode, _may_set_gid(inode, op.cred))
    if op.valid & ops.SET_SIZE:
        _truncate(scope, inode, op)
    if op.valid & ops.SET_ATIME_NOW:
        inode.atime_ns = now
    elif op.valid & ops.SET_ATIME:
        inode.atime_ns = op.atime_ns
    if op.valid & ops.SET_MTIME_NOW:
        inode.mtime_ns = now
    elif op.valid & ops.SET_MTIME:
        inode.mtime_ns = op.mtime_ns
    inode.ctime_ns = now
    scope.put(op.ino, inode)
    return inode.attr(op.ino)


def _check(inode: Inode, op: SetAttr) -> None:
    cred = op.cred
    if op.valid & ops.SET_SIZE:
        if inode.is_dir:
            raise FileSystemError(errno.EISDIR)
        if not inode.is_file:
            raise FileSystemError(errno.EINVAL)
        if not op.handle:
            need(inode, cred, W)
    if op.valid & ops.SET_UID and cred.uid != 0 and not (cred.uid == inode.uid == op.uid):
        raise FileSystemError(errno.EPERM)  # only root gives files away; to set what is set already is no change
    may_chgrp = cred.uid == 0 or (cred.uid == inode.uid and (op.gid == inode.gid or in_group(cred, op.gid)))
    if op.valid & ops.SET_GID and not may_chgrp:
        raise FileSystemError(errno.EPERM)
    loses = not op.valid and without_set_id(inode.mode, _may_set_gid(inode, cred)) != inode.mode
    if loses and not inode.is_dir and not owns(inode, cred) and not allowed(inode, cred, W):
        raise FileSystemError(errno.EPERM)
    if op.valid & ops.SET_MODE and not owns(inode, cred) and not _only_drops_set_id(inode, op):
        raise FileSystemError(errno.EPERM)
    _check_times(inode, op)


def _only_drops_set_id(inode: Inode, op: SetAttr) -> bool:
    """A client's kernel takes set-id bits away after a write by sending a chmod in the writer's name."""
    gone = inode.mode & ~op.mode & 0o7777
    return (
        inode.is_file
        and gone != 0
        and (inode.mode ^ op.mode) & 0o7777 == gone
        and gone & ~(stat.S_ISUID | stat.S_ISGID) == 0
        and (op.handle or allowed(inode, op.cred, W))
    )


def _check_times(inode: Inode, op: SetAttr) -> None:
    if owns(inode, op.cred):
        return
    valid = op.valid
    now = valid & _BOTH_NOW
    given = (valid & ops.SET_ATIME and not valid & ops.SET_ATIME_NOW) or (
        valid & ops.SET_MTIME and not valid & ops.SET_MTIME_NOW
    )
    if given:
        raise FileSystemError(errno.EPERM)
    if not now or (valid & ops.SET_SIZE and now == ops.SET_MTIME_NOW):
        return  # a truncation moves mtime in any case, and whether it is allowed was asked above
    if now != _BOTH_NOW:
        # utimensat(2): without ownership both times can be set to now, by whoever may write, and nothing else.
        raise FileSystemError(errno.EPERM)
    need(inode, op.cred, W)


def _chown(scope: Scope, inode: Inode, op: SetAttr) -> None:
    if not inode.is_dir:
        # chown(2): "since Linux 2.2.13, root is treated like other users". It is the group before that counts.
        inode.mode = without_set_id(inode.mode, _may_set_gid(inode, op.cred))
    if op.valid & ops.SET_UID:
        inode.uid = op.uid
    if op.valid & ops.SET_GID:
        inode.gid = op.gid
    if not inode.is_dir:
        xattrs.drop_capability(scope, op.ino, inode)


def _chmod(inode: Inode, op: SetAttr) -> None:
    mode = op.mode & 0o7777
    if mode & stat.S_ISGID and not _may_set_gid(inode, op.cred):
        mode &= ~stat.S_ISGID  # POSIX chmod: a group that is not the caller's gets no set-gid from him
    inode.mode = inode.mode & ~0o7777 | mode


def _may_set_gid(inode: Inode, cred: Cred) -> bool:
    return cred.uid == 0 or in_group(cred, inode.gid)


def _truncate(scope: Scope, inode: Inode, op: SetAttr) -> None:
    """The new size now; storage targets follow lazily by ``truncations`` (30-data).

    A truncation that grows the file cuts nothing off. One to the size that the file already has here may well cut:
    writes of other clients beyond it may not be committed yet.
    """
    if inode.inline:
        inline.cut(scope, op.ino, inode, op.size)
    elif inode.layout is not None and op.size <= inode.size:
        kept = tuple(item for item in inode.truncations if item[1] < op.size)
        if len(kept) >= TRUNCATIONS_MAX:
            raise FileSystemError(Status.TRUNCATIONS_UNSETTLED)
        inode.truncate_seq += 1
        inode.truncations = (*kept, (inode.truncate_seq, op.size))
        scope.store.put(schema.TRIMS, schema.u64(op.ino), pack((scope.now,)))
    inode.size = op.size
    reserve.resized(scope, op.ino, inode, truncated=True)
    inode.mtime_ns = scope.now
    if op.cred.uid != 0:
        inode.mode = without_set_id(inode.mode, in_group(op.cred, inode.gid))
    xattrs.drop_capability(scope, op.ino, inode)

"""Pure. RemoveXattr: removexattr(2). ENODATA when there is no such attribute."""

from __future__ import annotations

import errno
from typing import Any

from mds import schema
from mds.namespace import acl, layout, quota, xattrs
from mds.namespace.ops.setxattr import change_acl
from mds.namespace.perm import owns
from mds.namespace.scope import Scope
from wire.errors import FileSystemError
from wire.ops import RemoveXattr


def apply(scope: Scope, op: RemoveXattr) -> Any:
    inode = scope.inode(op.ino)
    if op.name == quota.ATTRIBUTE:
        if op.cred.uid != 0:
            raise FileSystemError(errno.EPERM)
        quota.clear(scope, op.ino, inode)
        inode.ctime_ns = scope.now
        scope.put(op.ino, inode)
        return None
    if op.name in acl.NAMES:  # removed already, or never there: that is no error, on Linux either
        return change_acl(scope, op.cred, op.ino, op.name, None)
    if op.name == layout.ATTRIBUTE:
        if not owns(inode, op.cred):
            raise FileSystemError(errno.EPERM)
    else:
        xattrs.check_write(inode, op.cred, op.name)
    key = schema.xattr_key(op.ino, op.name)
    if scope.store.get(schema.XATTRS, key) is None:
        raise FileSystemError(errno.ENODATA)
    scope.store.delete(schema.XATTRS, key)
    inode.xattrs -= 1
    inode.ctime_ns = scope.now
    scope.put(op.ino, inode)
    return None

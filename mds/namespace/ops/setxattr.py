"""Pure. SetXattr: setxattr(2). Name spaces and limits: :mod:`mds.namespace.xattrs`.

EEXIST and ENODATA by the flags; ERANGE for a long name, E2BIG for a long value, ENOSPC for too much on one inode.
"""

from __future__ import annotations

import errno
import stat
from typing import Any

from mds import schema
from mds.namespace import acl, layout, quota, xattrs
from mds.namespace.inode import Inode
from mds.namespace.perm import in_group, owns
from mds.namespace.scope import Scope
from wire import ids
from wire.errors import FileSystemError
from wire.ops import XATTR_CREATE, XATTR_REPLACE, Cred, SetXattr


def apply(scope: Scope, op: SetXattr) -> Any:
    if len(op.value) > ids.XATTR_SIZE_MAX:
        raise FileSystemError(errno.E2BIG)
    inode = scope.inode(op.ino)
    if op.name == layout.ATTRIBUTE:
        return _set_layout(scope, op, inode)
    if op.name == quota.ATTRIBUTE:
        return _set_quota(scope, op, inode)
    if op.name in acl.NAMES:
        return change_acl(scope, op.cred, op.ino, op.name, op.value)
    xattrs.check_write(inode, op.cred, op.name)
    key = schema.xattr_key(op.ino, op.name)
    old = scope.store.get(schema.XATTRS, key)
    if old is not None and op.flags == XATTR_CREATE:
        raise FileSystemError(errno.EEXIST)
    if old is None and op.flags == XATTR_REPLACE:
        raise FileSystemError(errno.ENODATA)
    if inode.xattrs or len(op.name) + len(op.value) > xattrs.TOTAL_MAX:
        total, names = xattrs.sizes(scope, op.ino)
        total += len(op.value) - len(old) if old is not None else len(op.name) + len(op.value)
        names += 0 if old is not None else len(op.name) + 1
        if total > xattrs.TOTAL_MAX or names > xattrs.LIST_MAX:
            raise FileSystemError(errno.ENOSPC)
    scope.store.put(schema.XATTRS, key, op.value)
    if old is None:
        inode.xattrs += 1
    inode.ctime_ns = scope.now
    scope.put(op.ino, inode)
    return None


def _set_layout(scope: Scope, op: SetXattr, inode: Inode) -> None:
    """Of a directory: how files made in it from now on are laid out. Of an empty file: how its data will be.

    The owner may. EBUSY for a file that holds data, or has: its writers know where it lies. For the same reason a file
    that is in objects does not go back into the metadata.
    """
    storage = scope.storage
    if not (inode.is_dir or inode.is_file):
        raise FileSystemError(errno.EINVAL)
    if not owns(inode, op.cred):
        raise FileSystemError(errno.EPERM)
    if inode.is_dir:
        old = layout.of_directory(scope.store, op.ino, inode)
        policy = layout.policy_untrusted(op.value, layout.policy_of(old, storage.default))
        scope.store.put(schema.XATTRS, schema.xattr_key(op.ino, op.name), policy.text())
        inode.xattrs += old is None
    else:
        if inode.size or inode.truncate_seq:
            raise FileSystemError(errno.EBUSY)
        policy = layout.policy_untrusted(op.value, storage.default._replace(inline=inode.inline))
        if policy.inline and not inode.inline:
            raise FileSystemError(errno.EBUSY)
        inode.layout = storage.layout(op.ino, policy)
        inode.inline = policy.inline
    inode.ctime_ns = scope.now
    scope.put(op.ino, inode)


def _set_quota(scope: Scope, op: SetXattr, inode: Inode) -> None:
    """A directory becomes a quota root, or its limits change: the administrator's to say."""
    if op.cred.uid != 0:
        raise FileSystemError(errno.EPERM)
    quota.set_limits(scope, op.ino, inode, op.value)
    inode.ctime_ns = scope.now
    scope.put(op.ino, inode)


def change_acl(scope: Scope, cred: Cred, ino: int, name: bytes, value: bytes | None) -> None:
    """Set an access control list, or take it away (None): the owner's to do, like chmod, with the same effect on the
    set-gid bit."""
    inode = scope.inode(ino)
    if not owns(inode, cred):
        raise FileSystemError(errno.EPERM)
    acl.set_(scope, ino, inode, name, value)
    if name == acl.ACCESS and value is not None and cred.uid != 0 and not in_group(cred, inode.gid):
        inode.mode &= ~stat.S_ISGID
    inode.ctime_ns = scope.now
    scope.put(ino, inode)

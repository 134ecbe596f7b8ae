"""Pure. Extended attributes: name spaces, who may use them, limits.

``user.`` is for regular files and directories, by the inode's mode bits; in a sticky directory's own attributes only
the owner writes. ``trusted.`` is for root alone, and invisible to others. ``security.`` everyone may read and root
may write. Access control lists (``system.posix_acl_*``) are :mod:`mds.namespace.acl`'s; any other name is EOPNOTSUPP.
"""

from __future__ import annotations

import errno
import stat
from typing import Final

from mds import schema
from mds.namespace.inode import Inode
from mds.namespace.perm import R, W, need, owns
from mds.namespace.scope import Scope
from wire import ids
from wire.errors import FileSystemError
from wire.ops import Cred

CAPABILITY: Final = b"security.capability"
TOTAL_MAX: Final = 256 << 10
"""Bytes of all names and values of one inode (ENOSPC beyond), so that removing it stays a small transaction."""
LIST_MAX: Final = 65536
"""Bytes of all names, each with its NUL: what listxattr(2) can return (XATTR_LIST_MAX)."""


def check_read(inode: Inode, cred: Cred, name: bytes) -> None:
    """Raise unless *cred* may read attribute *name*: as Linux's xattr_permission."""
    space = _space(inode, cred, name, R)
    if space == b"user":
        if not (inode.is_file or inode.is_dir):
            raise FileSystemError(errno.ENODATA)
        need(inode, cred, R)
    elif space == b"trusted" and cred.uid != 0:
        raise FileSystemError(errno.ENODATA)
    _need_rest(name)


def check_write(inode: Inode, cred: Cred, name: bytes) -> None:
    """Raise unless *cred* may set or remove attribute *name*."""
    space = _space(inode, cred, name, W)
    if space == b"user":
        if not (inode.is_file or inode.is_dir):
            raise FileSystemError(errno.EPERM)
        if inode.is_dir and inode.mode & stat.S_ISVTX and not owns(inode, cred):
            raise FileSystemError(errno.EPERM)
        need(inode, cred, W)
    elif cred.uid != 0:
        raise FileSystemError(errno.EPERM)
    _need_rest(name)


def _space(inode: Inode, cred: Cred, name: bytes, want: int) -> bytes:
    """The name space of *name*. One that nobody knows is refused to whom *want* is allowed, as Linux has it."""
    if len(name) > ids.XATTR_NAME_MAX:
        raise FileSystemError(errno.ERANGE)
    space, dot, _ = name.partition(b".")
    if not dot or space not in (b"user", b"trusted", b"security"):
        if not dot or space != b"system":
            need(inode, cred, want)
        raise FileSystemError(errno.EOPNOTSUPP)
    return space


def _need_rest(name: bytes) -> None:
    """A name space alone is no name; Linux notices after it has asked for permission."""
    if name.endswith(b".") and name.count(b".") == 1:
        raise FileSystemError(errno.EINVAL)


def sizes(scope: Scope, ino: int) -> tuple[int, int]:
    """(bytes of names and values, bytes of names with their NULs) that inode *ino* has."""
    total = names = 0
    key = schema.u64(ino)
    for name, value in scope.store.scan(schema.XATTRS, key, schema.after(key)):
        names += len(name) - 8 + 1
        total += len(name) - 8 + len(value)
    return total, names


def drop_capability(scope: Scope, ino: int, inode: Inode) -> None:
    """File capabilities do not outlive a write or chown (capabilities(7)). The caller puts *inode*."""
    if inode.xattrs:
        key = schema.xattr_key(ino, CAPABILITY)
        if scope.store.get(schema.XATTRS, key) is not None:
            scope.store.delete(schema.XATTRS, key)
            inode.xattrs -= 1

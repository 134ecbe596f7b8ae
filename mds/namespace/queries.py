"""Pure. Queries: read one replica's state, change nothing.

A query function takes (scope, op, handles, read) and returns the result, or raises
:class:`wire.errors.FileSystemError`. Into the list *read* it puts the inodes it looks at, before it may fail on them:
the answer, an error as well, is right for as long as none of these changes.

StatFs answers ``(inodes, sessions, targets)``: inodes in use (unlinked open ones too), sessions, storage targets. The
client adds space from the targets. It is not linearizable and reads, in this sense, nothing.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any, Final, Protocol

from mds import schema
from mds.namespace import acl, entries, inline, layout, quota, quota_queries, xattrs
from mds.namespace.inode import S_IFLNK, S_IFMT, Inode, decode
from mds.namespace.perm import R, W, X, need
from mds.namespace.scope import Scope
from wire import ops, quotaops
from wire.capability import READ
from wire.errors import FileSystemError
from wire.fileops import Renew
from wire.inline import ReadInline

READDIR_BYTES: Final = 1 << 20
"""A page of a listing ends at about so many bytes, whatever its limit: half of what a frame takes."""
STORAGE_MAP: Final = 0
"""Stands for the storage map among the inodes that queries read and requests touch; no inode is number 0."""
O_ACCMODE: Final = 3
O_RDONLY: Final = 0
O_WRONLY: Final = 1
O_TRUNC: Final = 0o1000
"""Linux's numbers, which the client passes on as they are."""
FMODE_EXEC: Final = 0o40
"""Linux sets it in the flags of an open for execve(2): permission to execute is asked for, not to read."""


class Handles(Protocol):
    """Handles that clients have open at this replica (:class:`mds.handles.Handles`)."""

    def is_open(self, ino: int) -> bool: ...


def lookup(scope: Scope, op: ops.Lookup, handles: Handles, read: list[int]) -> Any:
    read.append(op.parent)
    above = entries.directory(scope.store, op.cred, op.parent, op.name)
    if op.name == b".":
        return above.attr(op.parent)
    if op.name == b"..":
        ino = above.parent
    else:
        entry = entries.find(scope.store, op.parent, op.name)
        if entry is None:
            raise FileSystemError(errno.ENOENT)
        ino = entry[0]
    read.append(ino)
    return scope.inode(ino).attr(ino)


def getattr_(scope: Scope, op: ops.GetAttr, handles: Handles, read: list[int]) -> Any:
    read.append(op.ino)
    return scope.inode(op.ino).attr(op.ino)


def readdir(scope: Scope, op: ops.ReadDir, handles: Handles, read: list[int]) -> Any:
    """A page of a listing, for who may list the directory. Whose listing is under way shows the capability that its
    first page came with, and then asks as root: see mds.rights.

    A directory that was removed gives ENOENT, as getdents(2) has it; readdir(3) shows that as the end.
    """
    read.append(op.ino)
    inode = scope.find(op.ino)
    if inode is None:
        raise FileSystemError(errno.ENOENT)
    if not inode.is_dir:
        raise FileSystemError(errno.ENOTDIR)
    need(inode, op.cred, R)
    prefix = op.ino.to_bytes(8, "big")
    start = prefix + (op.cookie + 1).to_bytes(8, "big")
    get = scope.store.get
    found: list[Any] = []
    room = READDIR_BYTES
    for key, value in scope.store.scan(schema.COOKIES, start, schema.after(prefix)):
        if len(found) == op.limit or room <= 0:
            return found, False
        record = get(schema.INODES, value[:8])
        assert record is not None, "an entry names an inode"
        ino = int.from_bytes(value[:8], "big")
        read.append(ino)
        found.append((value[8:], int.from_bytes(key[8:], "big"), decode(record).attr(ino)))
        room -= len(value) + len(record) + 32
    return found, True


def readlink(scope: Scope, op: ops.ReadLink, handles: Handles, read: list[int]) -> Any:
    read.append(op.ino)
    if scope.inode(op.ino).mode & S_IFMT != S_IFLNK:
        raise FileSystemError(errno.EINVAL)
    return scope.store.get(schema.SYMLINKS, schema.u64(op.ino))


def getxattr(scope: Scope, op: ops.GetXattr, handles: Handles, read: list[int]) -> Any:
    read.append(op.ino)
    inode = scope.inode(op.ino)
    if op.name == layout.ATTRIBUTE:
        return layout.shown(scope.store, scope.storage, op.ino, inode)
    if op.name in acl.NAMES:
        return acl.shown(scope.store, op.ino, inode, op.name)
    if op.name in (quota.ATTRIBUTE, quota.USAGE):
        return quota_queries.attribute(scope, op.ino, inode, op.name, read)
    xattrs.check_read(inode, op.cred, op.name)
    value = scope.store.get(schema.XATTRS, schema.xattr_key(op.ino, op.name)) if inode.xattrs else None
    if value is None:
        raise FileSystemError(errno.ENODATA)
    return value


def listxattr(scope: Scope, op: ops.ListXattr, handles: Handles, read: list[int]) -> Any:
    """All names, those of ``trusted.`` too: the query does not say who asks, the client leaves them out for others."""
    read.append(op.ino)
    inode = scope.inode(op.ino)
    names = [acl.ACCESS] if inode.acl else []
    if inode.xattrs:
        prefix = schema.u64(op.ino)
        names += [key[8:] for key, _value in scope.store.scan(schema.XATTRS, prefix, schema.after(prefix))]
    return names


def open_(scope: Scope, op: ops.Open, handles: Handles, read: list[int]) -> Any:
    """Permission as open(2) asks for it. The replica counts the handle before it answers.

    An orphan can be opened again (through /proc) only where a handle holds it: elsewhere the replica may have
    released it already.
    """
    read.append(op.ino)
    inode = scope.inode(op.ino)
    if inode.nlink == 0 and not handles.is_open(op.ino):
        raise FileSystemError(errno.ESTALE)
    if inode.mode & S_IFMT == S_IFLNK:
        raise FileSystemError(errno.ELOOP)
    access = op.flags & O_ACCMODE
    want = X if op.flags & FMODE_EXEC and access == O_RDONLY else (R, W, R | W, R | W)[access]
    if op.flags & O_TRUNC:
        want |= W
    if inode.is_dir and want & W:
        raise FileSystemError(errno.EISDIR)
    need(inode, op.cred, want)
    read_too = access != O_WRONLY and not op.flags & O_TRUNC
    return inode.attr(op.ino), _contents(scope, op.ino, inode) if read_too else None


def read_inline(scope: Scope, op: ReadInline, handles: Handles, read: list[int]) -> Any:
    read.append(op.ino)
    inode = scope.inode(op.ino)
    return inode.attr(op.ino), _contents(scope, op.ino, inode)


def _contents(scope: Scope, ino: int, inode: Inode) -> tuple[int, bytes] | None:
    if not inode.inline:
        return None
    version, _, data = inline.contents(scope.store, ino)
    return version, data


def access(scope: Scope, op: ops.Access, handles: Handles, read: list[int]) -> Any:
    read.append(op.ino)
    inode = scope.inode(op.ino)
    need(inode, op.cred, op.mask)
    return None


def statfs(scope: Scope, op: ops.StatFs, handles: Handles, read: list[int]) -> Any:
    return scope.inodes, scope.sessions, len(scope.storage.map[1])


def storage_map(scope: Scope, op: ops.StorageMap, handles: Handles, read: list[int]) -> Any:
    read.append(STORAGE_MAP)
    return scope.storage.map, scope.storage.losses


def renew(scope: Scope, op: Renew, handles: Handles, read: list[int]) -> Any:
    """Without an old capability: permission as open(2) asks for it. What an old one is worth: mds.capabilities."""
    read.append(op.ino)
    inode = scope.inode(op.ino)
    if not op.old:
        need(inode, op.cred, (R if op.rights & READ else 0) | (W if op.rights & ~READ else 0))
    return inode.attr(op.ino)


QUERIES: Final[dict[type, Callable[[Scope, Any, Handles, list[int]], Any]]] = {
    ops.Lookup: lookup,
    ops.GetAttr: getattr_,
    ops.ReadDir: readdir,
    ops.ReadLink: readlink,
    ops.GetXattr: getxattr,
    ops.ListXattr: listxattr,
    ops.Open: open_,
    ReadInline: read_inline,
    ops.Access: access,
    ops.StatFs: statfs,
    ops.StorageMap: storage_map,
    quotaops.QuotaRoom: quota_queries.room,
    quotaops.Tally: quota_queries.tally,
    quotaops.QuotaList: quota_queries.list_,
    Renew: renew,
}

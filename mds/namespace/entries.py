"""Pure. Directory entries: names in DIRENTS, the order of listing in COOKIES, and inodes that come and go with names.

An entry's cookie is its place in the listing. It is a number derived from the delivery index, so it never comes again
and is above every cookie given before: a listing that goes on after cookie c meets each entry that is there all the
time exactly once, whatever is made or removed meanwhile. A name that a rename replaces was there all the time, too,
so it keeps its cookie; a rename to a new name in the same directory takes the old name's cookie along, so that the
file is met once, under one name or the other (and a loop of readdir and rename ends).
"""

from __future__ import annotations

import errno
from typing import Final, NamedTuple

from mds import schema
from mds.namespace import acl, delegations, inline, quota
from mds.namespace.inode import S_IFDIR, S_IFMT, Inode, decode
from mds.namespace.perm import W, X, allowed, in_group, need
from mds.namespace.scope import Scope
from mds.store import Store
from wire import ids
from wire.codec import pack, unpack_untrusted
from wire.errors import FileSystemError
from wire.ops import Cred

DOTS: Final = (b".", b"..")

Entry = tuple[int, int, int]
"""(ino, type, cookie)"""


class Making(NamedTuple):
    """What a new inode is given that others take from the request that makes it."""

    ino: int
    now: int
    """When it was made: never after the state's time."""


def find(store: Store, parent: int, name: bytes) -> Entry | None:
    raw = store.get(schema.DIRENTS, parent.to_bytes(8, "big") + name)
    return unpack_untrusted(raw) if raw is not None else None


def directory(store: Store, cred: Cred, ino: int, name: bytes) -> Inode:
    """Directory *ino*, in which *cred* may look up *name*. Raises ENOENT, ENOTDIR, EACCES, ENAMETOOLONG."""
    record = store.get(schema.INODES, ino.to_bytes(8, "big"))
    if record is None:
        raise FileSystemError(errno.ENOENT)  # removed: a directory that is gone has no names
    inode = decode(record)
    if inode.mode & S_IFMT != S_IFDIR:
        raise FileSystemError(errno.ENOTDIR)
    if not allowed(inode, cred, X):
        raise FileSystemError(errno.EACCES)
    if len(name) > ids.NAME_MAX:
        raise FileSystemError(errno.ENAMETOOLONG)
    return inode


def put(store: Store, parent: int, name: bytes, ino: int, kind: int, cookie: int) -> None:
    """Let *name* stand for *ino* at place *cookie*; *kind* is the inode's mode >> 12."""
    key = parent.to_bytes(8, "big")
    store.put(schema.DIRENTS, key + name, pack((ino, kind, cookie)))
    store.put(schema.COOKIES, key + cookie.to_bytes(8, "big"), ino.to_bytes(8, "big") + name)


def remove(store: Store, parent: int, name: bytes, cookie: int) -> None:
    key = parent.to_bytes(8, "big")
    store.delete(schema.DIRENTS, key + name)
    store.delete(schema.COOKIES, key + cookie.to_bytes(8, "big"))


def place(scope: Scope, cred: Cred, parent: int, name: bytes) -> Inode:
    """Directory *parent*, in which *cred* may make *name*, which is not there. Raises as :func:`directory`, and EEXIST.

    EEXIST comes before EACCES for writing (as Linux has it): mkdir -p of what is there works in a read-only place.
    """
    above = directory(scope.store, cred, parent, name)
    if name in DOTS or find(scope.store, parent, name) is not None:
        raise FileSystemError(errno.EEXIST)
    need(above, cred, W)
    return above


def make(
    scope: Scope, cred: Cred, parent: int, name: bytes, mode: int, given: Making | None = None
) -> tuple[int, Inode, Inode]:
    """A new inode (number, inode, its directory), named and counted; the caller completes both and puts them.

    *given*: the directory's times go on with this one, and not back, for it may come after later ones.

    Owner and group as Linux gives them (inode_init_owner): the group of a set-gid directory is inherited, and with it
    the bit by subdirectories; a set-gid executable can only be made by a member of its group.
    """
    above = place(scope, cred, parent, name)
    gid = cred.gid
    if above.mode & 0o2000:
        gid = above.gid
        if mode & S_IFMT == S_IFDIR:
            mode |= 0o2000
        elif mode & 0o2010 == 0o2010 and cred.uid != 0 and not in_group(cred, gid):
            mode &= ~0o2000
    ino, now = given or (scope.fresh, scope.now)
    inode = Inode(mode, 1, cred.uid, gid, 0, 0, now, now, now, None, (), 0, 0, 0, 0, quota=above.quota)
    put(scope.store, parent, name, ino, mode >> 12, scope.fresh)
    if given is None:
        above.mtime_ns = above.ctime_ns = now
    else:
        above.mtime_ns, above.ctime_ns = max(above.mtime_ns, now), max(above.ctime_ns, now)
    above.entries += 1
    scope.inodes += 1
    if above.xattrs:
        acl.inherit(scope, parent, ino, inode)
    if above.quota:
        quota.charge(scope, above.quota, 0, 1, inode.is_dir)
    return ino, inode, above


def drop_link(scope: Scope, ino: int, inode: Inode) -> None:
    """A name of *inode*, no directory, has been taken away. The last one makes it an orphan, or ends it.

    Only regular files are kept for handles: the kernel of a client serves an open FIFO or device by itself, and a
    symbolic link is not opened.
    """
    inode.nlink -= 1
    inode.ctime_ns = scope.now
    if inode.nlink:
        scope.put(ino, inode)
    elif inode.is_file and scope.members:
        scope.put(ino, inode)
        key = schema.u64(ino)
        scope.store.put(schema.ORPHANS, key, pack(tuple((replica, False) for replica in scope.members)))
        for replica in scope.members:
            scope.store.put(schema.OWED, schema.owed_key(replica, ino), b"")
        scope.orphaned.append(ino)
    else:
        erase(scope, ino, inode)


def erase(scope: Scope, ino: int, inode: Inode) -> None:
    """No name and no handle is left: take the inode out of the state, and queue its objects for deletion."""
    key = schema.u64(ino)
    scope.store.delete(schema.INODES, key)
    if inode.is_dir and ino in scope.delegated:
        delegations.end(scope, ino)
    if inode.xattrs:
        for xattr, _value in list(scope.store.scan(schema.XATTRS, key, schema.after(key))):
            scope.store.delete(schema.XATTRS, xattr)
    if inode.mode >> 12 == 0o12:
        scope.store.delete(schema.SYMLINKS, key)
    if inode.quota:
        quota.erased(scope, ino, inode)
    if inode.truncations:
        scope.store.delete(schema.TRIMS, key)
    if inode.is_file and scope.store.get(schema.APPENDS, key) is not None:
        scope.store.delete(schema.APPENDS, key)
    if inode.inline:
        inline.drop(scope, ino, inode)
    elif inode.layout is not None:
        scope.store.put(schema.RECLAIM, schema.u64(inode.objects or ino), pack(inode.layout))
    scope.inodes -= 1

"""Pure. Rename: renameat2(2) with flags 0, NOREPLACE or EXCHANGE.

Checks in the order of Linux's do_renameat2 and vfs_rename, because applications (and pjdfstest) tell the errors apart.
What a rename replaces goes as by unlink or rmdir. EXDEV between quotas: see :mod:`mds.namespace.quota`. Cookies: see
:mod:`mds.namespace.entries`.
"""

from __future__ import annotations

import errno
from typing import Any, Final

from mds.namespace import entries, quota
from mds.namespace.inode import S_IFDIR, Inode
from mds.namespace.perm import W, X, need, need_removal
from mds.namespace.scope import Scope
from wire.errors import FileSystemError
from wire.ops import RENAME_EXCHANGE, RENAME_NOREPLACE, Rename

_DIRECTORY: Final = S_IFDIR >> 12


def apply(scope: Scope, op: Rename) -> Any:
    store = scope.store
    same = op.parent == op.new_parent
    old_dir = entries.directory(store, op.cred, op.parent, op.name)
    new_dir = entries.directory(store, op.cred, op.new_parent, op.new_name)
    if same:
        new_dir = old_dir
    if op.name in entries.DOTS or op.new_name in entries.DOTS:
        raise FileSystemError(errno.EBUSY)
    source = entries.find(store, op.parent, op.name)
    if source is None:
        raise FileSystemError(errno.ENOENT)
    target = entries.find(store, op.new_parent, op.new_name)
    exchange = op.flags == RENAME_EXCHANGE
    if target is not None and op.flags == RENAME_NOREPLACE:
        raise FileSystemError(errno.EEXIST)
    if target is None and exchange:
        raise FileSystemError(errno.ENOENT)
    if not same and _DIRECTORY in (source[1], target[1] if target is not None else 0):
        _refuse_loops(scope, op, source[0], target[0] if target is not None else 0, exchange)
    if target is not None and source[0] == target[0]:
        return source[0], 0  # POSIX: two names of one file, nothing is done and both stay

    moved = scope.inode(source[0])
    replaced = scope.inode(target[0]) if target is not None else None
    _check(op, old_dir, new_dir, moved, replaced, exchange)
    if not same or target is not None:
        # Within one directory, too: in a place that is counted already may be put what is not (QUOTA_WORK).
        back = ((target[0], replaced, old_dir),) if exchange and target is not None and replaced is not None else ()
        quota.renamed(scope, ((source[0], moved, new_dir), *back))

    moved.ctime_ns = old_dir.mtime_ns = old_dir.ctime_ns = new_dir.mtime_ns = new_dir.ctime_ns = scope.now
    if exchange:
        assert target is not None and replaced is not None, "checked above"
        _exchange(scope, op, source, target, moved, replaced)
        if moved.is_dir != replaced.is_dir:
            # One directory changes places with a file: its ".." now counts at the other parent.
            down, up = (old_dir, new_dir) if moved.is_dir else (new_dir, old_dir)
            down.nlink -= 1
            up.nlink += 1
    else:
        _move(scope, op, source, target, moved, old_dir, new_dir)
        if replaced is not None and target is not None:
            if replaced.is_dir:
                new_dir.nlink -= 1
                entries.erase(scope, target[0], replaced)
            else:
                entries.drop_link(scope, target[0], replaced)
    scope.put(op.parent, old_dir)
    if not same:
        scope.put(op.new_parent, new_dir)
    return source[0], target[0] if target is not None else 0


def _check(op: Rename, old_dir: Inode, new_dir: Inode, moved: Inode, replaced: Inode | None, exchange: bool) -> None:
    """Permissions and types."""
    need_removal(old_dir, moved, op.cred)
    if replaced is None:
        need(new_dir, op.cred, W | X)
    else:
        need_removal(new_dir, replaced, op.cred)
        if not exchange:
            if moved.is_dir and not replaced.is_dir:
                raise FileSystemError(errno.ENOTDIR)
            if not moved.is_dir and replaced.is_dir:
                raise FileSystemError(errno.EISDIR)
    if op.parent != op.new_parent:
        # A directory that gets another "..": that is a write to the directory itself.
        if moved.is_dir:
            need(moved, op.cred, W)
        if exchange and replaced is not None and replaced.is_dir:
            need(replaced, op.cred, W)
    if replaced is not None and not exchange and replaced.entries:
        raise FileSystemError(errno.ENOTEMPTY)


def _refuse_loops(scope: Scope, op: Rename, source: int, target: int, exchange: bool) -> None:
    """Raise when one of the two is above the other's new place: EINVAL (ENOTEMPTY: the target holds the source)."""
    if _is_above(scope, source, op.new_parent):
        raise FileSystemError(errno.EINVAL)
    if target and _is_above(scope, target, op.parent):
        raise FileSystemError(errno.EINVAL if exchange else errno.ENOTEMPTY)


def _is_above(scope: Scope, ino: int, directory: int) -> bool:
    """Whether *ino* is *directory* or above it."""
    while directory != ino:
        inode = scope.inode(directory)
        if inode.parent == directory:
            return False  # the root
        directory = inode.parent
    return True


def _move(
    scope: Scope,
    op: Rename,
    source: entries.Entry,
    target: entries.Entry | None,
    moved: Inode,
    old_dir: Inode,
    new_dir: Inode,
) -> None:
    store = scope.store
    ino, kind, cookie = source
    entries.remove(store, op.parent, op.name, cookie)
    old_dir.entries -= 1
    if target is not None:
        cookie = target[2]
    else:
        new_dir.entries += 1
        if new_dir is not old_dir:
            cookie = scope.fresh
    entries.put(store, op.new_parent, op.new_name, ino, kind, cookie)
    if moved.is_dir and new_dir is not old_dir:
        old_dir.nlink -= 1
        new_dir.nlink += 1
        moved.parent = op.new_parent
    scope.put(ino, moved)


def _exchange(
    scope: Scope, op: Rename, source: entries.Entry, target: entries.Entry, moved: Inode, other: Inode
) -> None:
    """Each name keeps its place in the listing and stands for the other inode."""
    entries.put(scope.store, op.parent, op.name, target[0], target[1], source[2])
    entries.put(scope.store, op.new_parent, op.new_name, source[0], source[1], target[2])
    other.ctime_ns = scope.now
    if moved.is_dir:
        moved.parent = op.new_parent
    if other.is_dir:
        other.parent = op.parent
    scope.put(source[0], moved)
    scope.put(target[0], other)

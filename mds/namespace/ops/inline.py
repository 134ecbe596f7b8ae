"""Pure. WriteInline, GrowOut, GrownOut: the bytes of small files in the metadata, and their way to objects.

WriteInline is write(2) and close(2) of such a file in one: bytes, size and times. Its bytes are put into what is there,
so two writers of one file spoil nothing for each other. The other two move the bytes; no time moves with them, since
nothing that an application sees has changed.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any, Final

from mds import schema
from mds.namespace import inline
from mds.namespace.inode import Inode
from mds.namespace.ops import commit
from mds.namespace.scope import Scope
from wire.codec import pack
from wire.errors import FileSystemError, Status
from wire.inline import GrownOut, GrowOut, WriteInline


def write(scope: Scope, op: WriteInline) -> Any:
    inode = commit.file(scope, op.ino)
    if op.end > inode.inline:
        raise FileSystemError(Status.STALE_LAYOUT)
    inline.write(scope, op.ino, inode, op.pieces)
    commit.written(scope, op.ino, inode, op.end, op.mtime_ns, op.privileged)
    return inode.attr(op.ino)


def grow_out(scope: Scope, op: GrowOut) -> Any:
    inode = commit.file(scope, op.ino)
    if not inode.inline:
        return 0, inode.attr(op.ino)
    if inode.layout is None:  # made while there was no storage target
        inode.layout = scope.storage.layout(op.ino)
        if inode.layout is None:
            raise FileSystemError(errno.ENOSPC)
    old = inline.contents(scope.store, op.ino)
    inline.cancel(scope, inode, old)
    number = scope.fresh if old.data else 0
    if number:
        scope.store.put(schema.INLINE, schema.u64(op.ino), pack(old._replace(growing=number)))
    else:
        _become(scope, op.ino, inode, 0)
    scope.put(op.ino, inode)
    return number, inode.attr(op.ino)


def grown_out(scope: Scope, op: GrownOut) -> Any:
    inode = commit.file(scope, op.ino)
    if not inode.inline or inline.contents(scope.store, op.ino).growing != op.number:
        raise FileSystemError(Status.STALE_LAYOUT)
    _become(scope, op.ino, inode, op.number)
    scope.put(op.ino, inode)
    return inode.attr(op.ino)


def _become(scope: Scope, ino: int, inode: Inode, number: int) -> None:
    """From now on the contents are in the objects of *number* (0: those of the inode's own number)."""
    inline.remove(scope, ino)
    inode.inline = 0
    inode.objects = number


APPLY: Final[dict[type, Callable[[Scope, Any], Any]]] = {WriteInline: write, GrowOut: grow_out, GrownOut: grown_out}

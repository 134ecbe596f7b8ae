"""Pure. What is told of quotas and usage (:mod:`mds.namespace.quota`), and how what lies below a directory is added up.

What is counted in a quota is changed by requests anywhere below its root, which touch their own directory and no more.
So a query that tells such a sum waits for everything pending (:data:`mds.pending.ANYTHING`): whatever has been answered
anywhere is counted. Only how much room a mount may count on is told at once: others may take it anyway.
"""

from __future__ import annotations

import errno
import json
from typing import TYPE_CHECKING, Any

from mds import schema
from mds.namespace import quota
from mds.namespace.inode import Inode, decode
from mds.namespace.perm import R, X, need
from mds.pending import ANYTHING
from wire import quotaops
from wire.errors import FileSystemError

if TYPE_CHECKING:
    from mds.namespace.queries import Handles
    from mds.namespace.scope import Scope

TALLY_ENTRIES = 2048
"""Entries in one page of Tally: what a replica reads in one go, some milliseconds."""


def attribute(scope: Scope, ino: int, inode: Inode, name: bytes, read: list[int]) -> bytes:
    """``lockstep.quota`` and ``lockstep.usage`` of an inode. ENODATA for the first of what is no quota root."""
    if name == quota.ATTRIBUTE:
        if inode.quota != ino:
            raise FileSystemError(errno.ENODATA)
        return quota.known(scope.store, ino).text()
    read.append(ANYTHING)
    found = [quota.told(scope, root, record) for root, record in quota.chain(scope.store, inode.quota)]
    for one in found:
        one["path"] = one["path"].decode("utf-8", "surrogateescape")
    return json.dumps(found).encode()


def room(scope: Scope, op: quotaops.QuotaRoom, handles: Handles, read: list[int]) -> int | None:
    return quota.room(scope, op.root)


def list_(scope: Scope, op: quotaops.QuotaList, handles: Handles, read: list[int]) -> Any:
    if op.cred.uid != 0:
        raise FileSystemError(errno.EPERM)
    read.append(ANYTHING)
    found: list[Any] = []
    for key, _value in scope.store.scan(schema.QUOTAS, schema.u64(op.after + 1), None):
        if len(found) == quotaops.LIST_MAX:
            return found, False
        root = int.from_bytes(key, "big")
        found.append(quota.told(scope, root, quota.known(scope.store, root)))
    return found, True


def tally(scope: Scope, op: quotaops.Tally, handles: Handles, read: list[int]) -> Any:
    """A page of a directory, added up. Permission as for listing it and passing through it."""
    read.append(op.ino)
    inode = scope.inode(op.ino)
    if not inode.is_dir:
        raise FileSystemError(errno.ENOTDIR)
    store = scope.store
    exact = not quota.counting(store)
    if inode.quota == op.ino and exact:
        read.append(ANYTHING)
        record = quota.known(store, op.ino)
        files = record.inodes_used - record.directories
        return record.bytes_used, files, record.directories - 1, (), (), op.cookie, True
    need(inode, op.cred, R | X)
    size = files = directories = 0
    below: list[int] = []
    linked: list[tuple[int, int]] = []
    cookie = op.cookie
    prefix = schema.u64(op.ino)
    page = store.scan(schema.COOKIES, prefix + schema.u64(op.cookie + 1), schema.after(prefix))
    for looked, (key, named) in enumerate(page):
        if looked == TALLY_ENTRIES:
            return size, files, directories, below, linked, cookie, False
        cookie = int.from_bytes(key[8:], "big")
        record_of = store.get(schema.INODES, named[:8])
        assert record_of is not None, "an entry names an inode"
        ino, child = int.from_bytes(named[:8], "big"), decode(record_of)
        read.append(ino)
        if child.is_dir and child.quota == ino and exact:
            read.append(ANYTHING)
            record = quota.known(store, ino)
            size += record.bytes_used
            files += record.inodes_used - record.directories
            directories += record.directories
        elif child.is_dir:
            directories += 1
            below.append(ino)
        elif child.nlink > 1:
            linked.append((ino, child.size if child.is_file else 0))
        else:
            files += 1
            size += child.size if child.is_file else 0
    return size, files, directories, below, linked, cookie, True

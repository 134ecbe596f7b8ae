"""Pure. Mkdir: a new directory.

mkdir(2). Of the mode only permission and sticky bits count; set-gid comes from the parent (Linux). There is no EMLINK
for subdirectories: see :meth:`mds.namespace.inode.Inode.attr`.
"""

from __future__ import annotations

from typing import Any

from mds import schema
from mds.namespace import entries, layout
from mds.namespace.inode import DIRECTORY_SIZE, S_IFDIR
from mds.namespace.scope import Scope
from wire.ops import Mkdir


def apply(scope: Scope, op: Mkdir) -> Any:
    ino, inode, above = entries.make(scope, op.cred, op.parent, op.name, S_IFDIR | op.mode & 0o1777)
    inode.nlink = 2
    inode.size = DIRECTORY_SIZE
    inode.parent = op.parent
    above.nlink += 1  # its ".."
    policy = layout.of_directory(scope.store, op.parent, above)
    if policy is not None:
        scope.store.put(schema.XATTRS, schema.xattr_key(ino, layout.ATTRIBUTE), policy)
        inode.xattrs += 1
    scope.put(ino, inode)
    scope.put(op.parent, above)
    return inode.attr(ino)

"""Pure. Create: a new regular file, opened by whoever asked.

open(2) with O_CREAT. EEXIST when the name is there; without O_EXCL the client then opens what is there, so that a lost
race for the name ends as POSIX wants it. The answer counts a handle (``opened``), also when it is given again.
"""

from __future__ import annotations

from typing import Any

from mds.namespace import entries, layout
from mds.namespace.inode import S_IFREG
from mds.namespace.scope import Scope
from wire.ops import Create


def apply(scope: Scope, op: Create) -> Any:
    ino, inode, above = entries.make(scope, op.cred, op.parent, op.name, S_IFREG | op.mode & 0o7777)
    layout.give(scope.store, scope.storage, ino, inode, op.parent, above)
    scope.put(ino, inode)
    scope.put(op.parent, above)
    scope.opened = ino
    return inode.attr(ino)

"""Pure. Accessed: atime of files that a mount has read from, in arrears.

Whether a read moves atime at all is the mount's to decide (relatime, noatime: it knows the attributes the reader saw).
atime is no later than the state's time, and only goes on. A time that is not after the inode's last change says
nothing: since then somebody may have set atime to another value, and to relatime it is as good as none.

ctime stays: reading changes nothing.
"""

from __future__ import annotations

from typing import Any

from mds.namespace.scope import Scope
from wire.ops import Accessed


def apply(scope: Scope, op: Accessed) -> Any:
    for ino, time_ns in op.files:
        inode = scope.find(ino)
        if inode is None or not inode.is_file:
            continue
        time_ns = min(time_ns, scope.now)
        if time_ns > max(inode.ctime_ns, inode.atime_ns):
            inode.atime_ns = time_ns
            scope.put(ino, inode)
    return None

"""Pure. Which function carries out which operation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from mds.namespace import quota
from mds.namespace.ops import (
    accessed,
    commit,
    create,
    delegation,
    denied,
    keys,
    link,
    mend,
    mkdir,
    mknod,
    orphans,
    reclaim,
    removexattr,
    rename,
    reserve,
    rmdir,
    settle,
    symlink,
    targets,
    unlink,
)
from mds.namespace.ops import inline as inline_ops
from mds.namespace.ops import roster as roster_ops
from mds.namespace.ops import sessions as session_ops
from mds.namespace.ops import setattr as setattr_op
from mds.namespace.ops import setxattr as setxattr_op
from mds.namespace.scope import Scope
from wire import ops, quotaops, targetops
from wire.fileops import Denied, Reserve
from wire.mending import Mend
from wire.roster import ReplicaRemove, ReplicaSet, WitnessRemove, WitnessSet

APPLY: Final[dict[type, Callable[[Scope, Any], Any]]] = {
    ops.Create: create.apply,
    ops.Mkdir: mkdir.apply,
    ops.Mknod: mknod.apply,
    ops.Symlink: symlink.apply,
    ops.Link: link.apply,
    ops.Unlink: unlink.apply,
    ops.Rmdir: rmdir.apply,
    ops.Rename: rename.apply,
    ops.SetAttr: setattr_op.apply,
    ops.SetXattr: setxattr_op.apply,
    ops.RemoveXattr: removexattr.apply,
    ops.Commit: commit.apply,
    ops.Settle: settle.apply,
    ops.Accessed: accessed.apply,
    **inline_ops.APPLY,
    **delegation.APPLY,
    Reserve: reserve.apply,
    Denied: denied.apply,
}
"""What clients ask, in a slot of their session."""

APPLY_INTERNAL: Final[dict[type, Callable[[Scope, Any], Any]]] = {
    ops.SessionOpen: session_ops.open_session,
    ops.SessionAttach: session_ops.attach,
    ops.SessionClose: session_ops.close,
    ops.SessionExpire: session_ops.expire,
    ops.OrphanAnswer: orphans.apply,
    ops.TargetSet: targets.set_,
    targetops.TargetUp: targets.up,
    targetops.TargetDown: targets.down,
    targetops.ChainSynced: targets.synced,
    targetops.ChainMove: targets.move,
    targetops.ChainLeave: targets.leave,
    targetops.TargetDrain: targets.drain,
    targetops.TargetRemove: targets.remove,
    targetops.TargetReplace: targets.replace,
    ops.ReclaimDone: reclaim.apply,
    quotaops.QuotaWork: lambda scope, op: quota.work(scope),
    targetops.KeyRotate: keys.apply,
    targetops.TargetSpace: targets.space,
    ReplicaSet: roster_ops.set_replica,
    ReplicaRemove: roster_ops.remove_replica,
    WitnessSet: roster_ops.set_witness,
    WitnessRemove: roster_ops.remove_witness,
    Mend: mend.apply,
    **delegation.APPLY_INTERNAL,
}
"""What replicas ask for themselves (session 0); from a client's session they are refused."""

APPLY_ALL: Final = {**APPLY, **APPLY_INTERNAL}

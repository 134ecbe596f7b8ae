"""Pure. Which inodes a request may change, as far as the request alone says."""

from __future__ import annotations

import typing
from collections.abc import Callable
from typing import Any, Final

from mds.namespace.queries import STORAGE_MAP
from wire import ops, quotaops, targetops
from wire.fileops import Reserve
from wire.inline import InlineRequest
from wire.roster import RosterRequest

_STORAGE: Final = (
    ops.TargetSet, targetops.TargetUp, targetops.TargetDown, targetops.TargetDrain, targetops.TargetRemove,
    targetops.TargetReplace, targetops.ChainSynced, targetops.ChainMove, targetops.ChainLeave,
)  # fmt: skip
"""Requests that change the storage map."""
_NOTHING: Final[frozenset[int]] = frozenset()


def _parent(op: Any) -> frozenset[int]:
    return frozenset((op.parent,))


def _inode(op: Any) -> frozenset[int]:
    return frozenset((op.ino,))


def _nothing(op: Any) -> frozenset[int]:
    return _NOTHING


def _storage(op: Any) -> frozenset[int]:
    return frozenset((STORAGE_MAP,))


TOUCHES: Final[dict[type, Callable[[Any], frozenset[int]]]] = {
    **dict.fromkeys((ops.Create, ops.Mkdir, ops.Mknod, ops.Symlink), _parent),
    **dict.fromkeys(typing.get_args(InlineRequest), _inode),
    **dict.fromkeys((ops.SetAttr, ops.Commit, ops.Settle, ops.SetXattr, ops.RemoveXattr, Reserve), _inode),
    **dict.fromkeys(
        (
            ops.SessionOpen, ops.SessionAttach, ops.SessionClose, ops.SessionExpire, ops.ReclaimDone,
            targetops.KeyRotate, targetops.TargetSpace,
        ),
        _nothing,
    ),
    **dict.fromkeys((*typing.get_args(RosterRequest), quotaops.QuotaWork), _nothing),
    ops.Link: lambda op: frozenset((op.ino, op.parent)),
    ops.Accessed: lambda op: frozenset(ino for ino, _time in op.files),
    ops.OrphanAnswer: lambda op: frozenset(op.released + op.pinned),
    **dict.fromkeys(_STORAGE, _storage),
}
"""See :meth:`StateMachine.touched`. Where an inode is counted (QuotaWork) is but a hint to caches."""

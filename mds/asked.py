"""What clients and administrators may ask of a replica, and as whom they count."""

from __future__ import annotations

import errno
import logging
import typing
from typing import Any, Final

from mds.rights import Rights
from mds.shell import Client
from wire import messages as msg
from wire import ops, targetops
from wire.codec import decode, encode
from wire.delegation import Delegate, DelegationRequest
from wire.errors import WireError
from wire.fileops import Denied, Reserve
from wire.inline import InlineRequest
from wire.mending import Mend
from wire.roster import RosterRequest

log = logging.getLogger(__name__)

_OF_CLIENTS: Final = (
    ops.Create, ops.Mkdir, ops.Mknod, ops.Symlink, ops.Link, ops.Unlink, ops.Rmdir, ops.Rename, ops.SetAttr,
    ops.SetXattr, ops.RemoveXattr, ops.Commit, ops.Settle, ops.Accessed, Reserve, *typing.get_args(InlineRequest),
    *typing.get_args(DelegationRequest),
)  # fmt: skip
_OF_ADMINISTRATORS: Final = (
    ops.TargetSet, *typing.get_args(RosterRequest), *typing.get_args(targetops.AdminRequest), Mend,
)  # fmt: skip


def request_untrusted(client: Client, m: msg.RequestCall, rights: Rights, now_us: int) -> tuple[Any, bytes] | None:
    """The operation that *client* asks for and its encoding, as it is to be ordered: with the credentials that count
    (see mds.exports), and denied when it has no right to it (see mds.rights). None for what is no request of a client.
    """
    try:
        op = decode(m.op)
    except WireError as exc:
        log.warning("%s: request %d.%d.%d refused: %s", client.name, m.session, m.slot, m.number, exc)
        return None
    if not isinstance(op, _OF_CLIENTS):
        return None
    counts = rights.asked(client, op, m.capability, now_us)
    if client.squash is not None:
        # Who it counts as is not known to the client, so it cannot tell what a file that it makes will be.
        counts = Denied(errno.EPERM) if isinstance(op, Delegate) else client.squash.applied(counts)
    return counts, m.op if counts is op else encode(counts)


def admin_untrusted(client: Client, data: bytes) -> Any:
    """The operation that an administrator asks for; None for what is none of his."""
    try:
        op = decode(data)
    except WireError as exc:
        log.warning("%s: admin request refused: %s", client.name, exc)
        return None
    return op if isinstance(op, _OF_ADMINISTRATORS) else None

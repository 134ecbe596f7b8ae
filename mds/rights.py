"""What a client has to show for what it asks about the data of a file: the capability that came with open(2).

Such an operation carries no credentials: who asks was checked when the file was opened, and its mode may be another one
by now. The replica that it comes to checks the capability before anything is ordered. What is not allowed is ordered
as :class:`wire.fileops.Denied`, and changes nothing but its slot.

A listing is opened without the service (opendir(3) asks for permission, no more), so the capability for the rest of it
comes with its first page.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Any, Final

from mds.capabilities import Signer
from mds.shell import Client
from wire import ops
from wire.capability import READ, TRUNCATE, WRITE
from wire.errors import OK, Status
from wire.fileops import Denied, Reserve
from wire.inline import GrownOut, GrowOut, ReadInline, WriteInline

log = logging.getLogger(__name__)

NEEDED: Final[dict[type, int]] = {
    ops.Commit: WRITE,
    WriteInline: WRITE,
    Reserve: WRITE,
    GrowOut: WRITE,
    GrownOut: WRITE,
    ops.Settle: TRUNCATE | WRITE,
    # Who may write a small file may have to move its bytes to objects, and so must be told them.
    ReadInline: READ | WRITE,
}
"""Of these rights one."""
_ROOT: Final = ops.Cred(0, 0, ())

TOLD_EVERY_US: Final = 1_000_000
"""Refusals of one client are logged this often at most, with how many there were."""


class Rights:
    """See the module."""

    def __init__(self, signer: Signer) -> None:
        self._signer = signer
        self.refused = 0
        """Requests and queries, for what was shown with them."""

    def asked(self, client: Client, op: Any, token: bytes, now_us: int) -> Any:
        """The request *op* as it is to be ordered for *client*, who shows *token*. *now_us*: any clock."""
        if type(op) in NEEDED:
            status = self.judge(client, op, token, now_us)
            return op if status == OK else Denied(status)
        if isinstance(op, ops.SetAttr) and op.handle:
            return self._through_descriptor(client, op, token, now_us)
        return op

    def _through_descriptor(self, client: Client, op: ops.SetAttr, token: bytes, now_us: int) -> ops.SetAttr | Denied:
        """That it comes through a descriptor open for writing counts if it is shown; else it is by name, and its
        credentials decide. fchmod(2) may well come through one that is open for reading."""
        if op.valid & ops.SET_SIZE:
            status = self.judge(client, op, token, now_us)
            if status == Status.CAPABILITY_EXPIRED:
                return Denied(status)  # it is renewed, and shown again
            good = status == OK
        else:
            good = self._signer.judge(client.uuid, client.session, token, op.ino, WRITE)[0] == OK
        return op if good else dataclasses.replace(op, handle=False)

    def listing(self, client: Client, op: ops.ReadDir, token: bytes) -> ops.ReadDir:
        """A page of a listing, as if root asked where the capability for it is shown; else its credentials decide."""
        good = self._signer.judge(client.uuid, client.session, token, op.ino, READ)[0] == OK
        return dataclasses.replace(op, cred=_ROOT) if good else op

    def judge(self, client: Client, op: Any, token: bytes, now_us: int) -> int:
        """OK when *token* is good for *op* (of NEEDED, or a truncation), else what *client* is told; logged, now and
        then."""
        needed = NEEDED.get(type(op), TRUNCATE | WRITE)
        status, why = self._signer.judge(client.uuid, client.session, token, op.ino, needed)
        if status != OK:
            self.refused += 1
            client.refused += 1
            if client.told_us is None or now_us - client.told_us >= TOLD_EVERY_US:
                log.warning(
                    "%s: %d refused for the capability shown; %s of inode %d: %s",
                    client.name, client.refused, type(op).__name__, op.ino, why,
                )  # fmt: skip
                client.told_us, client.refused = now_us, 0
        return status

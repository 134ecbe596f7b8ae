"""Pure. A request and a query about the data of one file: room to append, and another capability. See wire.ops.

And what is ordered in place of a request that its client has no right to.
"""

from __future__ import annotations

import errno

from wire import ids
from wire.capability import READ, SIZE_MAX, TRUNCATE, WRITE
from wire.codec import message
from wire.errors import Status
from wire.ops import Cred, bad_ino


@message(71)
class Reserve:
    """Room for *length* bytes at the end of *ino*, for one write with O_APPEND. Result: (offset, attr).

    At *offset* the bytes belong: behind the file, all room given before, and *end* (what this client has written and
    not committed). Nobody else is given the same room. The file grows when a Commit says so; a client that dies before
    it has written leaves zeros as soon as somebody else has appended behind them.
    """

    ino: int
    length: int
    end: int

    def invalid(self) -> str | None:
        if not 0 < self.length <= ids.FILE_SIZE_MAX or not 0 <= self.end <= ids.FILE_SIZE_MAX:
            return f"{self.length} bytes behind {self.end}"
        return bad_ino(self.ino)


@message(74)
class Denied:
    """By a replica, in place of a client's request and in its slot: the client may not ask that. Result: *status*.

    Ordered, and not just answered: the request may be in history already, by another replica that was shown something
    better, and then its recorded answer is the answer. EACCES, EPERM; CAPABILITY_EXPIRED: with another one it may.
    """

    status: int

    def invalid(self) -> str | None:
        good = self.status in (errno.EACCES, errno.EPERM, Status.CAPABILITY_EXPIRED)
        return None if good else f"denied with status {self.status}"


@message(95)
class Renew:
    """A new capability for file *ino*, with the rights that *old*, perhaps expired, was given in this session.

    As long as the session has the file open: what was allowed at open(2) stays allowed. Result: attr.
    Without *old*: for *rights*, which *cred* must have now.
    """

    cred: Cred
    ino: int
    rights: int
    old: bytes

    def invalid(self) -> str | None:
        if not 0 < self.rights <= READ | WRITE | TRUNCATE:
            return f"rights {self.rights}"
        return bad_ino(self.ino) or (None if len(self.old) <= SIZE_MAX else "old")

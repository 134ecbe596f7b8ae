"""Pure. One table of outcomes: what a service answers, and the errno an application sees.

A status of 0 is success and 1..4095 is a POSIX errno, passed through as it is.  Statuses from
:data:`SERVICE_BASE` on are the service's own: they tell the client library what to do next and
never reach an application without being translated by :func:`to_errno`.
"""

from __future__ import annotations

import errno
from enum import IntEnum
from typing import Final

SERVICE_BASE: Final = 10_000
OK: Final = 0


class Status(IntEnum):
    """The service's own outcomes (numbers above every errno)."""

    NOT_SERVING = 10_001
    """This replica is in no active view or is leaving: ask another, or again later."""
    SESSION_UNKNOWN = 10_002
    """No such session (closed or expired): its requests are refused for good."""
    STALE_NUMBER = 10_003
    """The slot has already executed a later request; this one is an old duplicate."""
    NOT_ATTACHED = 10_004
    """The session is attached elsewhere by now: attach here first."""
    OVERLOADED = 10_005
    """A bounded queue is full: nothing was done, send again after a pause."""
    STALE_CHAIN = 10_006
    """The chain has another version by now: fetch the chain table and ask again."""
    TRUNCATIONS_UNSETTLED = 10_007
    """Too many truncations of this file wait to be settled on its storage targets: trim, settle, retry."""
    BAD_MESSAGE = 10_008
    """The message was understood as a frame but its contents are not valid (see the log)."""
    CORRUPT = 10_009
    """Stored data failed its checksum."""
    OUT_OF_STEP = 10_010
    """Between targets: the copy here is not what the change was made for; send me what I lack first."""
    CAPABILITY_EXPIRED = 10_011
    """The capability is no longer good, or signed with a key that is not known here: renew it and ask again."""
    STALE_LAYOUT = 10_012
    """The file's bytes are not where the request takes them to be (any more): fetch its attributes and begin again."""
    STALE_PLAN = 10_013
    """Between replicas: what a request was planned on is not so any more; it is planned again. No client sees it."""
    DELEGATED = 10_014
    """Between replicas: a directory that the request touches is delegated to another session; it is tried again when
    that has given it back. No client sees it."""


class WireError(Exception):
    """A peer sent bytes that are not our protocol; the text names what and where."""


class BadMessage(WireError):
    """One message in a well-formed frame is not acceptable; what follows it may be.

    ``call`` is its call number, so that it can be answered with BAD_MESSAGE, or None when it carries none.
    """

    def __init__(self, what: str, call: int | None) -> None:
        super().__init__(what)
        self.call = call


class FileSystemError(Exception):
    """An operation was answered with a status other than 0.

    ``status`` is an errno or a :class:`Status`.
    """

    def __init__(self, status: int, what: str = "") -> None:
        super().__init__(status, what)
        self.status = status
        self.what = what

    def __str__(self) -> str:
        return f"{describe(self.status)}{': ' + self.what if self.what else ''}"


_TO_ERRNO: Final = {
    Status.NOT_SERVING: errno.EAGAIN,
    Status.SESSION_UNKNOWN: errno.ESTALE,
    Status.STALE_NUMBER: errno.EIO,
    Status.NOT_ATTACHED: errno.ESTALE,
    Status.OVERLOADED: errno.EAGAIN,
    Status.STALE_CHAIN: errno.ESTALE,
    Status.TRUNCATIONS_UNSETTLED: errno.EAGAIN,
    Status.BAD_MESSAGE: errno.EPROTO,
    Status.CORRUPT: errno.EIO,
    Status.OUT_OF_STEP: errno.EIO,
    Status.STALE_LAYOUT: errno.EAGAIN,
    Status.CAPABILITY_EXPIRED: errno.EACCES,
    Status.STALE_PLAN: errno.EIO,
    Status.DELEGATED: errno.EIO,
}
assert set(_TO_ERRNO) == set(Status), "every service status has its errno"


def to_errno(status: int) -> int:
    """The errno an application sees for *status* (a number other than 0)."""
    assert status != OK, "success has no errno"
    if status < SERVICE_BASE:
        return status
    return _TO_ERRNO[Status(status)]


def describe(status: int) -> str:
    """A short name for logs: ``ENOENT``, ``NOT_SERVING``, ``OK``."""
    if status == OK:
        return "OK"
    if status < SERVICE_BASE:
        return errno.errorcode.get(status, f"errno {status}")
    try:
        return Status(status).name
    except ValueError:
        return f"status {status}"

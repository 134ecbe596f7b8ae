"""Pure. What is asked and ordered about quotas and usage beside extended attributes. See mds.namespace.quota."""

from __future__ import annotations

from typing import Final

from wire.codec import message
from wire.ops import Cred, bad_ino

LIST_MAX: Final = 256
"""Quota roots in one answer to QuotaList."""


@message(76)
class QuotaWork:
    """By one replica, while there is such work: count the next entries of a tree whose quota root has changed.

    Result: whether there is more to do.
    """

    def invalid(self) -> str | None:
        return None


@message(97)
class QuotaRoom:
    """How many bytes files in the quota of directory *root* may still grow by. Result: that, None when there is no
    limit. Not linearizable: what is asked now may be used by others before it is committed.
    """

    root: int

    def invalid(self) -> str | None:
        return bad_ino(self.root)


@message(98)
class Tally:
    """What lies directly in directory *ino* after *cookie*, a page of it; of a quota root: what lies below, at once.

    Result: ``(bytes, files, directories, (inode of each directory to go on with, ...), ((inode, size) of each file
    with several names, which are not among the bytes and files, ...), cookie, end)``.
    """

    cred: Cred
    ino: int
    cookie: int

    def invalid(self) -> str | None:
        return bad_ino(self.ino) or (None if 0 <= self.cookie < 2**63 else f"cookie {self.cookie}")


@message(99)
class QuotaList:
    """Quota roots with an inode number above *after*, at most LIST_MAX, for root alone (EPERM). Result: ``(items,
    end)``; an item is what mds.namespace.quota.told gives.
    """

    cred: Cred
    after: int

    def invalid(self) -> str | None:
        return None if 0 <= self.after < 2**63 else f"after {self.after}"


QuotaQuery = QuotaRoom | Tally | QuotaList

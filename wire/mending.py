"""Pure. What `lockstep fsck --repair` has ordered: one thing about the namespace put right. See :mod:`mds.mend`."""

from __future__ import annotations

from typing import Final

from wire import ids
from wire.codec import message

ENTRY: Final = "entry"
"""Name *name* of directory *parent* stands for inode *ino*, which is not there: the name goes."""
COOKIE: Final = "cookie"
"""Name *name* of directory *parent* is not listed under its cookie: it is."""
STRAY: Final = "stray"
"""Cookie *ino* of directory *parent* lists a name that is not there, or is listed elsewhere: it goes."""
LINKS: Final = "links"
"""The link count of inode *ino* is *was* and should be *now*."""
COUNT: Final = "count"
"""The number of entries of directory *ino* is *was* and should be *now*."""
TALLY: Final = "tally"
"""*was* inodes are counted, and *now* are there."""
NAMELESS: Final = "nameless"
"""Inode *ino* has link count *was* and no name: it gets one in /lost+found; without any link, it goes."""
OBJECTS: Final = "objects"
"""Objects of inode *ino* are there, in *chains*, and the inode is not: they are to be deleted."""
SUMS: Final = {"bytes": "bytes_used", "inodes": "inodes_used", "directories": "directories"}
"""Kinds, and the field of the record of quota root *ino* that is *was* and should be *now*."""
KINDS: Final = frozenset((ENTRY, COOKIE, STRAY, LINKS, COUNT, TALLY, NAMELESS, OBJECTS, *SUMS))


@message(78)
class Mend:
    """The admin tool has found something wrong. Void unless it is still so. Result: whether something was changed.

    Never sent a second time when the outcome is unknown: a count that is wrong by one stays so whatever clients do, but
    after it was put right the same number may be the true one. The tool looks again instead.
    """

    kind: str
    ino: int
    parent: int
    name: bytes
    was: int
    now: int
    chains: tuple[int, ...]
    """By column; as many as there are columns with an object."""

    def invalid(self) -> str | None:
        if self.kind not in KINDS:
            return f"kind {self.kind[:32]!r}"
        if not all(0 <= n < 2**63 for n in (self.ino, self.parent, self.was, self.now)):
            return "a number out of its range"
        if len(self.name) > ids.NAME_MAX or len(self.chains) > 64:
            return "name or chains"
        return None if all(type(c) is int and 0 < c < 2**32 for c in self.chains) else "a chain that is no number"

"""Pure. The inode: its record in INODES and its attributes on the wire."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import Any, Final

from wire import ids
from wire.codec import pack, unpack_untrusted

Layout = tuple[int, tuple[int, ...]]
"""(stripe size in bytes, one chain per column)."""

Acl = tuple[tuple[int, int, int], ...]
"""((tag, permissions, id), ...) of the entries that the mode does not hold."""

Truncations = tuple[tuple[int, int], ...]
"""((number, size), ...)."""

TRUNCATIONS_MAX: Final = 8
"""Unsettled truncations of one inode. They travel with every object request, so they are few."""
DIRECTORY_SIZE: Final = 4096
"""st_size of every directory, as a small one on ext4 has: there is no true figure, and programs dislike 0."""

S_IFMT: Final = 0o170000
S_IFDIR: Final = stat.S_IFDIR
S_IFREG: Final = stat.S_IFREG
S_IFLNK: Final = stat.S_IFLNK


@dataclass(slots=True)
class Inode:
    """One inode without its number. The order of fields is the record's (schema.INODES)."""

    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    layout: Layout | None
    truncations: tuple[tuple[int, int], ...]
    truncate_seq: int
    """The last truncation's number; goes on when truncations are settled."""
    xattrs: int
    """How many extended attributes it has."""
    parent: int
    """Of a directory: the one above (the root is its own); else 0."""
    entries: int
    """Of a directory: how many entries it has, without ``.`` and ``..``; else 0."""
    inline: int = 0
    """Of a file whose bytes are in the metadata (schema.INLINE): up to how many may be. 0: they are in objects."""
    objects: int = 0
    """The number its objects have; 0: the inode's own."""
    quota: int = 0
    """The quota root that it is counted in, 0: none (:mod:`mds.namespace.quota`). A root names itself."""
    acl: Acl = ()
    """Its extended access ACL, () when the mode says it all (:mod:`mds.namespace.acl`)."""

    def encode(self) -> bytes:
        return pack(
            (
                self.mode, self.nlink, self.uid, self.gid, self.rdev, self.size, self.atime_ns, self.mtime_ns,
                self.ctime_ns, self.layout, self.truncations, self.truncate_seq, self.xattrs, self.parent, self.entries,
                self.inline, self.objects, self.quota, self.acl,
            )
        )  # fmt: skip

    def attr(self, ino: int) -> tuple[Any, ...]:
        """What the wire calls attr (wire.ops.ATTR_FIELDS)."""
        nlink = self.nlink
        if nlink > ids.LINK_MAX and self.mode & S_IFMT == S_IFDIR:
            # More subdirectories than can be counted: 1 says "unknown" to those who use it to save stat calls
            # (find), as ext4's dir_nlink does. A hard-linked file never gets there (EMLINK).
            nlink = 1
        return (
            ino, self.mode, nlink, self.uid, self.gid, self.rdev, self.size, self.atime_ns, self.mtime_ns,
            self.ctime_ns, self.layout, self.truncations, self.inline, self.objects or ino, self.quota, self.acl != (),
        )  # fmt: skip

    @property
    def is_dir(self) -> bool:
        return self.mode & S_IFMT == S_IFDIR

    @property
    def is_file(self) -> bool:
        return self.mode & S_IFMT == S_IFREG


def decode(record: bytes) -> Inode:
    return Inode(*unpack_untrusted(record))

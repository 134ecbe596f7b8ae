"""Pure. An inode's attributes as the metadata service sends them (wire.ops.ATTR_FIELDS), with names."""

from __future__ import annotations

import stat
from typing import Any, NamedTuple

from wire.errors import WireError
from wire.ops import ATTR_FIELDS


class Attr(NamedTuple):
    """One inode's attributes; times in nanoseconds since the epoch."""

    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    layout: tuple[int, tuple[int, ...]] | None
    """(stripe size, chain of each column); None for what has no data."""
    truncations: tuple[tuple[int, int], ...]
    """((seq, size), ...) that targets may not have carried out yet, oldest first."""
    inline: int
    """Above 0: the bytes are in the metadata, up to so many (wire.inline)."""
    objects: int
    """The number of its objects, where the bytes are otherwise."""
    quota: int = 0
    """The directory whose quota it is counted in; 0: none."""
    acl: bool = False
    """It has an access control list: the mode alone does not tell who may do what."""

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_regular(self) -> bool:
        return stat.S_ISREG(self.mode)


assert Attr._fields == ATTR_FIELDS, "the wire and this module name the same fields in the same order"

_FIELDS = len(ATTR_FIELDS)


def attr_untrusted(value: Any) -> Attr:
    """The attributes in an answer's result. Raises :class:`wire.errors.WireError` when they are none."""
    if type(value) is not tuple or len(value) != _FIELDS:
        raise WireError(f"attributes are {type(value).__name__} of {len(value) if hasattr(value, '__len__') else '?'}")
    return Attr._make(value)

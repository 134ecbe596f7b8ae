"""One open object: its descriptors, what is known of it, and what is not on disk yet."""

from __future__ import annotations

import os
import struct
import threading
from typing import Final

from ossd import identity
from ossd.ledger import Ledger
from ossd.objects import SyncBook

Key = tuple[int, int]
"""(inode, column)"""
CHAIN_ATTR: Final = "user.lockstep.chain"
CHAIN: Final = struct.Struct("!I")


class ObjectFile:
    """One open object. ``users`` counts who holds it; it is closed when nobody does and the table has let it go."""

    __slots__ = (
        "attr_dirty", "book", "entry_dirty", "fd", "fresh", "gone", "key", "last", "ledger", "lock", "path", "size",
        "syncing", "users",
    )  # fmt: skip

    def __init__(
        self, key: Key, path: str, fd: int, size: int, last: int, entry_dirty: bool, ledger: Ledger
    ) -> None:
        self.key = key
        self.path = path
        self.fd = fd
        self.size = size
        self.ledger = ledger
        self.last = last
        """Number of the last truncation carried out."""
        self.book = SyncBook()
        self.lock = threading.Lock()
        """Guards ``book`` and ``attr_dirty``."""
        self.syncing = threading.Lock()
        """One sync of a descriptor at a time: the kernel reports a lost write to one of them only."""
        self.fresh = (0, 0)
        """[start, stop) that one write after the other has filled and the disk may know nothing of yet."""
        self.attr_dirty = False
        """There is something that fsync makes durable and fdatasync does not: a trim, or its number."""
        self.entry_dirty = entry_dirty
        self.users = 1
        self.gone = False

    def filled(self, start: int, stop: int) -> None:
        """A write has filled [start, stop). See ``fresh``: what does not go on where the last one ended begins anew."""
        self.size = max(self.size, stop)
        self.fresh = (self.fresh[0] if start == self.fresh[1] else start), stop

    @property
    def clean(self) -> bool:
        """Is everything about it on disk?"""
        return self.book.clean and not self.attr_dirty and not self.entry_dirty


def fanout_of(ino: int) -> int:
    """Inode numbers come in runs; Fibonacci hashing spreads them. Part of the format on disk."""
    return ((ino * 0x9E3779B97F4A7C15) & 0xFFFF_FFFF_FFFF_FFFF) >> 54


assert fanout_of(2**63 - 1) < identity.FANOUT


def file_name(key: Key) -> str:
    """The name of an object's file in its directory."""
    return f"{key[0]:016x}.{key[1]:04x}"


def key_of(name: str) -> Key | None:
    """The object whose file is called *name*; None for what somebody else has put there."""
    ino, _, column = name.partition(".")
    try:
        key = int(ino, 16), int(column, 16)
    except ValueError:
        return None
    return key if file_name(key) == name else None


def chain_of(file: int | str) -> int:
    """The chain that an object was made for; 0 when it does not say."""
    try:
        value = os.getxattr(file, CHAIN_ATTR)
    except OSError:
        return 0  # none, or the object is being deleted
    return int(CHAIN.unpack(value)[0]) if len(value) == CHAIN.size else 0

"""Pure. The identifiers that travel between processes, and the bounds on names and sizes."""

from __future__ import annotations

from typing import Final, NewType

ReplicaId = NewType("ReplicaId", int)
"""Number of a metadata replica or witness in its cluster: 1..255, never reused for another identity."""

TargetId = NewType("TargetId", int)
"""Number of a storage target: 1..65535."""

ChainId = NewType("ChainId", int)
"""Number of a chain (an ordered list of targets that hold equal copies)."""

Ino = NewType("Ino", int)
"""Inode number: 1..2**63-1, unique for the life of the cluster, never used twice."""

PROTOCOL_VERSION: Final = 1

ROOT_INO: Final = 1
NAME_MAX: Final = 255
"""Bytes in one file name (POSIX NAME_MAX as on ext4 and Lustre)."""
SYMLINK_MAX: Final = 4095
"""Bytes in the target of a symbolic link (PATH_MAX less the terminating NUL)."""
XATTR_NAME_MAX: Final = 255
XATTR_SIZE_MAX: Final = 65536
"""Bytes in one extended attribute's value (Linux's own limit)."""
LINK_MAX: Final = 65000
"""Hard links to one inode (ext4's limit)."""
FILE_SIZE_MAX: Final = 2**63 - 1
NGROUPS_MAX: Final = 65536

REPLICA_ID_MAX: Final = 255
TARGET_ID_MAX: Final = 65535
U64_MAX: Final = 2**64 - 1


def number_untrusted(text: str) -> int | None:
    """The number that *text* is, of at most ten ASCII digits; else None. (To str.isdigit ``²`` is a digit as well, and
    to int it is none.)"""
    return int(text) if len(text) <= 10 and text.isascii() and text.isdigit() else None


def bad_address(address: str) -> str | None:
    """Why *address* is not HOST:PORT, or None."""
    host, _, port = address.rpartition(":")
    if host and len(address) <= 300 and 0 < (number_untrusted(port) or 0) < 65536:
        return None
    return f"address {address[:64]!r} is not HOST:PORT"

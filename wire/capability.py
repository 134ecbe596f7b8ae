"""Pure. Capabilities: the metadata service's signed word that a client may use a file's objects (30-data).

A replica gives one with the answer to Open, Create and a truncation; the client shows it with every request to a
target, and the target checks it before it touches anything. It says which file, in which layout, for what, in which
session and until when, and is signed with a key that only replicas and targets know. The signature covers the uuid
that the client gives in its Hello, so nobody else can use it.

The client shows it to the service as well, with what it asks about the data of a file (mds.rights). One for a directory
is good for the rest of a listing, and at no target.

*Keys* are ordered state (mds.namespace.ops.keys): the next one, the current one, the one before, newest first. Targets
are told all three and accept them; replicas sign with the current one. So a target knows a key hours before it is
used, and rotating it invalidates nothing that has not expired anyway.

*Clocks.* A capability expires by the target's wall clock, and was dated by the replica's. DRIFT_US is what these may
be apart: a target accepts it that much longer. Clients use no wall clock: they renew half-way through its life, counted
from when they got it. Of one that is refused as expired all the same they ask for another.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from hmac import compare_digest
from typing import Final, NamedTuple

READ: Final = 1
WRITE: Final = 2
TRUNCATE: Final = 4
"""Cut objects off without writing. Who may write has this right, too."""
DELETE: Final = 8
"""The service's own right, for all files (inode 0)."""
RIGHTS: Final = READ | WRITE | TRUNCATE | DELETE
ALL_FILES: Final = 0

LIFETIME_US: Final = 600_000_000
"""Ten minutes: what a client whose session has expired can do to a file at the most. Its renewal is one query per file
and five minutes, and only for files that are open."""
DRIFT_US: Final = 60_000_000
ROTATE_US: Final = 12 * 3600 * 1_000_000
"""How often the keeper has a new key ordered."""
assert LIFETIME_US + 2 * DRIFT_US < ROTATE_US, "what was signed with a key has expired before targets forget the key"

KEY_BYTES: Final = 32
KEYS_MAX: Final = 3
MAC_BYTES: Final = 16
SIZE_MAX: Final = 512
"""Bytes of one: no file has more columns than make it this long."""

_HEAD: Final = struct.Struct(">4sBQQQQ")


class Capability(NamedTuple):
    """What is signed."""

    key: bytes
    """Which key: see :func:`key_id`."""
    rights: int
    ino: int
    """The number of the file's objects."""
    file: int
    """The inode, which may have objects of another number; 0: good for nothing but these objects."""
    session: int
    expires_us: int
    """Wall clock."""
    chains: tuple[int, ...]
    """The file's layout: the chain of each column. None for ALL_FILES, and for a file without a layout."""


def key_id(key: bytes) -> bytes:
    """Names *key* without telling it. Not a count: a forced view may have forgotten a rotation, and make another."""
    return blake2b(key, digest_size=4, person=b"lockstep key").digest()


def fingerprint(keys: Sequence[bytes]) -> bytes:
    """By what a target says which keys it knows; empty for none."""
    return blake2b(b"".join(keys), digest_size=8, person=b"lockstep keys").digest() if keys else b""


def signing_key(keys: Sequence[bytes]) -> bytes | None:
    """Of *keys*, newest first: the current one."""
    return keys[1] if len(keys) > 1 else keys[0] if keys else None


def bad_keys(keys: Sequence[object]) -> str | None:
    if len(keys) > KEYS_MAX:
        return f"{len(keys)} signing keys"
    return None if all(type(k) is bytes and len(k) == KEY_BYTES for k in keys) else "a signing key of another length"


def _mac(key: bytes, body: bytes, client: bytes) -> bytes:
    return blake2b(body + client, key=key, digest_size=MAC_BYTES, person=b"lockstep cap").digest()


def sign(
    key: bytes,
    client: bytes,
    rights: int,
    ino: int,
    session: int,
    expires_us: int,
    chains: tuple[int, ...],
    file: int = 0,
) -> bytes:
    """A capability for the client with uuid *client* (16 bytes, as in its Hello), signed with *key*."""
    body = _HEAD.pack(key_id(key), rights, ino, file, session, expires_us) + struct.pack(f">{len(chains)}I", *chains)
    return body + _mac(key, body, client)


def parse_untrusted(token: bytes) -> Capability | None:
    """What *token* says, whoever may have made it; None when it has not the form of a capability."""
    extra = len(token) - _HEAD.size - MAC_BYTES
    if extra < 0 or extra % 4 or len(token) > SIZE_MAX:
        return None
    key, rights, ino, file, session, expires_us = _HEAD.unpack_from(token)
    chains = struct.unpack_from(f">{extra // 4}I", token, _HEAD.size)
    return Capability(key, rights, ino, file, session, expires_us, chains)


def is_signed(token: bytes, cap: Capability, keys: Mapping[bytes, bytes], client: bytes) -> bool:
    """Whether *token*, which says *cap*, was signed for *client* with one of *keys* (by their ids)."""
    key = keys.get(cap.key)
    return key is not None and compare_digest(token[-MAC_BYTES:], _mac(key, token[:-MAC_BYTES], client))

"""Pure. The tables of a replica's state: the authoritative description of every key and value.

Integers in keys are big-endian and of fixed width, so that a prefix is a range. Values are msgpack arrays unless said
otherwise. What stands in these tables is the replicated state: byte for byte the same at every replica that has
applied the same history. ``SCHEMA_VERSION`` changes with any change here; a state directory of another version is not
read.

==============  ===========================  =====================================================================
table           key                          value
==============  ===========================  =====================================================================
META            ascii name                   see "META" below
INODES          ino u64                      :class:`mds.namespace.inode.Inode`, its fields in order
DIRENTS         parent u64, name             ``(ino, type, cookie)``; type is ``mode >> 12``
COOKIES         parent u64, cookie u64       ino u64, name (raw). Derived from DIRENTS: one for one
SYMLINKS        ino u64                      the target (raw). Exactly for inodes of type S_IFLNK
XATTRS          ino u64, name                the value (raw). ``Inode.xattrs`` counts them
ORPHANS         ino u64                      ``((replica, pinned), ...)`` ascending by replica, never empty
OWED            replica u8, ino u64          empty. Derived from ORPHANS: one per replica named there
RECLAIM         number u64                   ``(stripe_size, (chain, ...))``: objects of that number are to be deleted;
                                             a third field says not before when (ns), see mds.namespace.inline.cancel
SESSIONS        session u64                  ``(key, client, slots, replica, attempt)``
SESSION_KEYS    key (16 bytes)               session u64. Derived from SESSIONS: one for one
REPLIES         session u64, slot u16        ``(number, status, opened, body)`` of the slot's last request
TARGETS         target u16                   :class:`mds.namespace.layout.Target`, its fields in order
CHAINS          chain u32                    ``(version, ((target, state), ...), lost)``, see :mod:`wire.chains`;
                                             lost: its version in Losses there, 0: none
QUOTAS          quota root ino u64           :class:`mds.namespace.quota.Quota`, its fields in order
QUOTA_WORK      directory ino u64            cookie u64 (raw): entries up to it are counted where the directory is
ROSTER          voter u8                     ``(kind, address, by, time_ns)``; see :mod:`mds.namespace.roster`
TRIMS           ino u64                      ``(time_ns,)`` of the last truncation. Exactly for inodes that have some
APPENDS         ino u64                      ``(end,)`` of the room given to appending writes: above the inode's size
INLINE          ino u64                      :class:`mds.namespace.inline.Contents`, its fields in order
DELEGATIONS     directory ino u64            ``(session, recalled)``: who makes files there by itself; 1: wanted back
HOLDERS         session u64                  :class:`mds.namespace.delegations.Holder`, its fields in order: only
                                             of sessions that were delegated something
==============  ===========================  =====================================================================

META
    ``schema``    ``(SCHEMA_VERSION,)``, written when the environment is made
    ``applied``   ``(index, digest, time_ns, inodes, sessions)``: last applied index, sum of effects, the state's time,
                  and two counts derived from INODES and SESSIONS
    ``members``   ``(generation, epoch, (replica, ...))`` of the last view event
    ``storage``   ``(version, stripe_size, stripe_count, copies, inline)`` of the storage map, and of new files' layout
    ``roster``    ``(version,)``: how often the roster was changed
    ``waiting``   ``((index, entry number, time_ns, entry), ...)``: delivered up to the position and not executed; not
                  there when everything is
    ``numbers``   ``(offset,)``: added to an index before numbers are derived from it; only in a state that was loaded
                  from a dump, whose numbers are kept
    ``keys``      :class:`mds.namespace.ops.keys.Keys`, its fields in order: what capabilities are signed with.
                  Not there before the first rotation. Secret: whoever reads this can write any file's objects
    ``pause``     ``(time_ns,)``: until then nothing is delegated that is not. Not there before the first such pause
    ``position``  raw: what the replica stores with the effects to know from where to replay; not looked into

Invariants (:mod:`mds.check` tests them): every entry names an inode; an inode that is no directory is named by
exactly ``nlink`` entries, and is in ORPHANS if and only if that is 0; a directory is named once, by the entry that
its ``parent`` field leads to, and has ``nlink`` 2 + its subdirectories; cookies are unique for the life of the
cluster. What QUOTAS counts for a root is the sum over all inodes whose ``quota`` is that root or one below it; while
QUOTA_WORK is empty, a directory that is no root has the ``quota`` of its parent.
cluster. INLINE has only files with ``inline`` above 0, and of each at most so many bytes, and none beyond its size;
objects of a number are a file's, or in RECLAIM, or being written to (``growing`` in INLINE), and never two of these.
DELEGATIONS and HOLDERS name sessions that are there, DELEGATIONS directories that are counted in no quota.
"""

from __future__ import annotations

from typing import Final

from wire.codec import unpack_untrusted
from wire.delegation import NUMBERS

SCHEMA_VERSION: Final = 8


class Table:
    """One kind of record: ``number`` is its place in the store and in digests, ``name`` its LMDB database."""

    __slots__ = ("name", "number")

    def __init__(self, number: int, name: str) -> None:
        self.number = number
        self.name = name

    def __repr__(self) -> str:
        return f"<Table {self.name}>"


META: Final = Table(0, "meta")
INODES: Final = Table(1, "inodes")
DIRENTS: Final = Table(2, "dirents")
COOKIES: Final = Table(3, "cookies")
SYMLINKS: Final = Table(4, "symlinks")
XATTRS: Final = Table(5, "xattrs")
ORPHANS: Final = Table(6, "orphans")
OWED: Final = Table(7, "owed")
RECLAIM: Final = Table(8, "reclaim")
SESSIONS: Final = Table(9, "sessions")
SESSION_KEYS: Final = Table(10, "session_keys")
REPLIES: Final = Table(11, "replies")
TARGETS: Final = Table(12, "targets")
CHAINS: Final = Table(13, "chains")
ROSTER: Final = Table(14, "roster")
TRIMS: Final = Table(15, "trims")
APPENDS: Final = Table(16, "appends")
INLINE: Final = Table(17, "inline")
QUOTAS: Final = Table(18, "quotas")
QUOTA_WORK: Final = Table(19, "quota_work")
DELEGATIONS: Final = Table(20, "delegations")
HOLDERS: Final = Table(21, "holders")

TABLES: Final = (
    META, INODES, DIRENTS, COOKIES, SYMLINKS, XATTRS, ORPHANS, OWED, RECLAIM, SESSIONS, SESSION_KEYS, REPLIES, TARGETS,
    CHAINS, ROSTER, TRIMS, APPENDS, INLINE, QUOTAS, QUOTA_WORK, DELEGATIONS, HOLDERS,
)  # fmt: skip
assert [t.number for t in TABLES] == list(range(len(TABLES))), "a table's number is its place"

META_SCHEMA: Final = b"schema"
META_APPLIED: Final = b"applied"
META_MEMBERS: Final = b"members"
META_STORAGE: Final = b"storage"
META_ROSTER: Final = b"roster"
META_WAITING: Final = b"waiting"
META_KEYS: Final = b"keys"
META_PAUSE: Final = b"pause"
META_POSITION: Final = b"position"
META_NUMBERS: Final = b"numbers"

NUMBER_BITS: Final = 12
"""A number derived from the delivery index leaves this many bits for the entry within its batch."""
BATCH_ENTRIES_MAX: Final = 1024
"""Entries in one batch. Each gives a number to what it makes; what is left of an index is given out in blocks."""
NUMBER_FIRST: Final = 2
"""The first number of a batch is (index << NUMBER_BITS) + this: 1 is the root directory and 0 means none."""
BLOCKS: Final = ((1 << NUMBER_BITS) - BATCH_ENTRIES_MAX) // NUMBERS
"""The first entries of a batch, so many, have a block of numbers to give to a client (wire.delegation)."""


def number_at(index: int, entry: int) -> int:
    """The number that entry *entry* of the batch at *index* gives what it makes: an inode, a session, a cookie.

    Unique over the life of the cluster: those of a batch end at (i << 12) + 1025, and its blocks, see
    :func:`block_at`, at (i << 12) + 4097, one below the first number of the next.
    """
    return (index << NUMBER_BITS) + entry + NUMBER_FIRST


def block_at(index: int, entry: int) -> int:
    """The first of the NUMBERS numbers that entry *entry* of the batch at *index* may give out; 0: it has none."""
    if entry >= BLOCKS:
        return 0
    return (index << NUMBER_BITS) + BATCH_ENTRIES_MAX + NUMBER_FIRST + entry * NUMBERS


def numbers_from(raw: bytes | None) -> int:
    """The offset in META's record ``numbers``; 0 where there is none."""
    if raw is None:
        return 0
    (offset,) = unpack_untrusted(raw)
    assert type(offset) is int, "as it was written"
    return offset


def u64(number: int) -> bytes:
    """Key of the tables with inodes or sessions for keys; prefix of DIRENTS, COOKIES, XATTRS, REPLIES."""
    return number.to_bytes(8, "big")


def after(prefix: bytes) -> bytes:
    """The first key after all that begin with *prefix* (which ends in a fixed-width integer below its maximum)."""
    return (int.from_bytes(prefix, "big") + 1).to_bytes(len(prefix), "big")


def dirent_key(parent: int, name: bytes) -> bytes:
    return parent.to_bytes(8, "big") + name


def cookie_key(parent: int, cookie: int) -> bytes:
    return (parent << 64 | cookie).to_bytes(16, "big")


def xattr_key(ino: int, name: bytes) -> bytes:
    return ino.to_bytes(8, "big") + name


def owed_key(replica: int, ino: int) -> bytes:
    return (replica << 64 | ino).to_bytes(9, "big")


def reply_key(session: int, slot: int) -> bytes:
    return (session << 16 | slot).to_bytes(10, "big")


def target_key(target: int) -> bytes:
    return target.to_bytes(2, "big")


def voter_key(voter: int) -> bytes:
    return voter.to_bytes(1, "big")


def chain_key(chain: int) -> bytes:
    return chain.to_bytes(4, "big")

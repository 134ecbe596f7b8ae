"""Pure. The bytes of small files, in a table of their own (schema.INLINE) so that stat and listings stay small.

``Inode.inline`` says up to how many bytes of a file may be there: above 0 as long as they are. It falls to 0 once, when
the file grows out to objects, and then stays 0. See :mod:`wire.inline` for the way there.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from mds import schema
from mds.namespace.inode import Inode, decode
from mds.namespace.scope import Scope
from mds.store import Store
from wire.capability import DRIFT_US, LIFETIME_US
from wire.codec import pack, unpack_untrusted

VOID_US: Final = LIFETIME_US + 3 * DRIFT_US
"""After so long a capability has expired by any target's clock, whichever replica's clock dated it."""


class Contents(NamedTuple):
    """One record of INLINE, its fields in order."""

    version: int
    """The fresh number of the request that changed the bytes last: it rises."""
    growing: int
    """Under this number somebody is writing the bytes to objects; 0: nobody."""
    data: bytes
    """Never empty. The file may be longer: the rest is a hole."""


EMPTY = Contents(0, 0, b"")


def contents(store: Store, ino: int) -> Contents:
    """What INLINE has of file *ino*; EMPTY for none."""
    raw = store.get(schema.INLINE, schema.u64(ino))
    return EMPTY if raw is None else Contents(*unpack_untrusted(raw))


def objects_of(store: Store, ino: int) -> int:
    """The number of the objects of inode *ino*."""
    record = store.get(schema.INODES, schema.u64(ino))
    return ino if record is None else decode(record).objects or ino


def put(scope: Scope, ino: int, inode: Inode, data: bytes) -> None:
    """The bytes of *ino* are *data* now; whoever was writing the old ones to objects has done so in vain."""
    cancel(scope, inode, contents(scope.store, ino))
    if data:
        scope.store.put(schema.INLINE, schema.u64(ino), pack(Contents(scope.fresh, 0, data)))
    else:
        remove(scope, ino)


def remove(scope: Scope, ino: int) -> None:
    """The record goes, if there is one."""
    if scope.store.get(schema.INLINE, schema.u64(ino)) is not None:
        scope.store.delete(schema.INLINE, schema.u64(ino))


def cancel(scope: Scope, inode: Inode, old: Contents) -> None:
    """The objects that *old*'s bytes were being written to will not be the file's: they are to be deleted.

    1. Whoever writes them has not heard of this. 2. They are deleted. 3. What he still sends makes one of them anew,
    and nobody would delete that. So it is done when no target accepts his capability any more (it cannot be renewed).
    """
    if old.growing:
        assert inode.layout is not None, "a number is given only to a file that has one"
        record = (*inode.layout, scope.now + 1000 * VOID_US)
        scope.store.put(schema.RECLAIM, schema.u64(old.growing), pack(record))


def write(scope: Scope, ino: int, inode: Inode, pieces: tuple[tuple[int, bytes], ...]) -> None:
    """Put *pieces* into the bytes; what is between them and was not written are zeros."""
    data = bytearray(contents(scope.store, ino).data)
    for offset, piece in pieces:
        if offset > len(data):
            data += bytes(offset - len(data))
        data[offset : offset + len(piece)] = piece
    put(scope, ino, inode, bytes(data))


def cut(scope: Scope, ino: int, inode: Inode, size: int) -> None:
    """Forget the bytes beyond *size*."""
    old = contents(scope.store, ino)
    if len(old.data) > size:
        put(scope, ino, inode, old.data[:size])


def drop(scope: Scope, ino: int, inode: Inode) -> None:
    """The file is gone."""
    cancel(scope, inode, contents(scope.store, ino))
    remove(scope, ino)

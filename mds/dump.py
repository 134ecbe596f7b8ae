"""Pure. A replica's state as a stream that other versions and other programs can read, and a new state from one.

The stream is msgpack, one array after the other:

    ["lockstep-dump", 1, {...}]     what it is of: cluster, schema, index, time_ns
    [table, key, value]             one record of a table of :mod:`mds.schema`, by the table's name; any number of them
    ["end", records, checksum]      BLAKE2b-16 over all arrays before, each packed by itself

In it is what the file system is: inodes, entries, link targets, extended attributes, the contents of small files, what
is to be deleted, and where other contents lie (targets and chains). Left out are what can be derived, and what belongs
to the running service: sessions, replies, delegations, the roster, keys, the position in history. The contents of all
other files are not in it: they are on the storage targets.

Inode numbers are kept, because the targets know objects by them. Numbers derive from the place in history, and that
begins anew: the new state says from where on it counts (``numbers`` in META).
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, BinaryIO, Final

import msgpack

from mds import schema
from mds.machine import Bootstrap
from mds.namespace import roster as rosters
from mds.namespace.inline import Contents
from mds.namespace.inode import decode
from mds.store import Store
from wire.codec import pack, unpack_untrusted
from wire.errors import WireError

MAGIC: Final = "lockstep-dump"
FORMAT: Final = 1
END: Final = "end"
LEFT_OUT: Final = frozenset(
    t.name
    for t in (
        schema.COOKIES, schema.ORPHANS, schema.OWED, schema.SESSIONS, schema.SESSION_KEYS, schema.REPLIES,
        schema.ROSTER, schema.TRIMS, schema.APPENDS, schema.DELEGATIONS, schema.HOLDERS,
    )
)  # fmt: skip
KEPT_META: Final = frozenset((schema.META_STORAGE,))
STORAGE: Final = frozenset((schema.TARGETS.name, schema.CHAINS.name, schema.RECLAIM.name, schema.META.name))
"""What says where contents lie: of no use to a cluster with other targets."""
LAYER_BYTES: Final = 32 << 20
"""Written to disk in pieces of this size."""
RECORD_MAX: Final = 1 << 20

_TABLES: Final = {t.name: t for t in schema.TABLES}


class DumpError(Exception):
    """The stream is none of ours, damaged, or cannot be loaded here; the text says what is wrong."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a dump is of."""

    cluster: bytes
    schema: int
    index: int
    """Last batch that was applied."""
    time_ns: int
    numbers: int
    """What is added to an index before numbers are derived from it."""


def write(store: Store, cluster: bytes, out: BinaryIO) -> int:
    """Write what is in *store* to *out*; how many records that was."""
    applied = store.get(schema.META, schema.META_APPLIED)
    assert applied is not None, "a state that was served"
    index, _, time_ns, _, _ = unpack_untrusted(applied)
    digest = blake2b(digest_size=16)

    def put(what: Any) -> None:
        data = pack(what)
        digest.update(data)
        out.write(data)

    head = {
        "cluster": cluster, "schema": schema.SCHEMA_VERSION, "index": index, "time_ns": time_ns,
        "numbers": schema.numbers_from(store.get(schema.META, schema.META_NUMBERS)),
    }  # fmt: skip
    put((MAGIC, FORMAT, head))
    records = 0
    for table in schema.TABLES:
        if table.name in LEFT_OUT:
            continue
        for key, value in store.scan(table, b"", None):
            if table is schema.META and key not in KEPT_META:
                continue
            put((table.name, key, value))
            records += 1
    out.write(pack((END, records, digest.digest())))
    return records


def read(stream: BinaryIO) -> tuple[Header, Iterator[tuple[str, bytes, bytes]]]:
    """What a dump says it is, and its records. Raises :class:`DumpError`, also in the midst of the records."""
    unpacker = msgpack.Unpacker(
        stream, raw=False, use_list=False, strict_map_key=True, max_buffer_size=4 * RECORD_MAX
    )
    digest = blake2b(digest_size=16)

    def arrays() -> Iterator[Any]:
        try:
            yield from unpacker
        except (ValueError, msgpack.UnpackException) as exc:
            raise DumpError(f"it is damaged: {exc or type(exc).__name__}") from exc

    items = arrays()
    first = next(items, None)
    if type(first) is not tuple or len(first) != 3 or first[0] != MAGIC:
        raise DumpError("it is no dump of a LockstepFS")
    if first[1] != FORMAT:
        raise DumpError(f"its format is {first[1]!r}, this program's is {FORMAT}")
    digest.update(pack(first))
    try:
        header = Header(**first[2])
    except TypeError as exc:
        raise DumpError(f"its head does not say what it is of: {exc}") from exc

    def records() -> Iterator[tuple[str, bytes, bytes]]:
        count = 0
        for item in items:
            if type(item) is not tuple or len(item) != 3:
                raise DumpError(f"record {count} is no record")
            if item[0] == END:
                if item[1:] != (count, digest.digest()):
                    raise DumpError("it is damaged: its checksum is another one")
                if next(items, None) is not None:
                    raise DumpError("something follows its end")
                return
            digest.update(pack(item))
            count += 1
            yield item
        raise DumpError(f"it ends early, after {count} records")

    return header, records()


def load(
    store: Store, header: Header, records: Iterable[tuple[str, bytes, bytes]], bootstrap: Bootstrap, keep: bool
) -> int:
    """Make of *store*, which is new, the state that a cluster begins with; how many inodes it has.

    *keep*: the cluster has the storage targets of the dump. Without them all files are empty. The same stream and
    *bootstrap* give the same state everywhere. Raises :class:`DumpError`.
    """
    if header.schema != schema.SCHEMA_VERSION:
        raise DumpError(f"its schema version is {header.schema}, this program's is {schema.SCHEMA_VERSION}")
    digest = blake2b(digest_size=8)
    inodes = 0
    store.begin()
    for name, key, value in records:
        table = _TABLES.get(name) if type(name) is str else None
        if table is None or name in LEFT_OUT or type(key) is not bytes or type(value) is not bytes:
            raise DumpError(f"it has a record of {name!r}, which belongs in no dump")
        digest.update(pack((name, key, value)))
        if not keep and name in STORAGE:
            continue
        if table is schema.INODES:
            made = _inode(store, key, value, keep)
            if made is None:
                continue
            value = made
            inodes += 1
        elif table in (schema.XATTRS, schema.INLINE) and store.get(schema.INODES, key[:8]) is None:
            continue  # its inode had no name, see there
        elif table is schema.DIRENTS:
            ino, cookie = _entry(value)
            parent = int.from_bytes(key[:8], "big")
            store.put(schema.COOKIES, schema.cookie_key(parent, cookie), schema.u64(ino) + key[8:])
        elif table is schema.INLINE and not keep:
            value = _contents(value)
        store.put(table, key, value)
        if store.pending_bytes > LAYER_BYTES:
            store.commit()
            _to_disk(store)
            store.begin()
    if not keep:
        storage = (0, bootstrap.stripe_size, bootstrap.stripe_count, bootstrap.copies, bootstrap.inline)
        store.put(schema.META, schema.META_STORAGE, pack(storage))
    rosters.write_first(store, bootstrap.replicas, bootstrap.witnesses)
    numbers = header.numbers + header.index + 1
    store.put(schema.META, schema.META_NUMBERS, pack((numbers,)))
    digest.update(pack((bootstrap.replicas, bootstrap.witnesses, keep, numbers)))
    store.put(schema.META, schema.META_APPLIED, pack((0, digest.digest(), header.time_ns, inodes, 0)))
    store.commit()
    _to_disk(store)
    return inodes


def _entry(value: bytes) -> tuple[int, int]:
    """(inode, cookie) of a directory entry. What the digest at the end will say of damage comes too late for it."""
    try:
        ino, _, cookie = unpack_untrusted(value)
    except (WireError, ValueError, TypeError) as exc:
        raise DumpError(f"it has an entry that is damaged: {exc}") from exc
    if not all(type(number) is int and 0 <= number < 2**63 for number in (ino, cookie)):
        raise DumpError("it has an entry that is damaged")
    return ino, cookie


def _contents(value: bytes) -> bytes:
    """The record of a small file's bytes as it is to be: nobody is writing them to objects."""
    try:
        return pack(Contents(*unpack_untrusted(value))._replace(growing=0))
    except (WireError, TypeError) as exc:
        raise DumpError(f"it has the contents of a small file that are damaged: {exc}") from exc


def _inode(store: Store, key: bytes, value: bytes, keep: bool) -> bytes | None:
    """The record of an inode as it is to be; None for one without a name: nobody has it open any more."""
    try:
        inode = decode(value)
    except (WireError, TypeError) as exc:
        raise DumpError(f"it has an inode that is damaged: {exc}") from exc
    numbers = (inode.mode, inode.nlink, inode.size, inode.inline, inode.objects)
    sound = all(type(number) is int and 0 <= number < 2**64 for number in numbers)
    if not sound or type(inode.truncations) is not tuple:
        raise DumpError("it has an inode that is damaged")
    if not stat.S_ISDIR(inode.mode) and not inode.nlink:
        if keep and inode.layout is not None and not inode.inline:
            store.put(schema.RECLAIM, schema.u64(inode.objects) if inode.objects else key, pack(inode.layout))
        return None
    if keep and inode.truncations:
        store.put(schema.TRIMS, key, pack((0,)))  # whoever asked for them is a client of another cluster
    if keep or not inode.is_file:
        return value
    if not inode.inline:  # the bytes of a small file come along
        inode.size = 0
    inode.layout, inode.truncations, inode.objects = None, (), 0
    return inode.encode()


def _to_disk(store: Store) -> None:
    layer = store.freeze()
    if layer is not None:
        store.write(layer)
        store.release(layer)

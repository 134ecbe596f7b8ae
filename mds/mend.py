"""Pure. What would put right what :mod:`mds.check` finds in a state, as far as the state alone tells."""

from __future__ import annotations

from collections.abc import Iterator

from mds import schema, usage
from mds.namespace import quota
from mds.namespace.inode import S_IFDIR, decode
from mds.store import Store
from wire import ids, mending
from wire.codec import unpack_untrusted
from wire.mending import Mend


class _Names:
    """What the entries say of one inode."""

    __slots__ = ("entries", "names", "subdirectories")

    def __init__(self) -> None:
        self.names = self.entries = self.subdirectories = 0


def mends(store: Store) -> Iterator[Mend]:
    """Requests to have ordered, in this order. When they are carried out others may be needed: look again."""
    seen: dict[int, _Names] = {}
    for key, value in store.scan(schema.DIRENTS, b"", None):
        parent, name = _number(key), key[8:]
        ino, kind, cookie = unpack_untrusted(value)
        if store.get(schema.INODES, schema.u64(ino)) is None:
            yield _mend(mending.ENTRY, ino=ino, parent=parent, name=name)
        elif store.get(schema.COOKIES, schema.cookie_key(parent, cookie)) != schema.u64(ino) + name:
            yield _mend(mending.COOKIE, parent=parent, name=name)
        seen.setdefault(ino, _Names()).names += 1
        above = seen.setdefault(parent, _Names())
        above.entries += 1
        above.subdirectories += kind == S_IFDIR >> 12
    for key, value in store.scan(schema.COOKIES, b"", None):
        raw = store.get(schema.DIRENTS, schema.dirent_key(_number(key), value[8:]))
        if raw is None or unpack_untrusted(raw)[2] != _number(key[8:]):
            yield _mend(mending.STRAY, ino=_number(key[8:]), parent=_number(key))
    count = 0
    for key, value in store.scan(schema.INODES, b"", None):
        count += 1
        ino, inode, of = _number(key), decode(value), seen.get(_number(key)) or _Names()
        if not of.names and ino != ids.ROOT_INO and store.get(schema.ORPHANS, key) is None:
            yield _mend(mending.NAMELESS, ino=ino, was=inode.nlink)
            continue
        links = 2 + of.subdirectories if inode.is_dir else of.names
        if links and inode.nlink != links:
            yield _mend(mending.LINKS, ino=ino, was=inode.nlink, now=links)
        if inode.is_dir and inode.entries != of.entries:
            yield _mend(mending.COUNT, ino=ino, was=inode.entries, now=of.entries)
    applied = store.get(schema.META, schema.META_APPLIED)
    if applied is not None and unpack_untrusted(applied)[3] != count:
        yield _mend(mending.TALLY, was=unpack_untrusted(applied)[3], now=count)
    for root, record in usage.repaired(store):
        there = quota.find(store, root)
        if there is None or record is None:
            continue  # a root that is lost, or should be: its directory has to be given a quota again, or none
        for kind, field in mending.SUMS.items():
            if getattr(there, field) != getattr(record, field):
                yield _mend(kind, ino=root, was=getattr(there, field), now=getattr(record, field))


def _number(key: bytes) -> int:
    return int.from_bytes(key[:8], "big")


def _mend(kind: str, ino: int = 0, parent: int = 0, name: bytes = b"", was: int = 0, now: int = 0) -> Mend:
    return Mend(kind, ino, parent, name, was, now, ())

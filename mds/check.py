"""Pure. fsck of a replica's state: every invariant of :mod:`mds.schema`, over what a store holds, written or not.

It reads whole tables and keeps one small record per inode in memory: it is for tests, for the administrator's tool on a
copy, and for a replica before it is trusted again; not for the running event loop.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mds import limits, schema, usage
from mds.namespace import delegations
from mds.namespace.inode import S_IFDIR, S_IFLNK, S_IFMT, S_IFREG, TRUNCATIONS_MAX, Inode, decode
from mds.sessions import Session
from mds.store import Store
from wire import ids
from wire.codec import unpack_untrusted

PROBLEMS_MAX = 1000
"""A state that is broken all over is not described in full."""


class _Seen:
    """What the entries say about one inode."""

    __slots__ = ("above", "entries", "names", "subdirectories")

    def __init__(self) -> None:
        self.names = 0
        self.above = 0
        self.entries = 0
        self.subdirectories = 0


def check(store: Store) -> list[str]:
    """What is wrong, one sentence each; empty when all is well. Raises :class:`mds.store.StoreCorrupt`."""
    problems: list[str] = []
    for problem in _problems(store):
        problems.append(problem)
        if len(problems) == PROBLEMS_MAX:
            problems.append("more problems were found and are left out")
            break
    return problems


def _problems(store: Store) -> Iterator[str]:
    seen: dict[int, _Seen] = {}
    yield from _check_entries(store, seen)
    yield from _check_cookies(store)
    yield from _check_inodes(store, seen)
    yield from _check_xattrs(store)
    yield from _check_symlinks(store)
    yield from _check_orphans(store)
    yield from _check_sessions(store)
    yield from _check_storage(store)
    yield from usage.problems(store)
    yield from _check_inline(store)
    yield from _check_delegations(store)


def _number(key: bytes) -> int:
    return int.from_bytes(key[:8], "big")


def _check_entries(store: Store, seen: dict[int, _Seen]) -> Iterator[str]:
    for key, value in store.scan(schema.DIRENTS, b"", None):
        parent, name = _number(key), key[8:]
        ino, kind, cookie = unpack_untrusted(value)
        record = store.get(schema.INODES, schema.u64(ino))
        where = f"entry {name!r} of directory {parent}"
        if record is None:
            yield f"{where} names inode {ino}, which is not there"
        elif decode(record).mode >> 12 != kind:
            yield f"{where} says inode {ino} is of type {kind:#o}, it is {decode(record).mode >> 12:#o}"
        if store.get(schema.COOKIES, schema.cookie_key(parent, cookie)) != schema.u64(ino) + name:
            yield f"{where} is not listed under its cookie {cookie}"
        of = seen.setdefault(ino, _Seen())
        of.names += 1
        of.above = parent
        above = seen.setdefault(parent, _Seen())
        above.entries += 1
        above.subdirectories += kind == S_IFDIR >> 12


def _check_cookies(store: Store) -> Iterator[str]:
    for key, value in store.scan(schema.COOKIES, b"", None):
        parent, cookie, name = _number(key), _number(key[8:]), value[8:]
        raw = store.get(schema.DIRENTS, schema.dirent_key(parent, name))
        if raw is None or unpack_untrusted(raw)[2] != cookie:
            yield f"cookie {cookie} of directory {parent} lists {name!r}, which has no such entry"


def _check_inodes(store: Store, seen: dict[int, _Seen]) -> Iterator[str]:
    count = 0
    for key, value in store.scan(schema.INODES, b"", None):
        count += 1
        ino = _number(key)
        inode = decode(value)
        of = seen.pop(ino, None) or _Seen()
        if inode.mode & S_IFMT == S_IFDIR:
            yield from _check_directory(ino, inode, of)
        else:
            yield from _check_file(store, ino, inode, of)
    for ino, of in sorted(seen.items()):
        if of.entries:
            yield f"directory {ino} is not there and has {of.entries} entries"
    applied = store.get(schema.META, schema.META_APPLIED)
    if applied is None:
        yield "the applied position is missing"
    elif unpack_untrusted(applied)[3] != count:
        yield f"{count} inodes are there, {unpack_untrusted(applied)[3]} are counted"


def _check_directory(ino: int, inode: Inode, of: _Seen) -> Iterator[str]:
    if ino == ids.ROOT_INO:
        if of.names or inode.parent != ino:
            yield f"the root directory has {of.names} names and parent {inode.parent}"
    elif of.names != 1:
        yield f"directory {ino} has {of.names} names"
    elif of.above != inode.parent:
        yield f"directory {ino} is named in {of.above}, its parent is {inode.parent}"
    if inode.nlink != 2 + of.subdirectories:
        yield f"directory {ino} has link count {inode.nlink} and {of.subdirectories} subdirectories"
    if inode.entries != of.entries:
        yield f"directory {ino} counts {inode.entries} entries and has {of.entries}"


def _check_file(store: Store, ino: int, inode: Inode, of: _Seen) -> Iterator[str]:
    if inode.nlink != of.names:
        yield f"inode {ino} has link count {inode.nlink} and {of.names} names"
    orphan = store.get(schema.ORPHANS, schema.u64(ino)) is not None
    if orphan != (inode.nlink == 0):
        yield f"inode {ino} has link count {inode.nlink} and is {'' if orphan else 'not '}an orphan"
    if of.entries:
        yield f"inode {ino} is no directory and has {of.entries} entries"
    if len(inode.truncations) > TRUNCATIONS_MAX:
        yield f"inode {ino} has {len(inode.truncations)} truncations, {TRUNCATIONS_MAX} are allowed"
    if (store.get(schema.TRIMS, schema.u64(ino)) is None) == bool(inode.truncations):
        yield f"inode {ino} has {len(inode.truncations)} truncations, which its record in TRIMS does not say"
    if any(seq > inode.truncate_seq for seq, _size in inode.truncations):
        yield f"inode {ino} has a truncation above its last one, {inode.truncate_seq}"
    if inode.layout is not None and inode.mode & S_IFMT != S_IFREG:
        yield f"inode {ino} is no regular file and has a layout"


def _check_xattrs(store: Store) -> Iterator[str]:
    counts: dict[int, int] = {}
    for key, _value in store.scan(schema.XATTRS, b"", None):
        counts[_number(key)] = counts.get(_number(key), 0) + 1
    for key, value in store.scan(schema.INODES, b"", None):
        found, counted = counts.pop(_number(key), 0), decode(value).xattrs
        if found != counted:
            yield f"inode {_number(key)} has {found} extended attributes and counts {counted}"
    for ino in sorted(counts):
        yield f"inode {ino} is not there and has extended attributes"


def _check_symlinks(store: Store) -> Iterator[str]:
    for key, value in store.scan(schema.INODES, b"", None):
        if decode(value).mode & S_IFMT == S_IFLNK and store.get(schema.SYMLINKS, key) is None:
            yield f"symbolic link {_number(key)} has no target"
    for key, _value in store.scan(schema.SYMLINKS, b"", None):
        record = store.get(schema.INODES, key)
        if record is None or decode(record).mode & S_IFMT != S_IFLNK:
            yield f"inode {_number(key)} has a link target and is no symbolic link"


def _check_orphans(store: Store) -> Iterator[str]:
    for key, value in store.scan(schema.ORPHANS, b"", None):
        ino = _number(key)
        owing: Any = unpack_untrusted(value)
        if not owing:
            yield f"orphan {ino} waits for nobody"
        if store.get(schema.INODES, key) is None:
            yield f"orphan {ino} is not there"
        for replica, _pinned in owing:
            if store.get(schema.OWED, schema.owed_key(replica, ino)) is None:
                yield f"orphan {ino} waits for replica {replica}, which is not told so"
    for key, _value in store.scan(schema.OWED, b"", None):
        replica, ino = key[0], _number(key[1:])
        raw = store.get(schema.ORPHANS, schema.u64(ino))
        if raw is None or replica not in [item[0] for item in unpack_untrusted(raw)]:
            yield f"replica {replica} owes an answer about inode {ino}, which does not wait for it"
    for key, _value in store.scan(schema.TRIMS, b"", None):
        if store.get(schema.INODES, key) is None:
            yield f"inode {_number(key)} is not there and has truncations to be settled"
    for key, value in store.scan(schema.APPENDS, b"", None):
        record = store.get(schema.INODES, key)
        if record is None or decode(record).size >= unpack_untrusted(value)[0]:
            yield f"inode {_number(key)} is not there, or as large as the room that was given at its end"
    for key, _value in store.scan(schema.RECLAIM, b"", None):
        if store.get(schema.INODES, key) is not None:
            yield f"inode {_number(key)} is there and its objects are queued for deletion"


def _check_sessions(store: Store) -> Iterator[str]:
    count = 0
    for key, value in store.scan(schema.SESSIONS, b"", None):
        count += 1
        session = Session(*unpack_untrusted(value))
        if store.get(schema.SESSION_KEYS, session.key) != key:
            yield f"session {_number(key)} is not found by its key"
    for key, value in store.scan(schema.SESSION_KEYS, b"", None):
        raw = store.get(schema.SESSIONS, value)
        if raw is None or Session(*unpack_untrusted(raw)).key != key:
            yield f"a session key leads to session {_number(value)}, which has another or is not there"
    for key, _value in store.scan(schema.REPLIES, b"", None):
        raw = store.get(schema.SESSIONS, key[:8])
        if raw is None:
            yield f"session {_number(key)} is not there and has a reply"
        elif int.from_bytes(key[8:], "big") >= Session(*unpack_untrusted(raw)).slots:
            yield f"session {_number(key)} has a reply in slot {int.from_bytes(key[8:], 'big')}, which it has not"
    applied = store.get(schema.META, schema.META_APPLIED)
    if applied is not None and unpack_untrusted(applied)[4] != count:
        yield f"{count} sessions are there, {unpack_untrusted(applied)[4]} are counted"


def _check_storage(store: Store) -> Iterator[str]:
    for key, value in store.scan(schema.CHAINS, b"", None):
        for target, _state in unpack_untrusted(value)[1]:
            if store.get(schema.TARGETS, schema.target_key(target)) is None:
                yield f"chain {int.from_bytes(key, 'big')} names target {target}, which is not there"


def _check_inline(store: Store) -> Iterator[str]:
    for key, value in store.scan(schema.INLINE, b"", None):
        ino = _number(key)
        _version, growing, data = unpack_untrusted(value)
        record = store.get(schema.INODES, key)
        inode = decode(record) if record is not None else None
        if inode is None or inode.mode & S_IFMT != S_IFREG or not inode.inline:
            yield f"inode {ino} has {len(data)} bytes in the metadata and is not a file that may"
        elif not 0 < len(data) <= min(inode.inline, inode.size):
            yield f"inode {ino} of size {inode.size} has {len(data)} bytes in the metadata, {inode.inline} are allowed"
        if growing and store.get(schema.RECLAIM, schema.u64(growing)) is not None:
            yield f"inode {ino} is growing out to objects {growing}, which are queued for deletion"
    for key, value in store.scan(schema.INODES, b"", None):
        inode = decode(value)
        if inode.inline and inode.objects:
            yield f"inode {_number(key)} is in the metadata and has objects {inode.objects}"
        elif inode.objects and store.get(schema.RECLAIM, schema.u64(inode.objects)) is not None:
            yield f"inode {_number(key)} is there and its objects {inode.objects} are queued for deletion"


def _check_delegations(store: Store) -> Iterator[str]:
    for ino, (session, _) in sorted(delegations.load(store).items()):
        record = store.get(schema.INODES, schema.u64(ino))
        inode = decode(record) if record is not None else None
        if inode is None or not inode.is_dir or inode.quota:
            yield f"inode {ino} is delegated and is no directory, or counted in a quota"
        if store.get(schema.SESSIONS, schema.u64(session)) is None:
            yield f"directory {ino} is delegated to session {session}, which is not there"
        if store.get(schema.HOLDERS, schema.u64(session)) is None:
            yield f"directory {ino} is delegated to session {session}, which has no numbers for files"
    for key, _value in store.scan(schema.HOLDERS, b"", None):
        session, holder = _number(key), delegations.holder(store, _number(key))
        if store.get(schema.SESSIONS, key) is None:
            yield f"session {session} is not there and may have delegations"
        if len(holder.blocks) > limits.BLOCKS_OF_ONE:
            yield f"session {session} has {len(holder.blocks)} blocks of numbers, {limits.BLOCKS_OF_ONE} are allowed"

"""Pure. Directory quotas: what is counted where, limits, and how a quota comes to a tree that is there already.

A directory that has a quota is a *quota root*. Each inode stores the root that it is counted in (``Inode.quota``, as
XFS stores a project id): what is made takes it from its directory, so a create finds its counter without looking at
its ancestors, and outside of any quota it costs nothing. Roots may lie within roots; a root's record names the next
one above, and what is counted in a root is counted in all above. Counted are the bytes of regular files, as their
sizes say (holes count, copies do not), and inodes of every kind; a file with several names, or none that is still open,
counts once. The root itself is one of its inodes.

Every change of a size goes through :meth:`mds.namespace.scope.Scope.put`, every new inode through
:func:`mds.namespace.entries.make`, every end through ``erase``: there it is counted, in the transaction of the change.
What would lead over a hard limit, or over a soft one whose grace time has run out, is refused with EDQUOT, root's
requests as well. Limits that are set below what is used refuse growth and nothing else.

A rename into or out of a root takes one inode along: a file, an empty directory, or a root with all that it counts. A
directory that holds something stays (EXDEV, as between XFS projects: mv then copies), and so does a file with
several names; no name is given to a file of another root (EXDEV).

**Counting.** A quota on a directory that holds something, or the end of one, puts the directory into QUOTA_WORK. The
requests :class:`wire.quotaops.QuotaWork`, ordered by one replica for as long as something is there, go through it
entry by entry and put each inode to where its directory is counted; a subdirectory that moved comes into QUOTA_WORK in
its turn. Each of them moves whole inodes from one set of roots to another, so the sums are exact at every moment for
what ``Inode.quota`` says; names made meanwhile are counted right from the start, because they come after all cookies
given before. Until it is done a root knows only a part of its tree, and says so.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Any, Final

from mds import schema
from mds.namespace.inode import Inode, decode
from wire.codec import pack, unpack_untrusted
from wire.errors import FileSystemError

if TYPE_CHECKING:
    from mds.namespace.scope import Scope
    from mds.store import Store

ATTRIBUTE: Final = b"lockstep.quota"
"""The limits of a quota root, as text; to set it makes a root, to remove it ends one."""
USAGE: Final = b"lockstep.usage"
"""Of any inode: the quotas that it is counted in (read-only, JSON, nearest first)."""
NESTED_MAX: Final = 8
"""Roots above a new one, itself included: each costs every create below it a record."""
WORK_ENTRIES: Final = 256
"""Entries that one QuotaWork goes through: some milliseconds."""
GRACE_S: Final = 7 * 86400
LIMIT_MAX: Final = 2**62
GRACE_MAX_S: Final = 10 * 366 * 86400
SECOND_NS: Final = 10**9

LIMITS: Final = ("bytes_hard", "bytes_soft", "inodes_hard", "inodes_soft", "grace_s")
"""What can be set; 0 is no limit."""

Change = tuple[int, int, int]
"""(bytes, inodes, of these directories)."""


@dataclass(slots=True)
class Quota:
    """One root's record (schema.QUOTAS), its fields in order."""

    parent: int
    """The next root above; 0: none."""
    live: bool
    """False: it is no quota any more, and goes when nothing is counted in it."""
    bytes_used: int = 0
    inodes_used: int = 0
    directories: int = 0
    bytes_hard: int = 0
    bytes_soft: int = 0
    inodes_hard: int = 0
    inodes_soft: int = 0
    grace_s: int = GRACE_S
    bytes_over_ns: int = 0
    """Since when more is used than the soft limit allows; 0: it is not."""
    inodes_over_ns: int = 0

    def encode(self) -> bytes:
        return pack(
            (
                self.parent, self.live, self.bytes_used, self.inodes_used, self.directories, self.bytes_hard,
                self.bytes_soft, self.inodes_hard, self.inodes_soft, self.grace_s, self.bytes_over_ns,
                self.inodes_over_ns,
            )
        )  # fmt: skip

    def add(self, change: Change, now: int, enforce: bool) -> None:
        """Count *change* at the time *now*. Raises EDQUOT if *enforce* and a limit refuses it."""
        size, inodes, directories = change
        self.bytes_used += size
        self.inodes_used += inodes
        self.directories += directories
        if enforce and (
            (size > 0 and _refuses(self.bytes_used, self.bytes_hard, self.bytes_over_ns, self.grace_s, now))
            or (inodes > 0 and _refuses(self.inodes_used, self.inodes_hard, self.inodes_over_ns, self.grace_s, now))
        ):
            raise FileSystemError(errno.EDQUOT)
        self.look_at_soft(now)

    def look_at_soft(self, now: int) -> None:
        """The grace time begins when a soft limit is passed, and ends with it."""
        over = bool(self.bytes_soft) and self.bytes_used > self.bytes_soft
        self.bytes_over_ns = (self.bytes_over_ns or now) if over else 0
        over = bool(self.inodes_soft) and self.inodes_used > self.inodes_soft
        self.inodes_over_ns = (self.inodes_over_ns or now) if over else 0

    def room(self, now: int) -> int | None:
        """Bytes that files may still grow by; None: any number."""
        if self.bytes_over_ns and now - self.bytes_over_ns > self.grace_s * SECOND_NS:
            return 0
        return max(0, self.bytes_hard - self.bytes_used) if self.bytes_hard else None

    def text(self) -> bytes:
        """The limits, as they can be set again."""
        return " ".join(f"{name}={getattr(self, name)}" for name in LIMITS).encode()


def _refuses(used: int, hard: int, over_since: int, grace_s: int, now: int) -> bool:
    return bool(hard and used > hard) or bool(over_since and now - over_since > grace_s * SECOND_NS)


def find(store: Store, root: int) -> Quota | None:
    raw = store.get(schema.QUOTAS, schema.u64(root))
    return None if raw is None else Quota(*unpack_untrusted(raw))


def exists(store: Store) -> bool:
    """Whether there is any quota, or the rest of one."""
    return next(store.scan(schema.QUOTAS, b"", None), None) is not None


def known(store: Store, root: int) -> Quota:
    found = find(store, root)
    assert found is not None, f"quota root {root}, which inodes are counted in, has a record"
    return found


def chain(store: Store, root: int) -> Iterator[tuple[int, Quota]]:
    """(root, record) of *root* and all above it: what a request that changes what is counted in *root* writes to."""
    while root:
        record = known(store, root)
        yield root, record
        root = record.parent


def _put(store: Store, root: int, record: Quota) -> None:
    if record.live or record.inodes_used:
        store.put(schema.QUOTAS, schema.u64(root), record.encode())
    else:
        assert not record.bytes_used, "bytes belong to inodes"
        store.delete(schema.QUOTAS, schema.u64(root))


# --- counting -------------------------------------------------------------------------------------


def charge(scope: Scope, root: int, size: int, inodes: int, directories: int, enforce: bool = True) -> None:
    """Count (bytes, inodes, directories) in *root* and all above it. Raises EDQUOT."""
    change = (size, inodes, directories)
    for number, record in chain(scope.store, root):
        record.add(change, scope.now, enforce)
        _put(scope.store, number, record)


def resized(scope: Scope, ino: int, inode: Inode) -> None:
    """File *inode* is about to be stored; it may have another size than what is stored of it."""
    stored = scope.store.get(schema.INODES, schema.u64(ino))
    change = inode.size - (decode(stored).size if stored is not None else 0)
    if change:
        charge(scope, inode.quota, change, 0, 0)


def erased(scope: Scope, ino: int, inode: Inode) -> None:
    """*inode*, which is counted somewhere, has ended."""
    if inode.quota == ino:
        record = known(scope.store, ino)
        record.live = False
        scope.store.put(schema.QUOTAS, schema.u64(ino), record.encode())
    size, inodes, directories = _worth(inode)
    charge(scope, inode.quota, -size, -inodes, -directories)


def _worth(inode: Inode) -> Change:
    return (inode.size if inode.is_file else 0, 1, int(inode.is_dir))


class Moves:
    """What some inodes take from one root to another, summed up: a root above both sees no change."""

    def __init__(self) -> None:
        self._changes: dict[int, list[int]] = {}

    def add(self, store: Store, old: int, new: int, change: Change) -> None:
        for root, sign in ((old, -1), (new, 1)):
            for number, _record in chain(store, root):
                sums = self._changes.setdefault(number, [0, 0, 0])
                for k in range(3):
                    sums[k] += sign * change[k]

    def carry_out(self, scope: Scope, enforce: bool) -> None:
        """Raises EDQUOT."""
        changes, self._changes = self._changes, {}
        for root, (size, inodes, directories) in changes.items():
            if size or inodes or directories:
                record = known(scope.store, root)
                record.add((size, inodes, directories), scope.now, enforce)
                _put(scope.store, root, record)


def _take(scope: Scope, moves: Moves, ino: int, inode: Inode, to: int, enforce: bool) -> None:
    """*inode* is counted in root *to* from now on; a root goes there with everything that it counts."""
    store = scope.store
    if inode.quota == ino:
        moves.carry_out(scope, enforce)  # what it counts is read here, so nothing of that may be outstanding
        record = known(store, ino)
        moves.add(store, record.parent, to, (record.bytes_used, record.inodes_used, record.directories))
        record.parent = to
        store.put(schema.QUOTAS, schema.u64(ino), record.encode())
    else:
        moves.add(store, inode.quota, to, _worth(inode))
        inode.quota = to


# --- names ----------------------------------------------------------------------------------------


def linked(inode: Inode, directory: Inode) -> None:
    """*inode* is to get a name in *directory*. Raises EXDEV: a file is counted in one root."""
    if inode.quota != directory.quota:
        raise FileSystemError(errno.EXDEV)


def renamed(scope: Scope, arrivals: tuple[tuple[int, Inode, Inode], ...]) -> None:
    """Each (number, inode, its new directory), which were in another one before. Raises EXDEV, EDQUOT.

    The caller puts the inodes.
    """
    moves = Moves()
    moved = False
    for ino, inode, directory in arrivals:
        root = inode.quota == ino
        if (known(scope.store, ino).parent if root else inode.quota) == directory.quota:
            continue
        if not root and (inode.entries or (inode.nlink > 1 and not inode.is_dir)):
            raise FileSystemError(errno.EXDEV)
        if root and sum(1 for _ in chain(scope.store, directory.quota)) >= NESTED_MAX:
            raise FileSystemError(errno.EXDEV)
        _take(scope, moves, ino, inode, directory.quota, enforce=True)
        moved = True
    if moved:
        moves.carry_out(scope, enforce=True)


# --- limits ---------------------------------------------------------------------------------------


def limits_untrusted(text: bytes) -> dict[str, int]:
    """The limits that *text* names (``bytes_hard=1000000 inodes_hard=100``). EINVAL for what cannot be one."""
    found: dict[str, int] = {}
    for word in text.split():
        name, _, number = word.decode("ascii", "replace").partition("=")
        if name not in LIMITS or not number.isascii() or not number.isdigit() or len(number) > 19:
            raise FileSystemError(errno.EINVAL)
        if int(number) > (GRACE_MAX_S if name == "grace_s" else LIMIT_MAX):
            raise FileSystemError(errno.EINVAL)
        found[name] = int(number)
    return found


def set_limits(scope: Scope, ino: int, inode: Inode, text: bytes) -> None:
    """Make directory *ino* a quota root, or change the limits of one: what *text* does not name stays.

    ENOTDIR for what is no directory; EINVAL for a bad text, a soft limit above its hard one, and too many roots above.
    """
    given = limits_untrusted(text)
    if not inode.is_dir:
        raise FileSystemError(errno.ENOTDIR)
    store = scope.store
    new = inode.quota != ino
    if new:
        above = inode.quota
        if sum(1 for _ in chain(store, above)) + 1 > NESTED_MAX:
            raise FileSystemError(errno.EINVAL)
        record = find(store, ino) or Quota(above, True)  # there is one yet when it was a root not long ago
        for name in LIMITS:
            setattr(record, name, GRACE_S if name == "grace_s" else 0)
        record.live = True
    else:
        record = known(store, ino)
    for name, value in given.items():
        setattr(record, name, value)
    for hard, soft in ((record.bytes_hard, record.bytes_soft), (record.inodes_hard, record.inodes_soft)):
        if hard and soft > hard:
            raise FileSystemError(errno.EINVAL)
    record.look_at_soft(scope.now)
    store.put(schema.QUOTAS, schema.u64(ino), record.encode())
    if new:
        moves = Moves()
        if record.parent != above:
            moves.add(store, record.parent, above, (record.bytes_used, record.inodes_used, record.directories))
            record.parent = above
            store.put(schema.QUOTAS, schema.u64(ino), record.encode())
        moves.add(store, above, ino, _worth(inode))
        inode.quota = ino
        moves.carry_out(scope, enforce=False)
        recount(scope, ino, inode)


def clear(scope: Scope, ino: int, inode: Inode) -> None:
    """Directory *ino* is no quota root any more. ENODATA when it was none."""
    if inode.quota != ino:
        raise FileSystemError(errno.ENODATA)
    store = scope.store
    record = known(store, ino)
    record.live = False
    for name in LIMITS:
        setattr(record, name, 0)
    record.look_at_soft(scope.now)
    store.put(schema.QUOTAS, schema.u64(ino), record.encode())
    moves = Moves()
    moves.add(store, ino, record.parent, _worth(inode))
    inode.quota = record.parent
    moves.carry_out(scope, enforce=False)
    recount(scope, ino, inode)


def recount(scope: Scope, ino: int, inode: Inode) -> None:
    """The entries of directory *ino* are to be counted where it is."""
    if inode.entries:
        scope.store.put(schema.QUOTA_WORK, schema.u64(ino), schema.u64(0))
    elif scope.store.get(schema.QUOTA_WORK, schema.u64(ino)) is not None:
        scope.store.delete(schema.QUOTA_WORK, schema.u64(ino))


def work(scope: Scope) -> bool:
    """Go through the next entries; whether there is more."""
    store = scope.store
    left = WORK_ENTRIES
    while left > 0:
        item = next(store.scan(schema.QUOTA_WORK, b"", None), None)
        if item is None:
            return False
        key, cursor = item
        directory = scope.find(int.from_bytes(key, "big"))
        if directory is None:  # removed since
            store.delete(schema.QUOTA_WORK, key)
            left -= 1
            continue
        start = key + schema.u64(int.from_bytes(cursor, "big") + 1)
        page: list[tuple[bytes, bytes]] = []
        for entry in store.scan(schema.COOKIES, start, schema.after(key)):
            page.append(entry)
            if len(page) == left:
                break
        moves = Moves()
        for _cookie, named in page:
            _look_at(scope, moves, int.from_bytes(named[:8], "big"), directory.quota)
        moves.carry_out(scope, enforce=False)
        if len(page) == left:
            store.put(schema.QUOTA_WORK, key, page[-1][0][8:])
        else:
            store.delete(schema.QUOTA_WORK, key)
        left -= len(page) + 1
    return counting(store)


def _look_at(scope: Scope, moves: Moves, ino: int, root: int) -> None:
    """An entry of a directory that is counted in *root* stands for *ino*."""
    inode = scope.inode(ino)
    if inode.quota == ino:
        if known(scope.store, ino).parent != root:
            _take(scope, moves, ino, inode, root, enforce=False)
    elif inode.quota != root:
        _take(scope, moves, ino, inode, root, enforce=False)
        # Not by way of scope.put: where it is counted has changed, not its size.
        scope.store.put(schema.INODES, schema.u64(ino), inode.encode())
        if inode.is_dir:
            recount(scope, ino, inode)


def counting(store: Store) -> bool:
    """Whether some tree is not yet counted where its directory is."""
    return next(store.scan(schema.QUOTA_WORK, b"", None), None) is not None


# --- asking ---------------------------------------------------------------------------------------


def room(scope: Scope, root: int) -> int | None:
    """Bytes that files counted in *root* may still grow by; None: any number."""
    if find(scope.store, root) is None:
        return None  # it has gone since the client heard of it
    rooms = [record.room(scope.now) for _, record in chain(scope.store, root)]
    return min((one for one in rooms if one is not None), default=None)


def told(scope: Scope, root: int, record: Quota) -> dict[str, Any]:
    """What is shown of a root: its record by name, its path, and whether it is still being counted."""
    names = Quota.__dataclass_fields__
    values = dict(zip(names, astuple(record), strict=True))
    return {"ino": root, "path": path_of(scope, root), "counting": counting(scope.store), **values}


PATH_STEPS: Final = 512
NAME_LOOKS: Final = 4096
"""Entries looked at to find a directory's name in its parent."""


def path_of(scope: Scope, ino: int) -> bytes:
    """The path of directory *ino*; ``?`` stands for a name that is not found cheaply, or is gone."""
    names: list[bytes] = []
    for _ in range(PATH_STEPS):
        inode = scope.find(ino)
        if inode is None or inode.parent == ino:
            break
        names.append(_name_of(scope, inode.parent, ino))
        ino = inode.parent
    return b"/" + b"/".join(reversed(names))


def _name_of(scope: Scope, parent: int, ino: int) -> bytes:
    """What *ino* is called in *parent*: a name made with the inode has its number as cookie."""
    wanted = schema.u64(ino)
    first = scope.store.get(schema.COOKIES, schema.cookie_key(parent, ino))
    if first is not None and first[:8] == wanted:
        return first[8:]
    prefix = schema.u64(parent)
    for k, (_key, value) in enumerate(scope.store.scan(schema.COOKIES, prefix, schema.after(prefix))):
        if value[:8] == wanted:
            return value[8:]
        if k == NAME_LOOKS:
            break
    return b"?"

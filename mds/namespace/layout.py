"""Pure. The storage map (targets and chains, part of the state), and the layout a new file gets from it.

A directory may have a policy for the files below it: the extended attribute ``lockstep.layout``, a text like
``stripe_size=1048576 stripe_count=4 copies=2 inline=4096``. Subdirectories inherit it when they are made; a directory
without one means the cluster's. A file shows the layout it has, and takes another one as long as it is empty and never
was anything else. ``inline`` is up to how many bytes of a file are kept in the metadata; a file that shows 0 is in
objects, and stays there.
"""

from __future__ import annotations

import errno
from typing import Any, Final, NamedTuple

from mds import schema
from mds.namespace.inode import Inode, Layout
from mds.placement import wheel
from mds.store import Store
from wire.chains import COPIES_MAX, EMPTY, Losses, StorageMap, copies_of
from wire.codec import pack, unpack_untrusted
from wire.errors import FileSystemError
from wire.inline import INLINE_MAX
from wire.targetops import SHARE_MAX

STRIPE_SIZE: Final = 1 << 20
STRIPE_SIZE_MIN: Final = 4096
STRIPE_SIZE_MAX: Final = 8 << 20
STRIPE_COUNT: Final = 4
STRIPE_COUNT_MAX: Final = 64
COPIES: Final = 1
INLINE: Final = 4096
ATTRIBUTE: Final = b"lockstep.layout"


class Policy(NamedTuple):
    """How files are to be laid out. As many columns and copies as there are targets for, at most."""

    stripe_size: int
    stripe_count: int
    copies: int
    inline: int

    def text(self) -> bytes:
        return " ".join(f"{name}={value}" for name, value in self._asdict().items()).encode()


def policy_untrusted(text: bytes, default: Policy) -> Policy:
    """The policy that *text* says; what it does not name is *default*'s. EINVAL for what cannot be had."""
    values = default._asdict()
    bounds = {
        "stripe_size": (STRIPE_SIZE_MIN, STRIPE_SIZE_MAX),
        "stripe_count": (1, STRIPE_COUNT_MAX),
        "copies": (1, COPIES_MAX),
        "inline": (0, INLINE_MAX),
    }
    words = text.split()
    for word in words:
        name, equals, number = word.decode("ascii", "replace").partition("=")
        if name not in bounds or not equals or not number.isascii() or not number.isdigit() or len(number) > 8:
            raise FileSystemError(errno.EINVAL)
        low, high = bounds[name]
        if not low <= int(number) <= high:
            raise FileSystemError(errno.EINVAL)
        values[name] = int(number)
    if not words or values["stripe_size"] % STRIPE_SIZE_MIN:
        raise FileSystemError(errno.EINVAL)
    return Policy(**values)


class Storage:
    """The storage map in memory: it is small, and every create needs it. Read again after each change."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.map: StorageMap = EMPTY
        self.losses: Losses = ()
        self.shares: dict[int, int] = {}
        """How full targets are, as it was ordered last (mds.placement)."""
        self._weights: dict[int, int] = {}
        """Chain -> the share of its fullest member."""
        self.default = Policy(STRIPE_SIZE, STRIPE_COUNT, COPIES, INLINE)
        self._firsts: dict[int, int] = {}
        """Chain -> its first member: a file's columns go to different targets."""
        self._chains: dict[int, list[int]] = {}
        """Copies -> chains of so many, ascending."""
        self._layouts: dict[Policy, list[Layout]] = {}
        self.load()

    def load(self) -> None:
        """Take the map from the store."""
        store = self._store
        version, *default = meta(store)
        self.default = Policy(*default)
        targets: list[Any] = []
        self.shares = {}
        self._weights = {}
        for key, value in store.scan(schema.TARGETS, b"", None):
            one = Target.unpack(value)
            targets.append((int.from_bytes(key, "big"), one.address, one.state, one.run))
            self.shares[int.from_bytes(key, "big")] = one.share
        chains: list[Any] = []
        losses: list[tuple[int, int]] = []
        self._chains, self._firsts = {}, {}
        for key, value in store.scan(schema.CHAINS, b"", None):
            number = int.from_bytes(key, "big")
            version_of, members, lost = unpack_untrusted(value)
            chains.append((number, version_of, members))
            if lost:
                losses.append((number, lost))
            self._weights[number] = min((self.shares.get(t, SHARE_MAX) for t, _ in members), default=0)
            self._firsts[number] = members[0][0] if members else 0
            self._chains.setdefault(copies_of(number), []).append(number)
        self.map = (version, tuple(targets), tuple(chains))
        self.losses = tuple(losses)
        self._layouts = {}

    def layout(self, ino: int, policy: Policy | None = None) -> Layout | None:
        """For new file *ino*: the first chain goes round with the numbers, one with more free space comes more often.

        None while there is no chain at all.
        """
        layouts = self._layouts.get(policy or self.default)
        if layouts is None:
            layouts = self._made(policy or self.default)
        if not layouts:
            return None
        # The index and the entry within the batch both count: either alone is often constant, or even.
        turn = (ino >> schema.NUMBER_BITS) + (ino & ((1 << schema.NUMBER_BITS) - 1))
        return layouts[turn % len(layouts)]

    def _made(self, policy: Policy) -> list[Layout]:
        copies = max((c for c in self._chains if c <= policy.copies), default=0)
        numbers = self._chains.get(copies, [])
        firsts = wheel({number: self._weights[number] for number in numbers})
        # A target that is nearly full gets nothing, unless all are.
        ring = [number for number in numbers if number in firsts]
        made = []
        for first in firsts:
            at = ring.index(first)
            columns: dict[int, int] = {}
            for number in ring[at:] + ring[:at]:
                columns.setdefault(self._firsts[number], number)
                if len(columns) == policy.stripe_count:
                    break
            made.append((policy.stripe_size, tuple(columns.values())))
        self._layouts[policy] = made  # as many as there are policies in use; dropped at the next change of the map
        return made


def of_directory(store: Store, ino: int, inode: Inode) -> bytes | None:
    """The policy that directory *ino* has of its own, as it is stored."""
    return store.get(schema.XATTRS, schema.xattr_key(ino, ATTRIBUTE)) if inode.xattrs else None


def give(store: Store, storage: Storage, ino: int, inode: Inode, parent: int, above: Inode) -> None:
    """Lay out *inode*, a new file in directory *parent*, as the directory or the cluster has it."""
    stored = of_directory(store, parent, above)
    policy = storage.default if stored is None else policy_of(stored, storage.default)
    inode.layout = storage.layout(ino, policy)
    inode.inline = policy.inline


def policy_of(stored: bytes | None, default: Policy) -> Policy:
    return default if stored is None else policy_untrusted(stored, default)


def shown(store: Store, storage: Storage, ino: int, inode: Inode) -> bytes:
    """What ``lockstep.layout`` says of an inode. ENODATA for what has no data."""
    if inode.is_dir:
        return of_directory(store, ino, inode) or storage.default.text()
    if inode.layout is None:
        if inode.inline:
            return storage.default._replace(inline=inode.inline).text()
        raise FileSystemError(errno.ENODATA)
    stripe_size, chains = inode.layout
    text = Policy(stripe_size, len(chains), copies_of(chains[0]), inode.inline).text()
    return text + b" chains=" + b",".join(str(chain).encode() for chain in chains)


def meta(store: Store) -> tuple[int, int, int, int, int]:
    """(version, stripe_size, stripe_count, copies, inline) as stored."""
    raw = store.get(schema.META, schema.META_STORAGE)
    assert raw is not None, "the machine writes it before anything is applied"
    version, stripe_size, stripe_count, copies, inline = unpack_untrusted(raw)
    return version, stripe_size, stripe_count, copies, inline


class Target(NamedTuple):
    """One record of TARGETS, its fields in order."""

    address: str
    state: str
    """serving, draining or offline (wire.chains); of a chain's member its own state counts."""
    uuid: bytes
    run: int
    """The run of its process that the chains' states are about; 0: none yet."""
    draining: bool
    share: int = SHARE_MAX
    """How much of new files it should get: see mds.placement."""
    incarnation: int = 0
    """Of that run: see wire.targetops.TargetUp."""

    @staticmethod
    def unpack(raw: bytes) -> Target:
        return Target(*unpack_untrusted(raw))

    def encode(self) -> bytes:
        return pack(tuple(self))

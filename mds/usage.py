"""Pure. What QUOTAS should count, from the inodes themselves: for the check of a state, and to repair one.

One record per quota root in memory, and one number per directory. The rules are :mod:`mds.schema`'s.
"""

from __future__ import annotations

from collections.abc import Iterator

from mds import schema
from mds.namespace import quota
from mds.namespace.inode import decode
from mds.namespace.quota import Quota
from mds.store import Store
from wire import ids
from wire.codec import unpack_untrusted

Sums = tuple[int, int, int]
"""(bytes, inodes, of these directories)."""


def problems(store: Store) -> Iterator[str]:
    """What is wrong with quotas, one sentence each."""
    roots = _roots(store)
    yield from _check_tree(store, roots)
    for root, found in counted(store).items():
        record = roots.get(root)
        if record is None:
            yield f"inodes are counted in quota root {root}, which is not there"
        elif (record.bytes_used, record.inodes_used, record.directories) != found:
            yield (
                f"quota root {root} counts {record.bytes_used} bytes, {record.inodes_used} inodes, "
                f"{record.directories} directories; it has {found[0]}, {found[1]}, {found[2]}"
            )


def repaired(store: Store) -> list[tuple[int, Quota | None]]:
    """The records of QUOTAS that have to be put (None: deleted) so that they count what there is.

    Where an inode names a root without a record, that root has one again, without limits, and goes with its last inode.
    """
    roots = _roots(store)
    found = counted(store)
    changes: list[tuple[int, Quota | None]] = []
    for root in sorted({*roots, *found}):
        sums = found.get(root, (0, 0, 0))
        record = roots.get(root)
        if record is not None and sums == (record.bytes_used, record.inodes_used, record.directories):
            continue
        record = record or Quota(0, False)
        record.bytes_used, record.inodes_used, record.directories = sums
        changes.append((root, record if record.live or sums[1] else None))
    return changes


def counted(store: Store) -> dict[int, Sums]:
    """Root -> the sums over all inodes whose ``quota`` is that root, or one whose record leads to it."""
    direct: dict[int, list[int]] = {}
    for _key, value in store.scan(schema.INODES, b"", None):
        inode = decode(value)
        if inode.quota:
            sums = direct.setdefault(inode.quota, [0, 0, 0])
            sums[0] += inode.size if inode.is_file else 0
            sums[1] += 1
            sums[2] += inode.is_dir
    roots = _roots(store)
    total: dict[int, list[int]] = {root: [0, 0, 0] for root in {*roots, *direct}}
    for root, sums in sorted(direct.items()):
        seen: set[int] = set()
        at = root
        while at and at not in seen:  # records that lead in a circle are told of elsewhere
            seen.add(at)
            of = total.setdefault(at, [0, 0, 0])
            for k in range(3):
                of[k] += sums[k]
            at = roots[at].parent if at in roots else 0
    return {root: (sums[0], sums[1], sums[2]) for root, sums in sorted(total.items())}


def _roots(store: Store) -> dict[int, Quota]:
    scan = store.scan(schema.QUOTAS, b"", None)
    return {int.from_bytes(key, "big"): Quota(*unpack_untrusted(value)) for key, value in scan}


def _check_tree(store: Store, roots: dict[int, Quota]) -> Iterator[str]:
    """Roots are directories that say so, and below each directory is counted where it is."""
    settled = not quota.counting(store)
    where: dict[int, int] = {}
    parents: dict[int, int] = {}
    for key, value in store.scan(schema.INODES, b"", None):
        inode = decode(value)
        if inode.is_dir:
            ino = int.from_bytes(key, "big")
            where[ino] = inode.quota
            parents[ino] = inode.parent
    for root, record in roots.items():
        if record.live != (where.get(root) == root):
            yield f"quota root {root} is {'' if record.live else 'not '}in use, its directory says otherwise"
        if record.parent and record.parent not in roots:
            yield f"quota root {root} lies in {record.parent}, which is none"
        seen = {root}
        at = record.parent
        while at in roots and at not in seen:
            seen.add(at)
            at = roots[at].parent
        if at in seen:
            yield f"quota root {root} lies within itself"
    if not settled:
        return
    for ino, counted_in in where.items():
        above = where.get(parents[ino], 0) if ino != ids.ROOT_INO else 0
        if counted_in == ino:
            if ino in roots and roots[ino].parent != above:
                yield f"quota root {ino} counts for {roots[ino].parent}, it lies in {above}"
        elif counted_in != above:
            yield f"directory {ino} is counted in quota root {counted_in}, its parent in {above}"

"""`lockstep fsck`: is the namespace what it should be, and have the storage targets what it says, no more and no less?

Looked at is a copy of one replica's state, at one index (:mod:`admin.copying`), while everybody goes on. The order
matters for what is compared with it: the copy first, the targets' objects after it. Then

- an object whose inode was made later is known by its number, and passed over;
- a file that was removed later has its inode in the copy, whether its objects are gone by now or not;
- an object whose inode is not in the copy and not queued for deletion there was deleted before, at every target that
  serves its chain, and no inode ever has that number again. If it is there it was left behind.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import trio

from admin.ask import AskError, call
from admin.copying import Copy, Object, objects_of, state_of
from admin.targets import storage_map
from daemon.config import Config
from mds import schema
from mds.check import check
from mds.mend import mends
from mds.namespace.inline import Contents
from mds.namespace.inode import decode
from wire import mending
from wire.chains import SERVING
from wire.codec import encode, unpack_untrusted
from wire.errors import FileSystemError, Status
from wire.mending import Mend
from wire.messages import AdminCall

LISTED_MAX: Final = 1000
"""Findings that are described; the others are counted."""
ROUNDS: Final = 3
"""What is mended may show something else."""
ORDER_S: Final = 30.0


@dataclass(slots=True)
class Found:
    """What one look has found."""

    index: int
    replica: int
    problems: list[str] = field(default_factory=list)
    hollow: int = 0
    """Files with a size and no object at all: they are one hole, or have lost everything."""
    objects: int = 0
    inodes: int = 0
    mended: int = 0
    """By the rounds before this look."""

    def to_json(self) -> dict[str, Any]:
        """Plain values, with the keys that `lockstep fsck --json` promises."""
        return {
            "replica": self.replica, "index": self.index, "inodes": self.inodes, "objects": self.objects,
            "problems": self.problems, "hollow_files": self.hollow, "mended": self.mended,
        }  # fmt: skip


def fsck(
    config: Config, replica: int | None, objects: bool, repair: bool, where: Path | None, say: Callable[[str], None]
) -> Found:
    """Look; with *repair* have ordered what puts it right, and look again. Raises as :func:`admin.copying.state_of`,
    :class:`admin.ask.AskError`, FileSystemError."""
    mended = 0
    for number in range(ROUNDS):
        with state_of(config, replica, where) as copy:
            say(f"replica {copy.replica} at index {copy.index}")
            found, wanted = _look(config, copy, objects, repair)
        found.mended = mended
        if not repair or not wanted or number == ROUNDS - 1:
            break
        done = trio.run(_order_all, config, wanted)
        say(f"{done} of {len(wanted)} things put right")
        mended += done
    return found


def _look(config: Config, copy: Copy, objects: bool, repair: bool) -> tuple[Found, list[Mend]]:
    found = Found(copy.index, copy.replica, check(copy.store))
    wanted = list(mends(copy.store)) if repair and found.problems else []
    if objects:
        held, missing = trio.run(objects_of, config)
        found.problems += missing
        wanted += _left_behind(config, copy, held, found, repair)
        _hollow(copy, held, found, whole=not missing)
    return found, wanted


async def _order_all(config: Config, wanted: list[Mend]) -> int:
    """Each once (see wire.mending.Mend), by a replica that serves; how many changed something."""
    done = 0
    at = 0
    for mend in wanted:
        for _ in config.replicas:
            address = config.replicas[at % len(config.replicas)].address
            try:
                done += bool((await call(config, address, AdminCall(1, encode(mend)), ORDER_S)).body)
                break
            except FileSystemError as exc:
                if exc.status not in (Status.NOT_SERVING, Status.OVERLOADED):
                    raise
                at += 1  # it was not taken: by another, then
            except AskError:
                at += 1
                break  # carried out or not: the next look tells
    return done


def _left_behind(
    config: Config, copy: Copy, held: dict[int, set[Object]], found: Found, repair: bool
) -> list[Mend]:
    """Objects without inodes."""
    _, _, chains = trio.run(storage_map, config)
    serving = {(chain, t) for chain, _, members in chains for t, state in members if state == SERVING}
    left: dict[int, dict[int, int]] = {}
    moved = _moved(copy)
    for target, objects in sorted(held.items()):
        found.objects += len(objects)
        for ino, column, chain in objects:
            # A member that is being synced loses what it should not have by that.
            if ino >= copy.numbers_below or (chain, target) not in serving:
                continue
            key = schema.u64(ino)
            known = ino in moved or copy.store.get(schema.INODES, key) is not None
            if not known and copy.store.get(schema.RECLAIM, key) is None and not copy.may_be_newer(ino):
                left.setdefault(ino, {})[column] = chain
    wanted = []
    for number, (ino, columns) in enumerate(sorted(left.items())):
        if number < LISTED_MAX:
            found.problems.append(f"{len(columns)} objects of inode {ino} are there, and the inode is not")
        elif number == LISTED_MAX:
            found.problems.append(f"objects of {len(left) - LISTED_MAX} more inodes that are not there")
        if repair:
            some = next(iter(columns.values()))  # of a column without an object nothing is deleted anywhere
            of = tuple(columns.get(column, some) for column in range(max(columns) + 1))
            wanted.append(Mend(mending.OBJECTS, ino, 0, b"", 0, 0, of))
    return wanted


def _moved(copy: Copy) -> set[int]:
    """Numbers of objects that are not their inodes': of files that have grown out of the metadata, or are about to."""
    numbers = {decode(value).objects for _, value in copy.store.scan(schema.INODES, b"", None)}
    numbers.update(Contents(*unpack_untrusted(v)).growing for _, v in copy.store.scan(schema.INLINE, b"", None))
    return numbers - {0}


def _hollow(copy: Copy, held: dict[int, set[Object]], found: Found, whole: bool) -> None:
    """Inodes without objects, if all objects are known."""
    there = {ino for objects in held.values() for ino, _, _ in objects}
    for key, value in copy.store.scan(schema.INODES, b"", None):
        found.inodes += 1
        inode = decode(value)
        if whole and inode.is_file and inode.size and inode.layout is not None and not inode.inline:
            found.hollow += (inode.objects or int.from_bytes(key, "big")) not in there

"""Snapshots of a replica's state: sent to a learner while requests go on, received and installed by one."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from io import BufferedReader
from pathlib import Path
from typing import Any, Final

import trio

from mds import limits
from mds.store import Store, StoreFailed
from wire.group import SnapshotPart
from wire.peer import Buffer, Connection, ConnectionLost

log = logging.getLogger(__name__)

DATA: Final = "data.mdb"
INCOMING: Final = "incoming"
"""Directory, beside the state, where a snapshot is put together; what a crash leaves there is void."""


def clear_leftovers(base: Path, state: Path) -> None:
    """Remove what a crash may have left of snapshots in *base*; put *state* back if it came between two renames."""
    if not state.exists():
        for path in base.glob("replaced-*/state"):
            path.rename(state)
    for path in [base / INCOMING, *base.glob("replaced-*")]:
        shutil.rmtree(path, ignore_errors=True)


class Outgoing:
    """The copies that are being sent."""

    def __init__(self) -> None:
        self._under_way: dict[trio.CancelScope, trio.Event] = {}

    async def send(
        self,
        store: Store,
        views: tuple[Any, ...],
        conn: Connection,
        begun: Callable[[], Awaitable[None]],
        void: Callable[[], bool],
    ) -> int:
        """Send a consistent copy of what *store* has written over *conn*. Returns its size in bytes.

        The position it belongs to is stored in it; *begun* is called when it is settled which that is. LMDB writes the
        copy into a pipe, in a thread, as fast as it is taken: requests go on, and nothing of it is kept here. Raises
        ConnectionLost, also when *void* says that the copy is not to be used after all; StoreFailed; or
        trio.TooSlowError when whoever takes it takes nothing for long.
        """
        with trio.CancelScope() as scope:
            over = self._under_way[scope] = trio.Event()
            try:
                return await _send(store, views, conn, begun, void)
            finally:
                del self._under_way[scope]
                over.set()
        raise ConnectionLost("the state that was copied is not used any more")

    async def end(self) -> None:
        """Break off all of them: the store is about to be closed."""
        under_way = dict(self._under_way)
        for scope in under_way:
            scope.cancel()
        for over in under_way.values():
            await over.wait()


async def _send(
    store: Store,
    views: tuple[Any, ...],
    conn: Connection,
    begun: Callable[[], Awaitable[None]],
    void: Callable[[], bool],
) -> int:
    read_end, write_end = os.pipe()
    fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, limits.SNAPSHOT_PIPE)
    failed: list[StoreFailed] = []

    def copy() -> None:
        try:
            store.copy_into(write_end)
        except StoreFailed as exc:
            failed.append(exc)  # raised where it can be told from what became of the connection
        finally:
            os.close(write_end)

    broken: ConnectionLost | StoreFailed | trio.TooSlowError
    with os.fdopen(read_end, "rb") as pipe:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, copy)
            try:
                return await _send_parts(pipe, failed, views, conn, begun, void)
            except (ConnectionLost, StoreFailed, trio.TooSlowError) as exc:
                broken = exc  # raised out of the nursery, which would wrap it: nobody would know it for what it is
            finally:
                pipe.close()  # a copy under way fails, and its thread ends
    raise broken


async def _send_parts(
    pipe: BufferedReader,
    failed: list[StoreFailed],
    views: tuple[Any, ...],
    conn: Connection,
    begun: Callable[[], Awaitable[None]],
    void: Callable[[], bool],
) -> int:
    size = 0
    number = 0
    digest = hashlib.blake2b(digest_size=16)
    while True:
        part = await trio.to_thread.run_sync(pipe.read, limits.SNAPSHOT_PART)
        digest.update(part)
        size += len(part)
        last = len(part) < limits.SNAPSHOT_PART
        await begun()
        if last and failed:
            raise failed[0]
        if void():
            # 1. A learner is being sent a copy. 2. The sender's state is found to differ from another one's, and nobody
            # can tell which is right. 3. The copy arrives, is a member, agrees with what it was copied from, and the
            # other one, perhaps the only good one, is given up.
            raise ConnectionLost("it is in doubt whether the state that is copied is right")
        conn.send(SnapshotPart(number, last, digest.digest() if last else b"", b"", views), part)
        with trio.fail_after(limits.SNAPSHOT_STALL_S):
            await conn.drain()
        if conn.closed is not None:
            raise ConnectionLost(conn.closed)
        if last:
            return size
        number += 1


class Receiver:
    """Puts the parts of one snapshot at a time together in ``base/incoming``."""

    def __init__(self, base: Path) -> None:
        self.path = base / INCOMING
        self._number = 0
        self._digest = hashlib.blake2b(digest_size=16)

    def part(self, m: SnapshotPart, bulk: Buffer) -> bool:
        """Take one part. True: the snapshot is complete and its checksum is right."""
        if m.number == 0:
            shutil.rmtree(self.path, ignore_errors=True)
            self.path.mkdir()
            self._number = 0
            self._digest = hashlib.blake2b(digest_size=16)
        elif m.number != self._number:
            return False  # of a snapshot whose beginning was lost with a link: the feeder is asked again
        # Nobody else may read it: the keys of capabilities are in there.
        with open(os.open(self.path / DATA, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as file:
            file.write(bulk)
        self._digest.update(bulk)
        self._number += 1
        if not m.last:
            return False
        self._number = -1  # nothing is added to it any more, only another one begun
        if self._digest.digest() != m.digest:
            log.error("a snapshot arrived damaged (checksum): it is dropped and asked for again")
            return False
        return True

    def sync(self) -> None:
        """Blocking: make the snapshot durable."""
        for path in (self.path / DATA, self.path):
            fd = os.open(path, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)


def swap_in(base: Path, state: Path) -> None:
    """Replace directory *state* by the received snapshot; a crash leaves the old or the new one."""
    old = Path(tempfile.mkdtemp(prefix="replaced-", dir=base))
    if state.exists():
        state.rename(old / "state")
    (base / INCOMING).rename(state)
    fd = os.open(base, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    shutil.rmtree(old, ignore_errors=True)

"""Clients that contend for the names of cells and write down what they asked and what they were told.

Run as a process, because a client may be killed or stopped as well::

    python -m tests.faults.worker CONFIG LOG SEED SESSIONS FIRST

SESSIONS sessions, numbered from FIRST and each preferring another replica, work in the cells of the round that
standard input names last, one ``round N`` per line, until that ends; or each lists what is in some cells
(``list CELL ...``). Beside them a probe per replica (tests.faults.probe) asks on where a session would have left. LOG
is tests.faults.log's.
"""

from __future__ import annotations

import functools
import itertools
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random
from typing import Any, Final

import trio

from client.api import FileSystem, open_file_system
from client.credentials import ROOT
from client.inodes import FileHandle
from client.volume import Volume
from daemon.config import Config, load
from tests.faults.cells import (
    CREATE,
    DIRECTORIES,
    EXCHANGE,
    FILE,
    NAMES,
    NOREPLACE,
    READS,
    REPLACE,
    SLOTS,
)
from tests.faults.log import Log, seen
from tests.faults.probe import Probe
from wire import ids, ops

CELLS: Final = 2
"""Cells of a round."""
OPEN_MAX: Final = 3
"""Files a session keeps open for a while."""
KNOWN_MAX: Final = 12
"""Inodes of a cell that a session remembers, gone or not."""
THINK_S: Final = 0.016
"""A session pauses for so long on average: what the faults do is looked at, not how fast the service is."""
READERS: Final = 0.4
"""Share of the sessions that only read during a round. A replica that is cut off holds up whoever asks it to change
something, and only who asks on would be told what is not so any more."""
XATTR: Final = b"user.register"


def cell_directory(round_number: int, cell: int, directory: int) -> bytes:
    return f"r{round_number}c{cell}d{directory}".encode()


class Session:
    """One client: its operations follow each other."""

    def __init__(self, number: int, volume: Volume, log: Log, random: Random, directories: dict[bytes, int]) -> None:
        """*directories*: the cells' that this process knows, by name."""
        self.number = number
        self._volume = volume
        self._log = log
        self._random = random
        self._directories = directories
        self._known: dict[str, list[int]] = {}
        self._open: list[tuple[str, FileHandle]] = []
        self._values = itertools.count(1)
        self._round = 0
        self._reads = False

    # -- the cells' directories

    async def _directory(self, round_number: int, cell: int, directory: int) -> int:
        """Its inode. All sessions try to make it; the one that comes first does."""
        name = cell_directory(round_number, cell, directory)
        while name not in self._directories:
            where = f"/{name.decode()}"
            made = await self._log.operation(self.number, where, ("make",), lambda: self._mkdir(ids.ROOT_INO, name))
            if made is None:
                made = await self._find(name)
            if made is not None:
                self._directories[name] = made[0][0]
        return self._directories[name]

    async def _find(self, name: bytes) -> Any:
        where = f"/{name.decode()}"
        return await self._log.operation(self.number, where, ("find",), lambda: self._lookup(ids.ROOT_INO, name))

    # -- operations; each answers what the model (tests.faults.cells) compares

    async def _mkdir(self, parent: int, name: bytes) -> Any:
        return [seen(await self._volume.mkdir(ROOT, parent, name, 0o755))]

    async def _lookup(self, parent: int, name: bytes) -> Any:
        return [seen(await self._volume.lookup(ROOT, parent, name))]

    async def _create(self, cell: str, parent: int, name: bytes) -> Any:
        handle, attr = await self._volume.create(ROOT, parent, name, 0o644, os.O_CREAT | os.O_EXCL | os.O_RDWR)
        self._open.append((cell, handle))
        return [seen(attr)]

    async def _open_file(self, cell: str, ino: int) -> Any:
        handle = await self._volume.open(ROOT, ino, os.O_RDONLY)
        self._open.append((cell, handle))
        return [seen(handle.data.attr)]

    async def _readdir(self, parent: int) -> Any:
        handle = await self._volume.opendir(ROOT, parent)
        try:
            await self._volume.entries(handle, 0)
            return sorted((int(name[1:]), seen(attr)) for name, _, attr in handle.buffer)
        finally:
            self._volume.close_directory(handle.number)

    async def _stat(self, ino: int) -> Any:
        return [seen(await self._volume.getattr(ino))]

    async def _links(self, ino: int) -> Any:
        return (await self._volume.getattr(ino)).nlink

    async def _set_mtime(self, ino: int, value: int) -> Any:
        return [seen(await self._volume.setattr(ops.SetAttr(ROOT, ino, ops.SET_MTIME, 0, 0, 0, 0, 0, value, False)))]

    async def _get_xattr(self, ino: int) -> Any:
        return (await self._volume.getxattr(ROOT, ino, XATTR)).decode()

    async def _link(self, ino: int, parent: int, name: bytes) -> Any:
        return [seen(await self._volume.link(ROOT, ino, parent, name))]

    # -- what to do next

    async def step(self, round_number: int) -> None:
        """One operation in a cell of the round."""
        random = self._random
        if round_number != self._round:
            self._round = round_number
            self._reads = random.random() < READERS
        number = random.randrange(CELLS)
        parents = [await self._directory(round_number, number, d) for d in range(DIRECTORIES)]
        cell = f"{round_number}.{number}"
        known = self._known.setdefault(cell, [])
        if len(self._open) > OPEN_MAX or (self._open and random.random() < 0.1):
            _, handle = self._open.pop(0)
            await self._volume.close_file(handle)
        what, run = self._choose(cell, parents, known)
        result = await self._log.operation(self.number, cell, what, run)
        if isinstance(result, list) and what[0] in ("create", "lookup"):
            ino, kind, *_ = result[0]
            if kind == FILE and ino not in known:
                known.append(ino)
                del known[:-KNOWN_MAX]

    def _choose(
        self, cell: str, parents: list[int], known: list[int]
    ) -> tuple[tuple[Any, ...], Callable[[], Awaitable[Any]]]:
        random, volume = self._random, self._volume
        slot, other = random.sample(range(SLOTS), 2)
        at = (parents[slot // NAMES], b"n%d" % (slot % NAMES))
        to = (parents[other // NAMES], b"n%d" % (other % NAMES))
        directory = random.randrange(DIRECTORIES)
        ino = random.choice(known) if known else parents[0]
        value = f"{self.number}.{next(self._values)}"
        open_here = [handle.data.ino for where, handle in self._open if where == cell]
        kinds = ["create"] * 6 + ["unlink"] * 4 + ["lookup"] * 6 + ["readdir"] * 3 + ["rename"] * 4
        kinds += ["mkdir", "rmdir", "links"]
        if known:
            kinds += ["link"] * 2 + ["stat"] * 4 + ["set_mtime"] * 3 + ["get_xattr"] * 3 + ["set_xattr"] * 3
            kinds += ["remove_xattr", "open"]
        if open_here:
            kinds += ["fstat"] * 2
        if self._reads:
            kinds = [kind for kind in kinds if kind in READS]
        match kind := random.choice(kinds):
            case "create":
                return (kind, slot), lambda: self._create(cell, *at)
            case "mkdir":
                return (kind, slot), lambda: self._mkdir(*at)
            case "unlink":
                return (kind, slot), lambda: volume.unlink(ROOT, *at)
            case "rmdir":
                return (kind, slot), lambda: volume.rmdir(ROOT, *at)
            case "lookup":
                return (kind, slot), lambda: self._lookup(*at)
            case "readdir":
                return (kind, directory), lambda: self._readdir(parents[directory])
            case "links":
                return (kind, directory), lambda: self._links(parents[directory])
            case "rename":
                flags = random.choice((0, NOREPLACE, EXCHANGE, EXCHANGE))
                return (kind, slot, other, flags), lambda: volume.rename(ROOT, *at, *to, flags)
            case "link":
                return (kind, ino, slot), lambda: self._link(ino, *at)
            case "stat":
                return (kind, ino), lambda: self._stat(ino)
            case "open":
                return ("stat", ino), lambda: self._open_file(cell, ino)
            case "fstat":
                held = random.choice(open_here)
                return (kind, held), lambda: self._stat(held)
            case "set_mtime":
                # Unique, and never what the service itself would set.
                mtime = int(value.replace(".", "0000"))
                return (kind, ino, mtime), lambda: self._set_mtime(ino, mtime)
            case "get_xattr":
                return (kind, ino), lambda: self._get_xattr(ino)
            case "remove_xattr":
                return (kind, ino), lambda: volume.removexattr(ROOT, ino, XATTR)
            case "set_xattr":
                flags = random.choice((0, CREATE, REPLACE))
                return (kind, ino, value, flags), lambda: volume.setxattr(ROOT, ino, XATTR, value.encode(), flags)
        raise AssertionError(kind)

    async def list_all(self, cells: list[str]) -> None:
        """Read everything once more."""
        for cell in cells:
            for directory in range(DIRECTORIES):
                name = cell_directory(*map(int, cell.split(".")), directory)
                found = await self._find(name)
                if found is not None:
                    read = functools.partial(self._readdir, found[0][0])
                    await self._log.operation(self.number, cell, ("readdir", directory), read)


class Worker:
    """The sessions of one process."""

    def __init__(self, config: Config, log: Log, seed: int, sessions: int, first: int) -> None:
        self._config = config
        self._log = log
        self._random = Random(seed)
        self._numbers = range(first, first + sessions)
        self._round = 0
        self._changed = trio.Event()

    async def run(self) -> None:
        async with AsyncExitStack() as stack:
            sessions = []
            directories: dict[bytes, int] = {}
            replicas = [r.id for r in self._config.replicas]
            for number in self._numbers:
                prefer = replicas[(number - 1) % len(replicas)]
                fs: FileSystem = await stack.enter_async_context(
                    open_file_system(self._config, name=f"session-{number}", prefer_replica=prefer)
                )
                rng = Random(self._random.getrandbits(64))
                sessions.append(Session(number, fs.volume, self._log, rng, directories))
            print("ready", flush=True)
            async with trio.open_nursery() as nursery:
                probes = [Probe(self._config, r, self._log, directories) for r in self._config.replicas]
                async for line in _lines():
                    match line.split():
                        case ["round", number]:
                            if not self._round:
                                for session in sessions:
                                    nursery.start_soon(self._work, session)
                                for probe in probes:
                                    nursery.start_soon(probe.run)
                            self._round = int(number)
                            for probe in probes:
                                probe.cells = [
                                    (f"{number}.{cell}", directory, cell_directory(self._round, cell, directory))
                                    for cell in range(CELLS)
                                    for directory in range(DIRECTORIES)
                                ]
                        case ["list", *cells]:
                            for session in sessions:
                                nursery.start_soon(session.list_all, cells)
                self._round = -1
                for probe in probes:
                    probe.stop()
            print("done", flush=True)

    async def _work(self, session: Session) -> None:
        while self._round >= 0:
            await session.step(self._round)
            await trio.sleep(self._random.random() * 2 * THINK_S)


async def _lines() -> AsyncIterator[str]:
    """Standard input, line by line."""
    rest = b""
    with os.fdopen(os.dup(0), "rb", buffering=0) as pipe:
        os.set_blocking(pipe.fileno(), False)
        while True:
            await trio.lowlevel.wait_readable(pipe.fileno())
            data = pipe.read(4096)
            if not data:
                return
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                yield line.decode()


def main(argv: list[str]) -> int:
    if len(argv) != 5:
        print("usage: python -m tests.faults.worker CONFIG LOG SEED SESSIONS FIRST", file=sys.stderr)
        return 2
    config, log, seed, sessions, first = argv
    worker = Worker(load(Path(config)), Log(Path(log)), int(seed), int(sessions), int(first))
    trio.run(worker.run)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

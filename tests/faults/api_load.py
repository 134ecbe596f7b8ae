"""A load through the client library, as a process: makes, renames, reads and removes names, one operation at a time.

    python -m tests.faults.api_load CONFIG DIRECTORY REPLICA        until standard input ends

Each operation must succeed and find what those before it have left.  Prints one JSON object per line: ``operations``,
``errors``, ``longest_ms`` (the longest operation).  A client that is told of an error has been failed.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Final

import trio

from client.api import FileSystem, open_file_system
from daemon.config import load

REPORT_EVERY: Final = 20
FILES_MAX: Final = 200


class Load:
    """One directory and what must be in it."""

    def __init__(self, fs: FileSystem, directory: str) -> None:
        self.fs = fs
        self.directory = directory
        self.random = random.Random(directory)
        self.names: dict[str, int] = {}
        """Name -> permission bits."""
        self.made = 0
        self.operations = 0
        self.errors: list[str] = []
        self.longest_s = 0.0

    def _path(self, name: str) -> str:
        return f"{self.directory}/{name}"

    async def step(self) -> None:
        """One operation; the expectation changes only after the call has returned."""
        kinds = [self.create] * 3 + ([self.stat, self.rename, self.chmod, self.listing] if self.names else [])
        if len(self.names) > FILES_MAX:
            kinds += [self.remove] * 8
        kind = self.random.choice(kinds)
        began = time.monotonic()
        try:
            await kind()
        except OSError as exc:
            self.errors.append(f"{kind.__name__}: {exc}")
        self.longest_s = max(self.longest_s, time.monotonic() - began)
        self.operations += 1

    def _some(self) -> str:
        return self.random.choice(sorted(self.names))

    async def create(self) -> None:
        self.made += 1
        name = f"f{self.made:06d}"
        await (await self.fs.open(self._path(name), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o640)).close()
        self.names[name] = 0o640

    async def stat(self) -> None:
        name = self._some()
        mode = (await self.fs.stat(self._path(name))).mode & 0o777
        if mode != self.names[name]:
            self.errors.append(f"stat: {name} has mode {mode:o}, not {self.names[name]:o}")

    async def chmod(self) -> None:
        name, mode = self._some(), self.random.choice((0o600, 0o640, 0o666))
        await self.fs.chmod(self._path(name), mode)
        self.names[name] = mode

    async def rename(self) -> None:
        name = self._some()
        self.made += 1
        new = f"r{self.made:06d}"
        await self.fs.rename(self._path(name), self._path(new))
        self.names[new] = self.names.pop(name)

    async def remove(self) -> None:
        name = self._some()
        await self.fs.unlink(self._path(name))
        del self.names[name]

    async def listing(self) -> None:
        found = sorted(name.decode() for name in await self.fs.listdir(self.directory))
        if found != sorted(self.names):
            differ = sorted(set(found) ^ set(self.names))[:5]
            self.errors.append(f"listdir: {len(found)} names, not {len(self.names)}: {differ}")

    def say(self) -> None:
        longest = round(self.longest_s * 1000)
        said = {"operations": self.operations, "errors": self.errors, "longest_ms": longest}
        print(json.dumps(said), flush=True)


async def work(config: Path, directory: str, replica: int) -> int:
    async with open_file_system(load(config), name=f"load{directory}", prefer_replica=replica) as fs:
        await fs.mkdir(directory)
        load_ = Load(fs, directory)
        ended = False

        async def until_told() -> None:
            nonlocal ended
            await trio.lowlevel.wait_readable(sys.stdin.fileno())
            ended = True

        async with trio.open_nursery() as nursery:
            nursery.start_soon(until_told)
            while not ended and len(load_.errors) <= 20:
                await load_.step()
                if load_.operations % REPORT_EVERY == 0 or load_.errors:
                    load_.say()
            nursery.cancel_scope.cancel()
        await load_.listing()
        load_.say()
        return 1 if load_.errors else 0


if __name__ == "__main__":
    sys.exit(trio.run(work, Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))

"""A client of :mod:`bench.scale`: makes files and looks them up, many at a time, over a session of its own.

A process of its own::

    python -m bench.scale_load CONFIG NAME REPLICA SHARE SHARES

File K lies in directory K // 1000. There are SHARES of these processes, and this one makes the directories whose number
modulo that is SHARE. It answers each line on standard input with one JSON object:

    create FIRST COUNT   make all files of its directories from FIRST on, COUNT over all shares
    lookup COUNT SEED    look up COUNT of the files it has made, at random
    load WIDTH           begin to make files in a directory of its own, WIDTH at a time, until ``rest``
    mark                 the longest time between two answers of the load is measured from now on
    rest                 end the load; say how many were made, and that time
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from random import Random
from typing import Any, Final

import trio

from client.attributes import attr_untrusted
from client.limits import SLOTS
from client.service import MetadataClient
from daemon import logs
from daemon.config import Config, load
from wire import ids, ops

ROOT: Final = ops.Cred(0, 0, ())
PER_DIRECTORY: Final = 1000


class Share:
    """What one process does."""

    def __init__(self, client: MetadataClient, name: str, share: int, shares: int) -> None:
        self._client = client
        self._name = name
        self._share = share
        self._shares = shares
        self._directories: dict[int, int] = {}
        """Number of a directory -> its inode."""
        self._files: dict[int, int] = {}
        """Number of a directory -> how many files are in it: they are made in order."""
        self._loading: trio.CancelScope | None = None
        self._loads = 0
        self._answers = 0
        self._last = 0.0
        self._longest = 0.0

    async def _directory(self, number: int) -> int:
        if number not in self._directories:
            name = b"d%06d" % number
            made = await self._client.request(ops.Mkdir(ROOT, ids.ROOT_INO, name, 0o755))
            self._directories[number] = attr_untrusted(made).ino
            self._files[number] = 0
        return self._directories[number]

    async def _make(self, directory: int, name: bytes) -> None:
        made = await self._client.request(ops.Create(ROOT, directory, name, 0o644))
        self._client.handle_closed(attr_untrusted(made).ino)

    async def create(self, first: int, count: int) -> dict[str, Any]:
        mine = (k for k in range(first, first + count) if k // PER_DIRECTORY % self._shares == self._share)
        for number in range(first // PER_DIRECTORY, (first + count - 1) // PER_DIRECTORY + 1):
            if number % self._shares == self._share:
                await self._directory(number)
        began = time.monotonic()
        done = 0

        async def work() -> None:
            nonlocal done
            for k in mine:
                await self._make(self._directories[k // PER_DIRECTORY], b"f%09d" % k)
                self._files[k // PER_DIRECTORY] += 1
                done += 1

        await _wide(work, SLOTS)
        return {"done": done, "seconds": time.monotonic() - began}

    async def lookup(self, count: int, seed: int) -> dict[str, Any]:
        random = Random(seed)
        numbers = sorted(self._directories)
        wanted = []
        for _ in range(count):
            number = random.choice(numbers)
            wanted.append((self._directories[number], number * PER_DIRECTORY + random.randrange(self._files[number])))
        left = iter(wanted)
        began = time.monotonic()

        async def work() -> None:
            for directory, k in left:
                attr_untrusted(await self._client.query(ops.Lookup(ROOT, directory, b"f%09d" % k)))

        await _wide(work, SLOTS)
        return {"done": count, "seconds": time.monotonic() - began}

    async def load(self, width: int, nursery: trio.Nursery) -> dict[str, Any]:
        self._loads += 1
        name = f"{self._name}-{self._loads}".encode()
        made = await self._client.request(ops.Mkdir(ROOT, ids.ROOT_INO, name, 0o755))
        directory = attr_untrusted(made).ino
        self._answers = 0
        self.mark()
        self._loading = trio.CancelScope()

        async def work() -> None:
            while True:
                self._answers += 1
                await self._make(directory, b"l%09d" % self._answers)
                now = time.monotonic()
                self._longest = max(self._longest, now - self._last)
                self._last = now

        async def run() -> None:
            assert self._loading is not None
            with self._loading:
                await _wide(work, width)

        nursery.start_soon(run)
        return {}

    def mark(self) -> dict[str, Any]:
        self._longest, self._last = 0.0, time.monotonic()
        return {}

    def rest(self) -> dict[str, Any]:
        assert self._loading is not None, "a load is under way"
        self._loading.cancel()
        longest = max(self._longest, time.monotonic() - self._last)
        return {"answers": self._answers, "longest_ms": round(longest * 1000, 1)}


async def _wide(work: Any, width: int) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(width):
            nursery.start_soon(work)


async def serve(config: Config, name: str, replica: int, share: int, shares: int) -> None:
    replicas = tuple((r.id, r.address) for r in config.replicas)
    client = MetadataClient(config.cluster.id, replicas, name, prefer=replica)
    async with trio.open_nursery() as nursery:
        await nursery.start(client.run)
        await client.wait_attached()
        mine = Share(client, name, share, shares)
        while True:
            line = await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)
            match line.split():
                case []:
                    break
                case ["create", first, count]:
                    said = await mine.create(int(first), int(count))
                case ["lookup", count, seed]:
                    said = await mine.lookup(int(count), int(seed))
                case ["load", width]:
                    said = await mine.load(int(width), nursery)
                case ["mark"]:
                    said = mine.mark()
                case ["rest"]:
                    said = mine.rest()
                case words:
                    raise AssertionError(f"{words} is no command of bench.scale")
            print(json.dumps(said), flush=True)
        nursery.cancel_scope.cancel()


def main(argv: list[str]) -> int:
    if len(argv) != 5:
        print("usage: python -m bench.scale_load CONFIG NAME REPLICA SHARE SHARES", file=sys.stderr)
        return 2
    config, name, replica, share, shares = argv
    logs.setup(name)
    trio.run(serve, load(Path(config)), name, int(replica), int(share), int(shares))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

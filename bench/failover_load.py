"""A client that is never done: creates and queries back to back, and the longest time between two answers.

A process of its own beside :mod:`bench.failover`, so that nothing the benchmark does delays it::

    python -m bench.failover_load CONFIG NAME library       a session of the client library, called NAME
    python -m bench.failover_load CONFIG NAME DIRECTORY     plain POSIX calls in a directory on a mount

It answers every line on standard input with one JSON object: ``mark`` begins a measurement, ``tell`` says what has
been since.  The end of standard input ends it.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import trio

from client.attributes import attr_untrusted
from client.service import MetadataClient
from daemon import logs
from daemon.config import Config, load
from wire import ids, ops

ROOT = ops.Cred(0, 0, ())


class Gaps:
    """When the last answer came, and the longest time without one."""

    def __init__(self) -> None:
        self.answers = 0
        self.errors: list[str] = []
        self._last = time.monotonic()
        self._longest = 0.0
        self._longest_until = ""
        """What ended it, and when."""

    def answered(self, what: str) -> None:
        now = time.monotonic()
        if now - self._last > self._longest:
            self._longest = now - self._last
            self._longest_until = f"{datetime.now(UTC).isoformat(timespec='milliseconds')} {what}"
        self._last = now
        self.answers += 1

    def command(self, line: str) -> str:
        """What to print for *line*."""
        if line == "mark":
            self._longest = 0.0
        longest = max(self._longest, time.monotonic() - self._last)
        return json.dumps(
            {
                "answers": self.answers,
                "longest_ms": longest * 1000,
                "longest_until": self._longest_until,
                "errors": self.errors[:5],
            }
        )


async def library(config: Config, name: str) -> None:
    """The load over a session of its own."""
    gaps = Gaps()
    client = MetadataClient(config.cluster.id, tuple((r.id, r.address) for r in config.replicas), name)
    async with trio.open_nursery() as nursery:
        await nursery.start(client.run)
        await client.wait_attached()
        nursery.start_soon(_work, client, name, gaps)
        async with trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())) as commands:
            rest = b""
            async for data in commands:
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    print(gaps.command(line.decode()), flush=True)
        nursery.cancel_scope.cancel()


async def _work(client: MetadataClient, name: str, gaps: Gaps) -> None:
    directory = attr_untrusted(await client.request(ops.Mkdir(ROOT, ids.ROOT_INO, name.encode(), 0o755))).ino
    count = 0
    while True:
        count += 1
        entry = b"%08d" % count
        ino = attr_untrusted(await client.request(ops.Create(ROOT, directory, entry, 0o644))).ino
        client.handle_closed(ino)
        gaps.answered("create")
        found = attr_untrusted(await client.query(ops.Lookup(ROOT, directory, entry)))
        gaps.answered("lookup")
        if found.ino != ino:
            gaps.errors.append(f"{entry.decode()} is inode {found.ino}, created was {ino}")


def mounted(directory: Path) -> None:
    """The load on a mount. A name that was never there is asked for, so that the kernel has to."""
    gaps = Gaps()
    directory.mkdir()
    rest = b""
    count = 0
    while True:
        count += 1
        try:
            os.close(os.open(directory / f"{count:08d}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            gaps.answered("create")
            if os.path.exists(directory / f"not-{count}"):
                gaps.errors.append(f"not-{count} exists")
            gaps.answered("lookup")
        except OSError as exc:
            gaps.errors.append(str(exc))
        if not select.select([sys.stdin], [], [], 0)[0]:
            continue
        data = os.read(sys.stdin.fileno(), 4096)
        if not data:
            return
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            print(gaps.command(line.decode()), flush=True)


def main(argv: list[str]) -> int:
    if len(argv) != 3:
        print("usage: python -m bench.failover_load CONFIG NAME library|DIRECTORY", file=sys.stderr)
        return 2
    config, name, where = argv
    logs.setup("load")
    if where == "library":
        trio.run(library, load(Path(config)), name)
    else:
        mounted(Path(where))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

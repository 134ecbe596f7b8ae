"""A directory with many entries, listed while others come and go and a replica dies: exact, in constant memory.

``python -m tests.model.listing --entries N`` fills a directory of a cluster with N files and walks it with os.scandir.
Many (LOADED_FROM and more) are there when the cluster starts, from a dump (:mod:`tests.model.prepared`).
What is there during the whole listing must come exactly once, nothing may come twice, and nothing that never was.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import trio

from admin import mounts, runs
from admin.local import LocalCluster
from client.api import open_file_system
from daemon.config import CONFIG_NAME
from tests.live import Live, live, unavailable
from tests.model import prepared

PARALLEL: Final = 48
"""Requests on their way while the directory is filled."""
CHURNED_EVERY: Final = 50
"""One file in so many is removed while the listing goes on, and another one made."""
LOADED_FROM: Final = 200_000
"""So many files are not made one by one."""
GROWTH_MAX_KB: Final = 48 << 10
RESIDENT_MAX_KB: Final = 200 << 10


def resident_kb(cluster: Live, mountpoint: Path) -> int:
    """Resident memory of the process that serves *mountpoint*."""
    (one,) = (m for m in mounts.mount_processes(cluster.run.cluster / CONFIG_NAME) if m.mountpoint == mountpoint)
    for line in Path(f"/proc/{one.who.pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError("a running process has VmRSS")


def names_of(entries: int) -> list[str]:
    """``stay-N``, and for one in CHURNED_EVERY ``go-N`` beside it."""
    return [f"stay-{n}" for n in range(entries)] + [f"go-{n}" for n in range(0, entries, CHURNED_EVERY)]


def fill(cluster: Live, directory: str, entries: int) -> None:
    """Make the files by the client library."""
    names = names_of(entries)

    async def run() -> None:
        async with open_file_system(cluster.cluster.config) as fs:
            await fs.mkdir(directory)

            async def make() -> None:
                while names:
                    await (await fs.create(f"{directory}/{names.pop()}")).close()

            async with trio.open_nursery() as nursery:
                for _ in range(PARALLEL):
                    nursery.start_soon(make)

    trio.run(run)


class Churner:
    """A thread that removes and makes files through another mount while the listing goes on."""

    def __init__(self, directory: Path, entries: int) -> None:
        self.done = 0
        self.errors: list[str] = []
        self._directory = directory
        self._entries = entries
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Churner:
        self._thread.start()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        for n in range(0, self._entries, CHURNED_EVERY):
            if self._stop.is_set():
                return
            try:
                os.unlink(self._directory / f"go-{n}")
                os.close(os.open(self._directory / f"new-{n}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            except OSError as exc:
                self.errors.append(str(exc))
            self.done += 1


def walk(directory: Path, entries: int, halfway: Callable[[], None]) -> int:
    """List *directory*, call *halfway* in the middle, check what came; the number of entries."""
    stayed = bytearray(entries)
    others: set[str] = set()
    count = 0
    with os.scandir(directory) as scan:
        for entry in scan:
            count += 1
            if count == entries // 2:
                halfway()
            kind, _, number = entry.name.partition("-")
            if kind == "stay":
                assert not stayed[int(number)], f"{entry.name} came twice"
                stayed[int(number)] = 1
            else:
                assert kind in ("go", "new"), entry.name
                assert entry.name not in others, f"{entry.name} came twice"
                others.add(entry.name)
            assert entry.is_file(follow_symlinks=False)
    missing = stayed.count(0)
    assert not missing, f"{missing} entries that were there all the time did not come"
    return count


def run(cluster: Live, entries: int, crash: bool, say: Callable[[str], None]) -> None:
    """Fill, list undisturbed, list with creates and removals (and a failover in the middle), list again."""
    one, two = cluster.mounts["one"], cluster.mounts["two"]
    name = f"listing-{entries}"
    if not (one / name).exists():
        fill(cluster, name, entries)
    more = len(range(0, entries, CHURNED_EVERY))
    say(f"{entries + more} files are there")
    before = resident_kb(cluster, one)
    began = time.monotonic()
    assert walk(one / name, entries, lambda: None) == entries + more
    say(f"listed in {time.monotonic() - began:.1f} s")

    def halfway() -> None:
        if crash:
            number = cluster.replica_of(one)
            cluster.cluster.kill(f"mds-{number}")
            cluster.cluster.start(f"mds-{number}")

    with Churner(two / name, entries) as churner:
        count = walk(one / name, entries, halfway)
    assert churner.errors == []
    assert churner.done, "nothing changed meanwhile: the listing was too fast to show anything"
    say(f"listed {count} while {churner.done} were removed and made{' and a replica died' if crash else ''}")
    cluster.settled()
    assert walk(two / name, entries, lambda: None) == entries + more
    after = resident_kb(cluster, one)
    say(f"the mount's resident memory: {before >> 10} MB before, {after >> 10} MB after")
    assert after - before <= GROWTH_MAX_KB
    assert after <= RESIDENT_MAX_KB


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.model.listing", description="a large directory, listed")
    parser.add_argument("--entries", type=int, default=50_000)
    args = parser.parse_args()
    reason = unavailable()
    if reason is not None:
        print(reason, file=sys.stderr)
        return 1
    began = time.monotonic()

    def prepare(cluster: LocalCluster) -> None:
        if args.entries >= LOADED_FROM:
            prepared.directory(cluster, f"listing-{args.entries}", names_of(args.entries))

    with runs.interruptible(), live(before=prepare) as cluster:
        cluster.mount("one", 1)
        cluster.mount("two", 2)

        def say(text: str) -> None:
            print(f"{time.monotonic() - began:.0f} s: {text}", flush=True)

        run(cluster, args.entries, True, say)
    return 0


if __name__ == "__main__":
    sys.exit(main())

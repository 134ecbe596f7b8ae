"""Files that are unlinked while they are open, again and again, with crashes in between: nothing stays behind.

``python -m tests.model.unlinked --cycles N`` starts a cluster and makes N of them, with every kind of crash. A cycle
makes a file through one mount, takes its name away through the other (or puts another file in its place), and closes
it some cycles later, after reading from it what was written.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from admin import mounts, processes, runs
from daemon.config import CONFIG_NAME
from mds import check
from mds.store import Store
from tests.live import Live, live, unavailable

OPEN_MAX: Final = 40
"""Files held open without a name."""
VICTIMS: Final = 20
"""Files that a killed client had open."""
GONE_S: Final = 150.0
"""By then all is reclaimed: what a replica or a client that died had open waits for the session timeout, 60 s."""


@dataclass(frozen=True, slots=True)
class Held:
    """An open file without a name, and what it holds."""

    fd: int
    data: bytes


class Churn:
    """The cycles of one run, on the mounts one and two of *cluster*."""

    def __init__(self, cluster: Live, seed: int) -> None:
        self.cluster = cluster
        self.cycles = 0
        self._random = random.Random(seed)
        self._tops = (cluster.mounts["one"] / f"churn-{seed}", cluster.mounts["two"] / f"churn-{seed}")
        self._held: deque[Held] = deque()
        self._before = self._inodes()
        self._tops[0].mkdir()
        self._victims = 0

    def _inodes(self) -> set[int]:
        return {int(r.get("inodes", -1)) for r in self.cluster.settled().replicas}

    def cycle(self) -> None:
        here, there = self._tops if self._random.random() < 0.5 else self._tops[::-1]
        name = f"f{self.cycles}"
        self.cycles += 1
        data = self._random.randbytes(self._random.choice((0, 10, 10, 5000)))
        fd = os.open(here / name, os.O_CREAT | os.O_EXCL | os.O_RDWR)
        self._held.append(Held(fd, data))
        if data:
            os.write(fd, data)
        if self._random.random() < 0.2:
            os.fsync(fd)
        if self._random.random() < 0.2:
            other = f"{name}-other"
            os.close(os.open(there / other, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            os.rename(there / other, there / name)
        os.unlink(there / name)
        if len(self._held) > OPEN_MAX:
            self.let_go(self._held.popleft())

    def let_go(self, held: Held) -> None:
        try:
            assert os.pread(held.fd, 10_000, 0) == held.data
            assert os.fstat(held.fd).st_nlink == 0
        finally:
            os.close(held.fd)

    def close(self) -> None:
        while self._held:
            self.let_go(self._held.popleft())

    # -- crashes

    def kill_replica(self, number: int, between: int) -> None:
        """Kill a replica, go on with *between* cycles, and let it come back."""
        local = self.cluster.cluster
        local.kill(f"mds-{number}")
        for _ in range(between):
            self.cycle()
        local.start(f"mds-{number}")
        local.wait(lambda s: number in s.members, f"replica {number} has not rejoined", 60.0, [f"mds-{number}"])

    def kill_all(self) -> None:
        local = self.cluster.cluster
        # Who starts the replicas again is this process, and a child that is about to be one closes what it inherits,
        # open files among it: with written data in them that would wait for the replicas.
        for held in self._held:
            os.fsync(held.fd)
        names = [d.name for d in local.daemons if d.kind == "mds"]
        for name in names:
            local.kill(name)
        for name in names:
            local.start(name)
        local.wait_serving()

    def kill_client(self) -> None:
        """A mount dies that holds files without names, and some with one, which stay until :meth:`finish`."""
        name = f"victim{self._victims}"
        self._victims += 1
        top = self.cluster.mount(name, 3)
        here = top / self._tops[0].name
        opened = []
        try:
            for number in range(VICTIMS):
                path = here / f"{name}-{number}"
                opened.append(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR))
                os.write(opened[-1], b"lost with its client")
                (os.unlink if number % 2 else os.fsync)(path if number % 2 else opened[-1])  # type: ignore[operator]
            for number in range(1, VICTIMS, 2):
                assert not (self._tops[1] / f"{name}-{number}").exists()
            (victim,) = (
                one for one in mounts.mount_processes(self.cluster.run.cluster / CONFIG_NAME) if one.mountpoint == top
            )
            processes.kill(victim.who)
        finally:
            for fd in opened:
                with contextlib.suppress(OSError):  # its file system is gone
                    os.close(fd)
            self.cluster.unmount(name)
        for number in range(0, VICTIMS, 2):
            os.unlink(self._tops[0] / f"{name}-{number}")

    # -- the end

    def finish(self, limit_s: float = GONE_S) -> float:
        """Close everything, and wait until nothing is left; the seconds that took. Raises when something stays."""
        began = time.monotonic()
        self.close()
        assert os.listdir(self._tops[1]) == []
        self._tops[1].rmdir()
        self.cluster.cluster.wait(
            lambda s: {int(r.get("inodes", -1)) for r in s.replicas} == self._before,
            f"inodes are left behind: there were {self._before}",
            limit_s,
        )
        objects = list(self.objects())
        while objects and time.monotonic() - began < limit_s:
            time.sleep(0.1)  # polling: what targets delete, and when, nobody is told
            objects = list(self.objects())
        assert not objects, f"{len(objects)} objects are left behind: {objects[:5]}"
        took = time.monotonic() - began
        return took

    def check_stores(self) -> None:
        """After a restart of everything it is still so; meanwhile the replicas' stores are checked."""
        self.cluster.cluster.down()
        try:
            for daemon in self.cluster.cluster.daemons:
                if daemon.kind == "mds":
                    store = Store.open(self.cluster.cluster.directory / "data" / daemon.name / "state")
                    try:
                        assert check.check(store) == []
                    finally:
                        store.close()
        finally:
            self.cluster.cluster.up()
        assert self._inodes() == self._before

    def objects(self) -> Iterator[Path]:
        for target in sorted((self.cluster.cluster.directory / "data").glob("ossd-*")):
            yield from (path for path in (target / "objects").rglob("*") if path.is_file())


def run(cluster: Live, cycles: int, seed: int, say: Callable[[str], None]) -> None:
    """*cycles* with each kind of crash some times, and the end."""
    churn = Churn(cluster, seed)
    crashes: list[tuple[str, Callable[[], None]]] = [
        ("replica 1 killed", lambda: churn.kill_replica(1, 30)),
        ("a client killed", churn.kill_client),
        ("replica 2 killed", lambda: churn.kill_replica(2, 30)),
        ("all replicas killed", churn.kill_all),
        ("replica 3 killed", lambda: churn.kill_replica(3, 30)),
    ]
    rounds = 2 * len(crashes)
    try:
        for number in range(rounds):
            what, crash = crashes[number % len(crashes)]
            until = cycles * (number + 1) // rounds
            while churn.cycles < until - 30:
                churn.cycle()
            crash()
            while churn.cycles < until:
                churn.cycle()
            say(f"{churn.cycles} cycles, {what}")
        say(f"nothing left behind after {churn.finish():.0f} s")
        churn.check_stores()
    except BaseException:
        churn.close()
        raise


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.model.unlinked", description="unlinked while open")
    parser.add_argument("--cycles", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    reason = unavailable()
    if reason is not None:
        print(reason, file=sys.stderr)
        return 1
    with runs.interruptible(), live() as cluster:
        cluster.mount("one", 1)
        cluster.mount("two", 2)
        began = time.monotonic()

        def say(text: str) -> None:
            print(f"{time.monotonic() - began:.0f} s: {text}", flush=True)

        run(cluster, args.cycles, args.seed, say)
    return 0


if __name__ == "__main__":
    sys.exit(main())

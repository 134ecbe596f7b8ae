"""Mounts make files by themselves in directories delegated to them, and get into each other's way; replicas crash.

Two real mounts, of which one looks for what it is told that the other one has made; and mounts without a kernel, whose
every answer is judged by tests.linearizable.

    python -m tests.faults.test_delegated [SEED [SECONDS]]
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, Final

import pytest
import trio

from client import limits
from client.credentials import ROOT
from client.volume import Volume
from tests.linearizable import Operation, check
from tests.live import Live, guarded, live, unavailable
from tests.mds.tree import Tree
from wire import ids, ops
from wire.errors import OK, FileSystemError

pytestmark = pytest.mark.system

MAKER: Final = """
import os, sys
for line in sys.stdin:
    directory, count = line.split()
    count = int(count)
    os.mkdir(directory)
    for k in range(count):
        fd = os.open(f"{directory}/{k}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640)
        data = b"%d" % k * (k % 50)
        assert os.write(fd, data) == len(data)
        os.close(fd)
        if k in (count // 2, count - 1):
            print(k + 1, flush=True)
"""
ROUNDS: Final = 24
KILLED_IN: Final = 8
STARTED_IN: Final = 16
NAMES: Final = tuple(b"%d" % k for k in range(12))
BELOW: Final = (b"s0", b"s1")
NEW: Final = os.O_CREAT | os.O_EXCL | os.O_WRONLY


@pytest.fixture(scope="module")
def running() -> Iterator[Live]:
    reason = unavailable()
    if reason is not None:
        pytest.fail(reason)
    with live(3, 1) as made:
        yield made


@pytest.fixture
def cluster(running: Live) -> Iterator[Live]:
    with guarded(running):
        yield running
        running.settled()


def contents(k: int) -> bytes:
    return b"%d" % k * (k % 50)


class Looker:
    """What the other mount finds of files 0 to *there* in a directory, with more to come."""

    def __init__(self, directory: Path, rng: Random) -> None:
        self.directory = directory
        self.rng = rng
        self.changed_ns = 0

    def look(self, there: int) -> None:
        """In one way or another: the first question decides what is called back for."""
        ways = [self.lists, self.stats, self.opens, self.stats_the_directory, self.makes_one_that_is_there]
        for way in self.rng.sample(ways, 2):
            way(there)

    def lists(self, there: int) -> None:
        found = sorted(map(int, os.listdir(self.directory)))
        assert found[:there] == list(range(there)), "nothing is missing, and nothing is there twice"

    def stats(self, there: int) -> None:
        for k in reversed(range(there)):
            found = os.stat(self.directory / str(k))
            assert (found.st_size, found.st_mode & 0o777, found.st_nlink) == (len(contents(k)), 0o640, 1)

    def opens(self, there: int) -> None:
        for k in reversed(range(there)):
            assert (self.directory / str(k)).read_bytes() == contents(k)

    def stats_the_directory(self, there: int) -> None:
        changed_ns = os.stat(self.directory).st_mtime_ns
        assert changed_ns >= self.changed_ns
        self.changed_ns = changed_ns

    def makes_one_that_is_there(self, there: int) -> None:
        with pytest.raises(FileExistsError):
            os.open(self.directory / str(self.rng.randrange(there)), os.O_WRONLY | os.O_CREAT | os.O_EXCL)


def test_what_one_mount_has_made_another_one_sees(cluster: Live) -> None:
    """Files are made one after the other; half of them are looked for while the others are made, and then all."""
    one, two = cluster.mount("one", 2), cluster.mount("two", 3)
    rng = Random(1)
    maker = subprocess.Popen([sys.executable, "-c", MAKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert maker.stdin is not None and maker.stdout is not None, "pipes"
    counts = [rng.randrange(2, 50) for _ in range(ROUNDS)]
    called_back = 0
    try:
        for k, count in enumerate(counts):
            looker = Looker(two / str(k), rng)
            maker.stdin.write(f"{one / str(k)} {count}\n".encode())
            maker.stdin.flush()
            if k == KILLED_IN:
                called_back = recalls(cluster)
                cluster.cluster.kill("mds-2")
            if k == STARTED_IN:
                cluster.cluster.start("mds-2")
            there = 0
            while there < count:
                told = maker.stdout.readline()
                assert told, "a file could not be made"
                there = int(told)
                looker.look(there)
        maker.stdin.close()
        assert maker.wait() == 0
    finally:
        maker.kill()
        maker.wait()
    assert called_back > 5, "directories were delegated, and called back"
    for mount in (one, two):
        for k, count in enumerate(counts):
            last = Looker(mount / str(k), rng)
            last.lists(count)
            last.stats(count)
            last.opens(count)


class Load:
    """What the mounts do, and what came of it."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.told: list[Operation] = []
        self.roots: list[int] = []
        self.below: list[tuple[int, int, bytes]] = []
        self.written: dict[int, tuple[int, bytes]] = {}
        """Inode -> (since when it is closed, contents)."""
        self.read: list[tuple[int, int, bytes]] = []
        """(when it was opened, inode, contents)"""
        self.known: list[int] = []
        self.stopped = False

    async def ask(self, who: str, what: Any, call: Callable[[], Awaitable[Any]]) -> tuple[int, Any]:
        """Make *call* and note how it is answered: (status, result)."""
        began = time.monotonic_ns()
        try:
            status, result = OK, await call()
        except FileSystemError as exc:
            status, result = exc.status, None
        if status == errno.ESTALE and not isinstance(what, ops.GetAttr):
            status = errno.ENOENT
        self.told.append(Operation(who, what, began, time.monotonic_ns(), (status, result)))
        return status, result

    async def work(self, volume: Volume, who: str, k: int) -> None:
        """One process on a mount. It mostly is in a directory of its own."""
        rng = self.rng
        while not self.stopped:
            above = self.roots[k] if rng.random() < 0.5 else rng.choice(self.roots)
            if rng.random() < 0.3 and (late := [one for one, parent, _ in self.below[-3:] if parent == above]):
                above = rng.choice(late)
            await self.step(volume, who, above)
            await trio.sleep(rng.random() * 0.04)

    async def step(self, volume: Volume, who: str, above: int) -> None:
        rng = self.rng
        name, other = rng.sample(NAMES, 2)
        match rng.choices(
            ("make", "lookup", "list", "stat", "remove", "rename", "mkdir", "rmdir", "read"),
            (30, 10, 8, 4, 25, 6, 3, 3, 10),
        )[0]:
            case "make":
                for one in rng.sample(NAMES, rng.randrange(1, 10)):
                    await self.make(volume, who, above, one)
            case "lookup":
                await self.lookup(volume, who, above, name)
            case "list":
                await self.ask(who, ops.ReadDir(ROOT, above, 0, 4096), lambda: self.listing(volume, above))
            case "stat":
                await self.ask(who, ops.GetAttr(above), lambda: self.stat(volume, above))
            case "remove":
                for one in rng.sample(NAMES, 4):
                    op = ops.Unlink(ROOT, above, one)
                    await self.ask(who, op, lambda one=one: volume.unlink(ROOT, above, one))  # type: ignore[misc]
            case "rename":
                to = rng.choice((above, rng.choice(self.roots)))
                op = ops.Rename(ROOT, above, name, to, other, 0)
                await self.ask(who, op, lambda: volume.rename(ROOT, above, name, to, other, 0))
            case "mkdir":
                await self.make_directory(volume, who, rng.choice(self.roots), rng.choice(BELOW))
            case "rmdir":
                parent, down = rng.choice(self.roots), rng.choice(BELOW)
                await self.ask(who, ops.Rmdir(ROOT, parent, down), lambda: volume.rmdir(ROOT, parent, down))
            case "read" if self.known:
                await self.reads(volume, rng.choice(self.known[-20:]))

    async def lookup(self, volume: Volume, who: str, above: int, name: bytes) -> int:
        async def call() -> int:
            ino = (await volume.lookup(ROOT, above, name)).ino
            self.known.append(ino)
            return ino

        return (await self.ask(who, ops.Lookup(ROOT, above, name), call))[0]

    async def make(self, volume: Volume, who: str, above: int, name: bytes) -> None:
        """As open(2), write(2) and close(2) have it done: the kernel looks first."""
        if self.rng.random() < 0.9 and await self.lookup(volume, who, above, name) == OK:
            return
        made: list[Any] = []

        async def call() -> int:
            handle, attr = await volume.create(ROOT, above, name, 0o644, NEW)
            made.append(handle)
            return attr.ino

        status, ino = await self.ask(who, ops.Create(ROOT, above, name, 0o644), call)
        if status != OK:
            return
        handle = made[0]
        data = self.rng.randbytes(self.rng.randrange(200)) if self.rng.random() < 0.7 else b""
        if self.rng.random() < 0.3:
            await trio.sleep(self.rng.random() * 0.03)
        if data and not volume.write_at_once(handle, 0, data):
            await volume.write(handle, 0, data)
        if self.rng.random() < 0.1:
            await volume.fsync(handle)
        if not volume.flush_nothing(handle):
            await volume.flush(handle)
        self.written[ino] = time.monotonic_ns(), data
        if not volume.close_nothing(handle):
            await volume.close_file(handle)
        self.known.append(ino)

    async def make_directory(self, volume: Volume, who: str, above: int, name: bytes) -> int:
        async def call() -> int:
            return (await volume.mkdir(ROOT, above, name, 0o755)).ino

        status, ino = await self.ask(who, ops.Mkdir(ROOT, above, name, 0o755), call)
        if status == OK:
            self.below.append((ino, above, name))
        return int(ino) if status == OK else 0

    async def listing(self, volume: Volume, above: int) -> frozenset[tuple[bytes, int]]:
        handle = await volume.opendir(ROOT, above)
        try:
            await volume.entries(handle, 0)
            found = [(name, attr.ino) for name, _, attr in handle.buffer]
        finally:
            volume.close_directory(handle.number)
        if not found:
            await volume.getattr(above)  # a directory that is gone is listed as an empty one
        assert len(set(found)) == len(found)
        return frozenset(found)

    async def stat(self, volume: Volume, above: int) -> None:
        await volume.getattr(above)

    async def reads(self, volume: Volume, ino: int) -> None:
        began = time.monotonic_ns()
        try:
            handle = await volume.open(ROOT, ino, os.O_RDONLY)
        except FileSystemError as exc:
            if exc.status not in (errno.ESTALE, errno.ENOENT):
                raise
            return
        data = bytes(await volume.read(handle, 0, 4096))
        await volume.close_file(handle)
        self.read.append((began, ino, data))

    def judge(self) -> None:
        verdict = check(Tree(self.roots), self.told)
        if not verdict:
            culprit = verdict.impossible
            assert culprit is not None
            near = [one for one in self.told if one.ended > culprit.began - 10**8 and one.began < culprit.ended]
            raise AssertionError(
                f"no order explains {culprit}\nbefore it: {verdict.before[:1]}\n" + "\n".join(map(str, near))
            )
        for began, ino, data in self.read:
            closed, contents = self.written.get(ino, (began + 1, data))
            assert data == contents or began < closed, f"inode {ino} has {data!r}, it was closed with {contents!r}"


async def play(cluster: Live, seed: int, seconds: float, crash: Callable[[Random], None]) -> Load:
    """Mounts work for a while, with crashes in between; then everything is looked at again."""
    load = Load(seed)
    config = cluster.cluster.config
    replicas = tuple((replica.id, replica.address) for replica in config.replicas)
    volumes = [Volume(config.cluster.id, replicas, f"v{k}", prefer=k + 1, delegations=True) for k in range(3)]
    last = Volume(config.cluster.id, replicas, "last", prefer=1)
    async with trio.open_nursery() as nursery:
        for volume in (*volumes, last):
            await nursery.start(volume.run)
        for k in range(3):
            load.roots.append((await volumes[k].mkdir(ROOT, ids.ROOT_INO, b"%d-%d" % (seed, k), 0o755)).ino)
        async with trio.open_nursery() as working:
            for k, volume in enumerate(volumes):
                for number in range(2):
                    working.start_soon(load.work, volume, f"v{k}.{number}", k)
            until = trio.current_time() + seconds
            while trio.current_time() < until:
                await trio.sleep(1.5)
                await trio.to_thread.run_sync(crash, load.rng)
            load.stopped = True
        for above in load.roots:
            await load.ask("last", ops.ReadDir(ROOT, above, 0, 4096), lambda above=above: load.listing(last, above))  # type: ignore[misc]
        for ino in load.known:
            await load.reads(last, ino)
        for volume in (*volumes, last):
            await volume.close()
    load.judge()
    return load


def recalls(cluster: Live) -> int:
    return sum((replica.get("delegations") or {}).get("recalls", 0) for replica in cluster.cluster.status().replicas)


def sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mounts ask again at once for what was recalled."""
    monkeypatch.setattr(limits, "REFUSED_FIRST_S", 0.02)
    monkeypatch.setattr(limits, "REFUSED_MAX_S", 0.04)
    monkeypatch.setattr(limits, "BURST_CREATES", 2)
    monkeypatch.setattr(limits, "LIST_PAUSE_S", 0.05)


def test_what_mounts_answer_by_themselves_is_true_everywhere(cluster: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """One replica crashes in the middle; its watchdog starts it again."""
    sooner(monkeypatch)
    before = recalls(cluster)
    crashes = iter((None, "mds-2"))

    def crash(rng: Random) -> None:
        if (name := next(crashes, None)) is not None:
            cluster.cluster.crash(name)

    load = trio.run(play, cluster, 1, 4.0, crash)
    assert len(load.told) > 200
    assert recalls(cluster) > before + 5, "directories were delegated, and called back"


def main() -> None:
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 60.0
    with live(3, 1) as cluster, pytest.MonkeyPatch.context() as monkeypatch:
        sooner(monkeypatch)

        def crash(rng: Random) -> None:
            down = [name for name in ("mds-1", "mds-2", "mds-3") if not cluster.cluster.running(name)]
            if down and rng.random() < 0.5:
                cluster.cluster.start(rng.choice(down))
            elif not down and cluster.cluster.status().health.value == "healthy":
                name = rng.choice(("mds-1", "mds-2", "mds-3"))
                (cluster.cluster.kill if rng.random() < 0.3 else cluster.cluster.crash)(name)

        until = time.monotonic() + seconds
        while time.monotonic() < until:
            load = trio.run(play, cluster, seed, 10.0, crash)
            print(f"seed {seed}: {len(load.told)} answers, {recalls(cluster)} recalls", flush=True)
            seed += 1


if __name__ == "__main__":
    main()

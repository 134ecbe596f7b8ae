"""A mount makes files by itself in a directory delegated to it; another one, at another replica, looks for each that it
is told of as soon as the application has been answered; the replica of the first is killed meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Final

import pytest

from tests.live import Live, guarded, live, unavailable

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
ROUNDS: Final = 40
KILLED_IN: Final = 15
STARTED_IN: Final = 30


@pytest.fixture
def cluster() -> Iterator[Live]:
    reason = unavailable()
    if reason is not None:
        pytest.fail(reason)
    with live(3, 1) as made, guarded(made):
        yield made


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
    recalls = 0
    try:
        for k, count in enumerate(counts):
            looker = Looker(two / str(k), rng)
            maker.stdin.write(f"{one / str(k)} {count}\n".encode())
            maker.stdin.flush()
            if k == KILLED_IN:
                said = [replica.get("delegations") for replica in cluster.cluster.status().replicas]
                recalls = sum(one["recalls"] for one in said)
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
    assert recalls > 5, "directories were delegated, and called back"
    cluster.settled()
    for mount in (one, two):
        for k, count in enumerate(counts):
            last = Looker(mount / str(k), rng)
            last.lists(count)
            last.stats(count)
            last.opens(count)

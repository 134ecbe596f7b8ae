"""Several mounts and one file, on a real cluster: appending, growing, cutting off, and who may do it."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Final

import pytest
import trio

from admin.local import child_environment, python_module
from client.api import open_file_system
from tests.live import Live, guarded, live, unavailable
from wire import ops

pytestmark = pytest.mark.system

RECORDS: Final = 400
APPENDER: Final = """
import os, sys
path, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
for k in range(count):
    record = f"{name} {k} ".ljust(20 + k % 50, "x") + "\\n"
    assert os.write(fd, record.encode()) == len(record)
os.close(fd)
"""
WRITER: Final = """
import os, sys
path, mine, of, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
for block in range(mine, 96, of):
    assert os.pwrite(fd, bytes([block + 1]) * size, block * size) == size
    if block % 10 == mine:
        os.fsync(fd)
os.fsync(fd)
os.close(fd)
"""


@pytest.fixture
def cluster() -> Iterator[Live]:
    reason = unavailable()
    if reason is not None:
        pytest.fail(reason)
    with live(2, 2) as made, guarded(made):
        yield made


def programs(text: str, *argvs: tuple[str, ...]) -> list[subprocess.Popen[bytes]]:
    return [subprocess.Popen([sys.executable, "-c", text, *argv]) for argv in argvs]


def ended(started: list[subprocess.Popen[bytes]]) -> None:
    for one in started:
        assert one.wait(60) == 0


def test_appenders_never_overwrite_each_other(cluster: Live) -> None:
    """Two programs on each of two mounts; a replica is killed meanwhile."""
    one, two = cluster.mount("one", 1), cluster.mount("two", 2)
    (one / "log").touch()
    names = ("a", "b", "c", "d")
    places = (one, one, two, two)
    started = programs(APPENDER, *((str(p / "log"), n, str(RECORDS)) for p, n in zip(places, names, strict=True)))
    while os.stat(two / "log").st_size < 4000:
        time.sleep(0.01)  # polling
    cluster.cluster.kill("mds-1")
    ended(started)
    cluster.cluster.start("mds-1")
    cluster.settled()
    lines = (one / "log").read_text().splitlines()
    assert (two / "log").read_text().splitlines() == lines
    for name in names:
        mine = [line.split()[1] for line in lines if line.startswith(f"{name} ")]
        assert mine == [str(k) for k in range(RECORDS)], "each exactly once, in its program's order"
    assert len(lines) == RECORDS * len(names), "no holes, nothing torn"


def test_many_writers_of_one_file_never_shrink_it(cluster: Live) -> None:
    places = [cluster.mount("one", 1), cluster.mount("two", 2)]
    size = 50_000
    started = programs(WRITER, *((str(places[k % 2] / "shared"), str(k), "4", str(size)) for k in range(4)))
    largest = 0
    while any(one.poll() is None for one in started):
        for place in places:
            now = os.stat(place / "shared").st_size if (place / "shared").exists() else 0
            assert now >= largest or place is places[1], "the mount whose own writes are not committed sees more"
            largest = max(largest, now) if place is places[0] else largest
    ended(started)
    for place in places:
        assert (place / "shared").read_bytes() == b"".join(bytes([block + 1]) * size for block in range(96))


def objects(cluster: Live, ino: int) -> dict[str, int]:
    """Target -> bytes that lie there of the file."""
    found = {}
    for target in ("ossd-1", "ossd-2"):
        there = (cluster.cluster.directory / "data" / target / "objects").glob(f"*/{ino:016x}.*")
        found[target] = sum(file.stat().st_size for file in there)
    return found


def test_two_mounts_map_one_file(cluster: Live) -> None:
    """Each changes pages of its own through a mapping: nothing is lost, whoever opens it then sees all."""
    places = [cluster.mount("one", 1), cluster.mount("two", 2)]
    pages, size = 40, mmap.PAGESIZE
    (places[0] / "f").write_bytes(b"." * (pages * size))
    opened = [(place / "f").open("r+b") for place in places]
    views = [mmap.mmap(file.fileno(), pages * size) for file in opened]
    for page in range(pages):
        views[page % 2][page * size : (page + 1) * size] = bytes([page + 1]) * size
    for view, file in zip(views, opened, strict=True):
        view.flush()
        view.close()
        os.fsync(file.fileno())
        file.close()
    for place in places:
        assert (place / "f").read_bytes() == b"".join(bytes([page + 1]) * size for page in range(pages))


def test_a_truncation_that_its_client_did_not_live_to_see(cluster: Live) -> None:
    """1. SetAttr is ordered, and another that extends the file.  2. The client dies before any target has heard of it.
    3. There are zeros.  4. The service has the objects cut off, and who writes then keeps what he writes."""

    async def ordered_and_dead(ino: int) -> None:
        async with open_file_system(cluster.cluster.config) as fs:
            for size in (5, 20):
                cut = ops.SetAttr(ops.Cred(0, 0, ()), ino, ops.SET_SIZE, 0, 0, 0, size, 0, 0, False)
                await fs.volume.service.request(cut)

    where = cluster.mount("one", 1)
    file = where / "f"
    file.write_bytes(b"x" * 3_000_000)
    ino = file.stat().st_ino
    assert sum(objects(cluster, ino).values()) == 3_000_000
    with file.open("r+b", buffering=0) as before:  # knows of no truncation
        trio.run(ordered_and_dead, ino)
        assert file.read_bytes() == b"xxxxx" + bytes(15)
        deadline = time.monotonic() + 30
        while sum(objects(cluster, ino).values()) > 5:
            assert time.monotonic() < deadline, objects(cluster, ino)
            time.sleep(0.05)  # polling
        os.pwrite(before.fileno(), b"kept", 10)
        os.fsync(before.fileno())
    assert file.read_bytes() == b"xxxxx" + bytes(5) + b"kept" + bytes(6)


def test_keys_are_forgotten_under_writers(cluster: Live) -> None:
    """All that clients hold is void at once, again and again: they go on, and what is there is what they wrote."""
    places = [cluster.mount("one", 1), cluster.mount("two", 2)]
    size = 200_000
    started = programs(WRITER, *((str(places[k % 2] / "shared"), str(k), "4", str(size)) for k in range(4)))
    argv = python_module("admin", "target", "rotate-keys", "--forget", str(cluster.cluster.directory))
    turns = 0
    while any(one.poll() is None for one in started) or turns < 2:
        done = subprocess.run(argv, capture_output=True, text=True, env=child_environment(), timeout=60, check=True)
        turns += 1
        assert done.stdout.endswith(" times so far\n")
    ended(started)
    for place in places:
        assert (place / "shared").read_bytes() == b"".join(bytes([block + 1]) * size for block in range(96))


def test_who_shows_no_good_capability_gets_nothing(cluster: Live) -> None:
    where = cluster.mount("one", 1)
    file = where / "f"
    file.write_bytes(b"mine" * 1000)
    argv = python_module("tests.ossd.forger", str(cluster.cluster.directory), str(file))
    done = subprocess.run(argv, capture_output=True, text=True, env=child_environment(), timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("69 passed, 0 failed\n"), done.stdout
    logs = cluster.logs()
    assert "refused for the capability shown; ObjectWrite of inode" in logs
    assert "refused for the capability shown; Commit of inode" in logs

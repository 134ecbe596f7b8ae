"""Storage targets of a real cluster: killed under a load, drained, added; what the commands say of it."""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from admin import targets
from admin.local import LocalCluster, child_environment, python_module
from daemon.config import TargetConfig
from daemon.config import write as write_config
from tests.faults import data
from tests.live import Live, guarded, live, unavailable
from wire.chains import copies_of

pytestmark = pytest.mark.system


@pytest.fixture
def cluster() -> Iterator[Live]:
    reason = unavailable()
    if reason is not None:
        pytest.fail(reason)
    with live(1, 3) as made, guarded(made):
        yield made


def lockstep(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        python_module("admin", *args), capture_output=True, text=True, env=child_environment(), timeout=60, check=False
    )


@contextmanager
def added(local: LocalCluster) -> Iterator[LocalCluster]:
    """The cluster with an empty target 4, which is up, and a part of it."""
    new = TargetConfig(4, local.free_address(), local.directory / "data" / "ossd-4")
    write_config(replace(local.config, targets=(*local.config.targets, new)))
    grown = LocalCluster.open(local.directory)
    grown.start("ossd-4")
    try:
        grown.wait(lambda status: all(t.said is not None for t in status.targets), "the new target is not up", 30.0)
        assert lockstep("target", "add", str(local.directory), "4").returncode == 0
        yield grown
    finally:
        grown.kill("ossd-4")


def test_targets_die_under_loads_that_check_every_byte() -> None:
    """A small `make faults-data`: no timing is judged here."""
    reason = unavailable()
    if reason is not None:
        pytest.fail(reason)
    assert data.main(["--faults", "4", "--seed", "11", "--stall-ms", "0"]) == 0


def test_a_target_is_drained_and_taken_out(cluster: Live) -> None:
    """Files with one copy and with two: all is read back from the other targets when its process is gone."""
    spec = str(cluster.cluster.directory)
    where = cluster.mount("drain", 1)
    (where / "two").mkdir()
    given = ("--copies", "2", "--stripe-size", "65536", "--inline", "100")
    assert lockstep("layout", "set", *given, str(where / "two")).returncode == 0
    done = lockstep("layout", "get", str(where / "two"))
    assert done.stdout == "stripe_size=65536 stripe_count=4 copies=2 inline=100\n"
    rng = random.Random(1)
    files = {f"{place}f{k}": rng.randbytes(rng.randrange(400_000)) for k in range(6) for place in ("", "two/")}
    for name, content in files.items():
        (where / name).write_bytes(content)
    assert lockstep("target", "remove", spec, "2").returncode == 1, "busy: it has data"
    assert lockstep("target", "drain", spec, "2").returncode == 0

    def moved() -> bool:
        _, _, chains = trio.run(targets.storage_map, cluster.cluster.config)
        return all(dict(members).get(2) is None or number >> 16 == 2 for number, _, members in chains)

    cluster.cluster.wait(lambda status: moved(), "everything is moved from target 2", 60.0)
    listed = json.loads(lockstep("target", "list", "--json", spec).stdout)
    assert [t["state"] for t in listed["targets"]] == ["serving", "draining", "serving"]
    # Chains of three copies need all three targets: they have two of them now.
    assert lockstep("target", "remove", spec, "2").returncode == 0
    cluster.cluster.kill("ossd-2")
    for name, content in files.items():
        assert (where / name).read_bytes() == content, name
    assert [t["id"] for t in json.loads(lockstep("target", "list", "--json", spec).stdout)["targets"]] == [1, 3]


def test_a_target_is_added_and_takes_its_part(cluster: Live) -> None:
    """What was there before is spread over four; then one is lost for good, and its copies are made anew."""
    local = cluster.cluster
    spec = str(local.directory)
    where = cluster.mount("add", 1)
    assert lockstep("layout", "set", "--copies", "2", "--stripe-size", "65536", str(where)).returncode == 0
    rng = random.Random(2)
    files = {f"f{k}": rng.randbytes(rng.randrange(100_000, 400_000)) for k in range(12)}
    for name, content in files.items():
        (where / name).write_bytes(content)
    with added(local) as grown:

        def pairs() -> dict[int, int]:
            """In how many chains of two copies each target serves; 0 where anything is moved yet."""
            _, known, chains = trio.run(targets.storage_map, grown.config)
            counts = dict.fromkeys((t for t, *_ in known), 0)
            for number, _, members in chains:
                for target, state in members:
                    if state != "serving":
                        return {}
                    counts[target] += number >> 16 == 1
            return counts

        grown.wait(lambda status: pairs() == dict.fromkeys((1, 2, 3, 4), 2), "the places are not equal", 60.0)

        def held() -> list[set[str]]:
            """The objects at each target, by their files' names."""
            data = local.directory / "data"
            return [{p.name for p in (data / f"ossd-{k}" / "objects").glob("*/*")} for k in (1, 2, 3, 4)]

        def twice() -> bool:
            there = held()
            return bool(there[3]) and sum(map(len, there)) == 2 * len(set().union(*there))

        grown.wait(lambda status: twice(), "not two copies of each: what was moved away is still there", 60.0)
        grown.kill("ossd-1")
        assert lockstep("target", "remove", "--lost", spec, "1").returncode == 0
        grown.wait(lambda status: sum(pairs().values()) == 8, "the copies are not made anew", 60.0)
        for name, content in files.items():
            assert (where / name).read_bytes() == content, name
        for command in (("scrub", "--verify", spec), ("fsck", spec)):
            done = lockstep(*command)
            assert done.returncode == 0, done.stdout + done.stderr


def test_files_with_one_copy_are_moved_to_a_new_target(cluster: Live) -> None:
    """They are written and read meanwhile; what was moved is deleted where it was."""
    local = cluster.cluster
    spec = str(local.directory)
    where = cluster.mount("even", 1)
    rng = random.Random(3)
    files = {f"f{k}": bytearray(rng.randbytes(8 << 20)) for k in range(12)}
    for name, content in files.items():
        (where / name).write_bytes(content)
    with added(local) as grown:
        opened = {name: (where / name).open("r+b", buffering=0) for name in files}

        def objects() -> list[dict[str, int]]:
            """Name -> size of the objects at each target."""
            data = local.directory / "data"
            return [
                {p.name: p.stat().st_size for p in (data / f"ossd-{k}" / "objects").glob("*/*")} for k in (1, 2, 3, 4)
            ]

        def moved() -> bool:
            """Write somewhere in each file, and look whether all is in its place yet."""
            for name, file in opened.items():
                piece, at = rng.randbytes(5000), rng.randrange(8 << 20)
                files[name][at : at + 5000] = piece
                assert os.pwrite(file.fileno(), piece, at) == 5000
                os.fsync(file.fileno())
            _, _, chains = trio.run(targets.storage_map, grown.config)
            if any(len(members) != 1 for number, _, members in chains if copies_of(number) == 1):
                return False
            there = objects()
            once = sum(map(len, there)) == len(set().union(*there))
            return once and sum(there[3].values()) >= 12 << 20 and max(sum(t.values()) for t in there[:3]) < 32 << 20

        grown.wait(lambda status: moved(), "the new target has not got its part", 90.0)
        for file in opened.values():
            file.close()
        other = cluster.mount("other", 1)
        for name, content in files.items():
            assert (where / name).read_bytes() == content, name
            assert (other / name).read_bytes() == content, name
        for command in (("scrub", "--verify", spec), ("fsck", spec)):
            done = lockstep(*command)
            assert done.returncode == 0, done.stdout + done.stderr


def test_scrub_finds_and_mends_a_bad_block(cluster: Live) -> None:
    spec = str(cluster.cluster.directory)
    where = cluster.mount("scrub", 1)
    os.setxattr(where, "lockstep.layout", b"copies=2 stripe_count=1")
    (where / "f").write_bytes(os.urandom(200_000))
    found = json.loads(lockstep("scrub", "--verify", "--json", spec).stdout)
    assert (found["objects"], found["bytes"], found["wrong"]) == (2, 400_000, [])
    objects = [p for k in (1, 2, 3) for p in (cluster.cluster.directory / "data" / f"ossd-{k}" / "objects").glob("*/*")]
    assert len(objects) == 2
    _flip(objects[0], 100_000)
    found = json.loads(lockstep("scrub", "--verify", "--json", spec).stdout)
    assert (found["blocks_bad"], found["blocks_mended"], found["wrong"]) == (1, 1, [])
    assert objects[0].read_bytes() == objects[1].read_bytes()
    for one in objects:
        _flip(one, 5)
    done = lockstep("scrub", spec)
    assert (done.returncode, "there is no other good copy" in done.stdout) == (1, True)


def _flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1]))

"""Storage targets of a real cluster: killed under a load, drained, added; what the commands say of it."""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from admin import targets
from admin.local import child_environment, python_module
from tests.faults import data
from tests.live import Live, guarded, live, unavailable

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
    # Chains of three copies need all three targets; nothing was ever written to them.
    assert lockstep("target", "remove", "--lost", spec, "2").returncode == 0
    cluster.cluster.kill("ossd-2")
    for name, content in files.items():
        assert (where / name).read_bytes() == content, name
    assert [t["id"] for t in json.loads(lockstep("target", "list", "--json", spec).stdout)["targets"]] == [1, 3]


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

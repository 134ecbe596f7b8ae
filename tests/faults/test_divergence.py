"""A replica's state is not that of the others, while all its checksums are right: it is found by comparing."""

from __future__ import annotations

import json
import subprocess
import threading
from pathlib import Path

import pytest

from admin.local import child_environment, python_module
from admin.status import Health
from mds import aside, schema
from mds.namespace import inode as inodes
from mds.store import Store
from tests.live import Live, guarded, live, unavailable

pytestmark = pytest.mark.system


def doctor(small: Live, replica: int, ino: int) -> None:
    """A file is one byte larger in the state of *replica*, which is stopped and started again."""
    name = f"mds-{replica}"
    small.settled()
    small.cluster.stop(name)
    store = Store.open(small.cluster.config.replica(replica).data / "state")
    record = store.get(schema.INODES, schema.u64(ino))
    assert record is not None
    inode = inodes.decode(record)
    inode.size += 1
    store.put_alone(schema.INODES, schema.u64(ino), inode.encode())
    layer = store.freeze()
    assert layer is not None
    store.write(layer)
    store.release(layer)
    store.close()
    small.cluster.start(name)


def lockstep(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        python_module("admin", *args), capture_output=True, text=True, env=child_environment(), timeout=60, check=False
    )


def need_mounts() -> None:
    reason = unavailable()
    if reason is not None:
        pytest.fail(reason)


def test_one_of_three_takes_the_state_of_the_others() -> None:
    need_mounts()
    with live(replicas=3, targets=1) as small, guarded(small):
        one = small.mount("one", 1)
        (one / "victim").touch()
        doctor(small, 2, (one / "victim").stat().st_ino)
        given_up = small.cluster.config.replica(2).data / aside.DIVERGED
        small.cluster.wait(lambda _: given_up.is_dir(), "it is not found", 30.0)
        (one / "other").touch()
        small.settled()
        assert (one / "victim").stat().st_size == 0
        log = small.cluster.log_file("mds-2").read_text()
        # In its records; or first in a digest, if the log had a request about the file that was to be executed again.
        assert "the state is given up: replica" in log and "that state is kept in state.diverged" in log
        small.unmount("one")


def test_two_serve_nothing_until_somebody_decides(tmp_path: Path) -> None:
    need_mounts()
    with live(replicas=2, targets=1) as small, guarded(small):
        one = small.mount("one", 1)
        (one / "victim").touch()
        doctor(small, 2, (one / "victim").stat().st_ino)
        where = str(small.cluster.directory)
        small.cluster.wait(lambda s: set(s.ties) == {1, 2}, "it is not found", 30.0)
        said = lockstep("status", where, "--json")
        assert said.returncode == Health.DIVERGED == 3
        assert "replica 2 differs" in json.loads(said.stdout)["ties"]["1"]
        waits = threading.Thread(target=(one / "waits").touch, daemon=True)
        waits.start()
        assert lockstep("dump", where, str(tmp_path / "dump"), "--replica", "2").returncode == 0
        small.cluster.wait(lambda s: set(s.ties) == {1, 2}, "it has passed", 5.0)
        assert waits.is_alive()
        decided = lockstep("replica", "resync", where, "2")
        assert decided.returncode == 0, decided.stderr
        waits.join(30.0)
        assert not waits.is_alive() and (one / "waits").exists()
        small.settled()
        assert (one / "victim").stat().st_size == 0
        assert (small.cluster.config.replica(2).data / aside.DIVERGED).is_dir()
        small.unmount("one")

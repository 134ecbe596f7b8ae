"""Mounting, unmounting, stopping: also with servers gone and files open; and nothing stays behind."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from admin import mounts, processes
from admin.local import ClusterError, LocalCluster, child_environment, python_module
from admin.mounts import MountError
from tests.live import Live, guarded, live, unavailable

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def small() -> Iterator[Live]:
    """One replica and one target, so that "all servers" are soon stopped and started."""
    reason = unavailable()
    if reason is not None:
        pytest.fail(reason)
    with live(1, 1) as made:
        yield made


@pytest.fixture
def cluster(small: Live) -> Iterator[Live]:
    """It runs and nothing is mounted at the start of each test."""
    for name in list(small.mounts):
        small.unmount(name)
    small.cluster.up()
    with guarded(small):
        yield small


def lockstep(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        python_module("admin", *args), capture_output=True, text=True, env=child_environment(), timeout=60, check=False
    )


def test_mount_returns_when_the_mount_answers_and_umount_when_its_process_has_ended(cluster: Live) -> None:
    where = cluster.run.mountpoint("cli")
    assert lockstep("mount", str(cluster.cluster.directory), str(where)).returncode == 0
    assert mounts.is_mounted(where)
    (one,) = mounts.mount_processes(cluster.cluster.config.path)
    assert one.mountpoint == where
    (where / "f").write_text("x")
    again = lockstep("mount", str(cluster.cluster.directory), str(where))
    assert (again.returncode, "is mounted already" in again.stderr) == (1, True)
    done = lockstep("umount", str(where))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not mounts.is_mounted(where)
    assert not processes.running(one.who)
    assert lockstep("umount", str(where)).returncode == 1


def test_mount_lockstep_takes_what_mount_gives_it(cluster: Live) -> None:
    whole = cluster.mount("whole", 1)
    (whole / "sub" / "below").mkdir(parents=True)
    where = cluster.run.mountpoint("helper")
    argv = python_module("admin.mount_helper", f"{cluster.cluster.config.path}:/sub", str(where), "-o", "rw,noatime")
    done = subprocess.run(argv, capture_output=True, text=True, env=child_environment(), timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    try:
        assert os.listdir(where) == ["below"]
    finally:
        mounts.unmount(where)


def test_a_read_only_mount_refuses_changes(cluster: Live) -> None:
    where = cluster.mount("ro", 1, ("ro",))
    with pytest.raises(OSError) as caught:
        (where / "f").write_text("x")
    assert caught.value.errno == errno.EROFS


def test_an_option_that_is_not_known_is_an_error_and_leaves_nothing(cluster: Live) -> None:
    where = cluster.run.mountpoint("bad")
    with pytest.raises(MountError, match="frobnicate"):
        mounts.mount(cluster.cluster.config, where, ["frobnicate"])
    assert not mounts.is_mounted(where)
    assert mounts.mount_processes(cluster.cluster.config.path) == []


def test_a_busy_mount_is_detached(cluster: Live) -> None:
    where = cluster.mount("busy", 1)
    with open(where / "open", "w", encoding="ascii") as file:
        file.write("x")
        file.flush()
        done = lockstep("umount", str(where))
        assert done.returncode == 0
        assert "is busy: detached" in done.stdout
        assert not mounts.is_mounted(where)
    del cluster.mounts["busy"]
    other = cluster.mount("other", 1)
    for one in mounts.mount_processes(cluster.cluster.config.path):
        if one.mountpoint == where:
            assert processes.wait_end(one.who, 20.0), "its last file is closed: the process ends"
    assert (other / "open").read_text() == "x"


def test_a_mount_killed_with_9_can_be_unmounted_and_mounted_again(cluster: Live) -> None:
    where = cluster.mount("killed", 1)
    (where / "f").write_text("x")
    (one,) = mounts.mount_processes(cluster.cluster.config.path)
    processes.kill(one.who)
    with pytest.raises(OSError) as caught:
        os.stat(where)
    assert caught.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    cluster.unmount("killed")
    again = cluster.mount("killed-again", 1)
    assert (again / "f").read_text() == "x"


def test_with_every_server_gone_a_mount_can_be_unmounted(cluster: Live) -> None:
    where = cluster.mount("gone", 1)
    (where / "f").write_text("x")
    for daemon in cluster.cluster.daemons:
        cluster.cluster.kill(daemon.name)
    (one,) = mounts.mount_processes(cluster.cluster.config.path)
    cluster.unmount("gone")
    assert not mounts.is_mounted(where)
    assert processes.wait_end(one.who, 15.0)


def test_a_soft_mount_gives_up_in_its_time(cluster: Live) -> None:
    where = cluster.mount("soft", 1, ("soft", "timeo=10"))
    (where / "f").write_text("x")
    cluster.cluster.kill("mds-1")
    with pytest.raises(OSError) as caught:
        (where / "g").write_text("x")
    assert caught.value.errno == errno.ETIMEDOUT
    cluster.cluster.up()
    (where / "g").write_text("after")
    assert (where / "g").read_text() == "after"


def test_who_waits_for_a_hard_mount_can_be_killed(cluster: Live) -> None:
    where = cluster.mount("hard", 1)
    cluster.cluster.kill("mds-1")
    with subprocess.Popen([sys.executable, "-c", f"open({str(where / 'f')!r}, 'w')"]) as waiting:
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(1.0)
        waiting.kill()
        assert waiting.wait(10.0) == -9


def test_status_of_a_running_cluster(cluster: Live) -> None:
    where = cluster.mount("seen", 1)
    done = lockstep("status", str(cluster.cluster.directory), "--json")
    assert done.returncode == 0, done.stdout
    found = json.loads(done.stdout)
    assert found["health"] == "healthy"
    assert found["replicas_equal"] is True
    (replica,) = found["replicas"]
    assert replica["state"] == "active"
    assert any(client.endswith(f":{where}") for client in replica["clients"])
    assert len(bytes.fromhex(replica["digest"])) == 8
    assert found["targets"][0]["bytes_free"] > 0
    cluster.cluster.kill("ossd-1")
    assert lockstep("status", str(cluster.cluster.directory)).returncode == 1
    cluster.cluster.kill("mds-1")
    assert lockstep("status", str(cluster.cluster.directory)).returncode == 2


def test_a_second_daemon_for_the_same_data_is_refused_and_harms_nothing(cluster: Live) -> None:
    for kind in ("mds", "ossd"):
        done = lockstep(kind, "--config", str(cluster.cluster.config.path), "--id", "1")
        assert done.returncode == 1, done.stderr
        assert cluster.cluster.running(f"{kind}-1")
    assert cluster.cluster.status().problems == []


def test_down_leaves_nothing_but_the_data(cluster: Live) -> None:
    directory = cluster.cluster.directory
    where = cluster.mount("last", 1)
    (where / "f").write_text("kept")
    done = lockstep("down", str(directory))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"unmounted {where}", "mds-1: stopped", "ossd-1: stopped"]
    assert processes.of_directory(directory) == []
    assert mounts.mounts_below(cluster.run.directory) == []
    assert [p.name for p in (directory / "run").iterdir()] == ["lock"]
    del cluster.mounts["last"]
    for daemon in cluster.cluster.daemons:
        with pytest.raises(ClusterError, match="does not run"):
            cluster.cluster.kill(daemon.name)
    LocalCluster.open(Path(directory)).up()
    again = cluster.mount("last-again", 1)
    assert (again / "f").read_text() == "kept"

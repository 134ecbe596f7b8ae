"""admin.local and admin.processes: real processes, but stand-ins for the daemons."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from admin import processes
from admin.local import ClusterError, Command, LocalCluster, free_ports, python_module, witnesses_for
from admin.status import Health
from daemon.config import CONFIG_NAME, load

Make = Callable[..., LocalCluster]


def stub(*extra: str, only: str | None = None) -> Command:
    """Stand-ins for all daemons; *extra* arguments go to those of the kind *only*."""

    def command(kind: str, number: int, config: Path, log_level: str) -> Sequence[str]:
        more = extra if only in (None, kind) else ()
        return python_module("tests.admin.stub_daemon", kind, "--config", str(config), "--id", str(number), *more)

    return command


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Makes clusters of stand-ins; at the end nothing of them runs."""
    made: list[LocalCluster] = []

    def make_one(replicas: int = 2, targets: int = 1, command: Command | None = None) -> LocalCluster:
        cluster = LocalCluster.create(tmp_path / f"c{len(made)}", replicas, targets, command or stub())
        made.append(cluster)
        return cluster

    yield make_one
    for cluster in made:
        cluster.stop_all(1.0)
    assert processes.of_directory(tmp_path) == []


@pytest.mark.parametrize(
    ("replicas", "targets", "witnesses"),
    [(1, 3, 0), (2, 1, 1), (2, 3, 1), (3, 3, 2), (3, 2, 2), (3, 1, 0), (4, 3, 3), (5, 3, 2), (5, 4, 4)],
)
def test_witnesses_make_the_voters_odd_and_outlive_all_replicas_but_one(
    replicas: int, targets: int, witnesses: int
) -> None:
    assert witnesses_for(replicas, targets) == witnesses
    voters = replicas + witnesses
    if replicas > 1 and targets >= replicas - 1:
        assert voters % 2 == 1
        assert voters - (replicas - 1) > voters // 2, "a majority is left when one replica is"


def test_free_ports_are_distinct_and_outside_the_ephemeral_range() -> None:
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    ports = free_ports(20)
    assert len(set(ports)) == 20
    if first > 10_300:
        assert not any(first <= port <= last for port in ports)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", ports[0]))


def test_a_new_cluster_is_described_by_its_file(make: Make) -> None:
    cluster = make(3, 3)
    config = load(cluster.directory / CONFIG_NAME)
    assert config == cluster.config
    assert [r.id for r in config.replicas] == [1, 2, 3]
    assert [t.witness for t in config.targets] == [4, 5, None]
    assert len(config.voters) == 5
    assert "# " in config.path.read_text(), "a person finds comments in it"
    with pytest.raises(ClusterError, match="holds a cluster already"):
        LocalCluster.create(cluster.directory)


def test_up_starts_what_does_not_run_and_down_ends_everything(make: Make) -> None:
    cluster = make()
    assert cluster.up() == ["mds-1", "mds-2", "ossd-1"]
    assert cluster.status().health is Health.HEALTHY
    before = {name: cluster.identity(name) for name in cluster.running_names()}
    assert len(before) == 3
    assert LocalCluster.open(cluster.directory, stub()).up() == [], "a second command finds them running"
    cluster.kill("mds-2")
    assert not cluster.running("mds-2")
    assert cluster.status().health is Health.DEGRADED
    assert cluster.up() == ["mds-2"]
    assert cluster.identity("mds-1") == before["mds-1"]
    assert cluster.identity("mds-2") != before["mds-2"]
    assert cluster.down() == {"mds-1": "stopped", "mds-2": "stopped", "ossd-1": "stopped"}
    assert cluster.running_names() == []
    assert [p.name for p in cluster.run_directory.iterdir()] == ["lock"]
    assert cluster.status().health is Health.UNREACHABLE
    assert cluster.down() == dict.fromkeys(("mds-1", "mds-2", "ossd-1"), "was not running")
    assert "ordered: " in cluster.log_tail("mds-1"), "the target was registered"
    cluster.remove()
    assert not cluster.directory.exists()


def test_a_daemon_that_ignores_sigterm_is_killed(make: Make) -> None:
    cluster = make(command=stub("--stubborn", only="ossd"))
    cluster.up()
    assert cluster.down(timeout_s=1.0) == {"mds-1": "stopped", "mds-2": "stopped", "ossd-1": "killed"}


def test_a_paused_daemon_counts_as_running_does_not_answer_and_can_be_stopped(make: Make) -> None:
    cluster = make()
    cluster.up()
    cluster.pause("mds-2")
    assert cluster.running("mds-2")
    status = cluster.status(timeout_s=0.3)
    assert [r.said is not None for r in status.replicas] == [True, False]
    assert status.problems == ["mds-2 does not answer: no answer within 0.3 s"]
    cluster.resume("mds-2")
    cluster.wait_serving(10.0)
    cluster.pause("mds-2")
    assert cluster.stop("mds-2") == "stopped"


def test_a_daemon_that_cannot_start_is_reported_with_the_end_of_its_log(make: Make) -> None:
    cluster = make(command=stub("--fail", only="mds"))
    with pytest.raises(ClusterError, match=r"(?s)mds-\d (has ended|ended at once).*RuntimeError: told to fail"):
        cluster.up()


def test_a_pid_that_belongs_to_somebody_else_by_now_is_left_alone(make: Make) -> None:
    """The daemon ended, its number was given to another process, and the pid file still names it."""
    cluster = make()
    cluster.run_directory.mkdir()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        who = processes.identify(other.pid)
        assert who is not None
        stale = replace(who, start_ticks=who.start_ticks - 1)
        processes.write_pid_file(cluster.run_directory / "mds-1.pid", stale)
        assert not cluster.running("mds-1")
        assert cluster.stop("mds-1") == "was not running"
        with pytest.raises(ClusterError, match="mds-1 does not run"):
            cluster.kill("mds-1")
        other_boot = replace(who, boot="another")
        assert not processes.send(other_boot, signal.SIGKILL)
        assert other.poll() is None
        other.communicate(b"\n", timeout=10)
    assert other.returncode == 0


def test_a_torn_pid_file_means_that_nothing_runs(make: Make) -> None:
    cluster = make()
    cluster.run_directory.mkdir()
    for text in ("", "{", "[]", '{"pid": "x"}', '{"pid": 1}'):
        (cluster.run_directory / "mds-1.pid").write_text(text)
        assert not cluster.running("mds-1")


def test_two_commands_at_once_do_not_start_everything_twice(make: Make) -> None:
    cluster = make()
    with cluster.lock():
        with pytest.raises(ClusterError, match="another lockstep command is at work"):
            LocalCluster.open(cluster.directory, stub()).up()


def test_a_zombie_does_not_run() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert processes.identify(child.pid) is None
    child.wait()


def test_only_our_own_kind_of_process_is_found_by_its_directory(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", "input()", f"{tmp_path}/x"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE) as other:
        assert processes.of_directory(tmp_path) == []
        other.communicate(b"\n", timeout=10)

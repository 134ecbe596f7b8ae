"""A real cluster with mounts, for tests: started in a temporary directory, always cleared.

A test that hangs in a system call on a mount cannot be interrupted by its own process.  The guard kills the mounts'
processes when a test takes too long; the kernel then ends every call on them with ENOTCONN and the test fails.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from admin import mounts, processes, runs
from admin.local import LocalCluster
from admin.status import ClusterStatus, Health
from daemon.config import CONFIG_NAME

TEST_LIMIT_S: Final = 100.0
"""A single test on a live cluster that takes longer hangs."""
SETTLE_S: Final = 30.0
"""A cluster with everything running is whole again within this time, or it never will be."""


class Live:
    """A cluster and its mounts."""

    def __init__(self, run: runs.Run, cluster: LocalCluster) -> None:
        self.run = run
        self.cluster = cluster
        self.mounts: dict[str, Path] = {}

    def mount(self, name: str, replica: int, options: tuple[str, ...] = ()) -> Path:
        """Mount through *replica* under *name*."""
        path = self.run.mountpoint(name)
        mounts.mount(self.cluster.config, path, options, replica)
        self.mounts[name] = path
        return path

    def unmount(self, name: str) -> None:
        mounts.unmount(self.mounts.pop(name))

    def replica_of(self, mountpoint: Path) -> int:
        """The replica that a mount is connected to."""
        for replica in self.cluster.status().replicas:
            if any(str(client).endswith(f":{mountpoint}") for client in replica.get("clients", ())):
                return replica.configured.id
        raise AssertionError(f"no replica has {mountpoint} among its clients")

    def settled(self, timeout_s: float = SETTLE_S) -> ClusterStatus:
        """Wait until the cluster is healthy with equal replicas: nothing is missing, nothing differs."""
        names = [d.name for d in self.cluster.daemons]
        return self.cluster.wait(
            lambda s: s.health is Health.HEALTHY and s.replicas_equal, "the cluster has not settled", timeout_s, names
        )

    def logs(self) -> str:
        """All the processes' logs, for a test that failed."""
        parts = []
        for path in sorted((self.cluster.directory / "log").glob("*.log")):
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            parts.append(f"--- {path.name}\n" + "\n".join(lines[-40:]))
        return "\n".join(parts)

    def abort_mounts(self) -> None:
        """Kill the mounts' processes: whoever waits for them gets ENOTCONN."""
        for one in mounts.mount_processes(self.run.cluster / CONFIG_NAME):
            processes.kill(one.who)


@contextlib.contextmanager
def live(
    replicas: int = 3, targets: int = 3, before: Callable[[LocalCluster], None] = lambda cluster: None
) -> Iterator[Live]:
    """A running cluster, nothing mounted yet; cleared at the end whatever happened. *before*: done before its start."""
    with runs.temporary("test") as run:
        cluster = LocalCluster.create(run.cluster, replicas, targets)
        before(cluster)
        cluster.up()
        yield Live(run, cluster)


@contextlib.contextmanager
def guarded(one: Live, limit_s: float = TEST_LIMIT_S) -> Iterator[None]:
    """Around one test: aborts *one*'s mounts after *limit_s*."""
    timer = threading.Timer(limit_s, one.abort_mounts)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def unavailable() -> str | None:
    """Why real mounts cannot be tested on this host, or None."""
    if os.environ.get("LOCKSTEP_NO_MOUNTS"):
        return "LOCKSTEP_NO_MOUNTS is set"
    return mounts.host_refusal()

"""The demonstration itself, with a small tree: its result, and that nothing stays however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from rich.console import Console

from admin import demo, processes, runs
from admin.local import child_environment, python_module
from tests.live import unavailable

pytestmark = pytest.mark.system

KEYS = [
    "files", "bytes", "mismatches", "errors", "killed_replica", "longest_stall_ms", "replicas_equal", "rejoined",
]  # fmt: skip


@pytest.fixture(autouse=True)
def needed() -> None:
    reason = unavailable()
    if reason is not None:
        pytest.fail(reason)


def test_a_replica_is_killed_under_the_copy_and_nothing_is_lost(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for k in range(20):
        (source / f"d{k}").mkdir(parents=True)
        for j in range(20):
            (source / f"d{k}" / f"f{j}").write_bytes(os.urandom(j * 1000))
    with runs.temporary("demo") as run:
        one = demo.Demo(run, Console(quiet=True), source=source)
        try:
            one.run()
        finally:
            one.end()
    assert one.result.good, one.result
    assert one.result.files == 400 + 100
    assert one.result.killed_replica in (1, 2, 3)
    assert one.result.longest_stall_ms is not None
    assert list(json.loads(one.result.line())) == KEYS
    assert not run.directory.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_demonstration_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    """As the copy begins, when daemons, mounts and the copying process all run."""
    env = {**child_environment(), "TMPDIR": str(tmp_path)}
    running = subprocess.Popen(python_module("admin", "demo"), stdout=subprocess.PIPE, text=True, env=env)
    assert running.stdout is not None
    for line in running.stdout:
        if "symbolic links" in line:
            break
    else:
        pytest.fail("it has ended before it copied anything")
    (directory,) = tmp_path.glob("lockstep-demo-*")
    running.send_signal(number)
    assert running.wait(60) == 128 + number
    assert processes.of_directory(directory) == []
    assert os.listdir(tmp_path) == []

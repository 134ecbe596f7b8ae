"""admin.runs: whatever way a run ends, nothing of it stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from admin import processes, runs
from admin.local import child_environment, python_module

OWNER = """
import os, sys, signal
from admin import runs
from admin.local import LocalCluster
from tests.admin.test_local import stub
with runs.interruptible(), runs.temporary("test") as run:
    cluster = LocalCluster.create(run.cluster, 2, 1, stub())
    cluster.up()
    print(run.directory, flush=True)
    signal.pause()
"""


@pytest.fixture(autouse=True)
def own_temporary_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs of these tests are made in a directory of their own: others on this host are not theirs to clear."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def start_owner() -> tuple[subprocess.Popen[str], Path]:
    """A process that owns a run with running daemons, and the run's directory."""
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True, env=child_environment())
    assert owner.stdout is not None
    return owner, Path(owner.stdout.readline().strip())


def test_a_run_is_gone_after_its_end(own_temporary_root: Path) -> None:
    with runs.temporary("test") as run:
        run.mountpoint("one")
        assert run.directory.parent == own_temporary_root
    assert os.listdir(own_temporary_root) == []


def test_a_run_is_gone_after_an_error(own_temporary_root: Path) -> None:
    with pytest.raises(KeyError), runs.temporary("test"):
        raise KeyError
    assert os.listdir(own_temporary_root) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_a_run_with_everything_in_it(own_temporary_root: Path, number: signal.Signals) -> None:
    owner, directory = start_owner()
    assert len(processes.of_directory(directory)) == 3
    owner.send_signal(number)
    owner.wait(20)
    assert processes.of_directory(directory) == []
    assert os.listdir(own_temporary_root) == []


def test_what_a_killed_owner_left_is_cleared_by_the_next(own_temporary_root: Path) -> None:
    owner, directory = start_owner()
    assert runs.clear_abandoned() == [], "its owner lives"
    owner.kill()
    owner.wait()
    assert len(processes.of_directory(directory)) == 3
    with runs.temporary("test"):
        assert processes.of_directory(directory) == []
        assert not directory.exists()
    assert os.listdir(own_temporary_root) == []


def test_directories_that_are_no_runs_are_left_alone(own_temporary_root: Path) -> None:
    kept = ["lockstep-demo", "lockstep-demo-1", "lockstep-demo-x-1-abc", "other-demo-99999999-1-abc"]
    for name in kept:
        (own_temporary_root / name).mkdir()
    (own_temporary_root / "victim").mkdir()
    (own_temporary_root / "lockstep-demo-99999999-1-link").symlink_to("victim")
    (own_temporary_root / "lockstep-demo-99999999-1-file").touch()
    (own_temporary_root / "lockstep-demo-99999999-1-dead").mkdir()
    assert [p.name for p in runs.clear_abandoned()] == ["lockstep-demo-99999999-1-dead"]
    assert {*kept, "victim"} < set(os.listdir(own_temporary_root))


def test_our_modules_are_run_without_the_working_directory_in_the_way(tmp_path: Path) -> None:
    """A directory called `admin` where the user happens to be must not be taken for ours."""
    (tmp_path / "admin").mkdir()
    (tmp_path / "admin" / "__init__.py").write_text("raise SystemExit('the wrong one')")
    done = subprocess.run(
        python_module("admin", "--version"), cwd=tmp_path, env=child_environment(), capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr

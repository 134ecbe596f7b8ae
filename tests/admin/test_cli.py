"""The `lockstep` command: arguments, exit codes, one line about what is wrong. Daemons are stand-ins."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from admin import cli, local, replica_cli
from admin.local import LocalCluster
from tests.admin.test_local import stub


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """Calls the command in an empty directory; its clusters are stopped at the end."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(LocalCluster.create.__func__, "__defaults__", (3, 3, stub(), "info"))  # type: ignore[attr-defined]
    monkeypatch.setattr(LocalCluster.open.__func__, "__defaults__", (stub(), "info"))  # type: ignore[attr-defined]

    def call(*args: str) -> Result:
        return CliRunner().invoke(cli.main, list(args))

    yield call
    for path in tmp_path.glob("*/lockstep.toml"):
        LocalCluster.open(path.parent, stub()).stop_all(2.0)


def test_up_status_and_down_in_the_default_directory(run: object, tmp_path: Path) -> None:
    assert callable(run)
    up = run("up", "--replicas", "2", "--targets", "2")
    assert up.exit_code == 0, up.output
    assert "cluster lockstep-cluster: healthy" in up.output
    assert "started: mds-1, mds-2, ossd-1, ossd-2" in up.output
    again = run("up")
    assert "everything ran already" in again.output
    status = run("status", "--json")
    assert status.exit_code == 0
    found = json.loads(status.output)
    assert (found["health"], found["cluster"]) == ("healthy", "lockstep-cluster")
    assert found["view"]["voters"] == [1, 2, 3]
    LocalCluster.open(tmp_path / "lockstep-cluster", stub()).kill("mds-2")
    assert run("status").exit_code == 1
    down = run("down")
    assert down.exit_code == 0
    ends = {"mds-1": "stopped", "mds-2": "was not running", "ossd-1": "stopped", "ossd-2": "stopped"}
    assert down.output.splitlines() == [f"{name}: {how}" for name, how in ends.items()]
    assert run("status", "lockstep-cluster/lockstep.toml").exit_code == 2
    assert run("down", "--delete").exit_code == 0
    assert list(tmp_path.iterdir()) == []


def test_up_with_other_numbers_than_there_are_is_refused(run: object) -> None:
    assert callable(run)
    assert run("up", "c", "--replicas", "1", "--targets", "1").exit_code == 0
    refused = run("up", "c", "--replicas", "2")
    assert refused.exit_code == 1
    assert "has 1 replicas, not 2" in refused.output
    assert run("up", "c", "--replicas", "1").exit_code == 0


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["down", "nowhere"], 2, "nowhere/lockstep.toml: cannot be read"),
        (["status", "nowhere"], 2, "nowhere: there is neither a configuration file nor a cluster's directory"),
        (["up", "--replicas", "0"], 2, "0 is not in the range"),
        (["mount", "nowhere", "/mnt"], 2, "nowhere: there is neither"),
        (["umount", "."], 1, ". is not mounted"),
        (["mds", "--config", "bad.toml", "--id", "1"], 2, "bad.toml: cluster: is missing"),
        (["mds", "--config", "bad.toml"], 2, "--id"),
        (["frobnicate"], 2, "No such command"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    run: object, tmp_path: Path, args: list[str], code: int, message: str
) -> None:
    assert callable(run)
    (tmp_path / "bad.toml").write_text("")
    done = run(*args)
    assert done.exit_code == code
    assert message in done.output
    assert "Traceback" not in done.output


def test_a_number_that_is_not_in_the_file_is_refused(run: object, tmp_path: Path) -> None:
    assert callable(run)
    LocalCluster.create(tmp_path / "c", 2, 1, stub())
    for args in (("mds", "--config", "c", "--id", "3"), ("ossd", "--config", "c", "--id", "9")):
        done = run(*args)
        assert done.exit_code == 2
        assert "there is no" in done.output
    refused = run("mount", "c", ".", "--replica", "7")
    assert (refused.exit_code, "there is no replica 7" in refused.output) == (2, True)


def test_every_command_explains_itself(run: object) -> None:
    assert callable(run)
    listed = run("--help")
    for name in cli.main.commands:
        assert f"\n  {name} " in listed.output
        text = run(name, "--help").output
        assert "Exit codes:" in text, name
    assert "Example" in listed.output
    for name in replica_cli.replica.commands:
        text = run("replica", name, "--help").output
        assert "Exit codes:" in text and "Example" in text, name


def test_the_daemon_command_is_the_one_that_up_uses() -> None:
    argv = local.daemon_command("mds", 2, Path("/c/lockstep.toml"), "debug")
    assert argv[argv.index("-m") + 1 :] == [
        "admin", "mds", "--config", "/c/lockstep.toml", "--id", "2", "--log-level", "debug",
    ]  # fmt: skip

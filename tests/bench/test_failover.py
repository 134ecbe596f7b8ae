"""Stalls and what follows from them: the arithmetic, and one trial of each kind on a real cluster."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from admin import network, runs
from bench import availability, failover
from bench.failover_load import Gaps
from daemon.config import ClusterConfig, Config, ReplicaConfig, TargetConfig
from tests.live import unavailable

CONFIG = Config(
    path=Path("/nowhere/lockstep.toml"),
    cluster=ClusterConfig("x", bytes(16)),
    replicas=tuple(ReplicaConfig(k, f"h:{k}", Path(f"/nowhere/{k}")) for k in (1, 2)),
    targets=(TargetConfig(1, "h:9", Path("/nowhere/t"), 3),),
)


@pytest.mark.parametrize(("nodes", "percent"), [(1, "99.285"), (2, "99.995"), (3, "99.99996")])
def test_the_equations_give_the_thesis_table(nodes: int, percent: str) -> None:
    """Table A.3: MTTF 5,000 h, MTTR 36 h, recovery 500 ms."""
    digits = len(percent.partition(".")[2])
    # The thesis cuts off n=1; what it rounds is within one of the last digit.
    assert 100 * availability.symmetric(nodes, 0.5) == pytest.approx(float(percent), abs=1.1 * 10**-digits)


def test_a_shorter_recovery_is_less_time_down() -> None:
    times = [availability.down_s_per_year(availability.symmetric(3, seconds)) for seconds in (17.0, 0.5, 0.1, 0.0)]
    assert times == sorted(times, reverse=True)


def test_p99_of_thirty_is_the_longest_and_of_two_hundred_is_not() -> None:
    assert failover.p99([float(k) for k in range(30)]) == 29
    assert failover.p99([float(k) for k in range(200)]) == 197


def test_a_row_has_what_the_reader_of_the_object_expects() -> None:
    trials = [failover.Trial("kill", 1, True, ms) for ms in (10.0, 30.0, 20.0)]
    assert failover.row(CONFIG, "kill", trials) == {
        "replicas": 2, "witnesses": 1, "fault": "kill", "trials": 3, "median_ms": 20.0, "p99_ms": 30.0, "max_ms": 30.0,
    }  # fmt: skip


def test_availability_takes_the_worst_fault_that_was_not_planned() -> None:
    common = {"replicas": 3, "median_ms": 1.0, "max_ms": 1.0}
    rows = [
        {**common, "fault": "kill", "p99_ms": 50.0},
        {**common, "fault": "stop", "p99_ms": 400.0},
        {**common, "fault": "leave", "p99_ms": 900.0},
    ]
    one, three = failover.availabilities(rows)
    assert one["availability"] is None and one["replicas"] == 1
    assert three["recovery_ms"] == 400.0
    assert three["availability"] > three["thesis_availability"]


def test_gaps_reach_from_before_the_mark_to_now() -> None:
    gaps = Gaps()
    gaps.answered("create")
    gaps._last -= 5  # the last answer was five seconds ago
    gaps.command("mark")
    assert json.loads(gaps.command("tell"))["longest_ms"] == pytest.approx(5000, abs=1000)
    gaps.answered("create")
    assert json.loads(gaps.command("tell"))["longest_ms"] == pytest.approx(5000, abs=1000)
    gaps.command("mark")
    said = json.loads(gaps.command("tell"))
    assert said["longest_ms"] < 1000 and said["answers"] == 2


@pytest.mark.parametrize("argv", [["--faults", "fire"], ["--replicas", "1"], ["--trials", "0"]])
def test_what_cannot_be_measured_is_refused(argv: list[str]) -> None:
    with pytest.raises(SystemExit):
        failover.parse(argv)


@pytest.mark.system
@pytest.mark.parametrize("client", [[], ["--mount"]])
def test_one_trial_of_each_fault(client: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    if client and (reason := unavailable()) is not None:
        pytest.skip(reason)
    faults = [f for f in failover.FAULTS if f != "partition" or network.refusal() is None]
    asked = ["--json", "--trials", "1", "--replicas", "3", "--faults", ",".join(faults), *client]
    assert failover.main(asked) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["fault"] for row in found["rows"]] == faults
    assert all(0 < row["median_ms"] < 60_000 and row["trials"] == 1 for row in found["rows"])
    assert found["client"] == ("mount" if client else "library")
    assert runs.clear_abandoned() == [] and network.clear_abandoned() == []

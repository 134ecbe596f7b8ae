"""bench.scale: its arguments, what its summary compares, and a small run from end to end."""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path

import pytest

from admin.local import child_environment, python_module
from bench import scale


def size(files: int, create: float, lookup: float, anonymous: float) -> dict[str, object]:
    memory = {"1": {"VmRSS": anonymous + 9.0, "RssAnon": anonymous}, "2": {"VmRSS": 20.0, "RssAnon": 10.0}}
    return {
        "files": files, "create_per_s": create, "lookup_per_s": lookup, "memory_mib": memory, "state_mib": 1.0,
        "restart": {"stop_s": 9.0, "start_s": 1.5, "killed_s": 2.5}, "join": {"seconds": 3.0, "stall_ms": 70.0},
        "read_whole_s": 2.75,
    }  # fmt: skip


def test_the_summary_compares_the_largest_with_the_smallest() -> None:
    found = [size(10, 1000.0, 5000.0, 30.0), size(100, 1.0, 1.0, 1.0), size(1000, 900.0, 4000.0, 70.5)]
    assert scale.summary(found) == {
        "create_ratio": 0.9, "lookup_ratio": 0.8, "memory_growth_mib": 40.5, "restart_s": 2.5, "read_whole_s": 2.75,
        "join_stall_ms": 70.0,
    }  # fmt: skip
    text = scale.table({"sizes": found, "summary": scale.summary(found)})
    assert "create_ratio 0.9" in text and len(text.splitlines()) == 6


def test_sizes_rise() -> None:
    assert scale._sizes("10,200") == (10, 200)
    for wrong in ("200,10", "10,", "0", "many"):
        with pytest.raises(argparse.ArgumentTypeError):
            scale._sizes(wrong)


@pytest.mark.system
def test_a_small_run(tmp_path: Path) -> None:
    # One size: a replica that is started for the fourth time within seconds is made to wait for its place.
    argv = python_module("bench.scale", "--files", "1000", "--replicas", "2", "--rounds", "1", "--json")
    done = subprocess.run(argv, capture_output=True, text=True, env=child_environment(), timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [one["files"] for one in found["sizes"]] == [1000]
    assert all(one["create_per_s"] > 0 and one["join"]["stall_ms"] > 0 for one in found["sizes"])
    assert all(one["read_whole_s"] > 0 for one in found["sizes"])
    assert set(found["sizes"][0]["memory_mib"]) == {"1", "2"}

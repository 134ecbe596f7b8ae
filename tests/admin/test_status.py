"""admin.status: the verdict on a cluster from its daemons' answers."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from admin.status import ClusterStatus, DaemonStatus, Health, lock_line, show
from daemon.config import ClusterConfig, Config, ReplicaConfig, TargetConfig
from mds.locks import MODES

CONFIG = Config(
    path=Path("/c/lockstep.toml"),
    cluster=ClusterConfig("blue", bytes(range(16))),
    replicas=tuple(ReplicaConfig(k, f"h:700{k}", Path(f"/c/m{k}")) for k in (1, 2, 3)),
    targets=(TargetConfig(1, "h:7101", Path("/c/o1"), 4), TargetConfig(2, "h:7102", Path("/c/o2"), 5)),
)
REPLICA: dict[str, Any] = {
    "role": "mds", "state": "active", "generation": 0, "epoch": 7, "members": (1, 2, 3), "voters": (1, 2, 3, 4, 5),
    "index": 100, "low": 99, "digest": "ab" * 8, "sessions": 2, "inodes": 10,
}  # fmt: skip


def cluster(replicas: dict[int, dict[str, Any] | None], targets: dict[int, dict[str, Any] | None] | None = None) -> Any:
    """The status in which replica k says REPLICA with these changes (None: it does not answer)."""
    said = {k: None if (c := replicas.get(k, {})) is None else {**REPLICA, "id": k, **c} for k in (1, 2, 3)}
    store = {"role": "ossd", "objects": 1, "bytes_total": 2048, "bytes_free": 1}
    changes = targets or {}
    held = {k: None if (c := changes.get(k, {})) is None else {**store, "witness": k + 3, **c} for k in (1, 2)}
    return ClusterStatus(
        CONFIG,
        tuple(DaemonStatus(r, said[r.id], bytes(16), "" if said[r.id] else "no answer") for r in CONFIG.replicas),
        tuple(DaemonStatus(t, held[t.id], bytes(16), "" if held[t.id] else "no answer") for t in CONFIG.targets),
    )


def test_all_alike_is_healthy() -> None:
    status = cluster({})
    assert status.problems == []
    assert status.health is Health.HEALTHY
    assert status.replicas_equal


def test_a_replica_that_does_not_answer_degrades() -> None:
    status = cluster({2: None, 1: {"members": (1, 3)}, 3: {"members": (1, 3)}})
    assert status.health is Health.DEGRADED
    assert status.problems == ["mds-2 does not answer: no answer"]
    assert not status.replicas_equal


def test_a_learner_degrades_until_it_is_a_member() -> None:
    status = cluster({3: {"state": "learner", "epoch": 6}, 1: {"members": (1, 2)}, 2: {"members": (1, 2)}})
    assert status.problems == ["mds-3 does not serve: learner", "mds-3 is no member of view 0.7"]


def test_no_replica_that_serves_is_unreachable() -> None:
    assert cluster({1: None, 2: None, 3: None}).health is Health.UNREACHABLE
    status = cluster({k: {"state": "changing view"} for k in (1, 2, 3)})
    assert status.health is Health.UNREACHABLE
    assert status.problems == ["no replica serves"]


def test_different_digests_count_at_an_equal_index_only() -> None:
    assert cluster({2: {"low": 98, "digest": "cd" * 8}}).problems == []
    assert not cluster({2: {"low": 98}}).replicas_equal
    status = cluster({2: {"digest": "cd" * 8}})
    assert status.problems == [f"replicas differ at index 99: digests {'ab' * 8}, {'cd' * 8}"]
    assert status.health is Health.DEGRADED


def test_what_the_lock_table_did_is_one_line() -> None:
    cells = {held: {asked: {"executed": 0, "queued": 0} for asked in MODES} for held in MODES}
    cells["update"]["read"]["executed"] = 4
    cells["write"]["update"]["queued"] = 2
    said = {"straight": 90, "declared": 10, "held": 3, "queued": 2, "waiting": 1, "cells": cells}
    assert lock_line(said) == (
        "90 requests executed at once, 10 by the lock table: 3 held back by caches, 2 queued, 1 wait now "
        "(read after update: 4 executed; update after write: 2 queued)"
    )


def test_members_are_those_of_the_latest_view() -> None:
    status = cluster({1: {"epoch": 6}, 2: {"epoch": 9, "members": (2, 3)}, 3: {"epoch": 9, "members": (2, 3)}})
    assert status.members == (2, 3)
    assert status.problems == ["mds-1 is in view 0.6, mds-2 in 0.9", "mds-1 is no member of view 0.9"]


def test_a_view_names_its_generation_and_its_number_within_it() -> None:
    status = cluster({k: {"generation": 3, "epoch": (3 << 40) + 12} for k in (1, 2, 3)})
    assert shown(status).splitlines()[1] == "view 3.12  members 1, 2, 3  voters 1, 2, 3, 4, 5"


def test_a_missing_target_or_witness_is_a_problem() -> None:
    assert cluster({}, {1: None}).problems == ["ossd-1 does not answer: no answer"]
    assert cluster({}, {2: {"witness": None}}).problems == ["ossd-2 hosts witness None, configured is 5"]
    status = cluster({k: {"voters": (1, 2, 3)} for k in (1, 2, 3)})
    assert status.problems == ["voters are 1, 2, 3, they should be 1, 2, 3, 4, 5"]


def test_json_has_the_promised_keys_and_plain_values() -> None:
    found = json.loads(json.dumps(cluster({1: {"blob": b"\1\2"}, 2: None}).to_json()))
    assert found["health"] == "degraded"
    assert found["view"] == {"generation": 0, "epoch": 7, "members": [1, 2, 3], "voters": [1, 2, 3, 4, 5]}
    one, two, _ = found["replicas"]
    assert (one["id"], one["answered"], one["index"], one["digest"], one["blob"]) == (1, True, 100, "ab" * 8, "0102")
    assert two == {"id": 2, "address": "h:7002", "answered": False, "error": "no answer"}
    assert found["targets"][0]["bytes_total"] == 2048
    assert cluster({1: None, 2: None, 3: None}).to_json()["view"] is None


def shown(status: ClusterStatus) -> str:
    out = io.StringIO()
    show(status, Console(file=out))
    return out.getvalue()


def test_the_table_shows_everything_and_cuts_nothing_off() -> None:
    text = shown(cluster({2: None}, {1: None}))
    assert "cluster blue: degraded" in text
    assert text.count("ab" * 8) == 2
    assert "h:7002" in text
    assert "2.0 KiB" in text
    assert "- mds-2 does not answer: no answer" in text


def test_a_tie_is_an_alarm_until_somebody_decides() -> None:
    tie = {"state": "diverged", "alarm": {"standing": "tie", "tie": "replica 2 differs from replica 1 at index 5"}}
    status = cluster({1: tie, 2: tie, 3: None})
    assert status.health is Health.DIVERGED and int(status.health) == 3
    text = "replica 2 differs from replica 1 at index 5; `lockstep replica resync` says whose state is given up"
    assert status.problems[1] == f"mds-1 serves nothing: {text}"
    assert json.loads(json.dumps(status.to_json()))["ties"] == {str(k): tie["alarm"]["tie"] for k in (1, 2)}
    one = cluster({1: tie})
    assert one.health is Health.DIVERGED, "also where others serve"
    assert one.problems == [f"mds-1 serves nothing: {text}"]


def test_a_replica_in_doubt_does_not_serve() -> None:
    status = cluster({2: {"state": "diverged", "alarm": {"standing": "doubt", "tie": ""}}})
    assert status.health is Health.DEGRADED
    assert status.problems == ["mds-2 does not serve: diverged"]

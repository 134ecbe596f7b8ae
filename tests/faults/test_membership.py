"""Replicas added, removed, replaced and restarted under load, with the `lockstep` command: no client sees an error.

One mount and several programs that use the client library work all the time, one operation after the other, and check
what they find.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from admin.local import LocalCluster, child_environment, python_module
from admin.status import Health
from tests.faults.conftest import Caller, Running, Worker
from tests.live import Live, live, unavailable

pytestmark = pytest.mark.system

WARM: Final = 40
AFTER: Final = 100
COMMAND_S: Final = 60


@pytest.fixture
def small() -> Iterator[Live]:
    """Three replicas, two targets with a witness each, one mount."""
    reason = unavailable()
    if reason is not None:
        pytest.fail(reason)
    with live(replicas=3, targets=2) as made:
        made.mount("one", 1)
        yield made


@pytest.fixture
def loads(small: Live) -> Iterator[list[Running]]:
    """One load on the mount, one through the client library at each of the first three replicas."""
    made: list[Running] = [Worker(small, small.mounts["one"] / "mounted", 1)]
    made += [Caller(small, f"/called-{k}", k) for k in (1, 2, 3)]
    for load in made:
        load.more(WARM)
    yield made
    for load in made:
        load.end()


def lockstep(*args: str, code: int = 0) -> str:
    """Run the command; what it prints."""
    argv = python_module("admin", *args)
    done = subprocess.run(
        argv, capture_output=True, text=True, env=child_environment(), timeout=COMMAND_S, check=False
    )
    assert done.returncode == code, f"{args}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout + (done.stderr if code else "")


def changed(*args: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(lockstep(*args, "--json", "--timeout", str(COMMAND_S - 10)))
    assert found["done"] and found["missing"] == ""
    return found


def still_without_error(loads: list[Running]) -> None:
    for load in loads:
        load.more(AFTER)


def whole(small: Live, members: list[int]) -> None:
    """Healthy, with these members, equal states, in the directory's new configuration."""
    cluster = LocalCluster.open(small.cluster.directory)
    status = cluster.wait(
        lambda s: s.health is Health.HEALTHY and s.replicas_equal and list(s.members) == members,
        f"the members have not become {members}", 30.0,
    )  # fmt: skip
    assert [r.configured.id for r in status.replicas] == members


def test_add_remove_and_replace_under_load(small: Live, loads: list[Running]) -> None:
    directory = str(small.cluster.directory)

    added = changed("replica", "add", directory)
    new = added["replica"]
    assert added["members"] == [1, 2, 3, new] and new in added["voters"]
    still_without_error(loads)

    removed = changed("replica", "remove", directory, "1", "--delete")
    assert removed["members"] == [2, 3, new] and 1 not in removed["voters"]
    assert not (Path(directory) / "data" / "mds-1").exists()
    still_without_error(loads)

    replaced = changed("replica", "replace", directory, "2")
    assert replaced["replica"] == 2 and 2 not in replaced["members"] and len(replaced["members"]) == 3
    still_without_error(loads)

    for load in loads:
        load.finish()
    whole(small, replaced["members"])
    mounted = loads[0]
    assert isinstance(mounted, Worker) and mounted.check(small.mounts["one"] / "mounted") > 0
    listed = json.loads(lockstep("replica", "list", directory, "--json"))
    assert [item["id"] for item in listed["removed"]] == [1, 2]
    assert "was removed from this cluster by" in lockstep("replica", "add", directory, "1", code=1)


def test_a_dead_replica_is_replaced_and_a_live_one_restarted_under_load(small: Live, loads: list[Running]) -> None:
    directory = str(small.cluster.directory)
    small.cluster.kill("mds-3")
    still_without_error(loads)
    replaced = changed("replica", "replace", directory, "3", "--delete")
    still_without_error(loads)
    restarted = changed("replica", "restart", directory, "2")
    assert restarted["members"] == replaced["members"]
    still_without_error(loads)
    for load in loads:
        load.finish()
    whole(small, restarted["members"])


def test_the_watchdog_starts_a_killed_and_a_stopped_replica_again(small: Live, loads: list[Running]) -> None:
    """Nobody does anything about it: the replica is certified dead, the others go on, and it comes back by itself."""
    for hurt in (small.cluster.crash, small.cluster.hang):
        was = hurt("mds-1")
        still_without_error(loads)
        whole(small, [1, 2, 3])
        now = small.cluster.guarded("mds-1")
        assert now is not None and now != was
    for load in loads:
        load.finish()
    log = small.cluster.log_file("mds-2").read_text(encoding="utf-8")
    assert log.count("of replica 1 is dead, its watchdog says") == 2


def test_a_single_survivor_is_forced_to_go_on(small: Live) -> None:
    directory = str(small.cluster.directory)
    (small.mounts["one"] / "before").write_text("kept")
    for name in ("mds-2", "mds-3", "ossd-1", "ossd-2"):
        small.cluster.kill(name)
    assert "--others-are-fenced" in lockstep("replica", "force", directory, "1", code=1)
    forced = changed("replica", "force", directory, "1", "--others-are-fenced")
    assert forced["members"] == [1]
    for name in ("ossd-1", "ossd-2"):
        small.cluster.start(name)
    assert (small.mounts["one"] / "before").read_text() == "kept"
    for number in ("2", "3"):
        changed("replica", "remove", directory, number)
    (small.mounts["one"] / "after").write_text("and goes on")

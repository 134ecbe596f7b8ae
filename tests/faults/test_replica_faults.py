"""Replicas killed, stopped and restarted under load: no application sees an error, nothing answered is lost."""

from __future__ import annotations

from typing import Final

import pytest

from tests.faults.conftest import Start
from tests.live import Live

WARM: Final = 60
"""Operations before a fault, so that it hits a running service."""
AFTER: Final = 150
"""Operations after it: they are only possible at the other replicas."""
PAUSE_S: Final = 10.0


@pytest.mark.system
@pytest.mark.parametrize("number", [1, 2, 3])
def test_kill_9_of_any_replica_is_a_pause_and_nothing_else(cluster: Live, load: Start, number: int) -> None:
    """Mount one is usually at replica 1, mount two at replica 2: each is hit, and so is one without clients."""
    one, two = cluster.mounts["one"], cluster.mounts["two"]
    name = f"kill-{number}"
    first, second = load(one / f"{name}-a"), load(two / f"{name}-b")
    first.more(WARM)
    second.more(WARM)
    cluster.cluster.kill(f"mds-{number}")
    first.more(AFTER)
    second.more(AFTER)
    members = cluster.cluster.status().members
    assert number not in members
    cluster.cluster.start(f"mds-{number}")
    # It rejoins while requests go on.
    cluster.cluster.wait(lambda s: number in s.members, f"replica {number} has not rejoined", 30.0, [f"mds-{number}"])
    first.more(WARM)
    first.finish()
    second.finish()
    assert first.check(two / f"{name}-a") > 0
    assert second.check(one / f"{name}-b") > 0
    cluster.settled()


@pytest.mark.system
def test_a_replica_that_is_stopped_for_10_s_and_continued_is_taken_in_again(cluster: Live, load: Start) -> None:
    """SIGSTOP: its connections stay open and nothing answers; when it wakes it must not throw out the healthy ones."""
    one, two = cluster.mounts["one"], cluster.mounts["two"]
    first, second = load(one / "pause-a"), load(two / "pause-b")
    first.more(WARM)
    second.more(WARM)
    number = cluster.replica_of(one)
    cluster.cluster.pause(f"mds-{number}")
    try:
        first.during(PAUSE_S)
        second.more(AFTER)
        others = {r.configured.id for r in cluster.cluster.status().replicas} - {number}
        assert set(cluster.cluster.status().members) == others
    finally:
        cluster.cluster.resume(f"mds-{number}")
    cluster.cluster.wait(lambda s: number in s.members, f"replica {number} has not rejoined", 30.0, [f"mds-{number}"])
    first.more(WARM)
    first.finish()
    second.finish()
    assert first.check(two / "pause-a") > 0
    assert second.check(one / "pause-b") > 0
    cluster.settled()


@pytest.mark.system
@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_after_a_stop_of_everything_nothing_answered_is_lost(cluster: Live, load: Start, how: str) -> None:
    """All daemons end, in order or with -9 at once; the mounts stay and go on when the service is back."""
    one, two = cluster.mounts["one"], cluster.mounts["two"]
    worker = load(one / f"restart-{how}")
    worker.more(AFTER)
    worker.finish()
    before = cluster.cluster.status()
    if how == "stopped":
        assert set(cluster.cluster.down().values()) == {"stopped"}
    else:
        for daemon in cluster.cluster.daemons:
            cluster.cluster.kill(daemon.name)
    assert cluster.cluster.running_names() == []
    cluster.cluster.up()
    after = cluster.settled()
    assert after.replicas[0].get("index") >= max(r.get("index", 0) for r in before.replicas)
    assert worker.check(two / f"restart-{how}") > 0
    again = load(one / f"restart-{how}-again")
    again.more(WARM)
    again.finish()
    assert again.check(two / f"restart-{how}-again") > 0


@pytest.mark.system
def test_everything_killed_under_load_is_waited_for_and_loses_nothing(cluster: Live, load: Start) -> None:
    """A hard mount: the load's operation that was under way is answered when the service is back."""
    one, two = cluster.mounts["one"], cluster.mounts["two"]
    worker = load(one / "outage")
    worker.more(WARM)
    for replica in cluster.cluster.config.replicas:
        cluster.cluster.kill(f"mds-{replica.id}")
    cluster.cluster.up()
    worker.more(AFTER)
    worker.finish()
    assert worker.check(two / "outage") > 0
    cluster.settled()

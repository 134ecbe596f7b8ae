"""admin.replicas: what is said to be missing while a change of the replicas is under way, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from admin import replicas
from admin.replicas import ReplicaError, check_replace, free_id, missing_to_add, missing_to_remove, roster_of
from admin.status import ClusterStatus, DaemonStatus
from daemon.config import ClusterConfig, Config, ReplicaConfig
from mds.namespace.roster import Roster

ROSTER = Roster(3, ((1, "h:1"), (2, "h:2"), (4, "h:4")), ((5, "h:5"),), ((3, "h:3", "root@h", 10**18),))
CONFIG = Config(
    Path("/c/lockstep.toml"), ClusterConfig("blue", bytes(range(16))),
    tuple(ReplicaConfig(k, f"h:{k}", Path(f"/c/{k}")) for k in (1, 2, 3)), (),
)  # fmt: skip


def status(voters: tuple[int, ...] = (1, 2, 4, 5), members: tuple[int, ...] = (1, 2, 4), **four: Any) -> ClusterStatus:
    """Replica 4 was added, replica 3 removed; replica 4 says *four* instead of what the others say (None: nothing)."""
    said = {
        "state": "active", "epoch": 9, "generation": 0, "members": members, "voters": voters, "index": 500,
        "roster": ROSTER.to_tuple(), "standing": {"stored": (1, 2, 4), "settled": True, "tolerates": 1},
    }  # fmt: skip
    rows = []
    for number, address in ROSTER.replicas:
        answer = {**said, **four} if number == 4 else said
        silent = answer.get("silent")
        configured = ReplicaConfig(number, address, Path())
        rows.append(DaemonStatus(configured, None if silent else answer, bytes(16), "refused" if silent else ""))
    return ClusterStatus(CONFIG, tuple(rows), ())


def test_nothing_is_missing_when_it_is_a_member_and_a_voter_and_that_is_stored() -> None:
    assert missing_to_add(status(), 4) == ""
    assert missing_to_remove(status(), 3) == ""


def test_what_a_new_replica_waits_for_is_named_in_its_order() -> None:
    assert "does not answer at h:4 (refused); is it started?" in missing_to_add(status(silent=True), 4)
    learning = status(members=(1, 2), voters=(1, 2, 5), state="learner", index=380)
    assert missing_to_add(learning, 4) == "replica 4 is learning: 120 batches behind"
    assert "replica 4 is not a voter yet" in missing_to_add(status(voters=(1, 2, 5)), 4)
    few = {"standing": {"stored": (1, 2), "settled": False, "tolerates": 0}}
    assert "on the disks of voters 1, 2 only" in missing_to_add(status(epoch=10, **few), 4)
    assert missing_to_add(status(), 7) == "replica 7 is not in the roster"


def test_what_a_removal_waits_for() -> None:
    assert missing_to_remove(status(), 4) == "replica 4 is in the roster still"
    assert missing_to_remove(status(members=(1, 2, 3)), 3) == "replica 3 is a member of the view still"
    assert "replica 3 is a voter still" in missing_to_remove(status(voters=(1, 2, 3, 5)), 3)


def test_others_that_are_on_their_way_are_not_waited_for() -> None:
    """Two replicas are added at once, one of them is not started yet: the other is complete all the same."""
    more = Roster(4, (*ROSTER.replicas, (6, "h:6")), ROSTER.witnesses, ROSTER.removed)
    changed = status(epoch=10, roster=more.to_tuple())
    assert changed.expected_voters == (1, 2, 4, 5, 6)
    assert missing_to_add(changed, 4) == ""


def test_a_number_is_never_given_twice() -> None:
    assert free_id(ROSTER, CONFIG) == 6
    assert free_id(Roster(0, ((255, "h:1"),)), CONFIG) == 4, "none above: one that was never used"


def test_who_is_replaced_is_there_and_not_its_own_successor() -> None:
    """Else `replace 2 2` would find 2 in its place already, and remove it."""
    with pytest.raises(ReplicaError, match="replica 2 cannot replace itself"):
        check_replace(ROSTER, 2, 2)
    with pytest.raises(ReplicaError, match="there is no replica 9 to replace, only 1, 2, 4"):
        check_replace(ROSTER, 9, None)
    check_replace(ROSTER, 2, 6)
    check_replace(ROSTER, 3, 4)  # removed already: the command is given again


def test_without_a_serving_replica_nothing_is_changed() -> None:
    with pytest.raises(ReplicaError, match="no replica of the cluster serves"):
        roster_of(ClusterStatus(CONFIG, (), ()))


def test_the_configuration_tells_how_it_began_and_the_roster_who_is_there() -> None:
    found = status()
    assert found.tolerated == 1
    assert found.expected_voters == (1, 2, 4, 5)
    assert found.problems == []


TIE = {"state": "diverged", "alarm": {"tie": "replica 4 differs"}}


def resync(monkeypatch: pytest.MonkeyPatch, *statuses: ClusterStatus) -> list[tuple[int, str]]:
    """What replicas are told when the state of 4 is given up and these statuses are seen, the last again and again."""
    told: list[tuple[int, str]] = []
    seen = iter(statuses)

    async def fetch(config: Config) -> ClusterStatus:
        return next(seen, statuses[-1])

    async def control(config: Config, number: int, what: str) -> None:
        told.append((number, what))

    monkeypatch.setattr(replicas, "fetch", fetch)
    monkeypatch.setattr(replicas, "control", control)
    monkeypatch.setattr(replicas, "LOOK_S", 0.0)
    trio.run(replicas.resync, CONFIG, 4, 0.1, lambda line: None)
    return told


def all_tied(**more: Any) -> ClusterStatus:
    found = status(**{"members": (1, 2, 4), **more})
    said = [None if r.said is None else {**r.said, **TIE} for r in found.replicas]
    rows = [DaemonStatus(r.configured, what, b"", "") for r, what in zip(found.replicas, said, strict=True)]
    return ClusterStatus(CONFIG, tuple(rows), ())


def test_the_others_are_told_to_go_on_when_the_one_given_up_is_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before that they would find the same difference again."""
    told = resync(monkeypatch, all_tied(), all_tied(), all_tied(members=(1, 2)))
    assert told == [(4, "resync"), (1, "trust"), (2, "trust")]
    told = resync(monkeypatch, all_tied(incarnation=3), all_tied(incarnation=4))
    assert told == [(4, "resync"), (1, "trust"), (2, "trust")], "or when it is another run of it"


def test_one_that_stays_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ReplicaError, match="replica 4 is a member of the view still"):
        resync(monkeypatch, all_tied())


def test_one_that_is_gone_can_be_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resync(monkeypatch, all_tied(members=(1, 2), silent=True)) == [(1, "trust"), (2, "trust")]


def test_the_last_state_is_not_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = all_tied()
    rows = [r if r.configured.id == 4 else DaemonStatus(r.configured, None, b"", "refused") for r in alone.replicas]
    with pytest.raises(ReplicaError, match="keeps its state"):
        resync(monkeypatch, ClusterStatus(CONFIG, tuple(rows), ()))


def test_where_more_states_differ_another_one_has_to_be_given_up() -> None:
    assert missing_to_add(all_tied(), 4) == "replica 1 waits for a decision: replica 4 differs; give up another state"

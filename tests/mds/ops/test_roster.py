"""The roster: who belongs to the cluster."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from mds.machine import Bootstrap, StateMachine
from mds.namespace.roster import Roster, from_tuple_untrusted
from mds.store import Store
from tests.mds.harness import START_NS
from wire.codec import encode, pack, unpack_untrusted
from wire.errors import WireError
from wire.roster import ReplicaRemove, ReplicaSet, RosterRequest, WitnessRemove, WitnessSet

REPLICAS = ((1, "a:1"), (2, "b:1"), (3, "c:1"))
WITNESSES = ((4, "a:2"), (5, "b:2"))
ME = "root@tests"


class Machine:
    """A state that began with REPLICAS and WITNESSES."""

    def __init__(self, path: Path) -> None:
        self.store = Store.open(path)
        self.machine = StateMachine(self.store, 1, Bootstrap(replicas=REPLICAS, witnesses=WITNESSES))

    @property
    def roster(self) -> Roster:
        return self.machine.roster

    def order(self, op: RosterRequest) -> tuple[int, int]:
        """(status, version in the answer)."""
        index = self.machine.index + 1
        outcome = self.machine.apply(index, 1, pack(((START_NS + index, 0, 1, index, encode(op)),)))[0]
        self.machine.validate()
        return outcome.status, unpack_untrusted(outcome.body) if outcome.status == 0 else -1


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path / "s")
    yield made
    made.store.close()


def test_a_new_state_has_the_roster_of_the_configuration(state: Machine) -> None:
    assert state.roster == Roster(0, REPLICAS, WITNESSES)
    assert state.roster.replica_ids == (1, 2, 3)
    assert state.roster.voter_ids == (1, 2, 3, 4, 5)


def test_a_replica_is_added_once_and_may_move(state: Machine) -> None:
    assert state.order(ReplicaSet(6, "d:1", ME)) == (0, 1)
    assert state.order(ReplicaSet(6, "d:1", ME)) == (0, 1), "asked again: nothing changes"
    assert state.roster.replica_ids == (1, 2, 3, 6)
    assert state.order(ReplicaSet(6, "d:9", ME)) == (0, 2)
    assert state.roster.address_of(6) == "d:9"


def test_a_removed_number_stays_removed_with_who_did_it(state: Machine) -> None:
    assert state.order(ReplicaRemove(2, ME)) == (0, 1)
    assert state.order(ReplicaRemove(2, "somebody else")) == (0, 1), "asked again: nothing changes"
    assert state.roster.replica_ids == (1, 3)
    assert state.roster.voter_ids == (1, 3, 4, 5)
    assert state.roster.address_of(2) == "b:1", "it is told of while it is in the view"
    assert state.roster.removal_of(2) == "root@tests at 2023-11-14 22:13:20 UTC"
    assert state.roster.removal_of(1) is None
    assert state.order(ReplicaSet(2, "b:1", ME)) == (errno.EEXIST, -1), "its disk may come back"


def test_the_last_replica_is_not_removed(state: Machine) -> None:
    assert state.order(ReplicaRemove(1, ME))[0] == 0
    assert state.order(ReplicaRemove(2, ME))[0] == 0
    assert state.order(ReplicaRemove(3, ME)) == (errno.EBUSY, -1)
    assert state.roster.replica_ids == (3,)


def test_numbers_and_addresses_belong_to_one(state: Machine) -> None:
    assert state.order(ReplicaSet(4, "d:1", ME)) == (errno.EEXIST, -1), "a witness has it"
    assert state.order(ReplicaSet(6, "a:1", ME)) == (errno.EADDRINUSE, -1)
    assert state.order(ReplicaSet(6, "a:2", ME)) == (errno.EADDRINUSE, -1)
    assert state.order(ReplicaRemove(4, ME)) == (errno.ENOENT, -1), "it is no replica"
    assert state.order(ReplicaRemove(9, ME)) == (errno.ENOENT, -1)
    assert state.roster.version == 0


def test_witnesses_come_and_go(state: Machine) -> None:
    assert state.order(WitnessSet(6, "c:2", ME)) == (0, 1)
    assert state.order(WitnessRemove(4, ME)) == (0, 2)
    assert state.roster.witnesses == ((5, "b:2"), (6, "c:2"))
    assert state.roster.voter_ids == (1, 2, 3, 5, 6)
    assert state.order(WitnessSet(4, "a:2", ME)) == (errno.EEXIST, -1)
    assert state.order(WitnessSet(1, "z:1", ME)) == (errno.EEXIST, -1)


def test_the_roster_is_in_the_store_and_travels(state: Machine, tmp_path: Path) -> None:
    state.order(ReplicaSet(6, "d:1", ME))
    state.order(ReplicaRemove(1, ME))
    assert from_tuple_untrusted(unpack_untrusted(pack(state.roster.to_tuple()))) == state.roster
    layer = state.store.freeze()
    assert layer is not None
    state.store.write(layer)
    state.store.release(layer)
    copy = tmp_path / "copy"
    state.store.copy_to(copy)
    again = Store.open(copy)
    assert StateMachine(again, 2).roster == state.roster
    again.close()


@pytest.mark.parametrize("value", [None, (1, 2), (1, ((1, 2),), (), ()), (1, (), (), ((1, "a", 3, "b"),)), (1, (), ())])
def test_what_is_no_roster_is_refused(value: object) -> None:
    with pytest.raises(WireError):
        from_tuple_untrusted(value)

"""Out-of-order execution and the divergence alarm: replicas that have different things executed ahead are alike all the
same, and one that is wrong is found all the same."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mds import operations, schema
from mds.alarm import Alarm, Standing
from mds.batch import decode_batch
from mds.digest import Digest
from mds.machine import StateMachine
from mds.namespace import inode as inodes
from mds.store import Store
from tests.mds.harness import ROOT, TOP
from tests.mds.test_schedule import BOTH, Histories, Scheduled
from wire import ops
from wire.codec import encode
from wire.delegation import RecallDelegations, RevokeDelegations
from wire.errors import OK
from wire.group import Digests

MEMBERS = (1, 2, 3)
Item = tuple[int, bytes | None]
"""(index, a batch; None: a view event)."""


# -- the digest alone


def test_what_is_executed_ahead_counts_when_nothing_before_it_is_missing() -> None:
    effects: dict[int, Any] = {index: [(1, b"%d" % index, b"x")] for index in range(1, 6)}
    serial, other = Digest(), Digest()
    at = {}
    for index in effects:
        serial.count(index, 0, effects[index], ahead=False)
        at[index] = serial.complete
    other.count(1, 0, effects[1], ahead=False)
    for index in (3, 5):
        other.count(index, 0, effects[index], ahead=True)
        assert other.complete == at[1] and not other.passed()
    other.count(2, 0, effects[2], ahead=True)
    other.reached(2, 3)
    assert other.complete == at[3]
    other.count(4, 0, effects[4], ahead=True)
    other.reached(4, 5)
    assert other.passed() == [(index, at[index]) for index in (2, 3, 4, 5)], "each index is told, once"
    assert not other.passed() and other.total == serial.total


# -- replicas that get one history, each at its own pace


class Replica:
    """A machine whose requests are held back at random, and its alarm."""

    def __init__(self, me: int, rng: random.Random, path: Path) -> None:
        self.me = me
        self.rng = rng
        self.machine = Scheduled(rng, path)
        self.alarm = Alarm(me)
        self.epoch = -1
        self.to_do: list[Item] = []
        """Ordered, and not delivered here."""
        self.ahead = 0
        """How often something was executed ahead by the end of a step."""

    @property
    def state(self) -> StateMachine:
        return self.machine.schedule.state

    def deliver(self) -> None:
        index, batch = self.to_do.pop(0)
        if batch is None:
            self.machine.work(everything=True)
            self.note()
            self.state.view_event(index, 1, index, MEMBERS)
            self.view(index)
        else:
            self.machine.deliver(index, batch)
        self.note()

    def view(self, epoch: int) -> None:
        self.epoch = epoch
        self.alarm.new_view(epoch, MEMBERS)

    def note(self) -> None:
        """What mds.replica does after each item of history."""
        for mark in self.state.marks():
            self.alarm.digests.note(*mark)
        self.ahead += self.state.low < self.state.index

    def work(self, everything: bool = False) -> None:
        self.machine.work(everything)
        self.note()

    def commit(self) -> None:
        """What mds.serve does now and then."""
        state = self.state
        state.set_position(b"%d" % state.index)
        layer = state.store.freeze()
        if layer is not None:
            settled = state.low == state.index
            total = state.store.write(layer)
            state.store.release(layer)
            if settled:
                self.alarm.records.note(state.index, total)

    def start_again(self) -> None:
        """The process is killed: of what it compared nothing is left."""
        self.machine.crash()
        self.alarm = Alarm(self.me)
        self.view(self.epoch)
        self.note()


class Cluster:
    """Three of them, which tell each other their marks, at times late."""

    def __init__(self, rng: random.Random, path: Path) -> None:
        self.rng = rng
        self.made = Histories(rng, StateMachine(Store.open(path / "serial"), 9))
        self.replicas = [Replica(me, rng, path / str(me)) for me in MEMBERS]
        self.late: list[tuple[int, Digests]] = []
        """(sender, what it said)"""
        self.view()
        self.order(self.made.batch(*BOTH)[0])
        self.compared = 0

    def close(self) -> None:
        self.made.serial.store.close()
        for replica in self.replicas:
            replica.machine.store.close()

    def view(self) -> None:
        self.made.view(MEMBERS)
        self.order(None)

    def order(self, batch: bytes | None) -> None:
        for replica in self.replicas:
            replica.to_do.append((self.made.index, batch))

    def step(self, crashes: bool = True) -> None:
        rng = self.rng
        if rng.random() < 0.03:
            self.view()
        else:
            self.order(self.made.random()[0])
        for replica in self.replicas:
            while replica.to_do and (len(replica.to_do) > 8 or rng.random() < 0.5):
                replica.deliver()
            if rng.random() < 0.3:
                replica.work()
            if rng.random() < 0.15:
                replica.commit()
            if crashes and rng.random() < 0.01 and replica.epoch >= 0:
                replica.start_again()
        self.say()

    def say(self, everything: bool = False) -> None:
        """Some say what they have; what was said before arrives, or some of it."""
        rng = self.rng
        for replica in self.replicas:
            if everything or rng.random() < 0.3:
                self.late.append((replica.me, replica.alarm.message(ask=False)))
        rng.shuffle(self.late)
        while self.late and (everything or rng.random() < 0.7):
            sender, said = self.late.pop()
            for replica in self.replicas:
                self.compared += replica.alarm.take(sender, said)

    def settle(self) -> None:
        """Everything is delivered, executed, and on disk; all say so."""
        for replica in self.replicas:
            while replica.to_do:
                replica.deliver()
            replica.work(everything=True)
            assert replica.state.low == self.made.index
            replica.commit()
        for _ in range(3):
            self.say(everything=True)

    def standings(self) -> list[Standing]:
        for replica in self.replicas:
            replica.alarm.validate()
        return [replica.alarm.judge(0) for replica in self.replicas]


@pytest.fixture
def clusters(tmp_path: Path) -> Iterator[Callable[[int], Cluster]]:
    made: list[Cluster] = []

    def cluster(seed: int) -> Cluster:
        made.append(Cluster(random.Random(seed), tmp_path))
        return made[-1]

    yield cluster
    for one in made:
        one.close()


ALIKE = [Standing.ALIKE] * 3


@pytest.mark.parametrize("seed", range(16))
def test_no_false_alarm_whatever_is_executed_ahead(clusters: Callable[[int], Cluster], seed: int) -> None:
    """Each delivers, holds back, executes, writes, dies and says what it has when it likes: nobody is ever in doubt."""
    cluster = clusters(seed)
    for _ in range(120):
        cluster.step()
        assert cluster.standings() == ALIKE
    cluster.settle()
    assert cluster.standings() == ALIKE
    for replica in cluster.replicas:
        others = set(MEMBERS) - {replica.me}
        index = cluster.made.index
        assert replica.alarm.digests.alike == dict.fromkeys(others, index), "and they were compared"
        assert replica.alarm.records.alike == dict.fromkeys(others, index)
    assert cluster.compared > 100 and min(replica.ahead for replica in cluster.replicas) > 30, "it was of some use"


def test_every_index_is_compared_however_it_was_passed(clusters: Callable[[int], Cluster]) -> None:
    """One executes everything when it is delivered. At the other one the first request waits, and others go past it; in
    the end it knows what each index came to, though it never stood there."""
    cluster = clusters(1)
    first, second, _ = cluster.replicas
    while second.to_do:
        second.deliver()
    second.work(everything=True)
    began = second.state.low
    first_of_all = (1, 0, 1, 1, encode(ops.SessionOpen(b"one that waits..", "c", 64, 1, 1)))
    cluster.order(cluster.made.batch(first_of_all)[0])
    for _ in range(30):
        cluster.order(cluster.made.random()[0])
    schedule = second.machine.schedule
    for index, batch in second.to_do:
        assert batch is not None
        schedule.deliver((1, 1, index), index, decode_batch(batch), frozenset({0} if index == began + 1 else ()))
    while (request := schedule.next()) is not None:
        schedule.execute(request)
    second.note()
    assert second.state.low == began < second.state.index
    for _ in range(len(first.to_do)):
        first.deliver()
        first.work(everything=True)
        second.alarm.take(first.me, first.alarm.message(ask=False))
    found: list[int] = []
    compare = second.alarm.digests._compare

    def compared(peer: int, index: int, mark: int) -> bool:
        news = compare(peer, index, mark)
        found.append(second.alarm.digests.alike[peer])
        return news

    second.alarm.digests._compare = compared  # type: ignore[method-assign]
    second.work(everything=True)
    assert found == list(range(began + 1, second.state.index + 1))


def wrong_record(store: Store) -> None:
    """A directory belongs to somebody else, with a right checksum: as by a flipped bit in memory."""
    key = schema.u64(TOP)
    record = store.get(schema.INODES, key)
    assert record is not None
    inode = inodes.decode(record)
    inode.uid += 1
    store.put_alone(schema.INODES, key, inode.encode())


@pytest.mark.parametrize("what", ["a wrong record", "a handler that is not deterministic"])
@pytest.mark.parametrize("seed", range(8))
def test_who_is_wrong_is_found_whatever_is_executed_ahead(
    clusters: Callable[[int], Cluster], monkeypatch: pytest.MonkeyPatch, seed: int, what: str
) -> None:
    cluster = clusters(100 + seed)
    for _ in range(20):
        cluster.step(crashes=False)
    assert cluster.standings() == ALIKE
    wrong = cluster.replicas[seed % 3]
    if what == "a wrong record":
        wrong_record(wrong.machine.store)
    else:
        for kind in (ops.Create, ops.Mkdir, ops.Mknod, ops.Symlink, ops.Link, ops.SetAttr):
            run = operations.APPLY[kind]

            def otherwise(scope: Any, op: Any, run: Any = run) -> Any:
                if scope.store is wrong.machine.store:
                    scope.now += 1
                return run(scope, op)

            for table in (operations.APPLY, operations.APPLY_ALL):
                monkeypatch.setitem(table, kind, otherwise)
    for _ in range(60):
        cluster.step(crashes=False)
        said = cluster.standings()
        assert Standing.MINORITY not in [s for s, r in zip(said, cluster.replicas, strict=True) if r is not wrong]
        if Standing.MINORITY in said:
            break
    another = ops.SessionOpen(b"another session!", "another", 64, 1, 1)  # that of the history may have ended
    session = schema.number_at(cluster.made.index + 1, 0)
    holder, _ = cluster.made.serial.delegated.get(TOP, (1, False))
    for entry in (
        (1, 0, 1, 1, encode(another)),
        (1, 0, 1, 1, encode(RecallDelegations((TOP,)))),
        (1, 0, 1, 1, encode(RevokeDelegations(((TOP, holder),)))),
        (2, session, 0, 1, encode(ops.Create(ROOT, TOP, b"one more", 0o644))),
    ):
        batch, (outcome,) = cluster.made.batch(entry)
        assert outcome.status == OK
        cluster.order(batch)
    cluster.settle()
    assert cluster.standings()[seed % 3] is Standing.MINORITY
    assert [s for s, r in zip(cluster.standings(), cluster.replicas, strict=True) if r is not wrong] == ALIKE[:2]

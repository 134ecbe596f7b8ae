"""mds.alarm, mds.comparing: replicas whose states differ are found, and stopped, before they do harm."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mds import limits, operations, schema
from mds.alarm import AHEAD, DIGESTS_KEPT, TIE_AFTER_US, Alarm, Comparison, Standing
from mds.namespace import inode as inodes
from mds.store import Store
from tests.mds.group import ROOT, TOP, Group, Node, User, create, lookup, mkdir, names, unlink
from tests.mds.test_out_of_order import silent, waiting
from tests.sim.clock import MS, SECOND
from wire import ops
from wire.codec import pack, unpack_untrusted
from wire.errors import Status
from wire.group import Digests

SEEDS = pytest.mark.parametrize("seed", range(4))


# -- the comparison alone


class Members:
    """Alarms that tell each other everything at once, and know nothing of a group."""

    def __init__(self, count: int) -> None:
        self.alarms = {k: Alarm(k) for k in range(1, count + 1)}
        self.epoch = 0
        self.view(*self.alarms)

    def view(self, *members: int) -> None:
        self.epoch += 1
        for member in members:
            self.alarms[member].new_view(self.epoch, members)
        self.members = members

    def apply(self, index: int, **digests: int) -> None:
        """Everybody has applied *index*, with digest 0 or as given by ``r<replica>``."""
        for member in self.members:
            self.alarms[member].digests.note(index, digests.get(f"r{member}", 0))

    def tell(self, times: int = 2) -> None:
        for _ in range(times):
            for member in self.members:
                said = self.alarms[member].message(ask=False)
                for other in self.members:
                    self.alarms[other].take(member, said)

    def judge(self, now: int = 0) -> list[str]:
        for alarm in self.alarms.values():
            alarm.validate()
        return [self.alarms[m].judge(now).value for m in self.members]


def test_alike_at_any_index() -> None:
    members = Members(3)
    members.apply(7)
    members.tell()
    assert members.judge() == ["alike"] * 3
    assert members.alarms[1].digests.alike == {2: 7, 3: 7}


def test_one_of_three_is_the_minority() -> None:
    members = Members(3)
    members.apply(7)
    members.tell()
    members.apply(8, r3=1)
    members.tell()
    assert members.judge() == ["alike", "alike", "minority"]
    assert members.alarms[1].describe() == "replica 3 differs from replica 1 at index 8"


def test_nothing_is_served_before_a_majority_is_known() -> None:
    """Two are found to differ; the third was like one of them, but not since."""
    members = Members(3)
    members.apply(7)
    members.tell()
    for member, digest in ((1, 0), (3, 1)):
        members.alarms[member].digests.note(8, digest)
    for member, other in ((1, 3), (3, 1)):
        members.alarms[other].take(member, members.alarms[member].message(ask=False))
    assert members.judge()[::2] == ["doubt", "doubt"]
    members.alarms[2].digests.note(8, 0)
    members.tell()
    assert members.judge() == ["alike", "alike", "minority"]


def test_two_that_differ_are_a_tie_at_once() -> None:
    members = Members(2)
    members.apply(3, r2=1)
    members.tell()
    assert members.judge() == ["tie", "tie"]
    members.view(1)
    assert members.judge()[0] == "tie", "left alone, it is no more right than before"
    members.alarms[1].trust()
    members.view(1)
    assert members.judge()[0] == "alike"


@pytest.mark.parametrize("digests", [{"r3": 1, "r4": 1}, {"r2": 1, "r3": 2, "r4": 3}, {"r1": 1, "r3": 2}])
def test_without_a_majority_doubt_becomes_a_tie(digests: dict[str, int]) -> None:
    members = Members(4)
    members.apply(9, **digests)
    members.tell()
    assert members.judge(5) == ["doubt"] * 4
    assert members.judge(4 + TIE_AFTER_US) == ["doubt"] * 4
    assert members.judge(5 + TIE_AFTER_US) == ["tie"] * 4


def test_three_of_five_are_right() -> None:
    members = Members(5)
    members.apply(9, r2=1, r4=2)
    members.tell()
    assert members.judge() == ["alike", "minority", "alike", "minority", "alike"]


def test_a_tie_ends_when_somebody_who_was_away_agrees() -> None:
    members = Members(3)
    members.view(1, 2)
    members.apply(9, r2=1)
    members.tell()
    assert members.judge() == ["tie", "tie"]
    members.view(1, 2, 3)
    members.alarms[3].digests.note(9, 0)
    members.apply(10, r2=1)
    for alarm in members.alarms.values():
        alarm.records.note(10, 5)
    members.tell()
    assert members.judge() == ["alike", "minority", "alike"]
    assert not members.alarms[1].tie


def test_a_member_that_is_behind_is_compared_where_it_is_and_when_it_comes() -> None:
    one, two = Alarm(1), Alarm(2)
    for alarm in (one, two):
        alarm.new_view(1, (1, 2))
    for index in range(20):
        one.digests.note(index, index)
    for index in range(10):
        two.digests.note(index, index)
    two.take(1, one.message(ask=False))
    one.take(2, two.message(ask=False))
    assert one.digests.alike == {2: 9} and one.judge(0) is Standing.ALIKE
    assert two.digests.alike == {} and two.judge(0) is Standing.ALIKE
    for index in range(10, 19):
        assert not two.digests.note(index, index)
    assert two.digests.note(19, 0), "the mark that was told is there to be compared with"
    assert two.judge(0) is Standing.TIE


def test_a_mark_that_was_passed_by_is_dropped() -> None:
    """Out of order, the index up to which all is executed may jump."""
    alarm = Comparison(1, 10)
    alarm.take(2, (5, 55, (), ()))
    alarm.take(2, (7, 77, (), ()))
    assert not alarm.note(6, 66)
    assert not alarm.note(7, 77)
    assert alarm.alike == {2: 7}


def test_what_is_kept_is_bounded() -> None:
    alarm = Alarm(1)
    alarm.new_view(1, (1, 2))
    for index in range(2 * DIGESTS_KEPT):
        alarm.digests.note(index, 1)
    for index in range(2 * DIGESTS_KEPT, 2 * DIGESTS_KEPT + 2 * AHEAD):
        alarm.take(2, Digests(1, False, (index, 1, (), ()), (-1, 0, (), ())))
    alarm.validate()
    alarm.take(2, Digests(1, False, (0, 9, (), ()), (-1, 0, (), ())))
    assert alarm.judge(0) is Standing.ALIKE, "too long ago to be known"


@pytest.mark.parametrize(
    ("epoch", "peer"), [(2, 2), (1, 3), (1, 1)], ids=["of another view", "no member", "our own, come back"]
)
def test_only_members_of_one_view_are_compared(epoch: int, peer: int) -> None:
    alarm = Alarm(1)
    alarm.new_view(1, (1, 2))
    alarm.digests.note(4, 1)
    assert not alarm.take(peer, Digests(epoch, False, (4, 9, (), ()), (-1, 0, (), ())))
    assert alarm.judge(0) is Standing.ALIKE


def test_records_are_compared_at_commits_of_equal_index() -> None:
    members = Members(3)
    members.apply(9)
    for member, index, value in ((1, 7, 70), (2, 8, 80), (3, 6, 60)):
        members.alarms[member].records.note(index, value)
    members.tell()
    assert members.judge() == ["alike"] * 3
    for member, value in ((1, 90), (2, 90), (3, 91)):
        members.alarms[member].records.note(9, value)
    members.tell()
    assert members.judge() == ["alike", "alike", "minority"]


# -- whole services


@pytest.fixture
def service(tmp_path: Path) -> Callable[..., Any]:
    @contextmanager
    def made(seed: int, replicas: int, witnesses: int = 0) -> Iterator[Group]:
        group = Group(tmp_path, seed, replicas, witnesses)
        group.may_differ = True
        try:
            yield group
            group.finish()
        finally:
            group.close()

    return made


def standing(group: Group, replica: int) -> Standing:
    return group.nodes[replica].replica.comparing.standing


def all_committed(group: Group) -> None:
    group.until(lambda: all(not n.replica.state.store.pending_bytes for n in group.nodes.values() if n.running))


def corrupt(node: Node, table: schema.Table, key: bytes, change: Callable[[bytes], bytes]) -> None:
    """A record of the state is another one, with a right checksum: as by a bug, or a flipped bit in memory.

    Nothing tells of it: it is put below what was applied, as if it had been there from the start."""
    store = node.store
    value = store.get(table, key)
    assert value is not None
    store.put_alone(table, key, change(value))


def chmod(ino: int) -> ops.SetAttr:
    return ops.SetAttr(ROOT, ino, ops.SET_MODE, 0o600, 0, 0, 0, 0, 0, False)


def larger(value: bytes) -> bytes:
    inode = inodes.decode(value)
    inode.size += 1
    return inode.encode()


@SEEDS
def test_a_wrong_record_of_one_of_three(service: Any, seed: int) -> None:
    """Its size is wrong; a change of the mode writes that again: the effects differ. The others go on."""
    with service(seed, 3) as group:
        user = group.user(at=1)
        ino = group.ask(user, create(b"victim"))[0]
        all_committed(group)
        corrupt(group.nodes[3], schema.INODES, schema.u64(ino), larger)
        began = group.clock.now
        group.ask(user, chmod(ino))
        group.until(lambda: standing(group, 3) is not Standing.ALIKE, SECOND)
        group.until(lambda: group.nodes[3].given_up == 1, began + 2 * SECOND - group.clock.now)
        group.ask(user, create(b"after"))
        group.until(lambda: group.view() == (1, 2, 3))
        group.ask(user, create(b"with all of them"))
    assert group.nodes[3].given_up == 1 and (group.nodes[3].base / "given-up-1").is_dir()


@SEEDS
def test_clients_notice_nothing_of_a_minority(service: Any, seed: int) -> None:
    """Also those of the replica that is wrong: what they ask is done once, at whichever replica they are by then."""
    with service(seed, 3) as group:
        users = [group.user(f"user {r}", r) for r in group.replica_ids]
        ino = group.ask(users[0], create(b"victim"))[0]
        all_committed(group)
        corrupt(group.nodes[3], schema.INODES, schema.u64(ino), larger)
        wanted = set()
        for step in range(60):
            calls = [user.request(create(b"%s.%d" % (user.name.encode(), step))) for user in users]
            if step == 20:
                calls.append(users[1].request(chmod(ino)))
            group.complete(*calls)
            assert all(call.ok for call in calls)
            wanted |= {call.op.name for call in calls if isinstance(call.op, ops.Create)}
        group.until(lambda: group.nodes[3].given_up == 1)
        assert wanted < set(names(group, users[2]))


@SEEDS
def test_a_record_that_went_wrong_while_its_replica_was_away(service: Any, seed: int) -> None:
    with service(seed, 3) as group:
        ino = group.ask(group.user(at=1), create(b"victim"))[0]
        all_committed(group)
        node = group.nodes[3]
        group.kill(3)
        group.certify(3)
        group.until(lambda: group.view() == (1, 2))
        node.store = Store.open(node.base / "state")
        corrupt(node, schema.INODES, schema.u64(ino), larger)
        layer = node.store.freeze()
        assert layer is not None
        node.store.write(layer)
        node.store.close()
        group.restart(3)
        group.until(lambda: node.given_up == 1)


@SEEDS
def test_a_wrong_entry_of_one_of_three(service: Any, seed: int) -> None:
    """A name leads to another inode there: removing it removes something else."""
    with service(seed, 3) as group:
        user = group.user(at=2)
        one, other = group.ask(user, create(b"one"))[0], group.ask(user, create(b"other"))[0]
        all_committed(group)
        key = schema.dirent_key(TOP, b"one")
        corrupt(group.nodes[1], schema.DIRENTS, key, lambda value: pack((other, *unpack_untrusted(value)[1:])))
        group.ask(user, unlink(b"one"))
        group.until(lambda: group.nodes[1].given_up == 1, 2 * SECOND)
        assert group.ask(user, ops.GetAttr(other))[0] == other
        assert group.ask(user, lookup(b"other"))[0] == other
    assert [group.nodes[r].given_up for r in (2, 3)] == [0, 0] and one != other


@SEEDS
def test_a_wrong_record_that_nobody_touches(service: Any, seed: int) -> None:
    """No effect tells of it, the sum of records does, as soon as it is compared at equal index."""
    with service(seed, 3) as group:
        user = group.user(at=1)
        ino = group.ask(user, create(b"victim"))[0]
        all_committed(group)
        corrupt(group.nodes[3], schema.INODES, schema.u64(ino), larger)
        group.ask(user, create(b"other"))
        group.until(lambda: group.nodes[3].given_up == 1, 5 * SECOND)


@SEEDS
def test_a_handler_that_is_not_deterministic(service: Any, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with service(seed, 3) as group:
        user = group.user(at=1)
        apply = operations.APPLY[ops.Create]

        def otherwise(scope: Any, op: Any) -> Any:
            if scope.store is group.nodes[2].store and op.name == b"odd":
                scope.now += 1
            return apply(scope, op)

        monkeypatch.setitem(operations.APPLY, ops.Create, otherwise)
        monkeypatch.setitem(operations.APPLY_ALL, ops.Create, otherwise)
        group.ask(user, create(b"even"))
        group.run(SECOND)
        assert all(standing(group, r) is Standing.ALIKE for r in group.nodes)
        began = group.clock.now
        group.ask(user, create(b"odd"))
        group.until(lambda: group.nodes[2].given_up == 1, began + 2 * SECOND - group.clock.now)
        monkeypatch.undo()


@SEEDS
def test_a_wrong_record_while_others_wait_for_a_cache(service: Any, seed: int) -> None:
    """What finds it is executed ahead of what waits, and it counts as soon as that does not wait any more."""
    with service(seed, 3) as group:
        user = group.user(at=1)
        ino, one = group.ask(user, create(b"victim"))[0], group.ask(user, mkdir(b"one"))[0]
        all_committed(group)
        silent(group, 2, one).follows = False
        held = user.request(mkdir(b"held", one))
        group.until(lambda: waiting(group) == [1, 2, 3])
        corrupt(group.nodes[3], schema.INODES, schema.u64(ino), larger)
        began = group.clock.now
        group.ask(user, chmod(ino))
        assert not held.done and waiting(group) == [1, 2, 3]
        group.until(lambda: group.nodes[3].given_up == 1, began + 2 * SECOND - group.clock.now)
        group.complete(held)


@SEEDS
def test_the_records_are_compared_when_nothing_waits_any_more(service: Any, seed: int) -> None:
    """All states are written while a request waits, and nothing is asked of the service after that."""
    with service(seed, 3) as group:
        user = group.user(at=1)
        one = group.ask(user, mkdir(b"one"))[0]
        silent(group, 2, one).follows = False
        held = user.request(mkdir(b"held", one))
        group.until(lambda: waiting(group) == [1, 2, 3])
        for node in group.nodes.values():
            node.commit()
            assert node.replica.comparing.alarm.records.latest[0] < node.replica.state.index
        group.complete(held)
        group.run(2 * SECOND)
        for node in group.nodes.values():
            alarm, index = node.replica.comparing.alarm, node.replica.state.index
            assert alarm.records.latest[0] == index
            assert alarm.records.alike == dict.fromkeys({1, 2, 3} - {node.me}, index)


@SEEDS
def test_what_clients_keep_of_a_state_that_is_given_up_is_called_back(service: Any, seed: int) -> None:
    """The others change something while a client of the wrong replica may use what it was told of it: Group.saying
    asserts at the answer that it may not any more."""
    with service(seed, 3) as group:
        user = group.user(at=1)
        ino, one = group.ask(user, create(b"victim"))[0], group.ask(user, mkdir(b"one"))[0]
        all_committed(group)
        kept = silent(group, 3, one)
        kept.follows = False
        corrupt(group.nodes[3], schema.INODES, schema.u64(ino), larger)
        user.request(chmod(ino))
        group.until(lambda: standing(group, 3) is Standing.MINORITY)
        assert kept.may_use(one)
        asked = [user.request(mkdir(b"%d" % k, one)) for k in range(3)]
        group.complete(*asked)
        group.until(lambda: group.nodes[3].given_up == 1)


def a_tie(group: Group) -> tuple[User, int]:
    """Two replicas of different opinions: a client, and the file they differ about."""
    user = group.user(at=1)
    ino = group.ask(user, create(b"victim"))[0]
    all_committed(group)
    corrupt(group.nodes[2], schema.INODES, schema.u64(ino), larger)
    began = group.clock.now
    user.request(chmod(ino))
    group.until(lambda: all(standing(group, r) is Standing.TIE for r in (1, 2)), began + 2 * SECOND - group.clock.now)
    all_committed(group)
    return user, ino


def decide(group: Group, wrong: int) -> None:
    """What `lockstep replica resync` does."""
    node = group.nodes[wrong]
    node.replica.comparing.give_up("asked to", asked=True)
    group.until(lambda: node.given_up > 0)
    for other in group.nodes.values():
        if other.running and other is not node:
            group.until(lambda other=other: wrong not in other.replica.group.core.newest.members)
            other.take(other.replica.comparing.trust)


@SEEDS
@pytest.mark.parametrize("wrong", [1, 2])
def test_two_that_differ_refuse_everything_until_somebody_decides(service: Any, seed: int, wrong: int) -> None:
    with service(seed, 2) as group:
        user, ino = a_tie(group)
        index = group.nodes[1].replica.state.index
        asked, queried = user.request(create(b"asked")), user.query(ops.GetAttr(ino))
        group.run(10 * SECOND)
        assert not asked.done and not queried.done
        assert {*asked.refusals, *queried.refusals} == {Status.NOT_SERVING}
        assert group.nodes[1].replica.state.index == group.nodes[2].replica.state.index == index
        assert [node.given_up for node in group.nodes.values()] == [0, 0]
        assert all(f"replica {3 - r} differs" in node.alarm for r, node in group.nodes.items())
        decide(group, wrong)
        group.complete(asked, queried)
        assert asked.ok and queried.body[6] == (1 if wrong == 1 else 0), "of the state that was kept"


@SEEDS
def test_a_tie_costs_nobody_a_session(service: Any, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """However long it takes until somebody decides: what clients have open stays open."""
    monkeypatch.setattr(limits, "SESSION_TIMEOUT_US", 3 * SECOND)
    with service(seed, 2) as group:
        user, ino = a_tie(group)
        session = user.session
        asked = user.request(unlink(b"victim"))
        group.run(20 * SECOND)
        assert not asked.done
        decide(group, 2)
        group.complete(asked)
        assert asked.ok and user.session == session and not user.expired
        group.run(2 * SECOND)
        assert user.handles[ino] and group.ask(user, ops.GetAttr(ino))[0] == ino, "it has no name, and is open"
        user.close(ino)


@SEEDS
def test_a_tie_outlasts_restarts_and_views(service: Any, seed: int) -> None:
    """With a witness the survivor alone would be a majority of the voters."""
    with service(seed, 2, witnesses=1) as group:
        user, _ = a_tie(group)
        asked = user.request(create(b"asked"))
        group.kill(2)
        group.certify(2)
        group.until(lambda: group.view() == (1,))
        group.kill(1)
        group.run(SECOND)
        group.restart(1)
        group.until(lambda: group.view() == (1,))
        group.run(5 * SECOND)
        assert not asked.done and standing(group, 1) is Standing.TIE
        group.restart(2)
        group.until(lambda: group.view() == (1, 2))
        group.run(5 * SECOND)
        assert not asked.done
        decide(group, 2)
        group.complete(asked)


@SEEDS
def test_two_against_two(service: Any, seed: int) -> None:
    """One state is given up by an administrator; the other one that is wrong then is in the minority."""
    with service(seed, 4) as group:
        user = group.user(at=1)
        ino = group.ask(user, create(b"victim"))[0]
        all_committed(group)
        for replica in (3, 4):
            corrupt(group.nodes[replica], schema.INODES, schema.u64(ino), larger)
        asked = user.request(chmod(ino))
        group.until(lambda: all(standing(group, r) is Standing.TIE for r in group.nodes), 5 * SECOND)
        queried = user.query(ops.GetAttr(ino))
        group.run(5 * SECOND)
        assert not queried.done and not any(node.given_up for node in group.nodes.values())
        decide(group, 4)
        group.complete(asked, queried)
        assert queried.body[6] == 0
        group.until(lambda: group.nodes[3].given_up == 1)


def a_doubt(group: Group) -> Digests:
    """What 2 might say for replica 1 to doubt."""
    epoch = group.nodes[1].replica.group.active_view
    assert epoch is not None
    return Digests(epoch, False, (-1, 0, (), ((3, 10**6),)), (-1, 0, (), ()))


@SEEDS
def test_doubt_lasts_a_round_trip_where_it_is_for_nothing(service: Any, seed: int) -> None:
    """Whoever is asked answers at once, and meanwhile what clients ask waits."""
    with service(seed, 3) as group:
        user = group.user(at=1)
        node = group.nodes[1]
        node.take(lambda: node.replica.comparing.told(2, a_doubt(group)))
        assert standing(group, 1) is Standing.DOUBT
        asked = user.request(create(b"asked"))
        group.until(lambda: standing(group, 1) is Standing.ALIKE, 20 * MS)
        group.complete(asked)
        assert not asked.refusals


@SEEDS
def test_doubt_outside_of_a_view_is_no_tie(service: Any, seed: int) -> None:
    """Who is left out while it doubts is not made to wait for an administrator."""
    with service(seed, 3) as group:
        user = group.user(at=2)
        one = group.nodes[1].replica
        group.isolate(1)
        group.nodes[1].take(lambda: one.comparing.told(2, a_doubt(group)))
        assert standing(group, 1) is Standing.DOUBT and one.group.core.withheld
        group.run(10 * SECOND)
        assert not one.active and not group.nodes[1].alarm
        group.heal()
        group.until(lambda: group.view() == (1, 2, 3))
        group.ask(user, create(b"x"))


@SEEDS
def test_one_that_was_away_settles_a_tie(service: Any, seed: int) -> None:
    """It is fed what it missed and executes it by itself, so it has an opinion."""
    with service(seed, 3) as group:
        group.kill(3)
        group.certify(3)
        group.until(lambda: group.view() == (1, 2))
        user, _ = a_tie(group)
        asked = user.request(create(b"asked"))
        group.run(2 * SECOND)
        assert not asked.done
        group.restart(3)
        group.complete(asked)
        group.until(lambda: group.nodes[2].given_up == 1)
        group.until(lambda: not group.nodes[1].alarm)


@SEEDS
def test_on_a_tie_nobody_is_given_a_copy(service: Any, seed: int) -> None:
    """It would count like a third opinion."""
    with service(seed, 3) as group:
        group.ask(group.user(at=1), create(b"first"))
        all_committed(group)
        group.run(SECOND)
        group.kill(3)
        group.certify(3)
        group.until(lambda: group.view() == (1, 2))
        user, _ = a_tie(group)
        asked = user.request(create(b"asked"))
        shutil.rmtree(group.nodes[3].base / "state")
        group.restart(3)
        group.run(10 * SECOND)
        assert not asked.done and group.nodes[3].snapshots == 0
        decide(group, 2)
        group.complete(asked)

"""mds.replica: stories of a whole metadata service, each under several schedules. See tests.mds.group."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mds import limits
from mds.caches import LEASE_US
from tests.mds.group import (
    LOOK_EVERY,
    MAINTENANCE,
    ROOT,
    TOP,
    Call,
    Group,
    Node,
    User,
    create,
    lookup,
    mkdir,
    names,
    unlink,
)
from tests.sim.clock import MS, SECOND
from vsync import effects as ev
from vsync import limits as group_limits
from wire import messages as msg
from wire import ops
from wire.codec import encode, unpack_untrusted
from wire.errors import OK, Status

SEEDS = pytest.mark.parametrize("seed", range(4))
SESSION_TIMEOUT = 3 * SECOND

Service = Callable[..., Any]


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Service:
    """``with service(seed) as group``: a service that is whole again, and alike everywhere, at the end."""
    monkeypatch.setattr(limits, "SESSION_TIMEOUT_US", SESSION_TIMEOUT)

    @contextmanager
    def made(seed: int = 0, **more: Any) -> Iterator[Group]:
        group = Group(tmp_path, seed, **more)
        try:
            yield group
            group.finish()
        finally:
            group.close()

    return made


def there(group: Group, ino: int) -> list[int]:
    """The running replicas whose state has the inode."""
    found = []
    for node in group.nodes.values():
        if node.running and node.replica.state.query(ops.GetAttr(ino)).status == OK:
            found.append(node.me)
    return found


def entries(group: Group, replica: int, parent: int = TOP) -> list[bytes]:
    """The names in a directory, by the state of one replica."""
    result = group.nodes[replica].replica.state.query(ops.ReadDir(ROOT, parent, 0, 4096))
    return [name for name, _, _ in unpack_untrusted(result.body)[0]]


# -- what is answered is seen everywhere


@SEEDS
def test_a_query_sees_what_was_answered_anywhere(service: Service, seed: int) -> None:
    """Create through one replica; the moment the answer is there, look it up through each of the others."""
    with service(seed) as group:
        users = [group.user(f"user {r}", r) for r in group.replica_ids]
        for k in range(24):
            maker = group.rng.choice(users)
            others = [user for user in users if user is not maker]
            made = group.complete(maker.request(create(b"%d" % k)))
            seen = [user.query(lookup(b"%d" % k)) for user in others]
            group.complete(*seen)
            assert [call.body for call in seen] == [made.body, made.body]
            removed = group.complete(group.rng.choice(users).request(unlink(b"%d" % k)))
            assert removed.body == made.body[0]
            seen = [user.query(lookup(b"%d" % k)) for user in users]
            group.complete(*seen)
            assert {call.status for call in seen} == {errno.ENOENT}
            for user in users:
                if user.handles:
                    user.close(made.body[0])


def test_a_replica_alone_serves(service: Service) -> None:
    with service(replicas=1) as group:
        user = group.user("user", 1)
        made = group.ask(user, create(b"x"))
        assert group.ask(user, lookup(b"x")) == made


def test_after_an_error_half_way_nothing_more_is_applied(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state fails while what was delivered is applied: the position must not be stored with it, nothing goes on."""
    with service(replicas=1) as group:
        user = group.user("user", 1)
        group.ask(user, create(b"x"))
        replica = group.nodes[1].replica
        assert replica.at_rest

        def fails(*args: Any) -> list[Any]:
            raise OSError("the disk cannot be read")

        monkeypatch.setattr(replica.state, "apply", fails)
        making = user.request(create(b"y"))
        with pytest.raises(OSError, match="cannot be read"):
            group.complete(making)
        monkeypatch.undo()
        assert not replica.at_rest
        assert replica.group.position().index > replica.state.index + 1
        replica.group_event(ev.Tick())
        assert not making.done and not replica.at_rest
        group.kill(1)
        group.restart(1)
        group.complete(making)


def test_a_query_waits_for_nothing_that_cannot_change_its_answer(service: Service) -> None:
    """A request is in replica 1's log and not acknowledged by replica 3. Queries on what it touches wait, others do
    not."""
    with service() as group:
        a, b = group.user("a", 1), group.user("b", 2)
        apart, shared = group.ask(a, mkdir(b"apart"))[0], group.ask(a, mkdir(b"shared"))[0]
        group.network.cut(3, 1)
        group.network.cut(3, 2)
        making = b.request(create(b"x", shared))
        group.until(lambda: len(group.nodes[1].replica.pending))
        waiting = a.query(lookup(b"x", shared))
        running = a.query(ops.GetAttr(apart))
        group.run(20 * MS)
        assert running.ok and not waiting.done and not making.done
        group.heal()
        group.complete(making, waiting)
        assert waiting.body == making.body


@SEEDS
def test_a_replica_that_was_stopped_answers_nothing_from_before_it_knew(service: Service, seed: int) -> None:
    """1. Replica 1 is cut off and stopped at once: it holds its view for the present one. 2. The others go on without
    it and answer a request. 3. Replica 1 wakes, and the first thing it finds is a query."""
    with service(seed) as group:
        a, b = group.user("a", 1), group.user("b", 2)
        a.follows = False
        group.isolate(1)
        group.nodes[1].pause()
        made = group.complete(b.request(create(b"x")))
        seen = a.query(lookup(b"x"))
        group.run(10 * MS)
        assert group.nodes[1].replica.active
        group.nodes[1].wake()
        group.run(20 * MS)
        assert not seen.answers
        group.heal()
        group.until(lambda: seen.refusals)
        a.follows = True
        a.leave()
        group.complete(seen)
        assert seen.body == made.body


# -- exactly once


def lose_the_answer(group: Group, user: User) -> None:
    """The connection goes dead just before the answer; the client gives it up."""
    assert user.line is not None
    user.line.stalled = True


@SEEDS
@pytest.mark.parametrize("times", [1, 2])
def test_a_request_whose_answer_was_lost_is_executed_once(service: Service, seed: int, times: int) -> None:
    with service(seed) as group:
        user = group.user("user", 1)
        group.ask(user, create(b"first"))
        call = user.request(create(b"x"))
        for _ in range(times):
            lose_the_answer(group, user)
            index = group.nodes[user.at].replica.state.index
            group.until(lambda index=index: all(n.replica.state.index > index for n in group.nodes.values()))
            user.leave()
            group.until(lambda: user.attached)
        group.complete(call)
        assert call.ok, "not EEXIST"
        assert group.ask(user, lookup(b"x"))[0] == call.body[0]
        again = group.complete(user.request(unlink(b"x")))
        assert again.body == call.body[0]
        user.close(call.body[0])


@SEEDS
def test_an_answer_that_came_is_the_same_when_the_request_is_sent_again(service: Service, seed: int) -> None:
    """A client that died and came back with its key, or that was impatient: the reply table answers, also twice."""
    with service(seed) as group:
        user = group.user("user", 1)
        call = group.complete(user.request(create(b"x"), slot=3))
        assert user.line is not None
        for number in (901, 902):
            user.line.ask(msg.RequestCall(number, user.session, 3, call.number, encode(call.op)))
            user.pending[number] = again = type(call)(call.op, group.clock.now, 3, call.number)
            user.calls.append(again)
            group.complete(again)
            assert again.body == call.body
        group.ask(user, unlink(b"x"))
        user.close(call.body[0], 3)


@SEEDS
@pytest.mark.parametrize("reached", [True, False])
def test_a_request_that_was_in_the_log_undelivered_when_its_replica_died(
    service: Service, seed: int, reached: bool
) -> None:
    """Replica 1 multicasts and dies. *reached*: the others hold the message, and the next view delivers it before the
    client sends the request again; else it is in the log of replica 1 alone, and is dropped when that comes back."""
    with service(seed) as group:
        user = group.user("user", 1)
        group.ask(user, create(b"first"))
        for other in (2, 3):
            group.network.cut(other, 1)
            if not reached:
                group.network.cut(1, other)
        call = user.request(create(b"x"))
        holders = (1, 2, 3) if reached else (1,)
        group.until(lambda: all(len(group.nodes[r].replica.pending) for r in holders))
        group.run(5 * MS)
        assert all(b"x" not in entries(group, r) for r in (1, 2, 3))
        group.kill(1)
        group.heal()
        group.complete(call)
        assert call.ok
        assert user.at != 1
        assert group.ask(user, lookup(b"x"))[0] == call.body[0]
        group.restart(1)
        group.settle()
        assert sorted(entries(group, 1)) == [b"first", b"x"]


@SEEDS
def test_many_slots_at_once_through_the_death_of_a_replica(service: Service, seed: int) -> None:
    with service(seed) as group:
        user, other = group.user("user", 1), group.user("other", 2)
        removed = [group.ask(user, create(b"old %d" % k))[0] for k in range(20)]
        calls = [user.request(create(b"new %d" % k)) for k in range(20)]
        calls += [user.request(unlink(b"old %d" % k)) for k in range(20)]
        group.until(lambda: group.rng.random() < 0.02)
        group.kill(1)
        group.complete(*calls)
        assert {call.status for call in calls} == {OK}
        assert [call.body for call in calls[20:]] == removed
        assert sorted(names(group, other)) == sorted(b"new %d" % k for k in range(20))
        assert len({call.body[0] for call in calls[:20]}) == 20


@SEEDS
def test_many_slots_whose_answers_are_lost_twice(service: Service, seed: int) -> None:
    """1. Replica 1 dies before it has answered. 2. The next one executes, or gives what is kept; its answers are lost.
    3. All replicas are started again. 4. Everything is sent a third time. Executed twice, each would fail or differ."""
    with service(seed, witnesses=1) as group:
        user, other = group.user("user", 1), group.user("other", 2)
        removed = [group.ask(other, create(b"old %d" % k))[0] for k in range(12)]
        for k, ino in enumerate(removed):
            other.close(ino)
            group.ask(other, mkdir(b"d%d" % k))
        calls = [user.request(create(b"new %d" % k)) for k in range(12)]
        calls += [user.request(unlink(b"old %d" % k)) for k in range(12)]
        calls += [user.request(ops.Rename(ROOT, TOP, b"d%d" % k, TOP, b"moved %d" % k, 0)) for k in range(12)]
        lose_the_answer(group, user)
        group.until(lambda: group.rng.random() < 0.02)
        group.kill(1)
        group.until(lambda: user.attached and user.at != 1)
        lose_the_answer(group, user)
        group.until(lambda: len(entries(group, user.at)) == 24 and b"new 11" in entries(group, user.at))
        for replica in (2, 3):
            group.kill(replica)
        for replica in group.rng.sample(group.replica_ids, 3):
            group.restart(replica)
        group.complete(*calls)
        assert {call.status for call in calls} == {OK}
        assert [call.body for call in calls[12:24]] == removed
        assert len({call.body[0] for call in calls[:12]}) == 12
        expected = [b"new %d" % k for k in range(12)] + [b"moved %d" % k for k in range(12)]
        group.settle()
        for replica in group.replica_ids:
            assert sorted(entries(group, replica)) == sorted(expected)


def test_an_old_number_is_dropped_and_an_unknown_session_refused(service: Service) -> None:
    with service() as group:
        user = group.user("user", 1)
        first = group.complete(user.request(create(b"x"), slot=0))
        group.complete(user.request(create(b"y"), slot=0))
        assert user.line is not None
        user.pending[901] = late = type(first)(first.op, group.clock.now, 0, 1)
        user.calls.append(late)
        user.line.ask(msg.RequestCall(901, user.session, 0, 1, encode(first.op)))
        assert group.complete(late).status == Status.STALE_NUMBER
        user.follows = False
        user.pending[902] = other = type(first)(first.op, group.clock.now, 0, 1)
        user.line.ask(msg.RequestCall(902, user.session + 1, 0, 1, encode(first.op)))
        group.until(lambda: other.refusals)
        assert other.refusals == [Status.NOT_ATTACHED]


def test_what_a_client_may_not_order_is_refused(service: Service) -> None:
    with service() as group:
        user = group.user("user", 1)
        for op in (ops.SessionExpire(user.session, 1), ops.OrphanAnswer(1, (5,), ()), ops.GetAttr(TOP)):
            call = user.request(op)
            group.until(lambda call=call: call.answers)
            assert call.status == Status.BAD_MESSAGE
        assert user.line is not None
        index = group.nodes[1].replica.state.index
        user.line.ask(msg.AdminCall(801, encode(ops.SessionExpire(user.session, 1))))
        group.run(20 * MS)
        assert group.nodes[1].replica.state.index == index


# -- replicas die and come back


@SEEDS
def test_requests_go_on_without_a_replica_and_it_catches_up(service: Service, seed: int) -> None:
    with service(seed) as group:
        users = [group.user(f"user {r}", r) for r in group.replica_ids]
        for k in range(10):
            group.ask(group.rng.choice(users), create(b"before %d" % k))
        victim = group.rng.choice(group.replica_ids)
        group.kill(victim)
        calls = [user.request(create(b"%d from %d" % (k, n))) for n, user in enumerate(users) for k in range(10)]
        group.complete(*calls)
        assert {call.status for call in calls} == {OK}
        assert victim not in {user.at for user in users}
        group.restart(victim)
        calls = [user.request(create(b"%d more from %d" % (k, n))) for n, user in enumerate(users) for k in range(10)]
        group.complete(*calls)
        group.settle()
        assert len(entries(group, victim)) == 10 + 30 + 30


@SEEDS
def test_a_power_cut_of_all_loses_nothing_that_was_answered(service: Service, seed: int) -> None:
    """States have written different parts of what they applied; all that was answered is in the journals."""
    with service(seed, witnesses=1) as group:
        users = [group.user(f"user {r}", r) for r in group.replica_ids]
        calls = [user.request(create(b"%d from %d" % (k, n))) for n, user in enumerate(users) for k in range(20)]
        group.until(lambda: sum(call.done for call in calls) >= 20)
        answered = {call.op.name for call in calls if call.done}
        for replica in group.rng.sample(group.replica_ids, 3):
            group.kill(replica)
        for replica in group.rng.sample(group.replica_ids, 3):
            group.run(group.rng.randrange(300 * MS))
            group.restart(replica)
        group.complete(*calls)
        assert {call.status for call in calls} == {OK}
        group.settle()
        for replica in group.replica_ids:
            assert answered <= set(entries(group, replica))
            assert len(entries(group, replica)) == 60


def test_down_to_the_last_replica_with_witnesses(service: Service) -> None:
    with service(witnesses=2) as group:
        user = group.user("user", 1)
        for victim in (1, 3):
            group.kill(victim)
            group.complete(user.request(create(b"without %d" % victim)))
        assert group.view() == (2,)
        assert sorted(names(group, user)) == [b"without 1", b"without 3"]


def test_an_answer_of_an_earlier_life_is_not_taken_for_one_of_this(service: Service) -> None:
    """1. Replica 1 has multicast a session for client *a* when the power goes everywhere; it is in the logs. 2. All
    start again; while they come to a view, client *b* asks replica 1 for a session. 3. The earlier message is
    delivered: what that says is not the answer to *b*."""
    with service() as group:
        for other in (2, 3):
            group.network.cut(other, 1)
        a = User(group, "a")
        a.follows = False
        group.users.append(a)
        a.connect(1)
        group.until(lambda: all(len(group.nodes[r].replica.pending) for r in (1, 2, 3)))
        group.run(5 * MS)
        for replica in group.replica_ids:
            group.kill(replica)
        group.heal()
        for replica in group.replica_ids:
            group.restart(replica)
        b = User(group, "b")
        b.follows = False
        group.users.append(b)
        b.connect(1)
        group.until(lambda: b.attached)
        found = group.nodes[1].replica.state.session(b.session)
        assert found is not None and found.key == b.key


# -- open and unlinked


def opened_and_unlinked(group: Group, at: int = 1) -> tuple[User, User, int]:
    """A client at replica *at* has a file open that another, at replica 2, has removed: (it, the other, inode)."""
    holder, other = group.user("holder", at), group.user("other", 2)
    ino = group.ask(holder, create(b"x"))[0]
    assert group.ask(other, unlink(b"x")) == ino
    return holder, other, ino


@SEEDS
def test_an_unlinked_file_stays_until_it_is_closed(service: Service, seed: int) -> None:
    with service(seed) as group:
        holder, _, ino = opened_and_unlinked(group)
        group.run(2 * SESSION_TIMEOUT)
        assert there(group, ino) == [1, 2, 3]
        assert group.ask(holder, ops.GetAttr(ino))[2] == 0
        group.ask(holder, ops.Open(ROOT, ino, 0))
        holder.close(ino)
        group.run(3 * MAINTENANCE)
        assert there(group, ino) == [1, 2, 3], "one handle is left"
        holder.close(ino)
        group.until(lambda: not there(group, ino), SECOND)


@SEEDS
def test_a_file_nobody_has_open_is_reclaimed_at_once(service: Service, seed: int) -> None:
    with service(seed) as group:
        holder, other = group.user("holder", 1), group.user("other", 2)
        ino = group.ask(holder, create(b"x"))[0]
        holder.close(ino)
        group.ask(other, unlink(b"x"))
        group.until(lambda: not there(group, ino), SECOND)


@SEEDS
def test_an_unlinked_file_stays_when_its_user_moves(service: Service, seed: int) -> None:
    with service(seed) as group:
        holder, _, ino = opened_and_unlinked(group)
        for _ in range(3):
            holder.leave(noticed_after=group.rng.randrange(SECOND))
            group.until(lambda: holder.attached)
            group.run(2 * SECOND)
            assert there(group, ino) == [1, 2, 3]
            assert group.ask(holder, ops.GetAttr(ino))[0] == ino
        holder.close(ino)
        group.until(lambda: not there(group, ino), SECOND)


@SEEDS
def test_an_unlinked_file_stays_when_the_replica_of_its_user_dies(service: Service, seed: int) -> None:
    with service(seed) as group:
        holder, _, ino = opened_and_unlinked(group)
        group.run(group.rng.randrange(SECOND))
        holder.follows = False
        group.kill(1)
        group.run(SESSION_TIMEOUT // 2)
        assert there(group, ino) == [2, 3]
        holder.follows = True
        holder.connect(3)
        group.until(lambda: holder.attached)
        group.restart(1)
        group.run(2 * SESSION_TIMEOUT)
        assert there(group, ino) == [1, 2, 3]
        assert group.ask(holder, ops.GetAttr(ino))[0] == ino
        holder.close(ino)
        group.until(lambda: not there(group, ino), 2 * SESSION_TIMEOUT)


@SEEDS
def test_an_unlinked_file_stays_when_two_replicas_of_its_user_die_in_a_row(service: Service, seed: int) -> None:
    """1. The client attaches to replica 2, which dies when that is in the others' logs and not applied there. 2. It
    attaches to replica 3, declaring its handles. 3. There the first attachment is applied, and then the second: the
    first must not make replica 3 forget what was declared with the second."""
    with service(seed) as group:
        holder, other = group.user("holder", 1), group.user("other", 3)
        ino = group.ask(holder, create(b"x"))[0]
        assert group.ask(other, unlink(b"x")) == ino
        holder.follows = False
        holder.leave()
        holder.connect(2)
        at_three = group.nodes[3].replica
        logged = at_three._ops
        group.until(lambda: any(isinstance(op, ops.SessionAttach) for known in logged.values() for op in known[1]))
        group.kill(2)
        holder.leave()
        holder.connect(3)
        group.until(lambda: holder.attached)
        group.run(2 * SESSION_TIMEOUT)
        group.restart(2)
        group.run(2 * SESSION_TIMEOUT)
        assert there(group, ino) == [1, 2, 3]
        assert group.ask(holder, ops.GetAttr(ino))[0] == ino
        holder.close(ino)
        group.until(lambda: not there(group, ino), 2 * SESSION_TIMEOUT)


@SEEDS
@pytest.mark.parametrize("then", ["it is away", "it is back", "power cut"])
def test_a_file_unlinked_while_its_user_is_between_two_replicas(service: Service, seed: int, then: str) -> None:
    """1. Replica 1 dies with the handle. 2. The file is removed before the client has attached anywhere: no member of
    the view knows of a handle. 3. The client attaches within the session timeout. At 2 replica 1 is away, or it is back
    and has forgotten all handles, or all replicas have."""
    with service(seed) as group:
        holder, other = group.user("holder", 1), group.user("other", 2)
        ino = group.ask(holder, create(b"x"))[0]
        group.run(2 * SECOND)  # the states are written
        holder.follows = False
        group.kill(1)
        if then == "power cut":
            group.kill(2)
            group.kill(3)
            group.restart(2)
            group.restart(3)
            group.restart(1)
        else:
            group.until(lambda: group.view() == (2, 3))
        if then == "it is back":
            group.restart(1)
        if then != "it is away":
            group.until(lambda: group.view() == (1, 2, 3))
        assert group.ask(other, unlink(b"x")) == ino
        group.run(SESSION_TIMEOUT // 3)
        holder.follows = True
        holder.connect(3)
        group.until(lambda: holder.attached)
        group.restart(1)
        group.run(2 * SESSION_TIMEOUT)
        assert there(group, ino) == [1, 2, 3]
        holder.close(ino)
        group.until(lambda: not there(group, ino), 2 * SESSION_TIMEOUT)


def test_a_file_unlinked_just_before_the_dead_replica_returns(service: Service) -> None:
    """As above, but the view that removes the file is without replica 1, which is back before the client is."""
    with service() as group:
        holder, other = group.user("holder", 1), group.user("other", 2)
        ino = group.ask(holder, create(b"x"))[0]
        holder.follows = False
        group.kill(1)
        group.until(lambda: group.view() == (2, 3))
        assert group.ask(other, unlink(b"x")) == ino
        group.restart(1)
        group.until(lambda: group.view() == (1, 2, 3))
        group.run(SESSION_TIMEOUT // 3)
        holder.connect(2)
        group.until(lambda: holder.attached)
        group.run(2 * SESSION_TIMEOUT)
        assert there(group, ino) == [1, 2, 3]
        holder.close(ino)
        group.until(lambda: not there(group, ino), 2 * SESSION_TIMEOUT)


@SEEDS
@pytest.mark.parametrize("how", ["it leaves", "its replica dies", "power cut"])
def test_a_file_is_reclaimed_when_its_user_never_comes_back(service: Service, seed: int, how: str) -> None:
    with service(seed) as group:
        holder, _, ino = opened_and_unlinked(group)
        holder.follows = False
        if how == "it leaves":
            holder.leave()
        elif how == "its replica dies":
            group.kill(1)
        else:
            group.run(group.rng.randrange(SECOND) if seed % 2 else 2 * SECOND)  # the states are written or not
            for replica in group.replica_ids:
                group.kill(replica)
            for replica in group.replica_ids:
                group.restart(replica)
            group.until(lambda: group.view() == (1, 2, 3))
            assert there(group, ino) == [1, 2, 3]
        group.run(SESSION_TIMEOUT * 2 // 3)
        assert there(group, ino) == [r for r in (1, 2, 3) if group.nodes[r].running]
        group.until(lambda: not there(group, ino), 3 * SESSION_TIMEOUT)
        group.run(LOOK_EVERY * MAINTENANCE)
        assert all(n.replica.state.session(holder.session) is None for n in group.nodes.values() if n.running)


def test_a_replica_that_was_left_out_lets_go_of_handles_that_moved_meanwhile(service: Service) -> None:
    """1. A client at replica 1 has a file open. 2. Replica 1 is cut off, the client goes on at replica 2. 3. Replica 1
    comes back; it is told of the move as a learner. 4. The file is removed and closed: nobody holds it."""
    with service() as group:
        holder, other = group.user("holder", 1), group.user("other", 3)
        ino = group.ask(holder, create(b"x"))[0]
        group.isolate(1)
        group.until(lambda: group.view() == (2, 3))
        holder.leave(noticed_after=60 * SECOND)
        group.until(lambda: holder.attached and holder.at == 2)
        group.heal()
        group.until(lambda: group.view() == (1, 2, 3))
        group.ask(other, unlink(b"x"))
        holder.close(ino)
        group.until(lambda: not there(group, ino), SECOND)


def test_a_create_in_flight_when_the_client_moved_leaves_no_handle_behind(service: Service) -> None:
    """1. The client creates through replica 1, which cannot deliver yet; the connection breaks and replica 1 does not
    notice. 2. The client attaches to replica 2; that is delivered first. 3. The create is delivered, and replica 1
    still knows whom to answer: it must not count a handle for a session that is gone from there."""
    with service() as group:
        user, other = group.user("user", 1), group.user("other", 3)
        group.network.cut(2, 1)
        group.network.cut(3, 1)
        call = user.request(create(b"x"))
        group.until(lambda: len(group.nodes[1].replica.pending))
        user.leave(noticed_after=60 * SECOND)
        group.until(lambda: user.line is not None)
        group.run(20 * MS)
        group.heal()
        group.complete(call)
        assert call.ok
        group.ask(other, unlink(b"x"))
        assert group.nodes[1].replica.handles.sessions() == []
        user.close(call.body[0])
        group.until(lambda: not there(group, call.body[0]), SECOND)


def test_a_create_in_flight_when_the_client_reconnected_counts_one_handle(service: Service) -> None:
    """As above, but the client comes back to the same replica, over a new connection."""
    with service() as group:
        user, other = group.user("user", 1), group.user("other", 3)
        group.network.cut(2, 1)
        group.network.cut(3, 1)
        call = user.request(create(b"x"))
        group.until(lambda: len(group.nodes[1].replica.pending))
        user.leave(again=True, noticed_after=60 * SECOND)
        group.until(lambda: user.line is not None)
        group.run(20 * MS)
        group.heal()
        group.complete(call)
        group.ask(other, unlink(b"x"))
        user.close(call.body[0])
        group.until(lambda: not there(group, call.body[0]), SECOND)


# -- sessions


def test_a_session_that_is_not_heard_of_expires_and_its_handles_go(service: Service) -> None:
    """A client that comes back too late is told so, and what it declares holds nothing."""
    with service() as group:
        user, other = group.user("user", 1), group.user("other", 2)
        ino = group.ask(user, create(b"x"))[0]
        user.follows = False
        user.leave()
        group.until(lambda: group.nodes[1].replica.state.session(user.session) is None, 3 * SESSION_TIMEOUT)
        group.run(50 * MS)
        user.connect(3)
        group.until(lambda: user.expired)
        group.run(10 * MS)
        assert not any(user.session in n.replica.handles.sessions() for n in group.nodes.values())
        group.ask(other, unlink(b"x"))
        group.until(lambda: not there(group, ino), 2 * SESSION_TIMEOUT)


@SEEDS
def test_late_requests_of_an_expired_session_do_nothing(service: Service, seed: int) -> None:
    """The expiry is ordered while requests are on their way: what comes after it is refused, and what is sent again
    after it is refused, too, although it was executed: the replies went with the session. The client is told."""
    with service(seed) as group:
        user, other = group.user("user", 1), group.user("other", 2)
        user.follows = False
        known = group.nodes[2].replica.state.session(user.session)
        assert known is not None
        outcomes: list[Any] = []
        there_then: list[set[bytes]] = []

        def expired(outcome: Any) -> None:
            outcomes.append(outcome)
            there_then.append(set(entries(group, 2)))

        expire = ops.SessionExpire(user.session, known.attempt)
        calls = [user.request(create(b"early %d" % k)) for k in range(8)]
        node = group.nodes[2]
        group.clock.after(group.rng.randrange(2 * MS), node.take, lambda: node.replica.internal(expire, expired))
        for k in range(24):
            group.run(MS // 4)
            calls.append(user.request(create(b"late %d" % k)))
        group.until(lambda: outcomes)
        group.run(20 * MS)
        assert outcomes[0].session_gone == user.session
        executed = {call.op.name for call in calls if call.ok}
        refused = [call for call in calls if not call.ok]
        assert {status for call in refused for status in call.refusals} <= {Status.SESSION_UNKNOWN, Status.NOT_ATTACHED}
        listed = names(group, other)
        assert there_then == [set(listed)], "nothing is executed after the expiry"
        assert executed <= set(listed) and refused
        assert not {call.op.name for call in refused if call.refusals} & set(listed)
        again = [(call.slot, call.number, encode(call.op)) for call in calls]
        for replica in group.replica_ids:
            late = User(group, "late")
            late.follows = False
            late.connect(replica)
            group.until(lambda late=late: late.attached)
            assert late.line is not None
            for number, (slot, request, op) in enumerate(again):
                late.line.ask(msg.RequestCall(900 + number, user.session, slot, request, op))
            group.run(20 * MS)
        assert names(group, other) == listed, "nothing is executed again"
        user.leave()
        user.connect(3)
        group.until(lambda: user.expired)


def test_a_session_of_a_connected_client_does_not_expire(service: Service) -> None:
    with service() as group:
        user = group.user("user", 1)
        group.run(3 * SESSION_TIMEOUT)
        assert group.ask(user, ops.GetAttr(TOP))
        assert group.nodes[2].replica.state.session(user.session) is not None


def test_an_expiry_is_void_when_the_client_has_attached_again(service: Service) -> None:
    """1. Replica 1 sees that the session was not heard of. 2. The client attaches at replica 2, ordered before 3. the
    expiry, which names the attachment that replica 1 saw."""
    with service() as group:
        user = group.user("user", 1)
        before = group.nodes[1].replica.state.session(user.session)
        assert before is not None
        user.leave()
        group.until(lambda: user.attached)
        outcomes: list[Any] = []
        expire = ops.SessionExpire(user.session, before.attempt)
        group.nodes[1].take(lambda: group.nodes[1].replica.internal(expire, outcomes.append))
        group.until(lambda: outcomes)
        assert outcomes[0].status == OK and not outcomes[0].session_gone
        assert group.ask(user, create(b"x"))


def test_time_without_a_view_does_not_count_against_a_session(service: Service) -> None:
    """Two of three replicas are down for longer than the timeout: whoever waited for them goes on."""
    with service() as group:
        user = group.user("user", 1)
        group.kill(2)
        group.kill(3)
        call = user.request(create(b"x"))
        group.run(3 * SESSION_TIMEOUT)
        assert not call.done
        group.restart(2)
        group.restart(3)
        group.complete(call)
        assert call.ok and not user.expired


def test_another_key_does_not_get_at_a_session(service: Service) -> None:
    """Neither its requests nor its handles: what is declared under a wrong key is nothing."""
    with service() as group:
        holder, other, ino = opened_and_unlinked(group)
        thief = User(group, "thief")
        thief.follows = False
        thief.session = holder.session
        thief.connect(1)
        group.until(lambda: thief.expired)
        outcomes: list[Any] = []
        attach = ops.SessionAttach(holder.session, thief.key, 2, 99)
        group.nodes[2].take(lambda: group.nodes[2].replica.internal(attach, outcomes.append))
        group.until(lambda: outcomes)
        assert outcomes[0].status == Status.SESSION_UNKNOWN
        group.run(SECOND)
        assert group.ask(holder, create(b"z")), "it is attached as before"
        group.run(3 * SESSION_TIMEOUT)
        assert there(group, ino) == [1, 2, 3]
        assert group.ask(holder, ops.GetAttr(ino))[0] == ino
        assert group.ask(other, create(b"y"))


def test_an_open_counts_for_a_session_or_not_at_all(service: Service) -> None:
    """1. A client's session is attached elsewhere (it believes otherwise). 2. It opens a file here: counted for nobody,
    the handle would be open for ever. It is told to attach first."""
    with service() as group:
        user = group.user("user", 1)
        ino = group.ask(user, create(b"x"))[0]
        user.close(ino)
        user.follows = False
        attach = ops.SessionAttach(user.session, user.key, 2, user.attempt + 1)
        user.attempt += 1
        group.nodes[2].take(lambda: group.nodes[2].replica.internal(attach, lambda outcome: None))
        group.run(50 * MS)
        call = user.query(ops.Open(ROOT, ino, 0))
        group.until(lambda: call.answers)
        assert call.refusals == [Status.NOT_ATTACHED]
        assert len(group.nodes[1].replica.handles) == 0
        user.follows = True
        user.leave(again=True)
        group.complete(call)
        assert group.nodes[1].replica.handles.sessions() == [user.session]


# -- left out


@SEEDS
def test_clients_of_a_replica_that_is_left_out_are_turned_away(service: Service, seed: int) -> None:
    with service(seed) as group:
        user = group.user("user", 1)
        user.follows = False
        group.isolate(1)
        request, query = user.request(create(b"x")), user.query(lookup(b"x"))
        group.until(lambda: group.view() == (2, 3))
        assert not request.answers and not query.answers
        group.heal()
        group.until(lambda: request.answers and query.answers)
        assert request.refusals == query.refusals == [Status.NOT_SERVING]
        if not group.nodes[1].replica.active:
            late = user.query(lookup(b"x"))
            group.until(lambda: late.answers)
            assert late.refusals == [Status.NOT_SERVING]
        user.follows = True
        user.leave()
        group.complete(request)
        assert request.ok


@SEEDS
def test_an_attachment_queued_at_a_replica_that_is_left_out_is_never_ordered(service: Service, seed: int) -> None:
    """1. A client turns to replica 1, which is cut off. 2. It gives up and attaches to replica 2. 3. Replica 1 comes
    back: were its queue ordered then, the session would be said to be at replica 1, and the client's handles be
    dropped."""
    with service(seed) as group:
        user, other = group.user("user", 2), group.user("other", 3)
        ino = group.ask(user, create(b"x"))[0]
        group.isolate(1)
        if seed % 2:
            group.run(400 * MS)  # it knows that it is alone, the others go on without it
        user.follows = False
        user.leave()
        user.connect(1)
        group.run(700 * MS)
        user.leave(noticed_after=60 * SECOND if seed < 2 else 0)
        user.follows = True
        user.connect(2)
        group.until(lambda: user.attached)
        group.ask(other, unlink(b"x"))
        group.heal()
        group.until(lambda: group.view() == (1, 2, 3))
        group.run(SECOND)
        found = group.nodes[2].replica.state.session(user.session)
        assert found is not None and (found.replica, found.attempt) == (2, user.attempt)
        assert there(group, ino) == [1, 2, 3]


def test_an_attachment_in_the_log_of_a_dead_replica_is_not_ordered_in_its_next_life(service: Service) -> None:
    """1. A client attaches to replica 1, which dies with that in its log alone. 2. The client attaches to replica 2.
    3. Replica 1 starts again and drops the message: who sent it knows nothing of it any more."""
    with service() as group:
        user, other = group.user("user", 2), group.user("other", 3)
        ino = group.ask(user, create(b"x"))[0]
        group.isolate(1)
        user.follows = False
        user.leave()
        user.connect(1)
        group.until(lambda: len(group.nodes[1].replica.pending))
        group.run(5 * MS)
        group.kill(1)
        user.leave()
        user.follows = True
        user.connect(2)
        group.until(lambda: user.attached)
        group.ask(other, unlink(b"x"))
        group.heal()
        group.restart(1)
        group.until(lambda: group.view() == (1, 2, 3))
        group.run(SECOND)
        found = group.nodes[2].replica.state.session(user.session)
        assert found is not None and found.replica == 2
        assert there(group, ino) == [1, 2, 3]


def test_pings_tell_whether_the_replica_serves(service: Service) -> None:
    with service() as group:
        user = group.user("user", 1)
        pongs: list[bool] = []
        receive = user.receive

        def received(message: Any) -> None:
            if isinstance(message, msg.Pong):
                pongs.append(message.serving)
            receive(message)

        user.receive = received
        group.run(500 * MS)
        group.isolate(1)
        group.run(limits.HOLD_ON_US // 2)
        assert pongs and all(pongs)
        group.run(2 * limits.HOLD_ON_US)
        assert not pongs[-1]


# -- the cache


def caching(group: Group, at: int, name: str = "a") -> User:
    """A client whose cache lease runs."""
    user = group.user(name, at).caches()
    group.until(lambda: user.until > group.clock.now)
    return user


@SEEDS
def test_nobody_is_answered_before_a_cache_that_contradicts_it_has_let_go(service: Service, seed: int) -> None:
    """Client a holds a directory with an absent name in it; client b, at another replica, makes the name. That no cache
    contradicts any answer is asserted at each answer (Group.saying)."""
    with service(seed) as group:
        a, b = caching(group, 1), group.user("b", 2)
        above = group.ask(b, mkdir(b"above"))[0]
        for k in range(12):
            entries_then = group.ask(a, ops.ReadDir(ROOT, above, 0, 100))[0]
            assert len(entries_then) == k
            group.ask(a, ops.GetAttr(above))
            assert above in a.kept
            before = len([m for m in a.seen if isinstance(m, msg.Recall)])
            call = b.request(create(b"%d" % k, above))
            group.complete(call)
            assert call.ok
            assert len([m for m in a.seen if isinstance(m, msg.Recall)]) == before + 1
            assert above not in a.kept
            b.close(call.body[0])
            group.run(group.rng.randrange(200 * MS))
        assert set(a.epochs) == {a.epochs[0]}, "all was called back, nothing taken"


@SEEDS
def test_removals_call_back_the_inode_behind_the_name(service: Service, seed: int) -> None:
    with service(seed) as group:
        a, b = caching(group, 1), group.user("b", 2)
        ino = group.ask(b, create(b"x"))[0]
        other = group.ask(b, create(b"other"))[0]
        assert group.ask(a, lookup(b"x"))[0] == ino
        group.ask(a, ops.GetAttr(other))
        assert {ino, other, TOP} <= set(a.kept)
        assert group.ask(b, unlink(b"x")) == ino
        assert ino not in a.kept and TOP not in a.kept
        assert a.may_use(other), "what it does not touch stays"
        b.close(ino)
        b.close(other)


@SEEDS
def test_a_client_that_does_not_answer_delays_others_by_its_lease_at_most(service: Service, seed: int) -> None:
    with service(seed) as group:
        a, b = caching(group, 1), group.user("b", 2)
        a.answers_recalls = False
        group.ask(a, lookup(b".."))
        until = a.until
        began = group.clock.now
        call = group.complete(b.request(create(b"x")))
        assert call.ok
        assert until - 2 * MS <= call.ended <= began + LEASE_US + MAINTENANCE + 10 * MS
        epoch = a.epochs[-1]
        group.run(300 * MS)
        assert b.handles and a.epochs[-1] >= epoch


@SEEDS
def test_a_client_that_is_gone_delays_others_by_its_lease_at_most(service: Service, seed: int) -> None:
    """Its connection is closed, but what it was granted it may use until its lease is over."""
    with service(seed) as group:
        a, b = caching(group, 1), group.user("b", 2)
        group.ask(a, lookup(b".."))
        a.follows = False
        kept, until = dict(a.kept), a.until
        a.leave()
        group.run(group.rng.randrange(10 * MS))
        a.kept, a.until = kept, until
        began = group.clock.now
        call = group.complete(b.request(create(b"x")))
        assert until <= call.ended <= began + LEASE_US + MAINTENANCE + 10 * MS


def test_a_lapsed_lease_is_taken_and_the_client_told_by_the_epoch(service: Service) -> None:
    """A mount that was stopped for a while (SIGSTOP) and wakes up."""
    with service() as group:
        a, b = group.user("a", 1), group.user("b", 2)
        assert a.line is not None
        a._kept_at[7] = group.clock.now
        a.line.ask(msg.KeepCache(7))
        group.until(lambda: a.until > group.clock.now)
        group.ask(a, lookup(b".."))
        assert a.kept
        group.run(LEASE_US + 20 * MS)
        began = group.clock.now
        call = group.complete(b.request(create(b"x")))
        assert call.ended - began < 50 * MS, "nobody waits for it"
        assert not [m for m in a.seen if isinstance(m, msg.Recall)]
        a._kept_at[8] = group.clock.now
        a.line.ask(msg.KeepCache(8))
        group.until(lambda: len(a.epochs) == 2)
        assert not a.kept


def test_the_requester_keeps_its_own_lease(service: Service) -> None:
    with service() as group:
        a, b = caching(group, 1), caching(group, 1, "b")
        group.ask(a, lookup(b".."))
        group.ask(b, lookup(b".."))
        made = group.ask(a, create(b"x"))[0]
        assert not [m for m in a.seen if isinstance(m, msg.Recall)]
        assert [m for m in b.seen if isinstance(m, msg.Recall)]
        assert a.may_use(TOP) and a.may_use(made), "it may keep what it was told of what it made"
        assert not b.may_use(TOP)


def test_no_lease_is_granted_on_what_a_message_in_the_log_touches(service: Service) -> None:
    """The message is in replica 1's log, not applied; client a asks about the directory: it waits, and what it is told
    afterwards it may keep. Of another directory it may keep what it is told meanwhile."""
    with service() as group:
        a, b = caching(group, 1), group.user("b", 2)
        apart = group.ask(b, mkdir(b"apart"))[0]
        group.until(lambda: not len(group.nodes[1].replica.pending))  # applied at replica 1, too
        group.network.cut(3, 1)
        group.network.cut(3, 2)
        making = b.request(create(b"x"))
        group.until(lambda: len(group.nodes[1].replica.pending))
        waiting, other = a.query(lookup(b"y")), a.query(ops.GetAttr(apart))
        group.until(lambda: other.done)
        assert apart in a.kept and TOP not in a.kept and not waiting.done
        group.heal()
        group.complete(making, waiting)
        assert waiting.status == errno.ENOENT


@SEEDS
def test_a_replica_that_was_left_out_has_taken_all_leases(service: Service, seed: int) -> None:
    """Its client stays connected and does not notice: what it kept is void when the replica is back, as others may have
    changed anything meanwhile; and until then nobody is answered what its cache contradicts (Group.saying)."""
    with service(seed) as group:
        a, b = caching(group, 1), group.user("b", 2)
        a.follows = False
        a.answers_recalls = bool(seed % 2)
        group.ask(a, lookup(b".."))
        epoch = a.epochs[-1]
        group.isolate(1)
        call = b.request(create(b"x"))
        group.complete(call)
        assert call.ok and not a.may_use(TOP)
        group.until(lambda: group.view() == (2, 3))
        group.heal()
        group.until(lambda: group.view() == (1, 2, 3))
        group.until(lambda: a.until > group.clock.now)
        assert a.epochs[-1] != epoch and not a.kept
        group.ask(b, create(b"y"))


@SEEDS
def test_many_caching_clients_and_many_changes(service: Service, seed: int) -> None:
    """Everything at once; Group.saying asserts at each answer that no other cache contradicts it."""
    with service(seed) as group:
        users = [caching(group, r, f"user {r}.{k}") for r in group.replica_ids for k in (1, 2)]
        where = [group.ask(users[0], mkdir(b"d%d" % k))[0] for k in range(3)]
        hits = 0
        for step in range(150):
            user = group.rng.choice(users)
            above = group.rng.choice(where)
            name = b"%d" % group.rng.randrange(3)
            user.answers_recalls = group.rng.random() < 0.95
            hits += sum(u.may_use(ino) for u in users for ino in where)
            if group.rng.random() < 0.6:
                user.query(group.rng.choice((lookup(name, above), ops.ReadDir(ROOT, above, 0, 10), ops.GetAttr(above))))
            else:
                user.request(group.rng.choice((create(name, above), unlink(name, above), mkdir(b"d", above))))
            group.run(group.rng.randrange(20 * MS))
            if step == 70 and seed % 2:
                group.kill(2)
            if step == 100:
                group.restart(2)
        assert hits > 100, "the caches were of use"


# -- snapshots


@SEEDS
def test_a_learner_for_whom_history_is_not_kept_gets_a_snapshot(
    service: Service, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """And goes on from it: clients attach to it, their queries and requests are right; after a restart, too."""
    monkeypatch.setattr(group_limits, "RECENT_ITEMS", 12)
    monkeypatch.setattr(group_limits, "JOIN_CLOSE", 4)
    with service(seed) as group:
        user, other = group.user("user", 2), group.user("other", 3)
        group.ask(user, create(b"before"))
        group.kill(1)
        for k in range(40):
            group.ask(user, create(b"%d" % k))
        held = group.ask(other, create(b"held"))[0]
        group.restart(1)
        for k in range(10):
            user.request(create(b"more %d" % k))
            group.run(group.rng.randrange(20 * MS))
        group.until(lambda: group.view() == (1, 2, 3))
        assert group.nodes[1].snapshots >= 1
        assert group.nodes[1].replica.state is not None
        late = group.user("late", 1)
        assert len(names(group, late)) == 52
        group.ask(late, unlink(b"held"))
        group.run(SECOND)
        assert there(group, held) == [1, 2, 3]
        other.leave()
        group.until(lambda: other.attached and other.at == 1)
        group.kill(1)
        group.complete(user.request(create(b"last")))
        group.restart(1)
        group.settle()
        assert len(entries(group, 1)) == 52


# -- everything together


class Register:
    """One name of one directory, as its users saw it: who made, removed or looked up what, and when."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def order(self, made: set[int]) -> list[Call] | None:
        """An order that explains every answer and keeps that of calls which did not overlap; None if there is none.

        A request that was not answered may have happened at any time after it was sent, or not at all. *made*: inodes
        that answered requests have made: what an unanswered one has made is none of these.
        """
        calls = sorted(self.calls, key=lambda c: c.began)
        seen: set[tuple[int, Any]] = set()
        path: list[Call] = []

        def search(left: int, holds: Any) -> bool:
            if not any(left >> k & 1 and calls[k].done for k in range(len(calls))):
                return True
            if (left, holds) in seen:
                return False
            seen.add((left, holds))
            first_end = min(c.ended for k, c in enumerate(calls) if left >> k & 1 and c.done)
            for k, call in enumerate(calls):
                if not left >> k & 1:
                    continue
                if call.began > first_end:
                    break  # it began after one that is still to come had ended
                for after in explained(call, holds, made):
                    path.append(call)
                    if search(left & ~(1 << k), after):
                        return True
                    path.pop()
            return False

        return path if search((1 << len(calls)) - 1, 0) else None


UNKNOWN = -1
"""Stands for the inode that a request without an answer has made."""


def explained(call: Call, holds: int, made: set[int]) -> list[int]:
    """What the name stands for after the call, if its answer is right when it stands for *holds* before (0:
    nothing)."""
    if isinstance(call.op, ops.Lookup):
        if call.ok:
            right = call.body[0] == holds or (holds == UNKNOWN and call.body[0] not in made)
            return [call.body[0]] if right else []
        return [holds] if call.status == errno.ENOENT and holds == 0 else []
    if isinstance(call.op, ops.Create):
        if not call.done:
            return [UNKNOWN] if holds == 0 else [holds]
        if call.ok:
            return [call.body[0]] if holds == 0 else []
        return [holds] if call.status == errno.EEXIST and holds else []
    assert isinstance(call.op, ops.Unlink)
    if not call.done:
        return [0]
    if call.ok:
        return [0] if call.body == holds or (holds == UNKNOWN and call.body not in made) else []
    return [0] if call.status == errno.ENOENT and holds == 0 else []


def test_the_checker_tells_right_from_wrong() -> None:
    """Made, seen, removed; then a look-up that began after the removal ended and still sees it."""

    def call(op: Any, began: int, ended: int, status: int, body: Any) -> Call:
        return Call(op, began, status=status, body=body, ended=ended)

    register = Register()
    register.calls = [
        call(create(b"x"), 0, 10, OK, (7,)),
        call(lookup(b"x"), 5, 8, errno.ENOENT, None),
        call(lookup(b"x"), 11, 12, OK, (7,)),
        call(unlink(b"x"), 13, 20, OK, 7),
        call(lookup(b"x"), 15, 16, OK, (7,)),
    ]
    assert register.order({7}) is not None
    register.calls.append(call(lookup(b"x"), 21, 22, OK, (7,)))
    assert register.order({7}) is None
    register.calls[-1] = call(lookup(b"x"), 21, 22, OK, (8,))
    assert register.order({7}) is None, "nobody has made that"
    register.calls.append(Call(create(b"x"), 14))
    assert register.order({7}) is not None, "the one who was not answered has"


class Crowd:
    """Clients that do something at random, and things that go wrong."""

    def __init__(self, group: Group, clients: int) -> None:
        self.group = group
        self.rng = group.rng
        self.users = [group.user(f"user {k}", group.rng.choice(group.replica_ids)) for k in range(clients)]
        for user in self.users[:2]:
            user.caches()
        self.where = [group.ask(self.users[0], mkdir(b"d%d" % k))[0] for k in range(2)]
        self.registers: dict[tuple[int, bytes], Register] = {}
        self.attributes: list[Call] = []
        self.stopped = False
        for user in self.users:
            self._act(user)

    def _act(self, user: User) -> None:
        if self.stopped:
            return
        rng = self.rng
        if len(user.calls) < 3:
            above = rng.choice(self.where)
            name = b"%d" % rng.randrange(3)
            op = rng.choice((create, unlink, lookup, lookup))(name, above)
            if rng.random() < 0.15:
                self.attributes.append(user.query(ops.GetAttr(above)))
            else:
                call = user.query(op) if isinstance(op, ops.Lookup) else user.request(op)
                self.registers.setdefault((above, name), Register()).calls.append(call)
            if user.handles and rng.random() < 0.5:
                user.close(next(iter(user.handles)))
        self.group.clock.after(rng.randrange(40 * MS), self._act, user)

    def fault(self) -> None:
        group, rng = self.group, self.rng
        up = [node for node in group.nodes.values() if node.running]
        down = [node for node in group.nodes.values() if not node.running]
        kinds = ("kill", "restart", "restart", "cut", "isolate", "heal", "heal", "client", "stall", "slow disk")
        match rng.choice((*kinds, "pause")):
            case "kill" if len(up) > 1:
                victim = rng.choice(up)
                victim.kill()
                if rng.random() < 0.7:
                    group.clock.after(rng.randrange(100 * MS), self._certify, victim, victim.life)
            case "restart" if down:
                rng.choice(down).start()
            case "cut":
                group.network.cut(*rng.sample(group.replica_ids, 2))
            case "isolate" if not group.network.cuts:
                group.isolate(rng.choice(group.replica_ids))
            case "heal":
                group.heal()
            case "pause" if up:
                node = rng.choice(up)
                node.pause()
                group.clock.after(rng.randrange(700 * MS), node.wake)
            case "client":
                rng.choice(self.users).leave(noticed_after=rng.randrange(SECOND))
            case "stall" if (line := rng.choice(self.users).line) is not None:
                line.stalled = True
            case "slow disk":
                rng.choice(up).disk.slow = rng.choice((0, 1))

    def _certify(self, victim: Node, life: int) -> None:
        if not victim.running and victim.life == life:
            self.group.certify(victim.me)

    def check(self) -> int:
        """All that was answered can be explained. Returns how many answers that were."""
        made = {c.body[0] for r in self.registers.values() for c in r.calls if isinstance(c.op, ops.Create) and c.ok}
        for (above, name), register in self.registers.items():
            assert register.order(made) is not None, (
                f"{self.group.describe()}: no order explains {name!r} in {above}:"
                + "".join(f"\n{c.began:9} {c.ended:9} {c.status:3} {c.body} {c.op}" for c in register.calls)
            )
        self._check_attributes()
        return sum(call.done for register in self.registers.values() for call in register.calls)

    def _check_attributes(self) -> None:
        """A directory's time of change never goes back, and covers every change answered before it was asked for."""
        changes = [c for r in self.registers.values() for c in r.calls if isinstance(c.op, ops.Create) and c.ok]
        for call in self.attributes:
            if not call.done:
                continue
            assert call.ok
            for other in self.attributes:
                if other.done and other.ended < call.began and other.op == call.op:
                    assert other.body[9] <= call.body[9]
            for change in changes:
                if change.ended < call.began and change.op.parent == call.op.ino:
                    assert change.body[9] <= call.body[9]


@pytest.mark.parametrize("seed", range(24))
def test_whatever_happens_the_service_is_one_file_system(
    service: Service, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Random clients through random replicas, with faults; every answer is explained by one order of all requests that
    keeps real time, each was executed once (Group.applied), no cache contradicts an answer (Group.saying), and in the
    end the replicas are alike."""
    monkeypatch.setattr(limits, "SESSION_TIMEOUT_US", 60 * SECOND)
    if seed % 3 == 0:
        monkeypatch.setattr(group_limits, "RECENT_ITEMS", 24)
        monkeypatch.setattr(group_limits, "JOIN_CLOSE", 4)
    with service(seed, witnesses=seed % 2) as group:
        crowd = Crowd(group, clients=5)
        group.notice = group.rng.choice((0, 50 * MS, SECOND))
        group.run(300 * MS)
        for _ in range(8):
            crowd.fault()
            group.run(group.rng.randrange(600 * MS))
        group.settle()
        group.run(300 * MS)
        crowd.stopped = True
        group.settle()
        group.until(lambda: not any(user.calls for user in crowd.users))
        assert crowd.check() > 100

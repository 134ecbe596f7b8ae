"""Delegations in a whole service: what waits for them, how they come back, and what is told whom."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mds import limits
from mds.delegating import Delegating
from mds.exports import Squash
from mds.machine import Outcome
from mds.namespace import quota
from tests.mds.group import Call, Group, User, create, lookup, mkdir, names, unlink
from tests.mds.harness import ROOT, TOP, World
from tests.sim.clock import MS, SECOND
from vsync import limits as group_limits
from wire import mending, ops
from wire.codec import encode
from wire.delegation import CreateDelegated, Delegate, DelegationRecall, RecallDelegations, Undelegate
from wire.errors import OK, Status
from wire.mending import Mend

NOW = 1_700_000_000_000_000_000


@pytest.fixture
def groups(tmp_path: Path) -> Iterator[Callable[..., Group]]:
    made: list[Group] = []

    def make(seed: int = 0, **options: Any) -> Group:
        path = tmp_path / str(len(made))
        path.mkdir()
        made.append(Group(path, seed, **options))
        return made[-1]

    yield make
    for group in made:
        group.close()


class Holder:
    """A client that makes files by itself, as far as these stories need."""

    def __init__(self, group: Group, at: int = 1) -> None:
        self.group = group
        self.user = group.user("holder", at)
        self.numbers: list[int] = []

    def delegate(self, parent: int) -> Any:
        found = self.done(Delegate(ROOT, parent)).body
        if found is not None:
            _, first, count, _, _ = found
            self.numbers = list(range(first, first + count))
        return found

    def done(self, op: Any) -> Call:
        call = self.group.complete(self.user.request(op))
        assert call.ok, f"{op} answered {call.status}"
        return call

    def birth(self, parent: int, name: bytes, data: bytes = b"") -> CreateDelegated:
        """A file that it has made by itself."""
        pieces = ((0, data),) if data else ()
        return CreateDelegated(ROOT, parent, name, 0o644, self.numbers.pop(0), NOW, pieces, NOW)

    def told(self) -> list[int]:
        """Directories that it was asked to give back."""
        return [ino for m in self.user.seen if isinstance(m, DelegationRecall) for ino in m.parents]


def held(group: Group) -> list[dict[int, tuple[int, bool]]]:
    """What is delegated, as each replica that is up has it."""
    return [dict(node.replica.state.delegated) for node in group.nodes.values() if node.running]


@pytest.mark.parametrize("seed", range(3))
def test_a_query_elsewhere_waits_for_what_was_answered(groups: Callable[..., Group], seed: int) -> None:
    group = groups(seed)
    other = group.user("other", 2)
    above = group.ask(other, mkdir(b"d"))[0]
    holder = Holder(group)
    assert holder.delegate(above) is not None
    made = holder.birth(above, b"f", b"what it holds")  # and its application has been answered
    asked = other.query(lookup(b"f", above))
    group.until(lambda: holder.told() == [above])
    group.run(50 * MS)
    assert not asked.done
    born = holder.done(made)
    assert not asked.done
    holder.done(Undelegate((above,)))
    assert group.complete(asked).body == born.body
    assert born.body[0] == made.ino
    group.finish()
    assert held(group) == [{}, {}, {}]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("op", ["create", "unlink what is there", "unlink what is not", "rename", "rmdir"])
def test_a_request_elsewhere_waits_for_what_was_answered(groups: Callable[..., Group], seed: int, op: str) -> None:
    group = groups(seed)
    other = group.user("other", 2)
    above = group.ask(other, mkdir(b"d"))[0]
    group.ask(other, create(b"old", above))
    holder = Holder(group, at=3)
    holder.delegate(above)
    made = holder.birth(above, b"f")
    request, expected = {
        "create": (create(b"f", above), errno.EEXIST),
        "unlink what is there": (unlink(b"old", above), 0),
        "unlink what is not": (unlink(b"f", above), 0),
        "rename": (ops.Rename(ROOT, above, b"f", TOP, b"g", 0), 0),
        "rmdir": (ops.Rmdir(ROOT, TOP, b"d"), errno.ENOTEMPTY),
    }[op]
    asked = other.request(request)
    group.until(lambda: holder.told() == [above])
    holder.done(made)
    holder.done(Undelegate((above,)))
    assert group.complete(asked).status == expected
    group.finish()


def given(group: Group, at: int = 1) -> tuple[User, int, Holder]:
    """(a client at replica 2, directory ``d``, who it is delegated to)."""
    other = group.user("other", 2)
    above = group.ask(other, mkdir(b"d"))[0]
    holder = Holder(group, at)
    assert holder.delegate(above) is not None
    return other, above, holder


def recalls(group: Group) -> int:
    """Directories that were asked back, by any replica."""
    return sum(node.replica.delegating.recalls for node in group.nodes.values())


@pytest.mark.parametrize("seed", range(2))
def test_it_is_asked_back_once(groups: Callable[..., Group], seed: int) -> None:
    group = groups(seed)
    other, above, holder = given(group)
    calls = [other.query(lookup(b"%d" % k, above)) for k in range(5)]
    calls += [other.request(create(b"%d" % k, above)) for k in range(5)]
    group.run(500 * MS)
    assert not any(call.done for call in calls)
    assert recalls(group) == 1 and holder.told() == [above]
    assert holder.done(Delegate(ROOT, above)).body is None
    holder.done(Undelegate((above,)))
    group.complete(*calls)
    assert all(call.ok for call in calls[5:])
    group.finish()


@pytest.mark.parametrize("seed", range(2))
def test_who_does_not_give_back_loses_it(groups: Callable[..., Group], seed: int) -> None:
    """What it has made by itself comes late, and is made if it still can be."""
    group = groups(seed)
    other, above, holder = given(group)
    first, second = holder.birth(above, b"f"), holder.birth(above, b"g")
    began = group.clock.now
    made = group.complete(other.request(create(b"f", above)))
    assert made.ok
    assert limits.DELEGATION_REVOKE_US <= group.clock.now - began < limits.DELEGATION_REVOKE_US + SECOND
    assert group.complete(holder.user.request(first)).status == errno.EEXIST
    holder.done(second)
    assert sorted(names(group, other, above)) == [b"f", b"g"]
    holder.done(Undelegate((above,)))
    assert holder.delegate(above) is not None
    group.finish()


@pytest.mark.parametrize("seed", range(2))
def test_a_holder_whose_replica_is_cut_off_has_more_time(groups: Callable[..., Group], seed: int) -> None:
    """It has noticed nothing: what it has answered by itself is ordered when it is attached again."""
    group = groups(seed)
    other, above, holder = given(group)
    made = holder.birth(above, b"f")
    holder.user.follows = False
    group.isolate(1)
    group.until(lambda: group.view() == (2, 3))
    asked = other.query(lookup(b"f", above))
    group.run(limits.DELEGATION_REVOKE_US + 2 * SECOND)
    assert not asked.done
    holder.user.leave()
    holder.user.connect(3)
    group.run(limits.DELEGATION_REVOKE_US - 500 * MS)
    assert not asked.done, "it can have been asked for so long only"
    holder.user.follows = True
    born = holder.done(made)
    holder.done(Undelegate((above,)))
    assert group.complete(asked).body == born.body
    group.finish()


@pytest.mark.parametrize("seed", range(2))
def test_a_holder_that_stays_away_loses_it_all_the_same(groups: Callable[..., Group], seed: int) -> None:
    group = groups(seed)
    other, above, holder = given(group)
    holder.user.follows = False
    group.isolate(1)
    group.until(lambda: group.view() == (2, 3))
    began = group.clock.now
    group.ask(other, create(b"f", above))
    assert limits.DELEGATION_REVOKE_AWAY_US <= group.clock.now - began < limits.DELEGATION_REVOKE_AWAY_US + SECOND
    group.finish()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("way", ["died", "cut off"])
def test_a_holder_that_fails_over_is_asked_again(groups: Callable[..., Group], seed: int, way: str) -> None:
    """The recall is on its way when the holder's replica fails, or was never told."""
    group = groups(seed)
    other, above, holder = given(group)
    made = holder.birth(above, b"f", b"bytes")
    assert holder.user.line is not None
    holder.user.line.stalled = bool(seed % 2)
    asked = other.query(lookup(b"f", above))
    group.run(group.rng.randrange(5 * MS))
    if way == "died":
        group.kill(1)
        group.certify(1)
    else:
        group.isolate(1)
        group.until(lambda: group.view() == (2, 3))
        holder.user.leave()  # a pong says that this one does not serve
    born = holder.done(made)
    assert holder.user.at != 1
    group.until(lambda: above in holder.told())
    holder.done(Undelegate((above,)))
    assert group.complete(asked).body == born.body
    assert sum(node.replica.delegating.revocations for node in group.nodes.values()) == 0
    group.finish()


@pytest.mark.parametrize("seed", range(2))
def test_what_was_taken_away_meanwhile_is_told_at_the_attachment(groups: Callable[..., Group], seed: int) -> None:
    """Before the holder gets a cache lease there, without which it answers nothing by itself."""
    group = groups(seed)
    other, above, holder = given(group)
    holder.user.follows = False
    holder.user.leave()
    group.ask(other, create(b"f", above))
    assert held(group) == [{}, {}, {}] or (group.run(SECOND) is None and held(group) == [{}, {}, {}])
    holder.user.connect(3)
    holder.user.caches()
    group.until(lambda: holder.user.until)
    assert holder.told() == [above]
    holder.user.follows = True
    holder.done(Undelegate((above,)))
    holder.user.leave(again=True)
    group.until(lambda: holder.user.attached)
    group.run(100 * MS)
    assert holder.told() == [above], "it has said that it knows"
    group.finish()


@pytest.mark.parametrize("seed", range(2))
def test_it_is_told_also_where_a_snapshot_brought_it(
    groups: Callable[..., Group], monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """A client stays with a replica that is cut off, and gets the state anew when it is back."""
    monkeypatch.setattr(group_limits, "RECENT_ITEMS", 12)
    monkeypatch.setattr(group_limits, "JOIN_CLOSE", 4)
    group = groups(seed)
    other, above, holder = given(group)
    holder.user.follows = False
    group.isolate(1)
    group.until(lambda: group.complete(other.request(create(b"f", above))).ok)
    for k in range(40):
        group.ask(other, create(b"%d" % k))
    assert holder.told() == []
    group.heal()
    group.until(lambda: group.view() == (1, 2, 3))
    assert group.nodes[1].snapshots
    group.run(50 * MS)
    assert holder.user.attached and set(holder.told()) == {above}
    group.finish()


@pytest.mark.parametrize("seed", range(2))
def test_it_ends_with_the_session(groups: Callable[..., Group], monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(limits, "SESSION_TIMEOUT_US", SECOND)
    monkeypatch.setattr(limits, "DELEGATION_REVOKE_US", 60 * SECOND)
    group = groups(seed)
    other, above, holder = given(group)
    holder.user.follows = False
    holder.user.leave()
    call = group.complete(other.request(create(b"f", above)))
    assert call.ok and held(group) == [{}, {}, {}]
    group.finish()


@pytest.mark.parametrize("seed", range(3))
def test_a_request_that_slipped_through_is_done_once(groups: Callable[..., Group], seed: int) -> None:
    """Ordered while the Delegate is: whichever is first. Its client may go elsewhere meanwhile and send it again."""
    group = groups(seed)
    other = group.user("other", 2)
    above = group.ask(other, mkdir(b"d"))[0]
    holder = Holder(group, 1)
    asked = holder.user.request(Delegate(ROOT, above))
    group.run(group.rng.randrange(2 * MS))
    calls = [other.request(create(b"%d" % k, above)) for k in range(4)]
    group.complete(asked)
    assert asked.ok
    if seed % 2:
        group.run(group.rng.randrange(5 * MS))
        other.leave()
    group.run(100 * MS)
    if asked.body is not None:
        holder.done(Undelegate((above,)))
    group.complete(*calls)
    assert all(call.ok for call in calls), "and not EEXIST"
    assert not any(Status.DELEGATED in call.refusals for call in calls)
    group.finish()


@pytest.mark.parametrize("seed", range(2))
def test_what_a_replica_orders_for_itself_waits_too(groups: Callable[..., Group], seed: int) -> None:
    """A Mend is of everything. While it waits nothing more is delegated."""
    group = groups(seed)
    other, above, holder = given(group)
    outcomes: list[Outcome] = []
    node = group.nodes[3]
    mend = Mend(mending.TALLY, 0, 0, b"", 999, 998, ())
    node.take(lambda: node.replica.internal(mend, outcomes.append))
    group.until(lambda: holder.told())
    assert not outcomes
    elsewhere = group.ask(other, mkdir(b"e"))[0]
    assert holder.done(Delegate(ROOT, elsewhere)).body is None
    holder.done(Undelegate((above,)))
    group.until(lambda: outcomes)
    assert outcomes[0].status == OK
    group.run(limits.DELEGATION_PAUSE_NS // 1000)
    group.ask(other, create(b"time goes on"))
    assert holder.done(Delegate(ROOT, elsewhere)).body is not None
    group.finish()


def test_a_quota_that_its_holder_sets_has_it_given_back(groups: Callable[..., Group]) -> None:
    group = groups()
    _, above, holder = given(group)
    call = holder.user.request(ops.SetXattr(ROOT, TOP, quota.ATTRIBUTE, b"inodes_hard=9", 0))
    group.until(lambda: holder.told() == [above])
    assert not call.done
    holder.done(Undelegate((above,)))
    assert group.complete(call).ok
    assert holder.done(Delegate(ROOT, above)).body is None
    group.finish()


@pytest.mark.parametrize("op", [ops.SetXattr, ops.RemoveXattr])
def test_a_quota_that_is_refused_calls_nothing_back(groups: Callable[..., Group], op: type) -> None:
    """Anybody may ask for one, once a second."""
    group = groups()
    _, _, holder = given(group)
    more = (b"inodes_hard=9", 0) if op is ops.SetXattr else ()
    call = group.complete(group.user("other", 2).request(op(ops.Cred(99, 99, ()), TOP, quota.ATTRIBUTE, *more)))
    assert call.status == errno.EPERM and holder.told() == []
    group.finish()


def test_a_reply_that_is_given_again_delegates_nothing(groups: Callable[..., Group]) -> None:
    """It may have been given back since, for somebody asked."""
    group = groups()
    other = group.user("other", 2)
    above = group.ask(other, mkdir(b"d"))[0]
    holder = Holder(group, 1)
    assert holder.user.line is not None
    holder.user.line.stalled = True
    call = holder.user.request(Delegate(ROOT, above))
    group.until(lambda: all(above in one for one in held(group)))
    holder.user.leave()
    group.complete(call)
    assert call.ok and call.body is None
    group.finish()


def test_who_is_squashed_is_delegated_nothing(groups: Callable[..., Group]) -> None:
    """It cannot know as whom its files would be made."""
    group = groups()
    holder = Holder(group, 1)
    assert holder.user.line is not None
    holder.user.line.client.squash = Squash(False, 65534)
    call = group.complete(holder.user.request(Delegate(ROOT, TOP)))
    assert call.status == errno.EPERM
    group.finish()


@pytest.mark.parametrize("seed", range(2))
def test_others_let_go_of_what_they_keep_before_it_is_delegated(groups: Callable[..., Group], seed: int) -> None:
    """1. A client keeps that a name is not there. 2. Another one may make that name by itself from now on."""
    group = groups(seed)
    other = group.user("other", 2).caches()
    above = group.ask(other, mkdir(b"d"))[0]
    group.until(lambda: other.until > group.clock.now)
    group.ask(other, ops.GetAttr(above))
    assert other.may_use(above)
    other.answers_recalls = bool(seed % 2)
    holder = Holder(group, 1)
    holder.delegate(above)
    assert not other.may_use(above)
    asked = other.query(ops.GetAttr(above))
    group.run(500 * MS)
    assert not asked.done and not other.may_use(above)
    holder.done(Undelegate((above,)))
    group.complete(asked)
    group.finish()


@pytest.mark.parametrize("seed", range(3))
def test_numbers_are_to_be_had_in_a_crowd(groups: Callable[..., Group], seed: int) -> None:
    """Whoever else asks at the same time: the first entries of a message are those that get numbers."""
    group = groups(seed)
    user = group.user("crowd")
    directories = [group.ask(user, mkdir(b"d%d" % k))[0] for k in range(20)]
    others = [user.request(create(b"%d" % k)) for k in range(40)]
    asked = [user.request(Delegate(ROOT, ino)) for ino in directories]
    group.complete(*others, *asked)
    assert all(call.body is not None for call in asked)
    assert len({call.body[1] for call in asked}) == len(asked)
    group.finish()


def test_another_state_counts_its_changes_anew(tmp_path: Path) -> None:
    """1. A replica has looked at its third change. 2. A snapshot replaces its state. 3. The third change of that one
    ends what a request waits for, before anybody has looked at the second."""
    delegating: Delegating | None = None
    for place in ("first", "second"):
        world = World(tmp_path / place, inline=4096)
        if delegating is None:
            delegating = Delegating(world.machine, lambda op, done: None)
        delegating.clear()
        delegating.state = world.machine
        session = world.internal(ops.SessionOpen(b"another session.", "other", 8, 1, 1))
        world.ok(Delegate(ROOT, TOP))
        world.internal(RecallDelegations((TOP,)))
        op = create(b"f")
        item = (1, session, 0, 1, encode(op))
        assert delegating.keeps_aside(item, op)
        world.ok(Undelegate((TOP,)))
        assert delegating.busy and delegating.free() == [(item, op)], place
        world.finish()


@pytest.mark.parametrize("seed", range(2))
def test_what_waits_is_not_asked_anew_at_every_turn(groups: Callable[..., Group], seed: int) -> None:
    """A holder that does not answer must not keep the replica busy with listings."""
    group = groups(seed)
    other, above, holder = given(group)
    state = group.nodes[2].replica.state
    asked: list[Any] = []
    query = state.query

    def counted(op: Any, *rest: Any) -> Any:
        asked.append(op)
        return query(op, *rest)

    state.query = counted  # type: ignore[method-assign]
    calls = [other.query(ops.ReadDir(ROOT, above, 0, 100)) for _ in range(10)]
    busy = group.user("busy", 3)
    for k in range(50):
        group.ask(busy, create(b"%d" % k))
    assert not any(call.done for call in calls)
    assert len(asked) <= 2 * len(calls)
    holder.done(Undelegate((above,)))
    group.complete(*calls)
    group.finish()

"""Stories of replicas in which a cache that does not let go holds some requests back, and all others go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mds import limits
from mds.caches import LEASE_US
from tests.mds.group import MAINTENANCE, ROOT, TOP, Call, Group, User, create, lookup, mkdir, names, unlink
from tests.sim.clock import MS, SECOND
from vsync import limits as group_limits
from wire import ops
from wire.errors import OK

SEEDS = pytest.mark.parametrize("seed", range(6))
SOON = 60 * MS
"""What takes no longer has waited for nobody."""

Service = Callable[..., Any]


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Service:
    monkeypatch.setattr(limits, "SESSION_TIMEOUT_US", 3 * SECOND)

    @contextmanager
    def made(seed: int = 0, **more: Any) -> Iterator[Group]:
        group = Group(tmp_path, seed, **more)
        try:
            yield group
            group.finish()
            for node in group.nodes.values():
                assert node.replica.schedule.empty and node.replica.state.low == node.replica.state.index
        finally:
            group.close()

    return made


def silent(group: Group, at: int, *inodes: int) -> User:
    """A client that holds leases on *inodes* and hangs: it hears of no recall, and goes on using what it keeps."""
    user = group.user("silent", at).caches()
    group.until(lambda: user.until > group.clock.now)
    for ino in inodes:
        group.ask(user, ops.GetAttr(ino))
    assert set(inodes) <= set(user.kept)
    assert user.line is not None
    user.line.stalled = True
    return user


def waiting(group: Group) -> list[int]:
    """Replicas at which requests are delivered and not executed."""
    return [r for r, node in group.nodes.items() if node.running and not node.replica.schedule.empty]


def open_again(call: Call, user: User) -> None:
    """Close what a create has opened."""
    user.close(call.body[0])


@SEEDS
def test_a_client_that_does_not_let_go_delays_those_only_who_touch_what_it_keeps(service: Service, seed: int) -> None:
    """Requests through each of the replicas, that of the silent client among them."""
    with service(seed) as group:
        users = [group.user(f"user {r}", r) for r in group.replica_ids]
        one, two = (group.ask(users[0], mkdir(name))[0] for name in (b"one", b"two"))
        kept = silent(group, 1, one)
        until = kept.until
        began = group.clock.now
        held = [users[1].request(create(b"a", one)), users[2].request(create(b"b", one))]
        group.until(lambda: waiting(group) == [1, 2, 3])
        for k, user in enumerate(users):
            call = group.complete(user.request(create(b"%d" % k, two)))
            assert call.status == OK and call.ended - call.began < SOON
            open_again(call, user)
            call = group.complete(user.request(unlink(b"%d" % k, two)))
            assert call.status == OK and call.ended - call.began < SOON
            call = group.complete(user.query(ops.GetAttr(two)))
            assert call.ended - call.began < SOON, "a query waits only for what it conflicts with"
        listing = users[0].query(ops.ReadDir(ROOT, one, 0, 100))
        group.run(SOON)
        assert not listing.done and not any(call.done for call in held)
        group.complete(*held, listing)
        assert all(until - 2 * MS <= c.ended <= began + LEASE_US + MAINTENANCE + 20 * MS for c in (*held, listing))
        assert {name for name, _, _ in listing.body[0]} >= {b"a"}
        for call, user in zip(held, users[1:], strict=True):
            assert call.ok
            open_again(call, user)
        said = [node.replica.schedule.statistics() for node in group.nodes.values()]
        assert all(s["queued"] >= 1 and s["cells"]["update"]["update"]["queued"] >= 1 for s in said)


@SEEDS
def test_many_requests_may_touch_what_a_client_keeps(service: Service, seed: int) -> None:
    """Also in one message; each waits for the client, once."""
    with service(seed) as group:
        user = group.user("user", 2)
        one = group.ask(user, mkdir(b"one"))[0]
        silent(group, 1, one)
        calls = [user.request(mkdir(b"%d" % k, one)) for k in range(60)]
        group.until(lambda: len(group.nodes[1].replica.caches.held(group.nodes[1].now())) == 60)
        group.complete(*calls)
        assert all(call.ok for call in calls)


@SEEDS
def test_a_replica_that_stops_still_holds_what_its_clients_use(service: Service, seed: int) -> None:
    """It has asked for everything back, and its client has not heard of that when somebody else changes something.
    Group.saying asserts at the answer that no cache contradicts it."""
    with service(seed) as group:
        user = group.user("user", 2)
        one = group.ask(user, mkdir(b"one"))[0]
        kept = silent(group, 1, one)
        assert kept.line is not None
        kept.line.stalled = True
        group.nodes[1].take(group.nodes[1].replica.lending.stop)
        assert kept.may_use(one)
        assert group.complete(user.request(mkdir(b"x", one))).ok
        kept.leave()


@SEEDS
def test_what_waits_survives_its_replicas(service: Service, seed: int) -> None:
    """The state is written while requests wait, and replicas are killed then; all that is answered was done once."""
    with service(seed) as group:
        users = [group.user(f"user {r}", r) for r in group.replica_ids]
        one, two = (group.ask(users[0], mkdir(name))[0] for name in (b"one", b"two"))
        silent(group, 1, one)
        held = [users[1].request(create(b"a", one)), users[2].request(mkdir(b"b", one))]
        group.until(lambda: waiting(group) == [1, 2, 3])
        for k, user in enumerate(users):
            open_again(group.complete(user.request(create(b"%d" % k, two))), user)
        assert waiting(group) == [1, 2, 3]
        for node in group.nodes.values():
            node.commit()
            assert node.replica.state.low < node.replica.state.index
        more = users[1].request(mkdir(b"later", two))
        group.run(group.rng.randrange(20 * MS))
        for replica in (2, 3) if seed % 3 == 0 else (1, 2, 3) if seed % 3 == 1 else (1,):
            group.kill(replica)
        group.run(group.rng.randrange(50 * MS))
        for replica in group.replica_ids:
            group.restart(replica)
        group.complete(*held, more)
        assert all(call.ok for call in (*held, more))
        open_again(held[0], users[1])
        assert names(group, users[0], one) == [b"a", b"b"] or names(group, users[0], one) == [b"b", b"a"]
        assert set(names(group, users[0], two)) == {b"0", b"1", b"2", b"later"}


@SEEDS
def test_a_snapshot_carries_what_waits(service: Service, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(group_limits, "RECENT_ITEMS", 12)
    monkeypatch.setattr(group_limits, "JOIN_CLOSE", 4)
    with service(seed) as group:
        user, other = group.user("user", 2), group.user("other", 3)
        one = group.ask(user, mkdir(b"one"))[0]
        group.kill(1)
        for k in range(30):
            group.ask(user, mkdir(b"%d" % k))
        calls: list[Call] = []
        while group.nodes[1].snapshots == 0 or group.view() != (1, 2, 3):
            if not waiting(group):
                kept = silent(group, 2 + len(calls) % 2, one)
                calls.append(other.request(mkdir(b"held %d" % len(calls), one)))
                group.until(lambda: waiting(group))
                kept.follows = False
                kept.leave()
                if not group.nodes[1].running:
                    group.restart(1)
            if len(user.calls) < 50:
                calls.append(user.request(mkdir(b"more %d" % len(calls))))
            group.run(group.rng.randrange(10 * MS))
        group.complete(*calls)
        assert all(call.ok for call in calls)
        late = group.user("late", 1)
        assert len(names(group, late, one)) == sum(call.op.parent == one for call in calls)


@SEEDS
def test_a_view_begins_when_nothing_of_the_one_before_is_held(service: Service, seed: int) -> None:
    """A replica dies while requests wait for caches: of its own clients in one half of the runs, of another's in the
    other. Group.saying asserts at each answer that no cache contradicts it."""
    with service(seed) as group:
        users = [group.user(f"user {r}", r) for r in (2, 3)]
        one = group.ask(users[0], mkdir(b"one"))[0]
        kept = silent(group, 1 if seed % 2 else 2, one)
        calls = [user.request(mkdir(b"%d" % k, one)) for k, user in enumerate(users)]
        group.until(lambda: waiting(group) == [1, 2, 3])
        assert kept.may_use(one)
        group.kill(1)
        group.certify(1)  # else what it was promised alone takes longer than any cache's lease
        group.complete(*calls)
        assert all(call.ok for call in calls)
        group.until(lambda: group.view() == (2, 3))
        group.restart(1)


@SEEDS
def test_a_plan_that_is_overtaken_is_made_again_and_the_client_sees_nothing(service: Service, seed: int) -> None:
    """Clients at three replicas move and remove the same names at the same time."""
    with service(seed) as group:
        users = [group.user(f"user {r}", r) for r in group.replica_ids]
        stale = 0
        for node in group.nodes.values():
            again = node.replica._batching.again

            def counted(item: Any, again: Any = again) -> None:
                nonlocal stale
                stale += 1
                again(item)

            node.replica._batching.again = counted  # type: ignore[method-assign]
        for round_ in range(25):
            calls = []
            for user in users:
                op = group.rng.choice(
                    (
                        mkdir(b"x"),
                        ops.Symlink(ROOT, TOP, b"y", b"t"),
                        ops.Rename(ROOT, TOP, b"x", TOP, b"y", 0),
                        ops.Rename(ROOT, TOP, b"y", TOP, b"x", 0),
                        unlink(b"x"),
                        unlink(b"y"),
                        ops.Rmdir(ROOT, TOP, b"x"),
                    )
                )
                calls.append(user.request(op))
            group.complete(*calls)
            assert not any(call.refusals for call in calls), round_
        assert stale, "plans were overtaken"
        asked = [user.query(lookup(b"x")) for user in users]
        group.complete(*asked)
        assert len({(call.status, str(call.body)) for call in asked}) == 1

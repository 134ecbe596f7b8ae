"""A killed replica's clients let go of what it lent to their caches; the view without it waits for that only."""

from __future__ import annotations

from typing import Any

import pytest

from mds.borrowers import Borrowers
from mds.caches import LEASE_US
from mds.sessions import Session
from tests.mds.group import Group, User
from tests.mds.test_replica import create, names
from tests.mds.test_replica import service as service  # the fixture
from tests.sim.clock import MS, SECOND
from wire import ops

KEY = bytes(16)


def session(replica: int, attempt: int) -> Session:
    return Session(KEY, "client", 4, replica, attempt)


def returned(borrowers: Borrowers, *sessions: tuple[int, Session], logged: Any = (), now: int = 0) -> bool:
    return borrowers.returned(1, sessions, logged, now)


def test_nothing_was_lent_to_nobody() -> None:
    assert returned(Borrowers(), (7, session(2, 1)))


def test_every_session_of_the_dead_has_to_let_go() -> None:
    borrowers = Borrowers()
    both = (7, session(1, 3)), (8, session(1, 1))
    assert not returned(borrowers, *both)
    borrowers.let_go(7, 4, 0)
    assert not returned(borrowers, *both)
    borrowers.let_go(8, 2, 0)
    assert returned(borrowers, *both)


def test_what_was_said_before_it_came_to_the_dead_replica_does_not_count() -> None:
    """1. Attempt 4, at another replica, is slow. 2. The client gives up and attaches, attempt 5, to the replica that
    dies then. 3. Attempt 4 arrives."""
    borrowers = Borrowers()
    borrowers.let_go(7, 4, 0)
    assert not returned(borrowers, (7, session(1, 5)))
    borrowers.let_go(7, 6, 0)
    borrowers.let_go(7, 5, 0)
    assert returned(borrowers, (7, session(1, 5)))


def test_attachments_that_are_in_the_log_only_count_as_well() -> None:
    """The dead replica may have applied them, and lent, before anyone else."""
    borrowers = Borrowers()
    borrowers.let_go(7, 4, 0)
    at_two = (7, session(2, 3))
    assert returned(borrowers, at_two)
    assert not returned(borrowers, at_two, logged=[None, ops.SessionAttach(7, KEY, 1, 4)])
    assert returned(borrowers, at_two, logged=[ops.SessionAttach(7, KEY, 2, 4)])
    assert not returned(borrowers, logged=[ops.SessionOpen(KEY, "client", 4, 1, 1)]), "who that is is not known yet"


def test_a_kernel_may_go_on_for_a_moment() -> None:
    borrowers = Borrowers()
    borrowers.let_go(7, 2, 100)
    assert not returned(borrowers, (7, session(1, 1)), now=99)
    assert returned(borrowers, (7, session(1, 1)), now=100)


def test_a_kernel_may_go_on_for_a_moment_though_its_client_is_attached_elsewhere_by_now() -> None:
    """1. The client left replica 1 while that was alive, and is attached to 2. 2. Replica 1 dies right after."""
    borrowers = Borrowers()
    borrowers.let_go(7, 2, 100)
    assert not returned(borrowers, (7, session(2, 2)), now=99)
    assert returned(borrowers, (7, session(2, 2)), now=100)


def test_what_is_ordered_is_forgotten() -> None:
    borrowers = Borrowers()
    borrowers.let_go(7, 2, 0)
    borrowers.let_go(8, 2, 0)
    borrowers.forget([(7, session(2, 2)), (8, session(1, 1))], 0)
    assert borrowers._let_go.keys() == {8}


def test_a_view_does_not_make_forget_that_a_kernel_goes_on_for_a_moment() -> None:
    """1. The client left replica 1 while that was alive, and is attached to 2. 2. A view becomes active, because
    somebody else has come or gone. 3. Replica 1 dies right after."""
    borrowers = Borrowers()
    borrowers.let_go(7, 2, 100)
    borrowers.forget([(7, session(2, 2))], 10)
    assert not returned(borrowers, (7, session(2, 2)), now=99)
    assert returned(borrowers, (7, session(2, 2)), now=100)
    borrowers.forget([(7, session(2, 2))], 100)
    assert not borrowers._let_go


def caching(group: Group, at: int) -> User:
    user = group.user("caching", at).caches()
    group.until(lambda: user.until > group.clock.now)
    names(group, user)
    return user


@pytest.mark.parametrize("seed", range(6))
def test_a_certified_death_costs_no_lease(service: Any, seed: int) -> None:
    """kill -9: the next request is answered long before the cache lease of the dead replica's client has run out."""
    with service(seed) as group:
        caching(group, 1)
        other = group.user("other", 2)
        group.kill(1)
        began = group.clock.now
        group.run(5 * MS)
        group.certify(1)
        call = other.request(create(b"after"))
        group.until(lambda: call.done)
        assert call.ended - began < LEASE_US - 50 * MS
        group.restart(1)


@pytest.mark.parametrize("seed", range(6))
def test_a_client_that_does_not_notice_is_waited_for(service: Any, seed: int) -> None:
    """Its host is slow, or it was stopped: until its lease has run out it may answer from its cache (Group.saying)."""
    with service(seed) as group:
        user = caching(group, 1)
        other = group.user("other", 2)
        until = user.until
        line = user.line
        assert line is not None
        line.cut(lost_after=10 * SECOND)
        group.kill(1)
        group.run(5 * MS)
        group.certify(1)
        call = other.request(create(b"after"))
        group.until(lambda: call.done)
        assert call.ended >= until
        group.restart(1)


def test_replicas_look_at_the_operations_in_their_log(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with service() as group:
        replica = group.nodes[2].replica
        attach = ops.SessionAttach(7, KEY, 1, 4)
        asked: list[Any] = []
        with monkeypatch.context() as patch:
            patch.setattr(replica.group, "awaits_return", lambda now: [(1, 1)])
            patch.setattr(replica.borrowers, "returned", lambda dead, sessions, logged, now: asked.extend(logged))
            patch.setattr(replica, "_ops", {(9, 1, 1): (((0, 0, 1, 1, b""), "x"), [attach, None])})
            replica._look_at_loans()
        assert asked == [attach, None]

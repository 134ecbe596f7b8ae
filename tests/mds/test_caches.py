"""mds.caches: when a request is answered anywhere, no client's cache holds what it changed."""

from __future__ import annotations

from collections import deque
from random import Random

import pytest

from mds import caches as module
from mds.caches import Caches

MS = 1000
ALL = None


def holding(*grants: tuple[str, int]) -> Caches[str]:
    """Leases until 100 ms, granted at 0."""
    caches: Caches[str] = Caches()
    for client, ino in grants:
        caches.renew(client, 100 * MS)
        assert caches.grant(client, frozenset({ino}), 0)
    caches.validate()
    return caches


def test_without_a_lease_nothing_is_granted() -> None:
    """A client that never asked for one, and one whose lease has run out."""
    caches: Caches[str] = Caches()
    assert not caches.has("a") and not caches.grant("a", frozenset({1}), 0)
    caches.renew("a", 100)
    assert caches.has("a")
    assert caches.grant("a", frozenset({1}), 99)
    assert not caches.grant("a", frozenset({2}), 100)
    assert len(caches) == 1


def test_a_lease_is_never_made_shorter() -> None:
    """Our own read lease may end before what the client was told already."""
    caches: Caches[str] = Caches()
    assert caches.renew("a", 100) == caches.renew("a", 50)
    assert caches.grant("a", frozenset({1}), 99)


@pytest.mark.parametrize(
    ("touched", "requesters", "sent"),
    [
        ({1}, set(), [("a", 1, (1,)), ("b", 1, (1,))]),
        ({2}, set(), [("b", 1, (2,))]),
        ({1, 2}, set(), [("a", 1, (1,)), ("b", 1, (1, 2))]),
        ({9}, set(), []),
        (set(), set(), []),
        ({1}, {"a"}, [("b", 1, (1,))]),
        ({2}, {"b"}, []),
        (ALL, set(), [("a", 1, ()), ("b", 1, ())]),
        (ALL, {"b"}, [("a", 1, ())]),
    ],
)
def test_who_is_asked_for_what(
    touched: set[int] | None, requesters: set[str], sent: list[tuple[str, int, tuple[int, ...]]]
) -> None:
    caches = holding(("a", 1), ("b", 1), ("b", 2))
    assert caches.recall(None if touched is None else frozenset(touched), requesters, 7, 0) == sent
    assert caches.held(0) == ({7} if sent else set())
    caches.validate()


def test_a_message_waits_for_everyone_and_each_answer_covers_the_recalls_before_it() -> None:
    caches = holding(("a", 1), ("a", 2), ("b", 1))
    assert caches.recall(frozenset({1}), set(), 5, 0) == [("a", 1, (1,)), ("b", 1, (1,))]
    assert caches.recall(frozenset({2}), set(), 8, 0) == [("a", 2, (2,))]
    caches.done("b", 1)
    assert caches.held(0) == {5, 8}
    caches.done("a", 2)
    assert not caches.held(0)
    caches.validate()


def test_who_touches_what_is_being_called_back_waits_for_it_too() -> None:
    """The lease is not listed any more, but the client has not let go."""
    caches = holding(("a", 1), ("a", 2))
    caches.recall(frozenset({1}), set(), 5, 0)
    assert caches.recall(frozenset({1}), set(), 6, 0) == [] and caches.held(0) == {5, 6}
    caches.recall(frozenset({1}), {"a"}, 7, 0)
    assert caches.held(0) == {5, 6}, "who asks knows what it asks"
    caches.done("a", 1)
    assert not caches.held(0)


def test_a_message_of_many_that_touch_the_same_costs_one_recall() -> None:
    """A thousand files are made in a directory that a client keeps: each of them waits, and none costs more for it."""
    caches = holding(("a", 1), ("b", 1))
    sent = [caches.recall(frozenset({1}), set(), k, 0) for k in range(1000)]
    assert len(sent[0]) == 2 and not any(sent[1:])
    assert caches.held(0) == set(range(1000))
    caches.done("a", 1)
    assert caches.held(0) == set(range(1000))
    caches.done("b", 1)
    assert not caches.held(0)


@pytest.mark.parametrize("touched", [frozenset({1}), ALL])
def test_while_a_client_is_asked_there_is_somebody_to_ask(touched: frozenset[int] | None) -> None:
    """1. What a client keeps is called back, all of it. 2. Before it answers, another request touches that."""
    caches = holding(("a", 1))
    caches.recall(touched, set(), 5, 0, frozenset({1}))
    assert len(caches) == 0 and caches.any_held
    caches.recall(frozenset({1}), set(), 6, 0)
    assert caches.held(0) == {5, 6}
    caches.done("a", 1)
    assert not caches.any_held


def test_an_answer_to_an_earlier_recall_does_not_cover_a_later_one() -> None:
    caches = holding(("a", 1), ("a", 2))
    caches.recall(frozenset({1}), set(), 5, 0)
    caches.recall(frozenset({2}), set(), 8, 0)
    caches.done("a", 1)
    assert caches.held(0) == {8}


def test_what_was_recalled_is_not_recalled_again_until_it_is_granted_again() -> None:
    caches = holding(("a", 1))
    assert caches.recall(frozenset({1}), set(), 5, 0)
    assert caches.recall(frozenset({1}), set(), 6, 0) == []
    caches.done("a", 1)
    assert caches.grant("a", frozenset({1}), 10)
    assert caches.recall(frozenset({1}), set(), 7, 10) == [("a", 2, (1,))]


def test_a_client_that_does_not_answer_holds_others_up_until_its_lease_is_over() -> None:
    """It hangs, or its host is gone. Should it come back it is told by the epoch that it holds nothing."""
    caches = holding(("a", 1), ("a", 2))
    epoch = caches.renew("a", 100 * MS)
    caches.recall(frozenset({1}), set(), 5, 0)
    assert caches.held(100 * MS - 1) == {5}
    assert not caches.held(100 * MS)
    assert len(caches) == 0
    assert caches.renew("a", 300 * MS) == epoch + 1


def test_a_lease_that_has_run_out_is_taken_without_asking() -> None:
    caches = holding(("a", 1), ("a", 2))
    assert caches.recall(frozenset({1}), set(), 5, 100 * MS) == []
    assert not caches.held(100 * MS)
    assert len(caches) == 0
    assert caches.renew("a", 300 * MS) == 2


def test_a_lease_that_has_run_out_and_contradicts_nothing_goes_on() -> None:
    caches = holding(("a", 1))
    assert caches.recall(frozenset({2}), set(), 5, 200 * MS) == []
    assert caches.renew("a", 300 * MS) == 1
    assert caches.recall(frozenset({1}), set(), 6, 200 * MS) == [("a", 1, (1,))]


def test_a_slow_answer_does_not_cost_a_client_that_goes_on() -> None:
    """1. Inode 1 is recalled at 0; the kernel of the client's host takes until 120 ms to let go. 2. Meanwhile the
    client's lease is extended, which it can only learn after the recall. 3. At 100 ms, when the lease would have ended,
    the message goes on. 4. The client still relies on inode 2: a message that touches it has to recall it."""
    caches = holding(("a", 1), ("a", 2))
    caches.recall(frozenset({1}), set(), 5, 0)
    epoch = caches.renew("a", 300 * MS)
    assert not caches.held(100 * MS)
    assert caches.recall(frozenset({2}), set(), 6, 110 * MS) == [("a", 2, (2,))]
    assert caches.renew("a", 300 * MS) == epoch


def test_everything_is_taken_when_the_replica_was_left_out() -> None:
    caches = holding(("a", 1), ("b", 2))
    caches.take_all()
    assert len(caches) == 0
    assert caches.renew("a", 100 * MS) == caches.renew("b", 100 * MS) == 2
    caches.validate()


def test_a_client_that_is_gone_may_use_its_lease_until_it_runs_out() -> None:
    caches = holding(("a", 1))
    assert not caches.gone("a", 50 * MS)
    assert caches.recall(frozenset({1}), set(), 5, 60 * MS) == [("a", 1, (1,))]
    assert caches.held(60 * MS) == {5}
    assert caches.gone("a", 100 * MS)
    assert not caches.held(60 * MS)
    assert caches.gone("a", 100 * MS) and not caches.has("a")
    caches.validate()


def test_who_holds_too_much_is_asked_to_let_go_of_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INODES_MAX", 4100)
    caches = holding(("a", 1))
    assert not caches.grant("a", frozenset(range(2, 5000)), 0)
    assert caches.too_full("a", 0) is None, "it holds one"
    assert caches.grant("a", frozenset(range(2, 4100)), 0)
    assert not caches.grant("a", frozenset({5000, 5001}), 0)
    assert caches.too_full("a", 0) == ("a", 1) and caches.too_full("a", 0) is None, "asked once"
    assert not caches.grant("a", frozenset({5000}), 0), "not before it has answered"
    assert not caches.held(0), "nobody waits for it"
    assert caches.recall(frozenset({2}), set(), 5, 0) == [("a", 2, (2,))], "until then its leases stand"
    caches.done("a", 1)
    assert len(caches) == 0 and caches.held(0) == {5}
    assert caches.grant("a", frozenset({5000}), 0)
    caches.validate()


@pytest.fixture
def room_for_eight(monkeypatch: pytest.MonkeyPatch) -> Caches[str]:
    """a has five leases, b three, and there is no room for more."""
    monkeypatch.setattr(module, "LEASES_MAX", 8)
    monkeypatch.setattr(module, "NEARLY", 1)
    return holding(*(("a", ino) for ino in range(5)), *(("b", ino) for ino in range(2, 5)))


def test_when_all_together_hold_too_much_the_largest_is_asked(room_for_eight: Caches[str]) -> None:
    caches = room_for_eight
    caches.renew("c", 100 * MS)
    assert not caches.grant("c", frozenset({9}), 0)
    assert caches.too_full("c", 0) == ("a", 1)
    assert caches.too_full("c", 10 * MS) is None, "it is given time"
    assert not caches.grant("c", frozenset({9}), 10 * MS)
    caches.done("a", 1)
    assert caches.grant("c", frozenset({9}), 20 * MS) and len(caches) == 4
    assert caches.recall(frozenset({2}), set(), 5, 20 * MS) == [("b", 1, (2,))], "what a let go of is not its any more"
    caches.validate()


def test_one_that_does_not_let_go_does_not_keep_the_others_from_keeping_anything(room_for_eight: Caches[str]) -> None:
    """It goes on to extend its lease without ever answering."""
    caches = room_for_eight
    assert caches.too_full("b", 0) == ("a", 1)
    for client in "abc":
        caches.renew(client, 1000 * MS)
    assert caches.too_full("c", module.LEASE_US) == ("b", 1)


def test_what_a_client_that_is_silent_holds_is_taken(room_for_eight: Caches[str]) -> None:
    caches = room_for_eight
    caches.renew("c", 300 * MS)
    assert caches.too_full("c", 100 * MS) is None
    assert caches.grant("c", frozenset({9}), 100 * MS) and len(caches) == 4
    assert caches.renew("a", 300 * MS) == 2
    caches.validate()


def test_leases_that_were_let_go_of_do_not_pile_up() -> None:
    """Each time the client asks for other inodes, and lets go of them as a whole, as one that is emptied does."""
    caches: Caches[str] = Caches()
    caches.renew("a", 100 * MS)
    for k in range(50):
        assert caches.grant("a", frozenset(range(k * 1000, (k + 1) * 1000)), 0)
        caches.take_all()
        caches.validate()
        assert len(caches._leases) <= module.NEARLY + 1000


class User:
    """A client as it sees itself: what has reached it, in order, and what it may use."""

    def __init__(self) -> None:
        self.inbox: deque[tuple[str, int, int | frozenset[int] | None]] = deque()
        self.kept: set[int] = set()
        self.until = 0
        self.epoch = 0
        self.told = 0
        """Recalls it has acted on; it may tell so later."""

    def receive(self) -> None:
        kind, number, what = self.inbox.popleft()
        if kind == "lease":
            if number != self.epoch:
                self.kept.clear()
            self.epoch = number
            assert isinstance(what, int)
            self.until = max(self.until, what)
        elif kind == "answer":
            assert isinstance(what, frozenset)
            self.kept |= what
        else:
            assert isinstance(what, frozenset)
            self.kept = self.kept - what if what else set()
            self.told = number


class Story:
    """Replica and three clients, with messages under way for any time: a message is executed only when no client
    but those it came from can still use what it touches."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.caches: Caches[User] = Caches()
        self.users = [User(), User(), User()]
        self.now = 1
        self.ticket = 0
        self.pending: dict[int, tuple[frozenset[int] | None, set[User]]] = {}
        self.executed = 0

    def some(self) -> frozenset[int]:
        return frozenset(self.rng.sample(range(1, 6), self.rng.randrange(1, 3)))

    def step(self) -> None:
        rng = self.rng
        user = rng.choice(self.users)
        kinds = ("renew", "ask", "ask", "message", "receive", "receive", "answer", "time", "time", "execute")
        match rng.choice(kinds):
            case "renew":
                until = self.now + rng.choice((0, 10, 50, 50))
                user.inbox.append(("lease", self.caches.renew(user, until), until))
            case "ask":
                inodes = self.some()
                pending = any(touched is None or touched & inodes for touched, _ in self.pending.values())
                if pending:
                    return
                if self.caches.grant(user, inodes, self.now):  # as mds.replica does
                    user.inbox.append(("answer", 0, inodes))
                elif (asked := self.caches.too_full(user, self.now)) is not None:
                    asked[0].inbox.append(("recall", asked[1], frozenset()))
            case "message":
                self.message(self.some() if rng.random() < 0.9 else None, {user} if rng.random() < 0.5 else set())
            case "receive":
                for _ in range(rng.randrange(len(user.inbox) + 1)):
                    user.receive()
            case "answer":
                if user.told:
                    self.caches.done(user, user.told)
            case "time":
                self.now += rng.choice((1, 5, 20))
                if rng.random() < 0.03 and self.caches.gone(user, self.now):
                    self.users[self.users.index(user)] = User()  # whoever comes next is another connection
            case "execute":
                self.execute()
        self.caches.validate()

    def message(self, touched: frozenset[int] | None, requesters: set[User]) -> None:
        self.ticket += 1
        self.pending[self.ticket] = (touched, requesters)
        for user, number, inodes in self.caches.recall(touched, requesters, self.ticket, self.now):
            user.inbox.append(("recall", number, frozenset(inodes)))

    def execute(self) -> None:
        held = self.caches.held(self.now)
        for ticket in [t for t in self.pending if t not in held]:
            touched, requesters = self.pending.pop(ticket)
            self.executed += 1
            for user in self.users:
                if user not in requesters and self.now < user.until:
                    used = user.kept if touched is None else user.kept & touched
                    assert not used, f"a client may use {set(used)} although message {ticket} is executed"


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("seed", range(30))
def test_no_client_can_use_what_an_executed_message_touches(
    seed: int, full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """*full*: there is room for few leases, so clients are made to let go of everything."""
    if full:
        monkeypatch.setattr(module, "LEASES_MAX", 7)
        monkeypatch.setattr(module, "INODES_MAX", 4)
        monkeypatch.setattr(module, "NEARLY", 1)
        monkeypatch.setattr(module, "LEASE_US", 10)
    story = Story(seed)
    for _ in range(1000):
        story.step()
    assert story.executed > 20, "the schedule was of some use"


def test_a_directory_called_back_for_its_contents_is_called_back_again_for_its_name() -> None:
    """One mount's kernel may use the name of a directory a moment longer; another mount makes a file in it, which does
    not wait for that, and then renames the directory, which must."""
    caches: Caches[str] = Caches()
    caches.renew("a", 100 * MS)
    assert caches.grant("a", frozenset({7}), 0)
    assert caches.recall(frozenset({7}), set(), 1, 10 * MS) == [("a", 1, (7,))]
    caches.done("a", 1)
    assert len(caches) == 0 and caches.any_held
    assert caches.recall(frozenset({7}), set(), 2, 20 * MS) == []
    assert caches.recall(frozenset({1, 7}), set(), 3, 20 * MS, frozenset({7})) == [("a", 2, (7,))]
    assert caches.held(20 * MS) == {3}
    assert caches.recall(frozenset({1, 7}), set(), 4, 100 * MS, frozenset({7})) == []
    caches.validate()

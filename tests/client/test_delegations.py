"""Which directories are delegated to a mount, which numbers it may use, and what it predicts of new files."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from client import limits
from client.attributes import Attr
from client.delegations import Clock, Delegations, Numbers, may, new_file
from wire.errors import WireError
from wire.ops import Cred

ROOT = Cred(0, 0, ())
USER = Cred(1000, 100, (20, 30))


def directory(ino: int = 5, mode: int = 0o40755, uid: int = 0, gid: int = 0, mtime: int = 7, ctime: int = 7) -> Attr:
    return Attr(ino, mode, 2, uid, gid, 0, 0, 1, mtime, ctime, None, (), 0, ino)


def given_back(known: Delegations, ino: int, first: int = 1000, count: int = 256, attr: Attr | None = None) -> bool:
    """Whether what Delegate of *ino* brings is given back."""
    known.asking[ino] = False
    return not known.answered(ino, (tuple(attr or directory(ino)), first, count, 4096, 10**9), 1.0, 5)


def test_the_third_file_within_a_second_asks() -> None:
    known = Delegations()
    assert [known.created(5, now) for now in (0.0, 0.5, 0.9)] == [False, False, True]
    known.asking[5] = False
    assert not known.created(5, 0.95), "once"
    slow = Delegations()
    assert not any(slow.created(5, now * 0.6) for now in range(9)), "one after the other, but none of them soon"
    for ino in range(2 * limits.BURSTS_MAX):
        slow.created(ino, 6.0)
    slow.validate()


def test_refused_again_soon_waits_twice_as_long() -> None:
    known = Delegations()
    now = 128.0
    pauses = []
    for _ in range(9):
        known.asking[5] = False
        assert known.answered(5, None, now, 0), "there is nothing to give back"
        pause = known._refused[5].until - now
        pauses.append(pause)
        assert not known.may_ask(5, now + pause - 0.01) and known.may_ask(5, now + pause)
        now += pause + 0.125
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    known.refused(5, now + 200)
    assert known._refused[5].pause == limits.REFUSED_FIRST_S, "long after the last one"
    known.refused(5, now + 200.5)
    assert known._refused[5].pause == limits.REFUSED_FIRST_S, "several at once are one"


def test_recall_while_the_answer_is_under_way() -> None:
    """1. Delegate is executed. 2. Somebody wants the directory: the recall overtakes the answer, or comes with the
    attachment after a failover. 3. The answer must not be used, and is given back."""
    known = Delegations()
    known.asking[5] = False
    assert known.take_back((5,)) == (), "which of the two the service would get first is not known"
    assert not known.answered(5, (tuple(directory()), 1000, 256, 4096, 10**9), 1.0, 5)
    assert 5 not in known.held and known.of(ROOT, 5) is None
    assert known.take_back((5,)) == (5,)
    assert not known.may_ask(5, 1e9) and known.take_back((5,)) == (), "it is under way"
    known.returned((5,))
    known.validate()


def test_more_numbers_for_one_that_is_called_back() -> None:
    known = Delegations()
    assert not given_back(known, 5)
    known.asking[5] = False
    assert known.take_back((5,)) == () and known.of(ROOT, 5) is None
    assert not known.answered(5, None, 1.0, 5), "refused, and still to be given back"
    assert known.take_back((5,)) == (5,)


def test_what_is_not_used() -> None:
    for attr in (
        directory(mtime=8, ctime=7),  # in the future: a new file would end that, here it only moves forward
        directory()._replace(acl=True),
        directory()._replace(quota=5),
    ):
        known = Delegations()
        assert given_back(known, 5, attr=attr) and not known.held and not known.may_ask(5, 1.5)
    known.asking[5] = False
    with pytest.raises(WireError):
        known.answered(5, (1, 2), 1.0, 5)


def test_unused_and_too_many() -> None:
    known = Delegations()
    for ino in range(1, limits.DELEGATED_MAX + 1):
        assert known.too_many() == ()
        assert not given_back(known, ino, first=1000 * ino, count=2)
    known.made(1, 3.5)
    assert known.too_many() == tuple(range(2, 2 + limits.DELEGATED_TOGETHER)), "1 was used last"
    assert known.unused(3.2) == tuple(range(2, limits.DELEGATED_MAX + 1))


def test_numbers_are_those_of_the_last_blocks() -> None:
    numbers = Numbers()
    for k in range(limits.NUMBER_BLOCKS + 2):
        numbers.add(1000 * k, 3)
    taken = [numbers.take() for _ in range(numbers.left)]
    assert [number for number, _ in taken] == [
        1000 * k + j for k in range(2, limits.NUMBER_BLOCKS + 2) for j in range(3)
    ]
    assert [block for _, block in taken] == sorted(block for _, block in taken) and numbers.left == 0
    oldest = taken[0][1]
    while numbers.may_grow(oldest):
        numbers.add(10**6, 1)
    # It is of one of the last 16 blocks even when everything that may be under way has come.
    assert numbers._given - oldest + limits.ASKING_MAX <= 16
    assert numbers.may_grow(0)


def test_a_block_that_we_were_not_told_of_counts_at_the_service() -> None:
    numbers = Numbers()
    numbers.add(100, 3)
    assert numbers.take()[0] == 100
    for _ in range(limits.NUMBER_BLOCKS - 1):
        numbers.missed()
    assert numbers.left == 2
    numbers.missed()
    assert numbers.left == 0, "the service is about to forget it"


@given(st.lists(st.tuples(st.sampled_from(("told", "was", "late", "now")), st.integers(-50, 50)), max_size=40))
def test_clock(steps: list[tuple[str, int]]) -> None:
    """Never before what is known to have been, and never back but when the service says that it was ahead."""
    clock, mine, last, floor = Clock(), 1000, 0, 0
    clock.told(5000, mine)
    for what, by in steps:
        mine += abs(by)
        match what:
            case "told":
                clock.told(5000 + mine + by, mine)
            case "was":
                clock.was(floor := 5000 + mine + by, mine)
                assert clock.now(mine, 0) >= floor
                last = clock.now(mine, 0)
            case "late":
                clock.too_late(abs(by))
                last = 0
            case "now":
                now = clock.now(mine, floor)
                assert now >= max(last, floor)
                last = now


@given(st.integers(0, 0o7777), st.sampled_from((0, 1000, 7)), st.sampled_from((0, 100, 20, 9)))
@settings(max_examples=200)
def test_rights_and_new_files_are_as_the_service_has_them(mode: int, uid: int, gid: int) -> None:
    from mds.namespace.inode import Inode
    from mds.namespace.perm import W, X, allowed, in_group

    attr = directory(mode=0o40000 | mode, uid=uid, gid=gid)
    inode = Inode(0o40000 | mode, 2, uid, gid, 0, 0, 1, 7, 7, None, (), 0, 0, 0, 0)
    for cred in (ROOT, USER, Cred(7, 9, ())):
        assert may(attr, cred, W | X) == allowed(inode, cred, W | X)
        for new in (0o644, 0o2755, 0o2745, 0o6777):
            made = new_file(attr, cred, new, 77, 4096, 123)
            assert (made.gid, made.uid) == (gid if mode & 0o2000 else cred.gid, cred.uid)
            cleared = mode & 0o2000 and new & 0o2010 == 0o2010 and cred.uid and not in_group(cred, gid)
            assert made.mode == 0o100000 | (new & ~0o2000 if cleared else new)
            assert (made.ino, made.objects, made.inline, made.atime_ns, made.ctime_ns) == (77, 77, 4096, 123, 123)


class Mount(RuleBasedStateMachine):
    """A mount and a service that executes what it is asked in any order that slots allow."""

    def __init__(self) -> None:
        super().__init__()
        self.known = Delegations()
        self.now = 0.0
        self.delegated: set[int] = set()
        """At the service."""
        self.recalled: set[int] = set()
        """There, and the mount has heard it."""
        self.under_way: list[tuple[str, int]] = []
        self.answers: list[tuple[str, int, bool]] = []
        self.next_number = 1000

    @rule(ino=st.integers(1, 3))
    def asks(self, ino: int) -> None:
        self.now += 0.7
        if self.known.may_ask(ino, self.now):
            self.known.asking[ino] = False
            self.under_way.append(("delegate", ino))

    @rule(inos=st.sets(st.integers(1, 3), min_size=1))
    def gives_back(self, inos: set[int]) -> None:
        for ino in self.known.take_back(tuple(inos)):
            self.under_way.append(("undelegate", ino))

    @rule(ino=st.integers(1, 3))
    def is_recalled(self, ino: int) -> None:
        if ino in self.delegated:
            self.recalled.add(ino)
            for one in self.known.take_back((ino,)):
                self.under_way.append(("undelegate", one))

    @precondition(lambda self: self.under_way)
    @rule(data=st.data())
    def is_executed(self, data: st.DataObject) -> None:
        what, ino = self.under_way.pop(data.draw(st.integers(0, len(self.under_way) - 1)))
        done = what == "undelegate" or ino not in self.recalled
        if what == "undelegate":
            self.delegated.discard(ino)
            self.recalled.discard(ino)
        elif done:
            self.delegated.add(ino)
        self.answers.append((what, ino, done))

    @precondition(lambda self: self.answers)
    @rule(data=st.data())
    def is_answered(self, data: st.DataObject) -> None:
        what, ino, done = self.answers.pop(data.draw(st.integers(0, len(self.answers) - 1)))
        if what == "undelegate":
            self.known.returned((ino,))
            return
        self.next_number += 256
        result = (tuple(directory(ino)), self.next_number, 256, 4096, 10**9) if done else None
        if not self.known.answered(ino, result, self.now, 5):
            self.gives_back({ino})

    @invariant()
    def what_is_used_is_ours(self) -> None:
        self.known.validate()
        for ino in self.known.held:
            assert ino in self.delegated and ino not in self.recalled

    @invariant()
    def what_is_ours_is_known(self) -> None:
        quiet = not self.under_way and not self.answers
        if quiet:
            assert self.delegated == set(self.known.held) and not self.known.returning and not self.known.asking


TestMount = Mount.TestCase
TestMount.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)

"""mds.handles: counts of open handles, and who was the last to let go."""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mds.handles import Handles


def test_the_last_close_says_so() -> None:
    handles = Handles()
    handles.open(1, 10)
    handles.open(1, 10)
    handles.open(2, 10)
    assert handles.close(1, 10, 2) is False
    assert handles.is_open(10)
    assert handles.close(2, 10, 1) is True
    assert not handles.is_open(10) and len(handles) == 0


def test_a_close_of_what_is_not_open_says_nothing() -> None:
    """A handle that another session holds, or that was counted at another replica."""
    handles = Handles()
    assert handles.close(1, 10, 1) is False
    handles.open(2, 10)
    assert handles.close(1, 10, 1) is False
    assert handles.is_open(10)


def test_more_closes_than_handles_are_not_taken_from_others() -> None:
    handles = Handles()
    handles.open(1, 10, 2)
    handles.open(2, 10)
    assert handles.close(1, 10, 5) is False
    assert handles.close(1, 10, 5) is False
    assert handles.close(2, 10, 5) is True


def test_a_declaration_replaces_what_was_counted() -> None:
    handles = Handles()
    handles.open(1, 10, 3)
    handles.open(1, 11)
    handles.open(1, 13)
    handles.open(2, 13)
    assert handles.declare(1, ((10, 1), (12, 2))) == [11]
    assert not handles.is_open(11)
    assert handles.close(1, 10, 1) is True
    assert handles.close(1, 12, 1) is False


def test_forgetting_a_session_names_what_nobody_has_open_any_more() -> None:
    handles = Handles()
    handles.open(1, 10)
    handles.open(1, 11)
    handles.open(2, 11)
    assert handles.forget(1) == [10]
    assert handles.forget(1) == []
    assert handles.sessions() == [2]


class AgainstCounts(RuleBasedStateMachine):
    """One counter for each session is all there is to it."""

    def __init__(self) -> None:
        super().__init__()
        self.handles = Handles()
        self.model: dict[int, Counter[int]] = {1: Counter(), 2: Counter(), 3: Counter()}

    def total(self, ino: int) -> int:
        return sum(held[ino] for held in self.model.values())

    @rule(session=st.integers(1, 3), ino=st.integers(1, 3), count=st.integers(1, 2))
    def opens(self, session: int, ino: int, count: int) -> None:
        self.handles.open(session, ino, count)
        self.model[session][ino] += count

    @rule(session=st.integers(1, 3), ino=st.integers(1, 3), count=st.integers(1, 4))
    def closes(self, session: int, ino: int, count: int) -> None:
        closed = min(count, self.model[session][ino])
        self.model[session][ino] -= closed
        assert self.handles.close(session, ino, count) == (closed > 0 and not self.total(ino))

    @rule(session=st.integers(1, 3), held=st.dictionaries(st.integers(1, 3), st.integers(1, 2)))
    def declares(self, session: int, held: dict[int, int]) -> None:
        before = self.model[session]
        self.model[session] = Counter(held)
        freed = self.handles.declare(session, tuple(held.items()))
        assert sorted(freed) == sorted(i for i, n in before.items() if n and not self.total(i))

    @rule(session=st.integers(1, 3))
    def forgets(self, session: int) -> None:
        gone = self.model[session]
        self.model[session] = Counter()
        assert sorted(self.handles.forget(session)) == sorted(i for i, n in gone.items() if n and not self.total(i))

    @invariant()
    def agrees(self) -> None:
        self.handles.validate()
        for ino in (1, 2, 3):
            assert self.handles.is_open(ino) == bool(self.total(ino))


AgainstCounts.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestAgainstCounts = AgainstCounts.TestCase

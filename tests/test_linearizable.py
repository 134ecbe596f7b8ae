"""The checker of histories, against histories judged by hand and by trying all orders."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import linearizable
from tests.linearizable import Model, Operation, SearchTooBig, check


class Register:
    """A number: ("write", v) answers None, ("read",) the value, ("add", n) the value before."""

    def initial(self) -> int:
        return 0

    def step(self, state: int, op: Operation) -> Iterable[int]:
        match op.what:
            case ("write", value):
                return (value,)
            case ("read",):
                return (state,) if op.ended is None or op.answer == state else ()
            case ("add", amount):
                return (state + amount,) if op.ended is None or op.answer == state else ()
        raise AssertionError(op.what)

    def reads(self, op: Operation) -> bool:
        return bool(op.what == ("read",))


def op(began: int, ended: int | None, *what: object, answer: object = None, client: int = 0) -> Operation:
    return Operation(client, what, began, ended, answer)


GOOD = {
    "nothing": [],
    "a read during a write sees the old value": [op(0, 5, "write", 1), op(1, 2, "read", answer=0)],
    "a read during a write sees the new value": [op(0, 5, "write", 1), op(1, 2, "read", answer=1)],
    "writes at one time, in the order the reads want": [
        op(0, 9, "write", 1), op(0, 9, "write", 2), op(10, 11, "read", answer=1),
    ],
    "an unknown write takes effect late": [
        op(0, None, "write", 7), op(1, 2, "read", answer=0), op(3, 4, "read", answer=7), op(5, 6, "read", answer=7),
    ],
    "an unknown write never takes effect": [op(0, None, "write", 7), op(1, 2, "read", answer=0)],
    "an end and a beginning at one instant overlap": [op(0, 3, "write", 1), op(3, 4, "read", answer=0)],
    "a write that changes nothing now is needed later": [
        op(0, 5, "write", 0), op(1, 5, "write", 1), op(6, 7, "read", answer=0),
    ],
    "two additions at one time": [op(0, 5, "add", 1, answer=2), op(0, 5, "add", 2, answer=0)],
}  # fmt: skip
BAD = {
    "a stale read": [op(0, 1, "write", 1), op(2, 3, "read", answer=0)],
    "a lost write": [op(0, 1, "write", 1), op(2, 3, "write", 2), op(4, 5, "read", answer=1)],
    "a write seen and unseen": [
        op(0, 9, "write", 1), op(1, 2, "read", answer=1), op(3, 4, "read", answer=0),
    ],
    "an unknown write seen and unseen": [
        op(0, None, "write", 1), op(1, 2, "read", answer=1), op(3, 4, "read", answer=0),
    ],
    "an unknown addition done twice": [op(0, None, "add", 1), op(1, 2, "read", answer=2)],
    "an addition done twice": [op(0, 3, "add", 1, answer=0), op(4, 5, "read", answer=2)],
    "a value nobody wrote": [op(0, 9, "write", 1), op(1, 2, "read", answer=3)],
    "two additions from one value": [op(0, 5, "add", 1, answer=0), op(0, 5, "add", 1, answer=0)],
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_a_history_with_an_order_passes(name: str) -> None:
    assert check(Register(), GOOD[name])


@pytest.mark.parametrize("name", BAD)
def test_a_history_without_one_is_found_and_the_operation_named(name: str) -> None:
    verdict = check(Register(), BAD[name])
    assert not verdict
    assert verdict.impossible in BAD[name]
    assert verdict.impossible is not None and verdict.impossible.ended is not None


def by_trying_all_orders(model: Model[int], history: Sequence[Operation]) -> bool:
    """The definition: some subset with every operation that ended, in some order that respects time."""
    unknown = [o for o in history if o.ended is None]
    known = [o for o in history if o.ended is not None]
    for count in range(len(unknown) + 1):
        for chosen in itertools.combinations(unknown, count):
            for order in itertools.permutations([*known, *chosen]):
                late = any(
                    b.ended is not None and b.ended < a.began
                    for k, a in enumerate(order) for b in order[k + 1 :]
                )  # fmt: skip
                if late:
                    continue
                states = {model.initial()}
                for one in order:
                    states = {after for state in states for after in model.step(state, one)}
                if states:
                    return True
    return False


@st.composite
def histories(draw: st.DrawFn) -> list[Operation]:
    made = []
    for client in range(draw(st.integers(1, 3))):
        at = 0
        for _ in range(draw(st.integers(0, 2))):
            began = at + draw(st.integers(1, 3))
            ended = began + draw(st.integers(0, 4))
            at = ended
            value = draw(st.integers(0, 1))
            what = draw(st.sampled_from([("write", value), ("read",), ("read",), ("add", 1)]))
            answer = None if what[0] == "write" else draw(st.integers(0, 2))
            unknown = draw(st.integers(0, 5)) == 0
            made.append(Operation(client, what, began, None if unknown else ended, answer))
            if unknown:
                break
    return made


@given(histories())
@settings(max_examples=500, deadline=None)
def test_the_search_agrees_with_the_definition(history: list[Operation]) -> None:
    assert bool(check(Register(), history)) == by_trying_all_orders(Register(), history)


def test_a_search_that_grows_beyond_its_bound_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dozens of clients died in one moment: every subset of what they asked may have happened, in any order."""
    monkeypatch.setattr(linearizable, "CONFIGURATIONS_MAX", 2000)
    history = [op(0, None, "write", 100 + k) for k in range(20)] + [op(0, 1, "read", answer=5)]
    with pytest.raises(SearchTooBig):
        check(Register(), history)

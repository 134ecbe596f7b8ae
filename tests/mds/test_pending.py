"""mds.pending: a query waits for exactly the messages that may change what it read."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mds.pending import ANYTHING, Key, Pending

A, B, C = (0, 1, 1), (0, 2, 1), (0, 1, 2)


def pending(*messages: tuple[Key, set[int] | None]) -> Pending:
    made = Pending()
    for key, touched in messages:
        made.add(key, None if touched is None else frozenset(touched))
    return made


@pytest.mark.parametrize(
    ("messages", "read", "waits"),
    [
        ([], {1}, []),
        ([(A, {1})], {1}, [A]),
        ([(A, {1})], {2}, []),
        ([(A, {1})], set(), []),
        ([(A, set())], {1}, []),
        ([(A, {1, 2}), (B, {2, 3}), (C, {3})], {2}, [A, B]),
        ([(A, {1}), (B, None)], {9}, [B]),
        ([(A, None), (B, {9})], {9}, [A, B]),
        ([(A, None)], set(), [A]),
        ([(A, {1}), (B, set()), (C, None)], {9, ANYTHING}, [A, B, C]),
        ([], {ANYTHING}, []),
    ],
)
def test_what_a_query_waits_for(messages: list[tuple[Key, set[int] | None]], read: set[int], waits: list[Key]) -> None:
    assert pending(*messages).conflicts(frozenset(read)) == waits


def test_an_applied_message_is_waited_for_no_longer() -> None:
    made = pending((A, {1}), (B, {1}), (C, None))
    made.remove(C)
    made.remove(A)
    assert made.conflicts(frozenset({1})) == [B]
    assert not made.has(A) and made.has(B) and made.keys() == {B} and len(made) == 1


def test_a_message_that_never_was_in_the_log_is_removed_harmlessly() -> None:
    """A learner is fed messages in their order; they are applied without having been pending."""
    made = pending((A, {1}))
    made.remove(B)
    assert made.keys() == {A}


def test_a_message_enters_once() -> None:
    made = pending((A, {1}))
    with pytest.raises(AssertionError):
        made.add(A, frozenset({1}))


def test_cleared_means_nothing_waits() -> None:
    made = pending((A, {1}), (B, None))
    made.clear()
    assert made.conflicts(frozenset({1})) == [] and len(made) == 0


touched_sets = st.none() | st.frozensets(st.integers(1, 6), max_size=4)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), touched_sets), max_size=30), st.frozensets(st.integers(1, 6), max_size=3))
def test_it_agrees_with_looking_at_every_message(
    steps: list[tuple[int, frozenset[int] | None]], read: frozenset[int]
) -> None:
    """A step names a message: if it is pending it is removed, else it enters."""
    made = Pending()
    model: dict[Key, frozenset[int] | None] = {}
    for number, touched in steps:
        key = (0, number, 1)
        if key in model:
            del model[key]
            made.remove(key)
        else:
            model[key] = touched
            made.add(key, touched)
        made.validate()
        assert made.conflicts(read) == [k for k, t in model.items() if t is None or t & read]
        assert made.keys() == set(model)

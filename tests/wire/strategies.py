"""Hypothesis strategies for messages, made from their type hints."""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from typing import Any

from hypothesis import strategies as st

from wire import codec
from wire.group import Accept, View

# Small numbers, the bounds that messages name, and a little beyond them.
_EDGES = (0, 1, 2, 255, 256, 4096, 65535, 65536, 2**31, 2**32 - 1, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
numbers = st.one_of(st.integers(0, 8), st.sampled_from(_EDGES), st.integers(-(2**63), 2**64 - 1))
blobs = st.one_of(*(st.binary(min_size=n, max_size=n) for n in (16, 32)), st.binary(max_size=40), st.just(b"name"))
texts = st.one_of(
    st.sampled_from(["client", "replica", "target", "mds", "main", "control", "leave", "links", "127.0.0.1:7001", ""]),
    st.text(max_size=20),
)


def of_hint(hint: Any) -> st.SearchStrategy[Any]:
    """Values of a field declared as *hint*."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, typing.NewType):
        return of_hint(hint.__supertype__)
    if origin is tuple:
        if len(args) == 2 and args[1] is Ellipsis:
            return st.lists(of_hint(args[0]), max_size=4).map(tuple)
        return st.tuples(*(of_hint(a) for a in args))
    if origin is dict:
        return st.dictionaries(of_hint(args[0]), of_hint(args[1]), max_size=3)
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*(of_hint(a) for a in args))
    if hint is type(None):
        return st.none()
    if hint is tuple:
        return st.tuples()
    if hint is bool:
        return st.booleans()
    if hint is int:
        return numbers
    if hint is bytes:
        return blobs
    if hint is str:
        return texts
    if hint is Any:
        return anything
    return of_class(hint)


def of_class(cls: type) -> st.SearchStrategy[Any]:
    """Messages of class *cls*, acceptable or not."""
    hints = typing.get_type_hints(cls, vars(sys.modules[cls.__module__]))
    fields = typing.cast(Any, cls).__dataclass_fields__
    made = st.builds(cls, **{name: of_hint(hints[name]) for name in fields})
    if cls is View:  # sorted ids and a base below the epoch: chance alone brings that about too seldom as well
        voters = st.lists(st.integers(1, 255), min_size=1, max_size=4, unique=True).map(lambda ids: tuple(sorted(ids)))
        proper = st.builds(View, st.integers(0, 2**40), voters, voters, st.just(-1), st.just(()), st.integers(0, 300))
        return st.one_of(made, proper)
    if cls is Accept:  # two fields of it must agree, which chance alone seldom brings about
        return st.one_of(made, made.map(lambda m: dataclasses.replace(m, epoch=m.value.epoch)))
    return made


anything = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, blobs, texts, st.floats(allow_nan=False)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(tuple), st.dictionaries(st.one_of(numbers, texts), inner, max_size=2)
    ),
    max_leaves=8,
)
"""Whatever msgpack can carry."""


@st.composite
def near_misses(draw: st.DrawFn) -> tuple[Any, ...]:
    """Something with a known tag and, mostly, the right number of fields, each as declared or anything."""
    cls = draw(st.sampled_from(codec.message_classes()))
    hints = typing.get_type_hints(cls, vars(sys.modules[cls.__module__]))
    fields = typing.cast(Any, cls).__dataclass_fields__
    known = set(codec.message_classes())
    parts: list[Any] = [typing.cast(Any, cls).TAG]
    for name in fields:
        if hints[name] in known:
            whole = of_class(hints[name]).map(codec.to_tuple)
            parts.append(draw(st.one_of(whole, anything)))
        else:
            parts.append(draw(st.one_of(of_hint(hints[name]), anything)))
    if draw(st.integers(0, 9)) == 0:
        parts.append(draw(anything))
    return tuple(parts)

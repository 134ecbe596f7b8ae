"""Pure. Messages as msgpack: every option of msgpack that we rely on is set here and nowhere else.

A message class is a frozen, slotted dataclass made with ``@message(tag)``.  On the wire it is the array
``[tag, field, field, ...]``.  Fields are ints, bytes, str, bool, None, tuples of these, or other messages
(declared as such).  ``invalid()`` of a message returns the reason it is not acceptable, or None; it is
called once, by :func:`decode`, where bytes become a message.
"""

from __future__ import annotations

import dataclasses
import sys
import typing
from collections.abc import Callable
from operator import attrgetter
from typing import Any, ClassVar, Protocol, TypeVar, dataclass_transform

import msgpack

from wire.errors import WireError

T = TypeVar("T")


class Message(Protocol):
    TAG: ClassVar[int]

    def invalid(self) -> str | None: ...


_packer = msgpack.Packer(use_bin_type=True, autoreset=True)


def pack(value: object) -> bytes:
    """*value* (ints, bytes, str, bool, None, lists or tuples, dicts of these) as msgpack."""
    return typing.cast(bytes, _packer.pack(value))


def unpack_untrusted(data: bytes | memoryview) -> Any:
    """The value packed in *data*; arrays come back as tuples. Raises :class:`WireError`."""
    try:
        return msgpack.unpackb(
            data,
            use_list=False,
            raw=False,
            strict_map_key=False,
        )
    except (ValueError, RecursionError, msgpack.UnpackException) as exc:
        # ValueError covers msgpack's FormatError, StackError, ExtraData and UnicodeDecodeError.
        raise WireError(f"not msgpack: {type(exc).__name__}: {exc}") from exc


_by_tag: dict[int, type] = {}
_plan: dict[type, tuple[Callable[[Any], Any], tuple[tuple[int, type], ...], int, tuple[Any, ...]]] = {}


@dataclass_transform(frozen_default=True)
def message(tag: int) -> Callable[[type[T]], type[T]]:
    """Class decorator: a frozen slotted dataclass known on the wire by *tag* (unique in the program)."""

    def make(cls: type[T]) -> type[T]:
        made: type[T] = dataclasses.dataclass(frozen=True, slots=True)(cls)
        if tag in _by_tag:
            raise AssertionError(f"wire tag {tag} is taken by {_by_tag[tag].__name__}")
        made.TAG = tag  # type: ignore[attr-defined]
        if not hasattr(made, "invalid"):
            raise AssertionError(f"{made.__name__} has no invalid()")
        _by_tag[tag] = made
        return made

    return make


def _plan_of(cls: type) -> tuple[Callable[[Any], Any], tuple[tuple[int, type], ...], int, tuple[Any, ...]]:
    """(field getter, [(position, nested class)], number of fields, checks), worked out at first use."""
    plan = _plan.get(cls)
    if plan is None:
        hints = typing.get_type_hints(cls, vars(sys.modules[cls.__module__]))
        fields = dataclasses.fields(cls)
        names = [f.name for f in fields]
        known = set(_by_tag.values())
        nested = tuple((k, hints[n]) for k, n in enumerate(names) if isinstance(hints[n], type) and hints[n] in known)
        checks = tuple(_check_of(hints[n]) for n in names)
        if not names:
            getter: Callable[[Any], Any] = lambda m: ()  # noqa: E731 - a table entry, not a function to name
        elif len(names) == 1:
            one = attrgetter(names[0])
            getter = lambda m: (one(m),)  # noqa: E731
        else:
            getter = attrgetter(*names)
        plan = _plan[cls] = (getter, nested, len(names), checks)
    return plan


def _check_of(hint: Any) -> Any:
    """What isinstance() must hold for a field declared as *hint* (containers are checked by invalid())."""
    origin = typing.get_origin(hint)
    if isinstance(hint, typing.NewType):
        return _check_of(hint.__supertype__)
    if origin is tuple:
        return tuple
    if origin is dict:
        return dict
    if origin is typing.Union or type(hint).__name__ == "UnionType":
        kinds: list[type] = []
        for arg in typing.get_args(hint):
            kind = _check_of(arg)
            kinds.extend(kind if isinstance(kind, tuple) else (kind,))
        return tuple(kinds)
    if hint is Any:
        return object
    if not isinstance(hint, type):
        raise AssertionError(f"field type {hint!r} is not one the wire knows")
    return hint


def to_tuple(msg: Any) -> tuple[Any, ...]:
    """*msg* as the tuple ``(tag, field, ...)`` that :func:`pack` takes."""
    getter, nested, _, _ = _plan_of(type(msg))
    values = getter(msg)
    if nested:
        fields = list(values)
        for k, _cls in nested:
            fields[k] = to_tuple(fields[k])
        values = fields
    return (msg.TAG, *values)


def encode(msg: Any) -> bytes:
    """*msg* as msgpack bytes."""
    return pack(to_tuple(msg))


def from_tuple_untrusted(parts: Any) -> Any:
    """The message that ``(tag, field, ...)`` stands for, checked. Raises :class:`WireError`."""
    if type(parts) is not tuple or not parts or type(parts[0]) is not int:
        raise WireError("not a message: no leading tag")
    cls = _by_tag.get(parts[0])
    if cls is None:
        raise WireError(f"unknown message tag {parts[0]}")
    _, nested, count, checks = _plan_of(cls)
    if len(parts) != count + 1:
        raise WireError(f"{cls.__name__}: {len(parts) - 1} fields, {count} expected")
    values: Any = parts[1:]
    if nested:
        fields = list(values)
        for k, kind in nested:
            inner = from_tuple_untrusted(fields[k])
            if type(inner) is not kind:
                raise WireError(f"{cls.__name__}: field {k} is a {type(inner).__name__}, not a {kind.__name__}")
            fields[k] = inner
        values = fields
    for value, check in zip(values, checks, strict=True):
        if not isinstance(value, check) or (value.__class__ is bool and check is int):
            raise WireError(f"{cls.__name__}: a {type(value).__name__} where {check} belongs")
    msg = cls(*values)
    reason = msg.invalid()
    if reason is not None:
        raise WireError(f"{cls.__name__}: {reason}")
    return msg


def decode(data: bytes | memoryview) -> Any:
    """The message in *data*. Raises :class:`WireError` with the reason when it is none of ours."""
    return from_tuple_untrusted(unpack_untrusted(data))

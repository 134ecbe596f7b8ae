"""Pure. Messages as msgpack: every option of msgpack that we rely on is set here and nowhere else.

A message class is a frozen, slotted dataclass made with ``@message(tag)``.  On the wire it is the array
``[tag, field, field, ...]``.  Fields are ints, bytes, str, bool, None, tuples of these, or other messages
(declared as such).  ``invalid()`` of a message returns the reason it is not acceptable, or None; it is
called once, by :func:`decode`, where bytes become a message.
"""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from collections.abc import Callable
from operator import attrgetter
from typing import Any, ClassVar, Final, Protocol, TypeVar, dataclass_transform

import msgpack

from wire.errors import BadMessage, WireError

T = TypeVar("T")


class Message(Protocol):
    TAG: ClassVar[int]

    def invalid(self) -> str | None: ...


_packer = msgpack.Packer(use_bin_type=True, autoreset=True)


pack: Final[Callable[[object], bytes]] = _packer.pack
"""Its argument (ints, bytes, str, bool, None, lists or tuples, dicts of these) as msgpack."""


def unpack_untrusted(data: bytes | bytearray | memoryview) -> Any:
    """The value packed in *data*; arrays come back as tuples. Raises :class:`WireError`."""
    try:
        return msgpack.unpackb(
            data,
            use_list=False,
            raw=False,
            strict_map_key=False,
        )
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as exc:
        # ValueError covers msgpack's FormatError, StackError, ExtraData and UnicodeDecodeError; TypeError is a
        # map's key that cannot be one.
        raise WireError(f"not msgpack: {type(exc).__name__}: {exc}") from exc


_by_tag: dict[int, type] = {}
_plans: dict[type, _Plan] = {}
_plans_by_tag: dict[int, _Plan] = {}


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


def message_classes() -> tuple[type, ...]:
    """Every message class of the modules imported so far, by tag."""
    return tuple(_by_tag[tag] for tag in sorted(_by_tag))


# --- plans ----------------------------------------------------------------------------------------


class _Plan:
    """How to take messages of one class apart and put them together, worked out at first use."""

    __slots__ = ("cls", "fields", "fits", "getter", "kinds", "nested", "size")

    def __init__(self, cls: type) -> None:
        hints = typing.get_type_hints(cls, vars(sys.modules[cls.__module__]))
        self.cls = cls
        self.fields = [f.name for f in dataclasses.fields(cls)]
        self.size = len(self.fields) + 1
        known = set(_by_tag.values())
        self.nested = tuple((k, hints[n]) for k, n in enumerate(self.fields, 1) if hints[n] in known)
        """((position in the wire's tuple, message class), ...)"""
        self.kinds = [_kinds_of(hints[n]) for n in self.fields]
        """Per field the classes its value may have; none: any."""
        self.fits = _compiled(self.fields, self.kinds)
        _quicken(cls, self.fields)
        if not self.fields:
            self.getter: Callable[[Any], Any] = lambda m: ()
        elif len(self.fields) == 1:
            one = attrgetter(self.fields[0])
            self.getter = lambda m: (one(m),)
        else:
            self.getter = attrgetter(*self.fields)


def _quicken(cls: type, fields: list[str]) -> None:
    """Give *cls* a constructor that does the same in half the time: that of a frozen dataclass finds each slot anew,
    by name, and several messages are made for every request."""
    names = {f"set_{name}": getattr(cls, name).__set__ for name in fields}
    given = vars(cls)["__init__"].__defaults__
    body = "; ".join(f"set_{name}(self, {name})" for name in fields) or "pass"
    exec(f"def __init__({', '.join(['self', *fields])}): {body}", names)
    names["__init__"].__defaults__ = given
    cls.__init__ = names["__init__"]  # type: ignore[misc]


def _plan_of(cls: type) -> _Plan:
    plan = _plans.get(cls)
    if plan is None:
        plan = _plans[cls] = _plans_by_tag[cls.TAG] = _Plan(cls)  # type: ignore[attr-defined]
    return plan


def _kinds_of(hint: Any) -> tuple[type, ...]:
    """The classes a field declared as *hint* may have (what is inside of containers is checked by invalid())."""
    origin = typing.get_origin(hint)
    if isinstance(hint, typing.NewType):
        return _kinds_of(hint.__supertype__)
    if origin in (tuple, dict):
        return (origin,)
    if origin in (typing.Union, types.UnionType):
        return tuple(kind for arg in typing.get_args(hint) for kind in _kinds_of(arg))
    if hint is Any:
        return ()
    if not isinstance(hint, type):
        raise AssertionError(f"field type {hint!r} is not one the wire knows")
    return (hint,)


def _compiled(fields: list[str], kinds: list[tuple[type, ...]]) -> Callable[..., bool]:
    """One function of all fields: has each a class it may have? (As one expression it is several times as fast
    as a loop, and every message passes here. bool is not int: classes are compared, not asked isinstance.)"""
    names: dict[str, Any] = {}
    terms = []
    for name, allowed in zip(fields, kinds, strict=True):
        for kind in allowed:
            names[f"is_{kind.__name__}"] = kind
        if allowed:
            terms.append("(" + " or ".join(f"type({name}) is is_{kind.__name__}" for kind in allowed) + ")")
    made: Callable[..., bool] = eval(f"lambda {', '.join(fields)}: {' and '.join(terms) or 'True'}", names)
    return made


# --- messages as bytes ----------------------------------------------------------------------------


def to_tuple(msg: Any) -> tuple[Any, ...]:
    """*msg* as the tuple ``(tag, field, ...)`` that :func:`pack` takes."""
    plan = _plan_of(type(msg))
    values = (msg.TAG, *plan.getter(msg))
    if plan.nested:
        parts = list(values)
        for k, _cls in plan.nested:
            parts[k] = to_tuple(parts[k])
        return tuple(parts)
    return values


def encode(msg: Any) -> bytes:
    """*msg* as msgpack bytes."""
    return pack(to_tuple(msg))


def from_tuple_untrusted(parts: Any) -> Any:
    """The message that ``(tag, field, ...)`` stands for, checked.

    Raises :class:`WireError`; its :class:`BadMessage` when at least the tag is known.
    """
    if type(parts) is not tuple or not parts or type(parts[0]) is not int:
        raise WireError("not a message: no leading tag")
    plan = _plans_by_tag.get(parts[0])
    if plan is None:
        cls = _by_tag.get(parts[0])
        if cls is None:
            raise WireError(f"unknown message tag {parts[0]}")
        plan = _plan_of(cls)
    if len(parts) != plan.size:
        raise _bad(plan, parts, f"{len(parts) - 1} fields, {plan.size - 1} expected")
    values: Any = parts[1:]
    if plan.nested:
        values = list(values)
        for k, _kind in plan.nested:
            try:
                values[k - 1] = from_tuple_untrusted(parts[k])
            except WireError as exc:
                raise _bad(plan, parts, f"field {plan.fields[k - 1]}: {exc}") from exc
    if not plan.fits(*values):
        raise _bad(plan, parts, _misfit(plan, values))
    msg = plan.cls(*values)
    reason = msg.invalid()
    if reason is not None:
        raise _bad(plan, parts, reason)
    return msg


def _misfit(plan: _Plan, values: Any) -> str:
    for name, value, kinds in zip(plan.fields, values, plan.kinds, strict=True):
        if kinds and type(value) not in kinds:
            return f"field {name} is {type(value).__name__}, not {' or '.join(k.__name__ for k in kinds)}"
    raise AssertionError("the compiled check and the loop disagree")


def _bad(plan: _Plan, parts: tuple[Any, ...], what: str) -> BadMessage:
    call = parts[1] if plan.fields[:1] == ["call"] and len(parts) > 1 else None
    answerable = type(call) is int and 0 <= call < 2**63
    return BadMessage(f"{plan.cls.__name__}: {what}", call if answerable else None)


def decode(data: bytes | bytearray | memoryview) -> Any:
    """The message in *data*. Raises :class:`WireError` with the reason when it is none of ours."""
    return from_tuple_untrusted(unpack_untrusted(data))

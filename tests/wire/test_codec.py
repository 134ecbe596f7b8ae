"""Messages as bytes: every class comes back as it went, and no bytes whatever do anything but WireError."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st

# Importing a module makes its messages known.
import wire.group
import wire.inline
import wire.mending
import wire.messages
import wire.ops
import wire.quotaops
import wire.storage
import wire.targetops  # noqa: F401
from tests.wire.strategies import anything, near_misses, of_class
from wire import codec
from wire.errors import BadMessage, WireError
from wire.messages import Answer, Hello, ObjectKey, ObjectRead, ObjectWrite, Ping
from wire.ops import Create, Cred, StatFs, TargetSet
from wire.roster import ReplicaSet

CLASSES = codec.message_classes()
EXAMPLES = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_round_trip(cls: type) -> None:
    """What invalid() accepts comes back equal; what it does not is refused, with that reason."""

    @EXAMPLES
    @given(of_class(cls))
    def check(msg: Any) -> None:
        reason = msg.invalid()
        data = codec.encode(msg)
        if reason is None and _all_accepted(msg):
            assert codec.decode(data) == msg
            assert codec.decode(bytearray(data)) == msg
            assert codec.decode(memoryview(data)) == msg
        else:
            with pytest.raises(BadMessage):
                codec.decode(data)

    check()


def _all_accepted(msg: Any) -> bool:
    parts = [getattr(msg, name) for name in msg.__dataclass_fields__]
    return all(part.invalid() is None for part in parts if hasattr(part, "TAG"))


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_each_class_has_an_acceptable_message(cls: type) -> None:
    """Else the round trip above would check refusals only."""
    found = find(
        of_class(cls),
        lambda msg: bool(msg.invalid() is None and _all_accepted(msg)),
        settings=settings(max_examples=3000, deadline=None, derandomize=True, phases=[Phase.generate]),
    )
    assert codec.decode(codec.encode(found)) == found


def test_tags_are_unique_and_stay() -> None:
    """A tag is part of the protocol: these are spot checks that nobody renumbers."""
    tags = [cls.TAG for cls in CLASSES]  # type: ignore[attr-defined]
    assert len(set(tags)) == len(tags)
    assert (Hello.TAG, Answer.TAG, Create.TAG, ObjectWrite.TAG) == (1, 6, 32, 101)  # type: ignore[attr-defined]


def test_a_tag_is_given_once() -> None:
    with pytest.raises(AssertionError, match="taken by Hello"):

        @codec.message(1)
        class Another:
            def invalid(self) -> str | None:
                return None


# --- bytes from strangers -------------------------------------------------------------------------


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.binary(max_size=200))
def test_garbage(data: bytes) -> None:
    _only_wire_errors(data)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(anything)
def test_values_that_are_no_messages(value: Any) -> None:
    _only_wire_errors(codec.pack(value))


@settings(max_examples=600, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(near_misses())
def test_nearly_messages(parts: tuple[Any, ...]) -> None:
    """The tag is known and the fields are nearly right: invalid() must cope with whatever it is given."""
    _only_wire_errors(codec.pack(parts))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_bytes_changed_on_the_way(data: st.DataObject) -> None:
    cls = data.draw(st.sampled_from(CLASSES))
    whole = bytearray(codec.encode(data.draw(of_class(cls))))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    _only_wire_errors(bytes(whole[: data.draw(st.integers(0, len(whole)))]))


def _only_wire_errors(data: bytes) -> None:
    try:
        msg = codec.decode(data)
    except WireError:
        return
    assert type(msg) in CLASSES
    assert msg.invalid() is None


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "not msgpack"),
        (b"\xc1", "not msgpack"),
        (b"\x93\x01", "not msgpack"),
        (b"\x01\x01", "not msgpack"),
        (b"\xdd\xff\xff\xff\xff", "not msgpack"),
        (b"\xc6\xff\xff\xff\xff", "not msgpack"),
        (b"\x91" * 5000 + b"\x01", "not msgpack"),
        (b"\x81\x80\x01", "not msgpack"),
        (b"\x91\xa1\xff", "not msgpack"),
        (b"\x01", "no leading tag"),
        (b"\x90", "no leading tag"),
        (b"\x91\xc3", "no leading tag"),
        (b"\x91\xcd\xff\xff", "unknown message tag 65535"),
        (msgpack.packb((11,)), "Ping: 0 fields, 1 expected"),
        (msgpack.packb((11, 1, 2)), "Ping: 2 fields, 1 expected"),
        (msgpack.packb((11, True)), "Ping: field number is bool, not int"),
        (msgpack.packb((11, 1.0)), "Ping: field number is float, not int"),
        (msgpack.packb((11, None)), "Ping: field number is NoneType, not int"),
        (msgpack.packb((11, -1)), "Ping: number"),
        (msgpack.packb((11, msgpack.ExtType(5, b"x"))), "Ping: field number is ExtType, not int"),
        (msgpack.packb((105, 1, 5, 1, 1, b"")), "ObjectSync: field key: not a message"),
        (msgpack.packb((105, 1, (100, 5, -1), 1, 1, b"")), "ObjectSync: field key: ObjectKey: object 5.-1"),
        (msgpack.packb((105, 1, (11, 5), 1, 1, b"")), "ObjectSync: field key is Ping, not ObjectKey"),
    ],
)
def test_reasons(data: bytes, why: str) -> None:
    """The reason is for the operator who reads the log: it names the message, the field and what is wrong."""
    with pytest.raises(WireError, match=why.replace("(", r"\(")):
        codec.decode(data)


@pytest.mark.parametrize(
    ("parts", "call"),
    [
        ((102, 77, (100, 5, 0), 1, 1, ((1, -1),), 0, 10, b""), 77),  # a truncation that is none
        ((102, 77, (100, 0, 0), 1, 1, (), 0, 10, b""), 77),  # an object that cannot be
        ((102, 77), 77),  # too few fields
        ((102, True, (100, 5, 0), 1, 1, (), 0, 10, b""), None),
        ((102, -1, (100, 5, 0), 1, 1, (), 0, -10, b""), None),
        ((102,), None),
        ((11, -5), None),  # a Ping has no call
    ],
)
def test_a_bad_message_can_be_answered(parts: tuple[Any, ...], call: int | None) -> None:
    """Whoever waits for an answer gets BAD_MESSAGE instead of a broken connection, if we can tell the call."""
    with pytest.raises(BadMessage) as caught:
        codec.decode(codec.pack(parts))
    assert caught.value.call == call


def test_messages_without_fields_and_nested_ones() -> None:
    assert codec.decode(codec.encode(StatFs())) == StatFs()
    create = Create(Cred(1, 2, (3, 4)), 1, b"n", 0o100644)
    assert codec.to_tuple(create) == (32, (20, 1, 2, (3, 4)), 1, b"n", 0o100644)
    assert codec.decode(codec.encode(create)) == create
    read = ObjectRead(1, ObjectKey(2, 3), 4, 5, ((6, 7),), 8, 9, b"t")
    assert codec.to_tuple(read) == (102, 1, (100, 2, 3), 4, 5, ((6, 7),), 8, 9, b"t")
    assert codec.decode(codec.encode(Ping(2**64 - 1))) == Ping(2**64 - 1)


@pytest.mark.parametrize("port", ["²", "1" * 5000, "", "0", "65536", "-1"])
def test_an_address_that_is_none_is_a_bad_message(port: str) -> None:
    """Whatever error it is to int(): to who decodes it is one of the wire, or it ends a daemon."""
    tags = [(TargetSet, (1, f"host:{port}", bytes(16))), (ReplicaSet, (1, f"host:{port}", "me"))]
    for cls, fields in tags:
        with pytest.raises(BadMessage, match="is not HOST:PORT"):
            codec.from_tuple_untrusted((cls.TAG, *fields))  # type: ignore[attr-defined]

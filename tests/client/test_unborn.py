"""What has to wait for which files that the service does not know yet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

import pytest

from client.unborn import _OF_A_NAME, _OF_AN_INODE, _OF_NONE, Unborn
from wire import fileops, inline, ops, quotaops

CRED = ops.Cred(0, 0, ())


@dataclass(frozen=True)
class Made:
    ino: int
    parent: int
    name: bytes


def three() -> tuple[Unborn[Made], list[Made]]:
    unborn: Unborn[Made] = Unborn()
    files = [Made(100, 5, b"a"), Made(101, 5, b"b"), Made(102, 6, b"a")]
    for file in files:
        unborn.add(file)
        unborn.validate()
    return unborn, files


@pytest.mark.parametrize(
    ("op", "waits"),
    [
        (ops.Lookup(CRED, 5, b"a"), {100}),
        (ops.Lookup(CRED, 5, b"c"), set()),
        (ops.Lookup(CRED, 102, b"c"), {102}),
        (ops.Unlink(CRED, 6, b"a"), {102}),
        (ops.Create(CRED, 6, b"b", 0o644), set()),
        (ops.Link(CRED, 101, 9, b"x"), {101}),
        (ops.Link(CRED, 9, 5, b"a"), {100}),
        (ops.GetAttr(101), {101}),
        (ops.GetAttr(5), {100, 101}),
        (ops.GetAttr(7), set()),
        (ops.Open(CRED, 102, 0), {102}),
        (ops.SetAttr(CRED, 6, 0, 0, 0, 0, 0, 0, 0, False), {102}),
        (ops.SetXattr(CRED, 5, b"user.a", b"", 0), {100, 101}),
        (inline.WriteInline(100, ((0, b"x"),), 1), {100}),
        (fileops.Reserve(101, 1, 0), {101}),
        (ops.Accessed(((9, 1), (101, 1))), {101}),
        (ops.Rename(CRED, 8, b"a", 8, b"b", 0), {100, 101, 102}),
        (ops.Rmdir(CRED, 4, b"d"), {100, 101, 102}),
        (ops.ReadDir(CRED, 9, 0, 10), {100, 101, 102}),
        (ops.StatFs(), {100, 101, 102}),
        (quotaops.Tally(CRED, 1, 0), {100, 101, 102}),
        (ops.StorageMap(), set()),
    ],
)
def test_what_waits_for_what(op: Any, waits: set[int]) -> None:
    unborn, files = three()
    assert {file.ino for file in unborn.before(op)} == waits
    for file in files:
        unborn.remove(file)
        unborn.validate()
    assert not unborn.before(op) and unborn.named(op) is None and not unborn


def test_names_of_a_rename_are_waited_for_again() -> None:
    unborn, files = three()
    assert unborn.named(ops.Rename(CRED, 6, b"a", 5, b"b", 0)) is files[2]
    assert unborn.named(ops.Rename(CRED, 7, b"x", 5, b"b", 0)) is files[1]
    assert unborn.named(ops.Rename(CRED, 7, b"x", 7, b"y", 0)) is None
    assert unborn.named(ops.Rmdir(CRED, 5, b"a")) is files[0]


def test_every_kind_has_the_fields_that_are_looked_at() -> None:
    for kind in _OF_AN_INODE:
        assert "ino" in kind.__slots__ and "parent" not in kind.__slots__, kind
    for kind in _OF_A_NAME:
        assert {"parent", "name"} <= set(kind.__slots__), kind
    assert not _OF_NONE & (_OF_A_NAME | _OF_AN_INODE)
    assert set(get_args(inline.InlineRequest)) < _OF_AN_INODE

"""Which reads move atime, and what is told of them."""

from __future__ import annotations

from client import limits
from client.accesses import DAY_NS, Accesses, moves_atime
from client.attributes import Attr
from wire import ops

NOW = 10**18


def attr(ino: int = 5, atime: int = 0, mtime: int = 0, ctime: int = 0) -> Attr:
    return Attr(ino, 0o100644, 1, 0, 0, 0, 0, atime, mtime, ctime, None, (), 0, ino)


def test_relatime() -> None:
    """mount(8): "if it is earlier than or equal to the modification or change time", or older than a day."""
    assert moves_atime(attr(atime=NOW, mtime=NOW, ctime=0), NOW)
    assert moves_atime(attr(atime=NOW, mtime=0, ctime=NOW), NOW)
    assert not moves_atime(attr(atime=NOW, mtime=NOW - 1, ctime=NOW - 1), NOW + DAY_NS - 1)
    assert moves_atime(attr(atime=NOW, mtime=NOW - 1, ctime=NOW - 1), NOW + DAY_NS)


def test_the_last_read_of_each_file_is_told_once() -> None:
    accesses = Accesses()
    assert accesses.take() is None
    accesses.note(attr(7), NOW)
    accesses.note(attr(5), NOW + 1)
    accesses.note(attr(7), NOW + 2)
    accesses.note(attr(9, atime=NOW), NOW)
    assert accesses.take() == ops.Accessed(((5, NOW + 1), (7, NOW + 2)))
    assert accesses.take() is None


def test_a_slow_clock_does_not_put_a_read_before_the_change_it_saw() -> None:
    accesses = Accesses()
    accesses.note(attr(5, ctime=NOW + 99), NOW)
    assert accesses.take() == ops.Accessed(((5, NOW + 100),))


def test_who_sets_atime_ends_what_was_read_before() -> None:
    accesses = Accesses()
    accesses.note(attr(5), NOW)
    accesses.forget(5)
    assert 5 not in accesses
    assert accesses.take() is None


def test_both_bounds_hold() -> None:
    accesses = Accesses()
    for ino in range(1, limits.ACCESSES_MAX + 10):
        accesses.note(attr(ino), NOW)
    assert len(accesses) == limits.ACCESSES_MAX
    told = accesses.take()
    assert told is not None
    assert len(told.files) == ops.ACCESSED_MAX
    assert told.invalid() is None
    assert len(accesses) == limits.ACCESSES_MAX - ops.ACCESSED_MAX

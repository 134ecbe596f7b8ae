"""What a mount lets files grow by, and how it adds up what lies below a directory; the service is a table here."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Any

import pytest
from trio.testing import MockClock

from client import limits
from client.attributes import Attr
from client.quotas import Rooms, below, usage
from wire.errors import FileSystemError
from wire.ops import Cred
from wire.quotaops import QuotaRoom, Tally

ME = Cred(1, 1, ())


@dataclass
class File:
    attr: Attr
    size: int


def file(committed: int, size: int, root: int = 7) -> File:
    return File(Attr(99, 0o100644, 1, 0, 0, 0, committed, 0, 0, 0, None, (), 0, 99, root), size)


class Service:
    def __init__(self, *rooms: int | None) -> None:
        self.rooms = list(rooms)
        self.asked = 0

    async def ask(self, op: Any) -> Any:
        assert op == QuotaRoom(7)
        self.asked += 1
        return self.rooms.pop(0)


async def test_what_is_known_is_used_up_before_it_is_asked_again(autojump_clock: MockClock) -> None:
    service = Service(100, 30, 29)
    rooms = Rooms(service.ask, lambda: ())
    await rooms.claim(7, 60)
    await rooms.claim(7, 40)
    await rooms.claim(7, 0)
    assert service.asked == 1
    await rooms.claim(7, 30)  # somebody has removed something
    assert service.asked == 2
    with pytest.raises(FileSystemError) as refused:
        await rooms.claim(7, 30)
    assert refused.value.status == errno.EDQUOT


async def test_what_is_written_and_not_committed_is_deducted() -> None:
    service = Service(100)
    rooms = Rooms(service.ask, lambda: (file(10, 50), file(0, 1000, root=8), file(50, 50)))
    with pytest.raises(FileSystemError):
        await rooms.claim(7, 61)
    service.rooms = [100]
    await rooms.claim(7, 60)


async def test_no_limit_is_asked_once_in_a_while(autojump_clock: MockClock) -> None:
    service = Service(None, None)
    rooms = Rooms(service.ask, lambda: ())
    for _ in range(3):
        await rooms.claim(7, 1 << 40)
    assert service.asked == 1
    autojump_clock.jump(limits.QUOTA_ROOM_AGE_S + 0.1)
    await rooms.claim(7, 1)
    assert service.asked == 2


class Tree:
    """Pages of Tally by (directory, cookie)."""

    def __init__(self, pages: dict[tuple[int, int], Any]) -> None:
        self.pages = pages

    async def ask(self, op: Any) -> Any:
        assert isinstance(op, Tally) and op.cred == ME
        page = self.pages.get((op.ino, op.cookie))
        if page is None:
            raise FileSystemError(errno.ESTALE)
        if isinstance(page, int):
            raise FileSystemError(page)
        return page


async def test_directories_are_gone_through_and_hard_links_count_once() -> None:
    tree = Tree({
        (1, 0): (10, 1, 1, (2,), ((50, 5),), 20, False),
        (1, 20): (1, 1, 2, (3, 4), (), 30, True),
        (2, 0): (100, 2, 0, (), ((50, 5), (51, 6)), 40, True),
        (3, 0): (1000, 1, 0, (), (), 50, True),
    })  # fmt: skip
    assert await below(tree.ask, ME, 1) == (10 + 1 + 100 + 1000 + 5 + 6, 7, 3)  # 4 was removed meanwhile
    assert await usage(tree.ask, ME, 1, b"lockstep.rentries") == b"10"
    assert await usage(tree.ask, ME, 1, b"lockstep.rsubdirs") == b"3"


async def test_what_may_not_be_listed_is_an_error() -> None:
    tree = Tree({(1, 0): (0, 0, 1, (2,), (), 2, True), (2, 0): errno.EACCES, (3, 0): errno.ENOTDIR})
    for ino, code in ((1, errno.EACCES), (3, errno.ENODATA), (9, errno.ESTALE)):
        with pytest.raises(FileSystemError) as refused:
            await usage(tree.ask, ME, ino, b"lockstep.rbytes")
        assert refused.value.status == code

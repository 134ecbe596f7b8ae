"""The open files of a mount."""

from __future__ import annotations

from typing import Any

import trio

from client import limits
from client.attributes import Attr
from client.io import FileData
from client.pool import FilePool

FILE = Attr(99, 0o100644, 1, 0, 0, 0, 0, 0, 0, 0, None, (), 0, 99)


async def test_a_file_that_is_opened_again_is_not_forgotten_with_its_predecessor(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """The first was dirty, so it is looked at by the clock after it was closed."""
    nothing: Any = None
    pool = FilePool(nursery, nothing, nothing, FileData)
    first = pool.acquire(FILE)
    pool.mark_dirty(first)
    pool.let_go(first)
    second = pool.acquire(FILE)
    assert second is not first
    nursery.start_soon(pool.run)
    await trio.sleep(3 * limits.GATHER_AGE_S)
    assert pool.get(FILE.ino) is second
    pool.let_go(second)
    assert pool.get(FILE.ino) is None
    nursery.cancel_scope.cancel()

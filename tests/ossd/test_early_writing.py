"""A stream of writes is handed to the disk while it comes in, not only at fsync."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ossd import limits
from ossd.store import Disk
from tests.ossd.test_copies import some
from wire.errors import OK

PIECE = 64 << 10


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """(target's directory, offset, length) of what the disks were asked to begin with; four pieces are enough."""
    calls: list[tuple[str, int, int]] = []
    real = Disk.start_writing

    def start_writing(fd: int, offset: int, length: int) -> None:
        calls.append((Path(os.readlink(f"/proc/self/fd/{fd}")).parts[-4], offset, length))
        real(fd, offset, length)

    monkeypatch.setattr(Disk, "start_writing", staticmethod(start_writing))
    monkeypatch.setattr(limits, "START_WRITING_BYTES", 4 * PIECE)
    return calls


@pytest.mark.parametrize("members", [(1,), (1, 2)])
async def test_every_member_begins_after_so_much(
    tmp_path: Path, begun: list[tuple[str, int, int]], members: tuple[int, ...]
) -> None:
    """A file is copied in: each disk gets to work on it early, once for each byte."""
    data = os.urandom(9 * PIECE)
    async with some(tmp_path, *members) as targets:
        for at in range(0, len(data), PIECE):
            assert await targets.write(at, data[at : at + PIECE]) == OK
        assert [await targets.read(t) for t in members] == [data] * len(members)
    expected = [(f"t{t}", at * PIECE, 4 * PIECE) for t in members for at in (0, 4)]
    assert sorted(begun) == expected


async def test_scattered_writes_are_left_to_the_kernel(tmp_path: Path, begun: list[tuple[str, int, int]]) -> None:
    """A data base: the same pages are written again and again, and the disk need not see each time."""
    async with some(tmp_path, 1) as targets:
        for at in (0, 2, 4, 6, 0, 2, 4, 6):
            assert await targets.write(at * PIECE, bytes(PIECE)) == OK
    assert begun == []

"""fsync: whatever was written before it, by whomever on this mount, is on disk when it returns."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio

from client.api import FileSystem
from client.capabilities import Access
from ossd.disk import Disk
from tests.client.test_service import opened
from wire.messages import ObjectSync, ObjectWrite


@dataclass
class Watched:
    """What goes to the targets; calls of a held kind wait for their event, others are let through."""

    fs: FileSystem
    synced: list[int] = field(default_factory=list)
    """Columns of the answered ObjectSyncs."""
    hold: dict[type, trio.Event] = field(default_factory=dict)
    waiting: int = 0

    async def waits(self) -> None:
        with trio.fail_after(20):
            while not self.waiting:
                await trio.testing.wait_all_tasks_blocked(0.001)


@pytest.fixture
async def mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Watched]:
    real = Access.call

    async def call(self: Access, held: Any, right: int, chain: int, make: Any, *args: Any, **more: Any) -> Any:
        message = make(1, 1, b"")
        gate = watched.hold.get(type(message))
        if gate is not None:
            watched.waiting += 1
            await gate.wait()
        done = await real(self, held, right, chain, make, *args, **more)
        if isinstance(message, ObjectSync):
            watched.synced.append(message.key.column)
        return done

    async with opened(tmp_path, inline=0) as (_, fs):
        watched = Watched(fs)
        monkeypatch.setattr(Access, "call", call)
        yield watched


async def test_bytes_that_arrive_after_the_sync_of_another_are_synced_by_the_next(mount: Watched) -> None:
    """1. One process writes. 2. Another one's fsync asks the target. 3. The bytes of the first arrive. 4. Its fsync."""
    one = await mount.fs.create("/f")
    await one.write(b"first", 0)
    await one.fsync()
    mount.synced.clear()
    data = one._handle.data
    gate = mount.hold[ObjectWrite] = trio.Event()
    await one.write(b"late", 0)
    data._send_run()
    await mount.waits()
    await data._sync_columns()  # as for whoever had settled before the write set out
    gate.set()
    await one.fsync()
    assert mount.synced == [0]
    await one.close()


async def test_who_syncs_beside_another_waits_for_it(mount: Watched) -> None:
    one = await mount.fs.create("/f")
    await one.write(b"bytes", 0)
    await one.flush()
    gate = mount.hold[ObjectSync] = trio.Event()
    ended = []

    async def sync() -> None:
        await one.fsync()
        ended.append(len(mount.synced))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(sync)
        await mount.waits()
        nursery.start_soon(sync)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert ended == []
        gate.set()
    assert ended == [1, 1], "one request for both"
    await one.close()


async def test_an_fsync_that_was_given_up_leaves_it_to_the_next(mount: Watched) -> None:
    one = await mount.fs.create("/f")
    await one.write(b"bytes", 0)
    mount.hold[ObjectSync] = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.fsync)
        await mount.waits()
        nursery.cancel_scope.cancel()
    mount.hold.clear()
    await one.fsync()
    assert mount.synced == [0]
    await one.close()


@pytest.mark.parametrize("flags", [os.O_RDWR, os.O_RDONLY])
async def test_what_was_written_and_closed_before_the_file_was_opened(mount: Watched, flags: int) -> None:
    await mount.fs.write_file("/f", b"x" * 200_000)
    async with await mount.fs.open("/f", flags) as again:
        await again.fsync()
        assert sorted(mount.synced) == [0, 1]
        await again.fsync()
        assert len(mount.synced) == 2, "nothing is new"


async def test_what_the_disk_has_lost_is_told_once(mount: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """By fsync, to whoever has written; what is written and synced after that is fine."""

    def fails(_fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    one = await mount.fs.create("/f")
    await one.write(b"bytes", 0)
    await one.flush()
    for sync in ("fdatasync", "fsync"):
        monkeypatch.setattr(Disk, sync, staticmethod(fails))
    with pytest.raises(OSError, match="Input/output error"):
        await one.fsync()
    monkeypatch.undo()
    await one.fsync()
    await one.write(b"again", 0)
    await one.fsync()
    await one.close()

"""fsync: whatever was written before it, by whomever on this mount, is on disk when it returns."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from client.api import File, FileSystem, open_file_system
from client.capabilities import Access
from ossd import identity
from ossd.disk import Disk
from tests.client.one_replica import Cluster
from tests.client.test_service import opened
from wire import ops
from wire.errors import FileSystemError
from wire.messages import ObjectSync, ObjectWrite


@dataclass
class Watched:
    """What goes to the targets; calls of a held kind wait for their event, others are let through."""

    fs: FileSystem
    cluster: Cluster
    synced: list[int] = field(default_factory=list)
    """Columns of the answered ObjectSyncs."""
    hold: dict[type, trio.Event] = field(default_factory=dict)
    waiting: int = 0

    async def waits(self) -> None:
        with trio.fail_after(20):
            while not self.waiting:
                await trio.testing.wait_all_tasks_blocked(0.001)


@pytest.fixture
async def mount(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Watched]:
    """Parameter: up to how many bytes files are kept in the metadata."""
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

    async with opened(tmp_path, inline=getattr(request, "param", 0)) as (cluster, fs):
        watched = Watched(fs, cluster)
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


async def test_an_fsync_that_no_target_has_answered_leaves_it_to_the_next(
    mount: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await mount.fs.create("/f")
    await one.write(b"bytes", 0)
    await one.flush()
    with monkeypatch.context() as patch:

        async def call(*_: Any, **__: Any) -> Any:
            raise FileSystemError(errno.ETIMEDOUT)

        patch.setattr(Access, "call", call)
        with pytest.raises(OSError, match="timed out"):
            await one.fsync()
    assert mount.synced == []
    await one.fsync()
    assert mount.synced == [0]
    await one.close()


@pytest.mark.parametrize("when", ["anew before fsync", "anew for fsync", "anew during fsync"])
@pytest.mark.parametrize("power_cut", [True, False])
async def test_a_power_cut_at_the_only_copy_is_told_and_a_killed_target_is_not(
    mount: Watched, when: str, power_cut: bool
) -> None:
    """Of the file's two columns one is at the target that goes down. The connection to it is made anew."""
    one = await mount.fs.create("/f")
    await one.write(b"x" * 200_000, 0)
    await one.flush()
    two = await mount.fs.open("/f", os.O_RDWR)
    results: list[int] = []

    async def sync(handle: File) -> None:
        try:
            await handle.fsync()
        except OSError as exc:
            results.append(exc.errno or 0)
        else:
            results.append(0)

    number = await mount.cluster.crash_target(power_cut=power_cut)
    async with trio.open_nursery() as nursery:
        if when == "anew during fsync":
            nursery.start_soon(sync, one)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert results == []
        await mount.cluster.start_target(number)
        if when == "anew before fsync":
            await one.read(200_000, 0)
        if when != "anew during fsync":
            await sync(one)
    expected = errno.EIO if power_cut else 0
    await sync(one)
    await sync(two)
    await sync(two)
    assert results == [expected, 0, expected, 0], "once per open file"
    async with await mount.fs.open("/f", os.O_RDWR) as later:
        await later.fsync()
        await one.write(b"again", 0)
        await one.fsync()
    await one.close()
    await two.close()


@pytest.mark.parametrize("cut", [(True, True), (True, False), (False, False)])
async def test_all_copies_have_been_down(tmp_path: Path, cut: tuple[bool, bool]) -> None:
    """Two copies, and both targets end: by a power cut, or by kill -9, which loses nothing. The one that lost power is
    back first, and is given what it lacks by the other."""
    async with opened(tmp_path, inline=0, copies=2) as (cluster, fs):
        one = await fs.create("/f")
        await one.write(b"x" * 200_000, 0)
        await one.flush()
        for power_cut in reversed(cut):
            await cluster.crash_target(power_cut=power_cut)
        for number in (1, 2):
            await cluster.start_target(number)
        if all(cut):
            with pytest.raises(OSError, match="Input/output error"):
                await one.fsync()
        await one.fsync()
        await one.close()


async def test_close_tells_what_the_answer_to_a_later_write_shows_to_be_lost(mount: Watched) -> None:
    one = await mount.fs.create("/f")
    await one.write(b"x" * 200_000, 0)
    await one.flush()
    await mount.cluster.start_target(await mount.cluster.crash_target(power_cut=True))
    await one.write(b"y" * 200_000, 0)
    with pytest.raises(OSError, match="Input/output error"):
        await one.flush()
    await one.fsync()
    await one.close()


async def test_a_power_cut_takes_nothing_that_was_synced_or_stopped_in_peace(mount: Watched) -> None:
    one = await mount.fs.create("/f")
    await one.write(b"x" * 200_000, 0)
    await one.fsync()
    await mount.cluster.start_target(await mount.cluster.crash_target(power_cut=True))
    await one.write(b"y" * 200_000, 0)
    await one.flush()
    await mount.cluster.stop_target()
    await mount.cluster.start_target(2)
    await one.fsync()
    await one.close()


async def test_an_fsync_that_was_given_up_leaves_the_loss_to_the_next(mount: Watched) -> None:
    one = await mount.fs.create("/f")
    await one.write(b"x" * 200_000, 0)
    await one.flush()
    number = await mount.cluster.crash_target(power_cut=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.fsync)
        await trio.testing.wait_all_tasks_blocked(0.01)
        nursery.cancel_scope.cancel()
    await mount.cluster.start_target(number)
    with pytest.raises(OSError, match="Input/output error"):
        await one.fsync()
    await one.close()


@pytest.mark.parametrize("mount", [4096], indirect=True)
async def test_a_small_file_that_grows_out_is_written_again_after_a_power_cut(mount: Watched) -> None:
    """Its bytes are in the metadata for as long as they are not known to be on disk."""
    small = random.Random(4).randbytes(4000)
    files = []
    for k in range(4):  # the first column of some is at the target that goes down
        async with await mount.fs.create(f"/f{k}") as file:
            await file.write(small, 0)
        files.append(await mount.fs.open(f"/f{k}", os.O_RDWR))
    gate = mount.hold[ObjectSync] = trio.Event()
    async with trio.open_nursery() as nursery:
        for file in files:
            nursery.start_soon(file.write, b"end", 4096)
        with trio.fail_after(20):
            while mount.waiting < len(files):
                await trio.testing.wait_all_tasks_blocked(0.001)
        number = await mount.cluster.crash_target(power_cut=True)
        data = mount.cluster.config.targets[number - 1].data
        lost = [path for tree in (identity.OBJECTS_NAME, identity.LEDGERS_NAME) for path in (data / tree).glob("*/*")]
        assert lost
        for path in lost:
            path.unlink()
        await mount.cluster.start_target(number)
        gate.set()
    for file in files:
        await file.fsync()
        assert bytes(await file.read(5000, 0)) == small + bytes(96) + b"end"
        await file.close()


async def test_a_write_while_a_commit_waits_for_another(tmp_path: Path) -> None:
    """Three processes with one file: what the third writes while the others sync it is not taken for told."""
    async with opened(tmp_path, inline=0) as (cluster, fs), open_file_system(cluster.config) as other:
        file = await fs.create("/f")
        faults = cluster.replica.faults
        faults.hold, faults.hold_kinds = trio.Event(), (ops.Commit,)
        async with trio.open_nursery() as nursery:
            changing = file._handle.data._changing
            for k in range(2):
                await file.write(b"%d" % k, k)
                nursery.start_soon(file.flush)
                with trio.fail_after(20):
                    while not changing.locked() or changing.statistics().tasks_waiting < k:
                        await trio.lowlevel.checkpoint()
            await file.write(b"2", 2)
            faults.hold.set()
        await file.close()
        assert await other.read_file("/f") == b"012"

"""The client library over a real state machine and real targets in the same process, with faults."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from client import limits
from client.api import File, FileSystem, open_file_system
from client.options import MountOptions
from mds.exports import Squash
from ossd.disk import Disk
from tests.client.one_replica import Cluster, one_replica
from wire import ops
from wire.errors import FileSystemError

ROOT = ops.Cred(0, 0, ())


@asynccontextmanager
async def opened(
    base: Path, targets: int = 2, soft_after: float | None = None, inline: int = 4096, copies: int = 1
) -> AsyncIterator[tuple[Cluster, FileSystem]]:
    async with one_replica(base, targets, stripe_size=1 << 16, inline=inline, copies=copies) as cluster:
        options = MountOptions(soft_after=soft_after)
        async with open_file_system(cluster.config, options=options) as fs:
            yield cluster, fs
            fs.volume.service.core.validate()


async def test_reply_lost_the_request_is_executed_once(tmp_path: Path) -> None:
    async with opened(tmp_path) as (cluster, fs):
        await fs.mkdir("/warm")
        before = cluster.replica.executed
        cluster.replica.faults.lose_replies = 2
        attr = await fs.mkdir("/once")
        assert (await fs.stat("/once")).ino == attr.ino
        assert sorted(await fs.listdir()) == [b"once", b"warm"]
        # mkdir three times (twice from the reply table), and an attachment after each loss.
        assert cluster.replica.executed - before == 5


async def test_refusals_are_retried(tmp_path: Path) -> None:
    async with opened(tmp_path) as (cluster, fs):
        for _ in range(3):
            cluster.replica.faults.not_serving = 1
            cluster.replica.faults.overloaded = 2
            await fs.mkdir("/d")
            await fs.rmdir("/d")
        core = fs.volume.service.core
        assert core.counts.overloaded == 6 and core.counts.attached == 4


async def test_cancelled_create_closes_its_handle_when_the_answer_comes(tmp_path: Path) -> None:
    async with opened(tmp_path) as (cluster, fs):
        service = fs.volume.service
        cluster.replica.faults.hold = trio.Event()
        with trio.move_on_after(0.05) as limit:  # the hold lasts for as long as the cancellation needs
            await fs.create("/f")
        assert limit.cancelled_caught
        assert service.core.outstanding in (0, 1)  # its lookup, or its create, was on the way
        op = ops.Create(ROOT, 1, b"g", 0o644)
        with trio.move_on_after(0.05):
            await service.request(op)
        assert service.core.outstanding == 1, "a request's slot is busy until its answer is there"
        cluster.replica.faults.hold.set()
        cluster.replica.faults.hold = None
        assert await fs.exists("/g")
        assert service.core.outstanding == 0 and service.core.handles == {}
        while len(cluster.replica.handles):
            await trio.testing.wait_all_tasks_blocked(0.01)


async def test_many_callers_at_once(tmp_path: Path) -> None:
    async with opened(tmp_path) as (cluster, fs):
        async with trio.open_nursery() as nursery:
            for number in range(200):
                nursery.start_soon(fs.mkdir, f"/d{number}")
            cluster.replica.faults.lose_replies = 3
        assert len(await fs.listdir()) == 200
        assert fs.volume.service.core.outstanding == 0


async def test_soft_gives_up_and_recovers(tmp_path: Path) -> None:
    async with opened(tmp_path, soft_after=0.3) as (cluster, fs):
        await fs.mkdir("/d")
        cluster.replica.faults.hold = trio.Event()
        with pytest.raises(TimeoutError):
            await fs.stat("/d")
        cluster.replica.faults.hold.set()
        cluster.replica.faults.hold = None
        assert (await fs.stat("/d")).is_directory


async def test_session_expires_and_open_files_are_stale(tmp_path: Path) -> None:
    async with opened(tmp_path) as (cluster, fs):
        file = await fs.create("/f")
        await file.write(b"x", 0)
        session = fs.volume.service.core.session
        known = cluster.replica.machine.session(session)
        assert known is not None
        cluster.replica.apply(ops.SessionExpire(session, known.attempt))
        for conn in list(cluster.replica.connections):
            conn.close("cut")
        assert (await fs.stat("/")).is_directory, "what needs no handle goes on"
        assert fs.volume.service.core.session != session
        with pytest.raises(OSError, match="Stale"):
            await file.read(1, 0)
        with pytest.raises(OSError, match="Stale"):
            await file.close()
        async with await fs.open(Path("/f")) as again:
            assert again.ino == file.ino


async def test_random_io_of_several_handles(tmp_path: Path) -> None:
    """One model file; two handles here and one of another client that opens anew for each read."""
    seed = random.Random(5)
    async with opened(tmp_path) as (cluster, fs), open_file_system(cluster.config) as other:
        model = bytearray()
        one = await fs.open("/f", os.O_CREAT | os.O_RDWR)
        two = await fs.open("/f", os.O_RDWR)
        appending = await fs.open("/f", os.O_WRONLY | os.O_APPEND)
        for _ in range(250):
            handle: File = seed.choice((one, two))
            at, size = seed.randrange(400_000), seed.choice((1, 100, 4096, 65536, 140_000))
            match seed.randrange(9):
                case 0 | 1 | 2:
                    data = seed.randbytes(size)
                    assert await handle.write(data, at) == size
                    model.extend(bytes(max(0, at - len(model))))
                    model[at : at + size] = data
                case 3 | 4 | 5:
                    assert bytes(await handle.read(size, at)) == model[at : at + size]
                case 6:
                    await handle.truncate(at)
                    model = model[:at].ljust(at, b"\0")
                case 7:
                    data = seed.randbytes(size)
                    await appending.write(data)
                    model += data
                case 8:
                    await handle.flush()
                    assert await other.read_file("/f") == model
                    if seed.randrange(3) == 0:
                        cluster.replica.faults.lose_replies = 1
            assert (await handle.stat()).size == len(model)
        for file in (one, two, appending):
            await file.close()
        assert await other.read_file("/f") == model


async def test_target_restarts_under_a_writer(tmp_path: Path) -> None:
    async with opened(tmp_path, targets=1) as (cluster, fs):
        data = random.Random(6).randbytes(3_000_000)
        file = await fs.create("/f")
        for at in range(0, len(data), 50_000):
            await file.write(data[at : at + 50_000], at)
            if at in (500_000, 2_000_000):
                await cluster.stop_target()
                await cluster.start_target(1)
        await file.fsync()
        await file.close()
        assert await fs.read_file("/f") == data


async def test_full_target_is_reported_once_per_handle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(tmp_path, inline=0) as (_, fs):
        from ossd.store import Store

        def full(*_args: object, **_kwargs: object) -> None:
            raise OSError(28, "No space left on device")

        one = await fs.create("/f")
        two = await fs.open("/f", os.O_RDWR)
        monkeypatch.setattr(Store, "write", full)
        await one.write(b"x" * 10, 0)  # gathered: nothing is known yet
        with pytest.raises(OSError, match="No space"):
            await one.fsync()
        monkeypatch.undo()
        await one.fsync()
        with pytest.raises(OSError, match="No space"):
            await two.flush()
        await two.flush()
        late = await fs.open(Path("/f"))
        for file in (one, two, late):
            await file.close()
        assert (await fs.stat("/f")).size == 0


async def test_api_walks_paths(tmp_path: Path) -> None:
    async with opened(tmp_path) as (_, fs):
        await fs.mkdir("/a")
        await fs.mkdir("/a/b")
        await fs.write_file("/a/b/f", b"deep")
        await fs.symlink("b", "/a/link")
        await fs.symlink("/a/link/f", "/top")
        assert await fs.read_file("/top") == b"deep"
        assert await fs.read_file("/a/link/../b/./f") == b"deep"
        assert await fs.readlink("/top") == b"/a/link/f"
        await fs.symlink("loop", "/loop")
        with pytest.raises(OSError, match="symbolic"):
            await fs.stat("/loop")
        await fs.rename("/a/b/f", "/g")
        with pytest.raises(FileNotFoundError):
            await fs.read_file("/top")
        await fs.link("/g", "/h")
        await fs.chmod("/g", 0o600)
        assert (await fs.stat("/h")).mode & 0o777 == 0o600
        await fs.truncate("/h", 2)
        assert await fs.read_file("/g") == b"de"
        await fs.unlink("/g")
        await fs.unlink("/h")
        await fs.write_file("/plain", b"")
        with pytest.raises(NotADirectoryError):
            await fs.stat("/plain/x")
        assert (await fs.statfs()).total > 0


async def test_an_unmount_without_a_service_waits_for_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is pending is written before the mount goes and, what came in between, before the session is closed: both
    have one time limit together. Then it is given up, and the end does not wait for an answer to it either."""
    async with opened(tmp_path) as (cluster, fs):
        file = await fs.create("/f")
        await file.write(b"x", 0)
        volume, ends = fs.volume, []
        flush_all = volume.pool.flush_all

        async def noted() -> None:
            ends.append(trio.current_effective_deadline())
            await flush_all()

        monkeypatch.setattr(volume.pool, "flush_all", noted)
        monkeypatch.setattr(limits, "UNMOUNT_FLUSH_S", 0.05)
        monkeypatch.setattr(limits, "CLOSE_TIMEOUT_S", 0.05)
        cluster.replica.faults.hold = trio.Event()
        await volume.flush_all()
        assert volume.pool.dirty
        await volume.close()
        assert len(ends) == 2 and ends[1] <= ends[0], ends
        cluster.replica.faults.hold.set()


async def test_an_unmount_does_not_wait_for_atime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(tmp_path) as (_, fs):
        left = []

        async def noted() -> None:
            left.append(trio.current_effective_deadline() - trio.current_time())

        monkeypatch.setattr(fs.volume, "_tell_accesses", noted)
        await fs.volume.close()
        assert left and left[0] <= limits.CLOSE_TIMEOUT_S < limits.UNMOUNT_FLUSH_S


@pytest.mark.parametrize("failing", [1, 2])
async def test_a_copy_that_a_disk_cannot_read_is_no_error_while_there_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    def broken(fd: int) -> bool:
        return f"/target-{failing}/" in os.readlink(f"/proc/self/fd/{fd}")

    def pread(fd: int, length: int, offset: int) -> bytes:
        if broken(fd):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return os.pread(fd, length, offset)

    def preadv(fd: int, buffers: list[bytearray], offset: int, flags: int) -> int:
        if broken(fd):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return os.preadv(fd, buffers, offset, flags)

    async with opened(tmp_path, inline=0, copies=2) as (_, fs):
        one = await fs.create("/f")
        await one.write(b"x" * 200_000, 0)
        await one.fsync()
        await one.close()
        monkeypatch.setattr(Disk, "pread", staticmethod(pread))
        monkeypatch.setattr(Disk, "preadv", staticmethod(preadv))
        for _ in range(4):  # whichever copy is asked first
            one = await fs.open(Path("/f"))
            assert await one.read(200_000, 0) == b"x" * 200_000
            await one.close()


async def test_a_listing_goes_on_after_a_chmod_where_root_is_squashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mount asks as root, which counts as nobody there, and then as who opened the directory."""
    monkeypatch.setattr(limits, "READDIR_BATCH", 2)
    alice = ops.Cred(1001, 1001, ())
    async with opened(tmp_path) as (cluster, fs):
        await fs.chmod("/", 0o777)
        volume = fs.volume
        own = FileSystem(volume, alice)
        directory = await own.mkdir("/d", 0o700)
        for name in "abcde":
            await own.mkdir(f"/d/{name}")
        cluster.replica.faults.squash = Squash(False, 65534)
        handle = await volume.opendir(alice, directory.ino)
        found: list[bytes] = []
        while not handle.complete:
            await volume.entries(handle, handle.position)
            found += [name for name, _, _ in handle.buffer]
            handle.position = handle.buffer[-1][1]
            handle.buffer.clear()
            await own.chmod("/d", 0o000)
        assert found == [b"a", b"b", b"c", b"d", b"e"]
        await volume.entries(handle, 0)
        assert [name for name, _, _ in handle.buffer] == [b"a", b"b"], "rewinddir(3) asks for no permission"
        with pytest.raises(FileSystemError, match="EACCES"):
            await volume.opendir(alice, directory.ino)

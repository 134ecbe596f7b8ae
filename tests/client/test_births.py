"""Files that a mount makes by itself in a delegated directory, over a real state machine: what it tells its processes,
what others see, and what comes between."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from client import limits
from client.api import FileSystem, open_file_system
from client.attributes import Attr
from client.births import Birth, Births
from client.mount import volume_of
from client.options import MountOptions
from client.parallel import WriteFailed
from client.service import boottime
from tests.client.one_replica import Cluster, one_replica
from wire import ops
from wire.delegation import CreateDelegated, Delegate, DelegationRecall, RecallDelegations, Undelegate
from wire.errors import FileSystemError, Status
from wire.inline import GrowOut, WriteInline

ROOT = ops.Cred(0, 0, ())
LIMIT = 4096


class Mount(FileSystem):
    """As a mount uses a volume, without the kernel."""

    @property
    def births(self) -> Births:
        assert self.volume._births is not None
        return self.volume._births

    async def delegated(self, path: str) -> int:
        """Make directory *path*, and files in it until it is delegated; its inode."""
        ino = (await self.mkdir(path, 0o755)).ino
        for k in range(limits.BURST_CREATES):
            await (await self.create(f"{path}/warm{k}")).close()
        await self.until(lambda: ino in self.births.delegations.held)
        await self.volume.getattr(ino)
        assert self.births.moves == 0
        return ino

    async def until(self, true: object) -> None:
        with trio.fail_after(60):
            while not true():  # type: ignore[operator]
                await trio.lowlevel.checkpoint()


@asynccontextmanager
async def mount(cluster: Cluster) -> AsyncIterator[Mount]:
    volume = volume_of(cluster.config, "mount", MountOptions(), mounted=True)
    async with trio.open_nursery() as nursery:
        await nursery.start(volume.run)
        fs = Mount(volume)
        try:
            await fs.stat("/")
            await fs.until(lambda: volume.service.cache.until > boottime() or cluster.replica.faults.no_leases)
            yield fs
            volume.service.core.validate()
            fs.births.delegations.validate()
            fs.births._unborn.validate()
        finally:
            with trio.CancelScope(shield=True):
                await volume.close()
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def mounted(base: Path, targets: int = 0, inline: int = LIMIT) -> AsyncIterator[tuple[Cluster, Mount]]:
    async with one_replica(base, targets, stripe_size=1 << 16, inline=inline) as cluster, mount(cluster) as fs:
        yield cluster, fs


def kinds(cluster: Cluster, since: int) -> list[type]:
    return [type(op) for op in cluster.replica.requests[since:]]


def at_once(fs: Mount, parent: int, name: bytes, flags: int = os.O_RDWR) -> tuple[object, Attr]:
    made = fs.volume.create_at_once(ROOT, parent, name, 0o644, flags)
    assert made is not None
    return made


async def test_a_small_file_is_one_request_and_waits_for_nothing(tmp_path: Path) -> None:
    async with mounted(tmp_path) as (cluster, fs), open_file_system(cluster.config) as other:
        d = await fs.delegated("/d")
        volume, since = fs.volume, len(cluster.replica.requests)
        for k in range(3):
            # No checkpoint from here...
            assert volume.lookup_cached(ROOT, d, b"f%d" % k) == 0
            made = volume.create_at_once(ROOT, d, b"f%d" % k, 0o640, os.O_RDWR)
            assert made is not None
            handle, attr = made
            assert volume.write_at_once(handle, 0, b"hello ") and volume.write_at_once(handle, 6, b"world")
            assert bytes(volume.read_known(handle, 0, 100) or b"") == b"hello world"
            found = volume.lookup_cached(ROOT, d, b"f%d" % k)
            assert isinstance(found, Attr) and (found.ino, found.size, found.mode) == (attr.ino, 11, 0o100640)
            assert volume.flush_nothing(handle) and volume.close_nothing(handle)
            # ...to here.
        above = volume.getattr_cached(d)
        assert above is not None and above.mtime_ns >= attr.mtime_ns
        seen = [volume.lookup_cached(ROOT, d, b"f%d" % k) for k in range(3)]
        assert len(fs.births) == 3
        await fs.births.settle(d)
        assert kinds(cluster, since) == [CreateDelegated] * 3
        assert [await other.read_file(f"/d/f{k}") for k in range(3)] == [b"hello world"] * 3
        # What was predicted is so.
        for k in range(3):
            there, mine = await other.stat(f"/d/f{k}"), seen[k]
            assert isinstance(mine, Attr)
            assert there._replace(layout=None) == mine._replace(layout=None)
        assert await other.stat("/d") == above
        await fs.until(lambda: not volume.service.core.handles)
        assert volume.pool.get(attr.ino) is None and not volume.pool.unsent


async def test_who_looks_has_the_directory_recalled(tmp_path: Path) -> None:
    async with mounted(tmp_path) as (cluster, fs), open_file_system(cluster.config) as other:
        d = await fs.delegated("/d")
        since = len(cluster.replica.requests)
        handle, _ = at_once(fs, d, b"f")
        assert fs.volume.write_at_once(handle, 0, b"x")  # type: ignore[arg-type]
        assert sorted(await other.listdir("/d")) == [b"f", b"warm0", b"warm1", b"warm2"]
        assert kinds(cluster, since)[0] is CreateDelegated and Undelegate in kinds(cluster, since)
        assert d not in cluster.replica.machine.delegated and not fs.births.delegations.held
        assert fs.volume.create_at_once(ROOT, d, b"g", 0o644, os.O_RDWR) is None
        # Not asked for again at once.
        for k in range(9):
            await (await fs.create(f"/d/more{k}")).close()
        assert Delegate not in kinds(cluster, since)
        await fs.volume.close_file(handle)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "what",
    ["unlink", "rename", "rename over", "link", "setattr", "truncate", "setxattr", "open", "stat", "rmdir", "readdir"],
)
async def test_everything_waits_for_what_it_is_about(tmp_path: Path, what: str) -> None:
    """Each operation on a file that is yet to be sent, whose turn the service takes late."""
    async with mounted(tmp_path) as (cluster, fs), open_file_system(cluster.config) as other:
        d = await fs.delegated("/d")
        await fs.write_file("/other", b"other")
        volume, faults = fs.volume, cluster.replica.faults
        faults.hold, faults.hold_kinds = trio.Event(), (CreateDelegated,)
        handle, attr = at_once(fs, d, b"f")
        assert volume.write_at_once(handle, 0, b"hello")  # type: ignore[arg-type]
        done = trio.Event()

        async def operate() -> None:
            match what:
                case "unlink":
                    await volume.unlink(ROOT, d, b"f")
                case "rename":
                    await volume.rename(ROOT, d, b"f", 1, b"g")
                case "rename over":
                    await volume.rename(ROOT, 1, b"other", d, b"f")
                case "link":
                    assert (await volume.link(ROOT, attr.ino, 1, b"g")).nlink == 2
                case "setattr":
                    op = ops.SetAttr(ROOT, attr.ino, ops.SET_MODE, 0o600, 0, 0, 0, 0, 0, False)
                    assert (await volume.setattr(op)).mode == 0o100600
                case "truncate":
                    op = ops.SetAttr(ROOT, attr.ino, ops.SET_SIZE, 0, 0, 0, 3, 0, 0, True)
                    assert (await volume.setattr(op)).size == 3
                case "setxattr":
                    await volume.setxattr(ROOT, attr.ino, b"user.a", b"b")
                case "open":
                    second = await volume.open(ROOT, attr.ino, os.O_RDONLY)
                    assert bytes(await volume.read(second, 0, 10)) == b"hello"
                    await volume.close_file(second)
                case "stat":
                    volume.service.cache.clear()
                    assert (await volume.getattr(attr.ino)).size == 5
                    assert (await volume.lookup(ROOT, d, b"f")).size == 5
                case "rmdir":
                    with pytest.raises(OSError, match="not empty"):
                        await fs.rmdir("/d")
                case "readdir":
                    assert b"f" in await fs.listdir("/d")
            done.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(operate)
            await trio.testing.wait_all_tasks_blocked(0.02)
            assert not done.is_set()
            faults.hold.set()
        await fs.births.settle(d)
        await volume.flush(handle)  # type: ignore[arg-type]
        await volume.close_file(handle)  # type: ignore[arg-type]
        names = await other.listdir("/d")
        assert (b"f" in names) == (what not in ("unlink", "rename"))
        if what == "truncate":
            assert await other.read_file("/d/f") == b"hel"


async def test_its_directory_is_seen_as_it_is(tmp_path: Path) -> None:
    """What is asked of a directory, by number or by name, waits for what is unborn in it."""
    async with mounted(tmp_path) as (_, fs):
        d = await fs.delegated("/d")
        for ask in (lambda: fs.volume.getattr(d), lambda: fs.volume.lookup(ROOT, 1, b"d")):
            fs.volume.service.cache.clear()
            fs.volume.service.cache._names[d] = {}
            fs.volume.service.cache._complete.add(d)
            _, attr = at_once(fs, d, b"f%d" % fs.births.moves)
            assert (await ask()).mtime_ns >= attr.mtime_ns


async def test_what_is_written_later_goes_the_old_way(tmp_path: Path) -> None:
    """1. It is closed by one process, and sent. 2. Another that has inherited it writes, and closes. 3. The second
    close waits until others would see that as well."""
    async with mounted(tmp_path) as (cluster, fs), open_file_system(cluster.config) as other:
        d = await fs.delegated("/d")
        volume, faults, since = fs.volume, cluster.replica.faults, len(cluster.replica.requests)
        faults.hold, faults.hold_kinds = trio.Event(), (CreateDelegated,)
        handle, _ = at_once(fs, d, b"f")
        assert volume.write_at_once(handle, 0, b"one ")  # type: ignore[arg-type]
        assert volume.flush_nothing(handle) and volume.flush_nothing(handle)  # type: ignore[arg-type]
        assert volume.write_at_once(handle, 4, b"two")  # type: ignore[arg-type]
        assert not volume.flush_nothing(handle)  # type: ignore[arg-type]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(volume.flush, handle)
            await trio.testing.wait_all_tasks_blocked(0.02)
            faults.hold.set()
        assert kinds(cluster, since) == [CreateDelegated, WriteInline]
        assert volume.close_nothing(handle)  # type: ignore[arg-type]
        assert await other.read_file("/d/f") == b"one two"


async def test_an_old_file_is_sent_without_its_contents(tmp_path: Path) -> None:
    """It is open, and may grow yet."""
    async with mounted(tmp_path, targets=1) as (cluster, fs), open_file_system(cluster.config) as other:
        d = await fs.delegated("/d")
        since = len(cluster.replica.requests)
        handle, _ = at_once(fs, d, b"f")
        assert fs.volume.write_at_once(handle, 0, b"x" * 10)  # type: ignore[arg-type]
        await fs.until(lambda: not len(fs.births))
        assert kinds(cluster, since) == [CreateDelegated]
        assert await fs.volume.write(handle, 10, b"y" * LIMIT) == LIMIT  # type: ignore[arg-type]
        await fs.volume.flush(handle)  # type: ignore[arg-type]
        assert kinds(cluster, since)[:2] == [CreateDelegated, GrowOut], "empty: it is in objects at once"
        await fs.volume.close_file(handle)  # type: ignore[arg-type]
        assert await other.read_file("/d/f") == b"x" * 10 + b"y" * LIMIT


async def test_a_file_that_grows_at_once(tmp_path: Path) -> None:
    async with mounted(tmp_path, targets=1) as (cluster, fs), open_file_system(cluster.config) as other:
        d = await fs.delegated("/d")
        since = len(cluster.replica.requests)
        handle, _ = at_once(fs, d, b"f")
        assert fs.volume.write_at_once(handle, 0, b"x" * 10)  # type: ignore[arg-type]
        assert await fs.volume.write(handle, 10, b"y" * LIMIT) == LIMIT  # type: ignore[arg-type]
        await fs.volume.fsync(handle)  # type: ignore[arg-type]
        await fs.volume.close_file(handle)  # type: ignore[arg-type]
        assert kinds(cluster, since)[:2] == [CreateDelegated, GrowOut]
        assert await other.read_file("/d/f") == b"x" * 10 + b"y" * LIMIT


async def test_appending_to_an_unborn_file_needs_no_order(tmp_path: Path) -> None:
    async with mounted(tmp_path) as (cluster, fs), open_file_system(cluster.config) as other:
        d = await fs.delegated("/d")
        since = len(cluster.replica.requests)
        handle, _ = at_once(fs, d, b"f", os.O_WRONLY | os.O_APPEND)
        assert fs.volume.write_at_once(handle, 0, b"one ")  # type: ignore[arg-type]
        assert fs.volume.write_at_once(handle, 0, b"two ")  # type: ignore[arg-type]
        await fs.until(lambda: not len(fs.births))
        assert await fs.volume.write(handle, 0, b"three") == 5  # type: ignore[arg-type]
        await fs.volume.flush(handle)  # type: ignore[arg-type]
        await fs.volume.close_file(handle)  # type: ignore[arg-type]
        assert kinds(cluster, since)[0] is CreateDelegated
        assert await other.read_file("/d/f") == b"one two three"


async def test_fsync_and_fsyncdir_wait(tmp_path: Path) -> None:
    async with mounted(tmp_path) as (cluster, fs):
        d = await fs.delegated("/d")
        handle, attr = at_once(fs, d, b"f")
        await fs.volume.fsync(handle)  # type: ignore[arg-type]
        assert cluster.replica.machine.exists(attr.ino) and not len(fs.births)
        _, attr = at_once(fs, d, b"g")
        directory = await fs.volume.opendir(ROOT, d)
        await fs.volume.fsync_directory(directory)
        assert cluster.replica.machine.exists(attr.ino)


async def test_recall_that_overtakes_the_answer(tmp_path: Path) -> None:
    """1. Delegate is executed, its answer is lost with the connection. 2. Somebody has it recalled. 3. We attach anew,
    are asked for it, and are then given the old answer: it is not used, and given back."""
    async with mounted(tmp_path) as (cluster, fs), open_file_system(cluster.config) as other:
        d = (await fs.mkdir("/d")).ino
        faults = cluster.replica.faults
        for k in range(limits.BURST_CREATES):
            if k == limits.BURST_CREATES - 1:
                faults.hold, faults.hold_kinds = trio.Event(), (Delegate,)
            await (await fs.create(f"/d/warm{k}")).close()
        await fs.until(lambda: d in fs.births.delegations.asking)
        faults.lose_replies = 1
        assert faults.hold is not None
        faults.hold.set()
        await fs.until(lambda: d in cluster.replica.machine.delegated)
        assert len(await other.listdir("/d")) == limits.BURST_CREATES
        await fs.until(lambda: not fs.births.delegations.asking and not fs.births.delegations.returning)
        assert d not in cluster.replica.machine.delegated and not fs.births.delegations.held


async def test_lost_replies_and_another_attachment(tmp_path: Path) -> None:
    """Births are sent again and carried out once; no lease, no files of our own; handles are counted as they are."""
    async with mounted(tmp_path) as (cluster, fs), open_file_system(cluster.config) as other:
        d = await fs.delegated("/d")
        faults = cluster.replica.faults
        faults.lose_replies = 2
        made = [at_once(fs, d, b"f%d" % k) for k in range(20)]
        for handle, _ in made[:10]:
            assert fs.volume.close_nothing(handle)  # type: ignore[arg-type]
        await fs.births.settle(d)
        assert fs.volume.service.core.handles == {attr.ino: 1 for _, attr in made[10:]}
        assert sorted(await other.listdir("/d"))[:20] == sorted(b"f%d" % k for k in range(20))
        for handle, _ in made[10:]:
            await fs.volume.close_file(handle)  # type: ignore[arg-type]


async def test_no_lease_no_files_of_our_own(tmp_path: Path) -> None:
    async with mounted(tmp_path) as (_, fs):
        d = await fs.delegated("/d")
        fs.volume.service.cache.until = 0.0
        assert fs.volume.create_at_once(ROOT, d, b"f", 0o644, os.O_RDWR) is None
        assert fs.volume.create_at_once(ROOT, d, b"f", 0o644, os.O_RDWR | os.O_SYNC) is None


async def test_the_session_is_lost(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with mounted(tmp_path) as (cluster, fs), open_file_system(cluster.config) as other:
        d = await fs.delegated("/d")
        faults, replica = cluster.replica.faults, cluster.replica
        faults.hold, faults.hold_kinds = trio.Event(), (CreateDelegated,)
        sent, _ = at_once(fs, d, b"sent")
        assert fs.volume.write_at_once(sent, 0, b"x") and fs.volume.flush_nothing(sent)  # type: ignore[arg-type]
        unsent, _ = at_once(fs, d, b"unsent")
        core = fs.volume.service.core
        replica.apply(ops.SessionExpire(core.session, core._attempt))
        for conn in list(replica.attached.values()):
            conn.close("a failover")
        await fs.until(lambda: fs.volume.service.generation == 1 and not len(fs.births))
        assert not fs.births.delegations.held and not fs.births.delegations.numbers.left
        for handle in (sent, unsent):
            with pytest.raises(FileSystemError, match="ESTALE"):
                fs.volume.write_at_once(handle, 0, b"y")  # type: ignore[arg-type]
        assert "'sent', made in directory" in caplog.text and "'unsent', made in directory" in caplog.text
        assert fs.volume.pool.unsent == 0 and not fs.volume.pool.dirty
        with pytest.raises(OSError, match="No such file"):
            await fs.stat("/d/unsent")
        assert len(await other.listdir("/d")) == limits.BURST_CREATES
        await fs.volume.close_file(sent)  # type: ignore[arg-type]
        caplog.clear()


async def test_a_birth_that_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with mounted(tmp_path) as (cluster, fs):
        d = await fs.delegated("/d")
        cluster.replica.faults.refuse[CreateDelegated] = errno.EEXIST
        handle, attr = at_once(fs, d, b"f")
        assert fs.volume.write_at_once(handle, 0, b"x")  # type: ignore[arg-type]
        with pytest.raises(WriteFailed, match="EEXIST"):
            await fs.volume.fsync(handle)  # type: ignore[arg-type]
        assert f"file b'f', made in directory {d} as inode {attr.ino}, is lost: EEXIST" in caplog.text
        caplog.clear()
        assert fs.volume.lookup_cached(ROOT, d, b"f") is None
        with pytest.raises(FileSystemError, match="ESTALE"):
            await fs.volume.getattr(attr.ino)
        await fs.volume.close_file(handle)  # type: ignore[arg-type]
        assert fs.volume.pool.get(attr.ino) is None and fs.volume.pool.unsent == 0


async def test_contents_that_do_not_fit_any_more_are_told_afterwards(tmp_path: Path) -> None:
    async with mounted(tmp_path, targets=1) as (cluster, fs), open_file_system(cluster.config) as other:
        d = await fs.delegated("/d")
        cluster.replica.faults.refuse[CreateDelegated] = Status.STALE_LAYOUT
        since = len(cluster.replica.requests)
        handle, _ = at_once(fs, d, b"f")
        assert fs.volume.write_at_once(handle, 0, b"x" * 10)  # type: ignore[arg-type]
        assert fs.volume.flush_nothing(handle)  # type: ignore[arg-type]
        assert await other.read_file("/d/f") == b"x" * 10
        assert kinds(cluster, since)[:2] == [CreateDelegated, WriteInline]
        await fs.volume.close_file(handle)  # type: ignore[arg-type]


async def test_too_many_wait_for_room(tmp_path: Path) -> None:
    async with mounted(tmp_path) as (_, fs):
        d = await fs.delegated("/d")
        count = 3 * limits.UNBORN_MAX
        files = [await fs.create(f"/d/f{k}") for k in range(count)]
        assert fs.births.moves > count
        for file in files:
            await file.close()
        await fs.births.settle(d)
        assert len(await fs.listdir("/d")) == count + limits.BURST_CREATES
        assert not fs.volume.service.core.handles


async def test_who_waits_for_room_is_not_passed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once there are too many nobody makes another file here before half of them are born, whoever asks."""
    async with mounted(tmp_path) as (cluster, fs):
        d = await fs.delegated("/d")
        await fs.until(lambda: fs.volume.service.cache.is_complete(d))
        births, faults = fs.births, cluster.replica.faults
        faults.hold, faults.hold_kinds = trio.Event(), (CreateDelegated,)
        for k in range(limits.UNBORN_MAX):
            at_once(fs, d, b"%d" % k)
        seen: list[tuple[int, bool]] = []
        over = births._over

        def watched(birth: Birth) -> None:
            over(birth)
            seen.append((len(births), births._is_full()))

        monkeypatch.setattr(births, "_over", watched)
        assert fs.volume.create_at_once(ROOT, d, b"more", 0o644, os.O_RDWR) is None
        faults.hold.set()
        await births.settle(d)
        assert [left for left, _ in seen] == list(range(limits.UNBORN_MAX - 1, -1, -1))
        assert all(full == (left > limits.UNBORN_MAX // 2) for left, full in seen)


async def test_a_directory_that_was_there_is_listed(tmp_path: Path) -> None:
    """Names that exist are not made, in a directory that another mount has filled."""
    async with mounted(tmp_path) as (cluster, fs), open_file_system(cluster.config) as other:
        d = (await other.mkdir("/d")).ino
        for k in range(20):
            await other.write_file(f"/d/old{k}", b"old")
        for k in range(limits.BURST_CREATES):
            await (await fs.create(f"/d/warm{k}")).close()
        cache = fs.volume.service.cache
        await fs.until(lambda: cache.is_complete(d))
        assert fs.volume.create_at_once(ROOT, d, b"old3", 0o644, os.O_RDWR) is None
        at_once(fs, d, b"new")
        await fs.rename("/d/new", "/d/newer")
        assert cache.is_complete(d) and cache.lookup(ROOT, d, b"new", boottime()) == 0
        at_once(fs, d, b"new")
        assert b"newer" in await other.listdir("/d")
        assert not cache.is_complete(d)


async def test_mode_and_owner_of_a_delegated_directory(tmp_path: Path) -> None:
    """It is given back before they change."""
    async with mounted(tmp_path) as (cluster, fs):
        d = await fs.delegated("/d")
        user = ops.Cred(1000, 1000, ())
        assert fs.volume.create_at_once(user, d, b"f", 0o644, os.O_RDWR) is None
        at_once(fs, d, b"g")
        await fs.volume.setattr(ops.SetAttr(ROOT, d, ops.SET_MODE, 0o777, 0, 0, 0, 0, 0, False))
        assert d not in fs.births.delegations.held
        handle, attr = await fs.volume.create(user, d, b"f", 0o644, os.O_RDWR)
        assert attr.uid == 1000
        await fs.volume.close_file(handle)
        await fs.until(lambda: not fs.births.delegations.returning)
        assert not cluster.replica.machine.delegated


async def test_unused_directories_are_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with mounted(tmp_path) as (cluster, fs):
        d = await fs.delegated("/d")
        monkeypatch.setattr(limits, "DELEGATED_IDLE_S", 0.0)
        await fs.until(lambda: d not in cluster.replica.machine.delegated)
        assert d not in fs.births.delegations.held


async def test_unmounting_with_unborn_files(tmp_path: Path) -> None:
    async with one_replica(tmp_path, 0) as cluster:
        async with mount(cluster) as fs:
            d = await fs.delegated("/d")
            for k in range(50):
                handle, _ = at_once(fs, d, b"f%d" % k)
                assert fs.volume.write_at_once(handle, 0, b"%d" % k)  # type: ignore[arg-type]
        async with open_file_system(cluster.config) as other:
            for k in range(50):
                assert await other.read_file(f"/d/f{k}") == b"%d" % k
        assert not cluster.replica.machine.delegated


async def test_cancelled_waiting_undoes_nothing(tmp_path: Path) -> None:
    async with mounted(tmp_path) as (cluster, fs):
        d = await fs.delegated("/d")
        faults = cluster.replica.faults
        faults.hold, faults.hold_kinds = trio.Event(), (CreateDelegated,)
        _, attr = at_once(fs, d, b"f")
        with trio.move_on_after(0.02):
            await fs.volume.unlink(ROOT, d, b"f")
        faults.hold.set()
        await fs.births.settle(d)
        assert (await fs.stat("/d/f")).ino == attr.ino


async def test_taken_away_while_nobody_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that comes back after a while takes no directory for its own any more."""
    async with mounted(tmp_path) as (cluster, fs):
        d = await fs.delegated("/d")
        fs.births.on_attached()
        assert d in fs.births.delegations.held
        monkeypatch.setattr(limits, "LAPSE_S", -1.0)
        cluster.replica.attached[fs.volume.service.core.session].close("cut off")
        await fs.until(lambda: d not in fs.births.delegations.held)
        await fs.until(lambda: d not in cluster.replica.machine.delegated)


def test_messages() -> None:
    assert RecallDelegations(()).invalid() and DelegationRecall((0,)).invalid()


async def test_a_directory_that_is_to_be_removed_gets_no_more_files_that_are_not_ordered(tmp_path: Path) -> None:
    """1. It is to be removed, which waits for a file elsewhere. 2. Another process makes one in it."""
    async with mounted(tmp_path) as (cluster, fs):
        there, elsewhere = await fs.delegated("/d"), await fs.delegated("/e")
        for k in range(limits.BURST_CREATES):
            await fs.unlink(f"/d/warm{k}")
        await fs.until(lambda: fs.volume.lookup_cached(ROOT, there, b"y") == 0)
        faults = cluster.replica.faults
        faults.hold, faults.hold_kinds = trio.Event(), (CreateDelegated,)
        at_once(fs, elsewhere, b"x")
        errors = []

        async def remove() -> None:
            try:
                await fs.rmdir("/d")
            except FileSystemError as exc:
                errors.append(exc.status)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(remove)
            await trio.testing.wait_all_tasks_blocked(0.02)
            assert len(fs.births) == 1
            made = fs.volume.create_at_once(ROOT, there, b"y", 0o644, os.O_RDWR)
            faults.hold.set()
        await fs.births.flush_all()
        assert made is None or (errors == [errno.ENOTEMPTY] and await fs.stat("/d/y"))


async def test_who_is_refused_a_directory_does_not_list_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The query would have it recalled from whoever has it."""
    looked = []

    async def look(_: Births, __: ops.Cred, parent: int) -> None:
        looked.append(parent)

    monkeypatch.setattr(Births, "_list", look)
    async with mounted(tmp_path) as (cluster, fs):
        async with mount(cluster) as other:
            d = await other.delegated("/d")
            looked.clear()
            at_once(other, d, b"theirs")
            cluster.replica.faults.hold, cluster.replica.faults.hold_kinds = trio.Event(), (Undelegate,)
            fs.births.delegations.asking[d] = False
            await fs.births._ask_for(ROOT, d)
            assert d not in fs.births.delegations.held and not looked
            cluster.replica.faults.hold.set()


async def test_more_numbers_while_many_directories_are_on_their_way_back(tmp_path: Path) -> None:
    """The one in which a file is being made is not given back for that."""
    async with mounted(tmp_path) as (_, fs):
        d = await fs.delegated("/d")
        delegations = fs.births.delegations
        delegations.returning.update(range(1 << 40, (1 << 40) + limits.DELEGATED_MAX))
        while delegations.numbers.left >= limits.NUMBERS_LOW:
            delegations.numbers.take()
        at_once(fs, d, b"f")
        assert d in delegations.held and d in delegations.asking
        await fs.until(lambda: not delegations.asking)
        assert d in delegations.held and delegations.numbers.left >= limits.NUMBERS_LOW

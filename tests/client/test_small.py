"""Files whose bytes are in the metadata, by the client library: what they cost, and what may come between."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
import trio
import trio.testing

from client import limits
from client.api import File, open_file_system
from client.small import SmallFile
from tests.client.test_service import opened
from wire.inline import INLINE_MAX, GrowOut, WriteInline

LIMIT = 4096


async def test_two_ordered_requests_and_no_target(tmp_path: Path) -> None:
    """Create, write, write, close: the create, and the bytes with size and times. There is no target at all."""
    async with opened(tmp_path, targets=0) as (cluster, fs), open_file_system(cluster.config) as other:
        assert await fs.exists("/") and await other.exists("/"), "both sessions are open"
        before = cluster.replica.executed
        async with await fs.create("/f") as file:
            await file.write(b"one ", 0)
            await file.write(b"two", 4)
            assert bytes(await file.read(100, 0)) == b"one two"
        assert cluster.replica.executed - before == 2
        assert await other.read_file("/f") == b"one two"
        assert (await other.stat("/f")).size == 7
        async with await fs.open("/f", os.O_RDWR) as file:
            with pytest.raises(OSError, match="No space"):
                await file.write(b"x", LIMIT)
            await file.write(b"X", 0)
        assert await other.read_file("/f") == b"Xne two"
        assert cluster.replica.machine.reclaimable(9) == []


async def test_a_large_new_file_costs_one_request_more(tmp_path: Path) -> None:
    async with opened(tmp_path) as (cluster, fs):
        assert await fs.exists("/")
        before = cluster.replica.executed
        await fs.write_file("/f", bytes(LIMIT + 1))
        assert cluster.replica.executed - before == 3


async def test_random_io_of_two_clients(tmp_path: Path) -> None:
    """One model per file; handles of two clients, that flush before the other's turn comes. Some files grow out."""
    seed = random.Random(8)
    async with opened(tmp_path) as (cluster, fs), open_file_system(cluster.config) as other:
        for number in range(8):
            size = seed.choice((500, 3000, LIMIT, 6000, 200_000))
            model = bytearray()
            path = f"/f{number}"
            await fs.write_file(path, b"")
            handles: list[File] = [await side.open(path, os.O_RDWR) for side in (fs, other, fs, other)]
            appending = [await side.open(path, os.O_WRONLY | os.O_APPEND) for side in (fs, other)]
            for _ in range(60):
                turn = seed.randrange(2)
                handle = handles[turn + 2 * seed.randrange(2)]
                at, length = seed.randrange(size), seed.randrange(1, 1 + size // 4)
                match seed.randrange(8):
                    case 0 | 1 | 2:
                        data = seed.randbytes(length)
                        assert await handle.write(data, at) == length
                        model.extend(bytes(max(0, at - len(model))))
                        model[at : at + length] = data
                    case 3:
                        await handle.truncate(at)
                        model = model[:at].ljust(at, b"\0")
                    case 4:
                        data = seed.randbytes(length // 4 + 1)
                        await appending[turn].write(data)
                        model += data
                    case 5:
                        cluster.replica.faults.lose_replies = 1
                    case _:
                        assert bytes(await handle.read(length, at)) == model[at : at + length]
                assert (await handle.stat()).size == len(model)
                await handle.flush()
                assert await (fs, other)[1 - turn].read_file(path) == model
            for file in (*handles, *appending):
                await file.close()


async def test_cut_off_what_was_not_told_and_what_was_read(tmp_path: Path) -> None:
    """Neither what waits here to be told nor what is kept for reading comes back when the file is extended."""
    async with opened(tmp_path) as (cluster, fs), open_file_system(cluster.config) as other:
        async with await fs.create("/f") as file:
            await file.write(b"0123456789", 0)
            await file.truncate(6)
            assert await other.read_file("/f") == b"012345"
            assert bytes(await file.read(100, 0)) == b"012345"
            await file.truncate(4)
            await file.truncate(8)
            assert bytes(await file.read(100, 0)) == b"0123" + bytes(4)
            await file.write(b"x", 8)
        assert await fs.read_file("/f") == await other.read_file("/f") == b"0123" + bytes(4) + b"x"


async def test_two_clients_let_one_file_grow_out_at_once(tmp_path: Path) -> None:
    """Each writes its own part, below and beyond the limit, while the other does: nothing is lost."""
    async with opened(tmp_path) as (cluster, fs), open_file_system(cluster.config) as other:
        for number in range(15):
            path = f"/f{number}"
            await fs.write_file(path, b"." * LIMIT)
            files = [await side.open(path, os.O_RDWR) for side in (fs, other)]

            async def write(which: int, files: list[File] = files) -> None:
                for k in range(10):
                    await files[which].write(b"%d" % which * 100, (2 * k + which) * 450)
                    if k % 3 == 0:
                        await files[which].flush()
                await files[which].close()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(write, 0)
                nursery.start_soon(write, 1)
            wanted = bytearray(b"." * LIMIT + bytes(19 * 450 + 100 - LIMIT))
            for k in range(10):
                for which in (0, 1):
                    at = (2 * k + which) * 450
                    wanted[at : at + 100] = b"%d" % which * 100
            assert await fs.read_file(path) == await other.read_file(path) == wanted, path


async def test_bytes_that_change_while_they_are_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1. One client has written the old bytes to objects. 2. Another changes them. 3. What was moved is void."""
    async with opened(tmp_path) as (cluster, fs), open_file_system(cluster.config) as other:
        await fs.write_file("/f", b"old")
        copy = SmallFile._copy
        rounds = []

        async def slow(self: SmallFile, number: int, granted: bytes) -> bool:
            done = await copy(self, number, granted)
            rounds.append(number)
            if len(rounds) == 1:
                async with await other.open("/f", os.O_WRONLY) as file:
                    await file.write(b"NEW", 0)
            return done

        monkeypatch.setattr(SmallFile, "_copy", slow)
        async with await fs.open("/f", os.O_RDWR) as file:
            await file.write(b"end", LIMIT)
        assert len(rounds) == 2
        assert await other.read_file("/f") == b"NEW" + bytes(LIMIT - 3) + b"end"
        assert [number for number, _ in cluster.replica.machine.reclaimable(9)] == rounds[:1]


async def test_more_pieces_than_one_message_takes(tmp_path: Path) -> None:
    async with opened(tmp_path, inline=INLINE_MAX) as (_, fs):
        async with await fs.create("/f") as file:
            for at in range(0, INLINE_MAX, 8):
                await file.write(b"x", at)
        assert await fs.read_file("/f") == (b"x" + bytes(7)) * (INLINE_MAX // 8 - 1) + b"x"
        assert (await fs.stat("/f")).inline == INLINE_MAX


async def test_a_write_beyond_a_quota_is_refused_and_not_lost_at_close(tmp_path: Path) -> None:
    """What is taken at once would be refused with the commit only."""
    async with opened(tmp_path) as (_, fs):
        volume = fs.volume
        await fs.mkdir("/d")
        await volume.setxattr(fs.cred, (await fs.stat("/d")).ino, b"lockstep.quota", b"bytes_hard=100")
        file = await fs.create("/d/f")
        assert not volume.write_at_once(file._handle, 0, b"x" * 101)
        with pytest.raises(OSError, match="quota"):
            await file.write(b"x" * 101, 0)
        await file.write(b"x" * 100, 0)
        assert volume.write_at_once(file._handle, 50, b"y" * 50), "it does not grow by that"
        await file.close()
        assert await fs.read_file("/d/f") == b"x" * 50 + b"y" * 50


@pytest.mark.parametrize("inline", [0, LIMIT])
async def test_more_files_at_once_than_may_wait_to_be_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inline: int
) -> None:
    """A commit that finds the queue full is no commit that was refused: no byte is lost for it."""
    count = limits.SLOTS + 20
    async with opened(tmp_path, inline=inline) as (_, fs):
        files = [await fs.create(f"/f{k}") for k in range(count)]
        for file in files:
            await file.write(b"written", 0)
        monkeypatch.setattr(limits, "WAITING_MAX", 4)
        await fs.volume.pool.flush_all()
        monkeypatch.undo()
        for k, file in enumerate(files):
            await file.close()
            assert await fs.read_file(f"/f{k}") == b"written"


async def test_who_is_killed_while_it_moves_the_bytes_leaves_them(tmp_path: Path) -> None:
    async with opened(tmp_path, targets=1) as (cluster, fs):
        await fs.write_file("/f", b"small")
        await cluster.stop_target()
        file = await fs.open("/f", os.O_RDWR)
        with trio.move_on_after(0.3) as scope:
            await file.write(b"end", LIMIT)
        assert scope.cancelled_caught
        async with open_file_system(cluster.config) as other:
            assert await other.read_file("/f") == b"small"
            await other.write_file("/g", b"no target is needed")
        await cluster.start_target(1)
        await file.write(b"end", LIMIT)
        await file.close()
        assert await fs.read_file("/f") == b"small" + bytes(LIMIT - 5) + b"end"


async def test_lost_answers_and_a_cancelled_close(tmp_path: Path) -> None:
    """The bytes are told again, whether they were taken or not."""
    async with opened(tmp_path) as (cluster, fs):
        file = await fs.create("/f")
        await file.write(b"x" * 10, 0)
        cluster.replica.faults.lose_replies = 2
        await file.flush()
        await file.write(b"y" * 10, 5)
        cluster.replica.faults.hold = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(file.flush)
            await trio.testing.wait_all_tasks_blocked()
            await file.write(b"later", 6)
            nursery.cancel_scope.cancel()
        await file.write(b"z", 0)
        assert file._handle.data.size == 15
        cluster.replica.faults.hold.set()
        cluster.replica.faults.hold = None
        await file.close()
        assert await fs.read_file("/f") == b"zxxxxylateryyyy"
        assert fs.volume.pool.unsent == 0


async def test_another_limit_is_set_under_a_writer(tmp_path: Path) -> None:
    """The service refuses bytes that do not belong into the metadata any more; the application sees nothing of it."""
    async with opened(tmp_path) as (cluster, fs), open_file_system(cluster.config) as other:
        for limit in (0, 5, 100):
            path = f"/f{limit}"
            file = await fs.create(path)
            await file.write(b"0123456789", 0)
            text = b"inline=%d" % limit
            await other.volume.setxattr(other.cred, file.ino, b"lockstep.layout", text)
            await file.close()
            assert await other.read_file(path) == b"0123456789"
            assert (await other.stat(path)).inline == (100 if limit == 100 else 0)


def test_messages_name_what_is_wrong() -> None:
    assert "not come after" in str(WriteInline(5, ((4, b"abc"), (6, b"x")), 0).invalid())
    assert "65536 may be" in str(WriteInline(5, ((65536, b"x"),), 0).invalid())
    assert GrowOut(0).invalid() is not None

"""What cannot be read at its only holder stops no synchronisation of anything else; given up, it stays an error."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from ossd import limits
from ossd.ledger import BLOCK
from ossd.store import TRIM_ATTR, Disk
from tests.ossd.serving import calling
from tests.ossd.test_copies import CHAIN, KEY, Some, some
from wire.chains import OFFLINE, SERVING, SYNCING
from wire.errors import OK, Status
from wire.messages import ObjectDelete, ObjectKey, ObjectRead, ObjectTruncate, Role
from wire.storage import Beat, TargetGiveUp

BAD = KEY
OTHERS = [ObjectKey(ino, 0) for ino in (3, 4, 6, 7)]


def rot(row: Some, block: int, target: int = 1, key: tuple[int, int] = (5, 0)) -> None:
    """Change a byte of *block* behind the target's back."""
    where = row.file(target, key)
    assert where is not None
    with where.open("r+b") as file:
        file.seek(block * BLOCK + 7)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def bad_sector(context: pytest.MonkeyPatch, row: Some, block: int, target: int = 1) -> None:
    """The disk ends every read of *block* of KEY in an error."""
    real = Disk.pread

    def pread(fd: int, count: int, offset: int) -> bytes:
        if str(row.file(target)) == os.readlink(f"/proc/self/fd/{fd}") and offset <= block * BLOCK < offset + count:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(fd, count, offset)

    context.setattr(Disk, "pread", staticmethod(pread))


async def stuck(row: Some, source: int = 1) -> list[Any]:
    """What *source* says that it cannot give, when it has gone through everything else and waits."""
    with trio.fail_after(30):
        while (status := await row.status(source))["unreadable_objects"] == 0 or status["syncing"][0][2] < 99:
            await trio.testing.wait_all_tasks_blocked(0.005)
    assert len(status["unreadable"]) == status["unreadable_objects"]
    await row.keepers[source].answer_to_beat(Beat(row.keepers[source].said.number + 1, 0, row.version, b""))
    assert row.keepers[source].said.synced == (), "not everything is there"
    return list(status["unreadable"])


async def give_up(row: Some, *inodes: int, at: int = 1) -> list[Any]:
    async with calling(row.ports[at], Role.ADMIN) as admin:
        status, body, _ = await admin.call(TargetGiveUp, inodes)
    assert status == OK
    return list(body)


async def read(row: Some, at: int, offset: int, length: int, key: ObjectKey = KEY) -> tuple[int, bytes]:
    """(status, data) of a read at a target that alone has the chain."""
    status, _, data = await row.clients[at].call(ObjectRead, key, CHAIN, row.chain_version, (), offset, length)
    return status, bytes(data)


async def written(row: Some) -> bytes:
    for key in OTHERS:
        assert await row.write(0, b"other %d" % key.ino, key=key) == OK
    data = os.urandom(5 * BLOCK + 100)
    assert await row.write(0, data) == OK
    return data


@pytest.mark.parametrize("ahead", [64, 2], ids=["small", "large"])
@pytest.mark.parametrize("how", ["rot", "sector"])
async def test_one_block_stops_nothing_else_and_is_an_error_when_it_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, ahead: int
) -> None:
    monkeypatch.setattr(limits, "AHEAD_BLOCKS", ahead)
    async with some(tmp_path, 1) as row:
        data = await written(row)
        if how == "rot":
            rot(row, 2)
        else:
            bad_sector(monkeypatch, row, 2)
        await row.start(2)
        await row.tell((1, SERVING), (2, SYNCING))
        (told,) = await stuck(row)
        assert told[:6] == (CHAIN, 2, 5, 0, ((2 * BLOCK, BLOCK),), BLOCK)
        there = row.file(2)
        assert there is not None and there.read_bytes()[3 * BLOCK :] == data[3 * BLOCK :], "the blocks after it"
        for key in OTHERS:
            assert row.file(2, (key.ino, 0)) is not None
        assert await give_up(row, 4711) == [], "it is about other files"
        assert await give_up(row, 5) == [told]
        await row.synced(1, 2)
        await row.tell((2, SERVING))
        for key in OTHERS:
            assert await read(row, 2, 0, 100, key) == (OK, b"other %d" % key.ino)
        for offset, length in ((2 * BLOCK, 1), (3 * BLOCK - 1, 1), (0, len(data)), (2 * BLOCK - 1, 2)):
            assert await read(row, 2, offset, length) == (Status.CORRUPT, b""), offset
        assert await read(row, 2, 0, 2 * BLOCK) == (OK, data[: 2 * BLOCK])
        assert await read(row, 2, 3 * BLOCK, 3 * BLOCK) == (OK, data[3 * BLOCK :])
        assert [text for text in await row.scrubbed(2) if "block 2 was given up" in text]


async def test_what_becomes_unreadable_later_is_for_another_decision(tmp_path: Path) -> None:
    async with some(tmp_path, 1) as row:
        await written(row)
        for _ in range(2):
            rot(row, 2)
            shutil.rmtree(tmp_path / "t2", ignore_errors=True)
            await row.start(2)
            await row.tell((1, SERVING), (2, SYNCING))
            await stuck(row)
            await give_up(row)
            await row.synced(1, 2)
            assert await row.write(2 * BLOCK, b"n" * BLOCK) == OK
            await row.stop(2)


async def test_it_is_tried_again_and_may_succeed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "UNREADABLE_AGAIN_S", 0.02)
    async with some(tmp_path, 1) as row:
        data = await written(row)
        with monkeypatch.context() as context:
            bad_sector(context, row, 2)
            await row.start(2)
            await row.tell((1, SERVING), (2, SYNCING))
            await stuck(row)
        await row.synced(1, 2)
        assert (await row.status(1))["unreadable"] == ()
        await row.tell((2, SERVING))
        assert await read(row, 2, 0, len(data)) == (OK, data)


@pytest.mark.parametrize("how", ["written", "cut", "deleted"])
async def test_who_needs_the_bytes_no_more_ends_the_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(limits, "UNREADABLE_AGAIN_S", 0.02)
    async with some(tmp_path, 1) as row:
        data = await written(row)
        rot(row, 2)
        await row.start(2)
        await row.tell((1, SERVING), (2, SYNCING))
        await stuck(row)
        if how == "written":
            assert await row.write(2 * BLOCK, bytes(BLOCK)) == OK
            data = data[: 2 * BLOCK] + bytes(BLOCK) + data[3 * BLOCK :]
        elif how == "cut":
            trim = ((1, 2 * BLOCK),)
            assert (await row.clients[1].call(ObjectTruncate, KEY, CHAIN, row.chain_version, trim))[0] == OK
            data = data[: 2 * BLOCK]
        else:
            async with calling(row.ports[1], Role.MDS, "1") as mds:
                assert (await mds.call(ObjectDelete, CHAIN, row.chain_version, ((5, 0),)))[0] == OK
            data = b""
        await row.synced(1, 2)
        await row.tell((2, SERVING))
        assert await read(row, 2, 0, 6 * BLOCK) == (OK, data)


async def given_up(row: Some) -> bytes:
    """Block 2 of KEY has a mark at target 2, which alone has the chain now."""
    data = await written(row)
    rot(row, 2)
    await row.start(2)
    await row.tell((1, SERVING), (2, SYNCING))
    await stuck(row)
    await give_up(row)
    await row.synced(1, 2)
    await row.tell((2, SERVING))
    return data


async def test_a_mark_is_no_part_of_what_is_written_and_goes_with_all_of_the_block(tmp_path: Path) -> None:
    async with some(tmp_path, 1) as row:
        data = await given_up(row)
        for offset, piece in ((2 * BLOCK, b"!"), (2 * BLOCK + 5, b"!" * BLOCK), (BLOCK, bytes(BLOCK + 1))):
            assert await row.write(offset, piece, at=2) == Status.CORRUPT, "the rest of it would be what nobody wrote"
        assert (await read(row, 2, 0, len(data)))[0] == Status.CORRUPT
        assert await row.write(2 * BLOCK, b"n" * BLOCK, at=2) == OK
        assert await read(row, 2, 0, len(data)) == (OK, data[: 2 * BLOCK] + b"n" * BLOCK + data[3 * BLOCK :])
        assert await row.scrubbed(2) == []


@pytest.mark.parametrize("cut", [2 * BLOCK + 10, 2 * BLOCK])
async def test_a_file_is_cut_within_a_mark(tmp_path: Path, cut: int) -> None:
    async with some(tmp_path, 1) as row:
        data = await given_up(row)
        trim = ((1, cut),)
        assert (await row.clients[2].call(ObjectTruncate, KEY, CHAIN, row.chain_version, trim))[0] == OK
        assert await read(row, 2, 0, 2 * BLOCK) == (OK, data[: 2 * BLOCK])
        assert await row.write(cut, b"more", at=2) == (OK if cut == 2 * BLOCK else Status.CORRUPT)
        assert await read(row, 2, 2 * BLOCK, BLOCK) == ((OK, b"more") if cut == 2 * BLOCK else (Status.CORRUPT, b""))


@pytest.mark.parametrize("how", ["stopped", "power"])
async def test_a_mark_outlives_its_daemon_and_goes_on_to_the_next_copy(tmp_path: Path, memory: Path, how: str) -> None:
    """After a power cut what does not match its sum is accepted as torn: not so what was given up."""
    async with some(tmp_path, 1) as row:
        data = await given_up(row)
        uuid, before = (await row.status(2))["uuid"], (await row.status(2))["incarnation"]
        await row.stop(2)
        if how == "power":
            (memory / f"lockstep-lost-{uuid}").touch()
        await row.start(2)
        await row.tell((2, SERVING))
        assert (await row.status(2))["incarnation"] == before + (how == "power")
        assert await read(row, 2, 2 * BLOCK, 10) == (Status.CORRUPT, b"")
        await row.start(3)
        await row.tell((2, SERVING), (3, SYNCING))
        await row.synced(2, 3)
        await row.tell((3, SERVING))
        assert await read(row, 3, 2 * BLOCK, 10) == (Status.CORRUPT, b"")
        assert await read(row, 3, 3 * BLOCK, 3 * BLOCK) == (OK, data[3 * BLOCK :])


async def test_a_copy_that_turns_up_with_the_bytes_mends_a_mark(tmp_path: Path) -> None:
    """1. A copy is away. 2. The other one has a bad block, and is moved without it. 3. The one away returns."""
    async with some(tmp_path, 1, 3) as row:
        data = await written(row)
        await row.tell((1, SERVING), (3, OFFLINE))
        rot(row, 2)
        await row.start(2)
        await row.tell((1, SERVING), (3, OFFLINE), (2, SYNCING))
        await stuck(row)
        await give_up(row)
        await row.synced(1, 2)
        await row.tell((2, SERVING), (3, OFFLINE))
        assert (await read(row, 2, 0, len(data)))[0] == Status.CORRUPT
        await row.tell((2, SERVING), (3, SYNCING))
        await row.synced(2, 3)
        await row.tell((2, SERVING), (3, SERVING))
        assert await row.read(3) == data, "its copy is what it was"
        assert await row.read(2) == data
        assert await row.scrubbed(2) == []


async def test_what_is_given_up_while_it_was_changed_there_leaves_a_good_block_alone(tmp_path: Path) -> None:
    """As above, but the object has changed meanwhile, so it is compared block by block."""
    async with some(tmp_path, 1, 3) as row:
        data = await written(row)
        await row.tell((1, SERVING), (3, OFFLINE))
        rot(row, 2)
        await row.start(2)
        await row.tell((1, SERVING), (3, OFFLINE), (2, SYNCING))
        await stuck(row)
        await give_up(row)
        await row.synced(1, 2)
        await row.tell((2, SERVING), (3, OFFLINE))
        assert await row.write(0, b"changed", at=2) == OK
        data = b"changed" + data[7:]
        await row.tell((2, SERVING), (3, SYNCING))
        await row.synced(2, 3)
        await row.tell((2, SERVING), (3, SERVING))
        assert await row.read(3) == data
        assert await row.read(2) == data


async def test_an_object_that_cannot_be_opened(tmp_path: Path) -> None:
    """Given up, it is an error as a whole wherever it is moved to, until it is deleted."""
    async with some(tmp_path, 1) as row:
        await written(row)
        where = row.file(1)
        assert where is not None
        await row.stop(1)
        os.setxattr(where, TRIM_ATTR, b"123")
        await row.start(1)
        await row.start(2)
        await row.tell((1, SERVING), (2, SYNCING))
        (told,) = await stuck(row)
        assert told[:6] == (CHAIN, 2, 5, 0, (), 0) and TRIM_ATTR in told[6]
        assert await give_up(row) == [told]
        await row.synced(1, 2)
        await row.start(3)
        await row.tell((2, SERVING), (3, SYNCING))
        await row.synced(2, 3)
        for target in (2, 3):
            await row.tell((target, SERVING))
            for key in OTHERS:
                assert await read(row, target, 0, 100, key) == (OK, b"other %d" % key.ino)
            assert await read(row, target, 0, 100) == (Status.CORRUPT, b"")
            assert await row.write(0, b"anew", at=target) == Status.CORRUPT
            assert [text for text in await row.scrubbed(target) if "given up" in text]
        async with calling(row.ports[3], Role.MDS, "1") as mds:
            assert (await mds.call(ObjectDelete, CHAIN, row.chain_version, ((5, 0),)))[0] == OK
        assert await row.write(0, b"anew", at=3) == OK
        assert await read(row, 3, 0, 100) == (OK, b"anew")


async def test_a_ledger_that_cannot_be_read_hides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of such an object it is not even known which chain it belongs to, but it is not passed over."""
    real = os.pread
    async with some(tmp_path, 1) as row:
        await written(row)
        await row.stop(1)
        await row.start(1)

        def pread(fd: int, count: int, offset: int) -> bytes:
            where = os.readlink(f"/proc/self/fd/{fd}")
            if "/t1/ledgers/" in where and where.endswith("0000000000000005.0000"):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(fd, count, offset)

        monkeypatch.setattr(os, "pread", pread)
        await row.start(2)
        await row.tell((1, SERVING), (2, SYNCING))
        (told,) = await stuck(row)
        assert told[2:6] == (5, 0, (), 0)
        await give_up(row, 5)
        await row.synced(1, 2)
        await row.tell((2, SERVING))
        assert await read(row, 2, 0, 100) == (Status.CORRUPT, b"")


async def test_a_bad_sector_is_mended_from_another_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the disk says that it cannot read, as well as where it reads something else."""
    async with some(tmp_path, 1, 2) as row:
        data = await written(row)
        with monkeypatch.context() as context:
            bad_sector(context, row, 2)
            await row.start(3)
            await row.tell((1, SERVING), (2, SERVING), (3, SYNCING))
            await row.synced(2, 3)
        with monkeypatch.context() as context:
            bad_sector(context, row, 2)
            assert [text for text in await row.scrubbed(1) if "block 2" in text] == []
        await row.tell((3, SERVING))
        assert await read(row, 3, 0, len(data)) == (OK, data)

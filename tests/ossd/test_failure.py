"""A disk that fails is a target that fails: with another copy nobody is told, with none the writer is."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from ossd.ledger import BLOCK
from ossd.store import Disk
from tests.ossd.serving import KEY, Caller
from tests.ossd.test_copies import CHAIN, Some, some
from wire.chains import OFFLINE, SERVING, SYNCING
from wire.errors import OK, Status
from wire.messages import ObjectSync
from wire.storage import Beat


def break_disk(context: pytest.MonkeyPatch, call: str, number: int, target: int) -> None:
    """*call* ends in error *number* from now on for all files of *target*."""
    real = getattr(Disk, call)

    def broken(fd: int, *args: Any) -> Any:
        if f"/t{target}/" in os.readlink(f"/proc/self/fd/{fd}"):
            raise OSError(number, os.strerror(number))
        return real(fd, *args)

    context.setattr(Disk, call, staticmethod(broken))


async def says_failed(keeper: Caller) -> bool:
    await keeper.answer_to_beat(Beat(keeper.said.number + 1, 0, 0, b""))
    failed: bool = keeper.said.failed
    return failed


async def sync(row: Some, at: int) -> int:
    return (await row.clients[at].call(ObjectSync, KEY, CHAIN, row.chain_version))[0]


@pytest.mark.parametrize("broken", [1, 2], ids=["head", "tail"])
@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS])
async def test_writers_go_on_with_the_other_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, broken: int, number: int
) -> None:
    other = 3 - broken
    async with some(tmp_path, 1, 2) as made:
        assert await made.write(0, b"before") == OK
        with monkeypatch.context() as context:
            break_disk(context, "pwrite", number, broken)
            answered: list[int] = []

            async def write() -> None:
                answered.append(await made.write(0, b"during"))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(write)
                with trio.fail_after(10):
                    while not await says_failed(made.keepers[broken]):
                        await trio.testing.wait_all_tasks_blocked(0.005)
                await made.tell((broken, OFFLINE), (other, SERVING))
            assert answered[0] in (Status.NOT_SERVING, Status.STALE_CHAIN, OK), "it is to be tried again"
            assert await made.write(0, b"during", at=other) == OK
            assert await sync(made, other) == OK
        assert await made.read(other) == b"during"
        assert not await says_failed(made.keepers[other])
        assert await says_failed(made.keepers[broken]), "it does not come back, although the disk works again"
        assert os.strerror(number) in (await made.status(broken))["failure"]
        assert "ITS DISK HAS FAILED" in caplog.text and "target replace" in caplog.text
        await made.stop(broken)
        await made.start(broken)
        assert not await says_failed(made.keepers[broken]), "it was started again"
        await made.tell((broken, SYNCING), (other, SERVING))
        await made.synced(other, broken)
        await made.tell((broken, SERVING), (other, SERVING))
        assert await made.read(broken) == b"during"


@pytest.mark.parametrize("broken", [1, 2], ids=["head", "tail"])
async def test_a_sync_that_fails_does_not_succeed_there_when_it_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: int
) -> None:
    """1. fdatasync fails, and the kernel forgets the pages. 2. The next would succeed. 3. Nothing is told of it."""
    async with some(tmp_path, 1, 2) as made:
        assert await made.write(0, b"data") == OK
        answered: list[int] = []
        async with trio.open_nursery() as nursery:
            with monkeypatch.context() as context:
                break_disk(context, "fdatasync", errno.EIO, broken)
                break_disk(context, "fsync", errno.EIO, broken)

                async def flush() -> None:
                    answered.append(await sync(made, 1))

                nursery.start_soon(flush)
                with trio.fail_after(10):
                    while not await says_failed(made.keepers[broken]):
                        await trio.testing.wait_all_tasks_blocked(0.005)
            if broken == 1:
                assert await sync(made, 1) == Status.NOT_SERVING, "its head has failed"
            await made.tell((broken, OFFLINE), (3 - broken, SERVING))
        assert answered[0] != errno.EIO
        assert await sync(made, 3 - broken) == OK
        await made.stop(broken)


async def test_what_a_failed_disk_has_lost_is_given_to_it_after_a_clean_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. The tail's disk loses data, the one who wrote it is told. 2. The tail is stopped, and its disk repaired: the
    data is gone, the ledger, another file, has the stamp. 3. It is not to be taken for equal."""
    data = os.urandom(3 * BLOCK + 10)
    async with some(tmp_path, 1, 2) as made:
        async with trio.open_nursery() as nursery:
            with monkeypatch.context() as context:
                break_disk(context, "fdatasync", errno.EIO, 2)
                break_disk(context, "fsync", errno.EIO, 2)
                assert await made.write(0, data) == OK
                nursery.start_soon(sync, made, 1)
                with trio.fail_after(10):
                    while not await says_failed(made.keepers[2]):
                        await trio.testing.wait_all_tasks_blocked(0.005)
            await made.tell((1, SERVING), (2, OFFLINE))
        await made.stop(2)
        short = made.file(2)
        assert short is not None
        os.truncate(short, BLOCK)
        await made.start(2)
        await made.tell((1, SERVING), (2, SYNCING))
        await made.synced(1, 2)
        await made.tell((1, SERVING), (2, SERVING))
        assert await made.read(2) == data


async def test_a_failed_disk_does_not_put_what_it_shows_over_a_good_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. The head's disk has dropped what it was to write. 2. A write goes on where the block ended, so nothing of it
    is read, and fails at the head when the other copy has it. 3. The other copy stays as it is."""
    async with some(tmp_path, 1, 2) as made:
        assert await made.write(0, b"acknowledged") == OK
        dropped = made.file(1)
        assert dropped is not None
        dropped.write_bytes(bytes(12))
        with monkeypatch.context() as context:
            break_disk(context, "pwrite", errno.EIO, 1)
            assert await made.write(12, b" and more") == Status.NOT_SERVING
        await made.tell((1, OFFLINE), (2, SERVING))
        assert await made.read(2) == b"acknowledged and more"


async def test_with_one_copy_the_writer_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with some(tmp_path, 1) as made:
        assert await made.write(0, b"before") == OK
        with monkeypatch.context() as context:
            break_disk(context, "pwrite", errno.EIO, 1)
            assert await made.write(0, b"after") == errno.EIO
        assert await made.read(1) == b"before", "what can be read is"
        assert await says_failed(made.keepers[1])


async def test_no_space_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with some(tmp_path, 1, 2) as made:
        assert await made.write(0, b"before") == OK
        with monkeypatch.context() as context, caplog.at_level(logging.CRITICAL):
            break_disk(context, "pwrite", errno.ENOSPC, 2)
            assert await made.write(0, b"x" * 10) == errno.ENOSPC
        assert not await says_failed(made.keepers[2]) and "FAILED" not in caplog.text
        assert await made.write(0, b"after") == OK

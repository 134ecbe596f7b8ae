"""What a target makes of disk errors, lost writes, bad messages, and clients that go."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest

from ossd import target as target_module
from ossd.store import Disk
from tests.ossd.serving import KEY, Caller, GatedDisk, calling, in_threads
from wire.codec import pack
from wire.errors import OK, Status
from wire.messages import ObjectDelete, ObjectRead, ObjectSync, ObjectWrite, QueryCall, StatusCall, TargetStat
from wire.peer import ConnectionLost


@pytest.mark.parametrize("threads", [False, True])
@pytest.mark.parametrize(
    ("raised", "told"),
    [(errno.EIO, errno.EIO), (errno.ENOSPC, errno.ENOSPC), (errno.EDQUOT, errno.EDQUOT), (errno.EMFILE, errno.EIO)],
)
async def test_disk_errors(
    client: Caller, monkeypatch: pytest.MonkeyPatch, threads: bool, raised: int, told: int
) -> None:
    """The writer is told, the target goes on."""
    if threads:
        in_threads(monkeypatch)
    assert await client.write(0, b"abc") == OK

    def fail(*args: Any) -> int:
        raise OSError(raised, os.strerror(raised))

    with monkeypatch.context() as context:
        context.setattr(Disk, "pwrite", staticmethod(fail))
        context.setattr(Disk, "pread", staticmethod(fail))
        context.setattr(Disk, "preadv", staticmethod(fail))
        context.setattr(Disk, "unlink", staticmethod(fail))
        assert await client.write(0, b"xyz") == told
        assert (await client.call(ObjectRead, KEY, 1, 1, (), 0, 3))[0] == told
    assert await client.read() == b"abc"
    counted = (await client.call(StatusCall))[1]["disk_errors"]
    assert (counted == 0) == (raised in (errno.ENOSPC, errno.EDQUOT))


async def test_lost_writes_are_told_to_each_client(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Known by its name, so also over a new connection."""

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    async with calling(port, name="a") as a:
        assert await a.write(0, b"a") == OK
    async with calling(port, name="b") as b:
        assert await b.write(1, b"b") == OK
        with monkeypatch.context() as context:
            context.setattr(Disk, "fdatasync", staticmethod(fail))
            assert await b.sync() == errno.EIO
        assert await b.sync() == OK
    async with calling(port, name="c") as c:
        assert await c.sync() == OK
    async with calling(port, name="a") as a:
        assert await a.sync() == errno.EIO
        assert await a.sync() == OK


async def test_bad_messages_are_answered(
    client: Caller, port: int, caplog: pytest.LogCaptureFixture
) -> None:
    client.conn.send_meta(pack((102, 7001, (100, 5, -1), 1, 1, (), 0, 10, b"")))
    assert (await client.answer(7001))[0] == Status.BAD_MESSAGE
    assert "bad message: from 127.0.0.1" in caplog.text
    assert "ObjectKey: object 5.-1" in caplog.text
    client.conn.send_meta(pack((101, 7002, (100, 5, 0), 1, 1, ((1,),), 0, b"")), b"data of it")
    assert (await client.answer(7002))[0] == Status.BAD_MESSAGE
    assert (await client.call(QueryCall, b"op"))[0] == Status.BAD_MESSAGE
    assert "QueryCall from a peer of role client" in caplog.text
    assert (await client.call(ObjectDelete, 1, 1, ((5, 0),)))[0] == Status.BAD_MESSAGE, "clients delete nothing"
    assert (await client.call(ObjectSync, KEY, 1, 1, bulk=b"what for"))[0] == Status.BAD_MESSAGE
    client.conn.send_meta(pack((11, -1)))  # no call: nothing to answer
    assert await client.write(0, b"x") == OK
    assert await client.read() == b"x"


async def test_too_many_bad_messages(client: Caller, port: int, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(target_module.BAD_MESSAGES_MAX + 1):
        client.send(QueryCall, b"op")
    with pytest.raises(ConnectionLost):
        await client.answer(target_module.BAD_MESSAGES_MAX + 1)
    assert "connection dropped" in caplog.text
    async with calling(port) as other:
        assert await other.write(0, b"x") == OK


async def test_garbage(client: Caller, port: int, caplog: pytest.LogCaptureFixture) -> None:
    client.conn._sock.send(b"\xff" * 16)
    with pytest.raises(ConnectionLost):
        await client.sync()
    assert "frame announces a message of" in caplog.text
    async with calling(port) as other:
        assert await other.write(0, b"x") == OK


async def test_a_client_that_goes_in_the_middle(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits is given up, what runs is done; turns are passed on."""
    in_threads(monkeypatch)
    gate = GatedDisk(monkeypatch, "pwrite")
    async with calling(port, name="gone") as gone:
        for k in range(8):
            gone.send(ObjectWrite, KEY, 1, 1, (), k, bulk=b"x")
        await gate.reached()
    async with calling(port) as client:
        write = client.send(ObjectWrite, KEY, 1, 1, (), 20, bulk=b"y")
        assert (await client.call(TargetStat))[0] == OK
        gate.open()
        assert (await client.answer(write))[0] == OK
        data = await client.read()
        assert data[0:1] == b"x"
        assert data[20:] == b"y"
        assert (await client.call(StatusCall))[1]["bytes_under_way"] == 0

"""A target and its clients: data, order, backpressure."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest
import trio
import trio.testing

from ossd import target as target_module
from ossd.store import Disk
from tests.ossd.serving import CLIENT, CLUSTER, KEY, Caller, GatedDisk, calling, in_threads, token_for
from wire.errors import OK
from wire.messages import (
    Hello,
    ObjectDelete,
    ObjectKey,
    ObjectRead,
    ObjectSync,
    ObjectTruncate,
    ObjectWrite,
    Role,
    StatusCall,
    TargetStat,
)
from wire.peer import dial


@pytest.mark.parametrize("threads", [False, True])
async def test_bytes_come_back(client: Caller, monkeypatch: pytest.MonkeyPatch, threads: bool) -> None:
    if threads:
        in_threads(monkeypatch)
    assert await client.read() == b""
    assert await client.write(0, b"hello") == OK
    assert await client.write(10, b"world") == OK
    assert await client.read() == b"hello" + bytes(5) + b"world"
    assert await client.read(12, 2) == b"rl"
    assert await client.read(15, 100) == b""
    assert await client.read(0, 0) == b""
    assert await client.write(3, b"") == OK
    assert await client.read(0, 100, ObjectKey(5, 1)) == b"", "another column, another object"


@pytest.mark.parametrize("size", [4096, 1 << 20, 8 << 20])
async def test_bulk(client: Caller, size: int) -> None:
    data = os.urandom(size)
    assert await client.write(size, data) == OK
    assert await client.read(size, size) == data
    assert await client.sync() == OK


@pytest.mark.parametrize("threads", [False, True])
async def test_truncations(client: Caller, monkeypatch: pytest.MonkeyPatch, threads: bool) -> None:
    if threads:
        in_threads(monkeypatch)
    assert await client.write(0, b"0123456789") == OK
    assert await client.read(known=((1, 4),)) == b"0123"
    assert await client.read() == b"0123456789", "a read does not trim"
    assert await client.write(8, b"x", known=((1, 4),)) == OK
    assert await client.read(known=((1, 4),)) == b"0123" + bytes(4) + b"x"
    assert await client.call(ObjectTruncate, KEY, 1, 1, ((1, 4), (2, 2))) == (OK, None, b"")
    assert await client.read() == b"01"
    assert await client.call(ObjectTruncate, KEY, 1, 1, ()) == (OK, None, b"")


async def test_operations_on_one_object_run_as_received(client: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    """All sent before any is answered: each read sees exactly the writes before it."""
    in_threads(monkeypatch)
    calls = []
    for number in range(60):
        calls.append((number, client.send(ObjectWrite, KEY, 1, 1, (), 0, bulk=b"%08d" % number)))
        for _ in range(number % 3):
            calls.append((number, client.send(ObjectRead, KEY, 1, 1, (), 0, 8)))
    for number, call in calls:
        status, _, data = await client.answer(call)
        assert status == OK
        assert data in (b"", b"%08d" % number)


async def test_clients_write_one_object(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """N-to-1: many clients, interleaved blocks, large and small, in threads and on the event loop."""
    monkeypatch.setattr(target_module, "INLINE_MAX", 20_000)
    clients, blocks, size = 6, 20, 30_000

    async def one(number: int) -> None:
        async with calling(port, name=f"host:{number}:/mnt") as client:
            calls = []
            for k in range(blocks):
                length = size if k % 2 else size // 2
                place = (k * clients + number) * size
                calls.append(client.send(ObjectWrite, KEY, 1, 1, (), place, bulk=bytes([number + 1]) * length))
            for call in calls:
                assert (await client.answer(call))[0] == OK
            assert await client.sync() == OK

    async with trio.open_nursery() as nursery:
        for number in range(clients):
            nursery.start_soon(one, number)
    async with calling(port) as client:
        for k in range(blocks):
            for number in range(clients):
                length = size if k % 2 else size // 2
                data = await client.read((k * clients + number) * size, size)
                assert data[:length] == bytes([number + 1]) * length
                assert not any(data[length:])


async def test_a_slow_object_does_not_stop_others(client: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await client.write(0, b"a") == OK
    gate = GatedDisk(monkeypatch, "fdatasync")
    sync = client.send(ObjectSync, KEY, 1, 1)
    await gate.reached()
    assert await client.write(0, b"b", ObjectKey(6, 0)) == OK
    assert await client.write(1, b"c") == OK, "nor does a sync stop writes to its own object"
    assert await client.read() == b"ac"
    gate.open()
    assert (await client.answer(sync))[0] == OK


async def test_a_write_waits_for_reads_and_reads_for_the_write(
    client: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_threads(monkeypatch)
    assert await client.write(0, b"old") == OK
    gate = GatedDisk(monkeypatch, "pread", "pwrite")
    reads = [client.send(ObjectRead, KEY, 1, 1, (), 0, 3) for _ in range(3)]
    write = client.send(ObjectWrite, KEY, 1, 1, (), 0, bulk=b"new")
    last = client.send(ObjectRead, KEY, 1, 1, (), 0, 3)
    await gate.reached(3)
    assert gate.begun == ["pread"] * 3, "the reads together, the write not yet"
    gate.open()
    for call in reads:
        assert (await client.answer(call))[2] == b"old"
    assert (await client.answer(write))[0] == OK
    assert (await client.answer(last))[2] == b"new"


async def test_syncs_share_their_work(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many clients sync one object at the end of a step: the disk is asked twice, not once for each."""
    async with calling(port) as client:
        assert await client.write(0, b"a") == OK
        gate = GatedDisk(monkeypatch, "fdatasync")
        first = client.send(ObjectSync, KEY, 1, 1)
        await gate.reached()
        assert await client.write(1, b"b") == OK
        others = [client.send(ObjectSync, KEY, 1, 1) for _ in range(10)]
        assert await client.read() == b"ab"
        gate.open()
        for call in [first, *others]:
            assert (await client.answer(call))[0] == OK
        assert gate.begun == ["fdatasync"] * 2


async def test_sync_of_nothing(client: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = GatedDisk(monkeypatch, "fdatasync", "fsync")
    assert await client.sync() == OK
    gate.open()
    assert await client.write(0, b"a") == OK
    assert await client.sync() == OK
    assert await client.sync() == OK
    assert gate.begun == ["fdatasync"]


async def test_delete(client: Caller, mds: Caller) -> None:
    for column in range(3):
        assert await client.write(0, b"x", ObjectKey(5, column)) == OK
    assert await mds.call(ObjectDelete, 1, 1, ((5, 0), (5, 1), (5, 0), (77, 3))) == (OK, None, b"")
    assert await client.read() == b""
    assert await client.read(key=ObjectKey(5, 2)) == b"x"
    assert await mds.call(ObjectDelete, 1, 1, ((5, 0), (5, 1))) == (OK, None, b""), "done already"
    assert await mds.call(ObjectDelete, 1, 1, ()) == (OK, None, b"")


async def test_delete_comes_after_the_writes_before_it(
    client: Caller, mds: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_threads(monkeypatch)
    gate = GatedDisk(monkeypatch, "pwrite")
    write = client.send(ObjectWrite, KEY, 1, 1, (), 0, bulk=b"x")
    await gate.reached()
    delete = mds.send(ObjectDelete, 1, 1, ((6, 0), (5, 0), (7, 0)))
    other = mds.send(ObjectDelete, 1, 1, ((7, 0), (5, 0), (6, 0)))
    assert (await mds.call(TargetStat))[0] == OK, "the deletes were received before this"
    gate.open()
    for caller, call in ((client, write), (mds, delete), (mds, other)):
        assert (await caller.answer(call))[0] == OK
    assert await client.read() == b""


# --- limits ---------------------------------------------------------------------------------------


async def test_a_client_that_takes_no_answers(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks for much and reads nothing: what it costs is bounded, and others are served meanwhile."""
    monkeypatch.setattr(target_module, "BYTES_MAX", 4 << 20)
    monkeypatch.setattr(target_module, "CONNECTION_BYTES_MAX", 4 << 20)
    async with calling(port) as client:
        assert await client.write(0, bytes(1 << 20)) == OK
    hello = Hello(1, CLUSTER, Role.CLIENT, "greedy", CLIENT, 0, "main")
    greedy = await dial(f"127.0.0.1:{port}", hello)
    for call in range(200):
        greedy.send(ObjectRead(call, KEY, 1, 1, (), 0, 1 << 20, token_for(KEY.ino, chains=(1,))))
    async with calling(port) as client:
        for _ in range(20):
            assert await client.write(0, b"x") == OK
            assert len(await client.read(0, 1 << 20)) == 1 << 20
        status = (await client.call(StatusCall))[1]
        assert status["bytes_under_way"] <= 6 << 20
        with trio.fail_after(30):
            for _ in range(200):
                msg, bulk = await greedy.receive()
                assert (msg.status, len(bulk)) == (OK, 1 << 20)
    greedy.close()


async def test_many_operations_at_a_time(client: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above OPERATIONS_MAX the target stops reading; it goes on when some are done."""
    in_threads(monkeypatch)
    monkeypatch.setattr(target_module, "OPERATIONS_MAX", 4)
    gate = GatedDisk(monkeypatch, "pwrite")
    calls = [client.send(ObjectWrite, ObjectKey(5, k), 1, 1, (), 0, bulk=b"x") for k in range(12)]
    await gate.reached(4)
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert gate.waiting == 4
    gate.open()
    for call in calls:
        assert (await client.answer(call))[0] == OK


async def test_a_slow_disk_is_kept_off_the_event_loop(client: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small write took long: the next ones go to threads, though small."""
    names: list[str] = []
    real = Disk.pwrite

    def pwrite(*args: Any) -> int:
        names.append("loop" if threading.current_thread() is threading.main_thread() else "thread")
        return real(*args)

    monkeypatch.setattr(Disk, "pwrite", staticmethod(pwrite))
    monkeypatch.setattr(target_module, "SLOW_S", -1.0)
    monkeypatch.setattr(target_module, "SLOW_AVOIDED_S", 3600.0)
    for _ in range(3):
        assert await client.write(0, b"x") == OK
    assert names == ["loop", "thread", "thread"]

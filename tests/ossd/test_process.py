"""A target as a process: status, who may connect, start and stop."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from daemon.config import write as write_config
from ossd.identity import StoreRefused
from ossd.serve import serve
from ossd.store import Store
from tests.ossd.serving import CLIENT, CLUSTER, KEY, Caller, GatedDisk, calling, config_of, target, token_for
from wire.codec import unpack_untrusted
from wire.errors import OK, Status
from wire.messages import (
    Hello,
    ObjectKey,
    ObjectRead,
    ObjectSync,
    ObjectTruncate,
    ObjectWrite,
    Ping,
    Pong,
    Role,
    StatusCall,
    TargetStat,
    Welcome,
)
from wire.peer import ConnectionLost, Listener, dial
from wire.storage import ObjectList


async def test_status(port: int, client: Caller) -> None:
    assert await client.write(0, b"x") == OK
    status, body, _ = await client.call(TargetStat)
    assert status == OK
    total, free, _objects = body
    assert total > free > 0
    async with calling(port, Role.ADMIN, "lockstep status") as admin:
        known = (await admin.call(StatusCall))[1]
        assert (known["role"], known["id"], known["witness"], known["format"]) == ("ossd", 1, None, 2)
        assert known["bytes_total"] == total
        assert known["connections"] == 2
        assert (known["disk_errors"], known["incarnation"]) == (0, 1)
        assert isinstance(client.conn.hello, Welcome)
        assert known["uuid"] == client.conn.hello.uuid.hex()
        assert (await admin.call(ObjectRead, KEY, 1, 1, (), 0, 1))[0] == Status.BAD_MESSAGE


async def test_the_count_of_objects(tmp_path: Path) -> None:
    async with target(tmp_path) as port, calling(port) as client:
        for column in range(7):
            assert await client.write(0, b"x", ObjectKey(9, column)) == OK
    async with target(tmp_path) as port, calling(port) as client:
        with trio.fail_after(20):
            while not (await client.call(StatusCall))[1]["objects_counted"]:
                await trio.testing.wait_all_tasks_blocked()
        assert (await client.call(TargetStat))[1][2] == 7


async def test_ping(port: int) -> None:
    conn = await dial(f"127.0.0.1:{port}", Hello(1, CLUSTER, Role.CLIENT, "c", bytes(16), 0, "main"))
    conn.send(Pong(1, True))
    conn.send(Ping(77))
    with trio.fail_after(10):
        assert await conn.receive() == (Pong(77, True), b"")
    conn.close()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"role": Role.REPLICA, "name": "1"}, "target 1 hosts no witness"),
        ({"cluster": b"another cluster!"}, "cluster"),
        ({"version": 2}, "protocol version 2"),
    ],
)
async def test_refused(port: int, changes: dict[str, Any], why: str) -> None:
    hello = dataclasses.replace(Hello(1, CLUSTER, Role.CLIENT, "c", bytes(16), 0, "main"), **changes)
    with pytest.raises(ConnectionLost, match=why):
        await dial(f"127.0.0.1:{port}", hello)
    async with calling(port) as client:
        assert await client.write(0, b"x") == OK


@pytest.mark.parametrize("name", ["²", "1" * 250, "x", "-1"])
async def test_a_target_that_is_none(port: int, name: str) -> None:
    """str.isdigit says yes to some of these, and int no: whoever says so must not end the daemon."""
    conn = await dial(f"127.0.0.1:{port}", Hello(1, CLUSTER, Role.TARGET, name, bytes(16), 0, "main"))
    conn.close()
    async with calling(port) as client:
        assert await client.write(0, b"x") == OK


async def test_what_somebody_else_has_put_among_the_objects(tmp_path: Path) -> None:
    """It is no object, and whoever asks for a list of them does not end the daemon by it."""
    async with target(tmp_path) as port, calling(port) as client:
        assert await client.write(0, b"x") == OK
        (made,) = (tmp_path / "t1" / "objects").glob("*/*")
        for name in ("README", ".made.swp", made.name + ".bak", "1.2"):
            (made.parent / name).touch()
        async with calling(port, Role.ADMIN) as admin:
            status, _, listed = await admin.call(ObjectList, 0, int(made.parent.name, 16), 1)
        ino, column = (int(part, 16) for part in made.name.split("."))
        assert (status, unpack_untrusted(listed)) == (OK, ((ino, column, 1),))


async def test_stop_and_start(tmp_path: Path) -> None:
    async with target(tmp_path) as port, calling(port) as client:
        assert await client.write(0, b"0123456789") == OK
        assert (await client.call(ObjectTruncate, KEY, 1, 1, ((1, 5),)))[0] == OK
        first = client.conn.hello
    async with target(tmp_path) as port, calling(port) as client:
        assert client.conn.hello == first, "same disk, nothing lost: same uuid, same incarnation"
        assert await client.read() == b"01234"
        assert await client.write(5, b"x", known=((1, 5),)) == OK
        assert await client.read() == b"01234x"


async def test_a_stop_syncs_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = GatedDisk(monkeypatch, "fdatasync")
    gate.open()
    async with target(tmp_path) as port, calling(port) as client:
        assert await client.write(0, b"x") == OK
        assert gate.begun == []
    assert gate.begun == ["fdatasync"]
    assert "clean = true" in (tmp_path / "t1" / "starts").read_text()


async def test_a_stop_with_operations_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in a thread is done before the objects are closed."""
    gate = GatedDisk(monkeypatch, "fdatasync")
    async with trio.open_nursery() as nursery:
        port = await nursery.start(serve, config_of(tmp_path), 1)
        async with calling(port, Role.MDS, "1") as keeper:
            await keeper.beat((1, 1, ((1, "serving"),)))
        conn = await dial(f"127.0.0.1:{port}", Hello(1, CLUSTER, Role.CLIENT, "c", CLIENT, 0, "main"))
        token = token_for(KEY.ino, chains=(1,))
        conn.send(ObjectWrite(1, KEY, 1, 1, (), 0, token), b"x")
        conn.send(ObjectSync(2, KEY, 1, 1, token))
        conn.send(ObjectSync(3, KEY, 1, 1, token))
        await gate.reached()
        nursery.cancel_scope.cancel()
        gate.open()
    conn.close()
    Store.open(tmp_path / "t1", CLUSTER, 1).close()


async def test_a_wrong_disk_is_refused(tmp_path: Path) -> None:
    Store.open(tmp_path / "t1", CLUSTER, 2).close()
    with pytest.raises(StoreRefused, match="is target 2, and was to be served as target 1"):
        await serve(config_of(tmp_path), 1)
    config = config_of(tmp_path, f"127.0.0.1:{free_port()}")
    write_config(config)
    command = [sys.executable, "-c", PROGRAM, str(config.path)]
    run = await trio.run_process(command, capture_stderr=True, check=False)
    assert run.returncode == 1
    assert b"target 1 cannot start: " in run.stderr
    assert b"Traceback" not in run.stderr, "one line tells the operator all there is"


def free_port() -> int:
    listener = Listener("127.0.0.1:0")
    listener.close()
    return listener.port


PROGRAM = """
import logging, sys
logging.basicConfig(level=logging.INFO, stream=sys.stderr)
from daemon.config import load
from ossd.serve import main
sys.exit(main(load(sys.argv[1]), 1))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signals(tmp_path: Path, number: signal.Signals) -> None:
    """A process of its own: it serves, is told to stop, and exits with 0 and everything on disk."""
    config = config_of(tmp_path, "127.0.0.1:2")
    write_config(config)
    program = PROGRAM.replace("from ossd.serve import main", _ANY_PORT)
    async with trio.open_nursery() as nursery:
        run = partial(trio.run_process, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False)
        process = await nursery.start(run, [sys.executable, "-c", program, str(config.path)])
        with trio.fail_after(30):
            line = b""
            while b"\n" not in line:
                line += await process.stdout.receive_some(64)
            async with calling(int(line)) as client, calling(int(line), Role.MDS, "1") as keeper:
                await keeper.beat((1, 1, ((1, "serving"),)))
                assert await client.write(0, b"x") == OK
                process.send_signal(number)
                assert await process.wait() == 0
    assert "clean = true" in (tmp_path / "t1" / "starts").read_text()
    store = Store.open(tmp_path / "t1", CLUSTER, 1)
    file = store.fetch((5, 0), create=False)
    assert file is not None
    assert store.read(file, 0, 10, ()) == b"x"
    store.release(file)
    store.close()


_ANY_PORT = """
import ossd.serve
from wire.peer import Listener
class Anywhere(Listener):
    def __init__(self, address):
        super().__init__("127.0.0.1:0")
        print(self.port, flush=True)
ossd.serve.Listener = Anywhere
from ossd.serve import main
"""

"""A raw client that shows targets and the service what it should not: forged, expired and foreign capabilities, none.

    python -m tests.ossd.forger CLUSTER FILE        FILE: on a mount of that cluster, and not empty

Prints what was shown, what was asked and what the answer was. Ends with "N passed, 0 failed": everything was
refused with a permission error, and the file is what it was.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
import time
from pathlib import Path
from typing import Any

import trio

from admin import targets
from admin.local import find_config
from client.api import open_file_system
from daemon.config import Config
from wire.capability import DRIFT_US, LIFETIME_US, READ, TRUNCATE, WRITE, sign
from wire.chains import path
from wire.errors import FileSystemError, describe, to_errno
from wire.fileops import Reserve
from wire.ids import PROTOCOL_VERSION
from wire.inline import GrownOut, GrowOut, ReadInline, WriteInline
from wire.messages import Answer, Hello, ObjectKey, ObjectRead, ObjectSync, ObjectTruncate, ObjectWrite, Role
from wire.ops import SET_SIZE, Commit, Cred, SetAttr, Settle
from wire.peer import Connection, dial

ALL = READ | WRITE | TRUNCATE
ME = b"uuid of a forger"
NOBODY = Cred(65534, 65534, ())


Shown = list[tuple[str, bytes, bytes]]
"""[(what is shown, the capability, the uuid of who shows it)]"""


def made_up(ino: int, chains: tuple[int, ...]) -> Shown:
    """The key is a guess: whoever knew one would need no forgery."""
    now_us = time.time_ns() // 1000
    key = os.urandom(32)
    good = sign(key, ME, ALL, ino, 1, now_us + LIFETIME_US, chains)
    return [
        ("nothing", b"", ME),
        ("noise", os.urandom(len(good)), ME),
        ("forged", good, ME),
        ("expired", sign(key, ME, ALL, ino, 1, now_us - DRIFT_US - 1, chains), ME),
    ]


async def foreign(config: Config) -> Shown:
    """The service gives us one for a file of our own: we show it for another, with more rights, as somebody else."""
    async with open_file_system(config) as fs:
        name = f"/forger-{os.getpid()}"
        async with await fs.create(name) as file:
            token, uuid = file._handle.data.held.latest(WRITE), fs.volume.service.uuid
        await fs.unlink(name)
    assert token, "the service gave none"
    return [("foreign", token, uuid), ("stolen", token, ME), ("altered", token[:-1] + b"?", uuid)]


async def told(conn: Connection, message: Any, bulk: bytes = b"") -> tuple[int, int]:
    """(status, bytes of data) that *message* is answered with."""
    conn.send(message, bulk)
    while True:
        answer, data = await conn.receive()
        if isinstance(answer, Answer):
            return answer.status, len(data)


async def attempts(config: Config, ino: int, chains: tuple[int, ...]) -> tuple[int, int]:
    """How many ended with a permission error, and how many otherwise."""
    _, known, of_chains = await targets.storage_map(config)
    version, members = next((v, m) for number, v, m in of_chains if number == chains[0])
    head = path(members)[0]
    address = next(a for number, a, _, _ in known if number == head)
    at: tuple[ObjectKey, int, int] = (ObjectKey(ino, 0), chains[0], version)
    passed = failed = 0
    for what, token, uuid in made_up(ino, chains) + await foreign(config):
        conn = await dial(address, Hello(PROTOCOL_VERSION, config.cluster.id, Role.CLIENT, "forger", uuid, 0, "main"))
        for message, bulk in (
            (ObjectWrite(1, *at, ((2**40, 0),), 0, token), b"overwritten"),
            (ObjectRead(2, *at, (), 0, 4096, token), b""),
            (ObjectTruncate(3, *at, ((2**40, 0),), token), b""),
            (ObjectSync(4, *at, token), b""),
        ):
            status, size = await told(conn, message, bulk)
            good = status != 0 and to_errno(status) == errno.EACCES and not size
            passed, failed = passed + good, failed + (not good)
            print(f"{what:8} {type(message).__name__:15} {describe(status)}{'' if good else '   WRONG'}")
        conn.close()
    return passed, failed


async def of_service(config: Config, ino: int) -> tuple[int, int]:
    """The same of the metadata service, for what changes or tells a file's data there."""
    passed = failed = 0
    async with open_file_system(config) as fs:
        service, name = fs.volume.service, f"/forger-{os.getpid()}"
        async with await fs.create(name) as file:
            own = file._handle.data.held.latest(WRITE)
        await fs.unlink(name)
        session = service.core.session
        forged = sign(os.urandom(32), service.uuid, ALL, ino, session, 2**62, (1,), ino)
        shown = [("nothing", b""), ("noise", os.urandom(len(own))), ("forged", forged), ("foreign", own)]
        for what, token in [*shown, ("altered", own[:-1] + bytes([own[-1] ^ 1]))]:
            for op in (
                Commit(ino, 2**40, 1),
                WriteInline(ino, ((0, b"overwritten"),), 1),
                Reserve(ino, 2**40, 0),
                GrowOut(ino),
                GrownOut(ino, 1),
                Settle(ino, 2**40),
                SetAttr(NOBODY, ino, SET_SIZE, 0, 0, 0, 0, 0, 0, True),
                ReadInline(ino),
            ):
                status, ask = 0, service.query_granting if isinstance(op, ReadInline) else service.request_granting
                try:
                    await ask(op, token)
                except FileSystemError as exc:
                    status = exc.status
                good = status != 0 and to_errno(status) == errno.EACCES
                passed, failed = passed + good, failed + (not good)
                print(f"{what:8} {type(op).__name__:15} {describe(status)}{'' if good else '   WRONG'}")
    return passed, failed


def run(config: Config, file: Path) -> tuple[int, int]:
    """Try everything on *file*: (passed, failed)."""
    before = file.read_bytes()
    assert before, f"{file} is empty: nothing could be lost"
    text = os.getxattr(file, "lockstep.layout").decode()
    chains = tuple(int(n) for n in dict(word.split("=") for word in text.split())["chains"].split(","))
    passed, failed = trio.run(attempts, config, file.stat().st_ino, chains)
    more, wrong = trio.run(of_service, config, file.stat().st_ino)
    passed, failed = passed + more, failed + wrong
    if file.read_bytes() == before:
        return passed + 1, failed
    print("the file has changed   WRONG")
    return passed, failed + 1


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("cluster", type=Path, help="a cluster's directory, or its configuration")
    parser.add_argument("file", type=Path)
    args = parser.parse_args(argv)
    passed, failed = run(find_config(args.cluster), args.file)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""A raw client that shows a target what it should not: forged, expired and foreign capabilities, and none.

    python -m tests.ossd.forger CLUSTER FILE        FILE: on a mount of that cluster, and not empty

Prints what was shown, what was asked and what the target answered. Ends with "N passed, 0 failed": everything was
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
from wire.errors import describe, to_errno
from wire.ids import PROTOCOL_VERSION
from wire.messages import Answer, Hello, ObjectKey, ObjectRead, ObjectSync, ObjectTruncate, ObjectWrite, Role
from wire.peer import Connection, dial

ALL = READ | WRITE | TRUNCATE
ME = b"uuid of a forger"


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


def run(config: Config, file: Path) -> tuple[int, int]:
    """Try everything on *file*: (passed, failed)."""
    before = file.read_bytes()
    assert before, f"{file} is empty: nothing could be lost"
    text = os.getxattr(file, "lockstep.layout").decode()
    chains = tuple(int(n) for n in dict(word.split("=") for word in text.split())["chains"].split(","))
    passed, failed = trio.run(attempts, config, file.stat().st_ino, chains)
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

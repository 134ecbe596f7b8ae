"""A target and those who show it what they should not: nothing is touched, the answer is a permission error, it is
logged. A raw client, as anybody could write one."""

from __future__ import annotations

import errno
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ossd.capabilities import KNOWN_MAX, TOLD_EVERY_US, Keys, Shown
from ossd.store import Store
from tests.ossd.serving import CLIENT, CLUSTER, KEYS, Caller, calling, target, token_for
from wire.capability import ALL_FILES, DELETE, DRIFT_US, READ, TRUNCATE, WRITE, sign
from wire.errors import OK, Status, to_errno
from wire.messages import ObjectDelete, ObjectKey, ObjectRead, ObjectSync, ObjectTruncate, ObjectWrite, Role, StatusCall
from wire.storage import Beat

KEY = ObjectKey(5, 0)
HELD = b"what the file holds"
OTHER_KEY = b"x" * 32
OTHER_CLIENT = b"uuid of another!"
US = 1_000_000


def now_us() -> int:
    return time.time_ns() // 1000


def made(key: bytes = KEYS[1], client: bytes = CLIENT, rights: int = READ | WRITE | TRUNCATE, ino: int = 5) -> bytes:
    return sign(key, client, rights, ino, 1, now_us() + US, (1,))


def changed(token: bytes, place: int) -> bytes:
    return token[:place] + bytes([token[place] ^ 1]) + token[place + 1 :]


BAD = {
    "none": lambda: b"",
    "no capability at all": lambda: b"let me in",
    "forged: signed with a key of its own": lambda: made(OTHER_KEY),
    "forged: a signature that is made up": lambda: changed(made(), -1),
    "forged: other rights than were signed": lambda: changed(made(rights=READ), 4),
    "foreign: for another file": lambda: made(ino=6),
    "foreign: for another client": lambda: made(client=OTHER_CLIENT),
    "for another layout": lambda: sign(KEYS[1], CLIENT, READ | WRITE | TRUNCATE, 5, 1, now_us() + US, (2,)),
    "expired": lambda: sign(KEYS[1], CLIENT, READ | WRITE | TRUNCATE, 5, 1, now_us() - DRIFT_US - US, (1,)),
}
"""What is wrong -> what is shown."""


@pytest.fixture
async def client(port: int) -> AsyncIterator[Caller]:
    """A client that shows nothing by itself; there is data already."""
    async with calling(port) as caller:
        assert await caller.write(0, HELD) == OK
        caller.capable = False
        yield caller


async def held(client: Caller) -> bytes:
    client.capable = True
    try:
        return await client.read()
    finally:
        client.capable = False


@pytest.mark.parametrize("what", BAD)
async def test_refused_and_nothing_touched(client: Caller, caplog: pytest.LogCaptureFixture, what: str) -> None:
    token = BAD[what]()
    refused = [
        await client.call(ObjectWrite, KEY, 1, 1, ((9, 0),), 0, token, bulk=b"overwritten"),
        await client.call(ObjectRead, KEY, 1, 1, (), 0, 100, token),
        await client.call(ObjectTruncate, KEY, 1, 1, ((9, 0),), token),
        await client.call(ObjectSync, KEY, 1, 1, token),
    ]
    for status, body, bulk in refused:
        assert to_errno(status) == errno.EACCES
        assert (body, bulk) == (None, b"")
    assert await held(client) == HELD
    told = [r.getMessage() for r in caplog.records if "refused for the capability" in r.getMessage()]
    assert len(told) == 1, "the first at once, the others counted"
    assert told[0].startswith("client:host:1:/mnt (from 127.0.0.1:") and "ObjectWrite of inode 5" in told[0]
    _, said, _ = await client.call(StatusCall)
    assert said["refused"] == len(refused)


@pytest.mark.parametrize(
    ("rights", "allowed"), [(READ, "read sync"), (WRITE, "write sync"), (TRUNCATE, "truncate"), (DELETE, "")]
)
async def test_rights(client: Caller, rights: int, allowed: str) -> None:
    token = made(rights=rights)
    statuses = {
        "read": (await client.call(ObjectRead, KEY, 1, 1, (), 0, 100, token))[0],
        "write": (await client.call(ObjectWrite, KEY, 1, 1, (), 0, token, bulk=HELD))[0],
        "sync": (await client.call(ObjectSync, KEY, 1, 1, token))[0],
        "truncate": (await client.call(ObjectTruncate, KEY, 1, 1, ((1, 100),), token))[0],
    }
    assert statuses == {what: OK if what in allowed.split() else errno.EACCES for what in statuses}


async def test_a_replica_needs_one_to_delete(port: int, client: Caller) -> None:
    async with calling(port, Role.MDS, "1") as mds:
        mds.capable = False
        assert (await mds.call(ObjectDelete, 1, 1, ((5, 0),)))[0] == errno.EACCES
        assert (await mds.call(ObjectDelete, 1, 1, ((5, 0),), made()))[0] == errno.EACCES, "a client's"
        assert await held(client) == HELD
        token = token_for(ALL_FILES, rights=DELETE)
        assert (await mds.call(ObjectDelete, 1, 1, ((5, 0),), token))[0] == OK
    assert await held(client) == b""


async def test_keys_rotate(port: int, client: Caller) -> None:
    """What was signed with the key before the current one is good; later it may be renewed."""
    old, current, following = KEYS[2], KEYS[1], KEYS[0]
    for key in KEYS:
        assert (await client.call(ObjectSync, KEY, 1, 1, made(key)))[0] == OK
    token = made(old)
    assert (await client.call(ObjectSync, KEY, 1, 1, token))[0] == OK
    async with calling(port, Role.MDS, "1") as keeper:
        await keeper.answer_to_beat(Beat(1, 0, 0, b"", (b"y" * 32, following, current)))
    assert (await client.call(ObjectSync, KEY, 1, 1, token))[0] == Status.CAPABILITY_EXPIRED, "verified or not"
    assert (await client.call(ObjectSync, KEY, 1, 1, made(current)))[0] == OK
    assert (await client.call(ObjectSync, KEY, 1, 1, made(b"y" * 32)))[0] == OK


async def test_before_the_keeper_has_come(tmp_path: Path) -> None:
    """A target that has just started serves nobody, whatever is shown."""
    Store.open(tmp_path / "t1", CLUSTER, 1).close()
    async with target(tmp_path) as port, calling(port) as client:
        assert await client.write(0, b"x") == OK
    keys = Keys()
    assert Shown(keys, CLIENT).judge(made(), READ, 5, 0, 1, 0) == Status.CAPABILITY_EXPIRED


# --- the rules, without a target ------------------------------------------------------------------


def shown() -> tuple[Keys, Shown]:
    keys = Keys()
    keys.learn(KEYS)
    return keys, Shown(keys, CLIENT)


def test_clocks_may_differ_by_so_much() -> None:
    _, mine = shown()
    token = sign(KEYS[1], CLIENT, READ, 5, 1, 1000 * US, (1,))
    assert mine.judge(token, READ, 5, 0, 1, 1000 * US + DRIFT_US) == OK
    assert mine.judge(token, READ, 5, 0, 1, 1000 * US + DRIFT_US + 1) == Status.CAPABILITY_EXPIRED


def test_another_column_has_its_own_chain() -> None:
    _, mine = shown()
    token = sign(KEYS[1], CLIENT, READ, 5, 1, US, (1, 2))
    assert mine.judge(token, READ, 5, 0, 1, 0) == OK
    assert mine.judge(token, READ, 5, 1, 2, 0) == OK
    assert mine.judge(token, READ, 5, 1, 1, 0) == errno.EACCES
    assert mine.judge(token, READ, 5, 2, 1, 0) == errno.EACCES


def test_memory_is_bounded() -> None:
    _, mine = shown()
    for ino in range(1, 3 * KNOWN_MAX):
        assert mine.judge(sign(KEYS[1], CLIENT, READ, ino, 1, US, (1,)), READ, ino, 0, 1, 0) == OK
    assert len(mine._known) <= KNOWN_MAX


def test_refusals_are_logged_now_and_then() -> None:
    keys, mine = shown()
    told = []
    for now in range(0, 3 * TOLD_EVERY_US, TOLD_EVERY_US // 4):
        assert mine.judge(b"", READ, 5, 0, 1, now) == errno.EACCES
        told.append(mine.to_tell(now))
    assert told == [1, 0, 0, 0, 4, 0, 0, 0, 4, 0, 0, 0]
    assert keys.refused == 12

"""Several targets over real loopback sockets: copies stay equal, a member that was away gets what it missed."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio

from daemon.config import ClusterConfig, Config, ReplicaConfig, TargetConfig
from ossd import limits
from ossd.copystore import CopyStore
from ossd.ledger import BLOCK, NO_STAMP
from ossd.serve import serve
from ossd.store import Store, file_name
from tests.ossd.serving import CLUSTER, KEYS, Caller, calling
from wire.chains import OFFLINE, SERVING, SYNCING
from wire.codec import pack
from wire.errors import OK, Status
from wire.messages import ObjectDelete, ObjectKey, ObjectRead, ObjectSync, ObjectTruncate, ObjectWrite, Role, StatusCall
from wire.storage import Beat, ObjectList, ObjectPatch, TargetScrub

CHAIN = 9
KEY = ObjectKey(5, 0)


@dataclass
class Some:
    """Some targets with one chain; the test is their keeper."""

    base: Path
    nursery: trio.Nursery
    stack: AsyncExitStack
    ports: dict[int, int] = field(default_factory=dict)
    runs: dict[int, int] = field(default_factory=dict)
    keepers: dict[int, Caller] = field(default_factory=dict)
    clients: dict[int, Caller] = field(default_factory=dict)
    scopes: dict[int, trio.CancelScope] = field(default_factory=dict)
    ended: dict[int, trio.Event] = field(default_factory=dict)
    version: int = 0
    chain_version: int = 0

    async def start(self, target: int) -> None:
        members = tuple(TargetConfig(k, "127.0.0.1:0", self.base / f"t{k}") for k in (1, 2, 3))
        replicas = (ReplicaConfig(1, "127.0.0.1:1", self.base),)
        config = Config(self.base / "lockstep.toml", ClusterConfig("test", CLUSTER), replicas, members)

        async def run(task_status: trio.TaskStatus[int]) -> None:
            with trio.CancelScope() as self.scopes[target]:
                await serve(config, target, task_status=task_status)
            self.ended[target].set()

        self.ended[target] = trio.Event()
        self.ports[target] = await self.nursery.start(run)
        keeper = await self.stack.enter_async_context(calling(self.ports[target], Role.MDS, "1"))
        await keeper.answer_to_beat(Beat(1, 0, 0, b""))
        self.runs[target] = keeper.said.run
        self.keepers[target] = keeper
        self.clients[target] = await self.stack.enter_async_context(calling(self.ports[target], name=f"c{target}"))

    async def stop(self, target: int) -> None:
        del self.keepers[target], self.clients[target]
        self.scopes.pop(target).cancel()
        await self.ended[target].wait()

    async def tell(self, *members: tuple[int, str], only: tuple[int, ...] = ()) -> None:
        """The chain's members from now on; everybody who is there is told (or *only* those) and has the lease."""
        self.version += 1
        self.chain_version += 1
        states = dict(members)
        targets = tuple(
            (t, f"127.0.0.1:{port}", OFFLINE if states.get(t) == OFFLINE else SERVING, self.runs[t])
            for t, port in sorted(self.ports.items())
        )
        body = pack((self.version, targets, ((CHAIN, self.chain_version, members),)))
        for target, keeper in self.keepers.items():
            if not only or target in only:
                await keeper.answer_to_beat(Beat(keeper.said.number + 1, 0, self.version, body, KEYS))
                await keeper.answer_to_beat(Beat(keeper.said.number + 1, keeper.said.clock_us, self.version, b""))

    async def write(self, offset: int, data: bytes, *, at: int = 1, key: ObjectKey = KEY, known: Any = ()) -> int:
        return (await self.clients[at].call(ObjectWrite, key, CHAIN, self.chain_version, known, offset, bulk=data))[0]

    async def read(self, at: int, *, key: ObjectKey = KEY, known: Any = ()) -> bytes:
        keeper = self.keepers[at]
        await keeper.answer_to_beat(Beat(keeper.said.number + 1, keeper.said.clock_us, self.version, b""))
        await keeper.answer_to_beat(Beat(keeper.said.number + 1, keeper.said.clock_us, self.version, b""))
        status, _, data = await self.clients[at].call(
            ObjectRead, key, CHAIN, self.chain_version, known, 0, 8 << 20
        )
        assert status == OK, status
        return data

    async def synced(self, source: int, target: int) -> None:
        """Wait until *source* says that *target* has everything."""
        keeper = self.keepers[source]
        with trio.fail_after(30):
            while (CHAIN, self.chain_version, target) not in keeper.said.synced:
                await keeper.answer_to_beat(Beat(keeper.said.number + 1, 0, self.version, b""))
                await trio.sleep(0.01)

    async def status(self, target: int) -> dict[str, Any]:
        body: dict[str, Any] = (await self.clients[target].call(StatusCall))[1]
        return body

    def file(self, target: int, key: tuple[int, int] = (5, 0)) -> Path | None:
        return next((self.base / f"t{target}" / "objects").glob(f"*/{file_name(key)}"), None)

    async def without(self, target: int) -> None:
        """Wait until *target* has no copy of KEY."""
        with trio.fail_after(30):
            while self.file(target) is not None:
                await trio.testing.wait_all_tasks_blocked(0.005)

    async def scrubbed(self, target: int) -> list[str]:
        """What a scrub of *target* finds wrong."""
        wrong: list[str] = []
        async with calling(self.ports[target], Role.ADMIN) as admin:
            for first in range(0, 1024, 64):
                status, body, _ = await admin.call(TargetScrub, first, 64, 1 << 40, True)
                assert status == OK
                wrong += body[4]
        return wrong


@asynccontextmanager
async def some(base: Path, *targets: int) -> AsyncIterator[Some]:
    async with trio.open_nursery() as nursery:
        async with AsyncExitStack() as stack:
            made = Some(base, nursery, stack)
            for target in targets:
                await made.start(target)
            await made.tell(*((t, SERVING) for t in targets))
            yield made
        nursery.cancel_scope.cancel()


async def test_what_is_answered_is_everywhere(tmp_path: Path) -> None:
    async with some(tmp_path, 1, 2, 3) as targets:
        assert await targets.write(0, b"hello") == OK
        assert await targets.write(100_000, b"world") == OK
        whole = b"hello" + bytes(99_995) + b"world"
        assert [await targets.read(t) for t in (1, 2, 3)] == [whole] * 3
        assert await targets.write(0, b"x", at=2) == Status.STALE_CHAIN, "writes enter at the head"
        assert (await targets.clients[1].call(ObjectSync, KEY, CHAIN, 1))[0] == OK
        trim = ((1, 3),)
        assert (await targets.clients[1].call(ObjectTruncate, KEY, CHAIN, 1, trim))[0] == OK
        assert [await targets.read(t, known=trim) for t in (1, 2, 3)] == [b"hel"] * 3
        assert await targets.scrubbed(1) == []


async def test_copies_are_equal_after_overlapping_writes_of_several_clients(tmp_path: Path) -> None:
    async with some(tmp_path, 1, 2) as targets:

        async def client(number: int) -> None:
            rng = random.Random(number)
            async with calling(targets.ports[1], name=f"w{number}") as one:
                for _ in range(25):
                    data = bytes([number]) * rng.choice((1, 1000, 70_000, 200_000))
                    offset = rng.randrange(300_000)
                    assert (await one.call(ObjectWrite, KEY, CHAIN, 1, (), offset, bulk=data))[0] == OK

        async with trio.open_nursery() as nursery:
            for number in range(1, 5):
                nursery.start_soon(client, number)
        assert await targets.read(1) == await targets.read(2)
        assert await targets.scrubbed(1) == []


async def test_writers_go_on_without_a_member_that_is_marked_offline(tmp_path: Path) -> None:
    async with some(tmp_path, 1, 2) as targets:
        assert await targets.write(0, b"before") == OK
        await targets.stop(2)
        async with trio.open_nursery() as nursery:
            answers: list[int] = []

            async def write() -> None:
                answers.append(await targets.write(0, b"during"))

            nursery.start_soon(write)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert answers == [], "it may be there and cut off from us: not without the keeper's word"
            await targets.tell((1, SERVING), (2, OFFLINE))
        assert answers == [OK]
        assert await targets.read(1) == b"during"


async def test_the_next_in_the_chain_takes_over_as_head(tmp_path: Path) -> None:
    async with some(tmp_path, 1, 2) as targets:
        assert await targets.write(0, b"one") == OK
        await targets.tell((1, OFFLINE), (2, SERVING), only=(2,))
        assert await targets.write(0, b"two", at=2) == OK
        # The one before does not know: it is cut off from the keeper, and from nobody else.
        old = targets.chain_version - 1
        sent = targets.clients[1].send(ObjectWrite, KEY, CHAIN, old, (), 0, bulk=b"bad")
        await trio.testing.wait_all_tasks_blocked(0.002)  # until it pauses: the other one has refused
        assert await targets.read(2) == b"two"
        await targets.tell((1, OFFLINE), (2, SERVING))
        assert (await targets.clients[1].answer(sent))[0] == Status.STALE_CHAIN
        assert await targets.read(2) == b"two"


async def test_a_member_that_returns_gets_what_it_missed_and_nothing_else(tmp_path: Path) -> None:
    async with some(tmp_path, 1, 2) as targets:
        big, gone, cut, new = ObjectKey(6, 0), ObjectKey(7, 0), ObjectKey(8, 0), ObjectKey(9, 0)
        for key in (KEY, big, gone, cut):
            assert await targets.write(0, os.urandom(10 * BLOCK), key=key) == OK
        await targets.stop(2)
        await targets.tell((1, SERVING), (2, OFFLINE))
        assert await targets.write(3 * BLOCK + 5, b"changed", key=big) == OK
        assert await targets.write(0, b"new", key=new) == OK
        trim = ((1, BLOCK + 10),)
        assert (await targets.clients[1].call(ObjectTruncate, cut, CHAIN, targets.chain_version, trim))[0] == OK
        async with calling(targets.ports[1], Role.MDS, "1") as mds:
            assert (await mds.call(ObjectDelete, CHAIN, targets.chain_version, ((7, 0),)))[0] == OK
        await targets.start(2)
        await targets.tell((1, SERVING), (2, SYNCING))
        assert await targets.write(9 * BLOCK, b"meanwhile") == OK
        await targets.synced(1, 2)
        (progress,) = (await targets.status(1))["syncing"]
        chain, target, percent, objects, size, left = progress
        assert (chain, target, percent, objects, left) == (CHAIN, 2, 100, 4, 0.0)
        assert size == BLOCK + len(b"new") + 10, "one block changed, one is new, and of the one cut what is left"
        await targets.tell((1, SERVING), (2, SERVING))
        for key in (KEY, big, cut, new):
            assert await targets.read(2, key=key) == await targets.read(1, key=key)
        assert targets.file(2, (7, 0)) is None
        assert await targets.scrubbed(1) == []


async def test_nobody_waits_until_a_large_object_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two pieces of it a write is answered; it reaches the newcomer later."""
    monkeypatch.setattr(limits, "AHEAD_BLOCKS", 2)
    async with some(tmp_path, 1) as targets:
        content = os.urandom(20 * BLOCK)
        assert await targets.write(0, content) == OK
        rate = limits.RESYNC_BYTES_PER_S
        monkeypatch.setattr(limits, "RESYNC_BYTES_PER_S", 1)  # the second piece comes in a day
        await targets.start(2)
        await targets.tell((1, SERVING), (2, SYNCING))
        with trio.fail_after(20):
            while not (syncing := (await targets.status(1))["syncing"]) or not syncing[0][4]:
                await trio.testing.wait_all_tasks_blocked(0.001)
        (_, _, percent, _, size, left) = syncing[0]
        assert size == 2 * BLOCK and 0 < percent < 100 and left > 0
        for at in (0, 19 * BLOCK, 30 * BLOCK):
            assert await targets.write(at, b"meanwhile") == OK
            content = content.ljust(at, b"\0")
            content = content[:at] + b"meanwhile" + content[at + 9 :]
        there = targets.file(2)
        assert there is not None and there.stat().st_size == 2 * BLOCK, "no writer has waited for more"
        assert await targets.read(1) == content
        monkeypatch.setattr(limits, "RESYNC_BYTES_PER_S", rate)
        await targets.tell((1, SERVING), (2, SYNCING))
        await targets.synced(1, 2)
        await targets.tell((1, SERVING), (2, SERVING))
        assert await targets.read(2) == content
        assert await targets.scrubbed(1) == []


async def test_what_is_written_while_a_large_object_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writers overwrite, extend and cut objects that are being given, all the time: copies are equal afterwards."""
    monkeypatch.setattr(limits, "AHEAD_BLOCKS", 1)
    keys = [ObjectKey(200 + k, 0) for k in range(3)]
    async with some(tmp_path, 1) as targets:
        for key in keys:
            assert await targets.write(0, os.urandom(30 * BLOCK), key=key) == OK
        await targets.start(2)
        await targets.tell((1, SERVING), (2, SYNCING))
        done = False

        async def write(seed: int) -> None:
            rng = random.Random(seed)
            key = keys[seed]
            while not done:
                trims = ((rng.randrange(1, 4), 25 * BLOCK + 77),) if rng.random() < 0.1 else ()
                data = rng.randbytes(rng.choice((10, BLOCK, 3 * BLOCK)))
                status = await targets.write(rng.randrange(40 * BLOCK), data, key=key, known=trims)
                assert status in (OK, Status.STALE_CHAIN, Status.NOT_SERVING)  # the map moves while we write

        async with trio.open_nursery() as nursery:
            for seed in range(3):
                nursery.start_soon(write, seed)
            await targets.synced(1, 2)
            await targets.tell((1, SERVING), (2, SERVING))
            done = True
        for key in keys:
            assert await targets.read(2, key=key) == await targets.read(1, key=key)
        assert await targets.scrubbed(1) == []


async def test_what_is_left_out_at_the_last_moment_is_given_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. All directories are gone through, the target has its disk synced. 2. Its copy of an object turns out to be
    another one than was thought. 3. A change of it is left out. 4. It is not synced before it has been given that."""
    gate, began = threading.Event(), threading.Event()
    real = CopyStore.sync_all

    def sync_all(self: CopyStore) -> None:
        began.set()
        assert gate.wait(20)
        real(self)

    async with some(tmp_path, 1) as targets:
        assert await targets.write(0, b"a" * 100) == OK
        await targets.start(2)
        monkeypatch.setattr(CopyStore, "sync_all", sync_all)
        await targets.tell((1, SERVING), (2, SYNCING))
        assert await trio.to_thread.run_sync(began.wait, 20)
        async with calling(targets.ports[2], Role.TARGET, "1") as member:
            patch = await member.call(ObjectPatch, KEY, CHAIN, targets.chain_version, 0, bulk=b"other")
            assert patch[0] == OK
        assert await targets.write(10, b"left out") == OK
        gate.set()
        await targets.synced(1, 2)
        await targets.tell((1, SERVING), (2, SERVING))
        assert await targets.read(2) == await targets.read(1) == b"a" * 10 + b"left out" + b"a" * 82
        assert await targets.scrubbed(1) == []


async def test_a_member_that_comes_while_an_object_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1. Nobody is behind the one who deletes. 2. A target comes back, and has the object, too: it is found equal.
    3. Only then the object goes. 4. It goes at the newcomer as well."""
    gate, began = threading.Event(), threading.Event()
    real = Store.delete

    def delete(self: Store, keys: Any) -> None:
        if self.path.name == "t1":
            began.set()
            assert gate.wait(20)
        real(self, keys)

    async with some(tmp_path, 1, 2) as targets:
        assert await targets.write(0, b"data") == OK
        await targets.tell((1, SERVING), (2, OFFLINE))
        monkeypatch.setattr(Store, "delete", delete)
        async with calling(targets.ports[1], Role.MDS, "1") as mds:
            call = mds.send(ObjectDelete, CHAIN, targets.chain_version, ((5, 0),))
            assert await trio.to_thread.run_sync(began.wait, 20)
            await targets.tell((1, SERVING), (2, SYNCING))
            await targets.synced(1, 2)
            await targets.tell((1, SERVING), (2, SERVING))
            gate.set()
            assert (await mds.answer(call))[0] == OK
        assert targets.file(1) is None
        assert targets.file(2) is None


async def test_a_wiped_member_gets_everything(tmp_path: Path) -> None:
    async with some(tmp_path, 1, 2) as targets:
        for k in range(20):
            assert await targets.write(k * 100, os.urandom(1000 * k + 1), key=ObjectKey(100 + k, k % 3)) == OK
        await targets.tell((1, SERVING))
        await targets.start(3)
        await targets.tell((1, SERVING), (3, SYNCING))
        await targets.synced(1, 3)
        await targets.tell((1, SERVING), (3, SERVING))
        for k in range(20):
            key = ObjectKey(100 + k, k % 3)
            assert await targets.read(3, key=key) == await targets.read(1, key=key)
        assert await targets.scrubbed(1) == []


async def test_what_a_target_holds_of_a_chain_that_it_has_left_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not before it is told, not what it holds as a member; and when it comes back it gets everything."""
    monkeypatch.setattr(limits, "CLEAR_AFTER_S", 0.01)
    async with some(tmp_path, 1, 2) as targets:
        assert await targets.write(0, b"here and there") == OK
        await targets.tell((1, SERVING), (2, OFFLINE))
        async with calling(targets.ports[2], Role.TARGET, "1") as member:
            assert (await member.call(ObjectList, CHAIN, 0, 64))[0] == OK
            assert targets.file(2) is not None
            await targets.tell((1, SERVING))
            await targets.without(2)
            assert (await member.call(ObjectList, CHAIN, 0, 64))[0] == Status.NOT_SERVING
        assert targets.file(1) is not None
        await targets.tell((1, SERVING), (2, SYNCING))
        await targets.synced(1, 2)
        await targets.tell((1, SERVING), (2, SERVING))
        assert await targets.read(2) == b"here and there"
        await targets.stop(2)
        await targets.tell((1, SERVING), only=(1,))
        await targets.start(2)
        await targets.tell((1, SERVING))
        await targets.without(2)
        assert await targets.read(1) == b"here and there"


async def test_a_full_member_refuses_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer is told, and neither copy has any of it; with space again it can write."""
    async with some(tmp_path, 1, 2) as targets:
        assert await targets.write(0, b"kept") == OK
        real = Store._admit

        def admit(self: Store, size: int, at_least: int = 0) -> None:
            if self.path.name == "t2":
                raise OSError(errno.ENOSPC, "No space left on device")
            real(self, size, at_least)

        monkeypatch.setattr(Store, "_admit", admit)
        assert await targets.write(4, b"more") == errno.ENOSPC
        assert await targets.write(0, b"over") == OK, "what needs no space is written"
        assert [await targets.read(t) for t in (1, 2)] == [b"over"] * 2
        monkeypatch.undo()
        assert await targets.write(4, b"more") == OK
        assert [await targets.read(t) for t in (1, 2)] == [b"overmore"] * 2
        assert await targets.scrubbed(1) == []


async def test_a_newcomer_that_is_full_refuses_for_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who alone has the data has room. The newcomer is not synced before it has been given all of it."""
    async with some(tmp_path, 1, 2) as targets:
        assert await targets.write(0, b"kept") == OK
        gate, began = threading.Event(), threading.Event()
        admit, sync_all = Store._admit, CopyStore.sync_all

        def full(self: Store, size: int, at_least: int = 0) -> None:
            if self.path.name == "t2":
                raise OSError(errno.ENOSPC, "No space left on device")
            admit(self, size, at_least)

        def waits(self: CopyStore) -> None:
            began.set()
            assert gate.wait(20)
            sync_all(self)

        monkeypatch.setattr(CopyStore, "sync_all", waits)
        await targets.tell((1, SERVING), (2, SYNCING))
        assert await trio.to_thread.run_sync(began.wait, 20)  # it has been compared, and is equal
        monkeypatch.setattr(Store, "_admit", full)
        assert await targets.write(4, b"more") == OK
        gate.set()
        assert await targets.write(8, b"and more") == OK
        assert await targets.read(1) == b"keptmoreand more"
        keeper = targets.keepers[1]
        await keeper.answer_to_beat(Beat(keeper.said.number + 1, 0, targets.version, b""))
        assert keeper.said.synced == ()
        monkeypatch.setattr(Store, "_admit", admit)
        await targets.synced(1, 2)
        await targets.tell((1, SERVING), (2, SERVING))
        assert await targets.read(2) == b"keptmoreand more"
        assert await targets.scrubbed(1) == []


async def rotten(targets: Some, at: int, data: bytes) -> Path:
    """Write *data*; then the second block of the copy at *at* goes bad. Where that copy is."""
    assert await targets.write(0, data) == OK
    where = targets.file(at)
    assert where is not None
    with where.open("r+b") as file:
        file.seek(BLOCK + 7)
        file.write(b"rotten")
    return where


@pytest.mark.parametrize("at", [1, 2])
async def test_a_bad_block_is_mended_from_the_other_copy(tmp_path: Path, at: int) -> None:
    async with some(tmp_path, 1, 2) as targets:
        data = os.urandom(3 * BLOCK + 100)
        where = await rotten(targets, at, data)
        assert await targets.read(at) == data
        status = await targets.status(at)
        assert (status["blocks_bad"] >= 1, status["blocks_mended"]) == (True, 1)
        assert where.read_bytes() == data
        assert await targets.write(BLOCK + 3, b"!") == OK


@pytest.mark.parametrize("at", [1, 2, 3], ids=["head", "middle", "tail"])
async def test_a_bad_block_is_mended_before_a_part_of_it_is_written(tmp_path: Path, at: int) -> None:
    """Once the others have the change nobody has the block as it was."""
    async with some(tmp_path, 1, 2, 3) as targets:
        data = os.urandom(2 * BLOCK + 100)
        await rotten(targets, at, data)
        assert await targets.write(BLOCK + 3, b"!") == OK
        assert (await targets.status(at))["blocks_mended"] == 1
        data = data[: BLOCK + 3] + b"!" + data[BLOCK + 4 :]
        assert [await targets.read(t) for t in (1, 2, 3)] == [data] * 3
        assert await targets.write(2 * BLOCK - 1, b"!!") == OK


async def test_a_block_that_is_bad_everywhere_is_changed_nowhere(tmp_path: Path) -> None:
    async with some(tmp_path, 1, 2) as targets:
        data = os.urandom(2 * BLOCK)
        assert await targets.write(0, data) == OK
        for target in (1, 2):
            where = targets.file(target)
            assert where is not None
            with where.open("r+b") as file:
                file.write(b"rotten")
        assert await targets.write(BLOCK - 1, b"!!") == Status.CORRUPT
        for target in (1, 2):
            where = targets.file(target)
            assert where is not None and where.read_bytes() == b"rotten" + data[6:]
        assert await targets.write(BLOCK, b"!") == OK, "the other block is good"
        assert await targets.write(0, bytes(BLOCK)) == OK, "nothing of the bad one is needed"
        assert [await targets.read(t) for t in (1, 2)] == [bytes(BLOCK) + b"!" + data[BLOCK + 1 :]] * 2


async def test_a_scrub_gives_way_between_two_pieces_of_a_large_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "AHEAD_BLOCKS", 2)
    seen = []
    real = CopyStore.read_block

    def read_block(self: CopyStore, file: Any, block: int) -> bytes:
        seen.append(block)
        return real(self, file, block)

    monkeypatch.setattr(CopyStore, "read_block", read_block)
    async with some(tmp_path, 1, 2) as targets:
        assert await targets.write(0, os.urandom(6 * BLOCK)) == OK
        async with calling(targets.ports[1], Role.ADMIN) as admin:
            for first in range(0, 1024, 64):
                admin.send(TargetScrub, first, 64, 1, True)  # the next piece is due in a day
            with trio.fail_after(20):
                while len(seen) < 2:
                    await trio.testing.wait_all_tasks_blocked(0.001)
            assert await targets.write(5, b"meanwhile") == OK
            assert set(seen) == {0, 1}, "the next piece has not begun"
        bad = targets.file(2)
        assert bad is not None
        with bad.open("r+b") as file:
            file.seek(5 * BLOCK + 3)
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 1]))
        assert await targets.scrubbed(2) == []
        assert (await targets.status(2))["blocks_mended"] == 1, "in the last piece"


async def test_a_bad_block_without_another_copy_is_an_error(tmp_path: Path) -> None:
    async with some(tmp_path, 1) as targets:
        assert await targets.write(0, b"data") == OK
        where = targets.file(1)
        assert where is not None
        where.write_bytes(b"dada")
        status, _, _ = await targets.clients[1].call(ObjectRead, KEY, CHAIN, 1, (), 0, 100)
        assert status == Status.CORRUPT
        assert any("block 0 is bad" in text for text in await targets.scrubbed(1))


async def test_a_copy_that_differs_is_found_and_mended_by_the_next_change(tmp_path: Path) -> None:
    """Something behind our back: a member with another past."""
    async with some(tmp_path, 1, 2) as targets:
        assert await targets.write(0, b"a" * 100) == OK
        await targets.tell((2, SERVING))
        assert await targets.write(0, b"b" * 50, at=2) == OK
        await targets.tell((1, SERVING), (2, SERVING))
        assert any("has stamp" in text for text in await targets.scrubbed(1))
        assert await targets.write(90, b"c" * 20) == OK
        assert await targets.read(1) == await targets.read(2) == b"a" * 90 + b"c" * 20
        assert await targets.scrubbed(1) == []


async def test_an_object_goes_to_the_members_of_its_own_chain_only(tmp_path: Path) -> None:
    """1. An object of another chain is being made, its ledger says nothing yet. 2. A member of this chain is synced.
    3. Given that object, too, it would have an older copy put over its own."""
    async with some(tmp_path, 1, 2) as targets:
        assert await targets.write(0, b"mine") == OK
        await targets.tell((1, SERVING), (2, OFFLINE))
        other = Store.open(tmp_path / "aside", CLUSTER, 1)
        file = other.fetch((77, 0), create=True, chain=CHAIN + 1)
        assert file is not None
        other.release(file)
        other.close()
        made = next((tmp_path / "aside" / "objects").glob("*/*"))
        there = tmp_path / "t1" / "objects" / made.parent.name / made.name
        subprocess.run(["cp", "--preserve=xattr", str(made), str(there)], check=True)
        await targets.tell((1, SERVING), (2, SYNCING))
        await targets.synced(1, 2)
        assert targets.file(2, (77, 0)) is None
        assert targets.file(2) is not None


async def test_void_stamps_at_both_do_not_make_copies_equal(tmp_path: Path) -> None:
    """Both were killed in the midst of writing one object: neither stamp means anything, and they differ."""
    async with some(tmp_path, 1, 2) as targets:
        assert await targets.write(0, b"a" * 1000) == OK
        for target, content in ((1, b"b" * 1000), (2, b"c" * 1000)):
            await targets.stop(target)
            store = Store.open(tmp_path / f"t{target}", CLUSTER, target)
            file = store.fetch((5, 0), create=False)
            assert file is not None
            store.write(file, 0, content, (), "c", NO_STAMP, CHAIN)
            store.release(file)
            store.close()
            await targets.start(target)
        await targets.tell((1, SERVING), (2, SYNCING))
        assert await targets.write(10, b"!") == OK
        await targets.synced(1, 2)
        await targets.tell((1, SERVING), (2, SERVING))
        assert await targets.read(1) == await targets.read(2) == b"b" * 10 + b"!" + b"b" * 989
        assert await targets.scrubbed(1) == []

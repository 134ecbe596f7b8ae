"""The keeper's connections while targets come, go and move; what it orders is carried out by a real machine.

Time is virtual, and the network is a table of addresses."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from mds.keeper import SILENCE_US
from mds.machine import Outcome, StateMachine
from mds.tending import Tending
from tests.mds.harness import START_NS, World
from wire import ops, targetops
from wire.capability import fingerprint
from wire.chains import OFFLINE, SERVING, SYNCING, chain_of
from wire.codec import unpack_untrusted
from wire.ids import PROTOCOL_VERSION
from wire.messages import Hello, Role, Welcome
from wire.peer import ConnectionLost
from wire.storage import Beat, BeatSaid

PAIR = chain_of(2, 1)
HERE, THERE = "127.0.0.1:9001", "127.0.0.1:9099"
"""Target 1's address, and its next one."""


def now_us() -> int:
    return int(trio.current_time() * 1_000_000)


class Process:
    """One run of a target's process: it answers every heartbeat at once, on all of its connections."""

    def __init__(self, target: int, run: int) -> None:
        self.target = target
        self.run = run
        self.version = 0
        self.keys = b""
        self.silent = False
        self.ends: list[End] = []

    def answer(self, beat: Beat) -> BeatSaid:
        if beat.map:
            self.version = unpack_untrusted(beat.map)[0]
        if beat.keys:
            self.keys = fingerprint(beat.keys)
        return BeatSaid(beat.number, now_us(), self.version, self.run, 10, 5, (), (), self.keys)


class End:
    """The keeper's end of a connection with a process."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.hello = Welcome(PROTOCOL_VERSION, Role.TARGET, str(process.target), bytes([process.target]) * 16, 1)
        self.broken = False
        self._put, self._come = trio.open_memory_channel[BeatSaid](1000)
        process.ends.append(self)

    def send(self, beat: Beat) -> None:
        if self.broken:
            raise ConnectionLost("it broke")
        if not self.process.silent:
            self._put.send_nowait(self.process.answer(beat))

    async def receive(self) -> tuple[BeatSaid, bytes]:
        try:
            return await self._come.receive(), b""
        except trio.EndOfChannel:
            raise ConnectionLost("it broke") from None

    async def run_writer(self) -> None:
        """Nothing ever has to wait."""

    def close(self, _reason: str = "") -> None:
        self.broken = True
        self._put.close()


@dataclass
class Service:
    """What tending asks of a replica, and of the network. Everything ordered is executed at once."""

    world: World
    lowest: bool = True
    me: int = 1
    processes: dict[str, Process] = field(default_factory=dict)
    """By address."""
    hangs: dict[str, trio.Event] = field(default_factory=dict)
    """What is sent to these addresses is not even refused, until the event."""
    dialled: list[str] = field(default_factory=list)
    ordered: list[Any] = field(default_factory=list)
    tending: Tending = field(init=False)

    def __post_init__(self) -> None:
        self.tending = Tending(self, b"sixteen bytes id", bytes(16))  # type: ignore[arg-type]

    @property
    def state(self) -> StateMachine:
        return self.world.machine

    @property
    def shell(self) -> Service:
        return self

    @property
    def group(self) -> Service:
        return self

    def now(self) -> int:
        return now_us()

    def stamp_ns(self) -> int:
        return START_NS

    def may_read(self, _now: int) -> bool:
        return True

    def internal(self, op: Any, done: Callable[[Outcome], None]) -> None:
        self.ordered.append(op)
        done(self.world.entry(0, 1, 1, op))

    async def dial(self, address: str, _hello: Hello) -> End:
        self.dialled.append(address)
        await trio.lowlevel.checkpoint()
        if address in self.hangs:
            await self.hangs[address].wait()
        process = self.processes.get(address)
        if process is None:
            raise ConnectionLost("refused")
        return End(process)

    # -- what tests do with it

    def kill(self, address: str, *, told: bool = True) -> Process:
        """The process there ends; the keeper is *told*, its connection breaks, or its host is gone with it."""
        process = self.processes.pop(address)
        process.silent = True
        for end in process.ends if told else ():
            end.close()
        return process

    def members(self) -> dict[int, str]:
        return next(dict(members) for number, _, members in self.state.storage_map()[2] if number == PAIR)

    def alive(self, target: int) -> bool:
        """As far as the keeper knows. What is not comes into no chain, and ends no sync."""
        keeper = self.tending.keeper
        assert keeper is not None
        return keeper.alive(target, now_us())

    def ups_and_downs(self) -> list[Any]:
        """Ordered since this was asked last."""
        found = [op for op in self.ordered if isinstance(op, targetops.TargetUp | targetops.TargetDown)]
        self.ordered.clear()
        return found

    def move(self, address: str) -> None:
        """An administrator says where target 1 is now."""
        self.world.internal(ops.TargetSet(1, address, bytes([1]) * 16))


async def until(reached: Callable[[], bool]) -> None:
    with trio.fail_after(30):  # of virtual time
        while not reached():  # noqa: ASYNC110  # what is waited for is a state of the world, whoever brings it about
            await trio.sleep(0.005)


@pytest.fixture
async def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    """Targets 1 and 2 serve; the keeper has found them. A test that uses it asks for virtual time itself."""
    made = Service(World(tmp_path / "s", targets=2))
    made.processes = {HERE: Process(1, 11), "127.0.0.1:9002": Process(2, 12)}
    monkeypatch.setattr("mds.tending.dial", made.dial)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.tending.run)
        await until(lambda: all(run for _, _, _, run in made.state.storage_map()[1]))
        assert made.ups_and_downs() == [targetops.TargetUp(1, 11, 1), targetops.TargetUp(2, 12, 1)]
        yield made
        nursery.cancel_scope.cancel()
    made.world.finish()


async def test_a_target_that_moves_is_there_though_its_old_connection_breaks_later(
    service: Service, autojump_clock: MockClock
) -> None:
    """1. Its host is lost, silently. 2. Its disk is put into another one, and an administrator says where. 3. The
    keeper is connected with it there. 4. Only now does the old connection break: that host is up again.
    """
    old = service.kill(HERE, told=False)
    new = service.processes[THERE] = Process(1, 21)
    service.move(THERE)
    await until(lambda: bool(new.ends))
    for end in old.ends:
        end.close()
    await trio.sleep(3.0)
    assert service.ups_and_downs() == [targetops.TargetUp(1, 21, 1)]
    assert service.members() == {1: SYNCING, 2: SERVING}
    assert service.alive(1)
    assert len(new.ends) == 1 and service.dialled.count(HERE) == 1, "nobody looks for it where it was"
    service.kill(THERE)
    await until(lambda: service.members()[1] == OFFLINE)
    assert service.ups_and_downs() == [targetops.TargetDown(1, 21)], "it is looked after where it is"


async def test_a_target_that_was_offline_comes_back_at_another_address(
    service: Service, autojump_clock: MockClock
) -> None:
    """1. The keeper dials it where it was. 2. The map changes, and the keeper is connected with it where it is. 3. Only
    then is it refused where it was."""
    service.kill(HERE)
    await until(lambda: service.members()[1] == OFFLINE)
    assert service.ups_and_downs() == [targetops.TargetDown(1, 11)]
    gate = service.hangs[HERE] = trio.Event()
    tried = service.dialled.count(HERE)
    await until(lambda: service.dialled.count(HERE) > tried)
    new = service.processes[THERE] = Process(1, 21)
    service.move(THERE)
    await until(lambda: bool(new.ends))
    gate.set()
    await trio.sleep(3.0)
    assert service.ups_and_downs() == [targetops.TargetUp(1, 21, 1)]
    assert service.members() == {1: SYNCING, 2: SERVING} and service.alive(1) and len(new.ends) == 1
    assert service.dialled.count(HERE) == tried + 1, "nobody looks for it there any more"


async def test_a_target_that_runs_on_is_reached_at_its_other_address(
    service: Service, autojump_clock: MockClock
) -> None:
    """Its host has two networks: nothing is lost, whichever connection goes."""
    process = service.processes[THERE] = service.processes[HERE]
    (old,) = process.ends
    service.move(THERE)
    await until(lambda: len(process.ends) == 2)
    old.close()
    await trio.sleep(3.0)
    assert service.ups_and_downs() == [] and service.members() == {1: SERVING, 2: SERVING} and service.alive(1)
    service.move(HERE)
    await until(lambda: len(process.ends) == 3)
    process.ends[1].close()
    await trio.sleep(3.0)
    assert service.ups_and_downs() == [] and service.members() == {1: SERVING, 2: SERVING} and service.alive(1)


async def test_a_target_that_dies_where_it_is_meant_to_be_is_offline(
    service: Service, autojump_clock: MockClock
) -> None:
    began = now_us()
    service.kill(HERE)
    await until(lambda: service.members()[1] == OFFLINE)
    assert now_us() - began < SILENCE_US / 2, "its connection says so"
    service.processes[HERE] = Process(1, 21)
    await until(lambda: service.members()[1] == SYNCING)
    assert service.ups_and_downs() == [targetops.TargetDown(1, 11), targetops.TargetUp(1, 21, 1)]

"""Fixtures of a target's tests: one that serves (tests.ossd.serving), a store (tests.ossd.storing) and its disk."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from ossd import losses
from ossd.store import Store
from tests.ossd.disks import CLUSTER, FaultyDisk
from tests.ossd.serving import Caller, calling, target
from wire.messages import Role


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In place of /dev/shm."""
    path = tmp_path_factory.mktemp("memory")
    monkeypatch.setattr(losses, "MEMORY", path)
    return path


@pytest.fixture
async def port(tmp_path: Path) -> AsyncIterator[int]:
    async with target(tmp_path) as number:
        yield number


@pytest.fixture
async def client(port: int) -> AsyncIterator[Caller]:
    async with calling(port) as caller:
        yield caller


@pytest.fixture
async def mds(port: int) -> AsyncIterator[Caller]:
    async with calling(port, Role.MDS, "1") as caller:
        yield caller


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "t"


@pytest.fixture
def disk() -> FaultyDisk:
    return FaultyDisk()


@pytest.fixture
def store(path: Path, disk: FaultyDisk) -> Iterator[Store]:
    made = Store.open(path, CLUSTER, 1, disk=disk, open_max=8)
    disk.calls.clear()
    yield made
    made.close()

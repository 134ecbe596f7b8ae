"""What dump and load leave on a disk is for nobody else to read: secrets are in it, or will be."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from admin import loading
from admin.local import LocalCluster
from admin.state_commands import _whole
from mds import dump
from tests.mds.harness import World


@pytest.fixture
def careless() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def test_a_loaded_state_is_for_its_replica_alone(tmp_path: Path, careless: None) -> None:
    cluster = LocalCluster.create(tmp_path / "cluster", replicas=2, targets=1)
    world = World(tmp_path / "world", inline=4096)
    world.create(b"f")
    file = tmp_path / "dump"
    with _whole(file) as out:
        dump.write(world.store, cluster.config.cluster.id, out)
    world.store.close()
    assert file.stat().st_mode & 0o777 == 0o600
    with file.open("rb") as stream:
        assert loading.load(cluster.config, None, stream, empty=False) == (2, [1, 2])
    for replica in cluster.config.replicas:
        assert replica.data.stat().st_mode & 0o777 == 0o700
        assert (replica.data / "state" / "data.mdb").stat().st_mode & 0o777 == 0o600

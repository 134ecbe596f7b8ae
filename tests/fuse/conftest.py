"""Two views of one directory: made through mount one, looked at through mount two."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.live import Live

_number = itertools.count(1)


@dataclass(frozen=True)
class Pair:
    """The same fresh directory through two mounts that are attached to different replicas."""

    one: Path
    two: Path


@pytest.fixture
def pair(cluster: Live) -> Pair:
    name = f"d{next(_number)}"
    one = cluster.mounts["one"] / name
    one.mkdir()
    return Pair(one, cluster.mounts["two"] / name)

"""The stage of the model tests: the module's cluster, two mounts that other users may enter, a local directory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.live import Live
from tests.model.mounted import model_mounts
from tests.model.twin import Stage, Twin, stage


@pytest.fixture(scope="module")
def on(cluster: Live) -> Iterator[Stage]:
    with stage(cluster.run.directory / "local", model_mounts(cluster)) as made:
        yield made


@pytest.fixture
def twin(on: Stage) -> Iterator[Twin]:
    with on.twin() as made:
        yield made

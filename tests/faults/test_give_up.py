"""A disk with a block that is gone is drained: everything else is moved, and the operator decides about the block."""

from __future__ import annotations

import errno
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import trio

from admin import targets
from tests.faults.test_targets import lockstep
from tests.live import Live, guarded, live, unavailable
from wire.chains import copies_of

pytestmark = pytest.mark.system

BLOCK: Final = 64 << 10


@pytest.fixture
def cluster() -> Iterator[Live]:
    reason = unavailable()
    if reason is not None:
        pytest.fail(reason)
    with live(1, 2) as made, guarded(made):
        yield made


def test_a_drain_ends_without_a_block_that_nobody_can_read(cluster: Live) -> None:
    spec = str(cluster.cluster.directory)
    where = cluster.mount("m", 1)
    os.setxattr(where, "lockstep.layout", b"copies=1 stripe_count=1 inline=0")
    rng = random.Random(1)
    files = {where / f"f{k}": rng.randbytes(5 * BLOCK) for k in range(6)}
    for file, content in files.items():
        file.write_bytes(content)
    disk = cluster.cluster.directory / "data" / "ossd-1" / "objects"
    victim, ino, found = _on(disk, list(files))
    with found.open("r+b") as raw:
        raw.seek(2 * BLOCK)
        raw.write(b"rotten")
    assert lockstep("target", "drain", spec, "1").returncode == 0

    def waits() -> bool:
        return bool(_listed(spec)["unreadable"]) and _chains(cluster) == 1

    cluster.cluster.wait(lambda status: waits(), "only one chain is left on target 1", 60.0)
    (bad,) = _listed(spec)["unreadable"]
    assert (bad["source"], bad["target"], bad["inode"], bad["ranges"]) == (1, 2, ino, [[2 * BLOCK, BLOCK]])
    shown = lockstep("target", "list", spec).stdout
    assert f"inode {ino}, column 0" in shown and f"bytes {2 * BLOCK}-{3 * BLOCK - 1}" in shown
    assert lockstep("target", "give-up", spec, "1").returncode == 2, "of what?"
    assert lockstep("target", "give-up", spec, "1", "--inode", "999999").returncode == 1, "nobody waits for that"
    done = lockstep("target", "give-up", spec, "1", "--inode", str(ino))
    assert done.returncode == 0 and f"given up: inode {ino}" in done.stdout
    cluster.cluster.wait(lambda status: _chains(cluster) == 0, "everything is moved from target 1", 60.0)
    other = cluster.mount("other", 1)
    for file, content in files.items():
        if file != victim:
            assert (other / file.name).read_bytes() == content
    fd = os.open(other / victim.name, os.O_RDWR | os.O_DIRECT)  # the kernel would read ahead into the block
    try:
        for block in (0, 1, 3, 4):
            assert os.pread(fd, BLOCK, block * BLOCK) == files[victim][block * BLOCK : (block + 1) * BLOCK]
        with pytest.raises(OSError) as told:
            os.pread(fd, BLOCK, 2 * BLOCK)
        assert told.value.errno == errno.EIO
    finally:
        os.close(fd)
    with (other / victim.name).open("r+b", buffering=0) as file:
        file.seek(2 * BLOCK)
        assert file.write(b"n" * BLOCK) == BLOCK
    fresh = files[victim][: 2 * BLOCK] + b"n" * BLOCK + files[victim][3 * BLOCK :]
    assert (other / victim.name).read_bytes() == fresh


def _on(disk: Path, files: list[Path]) -> tuple[Path, int, Path]:
    """One of *files* of which *disk* has the object: (the file, its inode, the object)."""
    for file in files:
        ino = file.stat().st_ino
        found = next(disk.glob(f"*/{ino:016x}.0000"), None)
        if found is not None:
            return file, ino, found
    raise AssertionError("target 1 has none of them")


def _listed(spec: str) -> dict[str, Any]:
    listed: dict[str, Any] = json.loads(lockstep("target", "list", "--json", spec).stdout)
    return listed


def _chains(cluster: Live) -> int:
    """Chains of one copy that target 1 has."""
    _, _, chains = trio.run(targets.storage_map, cluster.cluster.config)
    return sum(1 in dict(members) for number, _, members in chains if copies_of(number) == 1)

"""A target that is full: whoever writes there is told ENOSPC, nothing else breaks, and it works again with room."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
import trio

from admin import runs, targets
from admin.local import LocalCluster
from tests.live import Live, guarded, unavailable

pytestmark = pytest.mark.system

MIB: Final = 1 << 20
SMALL: Final = 48 * MIB
"""All of target 2's disk."""
FOLLOWS_S: Final = 30.0


@pytest.fixture
def cluster() -> Iterator[Live]:
    reason = unavailable()
    if reason is not None:
        pytest.fail(reason)
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    with runs.temporary("test") as run:
        made = LocalCluster.create(run.cluster, 1, 2)
        disk = run.cluster / "data" / "ossd-2"
        disk.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SMALL},mode=700", "lockstep-test", disk], check=True)
        try:
            made.up()
            live = Live(run, made)
            with guarded(live):
                yield live
            for name in list(live.mounts):
                live.unmount(name)
            made.down()
        finally:
            subprocess.run(["umount", "--lazy", disk], check=True)


def on_target(directory: Path, target: int, name: str) -> Path:
    """A new empty file in *directory* whose data goes to *target* alone."""
    for k in range(50):
        file = directory / f"{name}{k}"
        file.touch()
        if made_for(file) == target:
            return file
    raise AssertionError(f"no file came to target {target}")


def made_for(file: Path) -> int | None:
    """The target that the only chain of *file* was made for; None: it has several."""
    shown = os.getxattr(file, "lockstep.layout").decode().partition(" chains=")[2]
    return int(shown) & 0xFFFF if shown.isdigit() else None


def write(file: Path, data: bytes, offset: int = 0) -> None:
    """Written and on disk, or OSError."""
    fd = os.open(file, os.O_WRONLY)
    try:
        os.pwrite(fd, data, offset)
        os.fsync(fd)
    finally:
        os.close(fd)


def written(file: Path, block: int) -> int:
    """0, or the errno of writing *block*, whose bytes say which it is."""
    try:
        write(file, bytes([block]) * MIB, block * MIB)
    except OSError as exc:
        return exc.errno or errno.EIO
    return 0


def follows(what: str, holds: object) -> None:
    deadline = time.monotonic() + FOLLOWS_S
    while not holds():  # type: ignore[operator]
        assert time.monotonic() < deadline, what
        time.sleep(0.1)  # polling


def test_a_full_target(cluster: Live) -> None:
    where = cluster.mount("one", 1)
    other = cluster.mount("two", 1)
    os.setxattr(where, "lockstep.layout", b"stripe_count=1")
    ballast, victim, elsewhere = on_target(where, 2, "b"), on_target(where, 2, "v"), on_target(where, 1, "e")
    write(ballast, b"b" * (30 * MIB))
    write(victim, b"v" * MIB)
    full_at = next(k for k in range(1, 40) if written(victim, k) == errno.ENOSPC)
    assert 5 < full_at < 30

    write(elsewhere, b"e" * (20 * MIB))
    assert (other / elsewhere.name).read_bytes() == b"e" * (20 * MIB)
    assert (other / ballast.name).read_bytes() == b"b" * (30 * MIB)
    write(ballast, b"B" * MIB)  # overwriting needs no space
    _, found, _ = trio.run(targets.storage_map, cluster.cluster.config)
    assert [state for _, _, state, _ in found] == ["serving", "serving"]

    def only_the_other() -> bool:
        fresh = [where / f"new-{time.monotonic_ns()}" for _ in range(6)]
        for file in fresh:
            file.touch()
        return all(made_for(file) == 1 for file in fresh)

    follows("new files still come to the full target", only_the_other)

    ballast.unlink()

    follows("what was refused cannot be written although there is room", lambda: written(victim, full_at) == 0)
    assert (other / victim.name).read_bytes()[MIB:] == b"".join(bytes([k]) * MIB for k in range(1, full_at + 1))
    space = os.statvfs(where)
    assert space.f_bavail * space.f_frsize > 0 and space.f_blocks * space.f_frsize >= SMALL

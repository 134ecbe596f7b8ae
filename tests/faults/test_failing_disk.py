"""A target whose file system turns read-only under it: it leaves, nobody who writes two copies hears of it."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from admin import runs
from admin.local import LocalCluster, child_environment, python_module
from tests.live import Live, guarded, unavailable

pytestmark = pytest.mark.system

DISK: Final = 96 << 20


@pytest.fixture
def cluster() -> Iterator[Live]:
    reason = unavailable()
    if reason is not None:
        pytest.fail(reason)
    if os.geteuid() != 0:
        pytest.skip("only root may mount a disk and have it fail")
    with runs.temporary("test") as run:
        made = LocalCluster.create(run.cluster, 1, 2)
        disk = run.cluster / "data" / "ossd-2"
        disk.mkdir(parents=True)
        image = run.cluster / "disk"
        with image.open("wb") as file:
            file.truncate(DISK)
        subprocess.run(["mkfs.ext4", "-q", image], check=True)
        if subprocess.run(["mount", "-o", "loop", image, disk], check=False).returncode != 0:
            pytest.skip("no loop device")
        try:
            (disk / "lost+found").rmdir()
            made.up()
            live = Live(run, made)
            with guarded(live):
                yield live
            for name in list(live.mounts):
                live.unmount(name)
            made.down()
        finally:
            subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_disk_turns_read_only(cluster: Live) -> None:
    where = cluster.mount("m", 1)
    spec = str(cluster.cluster.directory)
    (where / "two").mkdir()
    os.setxattr(where / "two", "lockstep.layout", b"copies=2 stripe_count=1 stripe_size=65536 inline=0")
    os.setxattr(where, "lockstep.layout", b"copies=1 stripe_count=2 stripe_size=65536 inline=0")
    files = {where / "two" / f"f{k}": os.urandom(300_000) for k in range(4)}
    for file, content in files.items():
        file.write_bytes(content)
    single = where / "single"
    single.write_bytes(b"s" * 300_000)
    disk = cluster.cluster.directory / "data" / "ossd-2"
    subprocess.run(["mount", "-o", "remount,abort", disk], check=True)  # what ext4 does by itself after an error
    for file in files:
        files[file] = os.urandom(400_000)
        _write(file, files[file])
    listed = _listed(spec)
    assert [(t["id"], t["state"], bool(t["failure"])) for t in listed] == [(1, "serving", False), (2, "offline", True)]
    assert os.strerror(errno.EROFS) in listed[1]["failure"]
    with pytest.raises(OSError) as told:
        _write(single, b"S" * 300_000)
    assert told.value.errno in (errno.EIO, errno.EROFS), "nobody else has it"
    assert len(single.read_bytes()) == 300_000, "what can be read is"
    other = cluster.mount("other", 1)
    for file, content in files.items():
        assert (other / "two" / file.name).read_bytes() == content
    assert [t["state"] for t in _listed(spec)] == ["serving", "offline"], "it does not come back by itself"


def _write(file: Path, data: bytes) -> None:
    fd = os.open(file, os.O_WRONLY)
    try:
        assert os.write(fd, data) == len(data)
        os.fsync(fd)
    finally:
        os.close(fd)


def _listed(spec: str) -> list[dict[str, object]]:
    done = subprocess.run(
        python_module("admin", "target", "list", "--json", spec),
        capture_output=True, text=True, env=child_environment(), timeout=60, check=True,
    )  # fmt: skip
    found: list[dict[str, object]] = json.loads(done.stdout)["targets"]
    return found

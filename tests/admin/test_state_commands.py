"""Dump, load and fsck on a real cluster, while it is in use."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from admin import copying, runs
from admin.local import LocalCluster, child_environment, python_module
from daemon.config import write
from mds import schema
from mds.check import check
from ossd.objectfile import fanout_of
from tests.live import Live, live, unavailable
from wire import ids

pytestmark = pytest.mark.system


def lockstep(*args: str, code: int = 0, stdin: bytes = b"") -> str:
    argv = python_module("admin", *args)
    done = subprocess.run(argv, capture_output=True, input=stdin, env=child_environment(), timeout=100, check=False)
    assert done.returncode == code, f"{args}: {done.returncode}\n{done.stdout!r}\n{done.stderr!r}"
    return (done.stdout if not code else done.stdout + done.stderr).decode()


def fsck(cluster: Live, *args: str, code: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(lockstep("fsck", str(cluster.cluster.directory), "--json", *args, code=code))
    return found


@pytest.fixture(scope="module")
def small() -> Iterator[Live]:
    """One cluster for all; the last test stops it."""
    reason = unavailable()
    if reason is not None:
        pytest.fail(reason)
    with live(replicas=2, targets=2) as made:
        made.mount("one", 1)
        yield made


def furnish(top: Path) -> dict[str, Any]:
    """Something of everything."""
    if (top / "d").exists():
        return tree(top)
    (top / "d" / "below").mkdir(parents=True)
    (top / "d" / "file").write_bytes(b"contents" * 1000)
    (top / "d" / "empty").touch()
    os.link(top / "d" / "file", top / "d" / "below" / "other name")
    os.symlink("file", top / "d" / "link")
    os.setxattr(top / "d" / "file", "user.colour", b"green")
    os.mkfifo(top / "d" / "fifo", 0o640)
    os.chown(top / "d" / "empty", 7, 8)
    return tree(top)


def tree(top: Path) -> dict[str, Any]:
    """Everything below *top*, by path."""
    found = {}
    for path in sorted(top.rglob("*")):
        at = path.lstat()
        more = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        what = (at.st_ino, at.st_mode, at.st_nlink, at.st_uid, at.st_gid, at.st_size, at.st_mtime_ns, more)
        found[str(path.relative_to(top))] = (*what, [] if path.is_symlink() else os.listxattr(path))
    return found


def again(cluster: Live, place: Path) -> LocalCluster:
    """A cluster that was never started, with the id and the storage targets of *cluster*, which is stopped."""
    config = cluster.cluster.config
    new = place / "again"
    replicas = tuple(replace(r, data=new / f"data/mds-{r.id}") for r in config.replicas)
    new.mkdir()
    moved = replace(config, path=new / config.path.name, replicas=replicas)
    write(moved)
    return LocalCluster.open(new)


def test_files_are_empty_where_the_targets_are_others(small: Live) -> None:
    expected = furnish(small.mounts["one"])
    file = small.run.directory / "tree.dump"
    lockstep("dump", str(small.cluster.directory), str(file))
    place = small.run.directory / "other"
    other = LocalCluster.create(place, replicas=1, targets=1)
    assert "--empty" in lockstep("load", str(place), str(file), code=1)
    lockstep("load", str(place), str(file), "--empty")
    other.up()
    back = Live(small.run, other)
    mountpoint = back.mount("emptied", 1)
    try:
        found = tree(mountpoint)
        assert list(found) == list(expected)
        assert found["d/file"][5] == 0
        (mountpoint / "d" / "new").write_bytes(b"written")
        assert (mountpoint / "d" / "new").read_bytes() == b"written"
        assert fsck(back)["problems"] == []
    finally:
        back.unmount("emptied")
        other.down()


def test_fsck_under_load_finds_nothing_false(small: Live) -> None:
    """Files are made, written and removed all the time: their objects come and go between the looks."""
    over = threading.Event()
    made = []

    def churn() -> None:
        while not over.is_set():
            path = small.mounts["one"] / f"f{len(made)}"
            path.write_bytes(b"x" * 5000)
            made.append(path)
            if len(made) > 20:
                made[len(made) - 20].unlink(missing_ok=True)

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(4):
            found = fsck(small)
            assert found["problems"] == [] and found["index"] > 0 and found["inodes"] > 0
    finally:
        over.set()
        thread.join()
    assert len(made) > 20, "something went on"


def test_fsck_finds_objects_left_behind_and_removes_them(small: Live) -> None:
    (small.mounts["one"] / "file").write_bytes(b"x" * 10_000)
    os.sync()
    ino = (small.mounts["one"] / "file").stat().st_ino
    (path,) = (small.cluster.directory / "data").glob(f"ossd-*/objects/*/{ino:016x}.*")
    config = small.cluster.config
    with copying.state_of(config, None, None) as copy:
        assert check(copy.store) == [] and copy.numbers_below > ino
        assert copy.store.get(schema.INODES, schema.u64(ino)) is not None
    # What never was an inode's number and is below those that are: between the root's and the first.
    stray = ids.ROOT_INO + 1
    _forge(path, stray)
    found = fsck(small, code=1)
    assert found["problems"] == [f"1 objects of inode {stray} are there, and the inode is not"]
    found = fsck(small, "--repair")
    assert found["mended"] >= 1  # it looks again at once: what is being deleted may be ordered once more
    small.cluster.wait(lambda _: not _strays(small, stray), "the object is not deleted", 30.0)
    assert fsck(small)["problems"] == []
    assert (small.mounts["one"] / "file").read_bytes() == b"x" * 10_000


def _strays(cluster: Live, ino: int) -> list[Path]:
    return list((cluster.cluster.directory / "data").glob(f"ossd-*/objects/*/{ino:016x}.*"))


def _forge(like: Path, ino: int) -> None:
    """An object of inode *ino* beside *like*, in the same chain: as it stays when its deletion was forgotten."""
    directory = like.parents[1] / f"{fanout_of(ino):03x}"
    shutil.copy2(like, directory / f"{ino:016x}.0000")  # the chain is an extended attribute


def test_no_replica_serves(tmp_path: Path) -> None:
    with runs.temporary("test") as run:
        cluster = LocalCluster.create(run.cluster, 1, 1)
        assert "no replica gave a copy" in lockstep("fsck", str(cluster.directory), code=1)
        assert "no replica gave a copy" in lockstep("dump", str(cluster.directory), str(tmp_path / "x"), code=1)
        assert not (tmp_path / "x").exists()


def test_a_dump_is_loaded(small: Live) -> None:
    expected = furnish(small.mounts["one"])
    held = os.open(small.mounts["one"] / "gone", os.O_CREAT | os.O_RDWR)
    os.write(held, b"not in the dump")
    os.unlink(small.mounts["one"] / "gone")
    file = small.run.directory / "tree.dump"
    said = json.loads(lockstep("dump", str(small.cluster.directory), str(file), "--json"))
    assert said["records"] > 10 and said["index"] > 0
    piped = subprocess.run(
        python_module("admin", "dump", str(small.cluster.directory), "-"),
        capture_output=True, env=child_environment(), check=True,
    )  # fmt: skip
    assert len(piped.stdout) >= len(file.read_bytes()) - 100
    os.close(held)
    small.unmount("one")
    small.cluster.down()
    assert "was started before" in lockstep("load", str(small.cluster.directory), str(file), code=1)

    other = again(small, small.run.directory)
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    assert "lockstep:" in lockstep("load", str(other.directory), "-", code=1, stdin=bytes(damaged))
    assert "ends early" in lockstep("load", str(other.directory), "-", code=1, stdin=file.read_bytes()[:-50])
    assert not list(other.directory.glob("data/*/state")), "nothing of it is left"
    loaded = json.loads(lockstep("load", str(other.directory), str(file), "--json"))
    assert loaded == {"inodes": len(expected), "replicas": [1, 2]}  # one has two names; and there is the root

    other.up()
    back = Live(small.run, other)
    mountpoint = back.mount("back", 2)
    try:
        assert tree(mountpoint) == expected
        before = max(entry[0] for entry in expected.values())
        (mountpoint / "new").write_bytes(b"x")
        assert (mountpoint / "new").stat().st_ino > before, "no number is given twice"
        back.settled()
        assert fsck(back)["problems"] == []
    finally:
        back.unmount("back")
        other.down()

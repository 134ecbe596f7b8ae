"""Quotas as a user meets them, with two mounts on different replicas."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from admin.local import child_environment, python_module
from tests.fuse.conftest import Pair
from tests.fuse.test_namespace import fails
from tests.live import Live

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root sets quotas"),
]


def shown(path: Path) -> dict[str, object]:
    (told,) = json.loads(os.getxattr(path, "lockstep.usage"))
    assert isinstance(told, dict)
    return told


def eventually(what: Callable[[], bool]) -> None:
    """Trees are counted in the background."""
    until = time.monotonic() + 30
    while not what():
        assert time.monotonic() < until, "not within 30 s"


def test_a_writer_is_told_by_write(pair: Pair) -> None:
    os.setxattr(pair.one, "lockstep.quota", b"bytes_hard=3000000")
    with open(pair.one / "f", "wb", buffering=0) as file:
        assert file.write(bytes(2_900_000)) == 2_900_000
        end = 2_900_000
        while end <= 2_949_999:  # the kernel cuts writes into pieces as it likes
            end += os.pwrite(file.fileno(), bytes(50_001), end)
        fails(errno.EDQUOT, os.pwrite, file.fileno(), b"x", 3_000_000)
        assert 2_949_999 < end <= 3_000_000
        os.pwrite(file.fileno(), b"x", 5)  # nothing grows
    assert os.stat(pair.two / "f").st_size == end
    os.truncate(pair.two / "f", 3_000_000)
    fails(errno.EDQUOT, os.truncate, pair.two / "f", 3_000_001)
    os.truncate(pair.two / "f", 10)
    (pair.one / "g").write_bytes(bytes(2_999_990))
    assert shown(pair.one)["bytes_used"] == 3_000_000
    fails(errno.EDQUOT, (pair.two / "h").write_bytes, b"x")
    (pair.two / "g").unlink()


def test_inodes_and_what_lies_below(pair: Pair) -> None:
    (pair.one / "plain" / "deep").mkdir(parents=True)
    for k in range(5):
        (pair.one / "plain" / "deep" / str(k)).write_bytes(bytes(100))
    os.link(pair.one / "plain" / "deep" / "0", pair.one / "plain" / "name")

    def below(path: Path) -> list[int]:
        names = ("rbytes", "rfiles", "rsubdirs", "rentries")
        return [int(os.getxattr(path, f"lockstep.{name}")) for name in names]

    assert below(pair.two / "plain") == [500, 5, 1, 6]
    os.setxattr(pair.one, "lockstep.quota", b"inodes_hard=9")
    eventually(lambda: not shown(pair.two)["counting"])
    assert below(pair.two) == [500, 5, 2, 7]
    (pair.one / "last").mkdir()
    fails(errno.EDQUOT, os.mkdir, pair.two / "more")
    fails(errno.EDQUOT, os.symlink, "x", pair.two / "more")
    fails(errno.EXDEV, os.rename, pair.one / "plain", pair.one.parent / f"{pair.one.name}-moved")
    fails(errno.ENODATA, os.getxattr, pair.one / "plain" / "name", "lockstep.rbytes")
    os.removexattr(pair.one, "lockstep.quota")
    eventually(lambda: json.loads(os.getxattr(pair.one / "plain" / "name", "lockstep.usage")) == [])
    os.mkdir(pair.two / "more")


def test_the_commands(cluster: Live, pair: Pair) -> None:
    def lockstep(*args: str | Path) -> str:
        argv = python_module("admin", "quota", *map(str, args))
        done = subprocess.run(argv, capture_output=True, text=True, env=child_environment(), timeout=60, check=True)
        return done.stdout

    lockstep("set", "--bytes", "1M", "--inodes-soft", "1", pair.one)
    (pair.one / "f").write_bytes(b"12345")
    (told,) = json.loads(lockstep("get", "--json", pair.one / "f"))["quotas"]
    assert (told["path"], told["bytes_used"], told["bytes_hard"]) == (f"/{pair.one.name}", 5, 1 << 20)
    text = lockstep("get", pair.one)
    assert "1,048,576" in text and "inodes over the soft limit" in text
    assert f"/{pair.one.name}" in lockstep("list", cluster.cluster.config.path)
    lockstep("clear", pair.one)
    assert "is in no quota" in lockstep("get", pair.one)

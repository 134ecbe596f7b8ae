"""atime through mounts: relatime, noatime, O_NOATIME."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.fuse.conftest import Pair
from tests.live import Live

pytestmark = pytest.mark.system

YEAR_NS = 365 * 24 * 3600 * 10**9


def read(path: Path, flags: int = 0) -> bytes:
    """Read it all; fsync has the mount tell now what it would tell within a second."""
    fd = os.open(path, os.O_RDONLY | flags)
    try:
        data = os.read(fd, 100)
        os.fsync(fd)
        return data
    finally:
        os.close(fd)


def test_the_first_read_after_a_change_moves_atime_and_the_next_does_not(pair: Pair) -> None:
    (pair.one / "f").write_bytes(b"x")
    made = os.stat(pair.two / "f")
    assert read(pair.one / "f") == b"x"
    first = os.stat(pair.two / "f")
    assert first.st_atime_ns > made.st_atime_ns
    assert (first.st_mtime_ns, first.st_ctime_ns) == (made.st_mtime_ns, made.st_ctime_ns)
    assert read(pair.two / "f") == b"x"
    assert os.stat(pair.one / "f").st_atime_ns == first.st_atime_ns
    os.chmod(pair.one / "f", 0o600)
    assert read(pair.two / "f") == b"x"
    assert os.stat(pair.one / "f").st_atime_ns > first.st_atime_ns


def test_an_atime_that_is_older_than_a_day_moves(pair: Pair) -> None:
    f = pair.one / "f"
    f.write_bytes(b"x")
    now = os.stat(f).st_mtime_ns
    os.utime(f, ns=(now - YEAR_NS, now - 2 * YEAR_NS))
    assert read(pair.two / "f") == b"x"
    assert os.stat(f).st_atime_ns > now


def test_o_noatime_is_kept(pair: Pair) -> None:
    f = pair.one / "f"
    f.write_bytes(b"x")
    before = os.stat(f).st_atime_ns
    assert read(f, os.O_NOATIME) == b"x"
    assert os.stat(pair.two / "f").st_atime_ns == before


def test_an_atime_that_is_set_stays_although_a_read_is_told_later(pair: Pair) -> None:
    f = pair.one / "f"
    f.write_bytes(b"x")
    fd = os.open(f, os.O_RDONLY)
    try:
        assert os.read(fd, 1) == b"x"
        os.utime(pair.two / "f", ns=(5, 6))
        os.fsync(fd)
    finally:
        os.close(fd)
    assert os.stat(pair.one / "f").st_atime_ns == 5


def test_a_noatime_mount_leaves_it(cluster: Live) -> None:
    top = cluster.mount("noatime", 1, ("noatime",))
    try:
        (top / "f").write_bytes(b"x")
        before = os.stat(top / "f").st_atime_ns
        assert read(top / "f") == b"x"
        assert os.stat(top / "f").st_atime_ns == before
    finally:
        cluster.unmount("noatime")

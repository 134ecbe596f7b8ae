"""What the state machine has found, made small: each was a difference from a local file system."""

from __future__ import annotations

import os

import pytest

from tests.live import Live
from tests.model.twin import Twin

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as other users"),
]


def test_a_write_of_root_leaves_set_id_bits(cluster: Live, twin: Twin) -> None:
    """They were cleared when the size was committed, whoever had written."""
    twin.open_file("root", 0, 0, b"a", os.O_RDWR | os.O_CREAT, 0o6755)
    twin.on_handle(0, "write", b"x")
    twin.compare()
    twin.do("root", 1, "stat", b"a")


def test_an_attribute_of_an_unknown_space_is_refused_by_permission_first(cluster: Live, twin: Twin) -> None:
    twin.do("root", 0, "mkdir", b"a", 0o700)
    for user in ("bob", "root"):
        for name in ("nonsense", "nonsense.a", "system.a", "user."):
            twin.do(user, 0, "setxattr", b"a", name, b"v", 0, True)
            twin.do(user, 0, "getxattr", b"a", name, True)
            twin.do(user, 0, "removexattr", b"a", name, True)


def test_o_trunc_truncates_also_when_opening_to_read(cluster: Live, twin: Twin) -> None:
    """POSIX leaves it open; Linux truncates, and asks for write permission."""
    twin.open_file("alice", 0, 3, b"a", os.O_RDWR | os.O_CREAT, 0o744)
    twin.on_handle(3, "write", b"xxxxx")
    twin.open_file("bob", 1, 1, b"a", os.O_RDONLY | os.O_TRUNC)
    twin.compare()
    twin.open_file("alice", 1, 0, b"a", os.O_RDONLY | os.O_TRUNC)
    twin.on_handle(3, "pwrite", b"y", 7)
    twin.on_handle(3, "pread", 100, 0)
    twin.do("alice", 0, "stat", b"a")


def test_protected_hardlinks_hold(cluster: Live, twin: Twin) -> None:
    """The kernel of a FUSE mount takes the permission to read and write for granted."""
    twin.do("root", 0, "mknod", b"a", 0o755, 0)
    twin.do("bob", 1, "link", b"a", b"b", False)
    twin.do("root", 0, "chmod", b"a", 0o756)
    twin.do("bob", 0, "link", b"a", b"c", False)
    twin.do("root", 0, "chown", b"a", 1002, 1002, False)
    twin.do("root", 0, "chmod", b"a", 0)
    twin.do("bob", 1, "link", b"a", b"d", False)


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_WRONLY | os.O_APPEND], ids=["cached", "direct"])
def test_a_write_of_another_clears_set_id_bits(cluster: Live, twin: Twin, flags: int) -> None:
    twin.do("root", 0, "mknod", b"a", 0o6777, 0)
    twin.open_file("alice", 0, 0, b"a", flags)
    twin.on_handle(0, "write", b"x")
    twin.compare()
    twin.do("root", 1, "stat", b"a")

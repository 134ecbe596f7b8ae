"""mknod(2)."""

from __future__ import annotations

import errno
import stat

from tests.mds.harness import ALICE, ROOT, TOP, World
from wire import ops


def test_fifo_socket_and_file(world: World) -> None:
    for kind, name in ((stat.S_IFIFO, b"p"), (stat.S_IFSOCK, b"s"), (stat.S_IFREG, b"f")):
        attr = world.attr(ops.Mknod(ALICE, TOP, name, kind | 0o600, 0))
        assert attr.mode == kind | 0o600
        assert (attr.layout is not None) == (kind == stat.S_IFREG)


def test_regular_file_is_not_opened(world: World) -> None:
    assert world.run(ops.Mknod(ROOT, TOP, b"f", stat.S_IFREG | 0o600, 0)).opened == 0


def test_devices_are_for_root(world: World) -> None:
    assert world.status(ops.Mknod(ALICE, TOP, b"c", stat.S_IFCHR | 0o600, 0x103)) == errno.EPERM
    assert world.status(ops.Mknod(ALICE, TOP, b"b", stat.S_IFBLK | 0o600, 0)) == errno.EPERM
    assert world.attr(ops.Mknod(ROOT, TOP, b"c", stat.S_IFCHR | 0o600, 0x103)).rdev == 0x103
    assert world.attr(ops.Mknod(ALICE, TOP, b"whiteout", stat.S_IFCHR, 0)).rdev == 0


def test_name_is_there(world: World) -> None:
    world.create(b"f")
    assert world.status(ops.Mknod(ROOT, TOP, b"f", stat.S_IFIFO, 0)) == errno.EEXIST

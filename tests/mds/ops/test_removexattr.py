"""removexattr(2)."""

from __future__ import annotations

import errno

from tests.mds.harness import ALICE, ROOT, World
from wire import ops


def test_remove(world: World) -> None:
    ino = world.create(b"f")
    world.ok(ops.SetXattr(ROOT, ino, b"user.a", b"v", 0))
    assert world.status(ops.RemoveXattr(ALICE, ino, b"user.a")) == errno.EACCES
    world.ok(ops.RemoveXattr(ROOT, ino, b"user.a"))
    assert world.stat(ino).ctime_ns == world.time
    assert world.ask(ops.ListXattr(ino)) == ()
    assert world.status(ops.RemoveXattr(ROOT, ino, b"user.a")) == errno.ENODATA
    assert world.status(ops.RemoveXattr(ROOT, 999, b"user.a")) == errno.ESTALE

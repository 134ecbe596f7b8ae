"""Objects of removed files, to be deleted at the targets."""

from __future__ import annotations

from tests.mds.harness import ROOT, TOP, World
from wire import ops


def test_queue(world: World) -> None:
    inos = []
    for name in (b"a", b"b", b"c"):
        inos.append(world.create(name))
        world.ok(ops.Unlink(ROOT, TOP, name))
        world.release(inos[-1])
    world.mkdir(b"d")
    world.ok(ops.Rmdir(ROOT, TOP, b"d"))
    queue = world.machine.reclaimable(10)
    assert [ino for ino, _layout in queue] == inos
    assert sorted(chain & 0xFFFF for chain in queue[0][1][1]) == [1, 2, 3, 4]
    assert len(world.machine.reclaimable(2)) == 2
    world.internal(ops.ReclaimDone((inos[0], inos[2], 999)))
    assert [ino for ino, _layout in world.machine.reclaimable(10)] == [inos[1]]

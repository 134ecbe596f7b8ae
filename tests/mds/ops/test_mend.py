"""What fsck finds is put right by ordered requests, and nothing that is right is touched by one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mds import schema
from mds.check import check
from mds.mend import mends
from tests.mds.harness import ROOT, TOP, World, contents
from tests.mds.test_check import DAMAGES
from wire import mending, ops
from wire.mending import Mend

CAN_BE_MENDED = (
    "entry without inode", "inode without entry", "cookie lost", "cookie too many", "link count", "directory links",
    "entry count", "orphan lost",
)  # fmt: skip


def furnished(world: World) -> dict[str, int]:
    inos = {"file": world.create(b"file"), "dir": world.mkdir(b"dir"), "orphan": world.create(b"gone")}
    inos["link"] = world.ok(ops.Symlink(ROOT, TOP, b"link", b"x"))[0]
    world.ok(ops.Unlink(ROOT, TOP, b"gone"))
    return inos


def put_right(world: World) -> Iterator[Mend]:
    """As the command does it: look, order, look again."""
    for _ in range(3):
        for mend in list(mends(world.store)):
            assert world.internal(mend), f"{mend} changed nothing"
            yield mend


@pytest.mark.parametrize("name", CAN_BE_MENDED)
def test_what_is_wrong_is_put_right(world: World, name: str) -> None:
    inos = furnished(world)
    damage, text = DAMAGES[name]
    world.store.begin()
    damage(world.store, inos)
    world.store.commit()
    assert any(text in problem for problem in check(world.store))
    done = list(put_right(world))
    # An orphan that was lost leaves what is derived from it, which nobody misses.
    assert done
    assert [p for p in check(world.store) if "owes an answer" not in p] == []
    for mend in done:
        if mend.kind in (mending.COUNT, mending.LINKS, mending.TALLY):
            continue  # never sent twice, see there
        before = contents(world.store)
        assert not world.internal(mend), "what is right is not put right again"
        assert [r for r in before if r[0]] == [r for r in contents(world.store) if r[0]]
    if name == "orphan lost":
        for replica in (1, 2, 3):
            world.store.begin()
            world.store.delete(schema.OWED, schema.owed_key(replica, inos["orphan"]))
            world.store.commit()


def test_a_file_without_a_name_gets_one(world: World) -> None:
    inos = furnished(world)
    damage, _ = DAMAGES["inode without entry"]
    world.store.begin()
    damage(world.store, inos)
    world.store.commit()
    assert list(put_right(world))
    lost = world.lookup(TOP, b"lost+found")
    assert world.names(lost.ino) == [b"#%d" % inos["file"]]
    found = world.lookup(lost.ino, b"#%d" % inos["file"])
    assert (found.ino, found.nlink) == (inos["file"], 1)


def test_a_directory_without_a_name_gets_one_with_all_below(world: World) -> None:
    inos = furnished(world)
    below = world.create(b"below", inos["dir"])
    cookie = world.store.get(schema.DIRENTS, schema.dirent_key(TOP, b"dir"))
    assert cookie is not None
    world.store.begin()
    world.store.delete(schema.DIRENTS, schema.dirent_key(TOP, b"dir"))
    world.store.commit()
    assert list(put_right(world))
    assert check(world.store) == []
    lost = world.lookup(TOP, b"lost+found").ino
    assert world.lookup(world.lookup(lost, b"#%d" % inos["dir"]).ino, b"below").ino == below


def test_what_has_changed_since_is_left_alone(world: World) -> None:
    """fsck saw one name; a link was made before its request was carried out."""
    inos = furnished(world)
    world.ok(ops.Link(ROOT, inos["file"], TOP, b"other"))
    before = contents(world.store)
    for mend in (
        Mend(mending.LINKS, inos["file"], 0, b"", 1, 3, ()),
        Mend(mending.ENTRY, inos["file"], TOP, b"file", 0, 0, ()),
        Mend(mending.COUNT, TOP, 0, b"", 77, 5, ()),
        Mend(mending.COOKIE, 0, TOP, b"file", 0, 0, ()),
        Mend(mending.NAMELESS, inos["orphan"], 0, b"", 0, 0, ()),
        Mend(mending.TALLY, 0, 0, b"", 99, 5, ()),
        Mend(mending.OBJECTS, inos["file"], 0, b"", 0, 0, (1,)),
        Mend(mending.OBJECTS, 2**62, 0, b"", 0, 0, (1,)),
        Mend(mending.OBJECTS, 3, 0, b"", 0, 0, (999_999,)),
    ):
        assert not world.internal(mend)
    assert [r for r in before if r[0]] == [r for r in contents(world.store) if r[0]]


def test_objects_without_an_inode_are_queued(world: World) -> None:
    chain = int.from_bytes(next(world.store.scan(schema.CHAINS, b"", None))[0], "big")
    assert world.internal(Mend(mending.OBJECTS, 3, 0, b"", 0, 0, (chain, chain)))
    assert [ino for ino, _ in world.machine.reclaimable(10)] == [3]
    world.internal(ops.ReclaimDone((3,)))


def test_a_client_cannot_ask_for_it(world: World) -> None:
    assert world.run(Mend(mending.TALLY, 0, 0, b"", 1, 1, ())).status != 0

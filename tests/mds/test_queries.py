"""Queries, and listings while entries come and go."""

from __future__ import annotations

import errno
import os
import random
from typing import Any

import pytest

from mds.namespace.queries import FMODE_EXEC, STORAGE_MAP
from tests.mds.harness import ALICE, BOB, ROOT, TOP, World
from wire import ops


def listing(world: World, ino: int, limit: int, between: Any = None) -> list[tuple[bytes, int, int]]:
    """(name, cookie, ino) of all pages; *between* is called after each page."""
    found: list[tuple[bytes, int, int]] = []
    cookie, end = 0, False
    while not end:
        entries, end = world.ask(ops.ReadDir(ROOT, ino, cookie, limit))
        assert len(entries) <= limit
        found += [(name, at, attr[0]) for name, at, attr in entries]
        if entries:
            cookie = entries[-1][1]
        if between is not None:
            between()
    return found


@pytest.mark.parametrize("seed", range(8))
def test_listing_meets_what_stays_exactly_once(world: World, seed: int) -> None:
    """Between two pages others create, remove and rename, a replica fails over, layers are written."""
    rng = random.Random(seed)
    directory = world.mkdir(b"d")
    aside = world.mkdir(b"aside")
    stay = {b"stay%d" % k for k in range(40)}
    come = [b"come%d" % k for k in range(30)]
    for name in rng.sample(sorted(stay) + come[:15], 55):
        world.create(name, directory)
    bystander = 0

    def disturb() -> None:
        nonlocal bystander
        for _ in range(rng.randrange(6)):
            name, other = rng.choice(come), rng.choice(come)
            kept = rng.choice(sorted(stay))
            bystander += 1
            choices: list[list[Any]] = [
                [ops.Create(ROOT, directory, name, 0o600)],
                [ops.Unlink(ROOT, directory, name)],
                [ops.Rename(ROOT, directory, name, directory, other, rng.choice([0, 2]))],
                [ops.Rename(ROOT, directory, name, directory, kept, 0)],  # kept stands for another inode now
                [ops.Rename(ROOT, directory, name, aside, b"x%d" % bystander, 0)],
                [
                    ops.Create(ROOT, aside, b"y%d" % bystander, 0o600),
                    ops.Rename(ROOT, aside, b"y%d" % bystander, directory, kept, rng.choice([0, 2])),
                ],
            ]
            for op in rng.choice(choices):
                world.run(op)
        if rng.random() < 0.3:
            world.flush()
        if rng.random() < 0.2:
            world.flush()
            world.reopen()

    names = [name for name, _cookie, _ino in listing(world, directory, rng.randrange(1, 7), disturb)]
    for name in stay:
        assert names.count(name) == 1, name


def test_listing_ends_while_each_entry_is_renamed(world: World) -> None:
    """for f in *; do mv $f new.$f; done, with a page of one."""
    for k in range(20):
        world.create(b"f%d" % k)
    met: list[bytes] = []
    cookie, end = 0, False
    while not end:
        entries, end = world.ask(ops.ReadDir(ROOT, TOP, cookie, 1))
        for name, at, _attr in entries:
            met.append(name)
            cookie = at
            world.ok(ops.Rename(ROOT, TOP, name, TOP, b"new." + name, 0))
    assert sorted(met) == sorted(b"f%d" % k for k in range(20))


def test_cookies_fit_and_survive_a_restart(world: World) -> None:
    for k in range(10):
        world.create(b"f%d" % k)
    before = listing(world, TOP, 3)
    assert all(2 < cookie < 2**63 for _name, cookie, _ino in before)
    assert [cookie for _name, cookie, _ino in before] == sorted(cookie for _name, cookie, _ino in before)
    world.flush()
    world.reopen()
    assert listing(world, TOP, 4) == before


def test_readdir_page_is_bounded_in_bytes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mds.namespace.queries.READDIR_BYTES", 1000)
    for k in range(30):
        world.create(b"n" * 200 + b"%d" % k)
    entries, end = world.ask(ops.ReadDir(ROOT, TOP, 0, 4096))
    assert 2 <= len(entries) <= 6 and not end
    assert len(listing(world, TOP, 4096)) == 30


def test_every_page_of_a_listing_needs_permission(world: World) -> None:
    """Who has begun it has a capability, and comes as root by then: tests/mds/test_rights.py."""
    directory = world.mkdir(b"d", mode=0o711)
    world.create(b"f", directory)
    assert world.refused(ops.ReadDir(ALICE, directory, 0, 10)) == errno.EACCES
    assert world.refused(ops.ReadDir(ALICE, directory, 1, 10)) == errno.EACCES
    assert world.refused(ops.ReadDir(ROOT, directory, 1, 10)) == 0
    assert world.refused(ops.ReadDir(ROOT, world.create(b"g"), 0, 10)) == errno.ENOTDIR


def test_what_was_read(world: World) -> None:
    directory = world.mkdir(b"d")
    file = world.create(b"f", directory)
    query = world.machine.query
    assert query(ops.Lookup(ROOT, directory, b"f")).read == {directory, file}
    assert query(ops.Lookup(ROOT, directory, b"none")).read == {directory}
    assert query(ops.Lookup(ROOT, directory, b"..")).read == {directory, TOP}
    assert query(ops.ReadDir(ROOT, directory, 0, 10)).read == {directory, file}
    assert query(ops.GetAttr(999)).read == {999}
    assert query(ops.StorageMap()).read == {STORAGE_MAP}
    assert query(ops.StatFs()).read == frozenset()


def test_lookup(world: World) -> None:
    closed = world.mkdir(b"closed", mode=0o700)
    file = world.create(b"f", closed)
    assert world.lookup(closed, b"f").ino == file
    assert world.refused(ops.Lookup(ALICE, closed, b"f")) == errno.EACCES
    assert world.refused(ops.Lookup(ROOT, closed, b"n" * 256)) == errno.ENAMETOOLONG
    assert world.refused(ops.Lookup(ROOT, file, b"x")) == errno.ENOTDIR


@pytest.mark.parametrize(
    ("cred", "flags", "status"),
    [
        (ALICE, os.O_RDWR, 0),
        (BOB, os.O_RDONLY, 0),
        (BOB, os.O_WRONLY, errno.EACCES),
        (BOB, os.O_RDONLY | os.O_TRUNC, errno.EACCES),
        (BOB, os.O_RDONLY | FMODE_EXEC, errno.EACCES),
        (ROOT, os.O_RDWR, 0),
        (ROOT, os.O_RDONLY | FMODE_EXEC, errno.EACCES),
    ],
)
def test_open(world: World, cred: ops.Cred, flags: int, status: int) -> None:
    ino = world.create(b"f", mode=0o644, cred=ALICE)
    assert world.refused(ops.Open(cred, ino, flags)) == status


def test_open_of_a_directory_for_writing(world: World) -> None:
    assert world.refused(ops.Open(ROOT, TOP, os.O_RDWR)) == errno.EISDIR
    assert world.refused(ops.Open(ALICE, TOP, os.O_RDONLY)) == 0


def test_execute_only_file_can_be_executed(world: World) -> None:
    ino = world.create(b"f", mode=0o711, cred=ALICE)
    assert world.refused(ops.Open(BOB, ino, FMODE_EXEC)) == 0
    assert world.refused(ops.Open(BOB, ino, 0)) == errno.EACCES


def test_access(world: World) -> None:
    ino = world.create(b"f", mode=0o640, cred=ALICE)
    world.ok(world.set_attr(ino, gid=BOB.gid))
    assert world.refused(ops.Access(ALICE, ino, 6)) == 0
    assert world.refused(ops.Access(BOB, ino, 4)) == 0
    assert world.refused(ops.Access(BOB, ino, 2)) == errno.EACCES
    assert world.refused(ops.Access(ROOT, ino, 6)) == 0
    assert world.refused(ops.Access(ROOT, ino, 1)) == errno.EACCES
    assert world.refused(ops.Access(BOB, ino, 0)) == 0
    assert world.refused(ops.Access(BOB, 999, 0)) == errno.ESTALE


def test_owner_is_not_helped_by_the_group_bits(world: World) -> None:
    """The first class that fits decides: an owner without rights is refused though his group has them."""
    ino = world.create(b"f", mode=0o070, cred=ALICE)
    assert world.refused(ops.Access(ALICE, ino, 4)) == errno.EACCES
    supplementary = ops.Cred(7, 7, (7, ALICE.gid))
    assert world.refused(ops.Access(supplementary, ino, 4)) == 0


def test_statfs(world: World) -> None:
    world.create(b"f")
    assert world.ask(ops.StatFs()) == (2, 1, 4)


def test_something_that_is_no_query(world: World) -> None:
    assert world.refused(ops.Unlink(ROOT, TOP, b"x")) != 0

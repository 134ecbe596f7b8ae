"""Directory quotas in the state machine. Each test ends with a full check, which adds up all inodes anew."""

from __future__ import annotations

import errno
import json
import random
from typing import Any

import pytest

from mds import schema, usage
from mds.check import check
from mds.mend import mends
from mds.namespace import quota
from mds.namespace.inode import decode
from tests.mds.harness import ALICE, ROOT, TOP, World, contents
from wire import ops, quotaops
from wire.errors import OK


def set_quota(world: World, ino: int, text: str = "", cred: ops.Cred = ROOT) -> ops.SetXattr:
    return ops.SetXattr(cred, ino, quota.ATTRIBUTE, text.encode(), 0)


def count(world: World) -> int:
    """What replicas do as long as there is something; how many requests it took."""
    asked = 0
    while quota.counting(world.store):
        world.internal(quotaops.QuotaWork())
        asked += 1
    return asked


def used(world: World, ino: int) -> tuple[int, int, int]:
    """(bytes, inodes, directories) of a root."""
    record = quota.known(world.store, ino)
    return record.bytes_used, record.inodes_used, record.directories


def write(world: World, ino: int, end: int) -> int:
    """The status of a commit."""
    return world.run(ops.Commit(ino, end, 0)).status


@pytest.fixture
def root(world: World) -> int:
    ino = world.mkdir(b"q")
    world.ok(set_quota(world, ino))
    return ino


def test_what_is_made_grows_and_goes_is_counted(world: World, root: int) -> None:
    below = world.mkdir(b"below", root)
    file = world.create(b"f", below)
    world.ok(ops.Symlink(ROOT, below, b"l", b"target"))
    assert used(world, root) == (0, 4, 2)
    assert write(world, file, 1000) == OK
    assert write(world, file, 500) == OK  # size only grows
    world.ok(world.set_attr(file, size=300))
    assert used(world, root) == (300, 4, 2)
    world.ok(ops.Unlink(ROOT, below, b"f"))
    assert used(world, root) == (300, 4, 2), "it may be open yet"
    world.release(file)
    assert used(world, root) == (0, 3, 2)
    world.ok(ops.Unlink(ROOT, below, b"l"))
    world.ok(ops.Rmdir(ROOT, root, b"below"))
    assert used(world, root) == (0, 1, 1)
    world.ok(ops.Rmdir(ROOT, TOP, b"q"))
    assert quota.find(world.store, root) is None


def test_hard_limits_refuse_with_edquot_root_too(world: World, root: int) -> None:
    world.ok(set_quota(world, root, "bytes_hard=1000 inodes_hard=3"))
    file = world.create(b"f", root)
    world.create(b"g", root)
    assert world.status(ops.Create(ROOT, root, b"h", 0o644)) == errno.EDQUOT
    assert world.status(ops.Mkdir(ROOT, root, b"h", 0o755)) == errno.EDQUOT
    assert write(world, file, 1000) == OK
    assert world.status(ops.Commit(file, 1001, 0)) == errno.EDQUOT
    assert world.status(world.set_attr(file, size=1001)) == errno.EDQUOT
    world.ok(world.set_attr(file, size=10))
    assert world.status(ops.Commit(file, 1001, 0)) == errno.EDQUOT
    world.ok(ops.Commit(file, 0, world.time))
    assert used(world, root) == (10, 3, 1)


def test_limits_below_what_is_used_refuse_growth_alone(world: World, root: int) -> None:
    file = world.create(b"f", root)
    world.create(b"g", root)
    write(world, file, 1000)
    world.ok(set_quota(world, root, "bytes_hard=10 inodes_hard=1"))
    assert world.status(ops.Commit(file, 1001, 0)) == errno.EDQUOT
    world.ok(world.set_attr(file, size=900))
    world.ok(ops.Unlink(ROOT, root, b"g"))
    assert world.status(ops.Create(ROOT, root, b"h", 0o644)) == errno.EDQUOT


def test_a_soft_limit_refuses_when_its_grace_time_is_over(world: World, root: int) -> None:
    world.ok(set_quota(world, root, "bytes_soft=100 grace_s=60"))
    file = world.create(b"f", root)
    assert write(world, file, 200) == OK
    world.time += 59 * 10**9
    assert write(world, file, 300) == OK
    world.time += 2 * 10**9
    assert world.status(ops.Commit(file, 301, 0)) == errno.EDQUOT
    world.create(b"g", root)  # inodes are another limit
    world.ok(world.set_attr(file, size=100))
    assert write(world, file, 301) == OK, "back below the limit, the time begins anew"


def test_soft_limit_of_inodes(world: World, root: int) -> None:
    world.ok(set_quota(world, root, "inodes_soft=2 grace_s=1"))
    world.create(b"f", root)
    world.create(b"g", root)
    world.time += 3 * 10**9
    assert world.status(ops.Create(ROOT, root, b"h", 0o644)) == errno.EDQUOT


def test_what_cannot_be_a_limit(world: World, root: int) -> None:
    for text in ("bytes=1", "bytes_hard=-1", "bytes_hard=x", "bytes_soft=2 bytes_hard=1", f"bytes_hard={2**63}"):
        assert world.status(set_quota(world, root, text)) == errno.EINVAL, text
    assert world.status(set_quota(world, root, "bytes_hard=1", ALICE)) == errno.EPERM
    assert world.status(set_quota(world, world.create(b"f"), "bytes_hard=1")) == errno.ENOTDIR
    assert world.status(ops.RemoveXattr(ALICE, root, quota.ATTRIBUTE)) == errno.EPERM
    assert world.status(ops.RemoveXattr(ROOT, TOP, quota.ATTRIBUTE)) == errno.ENODATA


def test_limits_are_shown_as_they_can_be_set(world: World, root: int) -> None:
    world.ok(set_quota(world, root, "bytes_hard=1000 inodes_soft=7"))
    world.ok(set_quota(world, root, "bytes_soft=900"))
    shown = world.ask(ops.GetXattr(ALICE, root, quota.ATTRIBUTE))
    assert shown == b"bytes_hard=1000 bytes_soft=900 inodes_hard=0 inodes_soft=7 grace_s=604800"
    file = world.create(b"f", root)
    assert world.refused(ops.GetXattr(ROOT, file, quota.ATTRIBUTE)) == errno.ENODATA
    (told,) = json.loads(world.ask(ops.GetXattr(ALICE, file, quota.USAGE)))
    assert (told["path"], told["inodes_used"], told["bytes_hard"], told["counting"]) == ("/q", 2, 1000, False)
    assert json.loads(world.ask(ops.GetXattr(ALICE, TOP, quota.USAGE))) == []


def test_a_root_within_a_root_counts_in_both(world: World, root: int) -> None:
    world.ok(set_quota(world, root, "inodes_hard=4"))
    inner = world.mkdir(b"inner", root)
    world.ok(set_quota(world, inner, "bytes_hard=100"))
    file = world.create(b"f", inner)
    write(world, file, 80)
    assert (used(world, root), used(world, inner)) == ((80, 3, 2), (80, 2, 1))
    assert world.status(ops.Commit(file, 101, 0)) == errno.EDQUOT
    world.create(b"g", inner)
    assert world.status(ops.Create(ROOT, inner, b"h", 0o644)) == errno.EDQUOT, "the outer limit"
    world.ok(ops.RemoveXattr(ROOT, inner, quota.ATTRIBUTE))
    count(world)
    assert quota.find(world.store, inner) is None
    assert used(world, root) == (80, 4, 2)


def test_roots_do_not_nest_for_ever(world: World) -> None:
    ino = TOP
    for _ in range(quota.NESTED_MAX):
        ino = world.mkdir(b"d", ino)
        world.ok(set_quota(world, ino))
    ino = world.mkdir(b"d", ino)
    assert world.status(set_quota(world, ino)) == errno.EINVAL


def test_rename_between_quotas(world: World, root: int) -> None:
    world.ok(set_quota(world, root, "bytes_hard=100 inodes_hard=4"))
    file, full = world.create(b"f"), world.mkdir(b"full")
    world.create(b"x", full)
    world.mkdir(b"empty")
    write(world, file, 90)
    move = lambda old, name, new, to, flags=0: ops.Rename(ROOT, old, name, new, to, flags)  # noqa: E731
    world.ok(move(TOP, b"f", root, b"f"))
    assert used(world, root) == (90, 2, 1)
    world.ok(move(TOP, b"empty", root, b"empty"))
    assert used(world, root) == (90, 3, 2)
    assert world.status(move(TOP, b"full", root, b"full")) == errno.EXDEV
    large = world.create(b"large")
    write(world, large, 20)
    assert world.status(move(TOP, b"large", root, b"large")) == errno.EDQUOT
    world.ok(move(TOP, b"large", root, b"f", ops.RENAME_EXCHANGE))  # the other one leaves
    assert used(world, root) == (20, 3, 2)
    world.ok(move(root, b"f", TOP, b"back"))
    assert used(world, root) == (0, 2, 2)
    world.create(b"two")
    world.ok(ops.Link(ROOT, world.lookup(TOP, b"two").ino, TOP, b"names"))
    assert world.status(move(TOP, b"two", root, b"two")) == errno.EXDEV
    assert world.status(ops.Link(ROOT, large, root, b"large")) == errno.EXDEV


def test_a_root_takes_its_tree_along(world: World, root: int) -> None:
    other = world.mkdir(b"other")
    world.ok(set_quota(world, other, "bytes_hard=100"))
    file = world.create(b"f", root)
    write(world, file, 101)
    assert world.status(ops.Rename(ROOT, TOP, b"q", other, b"q", 0)) == errno.EDQUOT
    world.ok(world.set_attr(file, size=60))
    world.ok(ops.Rename(ROOT, TOP, b"q", other, b"q", 0))
    assert used(world, other) == (60, 3, 2)
    assert world.status(ops.Commit(file, 101, 0)) == errno.EDQUOT
    world.ok(ops.Rename(ROOT, other, b"q", TOP, b"q", 0))
    assert used(world, other) == (0, 1, 1)


def tree(world: World, at: int, files: int = 40) -> int:
    """Files of 10 bytes in three directories below *at*; how many inodes."""
    deep = world.mkdir(b"deep", world.mkdir(b"a", at))
    wide = world.mkdir(b"wide", at)
    for k in range(files):
        ino = world.create(b"%d" % k, (at, deep, wide)[k % 3])
        world.ok(ops.Commit(ino, 10, 0))
    return files + 3


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quota, "WORK_ENTRIES", 7)


def test_a_tree_that_is_there_is_counted_in_steps(world: World, small_steps: None) -> None:
    top = world.mkdir(b"t")
    inodes = tree(world, top)
    world.ok(set_quota(world, top, "bytes_hard=10"))  # less than there is: counting goes on all the same
    assert quota.counting(world.store) and used(world, top) == (0, 1, 1)
    assert count(world) > 3
    assert used(world, top) == (400, inodes + 1, 4)
    world.ok(ops.RemoveXattr(ROOT, top, quota.ATTRIBUTE))
    count(world)
    assert quota.find(world.store, top) is None


def test_an_unlinked_open_file_keeps_an_ended_quota(world: World, root: int) -> None:
    file = world.create(b"f", root)
    write(world, file, 10)
    world.ok(ops.Unlink(ROOT, root, b"f"))
    world.ok(ops.RemoveXattr(ROOT, root, quota.ATTRIBUTE))
    count(world)
    assert used(world, root) == (10, 1, 0)
    world.ok(set_quota(world, root, "bytes_hard=5"))  # the same directory once more
    assert used(world, root) == (10, 2, 1)
    world.release(file)
    assert used(world, root) == (0, 1, 1)


@pytest.mark.parametrize("seed", range(12))
def test_random_changes_while_quotas_come_and_go(world: World, small_steps: None, seed: int) -> None:
    """The check at the end adds everything up; so does each step in between."""
    rng = random.Random(seed)
    directories = [TOP]
    for k in range(6):
        directories.append(world.mkdir(b"d%d" % k, rng.choice(directories)))
    names = [b"%d" % k for k in range(5)]

    def somewhere() -> tuple[int, bytes]:
        return rng.choice(directories), rng.choice(names)

    def one() -> Any:
        match rng.randrange(11):
            case 0 | 1:
                return ops.Create(ROOT, *somewhere(), 0o644)
            case 2:
                return ops.Mkdir(ROOT, *somewhere(), 0o755)
            case 3:
                return ops.Unlink(ROOT, *somewhere())
            case 4:
                return ops.Rmdir(ROOT, *somewhere())
            case 5 | 6:
                return ops.Rename(ROOT, *somewhere(), *somewhere(), rng.choice((0, 0, ops.RENAME_EXCHANGE)))
            case 7:
                return set_quota(world, rng.choice(directories), rng.choice(("", "inodes_hard=9", "bytes_hard=90")))
            case 8:
                return ops.RemoveXattr(ROOT, rng.choice(directories), quota.ATTRIBUTE)
            case 9:
                return quotaops.QuotaWork()
        inodes = [int.from_bytes(key, "big") for key, _ in world.store.scan(schema.INODES, b"", None)]
        where = rng.choice(inodes)
        return rng.choice((ops.Commit(where, rng.randrange(50), 0), ops.Link(ROOT, where, *somewhere())))

    for step in range(250):
        op = one()
        if isinstance(op, quotaops.QuotaWork):
            world.internal(op)
        else:
            outcome = world.run(op)
            if isinstance(op, ops.Mkdir) and outcome.status == OK:
                directories.append(world.lookup(op.parent, op.name).ino)
        if step % 10 == 0:
            assert list(usage.problems(world.store)) == [], f"seed {seed} step {step}: {op}"
    count(world)
    assert check(world.store) == []
    assert any(table == schema.QUOTAS.number for table, _, _ in contents(world.store)), "the test had quotas"


def test_names_made_while_a_tree_is_counted(world: World, small_steps: None) -> None:
    top = world.mkdir(b"t")
    inodes = tree(world, top)
    world.ok(set_quota(world, top))
    wide = world.lookup(top, b"wide").ino
    k = 0
    while quota.counting(world.store):
        world.internal(quotaops.QuotaWork())
        world.create(b"new%d" % k, (top, wide)[k % 2])
        k += 1
    count(world)
    assert used(world, top)[1] == inodes + 1 + k


def test_an_uncounted_file_takes_the_place_of_a_counted_one(world: World, small_steps: None) -> None:
    """1. The first names are counted. 2. A name that is not yet is put over one of them, or changes places with it."""
    for flags in (0, ops.RENAME_EXCHANGE):
        top = world.mkdir(b"t%d" % flags)
        for k in range(20):
            world.create(b"%d" % k, top)
        world.ok(set_quota(world, top))
        world.internal(quotaops.QuotaWork())
        world.ok(ops.Rename(ROOT, top, b"19", top, b"0", flags))
        count(world)
        assert used(world, top)[1] == 21, "one of them may be open yet"


def test_a_file_of_an_inner_root_that_has_a_name_outside(world: World) -> None:
    """One step counts the file in the outer root, and then the inner root, which has lost it, for the outer one."""
    top = world.mkdir(b"t")
    file = world.create(b"outside", top)
    inner = world.mkdir(b"inner", top)
    world.ok(ops.Link(ROOT, file, inner, b"inside"))
    write(world, file, 10)
    world.ok(set_quota(world, inner))
    count(world)
    assert used(world, inner) == (10, 2, 1)
    world.ok(set_quota(world, top))
    count(world)
    assert used(world, top) == (10, 3, 2)
    assert used(world, inner) == (0, 1, 1)


def test_room(world: World, root: int) -> None:
    ask = lambda: world.ask(quotaops.QuotaRoom(root))  # noqa: E731
    assert ask() is None
    world.ok(set_quota(world, root, "bytes_hard=100 bytes_soft=50 grace_s=1"))
    file = world.create(b"f", root)
    write(world, file, 60)
    assert ask() == 40
    world.time += 5 * 10**9
    world.mkdir(b"time goes on")
    assert ask() == 0
    assert world.ask(quotaops.QuotaRoom(999)) is None
    assert world.stat(file).quota == root and world.stat(TOP).quota == 0


def test_list(world: World, root: int) -> None:
    inner = world.mkdir(b"inner", root)
    world.ok(set_quota(world, inner, "inodes_hard=5"))
    items, end = world.ask(quotaops.QuotaList(ROOT, 0))
    assert end and [item["path"] for item in items] == [b"/q", b"/q/inner"]
    assert [item["inodes_used"] for item in items] == [2, 1]
    world.ok(ops.Rename(ROOT, TOP, b"q", TOP, b"r", 0))
    assert world.ask(quotaops.QuotaList(ROOT, root))[0][0]["path"] == b"/r/inner"
    assert world.refused(quotaops.QuotaList(ALICE, 0)) == errno.EPERM


def test_tally_of_a_root_and_of_a_plain_directory(world: World, root: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(world, root, 6)
    assert world.ask(quotaops.Tally(ROOT, root, 0)) == (60, 6, 3, (), (), 0, True)
    plain = world.mkdir(b"plain")
    world.ok(ops.Rename(ROOT, TOP, b"q", plain, b"q", 0))
    sub = world.mkdir(b"sub", plain)
    file = world.create(b"f", plain)
    world.ok(ops.Link(ROOT, file, plain, b"g"))
    write(world, file, 7)
    said = world.ask(quotaops.Tally(ROOT, plain, 0))
    assert said[:5] == (60, 6, 5, (sub,), ((file, 7), (file, 7)))
    monkeypatch.setattr("mds.namespace.quota_queries.TALLY_ENTRIES", 3)
    first = world.ask(quotaops.Tally(ROOT, plain, 0))
    assert not first[6]
    second = world.ask(quotaops.Tally(ROOT, plain, first[5]))
    assert second[6] and first[2] + second[2] == 5 and first[4] + second[4] == said[4]
    world.ok(world.set_attr(plain, mode=0o700))
    assert world.refused(quotaops.Tally(ALICE, plain, 0)) == errno.EACCES


def test_wrong_sums_are_found_and_repaired(world: World, root: int) -> None:
    file = world.create(b"f", root)
    write(world, file, 10)
    for broken in (quota.Quota(0, True, 11, 2, 1), quota.Quota(0, True, 10, 3, 1), quota.Quota(0, True, 10, 2, 2)):
        world.store.begin()
        world.store.put(schema.QUOTAS, schema.u64(root), broken.encode())
        assert any("quota root" in problem for problem in check(world.store))
        ((which, record),) = usage.repaired(world.store)
        assert which == root and record is not None
        assert (record.bytes_used, record.inodes_used, record.directories) == (10, 2, 1)
        world.store.rollback()
    assert usage.repaired(world.store) == []


def test_fsck_puts_wrong_sums_right(world: World, root: int) -> None:
    write(world, world.create(b"f", root), 10)
    right = quota.known(world.store, root)
    world.store.put_alone(schema.QUOTAS, schema.u64(root), quota.Quota(0, True, 11, 5, 3).encode())
    asked = list(mends(world.store))
    said = [(one.kind, one.was, one.now) for one in asked]
    assert said == [("bytes", 11, 10), ("inodes", 5, 2), ("directories", 3, 1)]
    for one in asked:
        assert world.internal(one) is True
        assert world.internal(one) is False, "once is enough"
    assert quota.known(world.store, root) == right
    assert list(mends(world.store)) == []


def test_a_record_that_is_lost_or_misplaced_is_found(world: World, root: int) -> None:
    world.mkdir(b"below", root)
    world.store.begin()
    world.store.delete(schema.QUOTAS, schema.u64(root))
    assert any("which is not there" in problem for problem in check(world.store))
    assert [which for which, _ in usage.repaired(world.store)] == [root]
    world.store.rollback()
    world.store.begin()
    raw = world.store.get(schema.INODES, schema.u64(root))
    assert raw is not None
    inode = decode(raw)
    inode.quota = 0
    world.store.put(schema.INODES, schema.u64(root), inode.encode())
    assert any("its directory says otherwise" in problem for problem in check(world.store))
    assert any("its parent in" in problem for problem in check(world.store))
    world.store.rollback()

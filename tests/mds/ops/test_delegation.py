"""Delegate, CreateDelegated and what ends a delegation, in the state machine alone. See wire.delegation."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mds import limits, schema
from mds.batch import decode_batch
from mds.locks import WRITE
from mds.locksets import DELEGATIONS, EVERYTHING, locks_of, look
from mds.machine import Outcome
from mds.namespace import acl, delegations, layout, quota
from tests.mds.harness import ALICE, BOB, ROOT, TOP, Attr, World
from wire import ops, quotaops
from wire.codec import encode, pack, unpack_untrusted
from wire.delegation import (
    NUMBERS,
    CreateDelegated,
    Delegate,
    RecallDelegations,
    RevokeDelegations,
    Undelegate,
)
from wire.errors import OK, Status
from wire.inline import GrowOut, WriteInline

OTHER_KEY = b"o" * 16


@pytest.fixture
def small(tmp_path: Path) -> Any:
    """A world whose files begin in the metadata."""
    world = World(tmp_path / "small", inline=4096)
    yield world
    world.finish()


def delegate(world: World, parent: int, cred: ops.Cred = ROOT) -> Any:
    return world.ok(Delegate(cred, parent))


def birth(world: World, parent: int, ino: int, name: bytes = b"f", **more: Any) -> CreateDelegated:
    return replace(CreateDelegated(ROOT, parent, name, 0o644, ino, world.time), **more)


def another(world: World) -> int:
    """A second session."""
    session: int = world.internal(ops.SessionOpen(OTHER_KEY, "other", 64, 1, 1))
    return session


def by(world: World, session: int, op: Any, number: int = 1, slot: int = 5) -> Outcome:
    return world.entry(session, slot, number, op)


# -- what is delegated


def test_who_gets_a_directory_is_told_what_it_needs_to_predict(small: World) -> None:
    above = small.mkdir(b"d")
    attr, first, count, limit, now = delegate(small, above)
    assert attr == small.stat(above).values
    assert (count, limit, now) == (NUMBERS, 4096, small.time)
    assert small.machine.delegated == {above: (small.session, False)}
    assert not any(small.machine.exists(first + k) for k in range(count))


def test_more_numbers_come_with_each_time(small: World) -> None:
    above = small.mkdir(b"d")
    firsts = [delegate(small, above)[1] for _ in range(limits.BLOCKS_OF_ONE + 3)]
    known = delegations.holder(small.store, small.session)
    assert known.blocks == tuple(firsts[-limits.BLOCKS_OF_ONE :])
    assert small.status(birth(small, above, firsts[2])) == errno.EACCES, "too long ago"
    small.ok(birth(small, above, firsts[3]))


def test_numbers_are_nobody_elses() -> None:
    """Those of entries, and those of blocks, of a few messages in a row."""
    seen: set[int] = set()
    for index in (7, 8, 9):
        numbers = [schema.number_at(index, k) for k in range(schema.BATCH_ENTRIES_MAX)]
        for k in range(schema.BATCH_ENTRIES_MAX):
            first = schema.block_at(index, k)
            numbers += range(first, first + NUMBERS) if first else ()
        assert len(numbers) == 1 << schema.NUMBER_BITS
        assert seen.isdisjoint(numbers) and len(set(numbers)) == len(numbers)
        seen.update(numbers)


def test_only_the_first_entries_of_a_message_have_numbers_to_give(small: World) -> None:
    above = small.mkdir(b"d")
    asked = [(small.time, small.session, 1 + k, 1, encode(Delegate(ROOT, above))) for k in range(schema.BLOCKS + 1)]
    *given, last = (unpack_untrusted(outcome.body) for outcome in small.batch(*asked))
    assert len({first for _, first, _, _, _ in given}) == schema.BLOCKS
    assert last is None


def test_permission_is_that_to_make_files(small: World) -> None:
    above = small.mkdir(b"d", mode=0o755)
    assert small.status(Delegate(ALICE, above)) == errno.EACCES
    assert small.status(Delegate(ROOT, small.create(b"file"))) == errno.ENOTDIR
    assert small.status(Delegate(ROOT, above + 99)) == errno.ESTALE
    assert small.machine.delegated == {}


def _quota(world: World, above: int) -> None:
    world.ok(ops.SetXattr(ROOT, above, quota.ATTRIBUTE, b"inodes_hard=10", 0))


def _counting(world: World, above: int) -> None:
    """Some other tree is not yet counted where it is."""
    tree = world.mkdir(b"tree")
    world.create(b"x", tree)
    _quota(world, tree)
    assert quota.counting(world.store)


def _default_acl(world: World, above: int) -> None:
    rest = ((acl.USER_OBJ, 7, acl.NO_ID), (acl.GROUP_OBJ, 5, acl.NO_ID), (acl.OTHER, 5, acl.NO_ID))
    world.ok(ops.SetXattr(ROOT, above, acl.DEFAULT, acl.encoded(rest), 0))


def _no_small_files(world: World, above: int) -> None:
    world.ok(ops.SetXattr(ROOT, above, layout.ATTRIBUTE, b"inline=0", 0))


def _of_tomorrow(world: World, above: int) -> None:
    world.ok(world.set_attr(above, mtime_ns=world.time + 86_400_000_000_000))


def _somebody_elses(world: World, above: int) -> None:
    assert unpack_untrusted(by(world, another(world), Delegate(ROOT, above)).body) is not None


def _asked_back(world: World, above: int) -> None:
    delegate(world, above)
    world.internal(RecallDelegations((above,)))


def _all_asked_back(world: World, above: int) -> None:
    delegate(world, above)
    world.internal(RecallDelegations((above,), pause=True))
    world.ok(Undelegate((above,)))


def _many(world: World, above: int) -> None:
    for k in range(limits.DELEGATIONS_OF_ONE):
        assert delegate(world, world.mkdir(b"%d" % k)) is not None


REASONS = [
    _quota, _counting, _default_acl, _no_small_files, _of_tomorrow, _somebody_elses, _asked_back, _all_asked_back,
    _many,
]  # fmt: skip


@pytest.mark.parametrize("reason", REASONS)
def test_not_everything_is_delegated(small: World, reason: Any) -> None:
    above = small.mkdir(b"d")
    reason(small, above)
    before = dict(small.machine.delegated)
    assert delegate(small, above) is None
    assert small.machine.delegated == before


def test_after_a_pause_it_goes_on(small: World) -> None:
    above = small.mkdir(b"d")
    _all_asked_back(small, above)
    small.time += limits.DELEGATION_PAUSE_NS
    assert delegate(small, above) is not None


# -- files


def test_a_file_is_what_its_maker_said(small: World) -> None:
    above = small.mkdir(b"d")
    _, first, _, _, now = delegate(small, above)
    small.time += 20_000_000
    op = birth(small, above, first + 3, time_ns=now + 5, pieces=((2, b"abc"),), mtime_ns=now + 9, privileged=True)
    made = Attr(small.ok(op))
    assert (made.ino, made.size, made.mode, made.nlink) == (first + 3, 5, 0o100644, 1)
    assert (made.atime_ns, made.mtime_ns, made.ctime_ns) == (now + 5, now + 9, now + 9)
    assert small.ask(ops.Open(ROOT, made.ino, 0))[1][1] == b"\0\0abc"
    directory = small.stat(above)
    assert directory.mtime_ns == directory.ctime_ns == now + 5
    assert small.names(above) == [b"f"]
    # One that was made before, and comes later.
    small.ok(birth(small, above, first + 2, b"g", time_ns=now + 2))
    directory = small.stat(above)
    assert directory.mtime_ns == directory.ctime_ns == now + 5, "time does not go back"
    assert small.names(above) == [b"f", b"g"], "places rise in the order of execution, whatever the numbers"


def test_the_answer_counts_a_handle_also_when_it_is_given_again(small: World) -> None:
    above = small.mkdir(b"d")
    op = birth(small, above, delegate(small, above)[1])
    small.number += 1
    once, again = (small.entry(small.session, 0, small.number, op) for _ in range(2))
    assert once.opened == again.opened == op.ino and not again.store_reply
    assert once.body == again.body


def test_times_that_cannot_be_are_those_of_now(small: World) -> None:
    above = small.mkdir(b"d")
    first = delegate(small, above)[1]
    minute = 60_000_000_000
    for k, (said, expected) in enumerate([(10 * minute, 0), (-2 * minute, 0), (-minute // 2, -minute // 2)]):
        op = birth(small, above, first + k, b"%d" % k, time_ns=small.time + said)
        made = Attr(small.ok(op))
        assert abs(made.mtime_ns - small.time - expected) <= 1_000_000


def test_groups_and_set_id_bits_are_those_of_create(small: World) -> None:
    above = small.mkdir(b"d", mode=0o777)
    small.ok(small.set_attr(above, gid=5000))
    small.ok(small.set_attr(above, mode=0o2777))
    first = delegate(small, above)[1]
    for k, (cred, mode) in enumerate([(ALICE, 0o6755), (BOB, 0o6755), (ROOT, 0o4711), (ALICE, 0o666)]):
        made = Attr(small.ok(ops.Create(cred, above, b"made%d" % k, mode)))
        born = Attr(small.ok(birth(small, above, first + k, b"born%d" % k, cred=cred, mode=mode)))
        assert (born.mode, born.uid, born.gid, born.inline) == (made.mode, made.uid, made.gid, made.inline)
        written = {"pieces": ((0, b"x"),), "mtime_ns": small.time}
        filled = Attr(small.ok(birth(small, above, first + 9 + k, b"x%d" % k, cred=cred, mode=mode, **written)))
        small.ok(WriteInline(made.ino, ((0, b"x"),), 1))
        assert filled.mode == small.stat(made.ino).mode, "a write takes set-id bits away"


def test_numbers_of_others_and_numbers_in_use_are_refused(small: World) -> None:
    above = small.mkdir(b"d")
    first = delegate(small, above)[1]
    assert small.status(birth(small, above, first - 1)) == errno.EACCES
    assert small.status(birth(small, above, first + NUMBERS)) == errno.EACCES
    other = another(small)
    assert by(small, other, birth(small, TOP, first)).status == errno.EACCES
    small.ok(birth(small, above, first))
    assert small.status(birth(small, above, first, b"g")) == errno.EACCES
    small.ok(GrowOut(first))
    small.ok(ops.Unlink(ROOT, above, b"f"))
    assert small.status(birth(small, above, first, b"g")) == errno.EACCES, "it may be open"
    small.release(first)
    assert small.status(birth(small, above, first, b"g")) == errno.EACCES, "its objects are to be deleted"
    small.internal(ops.ReclaimDone((first,)))


def test_what_does_not_fit_is_not_made(small: World) -> None:
    above = small.mkdir(b"d")
    first = delegate(small, above)[1]
    op = birth(small, above, first, pieces=((4090, b"1234567"),), mtime_ns=1)
    assert small.status(op) == Status.STALE_LAYOUT
    assert small.status(birth(small, above, first, b"x" * 256)) == errno.ENAMETOOLONG
    small.ok(birth(small, above, first, pieces=((4090, b"123456"),), mtime_ns=1))
    assert small.status(birth(small, above, first + 1)) == errno.EEXIST


def test_it_comes_late_and_is_made_all_the_same(small: World) -> None:
    above = small.mkdir(b"d")
    first = delegate(small, above)[1]
    small.internal(RecallDelegations((above,)))
    small.internal(RevokeDelegations(((above, small.session),)))
    assert small.machine.delegated == {}
    small.ok(birth(small, above, first))
    small.ok(ops.Unlink(ROOT, above, b"f"))
    small.ok(ops.Rmdir(ROOT, TOP, b"d"))
    assert small.status(birth(small, above, first + 1)) == errno.ENOENT
    small.release(first)


# -- in the way


def attempts(world: World, above: int) -> dict[str, Any]:
    """Requests that depend on directory *above* (``d``, which has ``f``)."""
    inside = world.lookup(above, b"f").ino
    return {
        "create": ops.Create(ROOT, above, b"x", 0o644),
        "mkdir": ops.Mkdir(ROOT, above, b"x", 0o755),
        "symlink": ops.Symlink(ROOT, above, b"x", b"target"),
        "link into": ops.Link(ROOT, inside, above, b"x"),
        "unlink": ops.Unlink(ROOT, above, b"f"),
        "unlink of nothing": ops.Unlink(ROOT, above, b"gone"),
        "rmdir in": ops.Rmdir(ROOT, above, b"gone"),
        "rmdir": ops.Rmdir(ROOT, TOP, b"d"),
        "rename out": ops.Rename(ROOT, above, b"f", TOP, b"g", 0),
        "rename of nothing": ops.Rename(ROOT, above, b"gone", TOP, b"g", 0),
        "rename of nothing into": ops.Rename(ROOT, TOP, b"gone", above, b"g", 0),
        "rename of it": ops.Rename(ROOT, TOP, b"d", TOP, b"e", 0),
        "rename over it": ops.Rename(ROOT, TOP, b"empty", TOP, b"d", 0),
        "attributes": world.set_attr(above, mode=0o700),
        "xattr": ops.SetXattr(ROOT, above, b"user.a", b"1", 0),
        "quota elsewhere": ops.SetXattr(ROOT, world.lookup(TOP, b"empty").ino, quota.ATTRIBUTE, b"inodes_hard=9", 0),
        "birth": CreateDelegated(ROOT, above, b"x", 0o644, 7, 1),
    }


NAMED = (
    "create", "mkdir", "symlink", "link into", "unlink", "unlink of nothing", "rmdir in", "rmdir", "rename out",
    "rename of nothing", "rename of nothing into", "rename of it", "rename over it", "attributes", "xattr",
    "quota elsewhere", "birth",
)  # fmt: skip


@pytest.mark.parametrize("what", NAMED)
@pytest.mark.parametrize("planned", [False, True])
def test_what_depends_on_it_is_not_executed_for_others(small: World, what: str, planned: bool) -> None:
    above = small.mkdir(b"d")
    small.create(b"f", above)
    small.mkdir(b"empty")
    other = another(small)
    op = attempts(small, above)[what]
    delegate(small, above)
    seen = look(small.store, op)
    plan = (seen,) if planned and seen is not None else ()
    digest = small.machine.digest
    (outcome,) = small.batch((small.time, other, 5, 1, encode(op), *plan))
    assert outcome.status == Status.DELEGATED and not outcome.store_reply
    assert small.machine.digest == digest, "nothing is kept"
    small.ok(Undelegate((above,)))
    (outcome,) = small.batch((small.time, other, 5, 1, encode(op), *plan))
    assert outcome.status != Status.DELEGATED and outcome.store_reply, "it is executed under the same number"


@pytest.mark.parametrize("what", NAMED)
def test_its_holder_goes_on(small: World, what: str) -> None:
    above = small.mkdir(b"d")
    small.create(b"f", above)
    small.mkdir(b"empty")
    op = attempts(small, above)[what]
    delegate(small, above)
    expected = {
        "unlink of nothing": errno.ENOENT, "rmdir in": errno.ENOENT, "rmdir": errno.ENOTEMPTY,
        "rename of nothing": errno.ENOENT, "rename of nothing into": errno.ENOENT, "birth": errno.EACCES,
        "rename over it": Status.DELEGATED, "quota elsewhere": Status.DELEGATED,
    }  # fmt: skip
    assert small.run(op).status == expected.get(what, OK)


def test_a_directory_that_moves_elsewhere_is_given_back_first(small: World) -> None:
    """It may come into a quota there."""
    above, elsewhere = small.mkdir(b"d"), small.mkdir(b"e")
    delegate(small, above)
    move = ops.Rename(ROOT, TOP, b"d", elsewhere, b"d", 0)
    assert small.run(move).status == Status.DELEGATED
    small.ok(Undelegate((above,)))
    small.number += 1
    assert small.entry(small.session, 0, small.number, move).status == OK


def test_what_has_nothing_to_do_with_it_goes_on(small: World) -> None:
    above = small.mkdir(b"d")
    inside = small.create(b"f", above)
    other = another(small)
    delegate(small, above)
    for slot, op in enumerate([
        ops.Create(ROOT, TOP, b"x", 0o644), small.set_attr(inside, mode=0o600),
        ops.Rename(ROOT, TOP, b"x", TOP, b"y", 0), ops.Unlink(ROOT, TOP, b"nothing"),
        ops.Accessed(((inside, 5),)), Undelegate((above,)),
    ]):  # fmt: skip
        assert by(small, other, op, slot=slot).status in (OK, errno.ENOENT)
    assert small.machine.delegated == {above: (small.session, False)}, "somebody else cannot give it back"
    assert unpack_untrusted(by(small, other, Delegate(ROOT, above), slot=9).body) is None
    small.internal(quotaops.QuotaWork())


def test_a_request_that_is_executed_already_is_answered(small: World) -> None:
    above = small.mkdir(b"d")
    other = another(small)
    op = ops.Create(ROOT, above, b"x", 0o644)
    done = by(small, other, op)
    delegate(small, above)
    assert by(small, other, op).body == done.body


# -- the end of it


def test_a_revoked_one_is_remembered_until_its_holder_knows(small: World) -> None:
    above = small.mkdir(b"d")
    delegate(small, above)
    revoke = RevokeDelegations(((above, small.session),))
    small.internal(revoke)
    assert small.machine.delegated == {above: (small.session, False)}, "nobody had asked for it"
    small.internal(RecallDelegations((above, 999)))
    assert small.machine.delegated == {above: (small.session, True)}
    small.internal(RevokeDelegations(((above, small.session + 1),)))
    assert small.machine.delegated == {above: (small.session, True)}, "it was another's"
    small.internal(revoke)
    assert small.machine.delegated == {}
    assert delegations.holder(small.store, small.session).revoked == (above,)
    small.ok(Undelegate((above,)))
    assert delegations.holder(small.store, small.session).revoked == ()


def test_who_does_not_say_that_it_knows_is_given_no_more(small: World) -> None:
    above = small.mkdir(b"d")
    lost = [small.mkdir(b"%d" % k) for k in range(limits.DELEGATIONS_OF_ONE)]
    for ino in lost:
        delegate(small, ino)
    small.internal(RecallDelegations(tuple(lost)))
    small.internal(RevokeDelegations(tuple((ino, small.session) for ino in lost)))
    assert delegate(small, above) is None
    assert delegate(small, lost[0]) is not None, "of that one it has heard"
    assert delegate(small, above) is not None


@pytest.mark.parametrize("end", ["close", "expire", "rmdir"])
def test_it_ends_with_the_session_and_with_the_directory(small: World, end: str) -> None:
    above = small.mkdir(b"d")
    other = another(small)
    by(small, other, Delegate(ROOT, above))
    delegate(small, TOP)
    if end == "close":
        small.internal(ops.SessionClose(other, OTHER_KEY))
    elif end == "expire":
        small.internal(ops.SessionExpire(other, 1))
    else:
        small.ok(Undelegate((TOP,)))
        assert by(small, other, ops.Rmdir(ROOT, TOP, b"d"), number=2).status == OK
        delegate(small, TOP)
    assert small.machine.delegated == {TOP: (small.session, False)}
    assert (delegations.holder(small.store, other).blocks == ()) == (end != "rmdir")


def test_a_state_that_is_opened_knows_them(small: World) -> None:
    above = small.mkdir(b"d")
    first = delegate(small, above)[1]
    small.internal(RecallDelegations((above,)))
    small.flush()
    small.reopen()
    assert small.machine.delegated == {above: (small.session, True)}
    small.ok(birth(small, above, first))


@pytest.mark.parametrize("delivered", [True, False])
def test_what_is_prepared_has_no_effect_before_it_is_delivered(small: World, delivered: bool) -> None:
    above = small.mkdir(b"d")
    machine = small.machine
    for op in (Delegate(ROOT, above), Undelegate((above,)), Delegate(ROOT, above), ops.Rmdir(ROOT, TOP, b"d")):
        before = dict(machine.delegated)
        small.number += 1
        message = pack(((small.time, small.session, 0, small.number, encode(op)),))
        machine.prepare(machine.index + 1, message, decode_batch(message))
        machine.validate()
        assert machine.delegated == before
        if not delivered:
            small.create(b"%d" % small.number)  # something else comes first
            small.number += 1
            message = pack(((small.time, small.session, 0, small.number, encode(op)),))
        (outcome,) = machine.apply(machine.index + 1, 1, message)
        assert outcome.status == OK and outcome.store_reply
        machine.validate()
        assert machine.delegated != before


def test_how_many_there_are_is_ordered(small: World) -> None:
    """Delegate refuses beyond a number: whoever ends one, or begins one, is ordered with it."""
    above = small.mkdir(b"d")
    end = ops.SessionExpire(small.session, 1)
    ending = [Undelegate((above,)), RevokeDelegations(((above, small.session),)), ops.Rmdir(ROOT, TOP, b"d"), end]
    wanted = dict(locks_of(Delegate(ROOT, TOP), small.session, 0, None, 7, small.store))
    for op in ending:
        session = small.session if isinstance(op, Undelegate | ops.Rmdir) else 0
        locks = dict(locks_of(op, session, 1, look(small.store, op), 8, small.store))
        common = [key for key in locks.keys() & wanted.keys() if max(locks[key], wanted[key]) == WRITE]
        assert DELEGATIONS in common or EVERYTHING in common, op

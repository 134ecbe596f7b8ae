"""Sessions, and requests that are executed exactly once."""

from __future__ import annotations

import errno

from mds import schema
from tests.mds.harness import KEY, ROOT, TOP, World
from wire import ops
from wire.errors import Status

OTHER = b"o" * 16


def test_open_is_idempotent_by_key(world: World) -> None:
    """The client asks another replica again because the first died before its answer."""
    number = world.internal(ops.SessionOpen(OTHER, "c", 4, 1, 1))
    assert world.internal(ops.SessionOpen(OTHER, "c", 4, 1, 2)) == number
    session = world.machine.session(number)
    assert session is not None and (session.replica, session.attempt) == (1, 2)
    assert world.internal(ops.SessionOpen(OTHER, "c", 4, 2, 3)) == number
    session = world.machine.session(number)
    assert session is not None and (session.replica, session.attempt) == (2, 3)
    assert [n for n, _session in world.machine.sessions()] == [world.session, number]


def test_attach(world: World) -> None:
    for attempt, replica in ((2, 2), (5, 3)):
        assert world.internal(ops.SessionAttach(world.session, KEY, replica, attempt)) is None
        session = world.machine.session(world.session)
        assert session is not None and (session.replica, session.attempt) == (replica, attempt)
    for op in (ops.SessionAttach(world.session, OTHER, 2, 9), ops.SessionAttach(999, KEY, 2, 9)):
        assert world.entry(0, 1, 1, op).status == Status.SESSION_UNKNOWN


def test_an_attachment_ordered_late_does_not_take_the_session_back(world: World) -> None:
    """1. It queues at replica 2, which is cut off. 2. The client attaches to 3, with its next attempt. 3. The cut heals
    and the first one is ordered. The same with a SessionOpen that is sent again."""
    world.internal(ops.SessionAttach(world.session, KEY, 3, 3))
    for op in (ops.SessionAttach(world.session, KEY, 2, 2), ops.SessionOpen(KEY, "c", 4, 2, 2)):
        assert world.entry(0, 1, 1, op).status == Status.NOT_ATTACHED
        session = world.machine.session(world.session)
        assert session is not None and (session.replica, session.attempt) == (3, 3)


def test_expiry_is_void_after_a_new_attachment(world: World) -> None:
    """1. Replica 1 proposes the expiry. 2. The client attaches to 2, ordered first. 3. The expiry is delivered."""
    world.internal(ops.SessionAttach(world.session, KEY, 2, 2))
    outcome = world.entry(0, 1, 1, ops.SessionExpire(world.session, 1))
    assert (outcome.status, outcome.session_gone) == (0, 0)
    outcome = world.entry(0, 1, 1, ops.SessionExpire(world.session, 2))
    assert (outcome.status, outcome.session_gone) == (0, world.session)
    assert world.run(ops.Mkdir(ROOT, TOP, b"d", 0o700)).status == Status.SESSION_UNKNOWN
    assert world.names() == []


def test_close_takes_the_replies_along(world: World) -> None:
    world.mkdir(b"d")
    assert world.entry(0, 1, 1, ops.SessionClose(world.session, OTHER)).session_gone == 0
    assert world.entry(0, 1, 1, ops.SessionClose(world.session, KEY)).session_gone == world.session
    assert list(world.store.scan(schema.REPLIES, b"", None)) == []
    assert world.entry(0, 1, 1, ops.SessionClose(world.session, KEY)).session_gone == 0
    assert world.machine.session_count == 0
    assert world.internal(ops.SessionOpen(KEY, "c", 4, 1, 9)) != world.session


def test_sent_again_is_answered_again_not_executed_again(world: World) -> None:
    op = ops.Mkdir(ROOT, TOP, b"d", 0o700)
    first = world.run(op)
    digest = world.machine.digest
    again = world.entry(world.session, 0, world.number, op)
    assert (again.status, again.body, first.store_reply, again.store_reply) == (0, first.body, True, False)
    assert world.machine.digest == digest
    world.ok(ops.Rmdir(ROOT, TOP, b"d"))
    late = world.entry(world.session, 0, world.number - 1, op)
    assert late.status == Status.STALE_NUMBER
    assert world.names() == []


def test_an_error_is_a_reply_too(world: World) -> None:
    """Refused the first time, and refused when sent again, though it would succeed by now."""
    op = ops.Rmdir(ROOT, TOP, b"d")
    assert world.run(op).status == errno.ENOENT
    number = world.number
    world.entry(world.session, 1, 1, ops.Mkdir(ROOT, TOP, b"d", 0o700))
    assert world.entry(world.session, 0, number, op).status == errno.ENOENT
    assert world.names() == [b"d"]


def test_slots_are_apart(world: World) -> None:
    for slot in (0, 1, 63):
        assert world.entry(world.session, slot, 1, ops.Mkdir(ROOT, TOP, b"d%d" % slot, 0o700)).status == 0
    assert world.entry(world.session, 64, 1, ops.Mkdir(ROOT, TOP, b"x", 0o700)).status == Status.BAD_MESSAGE
    assert world.entry(999, 0, 1, ops.Mkdir(ROOT, TOP, b"x", 0o700)).status == Status.SESSION_UNKNOWN


def test_clients_cannot_ask_what_replicas_ask(world: World) -> None:
    for op in (ops.SessionExpire(world.session, 1), ops.ReclaimDone((1,)), ops.TargetSet(9, "h:1", b"u" * 16)):
        assert world.status(op) == Status.BAD_MESSAGE


def test_session_number_derives_from_the_index(world: World) -> None:
    index = world.machine.index + 1
    assert world.internal(ops.SessionOpen(OTHER, "c", 4, 1, 1)) == (index << 12) + 2

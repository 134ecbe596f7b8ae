"""The second connection of a session: made ahead, and gone on with when the first is lost. Notation: test_session."""

from __future__ import annotations

import pytest

from client import limits
from client.session import State
from client.session_events import Close, Connected, Disconnected, Received
from tests.client.test_session import ABC, Drive, attached, query, request
from wire.codec import pack
from wire.errors import Status
from wire.messages import Answer, OpenSession, Ping, Pong, ViewChanged


@pytest.fixture
def ready() -> Drive:
    """Attached at a over connection 1, with b standing by over connection 2; the next call id is 2."""
    drive = attached(Drive(standby=True))
    assert drive.tick() == ["connect 2 b"]
    assert drive(Connected(2)) == []
    return drive


def test_it_is_dialled_after_what_was_outstanding_has_gone_out() -> None:
    drive = Drive(standby=True)
    drive(query(1, "x"))
    drive.tick()
    drive(Connected(1))
    assert drive.answer(1, 0, pack(5)) == ["attached a 5 fresh", "send QueryCall 2 x"]
    begun = drive.now
    assert drive.tick() == ["connect 2 b"]
    assert drive.now - begun == pytest.approx(limits.STANDBY_AFTER_S)


def test_the_session_goes_on_over_it_without_dialling(ready: Drive) -> None:
    """kill -9 of a replica: what is outstanding is with another one after one question to it."""
    ready(request(1, "x"))
    ready(query(2, "y"))
    ready.answer(3)
    assert ready(Disconnected(1, "reset")) == ["drop 1 BROKEN", "send AttachSession 4 5 K ()"]
    assert ready.answer(4, 0, pack(2)) == ["attached b 5", "send RequestCall 5 5.0.1 x"]
    assert ready.answer(5) == ["done 1 OK"]
    assert ready.core.counts.promoted == 1
    assert ready.tick() == ["connect 3 c"], "the next to stand by; a was left just now"


def test_a_view_heard_on_it_tells_that_our_replica_is_out(ready: Drive) -> None:
    """1. Our replica is stopped, or cut off from us and the others alike: it says nothing. 2. The others go on
    without it. 3. Their view is heard at once where the second connection goes."""
    ready(query(1))
    ready.answer(2)
    ready(request(2, "x"))
    view = ViewChanged(1, 7, ((2, "b"), (3, "c")))
    assert ready(Received(2, view)) == ["view 1.7", "drop 1 DROPPED", "send AttachSession 4 5 K ()"]
    assert ready.answer(4, 0, pack(2)) == ["attached b 5", "send RequestCall 5 5.0.1 x"]
    assert ready(Received(2, view)) == []


def test_silence_while_attaching_over_it_is_noticed_as_soon(ready: Drive) -> None:
    """Both hosts are gone. Its last ping was answered, and the next was a second away."""
    ready(Received(2, Pong(1, True)))
    ready(query(1))
    ready.answer(2)
    ready(query(2))
    ready(Disconnected(1, "reset"))
    begun = ready.now
    seen: list[str] = []
    while not seen or seen[0].startswith("send Ping"):
        seen = ready.tick()
    assert seen == ["drop 2 SILENT", "connect 3 c"]
    assert ready.now - begun <= limits.PING_BUSY_S * (limits.SILENT_PINGS_MIN + 1) + 1e-6


def test_a_replica_that_left_the_view_does_not_stand_by(ready: Drive) -> None:
    assert ready.got(ViewChanged(1, 7, ((1, "a"), (3, "c")))) == ["view 1.7", "drop 2 DROPPED standby"]
    assert ready.tick() == ["connect 3 c"]


def test_nobody_stands_by_where_our_replica_is_the_only_one(ready: Drive) -> None:
    """The others come back with a later view; until then there is nothing to be tried."""
    assert ready.got(ViewChanged(1, 7, ((1, "a"),))) == ["view 1.7", "drop 2 DROPPED standby"]
    assert ready.tick() == []
    for number in range(1, 6):
        assert ready.tick() == [f"send Ping {number}"]
        ready.got(Pong(number, True))
    assert ready.got(ViewChanged(1, 8, ABC)) == ["view 1.8"]
    assert ready.until("connect") == ["connect 3 b"]


def test_attempts_that_fail_are_made_ever_more_rarely() -> None:
    drive = attached(Drive(standby=True))
    times = []
    for conn in range(2, 12):
        (effect,) = drive.until("connect")
        assert effect == f"connect {conn} {'bc'[conn % 2]}", "one after the other"
        times.append(drive.now)
        assert drive(Disconnected(conn, "refused")) == [f"drop {conn} CONNECT_FAILED standby"]
    assert times[1] - times[0] == pytest.approx(limits.BACKOFF_FIRST_S)
    assert times[-1] - times[-2] == pytest.approx(limits.STANDBY_PAUSE_MAX_S)
    assert drive.core.state is State.READY and drive.core.address == "a"


def test_a_replica_that_accepts_and_says_nothing_does_not_stand_by() -> None:
    """SIGSTOP: the kernel accepts for it."""
    drive = attached(Drive(standby=True))
    assert drive.tick() == ["connect 2 b"]
    begun = drive.now
    assert drive.until("drop") == ["drop 2 CONNECT_TIMEOUT standby"]
    assert drive.now - begun == pytest.approx(limits.CONNECT_TIMEOUT_S)


def test_it_is_pinged_and_dropped_when_it_falls_silent(ready: Drive) -> None:
    """Only the first is answered: we would go over to a dead one."""
    silent = False
    for _ in range(40):
        for effect in ready.tick():
            silent = silent or effect == "drop 2 SILENT standby"
            if effect.startswith("send Ping"):
                ready.got(Pong(int(effect.split()[2]), True))
        if silent:
            break
    assert silent and ready.core.state is State.READY
    assert ready.until("connect") == ["connect 3 c"]


def test_its_pings_are_answered(ready: Drive) -> None:
    assert ready(Received(2, Ping(3))) == ["send Pong 3"]


def test_what_does_not_belong_on_it_ends_it_alone(ready: Drive) -> None:
    assert ready(Received(2, OpenSession(1, bytes(16), "x", 1, 1))) == ["drop 2 BROKEN standby"]
    assert ready.core.state is State.READY


def test_a_session_that_comes_back_to_its_replica_leaves_it_standing_by(ready: Drive) -> None:
    """Nothing is wrong with the replica that says NOT_ATTACHED."""
    ready(request(1, "x"))
    ready.answer(2)
    ready(request(2, "y"))
    assert ready.answer(3, Status.NOT_ATTACHED) == ["drop 1 NOT_ATTACHED", "connect 3 a"]
    assert ready(Disconnected(3, "reset")) == ["drop 3 CONNECT_FAILED", "send AttachSession 4 5 K ()"]


def test_replicas_that_attach_and_serve_nothing_are_tried_in_turn_with_pauses(ready: Drive) -> None:
    """With a connection ready, too: going over to it is as quick as it is useless then."""
    ready(query(1))
    tried = []
    for _ in range(9):
        while not ready.core._standby.ready:
            for effect in ready.tick():
                if effect.startswith("connect"):
                    ready(Connected(int(effect.split()[1])))
        call, conn = next(iter(ready.core._calls._sent)), ready.core._conn
        assert ready.answer(call, Status.NOT_SERVING) == [f"drop {conn} NOT_SERVING"]
        begun = ready.now
        ready.tick()
        assert ready.now > begun
        tried.append(ready.core.address)
        ready.answer(ready.core._session_call, 0, pack(2))
    assert set(tried) == set("abc")


def test_dialled_and_not_there_yet_it_is_no_help() -> None:
    """Our replica and the connection that was being made are lost together: the round goes on as ever."""
    drive = attached(Drive(standby=True))
    drive.tick()
    drive(query(1))
    drive.answer(2)
    drive(query(2))
    assert drive(Disconnected(1, "reset")) == ["drop 1 BROKEN", "drop 2 NOT_NEEDED standby", "connect 3 b"]
    assert drive(Connected(2)) == []
    assert drive(Connected(3)) == ["send AttachSession 4 5 K ()"]


def test_it_ends_with_the_session(ready: Drive) -> None:
    assert ready(Close()) == ["send CloseSession 2 5"]
    assert ready(Received(1, Answer(2, 0, pack(None)))) == ["drop 2 CLOSING standby", "drop 1 CLOSING", "closed"]
    assert ready.core.next_deadline() == float("inf")

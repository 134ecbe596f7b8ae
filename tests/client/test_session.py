"""The session core: events in, the complete effects out, in a notation a person can read.

``connect 1 a`` dial replica a as connection 1 | ``send QueryCall 2 x`` call id and op | ``done 7 OK`` the caller of
token 7 has its answer | ``drop 1 BROKEN`` | ``attached a 5 fresh`` | ...
"""

from __future__ import annotations

import errno
import random
from collections.abc import Iterable
from typing import Any

import pytest

from client import limits
from client.session import Session, State
from client.session_events import (
    Abandon,
    Attached,
    Close,
    Closed,
    Complete,
    Connect,
    Connected,
    Disconnected,
    Drop,
    Effect,
    Event,
    HandleClosed,
    Kind,
    Received,
    Send,
    SessionLost,
    Submit,
    Tick,
    ViewLearned,
)
from wire.codec import pack
from wire.errors import Status, describe
from wire.messages import (
    Answer,
    AttachSession,
    CloseHandles,
    CloseSession,
    OpenSession,
    Ping,
    Pong,
    QueryCall,
    RequestCall,
    ViewChanged,
)

ABC = ((1, "a"), (2, "b"), (3, "c"))


class InOrder(random.Random):
    """No randomness: candidates stay in order, pauses are the longest."""

    def shuffle(self, x: Any) -> None:
        pass

    def random(self) -> float:
        return 1.0


def attr(ino: int) -> bytes:
    return pack((ino, 0o100644, 1, 0, 0, 0, 0, 0, 0, 0, None, (), 0, ino, 0, False))


def shown(effect: Effect) -> str:
    match effect:
        case Connect(conn, address):
            return f"connect {conn} {address}"
        case Send(_, QueryCall(call, op)):
            return f"send QueryCall {call} {op.decode()}"
        case Send(_, RequestCall(call, session, slot, number, op)):
            return f"send RequestCall {call} {session}.{slot}.{number} {op.decode()}"
        case Send(_, OpenSession(call, key, _, slots, _)):
            return f"send OpenSession {call} {key[:1].decode()} {slots}"
        case Send(_, AttachSession(call, session, key, _, handles)):
            return f"send AttachSession {call} {session} {key[:1].decode()} {handles}"
        case Send(_, CloseSession(call, session, _)):
            return f"send CloseSession {call} {session}"
        case Send(_, CloseHandles(handles)):
            return f"send CloseHandles {handles}"
        case Send(_, Ping(number)):
            return f"send Ping {number}"
        case Send(_, Pong(number, _)):
            return f"send Pong {number}"
        case Drop(conn, reason, _, standby):
            return f"drop {conn} {reason.name}{' standby' if standby else ''}"
        case Complete(token, status, _):
            return f"done {token} {describe(status)}"
        case Attached(address, session, fresh):
            return f"attached {address} {session}{' fresh' if fresh else ''}"
        case SessionLost(session, unknown, handles):
            return f"lost {session}: {unknown} unknown, {handles} handles"
        case ViewLearned(generation, epoch, _):
            return f"view {generation}.{epoch}"
        case Closed(told):
            return f"closed{'' if told else ' untold'}"
    raise AssertionError(f"{effect!r} has no notation")


class Drive:
    """A session with its clock; every step is validated. Without a second connection: see test_standby for that."""

    def __init__(self, addresses: tuple[tuple[int, str], ...] = ABC, standby: bool = False, **kwargs: Any) -> None:
        keys = iter(b"KLMNO")

        def new_key() -> bytes:
            return next(keys).to_bytes(1, "big") * 16

        self.core = Session("test", new_key(), addresses, InOrder(), new_key=new_key, standby=standby, **kwargs)
        self.now = 100.0

    def __call__(self, event: Event, after: float = 0.0) -> list[str]:
        self.now += after
        effects = self.core.step(event, self.now)
        self.core.validate()
        return [shown(effect) for effect in effects]

    def answer(self, call: int, status: int = 0, body: bytes = pack(None), conn: int | None = None) -> list[str]:
        return self(Received(self.core._conn if conn is None else conn, Answer(call, status, body)))

    def got(self, message: object) -> list[str]:
        return self(Received(self.core._conn, message))

    def tick(self) -> list[str]:
        """Let time pass to the next deadline."""
        deadline = self.core.next_deadline()
        assert deadline < float("inf")
        self.now = max(self.now, deadline)
        return self(Tick())

    def until(self, what: str, most: int = 200) -> list[str]:
        """Tick until an effect begins with *what*; pings are answered and left out."""
        seen: list[str] = []
        for _ in range(most):
            for effect in self.tick():
                if effect.startswith("send Ping"):
                    self.got(Pong(int(effect.split()[2]), True))
                else:
                    seen.append(effect)
            if any(effect.startswith(what) for effect in seen):
                return seen
        raise AssertionError(f"no {what}: {seen}")


def query(token: int, op: str = "q", opens: bool = False) -> Submit:
    return Submit(token, Kind.QUERY, op.encode(), opens)


def request(token: int, op: str = "r", opens: bool = False) -> Submit:
    return Submit(token, Kind.REQUEST, op.encode(), opens)


@pytest.fixture
def drive() -> Drive:
    return Drive()


@pytest.fixture
def ready() -> Drive:
    """Attached at replica a with session 5; the next call id is 2."""
    return attached(Drive())


def attached(drive: Drive) -> Drive:
    assert drive.tick() == ["connect 1 a"]
    assert drive(Connected(1)) == [f"send OpenSession 1 K {drive.core._calls.slots}"]
    assert drive.answer(1, 0, pack(5)) == ["attached a 5 fresh"]
    return drive


# --- the usual ------------------------------------------------------------------------------------


def test_first_connection_sends_what_was_asked_before_it(drive: Drive) -> None:
    """A mount begins: calls may come before any replica is there."""
    assert drive(query(1, "x")) == []
    assert drive(request(2, "y")) == []
    assert drive.tick() == ["connect 1 a"]
    assert drive(Connected(1)) == ["send OpenSession 1 K 64"]
    assert drive.answer(1, 0, pack(5)) == [
        "attached a 5 fresh", "send QueryCall 2 x", "send RequestCall 3 5.0.1 y",
    ]  # fmt: skip
    assert drive.answer(3) == ["done 2 OK"]
    assert drive.answer(2, errno.ENOENT) == ["done 1 ENOENT"]


def test_numbers_rise_by_one_per_slot(ready: Drive) -> None:
    assert ready(request(1)) == ["send RequestCall 2 5.0.1 r"]
    assert ready(request(2)) == ["send RequestCall 3 5.1.1 r"]
    assert ready.answer(2) == ["done 1 OK"]
    assert ready(request(3)) == ["send RequestCall 4 5.0.2 r"]


def test_more_requests_than_slots_wait_in_order() -> None:
    drive = attached(Drive(slots=1))
    assert drive(request(1)) == ["send RequestCall 2 5.0.1 r"]
    assert drive(request(2, "s")) == []
    assert drive(request(3, "t")) == []
    assert drive(query(4)) == ["send QueryCall 3 q"], "queries need no slot"
    assert drive.answer(2) == ["done 1 OK", "send RequestCall 4 5.0.2 s"]
    assert drive(Abandon(3)) == []
    assert drive.answer(4) == ["done 2 OK"]


def test_preferred_replica_is_tried_first() -> None:
    assert Drive(prefer=3).tick() == ["connect 1 c"]


def test_pings_and_nothing_else_while_idle(ready: Drive) -> None:
    begun = ready.now
    for number in range(1, 6):
        assert ready.tick() == [f"send Ping {number}"]
        assert ready.got(Pong(number, True)) == []
    assert ready.now - begun >= 4 * limits.PING_IDLE_S
    assert ready.got(Ping(9)) == ["send Pong 9"]


# --- failover in every state ----------------------------------------------------------------------


def test_connecting_fails_then_the_next(drive: Drive) -> None:
    assert drive.tick() == ["connect 1 a"]
    assert drive(Disconnected(1, "refused")) == ["drop 1 CONNECT_FAILED", "connect 2 b"]
    assert drive(Connected(1)) == [], "of the one that was left"
    assert drive.tick() == ["drop 2 CONNECT_TIMEOUT", "connect 3 c"]


def test_all_down_for_a_while(drive: Drive) -> None:
    """Rounds follow each other with growing pauses, for ever; then one is back."""
    drive(query(1))
    begun = drive.now
    conn = 0
    effects: list[str] = []
    for _ in range(30):
        for address in "abc":
            conn += 1
            effects = drive.tick() if address == "a" else effects[1:]
            assert effects == [f"connect {conn} {address}"]
            effects = drive(Disconnected(conn, "refused"))
            assert effects[0] == f"drop {conn} CONNECT_FAILED"
    assert 20 < drive.now - begun < 31, "pauses have grown to a second and no further"
    drive.tick()
    drive(Connected(conn + 1))
    assert drive.answer(1, 0, pack(5)) == ["attached a 5 fresh", "send QueryCall 2 q"]


def test_attaching_breaks(drive: Drive) -> None:
    drive.tick()
    drive(Connected(1))
    assert drive(Disconnected(1, "reset")) == ["drop 1 BROKEN", "connect 2 b"]
    assert drive(Connected(2)) == ["send OpenSession 2 K 64"], "the same key: the service gives the same session"


@pytest.mark.parametrize("status", [Status.NOT_SERVING, Status.OVERLOADED, Status.BAD_MESSAGE])
def test_attaching_is_refused(drive: Drive, status: Status) -> None:
    drive.tick()
    drive(Connected(1))
    assert drive.answer(1, status) == ["drop 1 ATTACH_REFUSED", "connect 2 b"]


def test_attaching_takes_too_long_though_the_replica_lives(drive: Drive) -> None:
    """It is cut off from the group: it answers pings and orders nothing."""
    drive.tick()
    drive(Connected(1))
    assert drive.until("drop") == ["drop 1 ATTACH_TIMEOUT", "connect 2 b"]


def test_connection_breaks_with_calls_outstanding(ready: Drive) -> None:
    ready(request(1, "x"))
    ready(query(2, "y"))
    ready(request(3, "z"))
    ready.answer(4)  # z is done: this replica has proved itself, no pause
    assert ready(Disconnected(1, "reset")) == ["drop 1 BROKEN", "connect 2 b"]
    assert ready(request(4, "w")) == []
    assert ready(Connected(2)) == ["send AttachSession 5 5 K ()"]
    assert ready.answer(5, 0, pack(2)) == [
        "attached b 5", "send RequestCall 6 5.0.1 x", "send QueryCall 7 y", "send RequestCall 8 5.1.2 w",
    ]  # fmt: skip
    assert ready.answer(2, conn=1) == [], "an answer of the old connection"
    assert ready.answer(6) == ["done 1 OK"]
    assert ready.answer(7) == ["done 2 OK"]
    assert ready.answer(8) == ["done 4 OK"]


def test_reply_is_lost_twice(ready: Drive) -> None:
    """The request keeps its slot and number through two failovers, so it is executed once."""
    ready(request(1, "x"))
    ready(Disconnected(1, "reset"))
    assert ready.tick() == ["connect 2 b"]
    ready(Connected(2))
    assert ready.answer(3, 0, pack(2)) == ["attached b 5", "send RequestCall 4 5.0.1 x"]
    ready(Disconnected(2, "reset"))
    assert ready.tick() == ["connect 3 c"]
    ready(Connected(3))
    assert ready.answer(5, 0, pack(3)) == ["attached c 5", "send RequestCall 6 5.0.1 x"]
    assert ready.answer(6) == ["done 1 OK"]


def test_replica_falls_silent(ready: Drive) -> None:
    """Its host is gone without a word; noticed 0.3 s after somebody asked."""
    ready(query(1))
    begun = ready.now
    seen: list[str] = []
    while not any(effect.startswith("drop") for effect in seen):
        seen = ready.tick()
    assert seen == ["drop 1 SILENT"]
    assert ready.now - begun == pytest.approx(limits.PING_BUSY_S * (limits.SILENT_PINGS_MIN + 1))
    assert ready.tick() == ["connect 2 b"]


def test_own_stall_is_not_the_replicas_silence(ready: Drive) -> None:
    """This process was stopped for a minute (a suspended laptop, a debugger): that counts one ping, not a minute."""
    ready(query(1))
    assert ready(Tick(), after=60) == ["send Ping 1"]
    assert ready(Tick(), after=60) == ["send Ping 2"]
    assert ready.answer(2) == ["done 1 OK"]


def test_a_silence_that_was_borne_is_borne_longer_the_next_time(ready: Drive) -> None:
    """Replicas on a loaded host answer late: the client that has seen it does not leave them for that."""
    for token in range(1, 4):
        ready(query(token))
        pings = 0
        while pings < limits.SILENT_PINGS_MIN:
            pings += ready.tick()[0].startswith("send Ping")
        ready.answer(1 + token)
    ready(query(9))
    begun = ready.now
    while ready.core.state is State.READY:
        ready.tick()
    assert ready.now - begun > 1.9 * limits.PING_BUSY_S * limits.SILENT_PINGS_MIN


def test_patience_comes_back_to_what_it_was(ready: Drive) -> None:
    """A minute of answers in time, and a hiccup is forgotten."""
    ready(query(1))
    for _ in range(limits.SILENT_PINGS_MIN):
        ready.tick()
    ready.answer(2)
    assert ready.core._patience.pings == 2 * limits.SILENT_PINGS_MIN
    for _ in range(60):
        (ping,) = ready.tick()
        ready.got(Pong(int(ping.split()[2]), True))
    assert ready.core._patience.pings == limits.SILENT_PINGS_MIN


def test_replicas_that_fall_silent_in_turn_are_left_ever_more_slowly(ready: Drive) -> None:
    """All hosts stall again and again, and nobody answers in time: going from one to the next is no remedy."""
    ready(query(1))
    lasted = []
    for _ in range(4):
        begun = ready.now
        while ready.core.state is State.READY:
            ready.tick()
        lasted.append(ready.now - begun)
        ready.tick()
        ready(Connected(ready.core._conn))
        ready.answer(ready.core._session_call, 0, pack(2))
    assert lasted[0] < 0.31 and lasted[1] > 0.5 and lasted[2] > 0.95 and lasted[3] < 1.1


def test_any_frame_counts_as_life(ready: Drive) -> None:
    """A request that takes long, at a replica that answers pings, is waited for."""
    ready(request(1))
    for _ in range(100):
        for effect in ready.tick():
            assert effect.startswith("send Ping")
            ready.got(Pong(int(effect.split()[2]), True))
    assert ready.core.state is State.READY


def test_not_serving_refuses_a_call(ready: Drive) -> None:
    ready(request(1, "x"))
    ready(query(2, "y"))
    ready.answer(3)
    assert ready.answer(2, Status.NOT_SERVING) == ["drop 1 NOT_SERVING", "connect 2 b"]
    ready(Connected(2))
    assert ready.answer(4, 0, pack(2)) == ["attached b 5", "send RequestCall 5 5.0.1 x"]


def test_replicas_that_attach_but_serve_nothing_are_not_hammered(ready: Drive) -> None:
    """All attach the session and refuse every call: rounds have pauses all the same, and nobody is tried alone."""
    ready(query(1))
    tried = []
    for _ in range(9):
        call = next(iter(ready.core._calls._sent))
        effects = ready.answer(call, Status.NOT_SERVING)
        assert len(effects) == 1 and effects[0].startswith("drop"), effects
        begun = ready.now
        effects = ready.tick()
        assert ready.now > begun
        tried.append(effects[0].split()[2])
        ready(Connected(ready.core._conn))
        ready.answer(ready.core._session_call, 0, pack(2))
    assert set(tried) == set("abc")


def test_pong_says_not_serving(ready: Drive) -> None:
    """The replica is cut off from the others: left after a second of that, not at once (a view may be changing)."""
    ready.tick()
    ready.got(Pong(1, False))
    since = ready.now
    ready(query(1))
    seen: list[str] = []
    while not seen or not seen[-1].startswith("drop"):
        seen = ready.tick()
        for effect in seen:
            if effect.startswith("send Ping"):
                ready.got(Pong(int(effect.split()[2]), False))
    assert seen == ["drop 1 NOT_SERVING"]
    assert limits.NOT_SERVING_S <= ready.now - since <= limits.NOT_SERVING_S + limits.PING_IDLE_S


def test_overloaded_is_sent_again_after_a_pause(ready: Drive) -> None:
    ready(request(1, "x"))
    assert ready.answer(2, Status.OVERLOADED) == []
    begun = ready.now
    assert ready.until("send") == ["send RequestCall 3 5.0.1 x"]
    assert ready.now - begun == pytest.approx(limits.OVERLOADED_FIRST_S)
    assert ready.answer(3, Status.OVERLOADED) == []
    again = ready.now
    assert ready.until("send") == ["send RequestCall 4 5.0.1 x"]
    assert ready.now - again > limits.OVERLOADED_FIRST_S, "the pause grows"
    assert ready.answer(4) == ["done 1 OK"]


def test_failover_during_a_pause(ready: Drive) -> None:
    ready(request(1, "x"))
    ready.answer(2, Status.OVERLOADED)
    ready(Disconnected(1, "reset"))
    ready.tick()
    ready(Connected(2))
    assert ready.answer(3, 0, pack(2)) == ["attached b 5", "send RequestCall 4 5.0.1 x"]


def test_not_attached_any_more(ready: Drive) -> None:
    """The replica left the group and came back while our connection lasted. Attached anew over a new connection."""
    ready(request(1, "x"))
    assert ready.answer(2, Status.NOT_ATTACHED) == ["drop 1 NOT_ATTACHED"]
    assert ready.tick() == ["connect 2 a"], "nothing is wrong with it"
    assert ready(Connected(2)) == ["send AttachSession 3 5 K ()"]
    assert ready.answer(3, 0, pack(2)) == ["attached a 5", "send RequestCall 4 5.0.1 x"]


def test_view_drops_our_replica(ready: Drive) -> None:
    ready(query(1))
    ready.answer(2)
    members = ((2, "b"), (3, "c"))
    assert ready.got(ViewChanged(1, 7, members)) == ["view 1.7", "drop 1 DROPPED", "connect 2 b"]


def test_older_views_are_ignored_and_new_replicas_learned(ready: Drive) -> None:
    assert ready.got(ViewChanged(1, 7, ((1, "a"), (4, "d")))) == ["view 1.7"]
    assert ready.got(ViewChanged(1, 6, ((2, "b"),))) == []
    ready(Disconnected(1, "reset"))
    assert ready.tick() == ["connect 2 d"], "the member, before those who are only configured"


def test_a_client_whose_configured_replicas_were_all_replaced_goes_on(ready: Drive) -> None:
    """Configured are a, b and c; by and by d and e took their places. Nobody who was removed is turned to again."""
    ready(query(1))
    ready.answer(2)
    there = ((4, "d"), (5, "e"))
    assert ready.got(ViewChanged(1, 7, ((4, "d"),), there)) == ["view 1.7", "drop 1 DROPPED", "connect 2 d"]
    dialled = ["d"]
    for conn in range(2, 8):
        effects = ready(Disconnected(conn, "refused"))
        effects += [] if any(e.startswith("connect") for e in effects) else ready.tick()
        dialled += [effect.split()[-1] for effect in effects if effect.startswith("connect")]
    assert dialled == ["d", "e", "d", "e", "d", "e", "d"]


# --- the session is lost --------------------------------------------------------------------------


def test_session_has_expired(ready: Drive) -> None:
    """Away for longer than the session timeout: what was sent is unknown, what was not goes on in a new session."""
    ready(request(1, "sent"))
    ready(query(2, "asked"))
    ready(query(3, "opened", opens=True))
    assert ready.answer(4, 0, attr(77)) == ["done 3 OK"]
    ready(Disconnected(1, "reset"))
    ready(request(4, "new"))
    ready(Connected(2))
    assert ready.answer(5, Status.SESSION_UNKNOWN) == [
        "lost 5: 1 unknown, 1 handles", "done 1 EIO", "send OpenSession 6 L 64",
    ]  # fmt: skip
    assert ready.core.handles == {}
    assert ready.answer(6, 0, pack(9)) == [
        "attached b 9 fresh", "send QueryCall 7 asked", "send RequestCall 8 9.1.1 new",
    ]  # fmt: skip
    assert ready(HandleClosed(77)) == [], "of the old session"


def test_a_call_says_that_the_session_is_unknown(ready: Drive) -> None:
    ready(request(1, "x"))
    assert ready.answer(2, Status.SESSION_UNKNOWN) == ["drop 1 SESSION_UNKNOWN"]
    assert ready.tick() == ["connect 2 a"]
    assert ready(Connected(2)) == ["send AttachSession 3 5 K ()"], "asked for once more before it is given up"
    assert ready.answer(3, Status.SESSION_UNKNOWN) == [
        "lost 5: 1 unknown, 0 handles", "done 1 EIO", "send OpenSession 4 L 64",
    ]  # fmt: skip


# --- callers that go ------------------------------------------------------------------------------


def test_cancelled_request_keeps_its_slot_until_the_answer(ready: Drive) -> None:
    drive = attached(Drive(slots=1))
    drive(request(1, "x"))
    assert drive(Abandon(1)) == []
    assert drive(request(2, "y")) == []
    drive(Disconnected(1, "reset"))
    drive.tick()
    drive(Connected(2))
    assert drive.answer(3, 0, pack(2)) == ["attached b 5", "send RequestCall 4 5.0.1 x"], "it is settled yet"
    assert drive.answer(4) == ["send RequestCall 5 5.0.2 y"]


def test_cancelled_query_is_forgotten(ready: Drive) -> None:
    ready(query(1))
    assert ready(Abandon(1)) == []
    assert ready.core.outstanding == 0
    assert ready.answer(2) == []


@pytest.mark.parametrize("make", [query, request])
def test_late_open_of_a_cancelled_caller_closes_its_handle(ready: Drive, make: Any) -> None:
    ready(make(1, "open", opens=True))
    ready(Abandon(1))
    assert ready.answer(2, 0, attr(7)) == []
    assert ready.until("send CloseHandles") == ["send CloseHandles ((7, 1),)"]
    assert ready.core.handles == {}


def test_cancelled_open_does_not_outlive_its_connection(ready: Drive) -> None:
    ready(query(1, "open", opens=True))
    ready(Abandon(1))
    ready(Disconnected(1, "reset"))
    assert ready.core.outstanding == 0


def test_request_cancelled_before_it_was_ever_sent_is_not_sent(drive: Drive) -> None:
    drive(request(1, "x"))
    drive(request(2, "y"))
    assert drive(Abandon(1)) == []
    drive.tick()
    drive(Connected(1))
    assert drive.answer(1, 0, pack(5)) == ["attached a 5 fresh", "send RequestCall 2 5.1.1 y"]
    assert drive(request(3, "z")) == ["send RequestCall 3 5.0.1 z"], "its slot's numbers have no gap"


def test_soft_calls_time_out(drive: Drive) -> None:
    drive = attached(Drive(soft_after=3.0, slots=1))
    drive(request(1, "x"))
    drive(request(2, "queued"))
    drive(query(3))
    drive(Disconnected(1, "reset"))
    seen: list[str] = []
    while drive.core.outstanding > 1:
        seen += [effect for effect in drive.tick() if effect.startswith("done")]
    assert seen == ["done 1 ETIMEDOUT", "done 2 ETIMEDOUT", "done 3 ETIMEDOUT"]
    assert drive.core.outstanding == 1, "x may have been executed: its slot is busy until that is known"


# --- handles --------------------------------------------------------------------------------------


def test_closed_handles_are_told_in_batches(ready: Drive) -> None:
    for token in range(3):
        ready(query(token, opens=True))
        ready.answer(2 + token, 0, attr(10 + token // 2))
    assert ready.core.handles == {10: 2, 11: 1}
    assert ready(HandleClosed(10)) == [] == ready(HandleClosed(10))
    assert ready.until("send CloseHandles") == ["send CloseHandles ((10, 2),)"]
    ready(Disconnected(1, "reset"))
    assert ready(Connected(2)) == ["send AttachSession 5 5 K ((11, 1),)"]


def test_handle_closed_while_attaching_is_told_afterwards(ready: Drive) -> None:
    ready(query(1, opens=True))
    ready.answer(2, 0, attr(10))
    ready(Disconnected(1, "reset"))
    assert ready(Connected(2)) == ["send AttachSession 3 5 K ((10, 1),)"]
    assert ready(HandleClosed(10)) == []
    assert ready.answer(3, 0, pack(2)) == ["attached b 5", "send CloseHandles ((10, 1),)"]


# --- the end --------------------------------------------------------------------------------------


def test_close_tells_the_replica(ready: Drive) -> None:
    ready(query(1))
    assert ready(Close()) == ["done 1 ESHUTDOWN", "send CloseSession 3 5"]
    assert ready(query(2)) == ["done 2 ESHUTDOWN"]
    assert ready.answer(3) == ["drop 1 CLOSING", "closed"]
    assert ready(query(3)) == ["done 3 ESHUTDOWN"]
    assert ready.core.next_deadline() == float("inf")


def test_close_does_not_wait_for_ever(ready: Drive) -> None:
    ready(Close())
    begun = ready.now
    assert ready.tick() == ["drop 1 CLOSING", "closed untold"]
    assert ready.now - begun == limits.CLOSE_TIMEOUT_S


@pytest.mark.parametrize("steps", [[], [Tick()], [Tick(), Connected(1)]])
def test_close_before_anything_answers(drive: Drive, steps: Iterable[Event]) -> None:
    for event in steps:
        drive(event)
    drive(query(1))
    assert drive(Close())[-1] == "closed untold"


def test_protocol_errors_end_the_connection(ready: Drive) -> None:
    ready(query(1, opens=True))
    assert ready.answer(2, 0, b"\xc1") == ["done 1 EIO", "drop 1 BROKEN", "connect 2 b"]
    ready(Connected(2))
    assert ready.got(OpenSession(1, bytes(16), "x", 1, 1)) == ["drop 2 BROKEN", "connect 3 c"]

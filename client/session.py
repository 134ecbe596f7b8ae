"""Pure. A client's session with the metadata service: which replica, what is outstanding, what is sent again.

One way in, :meth:`Session.step`; one way out, the effects it returns (:mod:`client.session_events`).  The shell
carries them out in their order and calls ``step(Tick(), now)`` at :meth:`Session.next_deadline`.

Which replica is next is :mod:`client.roster`'s to say; slots, numbers and what was sent are :mod:`client.calls`'s;
pings and silence :mod:`client.pulse`'s. A second connection (:mod:`client.standby`) waits for the first to fail.
"""

from __future__ import annotations

import errno
import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from random import Random  # the type only: the generator is injected
from typing import Final

from client import limits
from client.attributes import attr_untrusted
from client.calls import NEVER, Call, Calls
from client.pulse import Patience, Pulse
from client.roster import Members, Roster
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
    Reason,
    Received,
    Send,
    SessionLost,
    Submit,
    Tick,
    ViewLearned,
)
from client.standby import Standby
from wire.codec import unpack_untrusted
from wire.errors import OK, Status, WireError, describe
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

_SAME_AGAIN: Final = frozenset((Reason.NOT_ATTACHED, Reason.SESSION_UNKNOWN))
"""Left only to come back over a new connection: nothing is wrong with the replica."""


class State(Enum):
    """Where the client stands with its replica."""

    WAITING = "waiting"
    """No connection; the next is tried at ``_wake``."""
    CONNECTING = "connecting"
    ATTACHING = "attaching"
    """Connected; OpenSession or AttachSession is on its way."""
    READY = "ready"
    CLOSING = "closing"
    """CloseSession is on its way."""
    CLOSED = "closed"


@dataclass(slots=True)
class Counts:
    """For the log and for tests: what has happened so far."""

    left: Counter[Reason] = field(default_factory=Counter)
    attached: int = 0
    promoted: int = 0
    """Of those: over the connection that stood by."""
    resent: int = 0
    overloaded: int = 0
    sessions_lost: int = 0


class Session:
    """See the module. ``addresses`` are the replicas' from the configuration, in the order they are tried."""

    def __init__(
        self,
        client: str,
        key: bytes,
        addresses: Members,
        random: Random,
        *,
        prefer: int | None = None,
        soft_after: float | None = None,
        new_key: Callable[[], bytes] | None = None,
        slots: int = limits.SLOTS,
        aside: int = 0,
        standby: bool = True,
        kernel_ms: Callable[[], int] = lambda: 0,
    ) -> None:
        """*key*: 16 random bytes; *new_key* gives others for sessions after a lost one. *soft_after*: seconds
        until a call ends in ETIMEDOUT (None: hard, for ever). *prefer*: number of the replica to try first.
        *standby*: keep a second connection. *kernel_ms*: for so long the kernel may use entries it was given.
        *aside*: so many slots are for requests that wait for no others."""
        self.state = State.WAITING
        self.counts = Counts()
        self.session = 0
        """Number of the session; 0 before it is open."""
        self.address = ""
        """Of the replica that is connected, or being dialled."""
        self._client = client
        self._key = key
        self._kernel_ms = kernel_ms
        self._new_key = new_key or (lambda: random.randbytes(16))
        self._random = random
        self._soft_after = soft_after
        self._roster = Roster(addresses, random, prefer)
        self._proved = False
        """The replica has answered a call since it attached us: leaving it is no reason for a pause."""
        self._conn = 0
        self._conns = itertools.count(1)
        self._attempt = 0
        """Attachments asked for: one that is overtaken by a later one is void."""
        self._wake = 0.0
        """WAITING: when to dial; CONNECTING, ATTACHING, CLOSING: when that has taken too long."""
        self._patience = Patience()
        self._pulse = Pulse(self._patience, 0.0, "")
        """Of the present connection, once it is made."""
        self._standby = Standby(standby, self._roster, self._conns, self._patience)
        self._not_serving_since = NEVER
        self._next_call = 1
        self._calls = Calls(slots, aside)
        self._handles: dict[int, int] = {}
        """inode -> open handles, as the replicas should know them."""
        self._closed_handles: dict[int, int] = {}
        self._tell_closed_at = NEVER
        self._out: list[Effect] = []

    # -- in and out

    def step(self, event: Event, now: float) -> list[Effect]:
        """Take in *event*; the effects are to be carried out in their order."""
        out: list[Effect] = []
        self._out = out
        if self.state is State.CLOSED:
            if type(event) is Submit:
                out.append(Complete(event.token, errno.ESHUTDOWN, b""))
            return out
        match event:
            case Received():
                self._on_received(event, now)
            case Submit():
                self._on_submit(event, now)
            case Tick():
                self._on_tick(now)
            case HandleClosed():
                self._on_handle_closed(event.ino, now)
            case Abandon():
                self._on_abandon(event.token, now)
            case Connected():
                self._on_connected(event, now)
            case Disconnected():
                self._on_disconnected(event, now)
            case Close():
                self._on_close(now)
        return out

    def next_deadline(self) -> float:
        """When :class:`Tick` is due (never earlier than anything depends on it)."""
        at = self._tell_closed_at
        state = self.state
        if state is State.READY or state is State.ATTACHING:
            at = min(at, self._pulse.ping_at)
            if state is State.READY:
                at = min(at, self._standby.deadline)
            if self._not_serving_since != NEVER:
                at = min(at, self._not_serving_since + limits.NOT_SERVING_S)
            at = min(at, self._calls.next_resume())
        if state is not State.READY and state is not State.CLOSED:
            at = min(at, self._wake)
        return min(at, self._calls.next_expiry()) if self._soft_after is not None else at

    @property
    def outstanding(self) -> int:
        """Calls that are not over (abandoned requests count until their answer is there)."""
        return len(self._calls)

    def is_outstanding(self, token: int) -> bool:
        """Whether the call of *token* is not over, waited for or not."""
        return self._calls.get(token) is not None

    @property
    def handles(self) -> dict[int, int]:
        """inode -> open handles."""
        return dict(self._handles)

    # -- callers

    def _on_submit(self, event: Submit, now: float) -> None:
        expires = NEVER if self._soft_after is None else now + self._soft_after
        call = Call(event.token, event.kind, event.op, event.opens, expires, event.capability, first=event.first)
        if self.state is State.CLOSING:
            self._out.append(Complete(call.token, errno.ESHUTDOWN, b""))
        elif not self._calls.add(call):
            self._out.append(Complete(call.token, Status.OVERLOADED, b""))
        elif self.state is State.READY and (call.slot >= 0 or call.kind is Kind.QUERY):
            self._send_call(call, now)

    def _on_abandon(self, token: int, now: float) -> None:
        call = self._calls.get(token)
        if call is None:
            return  # its answer and the caller's cancellation crossed: the shell settles that
        self._calls.give_up(call)
        self._fill_slots(now)

    def _complete(self, call: Call, status: int, body: bytes, now: float) -> None:
        self._calls.over(call)
        if call.opens and status == OK:
            ino = _ino_of(body)
            self._handles[ino] = self._handles.get(ino, 0) + 1
            if not call.waited_for:
                self._on_handle_closed(ino, now)  # the answer came late: nobody will ever use the handle
        if call.waited_for:
            self._out.append(Complete(call.token, status, body))
        if self._calls.any_queued:
            self._fill_slots(now)

    def _fill_slots(self, now: float) -> None:
        for waiting in self._calls.fill_slots():
            if self.state is State.READY:
                self._send_call(waiting, now)

    def _on_handle_closed(self, ino: int, now: float) -> None:
        count = self._handles.get(ino, 0)
        if not count:
            return  # counted in a session that was lost meanwhile
        if count == 1:
            del self._handles[ino]
        else:
            self._handles[ino] = count - 1
        if self.state not in (State.ATTACHING, State.READY):
            return  # the attachment that follows declares what is open then
        self._closed_handles[ino] = self._closed_handles.get(ino, 0) + 1
        if self.state is State.ATTACHING:
            return  # declared as open already: told after the answer
        if len(self._closed_handles) >= limits.CLOSE_HANDLES_MAX:
            self._tell_closed()
        elif self._tell_closed_at == NEVER:
            self._tell_closed_at = now + limits.CLOSE_HANDLES_S

    def _tell_closed(self) -> None:
        if self._closed_handles:
            self._out.append(Send(self._conn, CloseHandles(tuple(self._closed_handles.items()))))
            self._closed_handles = {}
        self._tell_closed_at = NEVER

    # -- sending

    def _send_call(self, call: Call, now: float) -> None:
        assert self.state is State.READY
        number = self._next_call
        self._next_call = number + 1
        self._calls.sent(call, number)
        if call.kind is Kind.QUERY:
            self._out.append(Send(self._conn, QueryCall(number, call.op, call.capability)))
        else:
            request = RequestCall(number, self.session, call.slot, call.number, call.op, call.capability)
            self._out.append(Send(self._conn, request))
        self._pulse.asked(now)

    def _send_rest(self, now: float) -> None:
        """After attaching: whatever has not been sent on this connection."""
        for call in self._calls.unsent():
            self.counts.resent += call.ever_sent
            self._send_call(call, now)

    # -- connecting and attaching

    def _turn_to_next(self, now: float) -> None:
        """Try the next replica: over the connection that stands by if it is with that one."""
        assert self.state is State.WAITING
        self.address = self._roster.next()
        standby = self._standby
        if standby.ready and standby.address == self.address:
            self._conn = standby.conn
            self._pulse = standby.pulse
            standby.release()
            self.counts.promoted += 1
            self._attach(now)
            return
        if standby.address == self.address:
            standby.drop(Reason.NOT_NEEDED, "it is dialled as the first", self._out)
        self._conn = next(self._conns)
        self.state = State.CONNECTING
        self._wake = now + limits.CONNECT_TIMEOUT_S
        self._out.append(Connect(self._conn, self.address))

    def _leave(self, reason: Reason, detail: str, now: float) -> None:
        """Leave the present connection (made or not) and go on with the next replica, pausing when all were tried."""
        assert self.state in (State.CONNECTING, State.ATTACHING, State.READY)
        left, was_ready, proved = self.address, self.state is State.READY, self._proved
        self._detach(reason, detail)
        self._roster.failed(left)
        self.state = State.WAITING
        if was_ready:
            self._roster.round_without(left, first=reason in _SAME_AGAIN)
        if self._standby.ready and reason not in _SAME_AGAIN:
            self._roster.turn_to(self._standby.address)
        if proved or not (was_ready or self._roster.round_is_over):
            self._turn_to_next(now)
        else:
            self._wake = now + self._roster.pause()

    def _detach(self, reason: Reason, detail: str) -> None:
        self.counts.left[reason] += 1
        self._out.append(Drop(self._conn, reason, detail))
        self._calls.connection_gone()
        self._session_call = 0
        self._proved = False
        self._not_serving_since = NEVER
        self._closed_handles = {}
        self._tell_closed_at = NEVER

    def _on_connected(self, event: Connected, now: float) -> None:
        if event.conn == self._standby.conn:
            self._standby.connected(now)
            return
        if event.conn != self._conn or self.state is not State.CONNECTING:
            return  # given up meanwhile; Drop is on its way
        self._pulse = Pulse(self._patience, now, self.address)
        self._attach(now)

    def _attach(self, now: float) -> None:
        self.state = State.ATTACHING
        self._wake = now + limits.ATTACH_TIMEOUT_S
        self._session_call = self._next_call
        self._next_call += 1
        self._attempt += 1
        if self.session:
            handles = tuple(self._handles.items())
            attempt, kernel_ms = self._attempt, self._kernel_ms()
            attach = AttachSession(self._session_call, self.session, self._key, attempt, handles, kernel_ms)
            self._out.append(Send(self._conn, attach))
        else:
            slots = self._calls.slots
            opening = OpenSession(self._session_call, self._key, self._client, slots, self._attempt)
            self._out.append(Send(self._conn, opening))
        self._pulse.asked(now)

    def _on_attach_answer(self, answer: Answer, now: float) -> None:
        self._session_call = 0
        status = answer.status
        if status == OK:
            fresh = not self.session
            if fresh:
                self.session = _number_of(answer.body)
            self.state = State.READY
            self._roster.attached()
            self.counts.attached += 1
            self._standby.attached(now)
            self._out.append(Attached(self.address, self.session, fresh, self._conn))
            self._tell_closed()  # what was closed after the attachment declared it open
            self._send_rest(now)
        elif status == Status.SESSION_UNKNOWN and self.session:
            self._lose_session()
            self._attach(now)
        else:
            self._leave(Reason.ATTACH_REFUSED, describe(status), now)

    def _lose_session(self) -> None:
        """The service does not know our session any more; what was sent in it has an outcome nobody can tell."""
        lost, self.session = self.session, 0
        self._key = self._new_key()
        handles = sum(self._handles.values())
        self._handles = {}
        self._closed_handles = {}
        self._tell_closed_at = NEVER
        unknown = self._calls.session_lost()
        self.counts.sessions_lost += 1
        self._out.append(SessionLost(lost, len(unknown), handles))
        self._out += [Complete(call.token, errno.EIO, b"") for call in unknown if call.waited_for]

    # -- what comes in

    def _on_disconnected(self, event: Disconnected, now: float) -> None:
        if event.conn == self._standby.conn:
            self._standby.disconnected(event.why, now, self._out)
            return
        if event.conn != self._conn:
            return
        if self.state is State.CLOSING:
            self._finish(told=False)
        elif self.state is State.CONNECTING:
            self._leave(Reason.CONNECT_FAILED, event.why, now)
        elif self.state in (State.ATTACHING, State.READY):
            self._leave(Reason.BROKEN, event.why, now)

    def _on_received(self, event: Received, now: float) -> None:
        if event.conn != self._conn or self.state in (State.WAITING, State.CONNECTING):
            if event.conn == self._standby.conn:
                self._standby.received(event.message, now, self._out)
                if isinstance(event.message, ViewChanged):
                    self._on_view(event.message, now)
            return  # else: of a connection that was left
        if self._pulse.missed:
            self._pulse.heard(now, busy=self._calls.any_sent or self.state is not State.READY)
        message = event.message
        match message:
            case Answer():
                self._on_answer(message, now)
            case Ping():
                self._out.append(Send(self._conn, Pong(message.number, True)))
            case Pong():
                if message.serving:
                    self._not_serving_since = NEVER
                    self._proved = self.state is State.READY
                elif self._not_serving_since == NEVER:
                    self._not_serving_since = now
            case ViewChanged():
                self._on_view(message, now)
            case _:
                self._not_ours(f"a {type(message).__name__} from the replica", now)

    def _not_ours(self, what: str, now: float) -> None:
        if self.state is State.CLOSING:
            self._finish(told=False)
        else:
            self._leave(Reason.BROKEN, f"protocol: {what}", now)

    def _on_answer(self, answer: Answer, now: float) -> None:
        if self._session_call and answer.call == self._session_call:
            if self.state is State.CLOSING:
                self._finish(told=answer.status == OK)
                return
            try:
                self._on_attach_answer(answer, now)
            except WireError as exc:
                self._not_ours(str(exc), now)
            return
        call = self._calls.answered(answer.call)
        if call is None:
            return  # of a query that was abandoned
        status = answer.status
        if status < Status.NOT_SERVING:  # success or an errno
            self._proved = True
            self._roster.proved()
            try:
                self._complete(call, status, answer.body, now)
            except WireError as exc:
                if call.waited_for:
                    self._out.append(Complete(call.token, errno.EIO, b""))
                self._not_ours(str(exc), now)
        elif status == Status.NOT_SERVING:
            self._leave(Reason.NOT_SERVING, "refused a call", now)
        elif status == Status.OVERLOADED:
            self._again_later(call, now)
        elif status == Status.NOT_ATTACHED:
            # Attached again over a new connection, so that no answer to an Open crosses the declared handles.
            self._leave(Reason.NOT_ATTACHED, "refused a call", now)
        elif status == Status.SESSION_UNKNOWN:
            # A new connection, too: the answers still on their way belong to the session that is gone.
            self._leave(Reason.SESSION_UNKNOWN, "refused a call", now)
        else:
            self._complete(call, status, answer.body, now)

    def _again_later(self, call: Call, now: float) -> None:
        self.counts.overloaded += 1
        call.pause = min(max(call.pause * 2, limits.OVERLOADED_FIRST_S), limits.OVERLOADED_MAX_S)
        self._calls.pause(call, now + call.pause * (0.5 + self._random.random() / 2))

    def _on_view(self, view: ViewChanged, now: float) -> None:
        if not self._roster.learn(view.generation, view.epoch, view.members, view.replicas):
            return
        self._out.append(ViewLearned(view.generation, view.epoch, view.members))
        name = f"view {view.generation}.{view.epoch}"
        self._patience.view(self._roster.is_member)
        self._standby.on_view(name, now, self._out)
        if self.state is State.READY and not self._roster.is_member(self.address):
            self._leave(Reason.DROPPED, name, now)

    # -- time

    def _on_tick(self, now: float) -> None:
        if now >= self._tell_closed_at:
            self._tell_closed()
        for call in self._calls.expired(now):
            self._calls.give_up(call)
            self._out.append(Complete(call.token, errno.ETIMEDOUT, b""))
            self._fill_slots(now)
        match self.state:
            case State.WAITING:
                if now >= self._wake:
                    self._turn_to_next(now)
            case State.CONNECTING:
                if now >= self._wake:
                    self._leave(Reason.CONNECT_TIMEOUT, f"{limits.CONNECT_TIMEOUT_S:g} s", now)
            case State.CLOSING:
                if now >= self._wake:
                    self._finish(told=False)
            case State.ATTACHING | State.READY:
                self._watch(now)

    def _watch(self, now: float) -> None:
        """The connection is there: is the replica?"""
        ready = self.state is State.READY
        if now - self._not_serving_since >= limits.NOT_SERVING_S:
            self._leave(Reason.NOT_SERVING, f"since {now - self._not_serving_since:.1f} s", now)
            return
        if not ready and now >= self._wake:
            self._leave(Reason.ATTACH_TIMEOUT, f"{limits.ATTACH_TIMEOUT_S:g} s", now)
            return
        pulse = self._pulse
        if now >= pulse.ping_at:
            if not pulse.beat(now):
                self._leave(Reason.SILENT, f"{pulse.missed} pings", now)
                return
            self._out.append(Send(self._conn, Ping(pulse.number)))
        if ready:
            self._standby.tick(now, self.address, self._out)
            for call in self._calls.resume(now):
                self._send_call(call, now)

    # -- the end

    def _on_close(self, now: float) -> None:
        if self.state is State.CLOSING:
            return
        self._out += [Complete(call.token, errno.ESHUTDOWN, b"") for call in self._calls.waited_for()]
        self._calls = self._calls.emptied()
        if self.state is not State.READY:
            if self.state is State.WAITING:
                self.state = State.CLOSED
                self._standby.drop(Reason.CLOSING, "with the session", self._out)
                self._out.append(Closed(told=False))
            else:
                self._finish(told=False)
            return
        self._tell_closed()
        self._session_call = self._next_call
        self._next_call += 1
        self.state = State.CLOSING
        self._wake = now + limits.CLOSE_TIMEOUT_S
        self._out.append(Send(self._conn, CloseSession(self._session_call, self.session, self._key)))

    def _finish(self, told: bool) -> None:
        self.state = State.CLOSED
        self._tell_closed_at = NEVER
        self._standby.drop(Reason.CLOSING, "with the session", self._out)
        self._out.append(Drop(self._conn, Reason.CLOSING, "told" if told else "not told"))
        self._out.append(Closed(told))

    # -- for tests

    def validate(self) -> None:
        """What holds after every step."""
        self._calls.validate(ready=self.state is State.READY)
        assert all(count > 0 for count in self._handles.values())
        self._standby.validate()
        if self._standby.conn:
            assert self.state is not State.CLOSED and self._standby.conn != self._conn
            assert self.state is State.WAITING or self._standby.address != self.address
        if self.state is State.READY:
            assert self.session and not self._session_call
        else:
            assert self._tell_closed_at == NEVER
            assert not self._closed_handles or self.state is State.ATTACHING
        if self.state is State.ATTACHING:
            assert self._session_call
        if self.state in (State.CLOSING, State.CLOSED):
            assert not len(self._calls)


def _ino_of(body: bytes) -> int:
    """Of the answer to a Create, attr, or an Open, ``(attr, contents)``."""
    value = unpack_untrusted(body)
    return attr_untrusted(value[0] if type(value) is tuple and len(value) == 2 else value).ino


def _number_of(body: bytes) -> int:
    value = unpack_untrusted(body)
    if type(value) is not int or not 0 < value < 2**63:
        raise WireError(f"session number {value!r}")
    return value

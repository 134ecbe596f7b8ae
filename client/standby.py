"""Pure. The connection to a second replica, made ahead: the session goes on there when its own replica is lost.

It saves the dial and the handshake, and a view that leaves our replica out is heard on it at once. Nothing is
attached over it: a replica takes a client without a session for a visitor. :mod:`client.session` drives it while it
is attached; what happens to this connection never concerns a caller.
"""

from __future__ import annotations

from collections.abc import Iterator

from client import limits
from client.calls import NEVER
from client.pulse import Patience, Pulse
from client.roster import Roster
from client.session_events import Connect, Drop, Effect, Reason, Send
from wire.messages import Ping, Pong, ViewChanged


class Standby:
    """What is known of the second connection; ``conn`` 0: there is none."""

    def __init__(self, wanted: bool, roster: Roster, conns: Iterator[int], patience: Patience) -> None:
        """*wanted*: False to have none, ever. *conns* numbers all connections of the session."""
        self.conn = 0
        self.address = ""
        self.ready = False
        """The handshake is done."""
        self.pulse = Pulse(patience, 0.0, "")
        self._wanted = wanted
        self._roster = roster
        self._conns = conns
        self._patience = patience
        self._at = NEVER
        """No connection: when to dial; dialling: when that has taken too long."""
        self._pause = limits.BACKOFF_FIRST_S

    @property
    def deadline(self) -> float:
        """When :meth:`tick` is due, while the session is attached."""
        return self.pulse.ping_at if self.ready else self._at

    def attached(self, now: float) -> None:
        """The session is: what is outstanding goes first."""
        if not self.conn:
            self._want(now + limits.STANDBY_AFTER_S)

    def _want(self, at: float) -> None:
        """Dial one at *at*."""
        if self._wanted:
            self._at = at

    def tick(self, now: float, current: str, out: list[Effect]) -> None:
        """Dial, give up dialling, or ping, if it is time. The session is attached at *current*."""
        if now < self.deadline:
            return
        if not self.conn:
            address = self._roster.standby(current)
            self._at = NEVER  # nobody else is a member: the next view may bring one
            if address is not None:
                self.conn, self.address = next(self._conns), address
                self._at = now + limits.CONNECT_TIMEOUT_S
                out.append(Connect(self.conn, address))
        elif not self.ready:
            self._failed(Reason.CONNECT_TIMEOUT, f"{limits.CONNECT_TIMEOUT_S:g} s", now, out)
        elif self.pulse.beat(now):
            out.append(Send(self.conn, Ping(self.pulse.number)))
        else:
            self._failed(Reason.SILENT, f"{self.pulse.missed} pings", now, out)

    def connected(self, now: float) -> None:
        assert self.conn and not self.ready
        self.ready = True
        self._pause = limits.BACKOFF_FIRST_S
        self.pulse = Pulse(self._patience, now, self.address)

    def disconnected(self, why: str, now: float, out: list[Effect]) -> None:
        self._failed(Reason.BROKEN if self.ready else Reason.CONNECT_FAILED, why, now, out)

    def received(self, message: object, now: float, out: list[Effect]) -> None:
        """Something came in on it. A view is the session's to learn."""
        if self.pulse.missed:
            self.pulse.heard(now, busy=False)
        if isinstance(message, Ping):
            out.append(Send(self.conn, Pong(message.number, True)))
        elif not isinstance(message, Pong | ViewChanged):
            self._failed(Reason.BROKEN, f"protocol: a {type(message).__name__} from the replica", now, out)

    def on_view(self, name: str, now: float, out: list[Effect]) -> None:
        """A newer view is known: only with a member of it is the connection of use."""
        if self.conn and not self._roster.is_member(self.address):
            self.drop(Reason.DROPPED, name, out)
        if not self.conn:
            self._want(now + limits.STANDBY_AFTER_S)

    def drop(self, reason: Reason, detail: str, out: list[Effect]) -> None:
        """End it, if there is one."""
        if self.conn:
            out.append(Drop(self.conn, reason, detail, standby=True))
            self.release()

    def release(self) -> None:
        """It is the session's own connection from now on, or none any more."""
        self.conn, self.address, self.ready, self._at = 0, "", False, NEVER

    def _failed(self, reason: Reason, detail: str, now: float, out: list[Effect]) -> None:
        """It does not work: the next one is dialled after a pause that grows."""
        self._roster.failed(self.address)
        self.drop(reason, detail, out)
        self._want(now + self._pause)
        self._pause = min(2 * self._pause, limits.STANDBY_PAUSE_MAX_S)

    def validate(self) -> None:
        """What holds after every step."""
        assert bool(self.conn) == bool(self.address)
        assert not self.ready or self.conn
        assert self._wanted or not self.conn

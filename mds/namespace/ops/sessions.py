"""Pure. SessionOpen, SessionAttach, SessionClose, SessionExpire: a client's session and which replica it is attached
to.

A session outlives its replica: the client attaches elsewhere. Each attachment is counted, and an expiry names the
count it saw: one that was ordered after a new attachment is void. With the session goes its part of the reply table.
"""

from __future__ import annotations

from typing import Any

from mds import schema, sessions
from mds.namespace.scope import Scope
from wire.errors import FileSystemError, Status
from wire.ops import SessionAttach, SessionClose, SessionExpire, SessionOpen


def open_session(scope: Scope, op: SessionOpen) -> Any:
    """The session of *key*, new or (the client sends again after a failover) the one it has already."""
    known = sessions.by_key(scope.store, op.key)
    if known is None:
        number = scope.fresh
        sessions.put(scope.store, number, sessions.Session(op.key, op.client, op.slots, op.replica, 1))
        scope.store.put(schema.SESSION_KEYS, op.key, schema.u64(number))
        scope.sessions += 1
        return number
    session = sessions.find(scope.store, known)
    assert session is not None, "SESSION_KEYS agrees with SESSIONS"
    if session.replica != op.replica:
        # It is attached here from now on, and an expiry that the former replica's end brought about is void.
        sessions.put(scope.store, known, session.attached(op.replica))
    return known


def attach(scope: Scope, op: SessionAttach) -> Any:
    session = sessions.find(scope.store, op.session)
    if session is None or session.key != op.key:
        raise FileSystemError(Status.SESSION_UNKNOWN)
    session = session.attached(op.replica)
    sessions.put(scope.store, op.session, session)
    return session.attachments


def close(scope: Scope, op: SessionClose) -> Any:
    session = sessions.find(scope.store, op.session)
    if session is not None and session.key == op.key:
        _end(scope, op.session, session)
    return None


def expire(scope: Scope, op: SessionExpire) -> Any:
    session = sessions.find(scope.store, op.session)
    if session is not None and session.attachments == op.count:
        _end(scope, op.session, session)
    return None


def _end(scope: Scope, number: int, session: sessions.Session) -> None:
    sessions.remove(scope.store, number, session)
    scope.sessions -= 1
    scope.session_gone = number

"""Pure. SessionOpen, SessionAttach, SessionClose, SessionExpire: a client's session and which replica it is attached
to.

A session outlives its replica: the client attaches elsewhere. The client numbers its attempts: an attachment that is
ordered after a later one is void (1. it queues at a replica that is cut off; 2. the client attaches elsewhere and opens
a file; 3. the cut heals), and so is an expiry that saw an earlier one. With it goes its part of the reply table.
"""

from __future__ import annotations

from typing import Any

from mds import schema, sessions
from mds.namespace import delegations
from mds.namespace.scope import Scope
from wire.errors import FileSystemError, Status
from wire.ops import SessionAttach, SessionClose, SessionExpire, SessionOpen


def open_session(scope: Scope, op: SessionOpen) -> Any:
    """The session of *key*, new or (the client sends again after a failover) the one it has already."""
    known = sessions.by_key(scope.store, op.key)
    if known is None:
        number = scope.fresh
        sessions.put(scope.store, number, sessions.Session(op.key, op.client, op.slots, op.replica, op.attempt))
        scope.store.put(schema.SESSION_KEYS, op.key, schema.u64(number))
        scope.sessions += 1
        return number
    session = sessions.find(scope.store, known)
    assert session is not None, "SESSION_KEYS agrees with SESSIONS"
    _attach(scope, known, session, op.replica, op.attempt)
    return known


def attach(scope: Scope, op: SessionAttach) -> Any:
    session = sessions.find(scope.store, op.session)
    if session is None or session.key != op.key:
        raise FileSystemError(Status.SESSION_UNKNOWN)
    _attach(scope, op.session, session, op.replica, op.attempt)
    return None


def _attach(scope: Scope, number: int, session: sessions.Session, replica: int, attempt: int) -> None:
    if attempt <= session.attempt:
        raise FileSystemError(Status.NOT_ATTACHED)
    sessions.put(scope.store, number, session.attached(replica, attempt))


def close(scope: Scope, op: SessionClose) -> Any:
    session = sessions.find(scope.store, op.session)
    if session is not None and session.key == op.key:
        _end(scope, op.session, session)
    return None


def expire(scope: Scope, op: SessionExpire) -> Any:
    session = sessions.find(scope.store, op.session)
    if session is not None and session.attempt == op.attempt:
        _end(scope, op.session, session)
    return None


def _end(scope: Scope, number: int, session: sessions.Session) -> None:
    sessions.remove(scope.store, number, session)
    delegations.end_all(scope, number)
    scope.sessions -= 1
    scope.session_gone = number

"""Pure. Sessions and the reply table in the state: each request is executed once, whatever the client sends again.

A session has slots; in a slot requests are numbered 1, 2, 3... and one is outstanding at a time. The reply of a slot's
last request is kept until its next one, which acknowledges it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from mds import schema
from mds.store import Store
from wire.codec import pack, unpack_untrusted


class Session(NamedTuple):
    """A record of SESSIONS."""

    key: bytes
    client: str
    slots: int
    replica: int
    """The replica it is attached to."""
    attempt: int
    """The client's number of the attachment in force: an earlier one that is ordered late does not take it back."""

    def attached(self, replica: int, attempt: int) -> Session:
        return self._replace(replica=replica, attempt=attempt)


class Reply(NamedTuple):
    """A record of REPLIES: what the slot's last request was answered."""

    number: int
    status: int
    opened: int
    """The inode whose handle the answer counts, or 0."""
    body: bytes


def find(store: Store, session: int) -> Session | None:
    raw = store.get(schema.SESSIONS, schema.u64(session))
    return Session(*unpack_untrusted(raw)) if raw is not None else None


def by_key(store: Store, key: bytes) -> int | None:
    raw = store.get(schema.SESSION_KEYS, key)
    return int.from_bytes(raw, "big") if raw is not None else None


def every(store: Store) -> Iterator[tuple[int, Session]]:
    """All sessions, ascending by number."""
    for key, value in store.scan(schema.SESSIONS, b"", None):
        yield int.from_bytes(key, "big"), Session(*unpack_untrusted(value))


def put(store: Store, number: int, session: Session) -> None:
    store.put(schema.SESSIONS, schema.u64(number), pack(session))


def remove(store: Store, number: int, session: Session) -> None:
    """Remove the session and its replies."""
    prefix = schema.u64(number)
    for key, _value in list(store.scan(schema.REPLIES, prefix, schema.after(prefix))):
        store.delete(schema.REPLIES, key)
    store.delete(schema.SESSION_KEYS, session.key)
    store.delete(schema.SESSIONS, prefix)


def reply(store: Store, session: int, slot: int) -> Reply | None:
    """What is kept for the slot; None before its first request."""
    raw = store.get(schema.REPLIES, (session << 16 | slot).to_bytes(10, "big"))
    return Reply(*unpack_untrusted(raw)) if raw is not None else None


def keep(store: Store, session: int, slot: int, number: int, status: int, opened: int, body: bytes) -> None:
    """Keep the reply of request *number* in place of the one before it."""
    store.put(schema.REPLIES, (session << 16 | slot).to_bytes(10, "big"), pack((number, status, opened, body)))

"""Capabilities that this replica gives its clients: with answers to those who open, make or cut off a file, and to
those who renew one. See :mod:`wire.capability`.

What was allowed at open(2) stays allowed as long as the file is open, whatever becomes of its mode; that it was allowed
is what the old capability says, signed, wherever it was given. So nothing about it is kept here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from mds.machine import StateMachine
from mds.namespace.inline import objects_of
from wire import ops
from wire.capability import (
    ALL_FILES,
    DELETE,
    LIFETIME_US,
    READ,
    TRUNCATE,
    WRITE,
    is_signed,
    key_id,
    parse_untrusted,
    sign,
    signing_key,
)
from wire.codec import unpack_untrusted
from wire.fileops import Renew
from wire.inline import GrowOut

O_ACCMODE: Final = 3
O_TRUNC: Final = 0o1000
_BY_ACCESS: Final = (READ, WRITE | TRUNCATE, READ | WRITE | TRUNCATE, READ | WRITE | TRUNCATE)
_CREATED: Final = READ | WRITE | TRUNCATE
"""Whoever makes a file may write it, whatever its mode is (open(2)); the kernel holds a handle to its flags."""
_LAYOUT: Final = ops.ATTR_FIELDS.index("layout")
_OBJECTS: Final = ops.ATTR_FIELDS.index("objects")


class Signer:
    """See the module."""

    def __init__(self, state: StateMachine, clock_ns: Callable[[], int]) -> None:
        """*clock_ns*: the wall clock."""
        self.state = state
        """Replaced by the replica, when a snapshot replaces its own."""
        self._clock_ns = clock_ns

    def answered(self, uuid: bytes, session: int, op: Any, body: bytes) -> bytes:
        """What goes with the answer *body* to *op*, which was carried out for *session* of the client *uuid*; empty
        where nothing does."""
        kind = type(op)
        if kind is ops.Create:
            rights = _CREATED
        elif kind is ops.Open:
            rights = _BY_ACCESS[op.flags & O_ACCMODE] | (TRUNCATE if op.flags & O_TRUNC else 0)
        elif kind is ops.SetAttr and op.valid & ops.SET_SIZE:
            rights = TRUNCATE
        elif kind is Renew:
            known = parse_untrusted(op.old)
            rights = known.rights if known is not None else op.rights
        elif kind is GrowOut:
            rights = WRITE
        else:
            return b""
        attr, number = unpack_untrusted(body), 0
        if kind is ops.Open:
            attr, _ = attr
        elif kind is GrowOut:
            number, attr = attr  # what the bytes are to be written to, not the file's yet
            if not number:
                return b""  # nobody has asked whether this client may write what is the file's already
        layout = attr[_LAYOUT]
        return b"" if layout is None else self._signed(uuid, rights, number or attr[_OBJECTS], session, layout[1])

    def service(self, uuid: bytes) -> bytes:
        """For this replica itself, which its Hello calls *uuid*: to delete what is owed, and to cut off."""
        return self._signed(uuid, DELETE | TRUNCATE, ALL_FILES, 0, ())

    def _signed(self, uuid: bytes, rights: int, ino: int, session: int, chains: tuple[int, ...]) -> bytes:
        key = signing_key(self.state.keys.keys)
        if key is None:
            return b""  # a new cluster: the keeper is about to have one ordered
        expires_us = self._clock_ns() // 1000 + LIFETIME_US
        return sign(key, uuid, rights, ino, session, expires_us, chains)

    def renewable(self, uuid: bytes, session: int, op: Renew, has_open: bool) -> bool:
        """Whether the client gets another for that of *op*. *has_open*: its session has the file open here.

        A right to truncate alone comes with a truncation by name, which opens nothing.
        """
        known = parse_untrusted(op.old)
        keys = {key_id(key): key for key in self.state.keys.keys}
        return (
            known is not None
            and is_signed(op.old, known, keys, uuid)
            and known.ino in (op.ino, objects_of(self.state.store, op.ino))  # another, when it has grown out since
            and known.session == session
            and (has_open or known.rights == TRUNCATE)
        )

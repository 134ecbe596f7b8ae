"""Capabilities that this replica gives its clients: with answers to those who open, make or cut off a file, and to
those who renew one; and with pages of a listing, for the rest of it. See :mod:`wire.capability`.

What was allowed at open(2) stays allowed as long as the file is open, whatever becomes of its mode; that it was allowed
is what the old capability says, signed, wherever it was given. So nothing about it is kept here.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable
from typing import Any, Final

from mds.machine import Outcome, StateMachine
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
from wire.codec import pack, unpack_untrusted
from wire.delegation import CreateDelegated
from wire.errors import OK, Status
from wire.fileops import Renew
from wire.inline import GrowOut

O_ACCMODE: Final = 3
O_TRUNC: Final = 0o1000
_BY_ACCESS: Final = (READ, WRITE | TRUNCATE, READ | WRITE | TRUNCATE, READ | WRITE | TRUNCATE)
_CREATE: Final = (ops.Create, CreateDelegated)
_CREATED: Final = READ | WRITE | TRUNCATE
"""Whoever makes a file may write it, whatever its mode is (open(2)); the kernel holds a handle to its flags."""
_INO: Final = ops.ATTR_FIELDS.index("ino")
_MODE: Final = ops.ATTR_FIELDS.index("mode")
_LAYOUT: Final = ops.ATTR_FIELDS.index("layout")
_OBJECTS: Final = ops.ATTR_FIELDS.index("objects")

_MORE: Final = pack(False)
"""The end of an answer to ReadDir after which others follow."""


class Signer:
    """See the module."""

    def __init__(self, state: StateMachine, clock_ns: Callable[[], int]) -> None:
        """*clock_ns*: the wall clock."""
        self.state = state
        """Replaced by the replica, when a snapshot replaces its own."""
        self._clock_ns = clock_ns
        self._keys: tuple[tuple[bytes, ...], dict[bytes, bytes]] = (), {}
        """(the keys, the same by their ids)."""

    def answered(self, uuid: bytes, session: int, op: Any, body: bytes) -> bytes:
        """What goes with the answer *body* to *op*, which was carried out for *session* of the client *uuid*; empty
        where nothing does."""
        kind = type(op)
        if kind in _CREATE:
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
        if not stat.S_ISREG(attr[_MODE]):
            return b""
        chains = () if attr[_LAYOUT] is None else attr[_LAYOUT][1]
        if number:
            return self._signed(uuid, rights, number, session, chains, 0)
        return self._signed(uuid, rights, attr[_OBJECTS], session, chains, attr[_INO])

    def replied(self, uuid: bytes, op: Any, outcome: Outcome) -> bytes:
        """What goes with *outcome* of the request *op* of the client *uuid*.

        Where the reply is given again, *op* is what the client says by now that it had asked. 1. A Link of somebody's
        file is answered with the file's attributes. 2. A Create is sent under the same number. 3. The answer is those
        attributes, and no right to the file. So only what has opened a file gives something again, which is what a
        Create gives; for the rest there is Renew.
        """
        given_again = not outcome.store_reply
        if outcome.status != OK or (given_again and not (type(op) in _CREATE and outcome.opened)):
            return b""
        return self.answered(uuid, outcome.session, op, outcome.body)

    def listed(self, uuid: bytes, session: int, op: ops.ReadDir, body: bytes) -> bytes:
        """What goes with a page of a listing: the right to the rest of it, if there is more and *op* was allowed by its
        credentials. Root's always are, so it is given none (and a mount of root's pays nothing)."""
        if not session or op.cred.uid == 0 or not body.endswith(_MORE):
            return b""
        return self._signed(uuid, READ, op.ino, session, (), op.ino)  # a directory's number is that of no objects

    def service(self, uuid: bytes) -> bytes:
        """For this replica itself, which its Hello calls *uuid*: to delete what is owed, and to cut off."""
        return self._signed(uuid, DELETE | TRUNCATE, ALL_FILES, 0, (), 0)

    def _signed(self, uuid: bytes, rights: int, ino: int, session: int, chains: tuple[int, ...], file: int) -> bytes:
        key = signing_key(self.state.keys.keys)
        if key is None:
            return b""  # a new cluster: the keeper is about to have one ordered
        expires_us = self._clock_ns() // 1000 + LIFETIME_US
        return sign(key, uuid, rights, ino, session, expires_us, chains, file)

    def renewable(self, uuid: bytes, session: int, op: Renew, has_open: bool) -> bool:
        """Whether the client gets another for that of *op*. *has_open*: its session has the file open here.

        A right to truncate alone comes with a truncation by name, which opens nothing.
        """
        known = parse_untrusted(op.old)
        return (
            known is not None
            and is_signed(op.old, known, self._known_keys(), uuid)
            and known.file == op.ino
            and known.session == session
            and (has_open or known.rights == TRUNCATE)
        )

    def judge(self, uuid: bytes, session: int, token: bytes, file: int, rights: int) -> tuple[int, str]:
        """(OK, "") when *token* gives *session* of the client *uuid* one of *rights* on inode *file*, else (status,
        why): EACCES when it never will, CAPABILITY_EXPIRED when another one may.

        It does not expire here. That is for targets, which do not hear of the end of a session; whoever has the session
        may keep the file open for as long as that lasts.
        """
        known = parse_untrusted(token)
        if known is None:
            return errno.EACCES, "no capability is shown" if not token else "what is shown is no capability"
        keys = self._known_keys()
        if known.key not in keys:
            return Status.CAPABILITY_EXPIRED, "the key of the capability is not known here (any more)"
        if not is_signed(token, known, keys, uuid):
            return errno.EACCES, "the capability's signature is wrong, or made for another client"
        if known.session != session:
            return Status.CAPABILITY_EXPIRED, f"the capability is of session {known.session}"
        if known.file != file:
            return errno.EACCES, f"the capability is for inode {known.file}"
        if not known.rights & rights:
            return errno.EACCES, f"the capability gives rights {known.rights:#x}, one of {rights:#x} is needed"
        return OK, ""

    def _known_keys(self) -> dict[bytes, bytes]:
        keys = self.state.keys.keys
        if self._keys[0] is not keys:
            self._keys = keys, {key_id(key): key for key in keys}
        return self._keys[1]

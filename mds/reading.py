"""Queries of clients: answered from this replica's own state under the read lease, or parked until they may be.

See :mod:`mds.pending` for what a query waits for.
"""

from __future__ import annotations

import errno
import logging
from dataclasses import dataclass, field
from typing import Any

from mds import limits
from mds.capabilities import Signer
from mds.delegating import Delegating, Met
from mds.handles import Handles
from mds.lending import Lending
from mds.machine import StateMachine
from mds.pending import Key, Pending
from mds.rights import NEEDED, Rights
from mds.shell import Client, Shell
from vsync.machine import Machine
from wire import messages as msg
from wire import ops
from wire.codec import decode
from wire.errors import OK, Status, WireError
from wire.fileops import Renew

log = logging.getLogger(__name__)

_CACHEABLE = (ops.Lookup, ops.GetAttr)
"""Queries whose answer a client may keep under a lease. Not ReadDir: a client that lists a directory does not keep
the attributes of all in it, and a lease on each would have to be recalled."""

_OF_SESSIONS = (ops.Open, Renew)


@dataclass(slots=True, eq=False)
class Parked:
    """A query that waits for the lease, for conflicting requests that were pending when it came, or for a directory
    that is delegated to somebody else."""

    client: Client
    call: int
    op: Any
    arrived: frozenset[Key]
    waits: set[Key] = field(default_factory=set)
    met: Met = field(default_factory=dict)
    """Delegations that are in its way."""


class Reading:
    """See the module."""

    def __init__(
        self,
        group: Machine,
        state: StateMachine,
        pending: Pending,
        handles: Handles,
        lending: Lending,
        signer: Signer,
        delegating: Delegating,
        shell: Shell,
    ) -> None:
        self.state = state
        """Replaced by the replica, when a snapshot replaces its own."""
        self.parked: list[Parked] = []
        self.answered = 0
        self._group = group
        self._pending = pending
        self._handles = handles
        self._lending = lending
        self._signer = signer
        self._delegating = delegating
        self.rights = Rights(signer)
        self._shell = shell

    @property
    def full(self) -> bool:
        """As many wait as may."""
        return len(self.parked) >= limits.PARKED_QUERIES

    def query(self, client: Client, m: msg.QueryCall) -> None:
        """Answer a client's query, now or later."""
        try:
            op = decode(m.op)
        except WireError as exc:
            log.warning("%s: query refused: %s", client.name, exc)
            client.send(msg.Answer(m.call, Status.BAD_MESSAGE, b""))
            return
        if client.squash is not None:
            op = client.squash.applied(op)
        if type(op) in NEEDED:
            known = client.session != 0
            status = self.rights.judge(client, op, m.capability, self._shell.now()) if known else Status.NOT_ATTACHED
            if status != OK:
                client.send(msg.Answer(m.call, status, b""))
                return
        elif m.capability and isinstance(op, ops.ReadDir):
            op = self.rights.listing(client, op, m.capability)
        query = Parked(client, m.call, op, frozenset())
        if not self._answer(query, first=True):
            self.parked.append(query)

    def _answer(self, query: Parked, first: bool) -> bool:
        """Answer the query from our own state, if that is allowed now and the answer will stay true."""
        if not self._group.may_read(self._shell.now()):
            if first:
                query.arrived = self._pending.keys()
            return False
        result = self.state.query(query.op, self._handles)
        conflicts = self._pending.conflicts(result.read)
        if result.status != OK and not all(map(self.state.exists, result.read)):
            conflicts = list(self._pending.keys())  # which inode a message makes is not known before it is delivered
        if conflicts:
            if first:
                query.arrived = self._pending.keys()
            waits = {key for key in conflicts if key in query.arrived}
            if waits:
                query.waits = waits
                return False
        query.met = self._delegating.keep_from(query.client.session, result.read)
        if query.met:
            if first:
                query.arrived = self._pending.keys()
            return False
        if isinstance(query.op, _OF_SESSIONS) and result.status == OK and not query.client.gone:
            self.answered += 1
            query.client.send(self._granting(query, result.body))
            return True
        self.answered += 1
        lease = isinstance(query.op, _CACHEABLE) and not conflicts and self._lending.caches.has(query.client)
        if lease:
            lease = self._lending.grant(query.client, result.read)
        capability = b""
        if type(query.op) is ops.ReadDir:
            capability = self._signer.listed(query.client.uuid, query.client.session, query.op, result.body)
        query.client.send(msg.Answer(query.call, result.status, result.body, lease, capability))
        return True

    def _granting(self, query: Parked, body: bytes) -> msg.Answer:
        """The answer to a query that gives a session something."""
        client, op = query.client, query.op
        has_open = self._handles.has(client.session, op.ino)
        if not client.session:
            return msg.Answer(query.call, Status.NOT_ATTACHED, b"")  # for whom should it be counted?
        if isinstance(op, ops.Open):
            self._handles.open(client.session, op.ino)
        elif op.old and not self._signer.renewable(client.uuid, client.session, op, has_open):
            log.warning("%s: session %d gets no other capability for inode %d", client.name, client.session, op.ino)
            return msg.Answer(query.call, errno.EACCES, b"")
        return msg.Answer(query.call, OK, body, False, self._signer.answered(client.uuid, client.session, op, body))

    def unpark(self) -> None:
        """Answer those that need not wait any longer."""
        still = []
        parked, self.parked = self.parked, []
        for query in parked:
            if query.client.gone:
                continue
            query.waits = {key for key in query.waits if self._pending.has(key)}
            if query.waits or (query.met and self._delegating.still(query.met)) or not self._answer(query, first=False):
                still.append(query)
        self.parked = still + self.parked

    def turn_away(self) -> None:
        """Tell all that wait to ask elsewhere."""
        parked, self.parked = self.parked, []
        for query in parked:
            query.client.send(msg.Answer(query.call, Status.NOT_SERVING, b""))

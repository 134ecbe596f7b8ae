"""What a replica lends to its clients' caches, and what it calls back before a message that contradicts it is
acknowledged. Who holds what is kept by :mod:`mds.caches`; here is what it means for requests and connections.
"""

from __future__ import annotations

from typing import Any

from mds.caches import LEASE_US, Caches
from mds.machine import StateMachine
from mds.namespace.acl import ACCESS
from mds.pending import Pending
from mds.shell import Client, Shell
from vsync.machine import Machine
from wire import messages as msg
from wire import ops
from wire.codec import unpack_untrusted

_NOTHING: frozenset[int] = frozenset()
_ROOT = ops.Cred(0, 0, ())
_MAKES = (ops.Create, ops.Mkdir, ops.Mknod, ops.Symlink, ops.Link)
"""Requests whose answer tells a client of a name and its inode."""


class Lending:
    """See the module."""

    def __init__(self, group: Machine, state: StateMachine, pending: Pending, shell: Shell) -> None:
        self.caches: Caches[Client] = Caches()
        self.state = state
        """Replaced by the replica, when a snapshot replaces its own."""
        self._group = group
        self._pending = pending
        self._shell = shell
        self._stopped = False
        self._departed: list[Client] = []
        """Clients whose connection is gone while their cache lease may still run."""

    # -- lending

    def keep(self, client: Client, number: int) -> None:
        """Extend a client's cache lease, never beyond our own read lease."""
        now = self._shell.now()
        until = min(self._group.read_until(), now + LEASE_US) if client.session and not self._stopped else 0
        epoch = self.caches.renew(client, until)
        client.send(msg.CacheLease(number, epoch, max(0, until - now)))

    def grant(self, client: Client, inodes: frozenset[int]) -> bool:
        """Let the client keep what it is told of *inodes*, which is true now and not about to change."""
        if self._stopped:
            return False
        now = self._shell.now()
        granted = self.caches.grant(client, inodes, now)
        if not granted and (asked := self.caches.too_full(client, now)) is not None:
            who, number = asked
            who.send(msg.Recall(number, (), ()))
        return granted

    def grant_made(
        self, client: Client, op: Any, body: bytes, k: int, uncertain: tuple[int, dict[int, int]] | None
    ) -> bool:
        """Whether the client may keep what its own request, the *k*-th of its message, has told it."""
        if not isinstance(op, _MAKES) or not self.caches.has(client):
            return False
        ino = unpack_untrusted(body)[0]
        if uncertain is not None and (uncertain[0] > k or uncertain[1].get(ino, k) > k):
            return False
        inodes = frozenset((op.parent, ino))
        if self._pending.conflicts(inodes) or not self._group.may_read(self._shell.now()):
            return False  # a message in the log is about to change it
        return self.grant(client, inodes)

    # -- calling back

    def recall(
        self,
        decoded: list[Any],
        touched: frozenset[int] | None,
        requesters: set[Client],
        ticket: int,
    ) -> None:
        """Call back the leases that a message contradicts, from all clients but *requesters*, who know of their own
        request; *touched* (None: not known before it is executed): what its requests, *decoded*, touch."""
        # Who may pass through a directory changes like a name: a kernel does not ask before it walks through.
        names: frozenset[int] = frozenset(
            op.ino
            for op in decoded
            if (isinstance(op, ops.SetAttr) and op.valid & ops.SET_MODE and op.mode & 0o111 != 0o111)
            or (isinstance(op, ops.SetXattr) and op.name == ACCESS)
        )
        if touched is None:
            touched, named = self._resolve(decoded)
            names |= named
        for client, number, inodes in self.caches.recall(touched, requesters, ticket, self._shell.now(), names):
            client.send(msg.Recall(number, inodes, tuple(ino for ino in inodes if ino in names)))

    def _resolve(self, decoded: list[Any]) -> tuple[frozenset[int] | None, frozenset[int]]:
        """(inodes that removals and renames touch, those of them whose names change), if nothing pending can make
        that untrue; else None for the first.

        Enough for caches, not for queries: a message ordered before this one may arrive after it and change what a
        name stands for; that message calls back the caches itself, and no lease is granted while either is pending.
        """
        touched: set[int] = set()
        named: set[int] = set()
        for op in decoded:
            one = self.state.touched(op) if op is not None else _NOTHING
            if one is None:
                names = [(op.parent, op.name)]
                if isinstance(op, ops.Rename):
                    names.append((op.new_parent, op.new_name))
                parents = frozenset(parent for parent, _ in names)
                if not touched.isdisjoint(parents) or self._pending.conflicts(parents):
                    return None, _NOTHING
                one = parents.union(*(self.state.query(ops.Lookup(_ROOT, *name)).read for name in names))
                named |= one - parents
            touched |= one
        return frozenset(touched), frozenset(named)

    # -- the end of it

    def client_left(self, client: Client) -> None:
        """Its connection is gone; it may use what it was lent until its lease has run out."""
        self._departed.append(client)

    def forget_departed(self, now: int) -> None:
        """Drop what is kept of clients that left, where their lease is over."""
        self._departed = [client for client in self._departed if not self.caches.gone(client, now)]

    def stop(self, ticket: int) -> None:
        """This replica is to stop: clients keep nothing any more of what it told them. See :attr:`all_returned`.

        *ticket*: from that on nothing is acknowledged before they have let go. It may contradict what they keep, which
        is not listed any more once it is called back.
        """
        self._stopped = True
        for client, number, inodes in self.caches.recall(None, set(), ticket, self._shell.now()):
            client.send(msg.Recall(number, inodes, ()))

    @property
    def all_returned(self) -> bool:
        """No client relies on anything that it was lent here."""
        return self.caches.held_back(self._shell.now()) is None

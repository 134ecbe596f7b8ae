"""What a replica lends to its clients' caches, and what it calls back before a request that contradicts it is
executed anywhere. Who holds what is kept by :mod:`mds.caches`; here is what it means for requests and connections.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from mds.caches import CLIENTS_MARGIN_US, LEASE_US, Caches
from mds.locksets import Seen, renamed, touched
from mds.namespace.acl import ACCESS
from mds.pending import Pending
from mds.shell import Client, Shell
from vsync.machine import Machine
from wire import messages as msg
from wire import ops
from wire.codec import unpack_untrusted
from wire.delegation import CreateDelegated

_MAKES = (ops.Create, ops.Mkdir, ops.Mknod, ops.Symlink, ops.Link, CreateDelegated)
"""Requests whose answer tells a client of a name and its inode."""


class Lending:
    """See the module."""

    def __init__(self, group: Machine, pending: Pending, shell: Shell) -> None:
        self.caches: Caches[Client] = Caches()
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
        client.send(msg.CacheLease(number, epoch, max(0, until - now - CLIENTS_MARGIN_US)))

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
        # Of its names a client to whom the directory is delegated keeps nothing because of this answer; and more files
        # that it makes there are about to change the directory all the time.
        inodes = frozenset((ino,)) if isinstance(op, CreateDelegated) else frozenset((op.parent, ino))
        if self._pending.conflicts(inodes) or not self._group.may_read(self._shell.now()):
            return False  # a message in the log is about to change it
        return self.grant(client, inodes)

    # -- calling back

    def recall(self, op: Any, seen: Seen | None, requester: Client | None, what: Hashable) -> None:
        """Call back the leases that a request in the log contradicts, from all clients but its *requester*, who knows
        of it; until they have let go, *what* is not to be executed."""
        # Who may pass through a directory changes like a name: a kernel does not ask before it walks through.
        if (isinstance(op, ops.SetAttr) and op.valid & ops.SET_MODE and op.mode & 0o111 != 0o111) or (
            isinstance(op, ops.SetXattr | ops.RemoveXattr) and op.name == ACCESS
        ):
            names = frozenset((op.ino,))
        else:
            names = renamed(op, seen)
        requesters = set() if requester is None else {requester}
        inodes = touched(op, seen)
        for client, number, back in self.caches.recall(inodes, requesters, what, self._shell.now(), names):
            client.send(msg.Recall(number, back, tuple(ino for ino in back if ino in names)))

    # -- the end of it

    def client_left(self, client: Client) -> None:
        """Its connection is gone; it may use what it was lent until its lease has run out."""
        self._departed.append(client)

    def forget_departed(self, now: int) -> None:
        """Drop what is kept of clients that left, where their lease is over."""
        self._departed = [client for client in self._departed if not self.caches.gone(client, now)]

    def stop(self) -> None:
        """This replica is to stop: clients keep nothing any more of what it told them. See :attr:`all_returned`."""
        self._stopped = True
        self.call_back()

    def call_back(self) -> None:
        """Clients are to let go of everything that they were lent so far."""
        for client, number, inodes in self.caches.recall(None, set(), None, self._shell.now()):
            client.send(msg.Recall(number, inodes, ()))

    @property
    def all_returned(self) -> bool:
        """No client relies on anything that it was lent here."""
        return not self.caches.held(self._shell.now())

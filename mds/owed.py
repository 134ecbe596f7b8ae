"""What a replica owes for the sessions attached to it: who was heard when, what they have open, answers for unlinked
inodes that nobody here has open any more, and the end of sessions that are not heard.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

from mds import limits
from mds.handles import Handles
from mds.machine import Outcome, StateMachine
from mds.namespace import quota
from mds.shell import Client, Shell
from wire import ops, quotaops
from wire.codec import unpack_untrusted
from wire.errors import OK

log = logging.getLogger(__name__)

Order = Callable[[Any, Callable[[Outcome], None]], None]
"""How this replica orders something for itself: (operation, who gets the outcome)."""


class Owed:
    """See the module."""

    def __init__(self, me: int, state: StateMachine, shell: Shell, order: Order) -> None:
        self.state = state
        """Replaced by :meth:`replaced`."""
        self.handles = Handles()
        self.heard: dict[int, int] = {}
        """Sessions attached here -> when their client was last heard."""
        self.releases: set[int] = set()
        """Orphans nobody here has open: the answer we owe goes out with the next maintenance round."""
        self.grace_since = shell.now()
        """When the present stretch of being active began: clients had no chance to be heard before."""
        self._coming: dict[int, int] = {}
        """Session -> attempt of its latest attachment here that is not ordered yet: its handles are declared."""
        self._counts = False
        """A QuotaWork of ours is under way."""
        self._me = me
        self._shell = shell
        self._order = order
        self.releases.update(ino for _, outcome in state.taken_up for ino in outcome.orphaned)
        self._unsure = self._unknown_clients(started=True)
        """Sessions whose handles no member may know: their replica left the view, or this one was started again. What
        they may have open is not released before they attach anywhere, or a session timeout is over."""

    def _unknown_clients(self, started: bool) -> set[int]:
        """Sessions attached to no member; when this replica has just *started*, also those attached to it."""
        members = self.state.members
        return {
            number
            for number, session in self.state.sessions()
            if session.replica not in members or (started and session.replica == self._me)
        }

    def replaced(self, state: StateMachine) -> None:
        """Another state took the place of ours: what was counted by the old one is void."""
        self.state = state
        self.handles.clear()
        self.releases = {ino for _, outcome in state.taken_up for ino in outcome.orphaned}
        self._unsure = self._unknown_clients(started=True)

    def new_view(self) -> None:
        """The state knows of a view's members: sessions of those that left may be attached nowhere."""
        self._unsure |= self._unknown_clients(started=False)

    def attached(self, session: int, known: bool) -> None:
        """The session is attached to this replica, which counts its handles from now on; *known*: to this life of it,
        not to an earlier one, and what was open then is not known here."""
        self.heard[session] = self._shell.now()
        if known:
            self._unsure.discard(session)
        else:
            self._unsure.add(session)

    def moved_away(self, session: int, attempt: int) -> None:
        """The session has ended, or is attached to another replica by that *attempt*: its handles are counted there,
        if at all. But not if a later attempt is on its way here: what that one has declared counts, or nobody would
        know of it."""
        self._unsure.discard(session)
        self.heard.pop(session, None)
        if self.coming(session) <= attempt:
            self.releases.update(self.handles.forget(session))

    def coming(self, session: int) -> int:
        """The attempt of its attachment here that is not ordered yet; 0: there is none."""
        return self._coming.get(session, 0)

    def came(self, session: int, attempt: int, stays: bool) -> None:
        """An attachment here was ordered. Unless the session *stays*, its handles were declared in vain."""
        if self._coming.get(session) == attempt:
            del self._coming[session]
            if not stays:
                self.releases.update(self.handles.forget(session))

    def declare(self, session: int, attempt: int, handles: tuple[tuple[int, int], ...]) -> None:
        """The session comes here with these handles. 1. From now on an unlink applied here finds them. 2. Orphans
        among them are pinned before the attachment is ordered: the replica the session came from lets go of them only
        after that."""
        self._coming[session] = attempt
        self.releases.update(self.handles.declare(session, handles))
        pins = tuple(sorted(ino for ino, _ in handles if self.state.is_orphan(ino)))
        for at in range(0, len(pins), limits.ORPHAN_ANSWERS):
            self._order(ops.OrphanAnswer(self._me, (), pins[at : at + limits.ORPHAN_ANSWERS]), lambda outcome: None)

    def close(self, session: int, handles: tuple[tuple[int, int], ...]) -> None:
        for ino, count in handles:
            if self.handles.close(session, ino, count):
                self.releases.add(ino)

    def release(self) -> None:
        """Send the answers this replica owes for unlinked inodes."""
        if self._unsure:
            return
        owed = [i for i in sorted(self.releases) if self.state.is_orphan(i) and not self.handles.is_open(i)]
        self.releases.clear()
        for at in range(0, len(owed), limits.ORPHAN_ANSWERS):
            part = tuple(owed[at : at + limits.ORPHAN_ANSWERS])
            self._order(ops.OrphanAnswer(self._me, part, ()), lambda outcome: None)

    def expire(self, members: tuple[int, ...], lowest: bool, clients: Iterable[Client]) -> None:
        """Expire sessions not heard; the *lowest* member answers for replicas that have left. Time without a view
        never counts: the clocks here start anew when a view becomes active (see :attr:`grace_since`)."""
        now = self._shell.now()
        graced = now - self.grace_since >= limits.SESSION_TIMEOUT_US
        connected = {client.session for client in clients if client.session}
        for number, session in self.state.sessions():
            if session.replica == self._me:
                since = now - self.heard.get(number, self.grace_since)
                expired = number not in connected and since >= limits.SESSION_TIMEOUT_US
            else:
                expired = session.replica not in members and lowest and graced
            if expired and graced:
                log.info("session %d (%s) is expired: not heard of", number, session.client)
                self._order(ops.SessionExpire(number, session.attempt), lambda outcome: None)
        if not graced:
            return
        self._unsure.clear()  # they have expired, or are about to
        self.releases.update(i for i in self.state.orphans_owed(self._me) if not self.handles.is_open(i))
        for debtor in self.state.orphan_debtors():
            if debtor not in members and lowest:
                owed = tuple(self.state.orphans_owed(debtor))[: limits.ORPHAN_ANSWERS]
                log.info("answers for replica %d, which has left: %d unlinked files", debtor, len(owed))
                self._order(ops.OrphanAnswer(debtor, owed, ()), lambda outcome: None)

    def count(self) -> None:
        """While trees wait for being counted in their quotas: order that, one request after the other."""
        if self._counts or not quota.counting(self.state.store):
            return
        self._counts = True

        def done(outcome: Outcome) -> None:
            self._counts = False
            if outcome.status == OK and unpack_untrusted(outcome.body):
                self.count()

        self._order(quotaops.QuotaWork(), done)

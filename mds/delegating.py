"""What delegations (:mod:`wire.delegation`) are in the way of at this replica, and getting them back.

Queries that read a delegated directory wait, and requests that depend on one are kept aside; meanwhile it is recalled.
That is ordered, for the holder may be attached to any replica and be about to attach to another one: wherever it is, it
is asked. One that does not give back in time loses what it was asked for: the first replica of the view sees to that.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any, NamedTuple

from mds import limits, sessions
from mds.batching import Item
from mds.locksets import depends, in_the_way, look, undelegated
from mds.machine import Outcome, StateMachine
from mds.namespace import delegations
from mds.owed import Order
from mds.shell import Client
from wire.delegation import DIRECTORIES_MAX, DelegationRecall, RecallDelegations, RevokeDelegations
from wire.errors import OK

log = logging.getLogger(__name__)

Met = dict[int, int]
"""Delegated directories that are in the way of something -> their holders."""


class _Recalled(NamedTuple):
    """A directory that is recalled, as far as this replica saw it. Times are its own, in microseconds."""

    session: int
    """The holder."""
    recalled: int
    """Since when it is recalled."""
    asked: int
    """Since when the holder can have been asked."""


class Delegating:
    """See the module."""

    def __init__(self, state: StateMachine, order: Order) -> None:
        self.state = state
        """Replaced by the replica, when a snapshot replaces its own."""
        self._order = order
        self.recalls = 0
        """Directories that this replica has asked back."""
        self.revocations = 0
        """Directories that this replica has had taken away from who did not give them back."""
        self._aside: list[tuple[Item, Any, Met]] = []
        """Requests that delegations are in the way of, with their operations."""
        self._wanted: set[int] = set()
        """To be recalled."""
        self._pause = False
        """All delegations are in the way of something."""
        self._asked: set[int] = set()
        """Their recall is ordered and not executed yet."""
        self._looked = -1
        """``state.redelegated`` when :attr:`_aside` was looked through last."""
        self._since: dict[int, _Recalled] = {}
        """By directory: what :meth:`revoke` has seen of those that are recalled."""

    def __len__(self) -> int:
        """Requests that are kept aside."""
        return len(self._aside)

    @property
    def full(self) -> bool:
        """As many are kept aside as may."""
        return len(self._aside) >= limits.QUEUE_REQUESTS

    # -- what waits

    def keep_from(self, session: int, read: Iterable[int]) -> Met:
        """What a query of *session* (0: none) that reads these inodes has to wait for; it is recalled."""
        delegated = self.state.delegated
        if not delegated:
            return {}
        return self._want([ino for ino in read if ino in delegated and delegated[ino][0] != session])

    def still(self, met: Met) -> bool:
        """Whether some of what was met is as it was: then there is no need to look again at what it is in the way of.
        What is left of it is recalled, should it not be."""
        delegated = self.state.delegated
        return bool(self._want([ino for ino, whose in met.items() if ino in delegated and delegated[ino][0] == whose]))

    def is_in_the_way(self, item: Item, op: Any) -> Met:
        """What keeps the request *op* from being executed; it is recalled."""
        state = self.state
        if not state.delegated:
            return {}
        _, session, slot, number, _ = item
        met = in_the_way(state.delegated, session, op, look(state.store, op))
        kept = sessions.reply(state.store, session, slot) if met and session else None
        if kept is not None and number <= kept.number:
            return {}  # it comes again, and its reply is kept
        return self._want(met)

    def _want(self, inodes: list[int]) -> Met:
        met = {}
        for ino in inodes:
            met[ino], recalled = self.state.delegated[ino]
            if not recalled and ino not in self._asked:
                self._wanted.add(ino)
        return met

    def keeps_aside(self, item: Item, op: Any) -> bool:
        """Whether the request waits here until nothing is in its way."""
        met = self.is_in_the_way(item, op)
        if not met:
            return False
        self._put_aside(item, op, met)
        return True

    def again(self, item: Item, op: Any) -> None:
        """It was ordered, and something was in its way when it was to be executed."""
        self._put_aside(item, op, {})
        self._looked = -1

    def _put_aside(self, item: Item, op: Any, met: Met) -> None:
        self._aside.append((item, op, met))
        seen = look(self.state.store, op)
        if depends(op, seen) is None or undelegated(op, seen) is None:
            self._pause = True

    @property
    def busy(self) -> bool:
        """There may be something for :meth:`free` or :meth:`recall`."""
        return bool(self._wanted) or self._pause or (bool(self._aside) and self._looked != self.state.redelegated)

    def free(self) -> list[tuple[Item, Any]]:
        """Requests, with their operations, that nothing is in the way of any more."""
        if self._looked == self.state.redelegated:
            return []
        self._looked = self.state.redelegated
        aside, self._aside = self._aside, []
        going = []
        for item, op, before in aside:
            if self.still(before):
                self._aside.append((item, op, before))
            elif met := self.is_in_the_way(item, op):
                self._put_aside(item, op, met)  # other directories have been delegated since: with a pause again
            else:
                going.append((item, op))
        return going

    def clear(self) -> None:
        """Whoever waits for what is here has been told to ask elsewhere."""
        self._aside.clear()
        self._looked = -1  # another state counts anew
        self._pause = False
        self._wanted.clear()
        self._asked.clear()

    # -- getting it back

    def recall(self) -> None:
        """Have what is wanted recalled."""
        pause, self._pause = self._pause, False
        delegated = self.state.delegated
        wanted = sorted(self._wanted)[:DIRECTORIES_MAX]
        self._wanted.difference_update(wanted)
        # What has been given back meanwhile is left out.
        parents = tuple(ino for ino in wanted if not delegated.get(ino, (0, True))[1])
        if pause:
            parents = tuple(sorted(delegated))
        if not parents:
            return

        def done(outcome: Outcome) -> None:
            # Executed or not: what is still needed is asked for again when that is looked at.
            self._asked.difference_update(parents)
            self._looked = -1

        self._asked.update(parents)
        self.recalls += len(parents)
        self._order(RecallDelegations(parents, pause), done)

    def tell(self, clients: Iterable[Client], op: RecallDelegations | RevokeDelegations) -> None:
        """The holders that are attached here are told that it was executed."""
        if isinstance(op, RevokeDelegations):
            whose = dict(op.delegations)
        else:
            whose = {ino: now[0] for ino in op.parents if (now := self.state.delegated.get(ino)) is not None}
        for client in clients:
            own = tuple(sorted(ino for ino, session in whose.items() if session == client.session))
            if own:
                client.send(DelegationRecall(own))

    def attached(self, client: Client) -> None:
        """A session is attached here: it is asked for what is recalled, and for what has been taken away from it while
        it was nowhere. It is told before it gets a cache lease here, without which it answers nothing by itself."""
        if not client.session:
            return
        recalled = {ino for ino, now in self.state.delegated.items() if now == (client.session, True)}
        recalled.update(delegations.holder(self.state.store, client.session).revoked)
        if recalled:
            client.send(DelegationRecall(tuple(sorted(recalled))))

    def revoke(self, now: int, lowest: bool) -> None:
        """Take away what is overdue, if this replica is the *lowest* of the view, which does that for all."""
        if not lowest:
            self._since.clear()
            return
        since = {}
        late = []
        for ino, (session, recalled) in self.state.delegated.items():
            if recalled:
                since[ino] = one = self._waited_for(ino, session, now)
                if (
                    now - one.asked >= limits.DELEGATION_REVOKE_US
                    or now - one.recalled >= limits.DELEGATION_REVOKE_AWAY_US
                ):
                    since[ino] = _Recalled(session, now, now)  # should this come to nothing
                    late.append((ino, session))
        self._since = since
        if not late:
            return

        def done(outcome: Outcome) -> None:
            if outcome.status == OK:
                self.revocations += len(late)

        for ino, session in sorted(late):
            log.warning("session %d does not give directory %d back: it is taken away", session, ino)
        self._order(RevokeDelegations(tuple(sorted(late))), done)

    def _waited_for(self, ino: int, session: int, now: int) -> _Recalled:
        """For how long the holder *session* of *ino* has had the time to answer.

        1. The replica that it is attached to is cut off. 2. The others go on without it, and somebody asks for the
        directory. 3. The holder has noticed nothing: it has made files, and has them ordered when it is attached again.
        So time counts from when it is attached to a member of the view, which asks it there and then.
        """
        known = self._since.get(ino)
        if known is None or known.session != session:
            return _Recalled(session, now, now)
        holder = self.state.session(session)
        away = holder is not None and holder.replica not in self.state.members
        return known._replace(asked=now) if away else known

    def new_view(self) -> None:
        """Time without a view does not count: holders may have been without a replica to answer to."""
        self._since.clear()

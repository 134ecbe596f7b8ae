"""Pure. What the parts of the group machine share: who we are, what is durable, what is active."""

from __future__ import annotations

from random import Random
from typing import Any, Final

from vsync import limits
from vsync.detector import Detector
from vsync.effects import Effects, Roster
from vsync.history import History
from vsync.leases import UNKNOWN, Leases
from vsync.order import Level, Order
from vsync.records import Durable
from vsync.register import Acceptor
from vsync.view import Position, pack_views
from wire.group import Heartbeat, View, Views


class Stranger(Exception):
    """A peer has said what nobody of our group can say; the text tells what."""


class Core:
    """Shared state of one replica's group machine. The parts change it only through the methods here or own it."""

    def __init__(
        self,
        me: int,
        replicas: tuple[int, ...],
        durable: Durable,
        position: Position,
        rng: Random,
        now: int,
        lent: int,
        level: Level,
    ) -> None:
        assert me in replicas
        self.me = me
        self.roster: Roster | None = None
        """Who may be a member and who shall vote; None: whoever is one, and does, already."""
        self.leaving = False
        """We are to stop, and want to be left out."""
        self.withheld = False
        """See :meth:`vsync.machine.Machine.withhold`."""
        self.linked: set[int] = set()
        """Replicas and witnesses with a standing connection, whether they are of interest or not."""
        self.strangers: set[int] = set()
        """Peers that have shown to be of another group: for as long as this process lives they are not listened to."""
        self.level = level
        self._first = tuple(sorted(replicas))
        self.rng = rng
        self.incarnation = durable.incarnation
        self.history = History(durable.views, durable.entries, position)
        self.acceptor = Acceptor(durable.registers)
        self.amnesiac = position.index < durable.trimmed
        """The state was lost, or replaced by an older one, and the journal does not reach back to it: we cannot show
        what we acknowledged. We vote, but report nothing ("flushed" and "not flushed" would both be untrue) until a
        snapshot has given us a state again."""
        oldest = position.epoch - limits.VIEWS_KEPT
        self.flushed = {e for e in durable.flushed if e >= oldest or e == max(durable.flushed)}
        self.flushed_durable = max(self.flushed, default=-1)
        """Highest epoch whose flush is on disk: what we may tell."""
        # A restarted process never resumes an epoch [10-group: Views]: it is sealed above all it flushed.
        self.sealed = max(durable.sealed, max(self.flushed, default=-1) + 1, max(durable.views, default=0))
        self.leases = Leases(lent)
        self.lent_before_until: Final = now + lent
        """What an earlier life of this replica lent to clients has run out then. Nobody can call it back."""
        self.lent_until = self.lent_before_until
        """What this replica, in this life or an earlier one, lent to clients has run out then."""
        self.hold_until = self.lent_until
        """No view is activated before: clients of a replica left out, or of our earlier life, may still read."""
        self._owe_for_earlier_life(durable, position, now)
        self.order: Order | None = None
        self.replicas: tuple[int, ...] = ()
        """Whom we talk to, ourselves included: see :meth:`acquaint`."""
        self.others: list[int] = []
        self.concerned: frozenset[int] = frozenset()
        """Members of a view that may yet be the base of the next."""
        self.detector = Detector([])
        self.acquaint()
        self.ticket = 0
        self.durable_ticket = 0
        self.holding = False
        """Clients of this replica may still use what something in the log contradicts (see vsync.holds)."""
        self.out = Effects()

    def _owe_for_earlier_life(self, durable: Durable, position: Position, now: int) -> None:
        """A restarted process does not know whom it promised what, nor since when it waited: everything anew.

        In views before the one that the state is in nothing is left to wait for: that one was active somewhere, so who
        was left out on the way there read nothing any more.
        """
        for view in durable.views.values():
            if view.epoch < position.epoch:
                continue
            if view.epoch in self.flushed:
                for peer in view.members:
                    if peer != self.me:
                        self.leases.owe(peer, UNKNOWN, now + limits.LEASE, now)
            if self.me in view.members:
                self.observe(view, now)

    def observe(self, view: View, now: int) -> None:
        """We are a member of *view*: what it holds and owes binds us, also in the views after it."""
        self.hold_until = max(self.hold_until, now + view.hold_ms * limits.MS)
        for peer, incarnation, left in view.owed:
            self.leases.owe(peer, incarnation, now + left * limits.MS, now)

    # -- derived

    @property
    def newest(self) -> View:
        """The last decided view we know."""
        return self.history.newest

    @property
    def active(self) -> Order | None:
        """The order of the view we are active in, or None: none yet, sealed, or a newer one is decided."""
        order = self.order
        return order if order is not None and self.sealed <= order.epoch else None

    @property
    def outside(self) -> bool:
        """Not a member of the newest view known."""
        return self.me not in self.newest.members

    @property
    def newcomer(self) -> bool:
        """Never was in any view and has no state: only a snapshot will do."""
        return not self.flushed and self.history.index == 0

    def may_be_member(self, replica: int) -> bool:
        return self.roster is None or replica in self.roster.replicas

    def acquaint(self) -> None:
        """Talk to the replicas of the roster, and to the members of every view that may yet be the base of the next."""
        views = self.history.views
        since = min(self.history.epoch, self.newest.base)
        self.concerned = frozenset(m for e, v in views.items() if e >= since for m in v.members)
        replicas = self.roster.replicas if self.roster is not None else self._first
        self.replicas = tuple(sorted({self.me, *replicas, *self.concerned}))
        self.others = [r for r in self.replicas if r != self.me]
        self.detector.watch(self.others, self.linked)

    def forget_views(self) -> None:
        """Drop the decided views that are needed no more.

        A replica that is left out and not fed is told of one after the other, for as long as that lasts: it keeps the
        chain to what it holds, the last view it has flushed, and comes to what follows by a feed. Without a state it
        holds nothing.
        """
        if self.history.overfull:
            tips = [] if self.amnesiac else [max(self.flushed, default=-1)]
            if not self.outside:
                tips.append(self.newest.epoch)
            self.history.forget(tips)

    def seal(self, epoch: int, now: int) -> None:
        """Nothing more is done in any epoch below: what is lent by now runs out, and no more is lent."""
        order = self.active
        if order is not None and not self.leaving:
            self.lent_until = max(self.lent_until, min(self.leases.valid_until(order.peers), now + self.leases.lent))
        self.sealed = max(self.sealed, epoch)

    def leave(self, now: int) -> None:
        """This replica is to stop. What it lent is back, also what it lent before an earlier seal: see ``Leave``.

        What an earlier life lent nobody has called back: ``hold_until`` knows of that.
        """
        self.leaving = True
        self.lent_until = min(self.lent_until, now)

    def rank(self) -> int:
        """Our place among the replicas that can act now: rank 0 acts at once, the others a little later."""
        return sum(1 for r in self.others if r < self.me and self.detector.hears(r))

    # -- whom we listen to

    def check(self, view: View) -> None:
        """Raises :class:`Stranger` if *view*, told by a peer, contradicts what is decided here."""
        why = self.history.contradiction(view)
        if why is not None:
            raise Stranger(why)

    def refuse(self, peer: int, why: str) -> None:
        """*peer* is of another group: nothing of what it says is taken in any more, and it is told nothing.

        Told nothing, because it may not see by what we say that we are strangers: 1. Of two that were forced to go on,
        one is some views ahead. 2. It knows the epoch that the other is active in, and the other does not know its.
        3. The next view it decides would be learned by the other, which would stop.

        How that comes about: a new replica was started without ``joins = true`` and has made a first view of its own;
        or two replicas were forced to go on, each of them alone. Whatever they decided is no view of ours, and were
        they listened to, they could vote, and decide, among us.
        """
        assert peer != self.me, why
        self.strangers.add(peer)
        self.note(
            f"refuses replica {peer} from now on, it is of another group: {why}. A replica that joins a cluster needs "
            "joins = true from its first start; of two that were forced to go on one has to be replaced"
        )

    # -- effects

    def send(self, peer: int, message: Any) -> None:
        if peer not in self.strangers:
            self.out.send.append((peer, message))

    def after(self, peer: int, message: Any) -> None:
        """Send when everything recorded so far is on disk."""
        if peer not in self.strangers:
            self.out.after.append((peer, message))

    def note(self, text: str) -> None:
        self.out.notes.append(text)

    def tell_views(self, peer: int, known: int) -> None:
        """Send *peer* the decided views above the epoch it knows, and that one (it may know it from hearsay)."""
        views = [v for e, v in sorted(self.history.views.items()) if e >= known]
        if views:
            self.send(peer, Views(pack_views(views)))

    def heartbeat(self, now: int) -> Heartbeat:
        """What we have to say of ourselves now."""
        order = self.active
        hears = tuple(r for r in self.replicas if r == self.me or self.detector.hears(r))
        active = order.epoch if order is not None else -1
        # "Flushed" says that nothing here contradicts what comes before the view (vsync.holds). 1. A member holds a
        # message, decides a view that it is in, and flushes that. 2. Before it says so it is killed, and starts again
        # at once. 3. It knows of no loan, so it holds nothing; the flush is in its journal, or soon will be. 4. Clients
        # go on reading what they keep. The view leaves nobody out, so no promise binds the others: all that they wait
        # for is this word. Views decided later have the same time in their hold, since we report it (hold_until).
        flushed = self.flushed_durable if now >= self.lent_before_until else -1
        common = (self.history.known_to, active, self.sealed, flushed, now, self.history.index)
        if order is None:
            return Heartbeat(*common, 0, 0, (), (), (), hears, self.incarnation)
        return Heartbeat(
            *common,
            order.clock,
            order.own,
            tuple(order.received),
            tuple(order.durable[order.mine]),
            tuple(order.delivered),
            hears,
            self.incarnation,
            *order.holds.own(),
        )

    def beat(self, now: int) -> None:
        """Heartbeat to every other replica."""
        message = self.heartbeat(now)
        for peer in self.others:
            self.send(peer, message)

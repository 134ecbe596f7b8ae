"""Pure. The group machine of one metadata replica: dispatches events to its parts, collects their effects.

One way in, :meth:`Machine.step`; one way out, the effects it returns.  Parts: vsync.order (total order in a
view), vsync.change (coordinator), vsync.membership (the roster), vsync.flush (learn, flush, activate), vsync.transfer
(learners), vsync.suspicion, vsync.register (votes), vsync.leases, vsync.detector, vsync.history (the log).
"""

from __future__ import annotations

from collections import deque
from random import Random
from typing import Any

from vsync import effects as ev
from vsync import limits
from vsync.change import Change
from vsync.core import Core, Stranger
from vsync.effects import Effects, Event, ViewEvent
from vsync.flush import Flush
from vsync.membership import Membership, Standing
from vsync.order import Level, Order
from vsync.records import Durable, Sealed
from vsync.suspicion import Suspicion
from vsync.transfer import Transfer
from vsync.view import START, Position, describe_epoch, generation_of, unpack_view_untrusted
from wire.errors import WireError
from wire.group import (
    CHANNEL_OF,
    Accept,
    Accepted,
    Ack,
    Content,
    Data,
    Feed,
    FeedAck,
    Fetch,
    Grant,
    Heartbeat,
    Join,
    Obituary,
    Prepare,
    Promise,
    Seal,
    SealReport,
    Stored,
    View,
    Views,
)


class Machine:
    """Group communication for replica *me* of *replicas*, from what its journal and its state hold."""

    def __init__(
        self,
        me: int,
        replicas: tuple[int, ...],
        durable: Durable,
        position: Position = START,
        *,
        rng: Random,
        now: int,
        lent: int = 0,
        level: str = Level.SAFE,
    ) -> None:
        """*lent*: how long (us) a client may, at most, go on reading what its replica lent it (see :meth:`read_until`)
        when that replica has been sealed or has ended. *level*: see vsync.order; only safe keeps all promises."""
        self.core = Core(me, replicas, durable, position, rng, now, lent, Level(level))
        self.membership = Membership(self.core)
        self.change = Change(self.core, self.membership, now)
        self.flush = Flush(self.core)
        self.transfer = Transfer(self.core, now)
        self.suspicion = Suspicion(self.core, self.change)
        self._next_tick = now
        self._handed: deque[tuple[int, int, list[int]]] = deque()
        """(ticket, epoch, received) of log records handed over and not on disk yet."""
        self._buffered: list[tuple[int, Any]] = []
        self._resent: dict[int, int] = {}
        """Member -> what it had of ours when it was last told in a heartbeat."""
        self._tell_at: int | None = None
        """When to tell the others that own messages are delivered, unless a message does so before."""

    # -- what the shell asks

    @property
    def active_view(self) -> int | None:
        """Epoch of the view this replica is active in, or None."""
        order = self.core.active
        return order.epoch if order is not None else None

    @property
    def may_submit(self) -> bool:
        """A Submit is accepted now: active, and not too many of our messages under way."""
        order = self.core.active
        return order is not None and order.in_flight < limits.IN_FLIGHT and not self.core.withheld

    def may_read(self, now: int) -> bool:
        """Queries may be answered at *now*: every other member has promised to be in no view without us.

        *now* must have been read after the query arrived.
        """
        order = self.core.active
        return order is not None and self.core.leases.valid(order.peers, now) and not self.core.withheld

    def hear_each_other(self, peer: int) -> bool:
        """Whether we hear *peer* and it hears us, by its last heartbeat. True for those of whom nothing is known."""
        detector = self.core.detector
        if peer in self.core.strangers or peer in self.transfer.snapshots:
            # The first is not listened to: a new connection would be as silent. The second may be busy with what it is
            # sent, and would have to be sent all of it again; that it takes nothing any more is noticed by who sends.
            return True
        return peer not in detector.peers or detector.hear_each_other((self.core.me,), peer)

    def read_until(self) -> int:
        """Until when clients may be allowed to read by themselves: as long as :meth:`may_read` will say yes if nothing
        happens. In the past when it says no, or when this replica is about to leave."""
        order = self.core.active
        if order is None or self.core.leaving or self.core.withheld:
            return 0
        return self.core.leases.valid_until(order.peers)

    def withhold(self, state: bool) -> None:
        """While the shell does not trust its *state*, nothing is read, submitted or copied here. All else goes on."""
        self.core.withheld = state

    @property
    def may_stop(self) -> bool:
        """After Leave: the others are active in a view without this replica, or there is nobody to go on."""
        core = self.core
        view = core.newest
        heard = [said for p in view.members if p != core.me and (said := core.detector.last(p)) is not None]
        return core.leaving and (not heard or (core.outside and any(m.active >= view.epoch for m in heard)))

    def standing(self) -> Standing:
        """How far the view is on its way to the roster."""
        return self.membership.standing()

    def may_install(self, position: bytes) -> bool:
        """A snapshot taken at *position* (packed) is of use still: asked before the state is replaced.

        It may have been long on its way: this replica may be a member again, or further than the snapshot.
        """
        there, here = Position.unpack_untrusted(position), self.core.history.position()
        further = (generation_of(there.epoch), there.index) > (generation_of(here.epoch), here.index)
        return self.transfer.learning and further

    def awaits_return(self, now: int) -> list[tuple[int, int]]:
        """(peer, incarnation) of the dead for whom the newest view waits because of what they lent: see Returned."""
        return self.flush.awaits_return(now)

    def next_deadline(self) -> int:
        """When to step Tick, at the latest."""
        deadlines = [self._next_tick, self.change.deadline, self.flush.waits_until(), self._tell_at]
        return min(d for d in deadlines if d is not None)

    def position(self) -> Position:
        """How far history is delivered: to be stored with the state, in the same transaction as its effects."""
        return self.core.history.position()

    # -- the one way in

    def step(self, event: Event, now: int) -> Effects:
        """Take one event at time *now* (us, never going back). Returns what the shell has to do."""
        core = self.core
        out = core.out = Effects()
        match event:
            case ev.Received(peer, message):
                self._received(peer, message, now)
            case ev.DurableUpTo(ticket):
                self._durable(ticket, now)
            case ev.Holding(parts):
                self._hold(parts, now)
            case ev.Submit(payload):
                order = core.active
                assert order is not None and self.may_submit, "the shell asks may_submit first"
                assert len(payload) <= limits.BATCH_BYTES
                order.multicast(payload, out)
            case ev.Tick():
                self._tick(now)
            case ev.LinkUp(peer):
                self._link_up(peer, now)
            case ev.LinkDown(peer):
                self._link_down(peer, now)
            case ev.SnapshotInstalled(position, views):
                assert self.may_install(position), "the shell asks may_install first"
                self._learn(views, now)
                self.transfer.installed(Position.unpack_untrusted(position), now)
            case ev.SnapshotSent(peer):
                self.transfer.snapshots.discard(peer)
            case ev.ChangeView(reason):
                self.change.start(reason, now)
            case ev.Roster():
                core.roster = event
                core.acquaint()
            case ev.Leave():
                if not core.leaving:
                    core.leave(now)
                self._leave(now)
            case ev.Died(peer, incarnation):
                self._died(peer, incarnation, now)
            case ev.Returned(peer, incarnation):
                if (peer, incarnation) in self.awaits_return(now):  # else it has been waited for meanwhile
                    core.leases.returned(peer, incarnation)
                    core.note(f"nothing is used any more of what replica {peer} lent")
            case ev.ForceView():
                self._force(now)
        self._loop_back(now)
        self._settle(now)
        if out.records:
            core.ticket += 1
            order = core.active
            if order is not None:
                if len(self._handed) >= limits.HANDED:
                    self._handed.pop()  # the later ticket implies it
                self._handed.append((core.ticket, order.epoch, list(order.received)))
        out.ticket = core.ticket
        return out

    def _loop_back(self, now: int) -> None:
        """What the parts sent to this replica itself is received at once."""
        out = self.core.out
        while out.send:
            own = [m for peer, m in out.send if peer == self.core.me]
            if not own:
                return
            out.send = [item for item in out.send if item[0] != self.core.me]
            for message in own:
                self._received(self.core.me, message, now)

    def _settle(self, now: int) -> None:
        """What may have become possible by this step: flush, activation, a buffered frame, the feeds."""
        core = self.core
        order = core.active
        if order is None or not order.untold:
            self._tell_at = None
        elif self._tell_at is None:
            self._tell_at = now + limits.TELL_DELIVERED
        if core.active is None:
            self.flush.tick(now)
            if self.flush.activate(now):
                self._activated(now)
        for item in core.out.history:
            if isinstance(item, ViewEvent):
                self.transfer.on_view(item, now)
        if core.out.history and self.transfer.learners:
            self.transfer.push_all()
        core.forget_views()

    def _activated(self, now: int) -> None:
        core = self.core
        self.change.activated()
        self._handed.clear()
        self._resent.clear()
        self.suspicion.activated()
        core.beat(now)
        self.membership.tell_witnesses()
        buffered, self._buffered = self._buffered, []
        for peer, message in buffered:
            self._received(peer, message, now)

    # -- messages

    def _received(self, peer: int, m: Any, now: int) -> None:
        core = self.core
        if peer in core.strangers:
            return
        if peer in core.detector.peers and type(m) not in CHANNEL_OF:
            core.detector.heard(peer)  # on the connection that views are changed over: others may work when it does not
        try:
            self._dispatch(peer, m, now)
        except Stranger as exc:
            core.refuse(peer, str(exc))
        except WireError as exc:
            # Parts change state and record it together, so what was done up to here stands.
            core.note(f"ignored the rest of a {type(m).__name__} from {peer}: {exc}")

    def _dispatch(self, peer: int, m: Any, now: int) -> None:
        core = self.core
        match m:
            case Ack() | Data():
                self._on_ordered(peer, m)
            case Heartbeat():
                self._on_heartbeat(peer, m, now)
            case Grant():
                order = core.active
                if order is not None and m.epoch == order.epoch and m.stamp <= now and peer in order.at:
                    core.leases.hold(peer, m.stamp)
            case Seal():
                self._on_seal(peer, m, now)
            case SealReport():
                self.change.on_report(peer, m, now)
            case Views():
                self._learn(m.views, now)
                if core.outside:
                    # We may be a voter still, removed from the roster with others: like a witness we say that we are
                    # there and know the view, or the next step of the voters never finds its majority.
                    core.after(peer, Stored(core.newest.epoch))
            case Prepare() | Accept() if m.epoch <= core.newest.epoch:
                core.tell_views(peer, m.epoch)  # who knows the view does not vote on it again, see vsync.membership
            case Prepare():
                core.acceptor.on_prepare(peer, m, core.out)
            case Promise():
                self.change.on_promise(peer, m, now)
            case Accept():
                core.acceptor.on_accept(peer, m, core.out)
            case Accepted():
                view = self.change.on_accepted(peer, m)
                if view is not None:
                    before = core.newest
                    self._learned(view, now)
                    self.membership.announce(view, before, durable=True)
            case Stored():
                self.membership.on_stored(peer, m)
            case Obituary():
                self._died(m.replica, m.incarnation, now)
            case Fetch():
                self.flush.on_fetch(peer, m)
            case Content():
                self.flush.on_content(m, now)
            case Join():
                self.transfer.on_join(peer, m, now)
            case Feed():
                self.transfer.on_feed(peer, m, lambda view: self._fed(view, now), now)
            case FeedAck():
                self.transfer.on_feed_ack(peer, m)
            case _:
                core.note(f"ignored a {type(m).__name__} from {peer}: not a group message")

    def _on_ordered(self, peer: int, m: Data | Ack) -> None:
        core = self.core
        order = core.order
        if order is None or m.epoch != order.epoch:
            coming = m.epoch == core.newest.epoch and m.epoch in core.flushed and core.sealed <= m.epoch
            if coming and len(self._buffered) < limits.BUFFERED:
                self._buffered.append((peer, m))  # the sender is active already, we are about to be
            return
        if peer not in order.at:
            return
        if isinstance(m, Data):
            if core.sealed > m.epoch:
                return  # sealed: nothing more enters this epoch's log
            order.on_data(peer, m, core.out)
        else:
            # A sealed member may still deliver what becomes stable by late acknowledgements: it is inside any cut.
            order.on_ack(peer, m)
        order.deliver(core.out)

    def _durable(self, ticket: int, now: int) -> None:
        core = self.core
        core.durable_ticket = max(core.durable_ticket, ticket)
        order = core.active
        newest: list[int] | None = None
        while self._handed and self._handed[0][0] <= ticket:
            _, epoch, received = self._handed.popleft()
            if order is not None and epoch == order.epoch:
                newest = received
        if order is not None and newest is not None:
            if newest != order.durable[order.mine]:
                order.on_durable(newest)
                waiting = order.awaiting()
                if waiting:
                    ack = order.ack()
                    for peer in waiting:
                        core.send(peer, ack)
            order.deliver(core.out)
        if not core.holding:
            self.flush.on_durable(ticket, now)

    def _hold(self, parts: frozenset[tuple[int, int, int, int]], now: int) -> None:
        core = self.core
        order = core.order
        if order is not None:
            order.hold(frozenset(part[1:] for part in parts if part[0] == order.epoch), core.out)
            order.deliver(core.out)
        core.holding = bool(parts)
        if not parts:
            # With the flush of a view we say that we hold nothing that comes before it.
            self.flush.on_durable(core.durable_ticket, now)

    def _on_heartbeat(self, peer: int, m: Heartbeat, now: int) -> None:
        core = self.core
        if peer not in core.detector.peers:
            # A new replica of whom our state does not know yet, or one that is removed and has to learn that it is.
            core.tell_views(peer, m.top)
            core.send(peer, core.heartbeat(now))
            return
        view = core.history.views.get(m.active)
        if view is not None and peer not in view.members:
            raise Stranger(f"it is active in view {describe_epoch(m.active)}, which here is {view}")
        core.detector.said(peer, m)
        if m.top < core.newest.epoch:
            core.tell_views(peer, m.top)
        self.flush.heard_flushed(peer, m.flushed)
        order = core.active
        if order is None or m.active != order.epoch or peer not in order.at:
            return
        if core.newest.epoch == order.epoch and core.leases.grant(peer, m.incarnation, now):
            core.send(peer, Grant(order.epoch, m.stamp))
        order.on_ack(peer, m)
        got = m.received[order.mine] if len(m.received) == len(order.members) else order.own
        if got < order.own and self._resent.get(peer) == got:
            # Twice the same: not on its way but lost, with a link that broke.
            order.resend(peer, got, limits.CONTENT_BYTES, core.out)
        self._resent[peer] = got
        if not core.leases.valid([peer], now):
            core.send(peer, core.heartbeat(now))  # it is active: ask for its promise now, not a tick later
        order.deliver(core.out)

    def _on_seal(self, peer: int, m: Seal, now: int) -> None:
        core = self.core
        self._learn(m.views, now)
        if core.newest.epoch >= m.epoch:
            core.tell_views(peer, m.epoch)
            return
        if m.epoch > core.sealed:
            core.seal(m.epoch, now)
            core.out.records.append(Sealed(m.epoch))
            core.note(f"sealed below view {describe_epoch(m.epoch)} for replica {peer}: {m.reason}")
        if peer != core.me:
            self.change.yield_to(peer, m.epoch)
        self.change.progress(now)
        if not core.amnesiac:
            core.after(peer, self._report(m.epoch, now))

    def _report(self, epoch: int, now: int) -> SealReport:
        core = self.core
        received = tuple((e, tuple(sorted(t.items()))) for e, t in sorted(core.history.tops().items()) if e >= 0)
        promises = tuple((peer, inc, _ms(until - now)) for peer, inc, until in core.leases.promises(now))
        hears = tuple(r for r in core.replicas if r == core.me or core.detector.hears(r))
        hold = _ms(max(0, core.hold_until - now))
        flushed = tuple(sorted(core.flushed))
        lent = _ms(max(0, core.lent_until - now))
        return SealReport(
            epoch, flushed, received, promises, hold, core.history.index, hears, lent, core.leaving
        )

    # -- views

    def _learn(self, views: tuple[Any, ...], now: int) -> None:
        unpacked = sorted((unpack_view_untrusted(v) for v in views), key=lambda v: v.epoch)
        for view in unpacked:
            self.core.check(view)
        for view in unpacked:
            self._learned(view, now)

    def _fed(self, view: View, now: int) -> None:
        self.core.check(view)
        self._learned(view, now)

    def _learned(self, view: View, now: int) -> None:
        if self.flush.learn(view, now):
            self.change.abandon_below(self.core.newest.epoch)
            self.change.progress(now)
            self._buffered = [(p, m) for p, m in self._buffered if m.epoch == self.core.newest.epoch]
            if self.core.outside:
                self.core.detector.left_out()

    def _force(self, now: int) -> None:
        view = self.change.forced()
        if isinstance(view, str):
            self.core.note(f"no view is forced: {view}")
            return
        before = self.core.newest
        self.core.note(f"view {describe_epoch(view.epoch)} of replica {self.core.me} alone is forced")
        self._learned(view, now)
        self.membership.announce(view, before, durable=False)

    def _leave(self, now: int) -> None:
        """Ask the others to go on without us: at once, and again until they do."""
        core = self.core
        order = core.active
        if order is not None and self.change.attempt is None and any(core.detector.hears(p) for p in order.peers):
            self.change.start("this replica is to stop", now)

    def _died(self, peer: int, incarnation: int, now: int) -> None:
        if self.core.leases.died(peer, incarnation, now):
            self.core.note(f"replica {peer} is certified to be dead up to incarnation {incarnation}")

    # -- links and time

    def _link_up(self, peer: int, now: int) -> None:
        core = self.core
        core.linked.add(peer)
        if peer not in core.detector.peers:
            if core.active is not None:
                self.membership.tell_witnesses()
            return  # a witness, or a replica that is not of interest yet
        core.detector.link_up(peer)
        core.send(peer, core.heartbeat(now))

    def _link_down(self, peer: int, now: int) -> None:
        core = self.core
        core.linked.discard(peer)
        self.transfer.forget(peer)
        self.membership.forget(peer)
        if peer in core.detector.peers:
            core.detector.link_down(peer)
            self.suspicion.look(now)

    def _tick(self, now: int) -> None:
        core = self.core
        order = core.active
        if order is not None and self._tell_at is not None and now >= self._tell_at:
            order.told = order.delivered[order.mine]
            ack = order.ack()
            for peer in order.peers:
                core.send(peer, ack)
        if now >= self._next_tick:
            self._next_tick = now + limits.HEARTBEAT
            core.detector.tick()
            core.beat(now)
            self.suspicion.look(now)
            self.transfer.tick(now)
            if core.active is not None:
                self.membership.tell_witnesses()
        self.change.tick(now)
        if core.active is not None and self.change.attempt is None:
            self._tick_active(core.active, now)

    def _tick_active(self, order: Order, now: int) -> None:
        """Planned changes of the view: we leave, the roster is another, a learner is to be taken in."""
        core = self.core
        if core.leaving:
            self._leave(now)
            return
        joiner = self.transfer.ready(now)
        reason = self.membership.reason(order, now)
        if joiner:
            self.transfer.try_to_take(joiner)
            self.change.start(f"learner {joiner} has caught up", now, joiner)
        elif reason is not None:
            self.change.start(reason, now)

    # -- checks

    def validate(self) -> None:
        """Assert what holds after every step (tests and simulation call it)."""
        core = self.core
        core.history.validate()
        assert core.sealed >= core.newest.epoch or core.newest.epoch == 0, "learning a view seals what came before"
        assert core.flushed_durable <= max(core.flushed, default=-1)
        order = core.active
        if order is not None:
            assert order.epoch == core.newest.epoch == core.history.epoch, "active in the newest view only"
            assert order.epoch in core.flushed and core.me in order.members
            order.validate()
        assert len(self._buffered) <= limits.BUFFERED
        assert len(self.transfer.learners) <= limits.LEARNERS and len(self.transfer.snapshots) <= limits.SNAPSHOTS
        assert len(self._handed) <= limits.HANDED
        assert list(core.detector.peers.keys() - set(core.others)) == [], "whom we do not talk to is not watched"
        assert set(core.newest.members) <= set(core.replicas), "members are talked to"
        for learner in self.transfer.learners.values():
            assert learner.acked <= learner.next <= core.history.index
            assert learner.waiting_bytes <= limits.FEED_WINDOW_BYTES


def _ms(us: int) -> int:
    """Microseconds as milliseconds, rounded up: a promise is never reported shorter than it is."""
    return -(-us // limits.MS)

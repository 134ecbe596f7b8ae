"""One metadata replica: group member + state machine + session server, glued together without any waiting.

Everything here happens in one thread and returns at once; what blocks or waits is done by :mod:`mds.serve`
through the :class:`Shell` it passes.  The life of a request: :meth:`Replica.client_message` queues it,
:meth:`_submit_batch` multicasts it, the group delivers it, :meth:`_apply` executes it and answers.
"""

from __future__ import annotations

import errno
import logging
from collections import deque
from functools import partial
from typing import Any

from mds import limits
from mds.answering import Answering, Done
from mds.asked import admin_untrusted, request_untrusted
from mds.batch import Decoded, decode_batch, entries_untrusted
from mds.batching import Batching, Item
from mds.borrowers import Borrowers
from mds.capabilities import Signer
from mds.comparing import Comparing
from mds.delegating import Delegating
from mds.lending import Lending
from mds.locksets import seen_untrusted, touched_by, touched_of
from mds.machine import Outcome, StateMachine
from mds.namespace.roster import Roster
from mds.owed import Owed
from mds.pending import Key, Pending, changed_later
from mds.reading import Reading
from mds.schedule import Schedule
from mds.shell import Client, Shell
from mds.telling import view_changed
from vsync import effects as ev
from vsync.effects import Delivered, Effects, Event, ViewEvent
from vsync.machine import Machine
from vsync.records import Entry
from vsync.view import generation_of
from wire import ids, ops
from wire import messages as msg
from wire.codec import encode, pack, unpack_untrusted
from wire.delegation import RecallDelegations, RevokeDelegations
from wire.errors import OK, Status
from wire.group import LetGo

log = logging.getLogger(__name__)


class Replica:
    """See the module."""

    def __init__(self, me: int, group: Machine, state: StateMachine, shell: Shell, tie: str = "") -> None:
        self.me = me
        self.group = group
        self.state = state
        self.shell = shell
        self.pending = Pending()
        self.schedule = Schedule(state)
        self.lending = Lending(group, self.pending, shell)
        self.caches = self.lending.caches
        self.owed = Owed(me, state, shell, self.internal)
        self.handles = self.owed.handles
        self.signer = Signer(state, shell.stamp_ns)
        self.delegating = Delegating(state, self.internal)
        lent = self.pending, self.handles, self.lending, self.signer, self.delegating
        self.reading = Reading(group, state, *lent, shell)
        self.clients: dict[Client, None] = {}
        """Connected ones, in the order of their coming: what is sent to all of them goes out in that order."""
        self.borrowers = Borrowers()
        self.answering = Answering(me, group.core.incarnation, self.handles, self.lending, self.signer)
        self._batching = Batching(state)
        self._ops: dict[Key, Decoded] = {}
        self._events: deque[Event] = deque()
        self._history: deque[Delivered | ViewEvent | tuple[int, int, int, int]] = deque()
        """Delivered and not scheduled, and parts that are clear; empty whenever :meth:`_run` has returned."""
        self._logged: deque[Entry] = deque()
        """In the log and not pending yet; empty whenever :meth:`_run` has returned."""
        self._running = False
        """A step is under way, or the state is being replaced, or a step has failed: no other begins."""
        self._roster: Roster | None = None
        """What the group was told last."""
        self._on_disk = 0
        self._acknowledged = 0
        self._holding: frozenset[Any] = frozenset()
        """What the group was told last of what caches hold back."""
        self._after: deque[tuple[int, list[tuple[int, Any]]]] = deque()
        self._inactive_since: int | None = shell.now()
        self._was_outside = False
        for entry in group.core.history.undelivered():
            self._entered(entry)
        self._take_roster()
        self.comparing = Comparing(me, group, shell, tie, partial(self._turn_away, lent=True))

    # -- the group

    @property
    def active(self) -> bool:
        return self.group.core.active is not None

    @property
    def at_rest(self) -> bool:
        """The state is at the group's position (see :meth:`_run`, :meth:`hold`): they may be stored together."""
        return not self._running and not self._history

    def group_event(self, event: Event) -> None:
        """Take one event of the group layer and everything that follows from it."""
        self._events.append(event)
        self._run()

    def _run(self) -> None:
        """Step the group until nothing is left to step; what the steps bring about joins the queue."""
        if self._running:
            return
        self._running = True
        if self._holding:  # recalls end by time as well
            self._acknowledge()
        # Not in a finally clause: what was delivered is half applied then, and nothing after it may be, or be answered.
        while self._events or self._logged or self._history or self._submit_batch():
            # What others wait for, acknowledgements, goes out before we look into messages and execute them.
            if self._events:
                self._carry_out(self.group.step(self._events.popleft(), self.shell.now()))
            elif self._logged:
                self._entered(self._logged.popleft())
            elif self._history:
                item = self._history.popleft()
                if isinstance(item, Delivered):
                    self._apply(item)
                elif isinstance(item, ViewEvent):
                    self._new_view(item)
                else:
                    self.schedule.clear(item[:3], item[3])
                    self._execute_ready()
                for mark in self.state.marks():
                    self.comparing.applied(*mark)
        self._running = False
        if self._inactive_since is not None:
            self._look_at_loans()
        if self.reading.parked:
            self.reading.unpark()
            if self.delegating.busy:
                self._run()  # what they wait for is asked back
        if len(self._ops) == 1 and self.schedule.empty:
            self._prepare()

    def _prepare(self) -> None:
        """If all that is pending is one message of ours, it will be next in history: execute it while we wait."""
        ((key, known),) = self._ops.items()
        history = self.group.core.history
        entry = history.head(*key[:2]) if key[:2] == (history.epoch, self.me) else None
        if entry is not None:
            self.state.prepare(history.index, entry.payload, known)

    def durable(self, ticket: int) -> None:
        """The journal has everything up to *ticket* on disk."""
        self._on_disk = max(self._on_disk, ticket)
        while self._after and self._after[0][0] <= ticket:
            self._send_after(self._after.popleft()[1])
        self._acknowledge()
        self._run()

    def _acknowledge(self) -> None:
        """Tell the group what a client's cache still contradicts (see mds.caches), and what is on disk."""
        held = self.caches.held(self.shell.now())
        if held != self._holding:
            self._holding = held
            self._events.append(ev.Holding(held - {None}))  # type: ignore[arg-type]  # None: see Lending.stop
        if self._on_disk > self._acknowledged:
            self._acknowledged = self._on_disk
            self._events.append(ev.DurableUpTo(self._on_disk))

    def stop_lending(self) -> None:
        """Call back all that clients keep: this replica is about to leave."""
        self.lending.stop()

    def _carry_out(self, out: Effects) -> None:
        # The others get to work while our own journal is written; nothing in `send` depends on it.
        for peer, message in out.send:
            self.shell.link_send(peer, message)
        written = bool(out.records) and self.shell.append(out.ticket, out.records)
        for note in out.notes:
            log.info("%s", note)
        if out.dropped:
            while self._logged:
                self._entered(self._logged.popleft())
            for entry in out.dropped:
                self._left(entry)
        self._logged.extend(out.appended)
        while self._logged and self.caches.any_held:  # if it contradicts one, that is said with the acknowledgement
            self._entered(self._logged.popleft())
        self._history.extend(out.history)
        self._history.extend(out.cleared)
        if written:
            self.durable(out.ticket)
        if out.after:
            if out.ticket <= self._on_disk:
                self._send_after(out.after)
            else:
                self._after.append((out.ticket, out.after))
        for peer in out.snapshot_for:
            self.shell.send_snapshot(peer)
        self._watch_activity()

    def _send_after(self, messages: list[tuple[int, Any]]) -> None:
        for peer, message in messages:
            if peer == self.me:
                self._events.append(ev.Received(peer, message))
            else:
                self.shell.link_send(peer, message)

    # -- messages in the log

    def _entered(self, entry: Entry) -> None:
        """A message is in the log: from now on queries that conflict with it wait, and caches let go."""
        key = entry[:3]
        items = entries_untrusted(entry.payload)
        decoded = self._batching.decoded(items)
        self._ops[key] = items, decoded
        if self.caches.any_held:
            for k, (item, op) in enumerate(zip(items, decoded, strict=True)):
                if op is not None:
                    self.lending.recall(op, seen_untrusted(op, item), self.answering.requester(item), (*key, k))
        self.pending.add(key, touched_by(items, decoded))

    def _left(self, entry: Entry) -> None:
        """A message was dropped from the log undelivered (beyond a cut): it never happened."""
        key = entry[:3]
        self.pending.remove(key)
        self._ops.pop(key, None)
        if entry.sender == self.me and not self.group.core.outside:
            # It is in no history, so sending it again under the same slot number is safe. But for whom: a request of an
            # earlier life was sent again elsewhere, and an attachment would take a session back from where it is by
            # now.
            self._batching.back(item[:5] for item in entries_untrusted(entry.payload) if self.answering.awaited(item))

    def _apply(self, item: Delivered) -> None:
        entry = item.entry
        key = entry[:3]
        known = self._ops.get(key)
        if known is None:  # fed to a learner: it was not pending
            known = decode_batch(entry.payload)
        if item.held or not self.schedule.empty:
            self.schedule.deliver(key, item.index, known, item.held)
            self._executed(key)
            self._execute_ready()
            return
        outcomes = self.state.apply(item.index, entry.sender, entry.payload, known)
        self.schedule.straight += len(outcomes)
        self._executed(key)
        items, decoded = known
        each = zip(items, decoded, strict=True)
        uncertain = changed_later([touched_of(*one) for one in each]) if len(decoded) > 1 else None
        for op, outcome in zip(decoded, outcomes, strict=True):
            if isinstance(op, ops.SessionAttach | ops.SessionOpen) and outcome.status == OK:
                self._attached(op, outcome)
        for k, outcome in enumerate(outcomes):
            self._came_of(items[k], decoded[k], outcome, k, uncertain)
        if self.state.roster is not self._roster:
            self._take_roster()

    def _execute_ready(self) -> None:
        """Execute what has its locks and contradicts no cache."""
        while (request := self.schedule.next()) is not None:
            outcome = self.schedule.execute(request)
            self._executed(request.key)
            op = request.op
            if isinstance(op, ops.SessionAttach | ops.SessionOpen) and outcome.status == OK:
                self._attached(op, outcome)
            # While others of its message wait, what it has made is no matter for a lease: any may come after it.
            self._came_of(request.entry, op, outcome, 0, (ids.U64_MAX, {}))
        if self.state.roster is not self._roster:
            self._take_roster()

    def _executed(self, key: Key) -> None:
        """Queries wait for a message until nothing of it waits."""
        if self.schedule.done(key):
            self.pending.remove(key)
            self._ops.pop(key, None)

    def _came_of(
        self, item: Any, op: Any, outcome: Outcome, k: int, uncertain: tuple[int, dict[int, int]] | None
    ) -> None:
        """A request was executed: tell who waits for it, and see to what it leaves behind."""
        if outcome.status in (Status.STALE_PLAN, Status.DELEGATED):
            if self.answering.awaited(item):  # another attempt, of which its client learns nothing
                again = (self.shell.stamp_ns(), *item[1:5])
                self._batching.again(again) if outcome.status == Status.STALE_PLAN else self.delegating.again(again, op)
            return
        self._batching.answered((outcome.session, outcome.slot, outcome.number))
        self.answering.came_of(op, outcome, k, uncertain)
        if isinstance(op, RecallDelegations | RevokeDelegations):
            self.delegating.tell(self.clients, op)
        for ino in outcome.orphaned:
            if not self.handles.is_open(ino):
                self.owed.releases.add(ino)
        if outcome.session_gone:
            self._moved_away(outcome.session_gone, ids.U64_MAX)

    def _take_roster(self) -> None:
        """The state says who belongs to the cluster: the group, and the process around, go by it."""
        roster = self._roster = self.state.roster
        if roster.replicas:
            self._events.append(ev.Roster(roster.replica_ids, roster.voter_ids))
            self.shell.membership_changed()

    def _attached(self, op: ops.SessionAttach | ops.SessionOpen, outcome: Outcome) -> None:
        """The session is attached to a replica from now on, and that one counts its handles."""
        session = op.session if isinstance(op, ops.SessionAttach) else unpack_untrusted(outcome.body)
        if op.replica != self.me:
            self._moved_away(session, op.attempt)
            return
        self.owed.attached(session, known=self.answering.is_own(outcome))

    def _moved_away(self, session: int, attempt: int) -> None:
        """The session has ended, or is attached to another replica by that attempt."""
        self.owed.moved_away(session, attempt)
        for client in self.clients:
            if client.session == session:
                client.session = 0

    def _new_view(self, item: ViewEvent) -> None:
        view = item.view
        self.schedule.clear_all()  # see vsync.holds
        self._execute_ready()
        assert self.schedule.empty, "nothing waits for what comes after a view event"
        self.state.view_event(item.index, generation_of(view.epoch), view.epoch, view.members)
        self.owed.new_view()
        self.delegating.new_view()
        self.borrowers.forget(self.state.sessions(), self.shell.now())
        told = view_changed(view, self.state.roster)
        for client in self.clients:
            client.send(told)
        self.shell.membership_changed()

    # -- serving or not

    def _watch_activity(self) -> None:
        if self.active:
            if self._inactive_since is not None:
                self._inactive_since = None
                self.owed.grace_since = self.shell.now()
            self._was_outside = False
            return
        if self._inactive_since is None:
            self._inactive_since = self.shell.now()
        outside = self.group.core.outside
        if outside and not self._was_outside:
            self._turn_away()
        self._was_outside = outside

    def _turn_away(self, lent: bool = False) -> None:
        """Left out of the view, or not to be trusted: every client goes on elsewhere, with what it has outstanding.
        *lent*: clients may still use what they keep."""
        newest = self.group.core.newest
        told = view_changed(newest, self.state.roster)
        for client in self.clients:
            client.send(told)  # who has nothing outstanding would not find out before its next request
        if lent:
            self.lending.call_back()
        else:
            self.caches.take_all()
        self._batching.clear()
        self.delegating.clear()
        self.answering.turn_away()
        self.reading.turn_away()

    @property
    def serving(self) -> bool:
        """Clients may stay: active, or in the middle of a view change that has not taken long yet."""
        if self.active or self.comparing.refuses:
            return not self.comparing.refuses
        since = self._inactive_since
        return not self.group.core.outside and since is not None and self.shell.now() - since < limits.HOLD_ON_US

    # -- clients

    def client_joined(self, client: Client) -> None:
        self.clients[client] = None
        if self.active:
            newest = self.group.core.newest
            client.send(view_changed(newest, self.state.roster))

    def client_left(self, client: Client) -> None:
        """The connection is gone. The session stays until the client attaches elsewhere or it expires."""
        client.gone = True
        self.clients.pop(client, None)
        self.lending.client_left(client)

    def client_message(self, client: Client, m: Any) -> None:
        """One message of a client. Whatever it is, it is answered, or an error is logged."""
        if client.session:
            self.owed.heard[client.session] = self.shell.now()
        match m:
            case msg.RequestCall():
                self._request(client, m)
            case msg.QueryCall():
                if not self._refused(client, m.call, query=True):
                    self.reading.query(client, m)
                    if self.delegating.busy:
                        self._run()
            case msg.Ping(number):
                client.send(msg.Pong(number, self.serving))
            case msg.Pong():
                pass
            case msg.KeepCache(number):
                self.lending.keep(client, number)
            case msg.Recalled(number):
                self.caches.done(client, number)
                self._acknowledge()
                self._run()
            case msg.CloseHandles(handles):
                self.owed.close(client.session, handles)
            case msg.OpenSession(call, key, name, slots, attempt):
                self._order(client, call, ops.SessionOpen(key, name, slots, self.me, attempt), attach=True)
            case msg.AttachSession():
                self._attach(client, m)
            case msg.CloseSession(call, session, key):
                self._order(client, call, ops.SessionClose(session, key))
            case (
                msg.AdminCall(call) | msg.ControlCall(call) | msg.RosterCall(call) | msg.CopyCall(call)
            ) if client.squash is not None:
                log.warning("%s asks for what only an administrator may: refused", client.name)
                client.send(msg.Answer(call, errno.EPERM, b""))
            case msg.AdminCall(call, op):
                self._order(client, call, admin_untrusted(client, op))
            case _:
                log.warning("%s sent a %s, which is not for a metadata replica", client.name, type(m).__name__)

    def _refused(self, client: Client, call: int, query: bool = False) -> bool:
        if not self.serving:
            client.send(msg.Answer(call, Status.NOT_SERVING, b""))
            return True
        if len(self._batching) >= limits.QUEUE_REQUESTS or (query and self.reading.full):
            client.send(msg.Answer(call, Status.OVERLOADED, b""))
            return True
        return False

    def _request(self, client: Client, m: msg.RequestCall) -> None:
        if self._refused(client, m.call):
            return
        if client.session != m.session:
            client.send(msg.Answer(m.call, Status.NOT_ATTACHED, b""))
            return
        asked = request_untrusted(client, m, self.reading.rights, self.shell.now())
        if asked is None:
            client.send(msg.Answer(m.call, Status.BAD_MESSAGE, b""))
            return
        op, data = asked
        item = (self.shell.stamp_ns(), m.session, m.slot, m.number, data)
        if self.delegating.full and self.delegating.is_in_the_way(item, op):
            client.send(msg.Answer(m.call, Status.OVERLOADED, b""))
            return
        self.answering.wait(m.session, m.slot, m.number, client, m.call)
        self._queue(item, op)

    def internal(self, op: Any, done: Done) -> None:
        """Order *op* for this replica itself; *done* gets the outcome (NOT_SERVING: we were left out)."""
        self._queue((self.shell.stamp_ns(), 0, self.me, self.answering.own(done), encode(op)), op)

    def _queue(self, item: Item, op: Any) -> None:
        """It goes into the group when that takes it, and no delegation is in its way."""
        if not self.delegating.keeps_aside(item, op):
            self._batching.add(item, op)
        self._run()

    def _order(self, client: Client, call: int, op: Any, attach: bool = False) -> None:
        """Order *op* (None: it is none) for a client, without a slot."""
        if op is None:
            client.send(msg.Answer(call, Status.BAD_MESSAGE, b""))
            return
        if self._refused(client, call):
            return

        def done(outcome: Outcome) -> None:
            if attach and outcome.status == OK and not client.gone:
                client.session = op.session if isinstance(op, ops.SessionAttach) else unpack_untrusted(outcome.body)
                self.owed.heard[client.session] = self.shell.now()
            if isinstance(op, ops.SessionAttach):
                self.owed.came(op.session, op.attempt, stays=outcome.status == OK or self._is_here(op.session))
            client.send(msg.Answer(call, outcome.status, outcome.body))
            if attach and outcome.status == OK and not client.gone:
                self.delegating.attached(client)

        self.internal(op, done)

    def _is_here(self, session: int) -> bool:
        return (known := self.state.session(session)) is not None and known.replica == self.me

    def _attach(self, client: Client, m: msg.AttachSession) -> None:
        if self._refused(client, m.call):
            return
        known = self.state.session(m.session)
        overtaken = known is None or known.key == m.key
        ordered = known.attempt if known is not None else 0
        if not overtaken or max(ordered, self.owed.coming(m.session)) >= m.attempt:
            client.send(msg.Answer(m.call, Status.NOT_ATTACHED if overtaken else Status.SESSION_UNKNOWN, b""))
            return
        if known is not None:
            self.let_go(LetGo(m.session, m.attempt, m.kernel_ms), tell=True)
        for other in self.clients:
            if other.session == m.session and other is not client:
                other.session = 0  # it is gone, unnoticed: what was for it is asked for again over this connection
        self.owed.declare(m.session, m.attempt, m.handles)
        self._order(client, m.call, ops.SessionAttach(m.session, m.key, self.me, m.attempt), attach=True)

    def let_go(self, m: LetGo, *, tell: bool = False) -> None:
        """A client keeps nothing of what a replica lent it before; *tell*: the others, who do not know yet."""
        if tell:
            for peer in self.group.core.others:
                self.shell.link_send(peer, m)
        self.borrowers.let_go(m.session, m.attempt, self.shell.now() + m.ms * 1000)
        self._look_at_loans()

    def _look_at_loans(self) -> None:
        """While no view is active: what the dead lent may be back (see mds.borrowers)."""
        if self._running:
            return  # looked at when the queue of events is empty
        now = self.shell.now()
        for peer, incarnation in self.group.awaits_return(now):
            logged = (op for _, operations in self._ops.values() for op in operations)
            if self.borrowers.returned(peer, self.state.sessions(), logged, now):
                self.group_event(ev.Returned(peer, incarnation))

    # -- requests into the group

    def _submit_batch(self) -> bool:
        """Multicast what waits, as one message, if the group takes one now. Asked after each step."""
        if self.delegating.busy:
            for request in self.delegating.free():
                self._batching.add(*request)
            self.delegating.recall()
        room = self._batching.queue and self.state.store.pending_bytes < limits.UNWRITTEN_BYTES
        if not room or not self.group.may_submit:
            return False
        self._carry_out(self.group.step(ev.Submit(pack(self._batching.batch())), self.shell.now()))
        return True

    # -- owed work

    def maintain(self, look_at_sessions: bool) -> None:
        """Send the answers this replica owes for unlinked inodes; now and then look for sessions to expire."""
        self.lending.forget_departed(self.shell.now())
        self._run()
        self.comparing.look()
        if not self.active or self.comparing.refuses:
            return
        self.owed.release()
        if self.lowest:
            self.owed.count()
        self.delegating.revoke(self.shell.now(), self.lowest)
        if look_at_sessions:
            self.owed.expire(self.group.core.newest.members, self.lowest, self.clients)

    @property
    def lowest(self) -> bool:
        """This replica does what one member does for all."""
        return self.active and not self.comparing.refuses and self.me == min(self.group.core.newest.members)

    # -- the state is replaced (a learner got a snapshot)

    def hold(self) -> None:
        """Take no event of the group until :meth:`resume`: they queue."""
        assert not self._running
        self._running = True

    def resume(self, state: StateMachine | None) -> None:
        """Go on, with another state if one is given."""
        if state is not None:
            # What waits for an outcome here may have got it in what the snapshot replaces: it is asked for again.
            self._turn_away()
            self.state = self.reading.state = self.signer.state = self.schedule.state = self._batching.state = state
            self.delegating.state = state
            self.schedule.forget()
            self.comparing.replaced()
            self.owed.replaced(state)
            self.caches.take_all()
            self.pending.clear()
            self._ops.clear()
            for entry in self.group.core.history.undelivered():
                self._entered(entry)
            self._take_roster()
            for client in self.clients:
                self.delegating.attached(client)
        self._running = False
        self.group_event(ev.Tick())

    def validate(self) -> None:
        """Assert what always holds (tests)."""
        self.group.validate()
        self.state.validate()
        self.handles.validate()
        self.pending.validate()
        self.caches.validate()
        self.schedule.validate()
        assert set(self._ops) == set(self.pending.keys())

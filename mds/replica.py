"""One metadata replica: group member + state machine + session server, glued together without any waiting.

Everything here happens in one thread and returns at once; what blocks or waits is done by :mod:`mds.serve`
through the :class:`Shell` it passes.  The life of a request: :meth:`Replica.client_message` queues it,
:meth:`_submit_batch` multicasts it, the group delivers it, :meth:`_apply` executes it and answers.
"""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from mds import limits
from mds.borrowers import Borrowers
from mds.caches import LEASE_US, Caches
from mds.handles import Handles
from mds.machine import Decoded, Outcome, StateMachine, decode_batch, decode_entry, entries_untrusted
from mds.namespace.roster import Roster
from mds.pending import Key, Pending, changed_later
from vsync import effects as ev
from vsync.effects import Delivered, Effects, Event, ViewEvent
from vsync.machine import Machine
from vsync.records import Entry, Record
from vsync.view import generation_of
from wire import ids, ops, targetops
from wire import messages as msg
from wire.codec import decode, encode, pack, unpack_untrusted
from wire.errors import OK, Status, WireError
from wire.group import LetGo
from wire.roster import RosterRequest

log = logging.getLogger(__name__)

_NOTHING: frozenset[int] = frozenset()
_ROOT = ops.Cred(0, 0, ())
_CACHEABLE = (ops.Lookup, ops.GetAttr)
"""Queries whose answer a client may keep under a lease. Not ReadDir: a client that lists a directory does not keep
the attributes of all in it, and a lease on each would have to be recalled."""
_MAKES = (ops.Create, ops.Mkdir, ops.Mknod, ops.Symlink, ops.Link)
"""Requests whose answer tells a client of a name and its inode."""

_ADMIN_REQUESTS = ops.TargetSet | RosterRequest | targetops.AdminRequest
_CLIENT_REQUESTS = (
    ops.Create, ops.Mkdir, ops.Mknod, ops.Symlink, ops.Link, ops.Unlink, ops.Rmdir, ops.Rename, ops.SetAttr,
    ops.SetXattr, ops.RemoveXattr, ops.Commit, ops.Settle, ops.Accessed,
)  # fmt: skip


class ClientConnection(Protocol):
    """What a replica needs of a connection with a client or tool."""

    def send(self, message: Any) -> None: ...


class Shell(Protocol):
    """What the replica asks of the process around it; none of these waits."""

    def now(self) -> int: ...
    def stamp_ns(self) -> int: ...
    def append(self, ticket: int, records: list[Record]) -> bool: ...
    def link_send(self, peer: int, message: Any) -> None: ...
    def send_snapshot(self, peer: int) -> None: ...
    def membership_changed(self) -> None: ...


@dataclass(slots=True, eq=False)
class Client:
    """One connected client (or tool)."""

    conn: ClientConnection
    name: str
    session: int = 0
    gone: bool = False

    def send(self, message: Any) -> None:
        """Send, unless the connection is gone: the client asks again elsewhere."""
        if not self.gone:
            self.conn.send(message)


@dataclass(slots=True, eq=False)
class Parked:
    """A query that waits for the lease, or for conflicting requests that were pending when it came."""

    client: Client
    call: int
    op: Any
    arrived: frozenset[Key]
    waits: set[Key] = field(default_factory=set)


class Replica:
    """See the module."""

    def __init__(self, me: int, group: Machine, state: StateMachine, shell: Shell) -> None:
        self.me = me
        self.group = group
        self.state = state
        self.shell = shell
        self.pending = Pending()
        self.handles = Handles()
        self.caches: Caches[Client] = Caches()
        self._departed: list[Client] = []
        """Clients whose connection is gone while their cache lease may still run."""
        self.clients: dict[Client, None] = {}
        """Connected ones, in the order of their coming: what is sent to all of them goes out in that order."""
        self.borrowers = Borrowers()
        self.heard: dict[int, int] = {}
        """Sessions attached here -> when their client was last heard."""
        self.answered = 0
        self.queried = 0
        self._queue: deque[tuple[int, int, int, int, bytes]] = deque()
        self._waiting: dict[tuple[int, int, int], tuple[Client, int]] = {}
        self._internal: dict[int, Callable[[Outcome], None]] = {}
        self._token = group.core.incarnation << 32
        """Never one of an earlier life: what that has sent may be delivered in this one."""
        self._parked: list[Parked] = []
        self._ops: dict[Key, Decoded] = {}
        self._fresh: dict[bytes, Any] = {}
        """Operations of queued requests, decoded when they came in, so that it is not done again when they go out."""
        self._events: deque[Event] = deque()
        self._history: deque[Delivered | ViewEvent] = deque()
        """Delivered and not applied; empty whenever :meth:`_run` has returned."""
        self._logged: deque[tuple[Entry, int]] = deque()
        """(message, ticket): in the log and not pending yet; empty whenever :meth:`_run` has returned."""
        self._running = False
        """A step is under way, or the state is being replaced, or a step has failed: no other begins."""
        self._roster: Roster | None = None
        """What the group was told last."""
        self._lending = True
        self._on_disk = 0
        self._acknowledged = 0
        self._after: deque[tuple[int, list[tuple[int, Any]]]] = deque()
        self._inactive_since: int | None = shell.now()
        self._was_outside = False
        self._grace_since = shell.now()
        """When the present stretch of being active began: clients had no chance to be heard before."""
        self.releases: set[int] = set()
        """Orphans nobody here has open: the answer we owe goes out with the next maintenance round."""
        self._coming: dict[int, int] = {}
        """Session -> attempt of its latest attachment here that is not ordered yet: its handles are declared."""
        self._unsure = self._unknown_clients(started=True)
        """Sessions whose handles no member may know: their replica left the view, or this one was started again. What
        they may have open is not released before they attach anywhere, or a session timeout is over."""
        for entry in group.core.history.undelivered():
            self._entered(entry, 0)
        self._take_roster()

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
        # Not in a finally clause: what was delivered is half applied then, and nothing after it may be, or be answered.
        while self._events or self._logged or self._history or self._submit_batch():
            # What others wait for, acknowledgements, goes out before we look into messages and execute them.
            if self._events:
                self._carry_out(self.group.step(self._events.popleft(), self.shell.now()))
            elif self._logged:
                self._entered(*self._logged.popleft())
            elif self._history:
                item = self._history.popleft()
                if isinstance(item, Delivered):
                    self._apply(item)
                else:
                    self._new_view(item)
        self._running = False
        if self._inactive_since is not None:
            self._look_at_loans()
        if self._parked:
            self._unpark()
        if len(self._ops) == 1:
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
        """Tell the group what is on disk, up to what a client's cache still contradicts (see mds.caches)."""
        held = self.caches.held_back(self.shell.now())
        ticket = self._on_disk if held is None else min(self._on_disk, held - 1)
        if ticket > self._acknowledged:
            self._acknowledged = ticket
            self._events.append(ev.DurableUpTo(ticket))

    def _carry_out(self, out: Effects) -> None:
        # The others get to work while our own journal is written; nothing in `send` depends on it.
        for peer, message in out.send:
            self.shell.link_send(peer, message)
        written = bool(out.records) and self.shell.append(out.ticket, out.records)
        for note in out.notes:
            log.info("%s", note)
        if out.dropped:
            while self._logged:
                self._entered(*self._logged.popleft())
            for entry in out.dropped:
                self._left(entry)
        self._logged.extend((entry, out.ticket) for entry in out.appended)
        while self._logged and self.caches.any_held:  # if it contradicts one, a recall comes before the acknowledgement
            self._entered(*self._logged.popleft())
        self._history.extend(out.history)
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

    def _entered(self, entry: Entry, ticket: int) -> None:
        """A message is in the log: from now on queries that conflict with it wait, and caches let go."""
        key = entry[:3]
        items = entries_untrusted(entry.payload)
        fresh = self._fresh
        decoded = [fresh.pop(item[4], None) or decode_entry(item) if fresh else decode_entry(item) for item in items]
        self._ops[key] = items, decoded
        known: set[int] | None = set()
        for one in map(self._touched, decoded):
            if one is None or known is None:
                known = None
            else:
                known |= one
        touched = None if known is None else frozenset(known)
        if self.caches.any_held:
            self._recall(items, decoded, touched, ticket)
        self.pending.add(key, touched)

    def _touched(self, op: Any) -> frozenset[int] | None:
        return self.state.touched(op) if op is not None else _NOTHING

    def _recall(self, items: tuple[Any, ...], decoded: list[Any], touched: frozenset[int] | None, ticket: int) -> None:
        """Call back the cache leases that the message contradicts, from all clients but those who sent its requests."""
        # Who may pass through a directory changes like a name: a kernel does not ask before it walks through.
        names: frozenset[int] = frozenset(
            op.ino
            for op in decoded
            if isinstance(op, ops.SetAttr) and op.valid & ops.SET_MODE and op.mode & 0o111 != 0o111
        )
        if touched is None:
            touched, named = self._resolve(decoded)
            names |= named
        requesters = {w[0] for item in items if (w := self._waiting.get((item[1], item[2], item[3]))) is not None}
        if len({item[1] for item in items}) > 1:
            requesters = set()  # what others ask for in the same message contradicts a requester's cache, too
        for client, number, inodes in self.caches.recall(touched, requesters, ticket, self.shell.now(), names):
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
            one = self._touched(op)
            if one is None:
                names = [(op.parent, op.name)]
                if isinstance(op, ops.Rename):
                    names.append((op.new_parent, op.new_name))
                parents = frozenset(parent for parent, _ in names)
                if not touched.isdisjoint(parents) or self.pending.conflicts(parents):
                    return None, _NOTHING
                one = parents.union(*(self.state.query(ops.Lookup(_ROOT, *name), self.handles).read for name in names))
                named |= one - parents
            touched |= one
        return frozenset(touched), frozenset(named)

    def _left(self, entry: Entry) -> None:
        """A message was dropped from the log undelivered (beyond a cut): it never happened."""
        key = entry[:3]
        self.pending.remove(key)
        self._ops.pop(key, None)
        if entry.sender == self.me and not self.group.core.outside:
            # It is in no history, so sending it again under the same slot number is safe. But for whom: a request of an
            # earlier life was sent again elsewhere, and an attachment would take a session back from where it is by
            # now.
            self._queue.extend(item for item in entries_untrusted(entry.payload) if self._awaited(item))

    def _awaited(self, item: Any) -> bool:
        """Somebody here waits for the outcome of this entry."""
        _, session, slot, number, _ = item
        return (session, slot, number) in self._waiting if session else number in self._internal

    def _apply(self, item: Delivered) -> None:
        entry = item.entry
        key = entry[:3]
        known = self._ops.pop(key, None)
        if known is None:  # fed to a learner: it was not pending
            known = decode_batch(entry.payload)
        outcomes = self.state.apply(item.index, entry.sender, entry.payload, known)
        decoded = known[1]
        self.pending.remove(key)
        for op, outcome in zip(decoded, outcomes, strict=False):
            if isinstance(op, ops.SessionAttach | ops.SessionOpen) and outcome.status == OK:
                self._attached(op, outcome)
        uncertain = changed_later([self._touched(op) for op in decoded]) if len(decoded) > 1 else None
        for k, outcome in enumerate(outcomes):
            if outcome.session:
                waiter = self._waiting.pop((outcome.session, outcome.slot, outcome.number), None)
                if waiter is not None:
                    client, call = waiter
                    attached = client.session == outcome.session and not client.gone
                    if outcome.opened and outcome.status == OK and attached:
                        self.handles.open(outcome.session, outcome.opened)
                    self.answered += 1
                    # A reply given again tells of a state that others may have changed since.
                    made = decoded[k] if outcome.status == OK and outcome.store_reply else None
                    lease = self._lease_made(client, made, outcome.body, k, uncertain)
                    client.send(msg.Answer(call, outcome.status, outcome.body, lease))
            elif outcome.slot == self.me:
                done = self._internal.pop(outcome.number, None)
                if done is not None:
                    done(outcome)
            for ino in outcome.orphaned:
                if not self.handles.is_open(ino):
                    self.releases.add(ino)
            if outcome.session_gone:
                self._moved_away(outcome.session_gone, ids.U64_MAX)
        if self.state.roster is not self._roster:
            self._take_roster()

    def _take_roster(self) -> None:
        """The state says who belongs to the cluster: the group, and the process around, go by it."""
        roster = self._roster = self.state.roster
        if roster.replicas:
            self._events.append(ev.Roster(roster.replica_ids, roster.voter_ids))
            self.shell.membership_changed()

    def _lease_made(
        self, client: Client, op: Any, body: bytes, k: int, uncertain: tuple[int, dict[int, int]] | None
    ) -> bool:
        """Whether the client may keep what its own request, the *k*-th of its message, has told it."""
        if not isinstance(op, _MAKES) or not self.caches.has(client):
            return False
        ino = unpack_untrusted(body)[0]
        if uncertain is not None and (uncertain[0] > k or uncertain[1].get(ino, k) > k):
            return False
        return self._lease(client, frozenset((op.parent, ino)))

    def _lease(self, client: Client, inodes: frozenset[int]) -> bool:
        """Grant a lease on what was read just now, unless a message in the log is about to change it."""
        if self.pending.conflicts(inodes) or not self.group.may_read(self.shell.now()):
            return False
        return self._grant(client, inodes)

    def _grant(self, client: Client, inodes: frozenset[int]) -> bool:
        granted = self._lending and self.caches.grant(client, inodes, self.shell.now())
        if not granted:
            number = self.caches.empty(client)
            if number:
                client.send(msg.Recall(number, (), ()))
        return granted

    def _attached(self, op: ops.SessionAttach | ops.SessionOpen, outcome: Outcome) -> None:
        """The session is attached to a replica from now on, and that one counts its handles."""
        session = op.session if isinstance(op, ops.SessionAttach) else unpack_untrusted(outcome.body)
        if op.replica != self.me:
            self._moved_away(session, op.attempt)
            return
        self.heard[session] = self.shell.now()
        if outcome.slot == self.me and outcome.number in self._internal:
            self._unsure.discard(session)
        else:
            self._unsure.add(session)  # to this replica in an earlier life: what was open then is not known here

    def _moved_away(self, session: int, attempt: int) -> None:
        """The session has ended, or is attached to another replica: its handles are counted there, if at all. But not
        if a later attempt is on its way here: what that one has declared counts, or nobody would know of it."""
        self._unsure.discard(session)
        self.heard.pop(session, None)
        if self._coming.get(session, 0) <= attempt:
            self.releases.update(self.handles.forget(session))
        for client in self.clients:
            if client.session == session:
                client.session = 0

    def _new_view(self, item: ViewEvent) -> None:
        view = item.view
        self.state.view_event(item.index, generation_of(view.epoch), view.epoch, view.members)
        self._unsure |= self._unknown_clients(started=False)
        self.borrowers.forget(self.state.sessions())
        told = self._view_changed(view.epoch, view.members)
        for client in self.clients:
            client.send(told)
        self.shell.membership_changed()

    def _unknown_clients(self, started: bool) -> set[int]:
        """Sessions attached to no member; when this replica has just *started*, also those attached to it."""
        members = self.state.members
        return {
            number
            for number, session in self.state.sessions()
            if session.replica not in members or (started and session.replica == self.me)
        }

    def _view_changed(self, epoch: int, members: tuple[int, ...]) -> msg.ViewChanged:
        roster = self.state.roster
        addresses = ((m, roster.address_of(m)) for m in members)
        told = tuple((m, address) for m, address in addresses if address is not None)
        return msg.ViewChanged(generation_of(epoch), epoch, told, roster.replicas)

    # -- serving or not

    def _watch_activity(self) -> None:
        if self.active:
            if self._inactive_since is not None:
                self._inactive_since = None
                self._grace_since = self.shell.now()
            self._was_outside = False
            return
        if self._inactive_since is None:
            self._inactive_since = self.shell.now()
        outside = self.group.core.outside
        if outside and not self._was_outside:
            self._turn_away()
        self._was_outside = outside

    def _turn_away(self) -> None:
        """Left out of the view: every client goes on elsewhere, with what it has outstanding."""
        newest = self.group.core.newest
        told = self._view_changed(newest.epoch, newest.members)
        for client in self.clients:
            client.send(told)  # who has nothing outstanding would not find out before its next request
        self.caches.take_all()
        waiting, self._waiting = self._waiting, {}
        parked, self._parked = self._parked, []
        internal, self._internal = self._internal, {}
        self._queue.clear()
        self._fresh.clear()
        for token, done in internal.items():
            done(Outcome(0, self.me, token, Status.NOT_SERVING, b"", False))
        for client, call in waiting.values():
            client.send(msg.Answer(call, Status.NOT_SERVING, b""))
        for query in parked:
            query.client.send(msg.Answer(query.call, Status.NOT_SERVING, b""))

    @property
    def serving(self) -> bool:
        """Clients may stay: active, or in the middle of a view change that has not taken long yet."""
        if self.active:
            return True
        since = self._inactive_since
        return not self.group.core.outside and since is not None and self.shell.now() - since < limits.HOLD_ON_US

    # -- clients

    def client_joined(self, client: Client) -> None:
        self.clients[client] = None
        if self.active:
            newest = self.group.core.newest
            client.send(self._view_changed(newest.epoch, newest.members))

    def client_left(self, client: Client) -> None:
        """The connection is gone. The session stays until the client attaches elsewhere or it expires."""
        client.gone = True
        self.clients.pop(client, None)
        self._departed.append(client)

    def client_message(self, client: Client, m: Any) -> None:
        """One message of a client. Whatever it is, it is answered, or an error is logged."""
        if client.session:
            self.heard[client.session] = self.shell.now()
        match m:
            case msg.RequestCall():
                self._request(client, m)
            case msg.QueryCall():
                self._query(client, m)
            case msg.Ping(number):
                client.send(msg.Pong(number, self.serving))
            case msg.Pong():
                pass
            case msg.KeepCache(number):
                self._keep_cache(client, number)
            case msg.Recalled(number):
                self.caches.done(client, number)
                self._acknowledge()
                self._run()
            case msg.CloseHandles(handles):
                self._close_handles(client, handles)
            case msg.OpenSession(call, key, name, slots, attempt):
                self._order(client, call, ops.SessionOpen(key, name, slots, self.me, attempt), attach=True)
            case msg.AttachSession():
                self._attach(client, m)
            case msg.CloseSession(call, session, key):
                self._order(client, call, ops.SessionClose(session, key))
            case msg.AdminCall(call, op):
                self._admin(client, call, op)
            case _:
                log.warning("%s sent a %s, which is not for a metadata replica", client.name, type(m).__name__)

    def _refused(self, client: Client, call: int) -> bool:
        if not self.serving:
            client.send(msg.Answer(call, Status.NOT_SERVING, b""))
            return True
        if len(self._queue) >= limits.QUEUE_REQUESTS or len(self._parked) >= limits.PARKED_QUERIES:
            client.send(msg.Answer(call, Status.OVERLOADED, b""))
            return True
        return False

    def _request(self, client: Client, m: msg.RequestCall) -> None:
        if self._refused(client, m.call):
            return
        if client.session != m.session:
            client.send(msg.Answer(m.call, Status.NOT_ATTACHED, b""))
            return
        try:
            op = decode(m.op)
        except WireError as exc:
            log.warning("%s: request %d.%d.%d refused: %s", client.name, m.session, m.slot, m.number, exc)
            op = None
        if not isinstance(op, _CLIENT_REQUESTS):
            client.send(msg.Answer(m.call, Status.BAD_MESSAGE, b""))
            return
        self._waiting[m.session, m.slot, m.number] = (client, m.call)
        self._fresh[m.op] = op
        self._queue.append((self.shell.stamp_ns(), m.session, m.slot, m.number, m.op))
        self._run()

    def internal(self, op: Any, done: Callable[[Outcome], None]) -> None:
        """Order *op* for this replica itself; *done* gets the outcome (NOT_SERVING: we were left out)."""
        self._token += 1
        self._internal[self._token] = done
        self._queue.append((self.shell.stamp_ns(), 0, self.me, self._token, encode(op)))
        self._run()

    def _order(self, client: Client, call: int, op: Any, attach: bool = False) -> None:
        if self._refused(client, call):
            return

        def done(outcome: Outcome) -> None:
            if attach and outcome.status == OK and not client.gone:
                client.session = op.session if isinstance(op, ops.SessionAttach) else unpack_untrusted(outcome.body)
                self.heard[client.session] = self.shell.now()
            if isinstance(op, ops.SessionAttach) and self._coming.get(op.session) == op.attempt:
                del self._coming[op.session]
                if outcome.status != OK and not self._is_here(op.session):
                    self.releases.update(self.handles.forget(op.session))  # they were declared in vain
            client.send(msg.Answer(call, outcome.status, outcome.body))

        self.internal(op, done)

    def _is_here(self, session: int) -> bool:
        known = self.state.session(session)
        return known is not None and known.replica == self.me

    def _attach(self, client: Client, m: msg.AttachSession) -> None:
        if self._refused(client, m.call):
            return
        known = self.state.session(m.session)
        overtaken = known is None or known.key == m.key
        ordered = known.attempt if known is not None else 0
        if not overtaken or max(ordered, self._coming.get(m.session, 0)) >= m.attempt:
            client.send(msg.Answer(m.call, Status.NOT_ATTACHED if overtaken else Status.SESSION_UNKNOWN, b""))
            return
        if known is not None:
            self.let_go(LetGo(m.session, m.attempt, m.kernel_ms), tell=True)
        for other in self.clients:
            if other.session == m.session and other is not client:
                other.session = 0  # it is gone, unnoticed: what was for it is asked for again over this connection
        self._coming[m.session] = m.attempt
        # 1. From now on an unlink applied here finds the handles. 2. Orphans among them are pinned before the
        # attachment is ordered: the replica the session came from lets go of them only after that.
        self.releases.update(self.handles.declare(m.session, m.handles))
        pins = tuple(sorted(ino for ino, _ in m.handles if self.state.is_orphan(ino)))
        for at in range(0, len(pins), limits.ORPHAN_ANSWERS):
            self.internal(ops.OrphanAnswer(self.me, (), pins[at : at + limits.ORPHAN_ANSWERS]), lambda outcome: None)
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
            if self.borrowers.returned(peer, self.state.sessions(), itertools.chain(*self._ops.values()), now):
                self.group_event(ev.Returned(peer, incarnation))

    def _admin(self, client: Client, call: int, op_bytes: bytes) -> None:
        try:
            op = decode(op_bytes)
        except WireError as exc:
            log.warning("%s: admin request refused: %s", client.name, exc)
            op = None
        if not isinstance(op, _ADMIN_REQUESTS):
            client.send(msg.Answer(call, Status.BAD_MESSAGE, b""))
            return
        self._order(client, call, op)

    def _keep_cache(self, client: Client, number: int) -> None:
        """Extend a client's cache lease, never beyond our own read lease."""
        now = self.shell.now()
        until = min(self.group.read_until(), now + LEASE_US) if self._lending and client.session else 0
        epoch = self.caches.renew(client, until)
        client.send(msg.CacheLease(number, epoch, max(0, until - now)))

    def stop_lending(self) -> None:
        """This replica is to stop: clients keep nothing any more of what it told them. See :attr:`all_returned`."""
        self._lending = False
        never = 1 << 62  # nothing that is to be acknowledged waits for it
        for client, number, inodes in self.caches.recall(None, set(), never, self.shell.now()):
            client.send(msg.Recall(number, inodes, ()))

    @property
    def all_returned(self) -> bool:
        """No client relies on anything that it was lent here."""
        return self.caches.held_back(self.shell.now()) is None

    def _close_handles(self, client: Client, handles: tuple[tuple[int, int], ...]) -> None:
        for ino, count in handles:
            if self.handles.close(client.session, ino, count):
                self.releases.add(ino)

    # -- requests into the group

    def _may_submit(self) -> bool:
        return self.group.may_submit and self.state.store.pending_bytes < limits.UNWRITTEN_BYTES

    def _submit_batch(self) -> bool:
        """Multicast what waits, as one message, if the group takes one now."""
        if not self._queue or not self._may_submit():
            return False
        batch: list[tuple[int, int, int, int, bytes]] = []
        size = 0
        while self._queue and len(batch) < limits.BATCH_ENTRIES:
            size += len(self._queue[0][4]) + 64
            if batch and size > limits.BATCH_BYTES:
                break
            batch.append(self._queue.popleft())
        self._carry_out(self.group.step(ev.Submit(pack(batch)), self.shell.now()))
        return True

    # -- queries

    def _query(self, client: Client, m: msg.QueryCall) -> None:
        if self._refused(client, m.call):
            return
        try:
            op = decode(m.op)
        except WireError as exc:
            log.warning("%s: query refused: %s", client.name, exc)
            client.send(msg.Answer(m.call, Status.BAD_MESSAGE, b""))
            return
        query = Parked(client, m.call, op, frozenset())
        if not self._answer(query, first=True):
            self._parked.append(query)

    def _answer(self, query: Parked, first: bool) -> bool:
        """Answer the query from our own state, if that is allowed now and the answer will stay true."""
        if not self.group.may_read(self.shell.now()):
            if first:
                query.arrived = self.pending.keys()
            return False
        result = self.state.query(query.op, self.handles)
        conflicts = self.pending.conflicts(result.read)
        if result.status != OK and not all(map(self.state.exists, result.read)):
            conflicts = list(self.pending.keys())  # which inode a message makes is not known before it is delivered
        if conflicts:
            if first:
                query.arrived = self.pending.keys()
            waits = {key for key in conflicts if key in query.arrived}
            if waits:
                query.waits = waits
                return False
        if result.status == OK and isinstance(query.op, ops.Open) and not query.client.gone:
            if not query.client.session:
                query.client.send(msg.Answer(query.call, Status.NOT_ATTACHED, b""))  # for whom should it be counted?
                return True
            self.handles.open(query.client.session, query.op.ino)
        self.queried += 1
        lease = isinstance(query.op, _CACHEABLE) and not conflicts and self.caches.has(query.client)
        if lease:
            lease = self._grant(query.client, result.read)
        query.client.send(msg.Answer(query.call, result.status, result.body, lease))
        return True

    def _unpark(self) -> None:
        still = []
        parked, self._parked = self._parked, []
        for query in parked:
            if query.client.gone:
                continue
            query.waits = {key for key in query.waits if self.pending.has(key)}
            if query.waits or not self._answer(query, first=False):
                still.append(query)
        self._parked = still + self._parked

    # -- owed work

    def maintain(self, look_at_sessions: bool) -> None:
        """Send the answers this replica owes for unlinked inodes; now and then look for sessions to expire."""
        now = self.shell.now()
        self._departed = [client for client in self._departed if not self.caches.gone(client, now)]
        self._acknowledge()  # recalls end by time as well
        self._run()
        if not self.active:
            return
        if not self._unsure:
            self._release()
        if look_at_sessions:
            self._expire()

    def _release(self) -> None:
        owed = [i for i in sorted(self.releases) if self.state.is_orphan(i) and not self.handles.is_open(i)]
        self.releases.clear()
        for at in range(0, len(owed), limits.ORPHAN_ANSWERS):
            part = tuple(owed[at : at + limits.ORPHAN_ANSWERS])
            self.internal(ops.OrphanAnswer(self.me, part, ()), lambda outcome: None)

    @property
    def lowest(self) -> bool:
        """This replica does what one member does for all."""
        return self.active and self.me == min(self.group.core.newest.members)

    def _expire(self) -> None:
        """Expire sessions not heard; answer for replicas that have left. Time without a view never counts: the
        clocks here start anew when a view becomes active (see :meth:`_grace`)."""
        now = self.shell.now()
        members = self.group.core.newest.members
        graced = now - self._grace_since >= limits.SESSION_TIMEOUT_US
        connected = {client.session for client in self.clients if client.session}
        for number, session in self.state.sessions():
            if session.replica == self.me:
                since = now - self.heard.get(number, self._grace_since)
                expired = number not in connected and since >= limits.SESSION_TIMEOUT_US
            else:
                expired = session.replica not in members and self.lowest and graced
            if expired and graced:
                log.info("session %d (%s) is expired: not heard of", number, session.client)
                self.internal(ops.SessionExpire(number, session.attempt), lambda outcome: None)
        if not graced:
            return
        self._unsure.clear()  # they have expired, or are about to
        self.releases.update(i for i in self.state.orphans_owed(self.me) if not self.handles.is_open(i))
        for debtor in self.state.orphan_debtors():
            if debtor not in members and self.lowest:
                owed = tuple(self.state.orphans_owed(debtor))[: limits.ORPHAN_ANSWERS]
                log.info("answers for replica %d, which has left: %d unlinked files", debtor, len(owed))
                self.internal(ops.OrphanAnswer(debtor, owed, ()), lambda outcome: None)

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
            self.state = state
            self.handles = Handles()
            self.releases.clear()
            self._unsure = self._unknown_clients(started=True)
            self.caches.take_all()
            self.pending.clear()
            self._ops.clear()
            for entry in self.group.core.history.undelivered():
                self._entered(entry, 0)
            self._take_roster()
        self._running = False
        self.group_event(ev.Tick())

    def validate(self) -> None:
        """Assert what always holds (tests)."""
        self.group.validate()
        self.state.validate()
        self.handles.validate()
        self.pending.validate()
        self.caches.validate()
        assert set(self._ops) == set(self.pending.keys())

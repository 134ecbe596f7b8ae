"""Pure. The metadata state machine: ordered batches of requests in, outcomes out; queries on the side.

What is applied depends on the state and the batch alone: no clock, no randomness, no order of sets, no float. Live
execution and replay are one function, :meth:`StateMachine.apply`. The operations are in :mod:`mds.namespace.ops`; this
module decodes, admits each request once (:mod:`mds.sessions`), runs it in its own transaction of the store, keeps its
reply in the same transaction, and sums the effects into the digest.

A request that fails (with an errno or a status) changes nothing but its slot: its reply is kept, too. What is not
executed at all keeps no reply: an entry or batch that is malformed, a session or slot that is not known, an old number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from mds import schema, sessions
from mds.batch import Decoded, decode_batch, decode_entry, well_formed
from mds.digest import Digest
from mds.layer import Effects
from mds.locksets import in_the_way, look, seen_untrusted
from mds.namespace import delegations, layout
from mds.namespace import roster as rosters
from mds.namespace.inode import DIRECTORY_SIZE, S_IFDIR, Inode, Layout, Truncations
from mds.namespace.layout import Storage
from mds.namespace.ops import keys
from mds.namespace.queries import QUERIES, STORAGE_MAP, Handles
from mds.namespace.roster import Roster
from mds.namespace.scope import Delegated, Scope
from mds.operations import APPLY, APPLY_ALL
from mds.sessions import Session
from mds.store import Store, StoreCorrupt
from wire import ids
from wire.chains import StorageMap
from wire.codec import pack, unpack_untrusted
from wire.errors import OK, FileSystemError, Status, WireError

VIEW_ENTRY: Final = -1
"""Stands for the entry number where the digest counts a view event."""
BOOT_ENTRY: Final = -2
"""Stands for the entry number where the digest counts what a new state begins with."""

_NOTHING: Final[frozenset[int]] = frozenset()


class _NoHandles:
    def is_open(self, ino: int) -> bool:
        return False


_NO_HANDLES: Final = _NoHandles()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one entry of a batch came to; the entry's origin answers its client from it."""

    session: int
    slot: int
    number: int
    status: int
    """0, an errno, or a :class:`wire.errors.Status`."""
    body: bytes
    """The result as msgpack when status is 0."""
    store_reply: bool
    """The reply was kept in the reply table: the request was executed now, by a client's session."""
    opened: int = 0
    """The inode of which the answer counts a handle, or 0."""
    orphaned: tuple[int, ...] = ()
    """Files whose last name went: every member owes an :class:`wire.ops.OrphanAnswer`."""
    session_gone: int = 0
    """The session that has ended (closed or expired), or 0."""


_MALFORMED: Final = Outcome(0, 0, 0, Status.BAD_MESSAGE, b"", False)


@dataclass(frozen=True, slots=True)
class QueryResult:
    status: int
    body: bytes
    read: frozenset[int]
    """The inodes (queries.STORAGE_MAP: the storage map) on which the answer, an error as well, depends."""


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """What a new state begins with. From the cluster's configuration, the same at every replica."""

    stripe_size: int = layout.STRIPE_SIZE
    stripe_count: int = layout.STRIPE_COUNT
    copies: int = layout.COPIES
    inline: int = layout.INLINE
    root_uid: int = 0
    root_gid: int = 0
    root_mode: int = 0o755
    replicas: rosters.Addresses = ()
    witnesses: rosters.Addresses = ()


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A batch executed ahead of its delivery (see :meth:`StateMachine.prepare`)."""

    index: int
    batch: bytes
    outcomes: list[Outcome]
    effects: Effects
    counters: tuple[int, int, int, int, int]
    """As they are after it."""


class StateMachine:
    """See the module. *store* belongs to it alone; *me* is this replica's number (no effect depends on it).

    *bootstrap* counts only when the store is new.
    """

    def __init__(self, store: Store, me: int, bootstrap: Bootstrap = Bootstrap()) -> None:
        self.store = store
        self.me = me
        self._index = 0
        self._digest = Digest()
        self._time = 0
        self._generation = 0
        self._epoch = 0
        self._prepared: _Prepared | None = None
        self._numbers = schema.numbers_from(store.get(schema.META, schema.META_NUMBERS))
        self.taken_up: list[tuple[int, Outcome]] = []
        """(index, what it came to) of requests that waited when the state was written that was opened."""
        self._open: dict[int, dict[int, tuple[int, Any]]] = {}
        """Delivered and not executed: index -> number of the entry -> (time for it, entry). Ascending."""
        self.roster = Roster()
        """Who belongs to the cluster: what is in the store, replaced as a whole when it changes."""
        self.keys = keys.load(store)
        """What capabilities are signed with, likewise."""
        self.redelegated = 0
        """Rises whenever :attr:`delegated` changes."""
        raw = store.get(schema.META, schema.META_APPLIED)
        if raw is None:
            self._make_new(bootstrap)
            self._scope = Scope(store, Storage(store))
            self._scope.inodes = 1
            self._save()
            self.roster = rosters.load(store)
            return
        self._scope = Scope(store, Storage(store))
        self._index, digest, self._time, self._scope.inodes, self._scope.sessions = unpack_untrusted(raw)
        self._digest = Digest(int.from_bytes(digest, "big"))
        raw = store.get(schema.META, schema.META_MEMBERS)
        if raw is not None:
            self._generation, self._epoch, self._scope.members = unpack_untrusted(raw)
        self.roster = rosters.load(store)
        self._load_delegated()
        self._take_up()

    def _make_new(self, bootstrap: Bootstrap) -> None:
        """The root directory and an empty storage map."""
        store = self.store
        store.begin()
        mode = S_IFDIR | bootstrap.root_mode & 0o7777
        root = Inode(
            mode, 2, bootstrap.root_uid, bootstrap.root_gid, 0, DIRECTORY_SIZE, 0, 0, 0, None, (), 0, 0, ids.ROOT_INO, 0
        )
        store.put(schema.INODES, schema.u64(ids.ROOT_INO), root.encode())
        policy = layout.Policy(bootstrap.stripe_size, bootstrap.stripe_count, bootstrap.copies, bootstrap.inline)
        store.put(schema.META, schema.META_STORAGE, pack((0, *policy)))
        rosters.write_first(store, bootstrap.replicas, bootstrap.witnesses)
        self._count(0, BOOT_ENTRY, store.commit())

    # -- what stands

    @property
    def digest(self) -> bytes:
        """Sum of the effects of everything up to :attr:`low`, 8 bytes: equal where that is equal, or one is wrong."""
        return self._digest.complete.to_bytes(8, "big")

    def marks(self) -> list[tuple[int, int]]:
        """(index, digest there) of what is complete, the last at :attr:`low`: what replicas compare. That of an index
        which was passed while something else was executed is told once."""
        return [*self._digest.passed(), (self.low, self._digest.complete)]

    @property
    def index(self) -> int:
        """Delivery index of what was delivered here last; 0 in a new state."""
        return self._index

    @property
    def low(self) -> int:
        """Everything up to this index is executed; above it, some may wait (see mds.schedule)."""
        return next(iter(self._open)) - 1 if self._open else self._index

    @property
    def time_ns(self) -> int:
        """The state's time: the latest stamp of any request so far."""
        return self._time

    @property
    def members(self) -> tuple[int, ...]:
        """Replicas of the last view event."""
        return self._scope.members

    @property
    def position(self) -> bytes | None:
        """What :meth:`set_position` stored last; in a reopened store, that of the effects that are in it."""
        return self.store.get(schema.META, schema.META_POSITION)

    @property
    def inodes(self) -> int:
        """Inodes in use, unlinked open ones among them."""
        return self._scope.inodes

    def number_at(self, index: int, k: int) -> int:
        """The number that entry *k* of the batch at *index* gives what it makes."""
        return schema.number_at(self._numbers + index, k)

    @property
    def session_count(self) -> int:
        return self._scope.sessions

    @property
    def delegated(self) -> dict[int, Delegated]:
        """Directories that are delegated -> (session, whether it is wanted back): what is in the store."""
        return self._scope.delegated

    def _load_delegated(self) -> None:
        self.delegated.clear()
        self.delegated.update(delegations.load(self.store))

    def storage_map(self) -> StorageMap:
        """See wire.chains.StorageMap."""
        return self._scope.storage.map

    def space_shares(self) -> dict[int, int]:
        """How full each target is, as it was ordered last: see mds.placement."""
        return self._scope.storage.shares

    def target_uuid(self, target: int) -> bytes | None:
        """Of the disk that storage target *target* has."""
        raw = self.store.get(schema.TARGETS, schema.target_key(target))
        return None if raw is None else layout.Target.unpack(raw).uuid

    def sessions(self) -> Iterator[tuple[int, Session]]:
        """All sessions with the replica each is attached to and its attachment count, ascending by number."""
        return sessions.every(self.store)

    def session(self, number: int) -> Session | None:
        return sessions.find(self.store, number)

    def orphans_owed(self, replica: int) -> Iterator[int]:
        """Unlinked inodes that wait for *replica*: it has not answered yet, or has pinned them."""
        prefix = replica.to_bytes(1, "big")
        stop = (replica + 1).to_bytes(1, "big") if replica < ids.REPLICA_ID_MAX else None
        for key, _value in self.store.scan(schema.OWED, prefix, stop):
            yield int.from_bytes(key[1:], "big")

    def orphan_debtors(self) -> tuple[int, ...]:
        """Replicas that :meth:`orphans_owed` names something for, ascending; some may have left the view."""
        found: list[int] = []
        start = b""
        while True:
            item = next(self.store.scan(schema.OWED, start, None), None)
            if item is None:
                return tuple(found)
            found.append(item[0][0])
            if found[-1] == ids.REPLICA_ID_MAX:
                return tuple(found)
            start = (found[-1] + 1).to_bytes(1, "big")

    def exists(self, ino: int) -> bool:
        """Whether the inode is there (for queries.STORAGE_MAP, which always is: yes)."""
        return ino == STORAGE_MAP or self.store.get(schema.INODES, schema.u64(ino)) is not None

    def is_orphan(self, ino: int) -> bool:
        return self.store.get(schema.ORPHANS, schema.u64(ino)) is not None

    def reclaimable(self, limit: int, now_ns: int | None = None) -> list[tuple[int, Layout]]:
        """Objects to be deleted, of at most *limit* numbers: (number, layout). Most are those of removed inodes. Those
        that are to wait are left out, unless *now_ns* is None."""
        found: list[tuple[int, Layout]] = []
        for key, value in self.store.scan(schema.RECLAIM, b"", None):
            if len(found) == limit:
                break
            stripe_size, chains, *not_before_ns = unpack_untrusted(value)
            if now_ns is None or not not_before_ns or now_ns >= not_before_ns[0]:
                found.append((int.from_bytes(key, "big"), (stripe_size, chains)))
        return found

    def untrimmed(self, limit: int, before_ns: int) -> list[tuple[int, Layout, Truncations]]:
        """Files whose truncations are older than *before_ns* and not settled, at most *limit*."""
        found: list[tuple[int, Layout, Truncations]] = []
        for key, value in self.store.scan(schema.TRIMS, b"", None):
            if len(found) == limit:
                break
            if unpack_untrusted(value)[0] > before_ns:
                continue
            ino = int.from_bytes(key, "big")
            inode = self._scope.inode(ino)
            if inode.layout is not None:
                found.append((ino, inode.layout, inode.truncations))
        return found

    # -- applying

    def apply(self, index: int, origin: int, batch: bytes, known: Decoded | None = None) -> list[Outcome]:
        """Apply the batch that *origin* multicast and that was delivered at *index*; outcomes in order of entries.

        *known*: what is in it, where that is known already.
        A batch that does not decode (a faulty replica sent it) is empty for everyone. Store the position and freeze
        only between batches.
        """
        assert index > self._index, f"batch {index} after {self._index}"
        assert not self._open, "nothing waits that the batch might have to wait for"
        prepared, self._prepared = self._prepared, None
        if prepared is not None and prepared.index == index and prepared.batch == batch:
            self.store.redo(prepared.effects)
            self._set_counters(prepared.counters)
            return prepared.outcomes
        return self._execute_batch(index, batch, known)

    def _execute_batch(self, index: int, batch: bytes, known: Decoded | None) -> list[Outcome]:
        self._index = index
        entries, operations = known if known is not None else decode_batch(batch)
        outcomes = [
            self._apply_entry(index, k, now, entry, operations[k])
            if (now := self._arrived(entry)) is not None
            else _MALFORMED
            for k, entry in enumerate(entries)
        ]
        self._save()
        return outcomes

    def deliver(self, index: int, entries: tuple[Any, ...]) -> list[int]:
        """A batch is delivered whose entries are executed one by one, by :meth:`execute`, in any order that keeps
        what conflicts as it is (mds.schedule). Returns the numbers of those that are well-formed."""
        assert index > self._index, f"batch {index} after {self._index}"
        self._index = index
        # Times are by delivery, so that what waits gets the one that it would have had at once.
        times = [self._arrived(entry) for entry in entries]
        waiting = {k: (now, entries[k]) for k, now in enumerate(times) if now is not None}
        if waiting:
            self._open[index] = waiting
        self._save()
        return list(waiting)

    def execute(self, index: int, k: int, op: Any) -> Outcome:
        """Execute entry *k* of the batch delivered at *index*; *op* is its operation."""
        self._prepared = None
        waiting = self._open[index]
        now, entry = waiting[k]
        outcome = self._apply_entry(index, k, now, entry, op)
        del waiting[k]
        if not waiting:
            first = next(iter(self._open))
            del self._open[index]
            if index == first:
                self._digest.reached(first, self.low)
        self._save()
        return outcome

    def _take_up(self) -> None:
        """A state is opened that was written while requests waited: execute them, in the order of delivery. Nobody is
        answered, and nobody reads here before this replica is active in a later view; by then they may be executed
        everywhere (see mds.replica)."""
        raw = self.store.get(schema.META, schema.META_WAITING)
        if raw is None:
            return
        for index, k, now, entry in unpack_untrusted(raw):
            self.taken_up.append((index, self._apply_entry(index, k, now, entry, decode_entry(entry))))
        self.store.begin()
        self.store.delete(schema.META, schema.META_WAITING)
        self.store.commit()
        self._save()

    def prepare(self, index: int, batch: bytes, known: Decoded) -> None:
        """Execute ahead what is likely to be delivered at *index*, without any effect: a member has nothing else to do
        while the others write to disk what it has multicast.

        :meth:`apply` takes the result over if that batch is delivered there. Then nothing has changed since: every
        change moves history on. Only what clients ask is prepared; the storage map is not only in the store.
        """
        if self._prepared is not None and self._prepared.index == index and self._prepared.batch == batch:
            return
        if not all(well_formed(entry) and entry[1] for entry in known[0]):
            return
        before, redelegated = self._counters(), self.redelegated
        self.store.begin_trial()
        outcomes = self._execute_batch(index, batch, known)
        self._prepared = _Prepared(index, batch, outcomes, self.store.end_trial(), self._counters())
        if self.redelegated != redelegated:  # that is not only in the store, either
            self._prepared = None
            self._load_delegated()
        self._scope.undo()
        self._set_counters(before)

    def _counters(self) -> tuple[int, int, int, int, int]:
        return self._index, self._digest.total, self._time, self._scope.inodes, self._scope.sessions

    def _set_counters(self, counters: tuple[int, int, int, int, int]) -> None:
        self._index, self._digest.total, self._time, self._scope.inodes, self._scope.sessions = counters

    def view_event(self, index: int, generation: int, epoch: int, members: tuple[int, ...]) -> None:
        """A new view stands in history after *index*: its members answer for handles on files unlinked from now on."""
        assert index >= self._index, f"view event {index} after {self._index}"
        self._index = index
        self._generation, self._epoch = generation, epoch
        self._scope.members = tuple(sorted(members))
        self.store.begin()
        self.store.put(schema.META, schema.META_MEMBERS, pack((generation, epoch, self._scope.members)))
        self._count(index, VIEW_ENTRY, self.store.commit())
        self._save()

    def set_position(self, blob: bytes) -> None:
        """Store *blob* with the effects applied so far (before the next freeze), and what of the requests delivered up
        to there is not among them."""
        self.store.begin()
        self.store.put(schema.META, schema.META_POSITION, blob)
        if self._open:
            waiting = [(index, k, *w) for index, batch in self._open.items() for k, w in batch.items()]
            self.store.put(schema.META, schema.META_WAITING, pack(waiting))
        elif self.store.get(schema.META, schema.META_WAITING) is not None:
            self.store.delete(schema.META, schema.META_WAITING)
        self.store.commit()

    def _save(self) -> None:
        """The small things that change with every batch. They sum up effects and are not effects themselves."""
        scope = self._scope
        total = self._digest.total.to_bytes(8, "big")
        applied = pack((self._index, total, self._time, scope.inodes, scope.sessions))
        self.store.put_alone(schema.META, schema.META_APPLIED, applied)

    def _count(self, index: int, k: int, effects: Effects) -> None:
        """One entry's effects count in the digest."""
        self._digest.count(index, k, effects, ahead=bool(self._open))

    def _arrived(self, entry: Any) -> int | None:
        """An entry is delivered: the state's time, which it moves on, is the time for it. None: it is malformed."""
        if not well_formed(entry):
            return None
        if entry[0] > self._time:
            self._time = entry[0]
        return self._time

    def _apply_entry(self, index: int, k: int, now: int, entry: Any, op: Any) -> Outcome:
        session, slot, number = entry[1:4]
        store = self.store
        if session:
            known = self._admit(session, slot, number)
            if known is not None:
                return known
        if len(entry) == 6:
            seen = seen_untrusted(op, entry)
            if seen is not None and look(store, op) != seen:
                return Outcome(session, slot, number, Status.STALE_PLAN, b"", False)
        scope = self._scope
        if scope.delegated and in_the_way(scope.delegated, session, op, look(store, op)):
            return Outcome(session, slot, number, Status.DELEGATED, b"", False)
        at = self._numbers + index
        scope.start(now, schema.number_at(at, k), session, schema.block_at(at, k))
        store.begin()
        status, body = self._execute(session, op)
        if status != OK:
            store.rollback()
            scope.undo()
            store.begin()
        if session:
            sessions.keep(store, session, slot, number, status, scope.opened, body)
        self._count(index, k, store.commit())
        if scope.redelegated:
            self._redelegated(scope.redelegated)
        if scope.storage_changed:
            scope.storage.load()
        if scope.roster_changed:
            self.roster = rosters.load(store)
        if scope.keys_changed:
            self.keys = keys.load(store)
        return Outcome(
            session, slot, number, status, body, session != 0, scope.opened, tuple(scope.orphaned), scope.session_gone
        )

    def _redelegated(self, changes: dict[int, Delegated | None]) -> None:
        delegated = self.delegated
        for directory, now in changes.items():
            if now is None:
                delegated.pop(directory, None)
            else:
                delegated[directory] = now
        self.redelegated += 1

    def _execute(self, session: int, op: Any) -> tuple[int, bytes]:
        run = (APPLY if session else APPLY_ALL).get(type(op))
        if run is None:
            return Status.BAD_MESSAGE, b""
        try:
            return OK, pack(run(self._scope, op))
        except FileSystemError as exc:
            return exc.status, b""
        except WireError as exc:
            raise StoreCorrupt(self.store.path, f"a record does not decode: {exc}") from exc

    def _admit(self, session: int, slot: int, number: int) -> Outcome | None:
        """None when the request is to be executed, else what it is answered without being executed (again)."""
        kept = sessions.reply(self.store, session, slot)
        if kept is not None:
            # Replies go with their session, so this one exists and has the slot.
            if number > kept.number:
                return None
            if number == kept.number:
                return Outcome(session, slot, number, kept.status, kept.body, False, kept.opened)
            return Outcome(session, slot, number, Status.STALE_NUMBER, b"", False)
        found = sessions.find(self.store, session)
        if found is None:
            return Outcome(session, slot, number, Status.SESSION_UNKNOWN, b"", False)
        if slot >= found.slots:
            return Outcome(session, slot, number, Status.BAD_MESSAGE, b"", False)
        return None

    # -- asking

    def query(self, op: Any, handles: Handles = _NO_HANDLES) -> QueryResult:
        """Answer a wire.ops query from the state as it stands. *handles*: what clients have open here."""
        ask = QUERIES.get(type(op))
        if ask is None:
            return QueryResult(Status.BAD_MESSAGE, b"", _NOTHING)
        read: list[int] = []
        try:
            body = pack(ask(self._scope, op, handles, read))
        except FileSystemError as exc:
            return QueryResult(exc.status, b"", frozenset(read))
        except WireError as exc:
            raise StoreCorrupt(self.store.path, f"a record does not decode: {exc}") from exc
        return QueryResult(OK, body, frozenset(read))

    def validate(self) -> None:
        """For tests, after every step: what is held in memory agrees with the store. Raises AssertionError."""
        store = self.store
        raw = store.get(schema.META, schema.META_APPLIED)
        assert raw is not None, "applied is always stored"
        stored = unpack_untrusted(raw)
        scope = self._scope
        total = self._digest.total.to_bytes(8, "big")
        assert stored == (self._index, total, self._time, scope.inodes, scope.sessions), "counters are stored"
        assert scope.inodes >= 1 and scope.sessions >= 0, "the root is never removed"
        assert Storage(store).map == scope.storage.map, "the storage map in memory is the stored one"
        assert self.roster == rosters.load(store), "the roster in memory is the stored one"
        assert self.keys == keys.load(store), "the keys in memory are the stored ones"
        assert self.delegated == delegations.load(store), "the delegations in memory are the stored ones"
        assert list(scope.members) == sorted(set(scope.members)), "members ascend"
        assert store.get(schema.INODES, schema.u64(ids.ROOT_INO)) is not None, "the root is never removed"

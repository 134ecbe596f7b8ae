"""mds.schedule: whatever waits and for how long, the state is the one that serial execution gives, byte for byte."""

from __future__ import annotations

import errno
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mds import schema
from mds.batch import decode_batch
from mds.check import check
from mds.locks import READ, UPDATE, WRITE, LockTable
from mds.locksets import (
    _LOCKS,
    _LOOK,
    _PLANNED,
    DELEGATIONS,
    EVERYTHING,
    QUOTAS,
    ROSTER,
    STORAGE,
    TREE,
    locks_of,
    look,
    quota_key,
    seen_untrusted,
    slot_key,
)
from mds.machine import Outcome, StateMachine
from mds.namespace import acl, delegations, entries, inline, layout, quota
from mds.namespace.queries import STORAGE_MAP
from mds.operations import APPLY_ALL
from mds.schedule import Schedule
from mds.sessions import Session
from mds.store import Store
from tests.mds.group import OWN
from tests.mds.harness import ALICE, KEY, ROOT, TOP, World, contents
from tests.mds.test_machine import NAMES, flush, random_internal, random_op
from wire import ops, quotaops, roster, targetops
from wire.codec import encode, pack
from wire.delegation import CreateDelegated, Delegate, RecallDelegations, RevokeDelegations, Undelegate
from wire.errors import OK, Status
from wire.fileops import Reserve
from wire.inline import GrownOut, GrowOut, WriteInline
from wire.mending import Mend

SESSION = (2 << schema.NUMBER_BITS) + schema.NUMBER_FIRST
OTHER = SESSION + 1
BOTH = tuple((1, 0, 1, 1, encode(ops.SessionOpen(key, "c", 64, 1, 1))) for key in (KEY, bytes(16)))
"""Entries of the batch that opens them."""
LAG = 4
"""Batches by which an origin's state may be behind when it plans."""


class Histories:
    """Random batches, with plans by an origin that is up to date or behind, executed serially as they come."""

    def __init__(self, rng: random.Random, serial: StateMachine) -> None:
        self.rng = rng
        self.serial = serial
        self.inos = [TOP]
        self.numbers = [0] * 16
        self.others = [0] * 16
        """As *numbers*, of the session OTHER."""
        self.index = 0
        self.late: list[tuple[int, Any]] = []
        """(index at which it comes, entry): planned and under way."""
        self.digests: dict[int, bytes] = {}

    def view(self, members: tuple[int, ...]) -> None:
        self.index += 1
        self.serial.view_event(self.index, 1, self.index, members)
        self.digests[self.index] = self.serial.digest

    def batch(self, *entries: Any) -> tuple[bytes, list[Outcome]]:
        self.index += 1
        batch = pack(entries)
        outcomes = self.serial.apply(self.index, 1, batch)
        self.digests[self.index] = self.serial.digest
        return batch, outcomes

    def random(self) -> tuple[bytes, list[Outcome]]:
        rng = self.rng
        for _ in range(rng.randrange(1, 4)):
            self.late.append((self.index + 1 + rng.choice((0, 0, 0, rng.randrange(LAG))), self._entry()))
        due = [entry for at, entry in self.late if at <= self.index + 1]
        self.late = [(at, entry) for at, entry in self.late if at > self.index + 1]
        made = [schema.number_at(self.index + 1, k) for k in range(len(due))]
        found = self.batch(*due)
        made += sorted({outcome.opened for outcome in found[1]} - {0, *made, *self.inos})
        self.inos = [TOP, *(self.inos + [ino for ino in made if self.serial.exists(ino)])[1:][-14:]]
        return found

    def _among_directories(self, op: Any) -> Any:
        """The same, where names are more often."""
        found = [ino for ino in self.inos if (i := self.serial._scope.find(ino)) is not None and i.is_dir]
        places = {
            field: self.rng.choice(found)
            for field in ("parent", "new_parent")
            if hasattr(op, field) and self.rng.random() < 0.7
        }
        return replace(op, **places)

    def _entry(self) -> Any:
        rng = self.rng
        time_ns = rng.randrange(10**6)
        if rng.random() < 0.15:
            op = random_internal(rng, self.inos, SESSION)
            while isinstance(op, ops.SessionExpire) and self.index < 130:  # with it, all that comes after is refused
                op = random_internal(rng, self.inos, SESSION)
            if rng.random() < 0.3:
                op = self._back()
            if isinstance(op, ops.ReclaimDone) and rng.random() < 0.8:
                op = ops.ReclaimDone(tuple(ino for ino, _ in self.serial.reclaimable(2)))
            if rng.random() < 0.4:
                replica = rng.choice([1, 2, 3])
                op = ops.OrphanAnswer(replica, tuple(self.serial.orphans_owed(replica)), ())
            if rng.random() < 0.1:
                op = quotaops.QuotaWork()
            if rng.random() < 0.25:
                op = self._of_the_cluster()
            head = time_ns, 0, 1, 1
        else:
            slot = rng.randrange(16)
            session, numbers = rng.choice([(SESSION, self.numbers)] * 3 + [(OTHER, self.others)])
            numbers[slot] = max(1, numbers[slot] + rng.choice((1, 1, 1, 1, 0, -1)))
            op = self._among_directories(random_op(rng, self.inos))
            if rng.random() < 0.1:
                op = ops.Accessed(tuple((rng.choice(self.inos), rng.randrange(10**6)) for _ in range(3)))
            elif rng.random() < 0.1:
                op = Reserve(rng.choice(self.inos), rng.randrange(99), 10)
            elif rng.random() < 0.15:
                op = self._of_a_small_file()
            elif rng.random() < 0.03:
                op = self._of_a_quota()
            elif rng.random() < 0.1:
                op = self._removal()
            elif rng.random() < 0.1:
                op = self._of_special_attributes()
            elif rng.random() < 0.3:
                op = self._of_a_delegation(session)
            head = time_ns, session, slot, numbers[slot]
            if rng.random() < 0.02:
                return rng.choice([(*head, b"junk"), (1, 2), "x", (*head, encode(op), "plan")])
        seen = look(self.serial.store, op)
        if seen is None or rng.random() < 0.1:
            return (*head, encode(op))
        return (*head, encode(op), seen if rng.random() < 0.75 else (*seen[:-1], 7))

    def _of_a_delegation(self, session: int) -> Any:
        """What a holder asks for, or would like to be one."""
        rng, serial = self.rng, self.serial
        found = [ino for ino in self.inos if (i := serial._scope.find(ino)) is not None and i.is_dir]
        own = [ino for ino, (whose, _) in serial.delegated.items() if whose == session]
        kind = rng.random()
        if kind < 0.4 or not own:
            return Delegate(rng.choice([ROOT, ROOT, ALICE]), rng.choice(found))
        if kind < 0.5:
            return Undelegate((rng.choice(found + own),))
        blocks = delegations.holder(serial.store, rng.choice([session, session, session, OTHER])).blocks
        ino = rng.choice(blocks or (7,)) + rng.randrange(-1, 8)
        pieces = rng.choice([(), ((0, b"bytes"),), ((70, b"more"),)])
        times = rng.randrange(10**6), rng.randrange(10**6)
        above, name = rng.choice([*own, *own, *found]), rng.choice(NAMES)
        return CreateDelegated(ROOT, above, name, 0o6755, max(ino, 1), times[0], pieces, times[1])

    def _back(self) -> Any:
        """What replicas ask for what is delegated."""
        rng, delegated = self.rng, self.serial.delegated
        parents = tuple(rng.sample(sorted({*self.inos, *delegated}), 2)) if len(self.inos) > 1 else (TOP,)
        if rng.random() < 0.6:
            return RecallDelegations(parents, rng.random() < 0.1)
        return RevokeDelegations(tuple((ino, delegated.get(ino, (OTHER, True))[0]) for ino in parents))

    def _of_special_attributes(self) -> Any:
        """Attributes that say something of others: who may do what below, and how files are laid out."""
        rng = self.rng
        named = ((acl.USER, rng.randrange(8), ALICE.uid), (acl.MASK, rng.randrange(8), acl.NO_ID))
        rest = ((acl.USER_OBJ, 7, acl.NO_ID), (acl.GROUP_OBJ, 5, acl.NO_ID), (acl.OTHER, 7, acl.NO_ID))
        list_ = acl.encoded(tuple(sorted((*rest, *(named if rng.random() < 0.7 else ())))))
        ino, cred = rng.choice(self.inos), rng.choice([ROOT, ROOT, ALICE])
        name = rng.choice([acl.ACCESS, acl.DEFAULT, acl.DEFAULT, layout.ATTRIBUTE])
        if rng.random() < 0.25:
            return ops.RemoveXattr(cred, ino, name)
        policy = b"stripe_count=%d copies=%d inline=%d" % (
            rng.randrange(1, 4),
            rng.randrange(1, 3),
            64 * rng.randrange(3),
        )
        return ops.SetXattr(cred, ino, name, policy if name == layout.ATTRIBUTE else list_, 0)

    def _of_the_cluster(self) -> Any:
        rng = self.rng
        target, other, key = rng.randrange(1, 6), rng.randrange(1, 6), bytes([rng.randrange(3)]) * 16
        chains = self.serial.storage_map()[2] or ((target, 1, ()),)
        chain, version, members = rng.choice(chains)
        inside = rng.choice(members)[0] if members else target
        spared = (SESSION, OTHER) if self.index < 130 else (SESSION,)
        sessions = [(n, s) for n, s in self.serial.sessions() if n not in spared] or [(5, Session(KEY, "c", 8, 1, 1))]
        session, known = rng.choice(sessions)
        return rng.choice(
            [
                targetops.TargetUp(target, rng.randrange(1, 4), rng.randrange(1, 3)),
                targetops.TargetDown(target, rng.randrange(1, 4)),
                targetops.ChainSynced(chain, version, inside),
                targetops.ChainMove(chain, version, target, inside),
                targetops.ChainLeave(chain, version, inside),
                targetops.TargetDrain(target, rng.random() < 0.5),
                targetops.TargetRemove(target, rng.random() < 0.5),
                targetops.TargetReplace(target, key, rng.random() < 0.5),
                targetops.TargetSpace(((target, rng.randrange(9)), (other, rng.randrange(9)))),
                targetops.KeyRotate(self.serial.keys.rotations, key),
                roster.ReplicaSet(target, f"r:{other}", "somebody"),
                roster.ReplicaRemove(target, "somebody"),
                roster.WitnessSet(target + 3, f"w:{other}", "somebody"),
                roster.WitnessRemove(target + 3, "somebody"),
                ops.SessionClose(session, known.key),
                ops.SessionExpire(session, known.attempt),
                *(ops.TargetSet(n, f"h:{n}", b"u" * 16) for n in range(1, 6)),
            ]
        )

    def quota_on_all(self) -> Any:
        """An entry that has everything counted from the start."""
        self.numbers[0] += 1
        limits = b"bytes_hard=%d inodes_soft=%d" % (self.rng.randrange(100, 2000), self.rng.randrange(10, 40))
        return 1, SESSION, 0, self.numbers[0], encode(ops.SetXattr(ROOT, TOP, quota.ATTRIBUTE, limits, 0))

    def _of_a_small_file(self) -> Any:
        files = [ino for ino in self.inos if (i := self.serial._scope.find(ino)) is not None and i.inline]
        ino = self.rng.choice(files or self.inos)
        growing = inline.contents(self.serial.store, ino).growing
        write = WriteInline(ino, ((self.rng.randrange(99), b"bytes"),), self.rng.randrange(10**6))
        return self.rng.choice([write, write, GrowOut(ino), GrownOut(ino, growing or 7)])

    def tops(self) -> dict[int, int]:
        """Each quota root and the uppermost one above it."""
        store = self.serial.store
        roots = [int.from_bytes(key, "big") for key, _ in store.scan(schema.QUOTAS, b"", None)]
        return {root: list(quota.chain(store, root))[-1][0] for root in roots}

    def _removal(self) -> Any:
        """Of a name that is there, if the first guess is none."""
        names = [(ino, name) for ino in self.inos for name in NAMES]
        self.rng.shuffle(names)
        found = next(((ino, name) for ino, name in names if entries.find(self.serial.store, ino, name)), names[0])
        return ops.Unlink(ROOT, *found)

    def _of_a_quota(self) -> Any:
        rng = self.rng
        found = [ino for ino in self.inos if (i := self.serial._scope.find(ino)) is not None and i.is_dir]
        ino = rng.choice(found)
        if rng.random() < 0.15:
            return ops.RemoveXattr(ROOT, ino, quota.ATTRIBUTE)
        few = b"bytes_soft=%d inodes_hard=%d grace_s=0" % (rng.randrange(1, 200), rng.randrange(5, 30))
        limits = rng.choice([few, b"bytes_hard=%d" % rng.randrange(1, 400), b"inodes_soft=4"])
        return ops.SetXattr(ROOT, ino, quota.ATTRIBUTE, limits, 0)


class Scheduled:
    """A machine that gets the same history while caches hold requests back for a time."""

    def __init__(self, rng: random.Random, path: Path) -> None:
        self.rng = rng
        self.path = path
        self.store = Store.open(path)
        self._start()

    def _start(self) -> None:
        self.schedule = Schedule(StateMachine(self.store, 2))
        self.held: list[tuple[int, int]] = []
        self.outcomes: dict[tuple[int, int], Outcome] = {}
        self.restarts = getattr(self, "restarts", 0)

    def deliver(self, index: int, batch: bytes) -> None:
        known = decode_batch(batch)
        held = frozenset(k for k in range(len(known[0])) if self.rng.random() < 0.3)
        self.schedule.deliver((1, 1, index), index, known, held)
        self.held += [(index, k) for k in held]
        self.work()

    def work(self, everything: bool = False) -> None:
        """Some time passes: caches let go of some requests, and some that may be executed are, in any order."""
        rng = self.rng
        if everything:
            self.schedule.clear_all()
            self.held.clear()
        while self.held and rng.random() < 0.45:
            index, k = self.held.pop(rng.randrange(len(self.held)))
            self.schedule.clear((1, 1, index), k)
        while (ready := self.schedule.ready) and (everything or rng.random() < 0.7):
            request = rng.choice(ready)
            self.outcomes[request.index, request.k] = self.schedule.execute(request)
            self.schedule.validate()

    def crash(self) -> None:
        """What is applied is written, with what waits; the process ends, and another one begins with that."""
        self.schedule.state.set_position(b"p")
        flush(self.store)
        self.store.close()
        self.store = Store.open(self.path)
        self._start()
        self.restarts += 1


def alike(store: Store, other: Store) -> bool:
    """Whether two states hold the same, but for what is each one's own."""
    one, two = ([r for r in contents(s) if r[:2] not in OWN] for s in (store, other))
    return one == two


@pytest.mark.parametrize("seed", range(40))
def test_the_state_is_that_of_serial_execution(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    serial = StateMachine(Store.open(tmp_path / "serial"), 1)
    made = Histories(rng, serial)
    other = Scheduled(rng, tmp_path / "scheduled")
    made.view((1, 2, 3))
    other.schedule.state.view_event(made.index, 1, made.index, (1, 2, 3))
    expected: dict[tuple[int, int], Outcome] = {}
    batch, _ = made.batch(*BOTH)
    other.deliver(made.index, batch)
    if seed % 2:
        batch, _ = made.batch(made.quota_on_all())
        other.deliver(made.index, batch)
    above = 0
    for _ in range(150):
        if rng.random() < 0.04:
            members = tuple(sorted(rng.sample([1, 2, 3], rng.choice([1, 2, 3]))))
            made.view(members)
            other.work(everything=True)  # a view becomes active when nothing is held any more
            other.schedule.state.view_event(made.index, 1, made.index, members)
        elif rng.random() < 0.03:
            other.crash()
            assert other.schedule.state.low == made.index
        else:
            batch, outcomes = made.random()
            expected.update({(made.index, k): outcome for k, outcome in enumerate(outcomes)})
            other.deliver(made.index, batch)
        machine = other.schedule.state
        machine.validate()
        assert machine.digest == made.digests[machine.low], "digests are equal where `low` is"
        above += machine.low < machine.index
    other.work(everything=True)
    assert other.schedule.empty and machine.low == machine.index == made.index
    assert all(expected.get(at, outcome) == outcome for at, outcome in other.outcomes.items()), "and so is what is told"
    assert alike(serial.store, other.store)
    assert check(other.store) == []
    assert above > 30, "the schedule was of some use"
    other.store.close()
    serial.store.close()


# -- what a request reads and writes is what it has locked


_OWNER = {
    schema.INODES.number: lambda key: int.from_bytes(key, "big"),
    schema.DIRENTS.number: lambda key: (int.from_bytes(key[:8], "big"), key[8:]),
    schema.COOKIES.number: lambda key: int.from_bytes(key[:8], "big"),
    schema.SYMLINKS.number: lambda key: int.from_bytes(key, "big"),
    schema.XATTRS.number: lambda key: int.from_bytes(key[:8], "big"),
    schema.ORPHANS.number: lambda key: int.from_bytes(key, "big"),
    schema.OWED.number: lambda key: int.from_bytes(key[1:], "big"),
    schema.RECLAIM.number: lambda key: int.from_bytes(key, "big"),
    schema.TRIMS.number: lambda key: int.from_bytes(key, "big"),
    schema.APPENDS.number: lambda key: int.from_bytes(key, "big"),
    schema.SESSIONS.number: lambda key: ("session", int.from_bytes(key, "big")),
    schema.SESSION_KEYS.number: lambda key: ("sessions",),
    schema.REPLIES.number: lambda key: ("slot", int.from_bytes(key[:8], "big"), int.from_bytes(key[8:], "big")),
    schema.INLINE.number: lambda key: int.from_bytes(key, "big"),
    schema.QUOTAS.number: lambda key: ("a quota", int.from_bytes(key, "big")),
    schema.QUOTA_WORK.number: lambda key: QUOTAS,
    schema.DELEGATIONS.number: lambda key: int.from_bytes(key, "big"),
    schema.HOLDERS.number: lambda key: ("session", int.from_bytes(key, "big")),
    schema.TARGETS.number: lambda key: STORAGE,
    schema.CHAINS.number: lambda key: STORAGE,
    schema.ROSTER.number: lambda key: ROSTER,
    schema.META.number: {
        schema.META_STORAGE: STORAGE,
        schema.META_KEYS: STORAGE,
        schema.META_PAUSE: DELEGATIONS,
        schema.META_ROSTER: ROSTER,
    }.__getitem__,
}
"""Table -> the lock that covers a record of it."""


class Spy:
    """Notes what a machine's store is asked for and told, and that it looks at the storage map in memory."""

    def __init__(self, machine: StateMachine) -> None:
        store = machine.store
        self.seen: list[tuple[bool, Any]] = []
        get, put, delete, scan = store.get, store.put, store.delete, store.scan

        def note(changes: bool, table: schema.Table, key: bytes) -> None:
            self.seen.append((changes, _OWNER[table.number](key)))  # type: ignore[no-untyped-call]

        def spied_get(table: schema.Table, key: bytes) -> bytes | None:
            note(False, table, key)
            return get(table, key)

        def spied_put(table: schema.Table, key: bytes, value: bytes) -> None:
            if table is not schema.RECLAIM:  # objects are queued under a number of their own, once
                note(True, table, key)
            put(table, key, value)

        def spied_delete(table: schema.Table, key: bytes) -> None:
            note(True, table, key)
            delete(table, key)

        def spied_scan(table: schema.Table, start: bytes, stop: bytes | None) -> Iterator[tuple[bytes, bytes]]:
            for key, value in scan(table, start, stop):
                note(False, table, key)
                yield key, value

        store.get, store.put, store.delete = spied_get, spied_put, spied_delete  # type: ignore[method-assign]
        store.scan = spied_scan  # type: ignore[method-assign]
        seen, storage = self.seen, machine._scope.storage

        class Watched:
            def __getattr__(self, name: str) -> Any:
                seen.append((False, STORAGE))
                return getattr(storage, name)

        machine._scope.storage = Watched()  # type: ignore[assignment]

        class Mirror(dict[int, Any]):
            """What is delegated, as the machine has it in memory."""

            def __bool__(self) -> bool:
                return True

            def __contains__(self, ino: Any) -> bool:
                if ino != STORAGE_MAP:
                    seen.append((False, ino))
                return super().__contains__(ino)

            def get(self, ino: Any, default: Any = None) -> Any:
                seen.append((False, ino))
                return super().get(ino, default)

            def values(self) -> Any:
                seen.append((False, DELEGATIONS))
                return super().values()

            def items(self) -> Any:
                seen.append((False, DELEGATIONS))
                return super().items()

        machine._scope.delegated = Mirror(machine.delegated)


@pytest.mark.parametrize("seed", range(12))
def test_a_request_touches_nothing_that_it_has_not_locked(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    machine = StateMachine(Store.open(tmp_path / "s"), 1)
    made = Histories(rng, machine)
    made.view((1, 2, 3))
    made.batch(*BOTH)
    if seed % 2:
        made.batch(made.quota_on_all())
    spy = Spy(machine)
    judged = 0
    for _ in range(300):
        entry = made._entry()
        batch = pack((entry,))
        ((item,), (op,)) = decode_batch(batch)
        index = made.index + 1
        locks: dict[Any, int] = {}
        if op is not None and not (len(item) == 6 and type(item[5]) is not tuple):
            fresh = schema.number_at(index, 0)
            locks = dict(locks_of(op, item[1], item[2], seen_untrusted(op, item), fresh, machine.store))
        tops = made.tops()
        spy.seen.clear()
        made.batch(entry)
        if not locks:
            continue
        if locks.get(EVERYTHING) == WRITE:
            continue
        judged += 1
        for changes, owner in spy.seen:
            mode = locks.get(owner, -1)
            if isinstance(owner, tuple) and owner[0] == "a quota":
                mode = locks[QUOTAS]
                if mode == READ:
                    mode = locks.get(quota_key(tops[owner[1]]), -1)
            if isinstance(owner, tuple) and owner[0] == "slot":
                mode = max(mode, locks.get(("session", owner[1]), -1))  # who ends a session removes its replies
            if not changes and TREE in locks and isinstance(owner, int):
                continue  # it walks up the tree
            assert mode >= (UPDATE if changes else READ), f"{op} with {locks} touches {owner}"
        there = [ino for ino in (*made.inos[1:], schema.number_at(index, 0)) if machine.exists(ino)]
        made.inos = [TOP, *there[-13:]]
    assert judged > 150
    machine.store.close()


def test_who_reads_a_directory_depends_on_nothing_that_an_update_changes(tmp_path: Path) -> None:
    """An unlink of a name that is not there, executed before and after a create next to it, with all that it tells."""
    answers = []
    for first in ("create", "unlink"):
        world = World(tmp_path / first)
        above = world.mkdir(b"d")
        index = world.machine.index + 1
        entries = (
            (world.time + 1, world.session, 1, 1, encode(ops.Create(ALICE, above, b"x", 0o644))),
            (world.time + 2, world.session, 2, 1, encode(ops.Unlink(ROOT, above, b"gone")), (0,)),
        )
        schedule = Schedule(world.machine)
        schedule.deliver((1, 1, index), index, decode_batch(pack(entries)), frozenset())
        assert len(schedule.ready) == 2, "read passes update"
        order = (0, 1) if first == "create" else (1, 0)
        ready = {request.k: request for request in schedule.ready}
        answers.append([schedule.execute(ready[k]) for k in order][:: 1 if first == "create" else -1])
        assert schedule.empty
        world.finish()
    assert answers[0] == answers[1]


def test_a_stale_plan_changes_nothing_and_leaves_the_slot(world_path: Path) -> None:
    world = World(world_path)
    ino = world.create(b"x")
    op = encode(ops.Unlink(ROOT, TOP, b"x"))
    before = [r for r in contents(world.store) if r[0] != 0]
    (outcome,) = world.batch((world.time, world.session, 5, 1, op, (ino + 1,)))
    assert outcome.status == Status.STALE_PLAN and not outcome.store_reply
    assert [r for r in contents(world.store) if r[0] != 0] == before
    (outcome,) = world.batch((world.time, world.session, 5, 1, op, (ino,)))
    assert outcome.status == OK
    (again,) = world.batch((world.time, world.session, 5, 1, op, (ino,)))
    assert again.status == OK and not again.store_reply, "what is done is answered, however it is planned"
    world.release(ino)
    world.finish()


@pytest.fixture
def world_path(tmp_path: Path) -> Path:
    return tmp_path / "s"


def test_only_what_conflicts_with_a_held_request_waits(world_path: Path) -> None:
    world = World(world_path)
    one, two = world.mkdir(b"one"), world.mkdir(b"two")
    schedule = Schedule(world.machine)
    index = world.machine.index + 1
    asked: list[tuple[Any, Any]] = [
        (ops.Create(ROOT, one, b"a", 0o644), None),
        (ops.Create(ROOT, one, b"b", 0o644), None),
        (ops.Create(ROOT, two, b"a", 0o644), None),
        (ops.Unlink(ROOT, one, b"c"), (0,)),
        (ops.Unlink(ROOT, one, b"a"), (0,)),
        (ops.Rmdir(ROOT, TOP, b"one"), (one,)),
    ]
    entries = tuple(
        (world.time, world.session, slot, 1, encode(op), *(() if seen is None else (seen,)))
        for slot, (op, seen) in enumerate(asked, 10)
    )
    schedule.deliver((1, 1, index), index, decode_batch(pack(entries)), frozenset({0}))
    assert [request.k for request in schedule.ready] == [2, 3], "another directory, and a name that nobody touches"
    while (request := schedule.next()) is not None:
        schedule.execute(request)
    assert world.machine.low == index - 1 and len(schedule) == 4
    schedule.clear((1, 1, index), 0)
    statuses = {}
    while (request := schedule.next()) is not None:
        statuses[request.k] = schedule.execute(request).status
    assert statuses[4] == Status.STALE_PLAN, "the name is there by now"
    assert schedule.empty and world.machine.low == index
    said = schedule.statistics()
    assert said["held"] == 1 and said["queued"] == 3 and said["declared"] == 6
    assert said["cells"]["update"]["update"] == {"executed": 0, "queued": 1}
    assert said["cells"]["update"]["read"]["executed"] == 2
    for name in (b"a", b"b"):
        world.ok(ops.Unlink(ROOT, one, name))
    world.finish()


def test_what_is_counted_in_a_quota_keeps_its_order_from_its_beginning_on(world: World) -> None:
    """The tree gets its quota while others wait to make something there: there is no quota yet when they ask for
    their locks. The limit leaves room for one of them, and that is the first."""
    above = world.mkdir(b"d")
    one, two = world.mkdir(b"1", above), world.mkdir(b"2", above)
    schedule = Schedule(world.machine)
    index = world.machine.index + 1
    asked = [
        ops.SetXattr(ROOT, above, quota.ATTRIBUTE, b"inodes_hard=4", 0),
        quotaops.QuotaWork(),
        ops.Mkdir(ROOT, one, b"a", 0o755),
        ops.Mkdir(ROOT, two, b"b", 0o755),
        ops.SetXattr(ROOT, TOP, b"user.x", b"y", 0),
    ]
    entries = tuple(
        (world.time, 0, 1, 1, encode(op)) if isinstance(op, quotaops.QuotaWork)
        else (world.time, world.session, slot, 1, encode(op))
        for slot, op in enumerate(asked, 10)
    )  # fmt: skip
    schedule.deliver((1, 1, index), index, decode_batch(pack(entries)), frozenset({0}))
    assert not schedule.ready
    schedule.clear((1, 1, index), 0)
    statuses = {}
    while ready := schedule.ready:
        request = max(ready, key=lambda r: r.k)
        statuses[request.k] = schedule.execute(request).status
    assert list(statuses) == [0, 1, 4, 2, 3], "what is not counted need not wait"
    assert statuses[2] == OK and statuses[3] == errno.EDQUOT
    assert world.names(one) == [b"a"] and world.names(two) == []


def test_what_moves_to_another_quota_keeps_its_order_there(world: World) -> None:
    """A file waits to be moved into another quota: who asks for locks by then cannot tell where it is to be counted."""
    one, two, three = world.mkdir(b"1"), world.mkdir(b"2"), world.mkdir(b"3")
    for root in (one, two, three):
        world.ok(ops.SetXattr(ROOT, root, quota.ATTRIBUTE, b"bytes_hard=15", 0))
    moved, other, apart = (world.create(b"f", parent) for parent in (one, two, three))
    index = world.machine.index + 1
    asked: list[tuple[Any, ...]] = [
        (ops.Rename(ROOT, one, b"f", two, b"g", 0), (moved, 0, 0)),
        (ops.Commit(moved, 10, 1),),
        (ops.Commit(other, 10, 1),),
        (ops.Commit(apart, 10, 1),),
    ]
    entries = tuple(
        (world.time, world.session, slot, 1, encode(op), *seen) for slot, (op, *seen) in enumerate(asked, 10)
    )
    schedule = Schedule(world.machine)
    schedule.deliver((1, 1, index), index, decode_batch(pack(entries)), frozenset({0}))
    assert not schedule.ready
    schedule.clear((1, 1, index), 0)
    statuses = {}
    while ready := schedule.ready:
        request = max(ready, key=lambda r: r.k)
        statuses[request.k] = schedule.execute(request).status
    assert statuses == {0: OK, 1: OK, 2: errno.EDQUOT, 3: OK}


def test_quotas_do_not_wait_for_each_other(world: World) -> None:
    one, two = world.mkdir(b"1"), world.mkdir(b"2")
    for root in (one, two):
        world.ok(ops.SetXattr(ROOT, root, quota.ATTRIBUTE, b"inodes_hard=2", 0))
    index = world.machine.index + 1
    asked = [ops.Mkdir(ROOT, parent, name, 0o755) for parent, name in ((one, b"a"), (one, b"b"), (two, b"c"))]
    entries = tuple((world.time, world.session, slot, 1, encode(op)) for slot, op in enumerate(asked, 10))
    schedule = Schedule(world.machine)
    schedule.deliver((1, 1, index), index, decode_batch(pack(entries)), frozenset({0}))
    assert [request.k for request in schedule.ready] == [2]
    schedule.execute(schedule.ready[0])
    schedule.clear((1, 1, index), 0)
    assert [schedule.execute(request).status for request in iter(schedule.next, None)] == [OK, errno.EDQUOT]


def test_what_objects_are_called_that_are_deleted_is_found_out_late(world: World) -> None:
    """A file that grew out waits to be removed here; elsewhere it has been, and its objects are gone."""
    ino = world.create(b"f")
    schedule = Schedule(world.machine)
    index = world.machine.index + 1
    removal = (world.time, world.session, 10, 1, encode(ops.Unlink(ROOT, TOP, b"f")), (ino,))
    done = (world.time, 0, 1, 1, encode(ops.ReclaimDone((ino + 7,))))
    schedule.deliver((1, 1, index), index, decode_batch(pack((removal, done))), frozenset({0}))
    assert not schedule.ready, "ino + 7 may be what the file's objects are called"
    schedule.clear((1, 1, index), 0)
    assert [schedule.execute(request).status for request in iter(schedule.next, None)] == [OK, OK]
    world.release(ino)


def test_what_locks_everything_is_meant_to() -> None:
    """An operation that nobody gave a lock set is right, and stops everybody."""
    unplanned = {kind for kind in APPLY_ALL if kind not in _LOCKS}
    assert unplanned == {*_LOOK, Mend, quotaops.QuotaWork}, "Mend sets counts that all others move"
    assert set(_PLANNED) == set(_LOOK)


def test_names_and_slots_are_keys_of_their_own(world: World) -> None:
    """Two creates in two directories of two slots share nothing that is written."""
    table: LockTable[int] = LockTable(uncounted=(EVERYTHING,))
    for number, parent in enumerate((5, 6)):
        op = ops.Create(ROOT, parent, NAMES[0], 0o644)
        assert table.declare(number, locks_of(op, SESSION, number, None, 100 + number, world.store))
    assert not table.declare(2, ((slot_key(SESSION, 1), WRITE),))

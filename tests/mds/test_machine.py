"""The machine as a whole: determinism, restart, malformed batches."""

from __future__ import annotations

import errno
import random
from pathlib import Path
from typing import Any

import pytest

from mds import schema
from mds.batch import decode_batch
from mds.check import check
from mds.locksets import touched
from mds.machine import StateMachine
from mds.store import Store
from tests.mds.harness import ALICE, BOB, KEY, ROOT, TOP, World, contents
from wire import ops, targetops
from wire.codec import encode, pack, unpack_untrusted
from wire.errors import Status
from wire.inline import GrownOut, GrowOut, InlineRequest, ReadInline, WriteInline

NAMES = [b"a", b"b", b"c", b"d", b"e"]


def random_op(rng: random.Random, inos: list[int]) -> Any:
    cred = rng.choice([ROOT, ROOT, ALICE, BOB])
    ino, parent, other = rng.choice(inos), rng.choice(inos), rng.choice(inos)
    name, second = rng.choice(NAMES), rng.choice(NAMES)
    return rng.choice(
        [
            ops.Create(cred, parent, name, 0o666),
            ops.Mkdir(cred, parent, name, 0o777),
            ops.Mkdir(cred, TOP, name, 0o777),
            ops.Mknod(cred, parent, name, 0o010644, 0),
            ops.Symlink(cred, parent, name, b"target"),
            ops.Link(cred, ino, parent, name),
            ops.Unlink(cred, parent, name),
            ops.Rmdir(cred, parent, name),
            ops.Rename(cred, parent, name, other, second, rng.choice([0, 0, 1, 2])),
            ops.SetAttr(
                cred, ino, rng.randrange(256), rng.randrange(0o10000), 1001, 1002, rng.randrange(99), 5, 6, False
            ),
            ops.SetXattr(cred, ino, b"user." + name, second, rng.choice([0, 1, 2])),
            ops.RemoveXattr(cred, ino, b"user." + name),
            ops.Commit(ino, rng.randrange(99), rng.randrange(10**6)),
            ops.Settle(ino, rng.randrange(5)),
            WriteInline(ino, ((rng.randrange(99), name),), rng.randrange(10**6)),
            GrowOut(ino),
            GrownOut(ino, other),
        ]
    )


def random_internal(rng: random.Random, inos: list[int], session: int) -> Any:
    some = tuple(rng.choice(inos) for _ in range(4))
    return rng.choice(
        [
            ops.OrphanAnswer(rng.choice([1, 2, 3]), some, ()),
            ops.OrphanAnswer(rng.choice([1, 2, 3]), tuple(inos), ()),
            ops.OrphanAnswer(rng.choice([1, 2, 3]), (), some),
            ops.ReclaimDone(some),
            ops.TargetSet(rng.randrange(1, 6), f"h:{rng.randrange(1, 9)}", b"u" * 16),
            ops.SessionOpen(bytes([rng.randrange(3)]) * 16, "c", 8, rng.choice([1, 2]), rng.randrange(1, 9)),
            ops.SessionExpire(session + 4096 * rng.randrange(9), 1),
            ops.SessionAttach(session, KEY, rng.choice([1, 2]), rng.randrange(1, 50)),
        ]
    )


def random_history(seed: int, batches: int) -> list[tuple[int, Any]]:
    """(index, batch) or (index, members of a new view). What exists is guessed from what was made before."""
    rng = random.Random(seed)
    history: list[tuple[int, Any]] = [(1, (1, 2, 3))]
    session = (2 << 12) + 2
    history.append((2, pack(((1, 0, 1, 1, encode(ops.SessionOpen(KEY, "c", 64, 1, 1))),))))
    inos, numbers, index = [TOP], [0] * 64, 2
    for _ in range(batches):
        index += 1
        if rng.random() < 0.05:
            history.append((index, tuple(sorted(rng.sample([1, 2, 3], rng.choice([1, 2, 3]))))))
            continue
        entries: list[Any] = []
        for k in range(rng.randrange(1, 6)):
            if rng.random() < 0.25:
                entries.append((rng.randrange(10**6), 0, 1, 1, encode(random_internal(rng, inos, session))))
            elif rng.random() < 0.03:
                entries.append(rng.choice([(1, 2), "x", (1, session, 0, 1, b"junk"), (-1, 0, 0, 0, b"")]))
            else:
                slot = rng.randrange(64)
                numbers[slot] = max(1, numbers[slot] + rng.choice([1, 1, 1, 1, 0, -1]))
                entries.append((rng.randrange(10**6), session, slot, numbers[slot], encode(random_op(rng, inos))))
            inos.append(schema.number_at(index, k))
        inos = inos[:3] + inos[3:][-12:]
        history.append((index, pack(tuple(entries))))
    return history


def feed(machine: StateMachine, index: int, what: Any) -> Any:
    if isinstance(what, tuple):
        machine.view_event(index, 1, index, what)
        result = None
    else:
        result = machine.apply(index, 1, what)
    machine.set_position(b"%d" % index)
    return result


def flush(store: Store) -> None:
    layer = store.freeze()
    if layer is not None:
        store.write(layer)
        store.release(layer)


@pytest.mark.parametrize("seed", range(4))
def test_what_is_prepared_leaves_no_trace(tmp_path: Path, seed: int) -> None:
    """One machine executes ahead what comes next, or what is overtaken by something else; the other one never does."""
    history = random_history(seed, 120)
    rng = random.Random(seed)
    stores = [Store.open(tmp_path / name) for name in ("prepared", "plain")]
    machines = [StateMachine(store, me) for me, store in enumerate(stores, 1)]
    used = 0
    for index, what in history:
        guess = what if rng.random() < 0.7 else history[rng.randrange(len(history))][1]
        if isinstance(guess, bytes):
            digest = machines[0].digest
            machines[0].prepare(index, guess, decode_batch(guess))
            assert machines[0].digest == digest and machines[0].index < index
            machines[0].validate()
            used += guess == what and all(entry[1] for entry in decode_batch(guess)[0] if len(entry) == 5)
        if rng.random() < 0.2:
            flush(stores[0])
        assert feed(machines[0], index, what) == feed(machines[1], index, what)
        machines[0].validate()
        assert machines[0].digest == machines[1].digest
    assert used > 10
    assert contents(stores[0]) == contents(stores[1])
    for store in stores:
        store.close()


@pytest.mark.parametrize("seed", range(12))
def test_same_history_same_state(tmp_path: Path, seed: int) -> None:
    """One machine never writes, one writes at random, one is killed at random and replays from what it had written."""
    history = random_history(seed, 150)
    rng = random.Random(seed)
    stores = [Store.open(tmp_path / name) for name in ("memory", "written", "killed")]
    machines = [StateMachine(store, me) for me, store in enumerate(stores, 1)]
    succeeded = 0
    at = 0
    for at, (index, what) in enumerate(history):
        outcomes = [feed(machine, index, what) for machine in machines]
        assert outcomes[0] == outcomes[1] == outcomes[2]
        succeeded += sum(outcome.status == 0 for outcome in outcomes[0] or ())
        for machine in machines:
            machine.validate()
        assert machines[0].digest == machines[1].digest == machines[2].digest
        for store in stores[1:]:
            if rng.random() < 0.2:
                flush(store)
        if rng.random() < 0.1:
            stores[2].close()
            stores[2] = Store.open(tmp_path / "killed")
            machines[2] = StateMachine(stores[2], 3)
            assert machines[2].index == int(machines[2].position or b"0")
            for past, again in history[: at + 1]:
                if past > machines[2].index:
                    feed(machines[2], past, again)
    assert at and succeeded > 60
    assert contents(stores[0]) == contents(stores[1]) == contents(stores[2])
    for store in stores:
        assert check(store) == []
        flush(store)
        store.close()


def test_reopened_store_has_digest_and_index_of_its_effects(world: World) -> None:
    world.create(b"a")
    world.machine.set_position(b"there")
    world.flush()
    index, digest = world.machine.index, world.machine.digest
    world.create(b"b")
    world.machine.set_position(b"further")
    assert world.machine.digest != digest
    world.reopen()
    assert (world.machine.index, world.machine.digest, world.machine.position) == (index, digest, b"there")
    assert world.names() == [b"a"]
    assert world.machine.members == (1, 2, 3)


def test_digest_tells_states_apart(tmp_path: Path) -> None:
    one, other = World(tmp_path / "1"), World(tmp_path / "2")
    assert one.machine.digest == other.machine.digest
    one.ok(ops.Mkdir(ROOT, TOP, b"d", 0o700))
    other.ok(ops.Mkdir(ROOT, TOP, b"d", 0o701))
    assert one.machine.digest != other.machine.digest
    one.finish()
    other.finish()


def test_time_never_goes_back(world: World) -> None:
    """Two origins' clocks differ: ctime follows the later one."""
    ino = world.create(b"a")
    late = world.time
    world.time -= 10**12
    attr = world.attr(world.set_attr(ino, mode=0o600))
    assert attr.ctime_ns == late


def test_malformed_entries_are_answered_alike(world: World) -> None:
    good = encode(ops.Mkdir(ROOT, TOP, b"d", 0o700))
    entries: list[Any] = [
        (1, 2, 3),
        "text",
        (-1, 0, 0, 0, good),
        (1, True, 0, 0, good),
        (1, world.session, 0, 1, b"\xc1"),
        (1, world.session, 1, 1, encode(ops.GetAttr(1))),
        (1, world.session, 2, 1, good),
    ]
    outcomes = world.batch(*entries)
    assert [o.status for o in outcomes] == [Status.BAD_MESSAGE] * 6 + [0]
    assert [o.store_reply for o in outcomes] == [False] * 4 + [True] * 3
    assert world.names() == [b"d"]


@pytest.mark.parametrize("blob", [b"", b"\xc1", pack(5), pack({1: 2}), pack(tuple(range(5000)))])
def test_malformed_batch_is_empty_for_everyone(world: World, blob: bytes) -> None:
    index = world.machine.index + 1
    assert world.machine.apply(index, 2, blob) == []
    assert world.machine.index == index


def test_numbers_of_a_full_batch_are_unique(world: World) -> None:
    entries = [
        (1, 0, 1, k, encode(ops.Mknod(ROOT, TOP, b"%d" % k, 0o100644, 0))) for k in range(schema.BATCH_ENTRIES_MAX)
    ]
    first = {unpack_untrusted(o.body)[0] for o in world.batch(*entries)}
    assert len(first) == schema.BATCH_ENTRIES_MAX
    assert world.create(b"next") not in first


def test_refused_request_changes_only_its_slot(world: World) -> None:
    """Mknod of a device has made everything by the time it is refused."""
    before = world.machine.inodes
    assert world.status(ops.Mknod(ALICE, TOP, b"dev", 0o020600, 5)) == errno.EPERM
    assert world.machine.inodes == before


TOUCHED: list[tuple[Any, frozenset[int] | None]] = [
    (ops.Create(ROOT, 5, b"x", 0), frozenset({5})),
    (ops.Link(ROOT, 6, 5, b"x"), frozenset({5, 6})),
    (ops.Commit(6, 0, 0), frozenset({6})),
    (WriteInline(6, ((0, b"x"),), 0), frozenset({6})),
    (GrowOut(6), frozenset({6})),
    (GrownOut(6, 9), frozenset({6})),
    (ops.Unlink(ROOT, 5, b"x"), None),
    (ops.Rename(ROOT, 5, b"x", 6, b"y", 0), None),
    (ops.OrphanAnswer(1, (5,), (6,)), frozenset({5, 6})),
    (ops.ReclaimDone((5,)), frozenset()),
    (ops.TargetSet(1, "h:1", b"u" * 16), frozenset({0})),
    (targetops.TargetDown(1, 1), frozenset({0})),
]


@pytest.mark.parametrize(("op", "inos"), TOUCHED)
def test_touched(op: Any, inos: frozenset[int] | None) -> None:
    assert touched(op) == inos


def test_every_request_and_query_is_implemented(world: World) -> None:
    from mds.namespace.queries import QUERIES
    from mds.operations import APPLY_ALL
    from wire.delegation import DelegationRequest, RecallDelegations, RevokeDelegations
    from wire.fileops import Denied, Renew, Reserve
    from wire.mending import Mend
    from wire.quotaops import QuotaQuery, QuotaWork
    from wire.roster import RosterRequest
    from wire.targetops import TargetRequest

    requests = (
        ops.Request, InlineRequest, RosterRequest, TargetRequest, Reserve, Denied, Mend, QuotaWork, DelegationRequest,
        RecallDelegations, RevokeDelegations,
    )  # fmt: skip
    assert set(APPLY_ALL) == {kind for union in requests for kind in getattr(union, "__args__", (union,))}
    assert set(QUERIES) == {*ops.Query.__args__, *QuotaQuery.__args__, ReadInline, Renew}


@pytest.mark.parametrize("seed", range(6))
def test_what_a_query_read_is_what_can_change_its_answer(tmp_path: Path, seed: int) -> None:
    """Whatever request comes next: if it touches nothing that the query read, the answer stays."""
    rng = random.Random(seed)
    store = Store.open(tmp_path / "s")
    machine = StateMachine(store, 1)
    history = random_history(seed + 100, 120)
    for index, what in history:
        inos = [TOP] + [schema.number_at(i, k) for i in range(max(1, index - 8), index) for k in range(3)]
        asked = []
        for ino in inos:
            for op in (
                ops.GetAttr(ino),
                ops.Lookup(rng.choice([ROOT, ALICE]), ino, rng.choice([*NAMES, b"..", b"."])),
                ops.ReadDir(ROOT, ino, 0, 100),
                ops.ListXattr(ino),
                ops.Open(ALICE, ino, 2),
                ReadInline(ino),
                ops.StorageMap(),
            ):
                asked.append((op, machine.query(op)))
        feed(machine, index, what)
        if isinstance(what, tuple):
            continue
        changed: set[int] = set()
        anything = False
        for entry in unpack_untrusted(what):
            try:
                inos_of = touched(_decoded(entry))
            except ValueError:
                continue
            anything = anything or inos_of is None
            changed |= inos_of or set()
        if anything:
            continue
        for op, before in asked:
            if not before.read & changed:
                assert machine.query(op) == before, f"{op} changed though {changed} was not read"
    store.close()


def _decoded(entry: Any) -> Any:
    from wire.codec import decode
    from wire.errors import WireError

    try:
        return decode(entry[4])
    except (WireError, IndexError, TypeError) as exc:
        raise ValueError from exc

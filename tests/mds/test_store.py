"""Layers over LMDB against a dict; growing, copying, damage."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from mds import schema
from mds.layer import Layer
from mds.schema import COOKIES, INODES, META
from mds.store import Store, StoreCorrupt, StoreFailed

KEYS = st.integers(0, 40).map(lambda n: bytes([n // 8, n % 8]))

CHANGES = st.lists(st.tuples(KEYS, st.none() | st.binary(max_size=4)), max_size=8)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store.open(tmp_path / "s")
    yield store
    store.close()


def put(store: Store, **values: str | None) -> None:
    store.begin()
    for key, value in values.items():
        if value is None:
            store.delete(INODES, key.encode())
        else:
            store.put(INODES, key.encode(), value.encode())
    store.commit()


def everything(store: Store) -> dict[bytes, bytes]:
    return dict(store.scan(INODES, b"", None))


def flush(store: Store) -> None:
    layer = store.freeze()
    if layer is not None:
        store.write(layer)
        store.release(layer)


class Layers(RuleBasedStateMachine):
    """Any order of transactions, freezing, writing, releasing and scans sees what a dict would."""

    path: Path
    runs = 0

    @initialize()
    def start(self) -> None:
        Layers.runs += 1
        self.store = Store.open(self.path / str(Layers.runs))
        self.model: dict[bytes, bytes] = {}
        self.on_disk: dict[bytes, bytes] = {}
        self.frozen: tuple[Layer, dict[bytes, bytes]] | None = None
        self.written = False

    @rule(changes=CHANGES, keep=st.booleans(), look=KEYS)
    def transaction(self, changes: list[tuple[bytes, bytes | None]], keep: bool, look: bytes) -> None:
        after = dict(self.model)
        self.store.begin()
        for key, value in changes:
            if value is None:
                self.store.delete(COOKIES, key)
                after.pop(key, None)
            else:
                self.store.put(COOKIES, key, value)
                after[key] = value
            assert self.store.get(COOKIES, key) == value
        assert list(self.store.scan(COOKIES, look, None)) == sorted(i for i in after.items() if i[0] >= look)
        if keep:
            effects = self.store.commit()
            assert effects == [(COOKIES.number, key, value) for key, value in changes]
            self.model = after
        else:
            self.store.rollback()

    @rule()
    def freeze(self) -> None:
        layer = self.store.freeze()
        if self.frozen is not None:
            assert layer is None
        elif layer is not None:
            self.frozen = layer, dict(self.model)
            self.written = False

    @precondition(lambda self: self.frozen is not None and not self.written)
    @rule()
    def write(self) -> None:
        assert self.frozen is not None
        self.store.write(self.frozen[0])
        self.written = True
        self.on_disk = self.frozen[1]

    @precondition(lambda self: self.written)
    @rule()
    def release(self) -> None:
        assert self.frozen is not None
        self.store.release(self.frozen[0])
        self.frozen, self.written = None, False

    @rule()
    def crash(self) -> None:
        """What is not written is lost, in whole layers."""
        self.store.close()
        self.store = Store.open(self.store.path)
        self.model, self.frozen, self.written = dict(self.on_disk), None, False

    @rule(start=KEYS, stop=KEYS)
    def scan(self, start: bytes, stop: bytes) -> None:
        want = sorted(item for item in self.model.items() if start <= item[0] < stop)
        assert list(self.store.scan(COOKIES, start, stop)) == want

    @invariant()
    def same(self) -> None:
        if hasattr(self, "store"):
            assert dict(self.store.scan(COOKIES, b"", None)) == self.model

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()


def test_layers_against_a_dict(tmp_path: Path) -> None:
    Layers.path = tmp_path
    run_state_machine_as_test(
        Layers,
        settings=settings(
            max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def test_scan_over_many_chunks(store: Store) -> None:
    """Records of one range lie in LMDB, the frozen layer and the current one, deletions among them."""
    model = {}
    for start in range(3):
        store.begin()
        for k in range(start, 3000, 3):
            key = k.to_bytes(4, "big")
            store.put(INODES, key, key)
            model[key] = key
        for k in range(start * 7, 3000, 50):
            store.delete(INODES, k.to_bytes(4, "big"))
            model.pop(k.to_bytes(4, "big"), None)
        store.commit()
        layer = store.freeze()
        if start == 0:
            assert layer is not None
            store.write(layer)
            store.release(layer)
    assert list(store.scan(INODES, b"", None)) == sorted(model.items())
    low, high = (1000).to_bytes(4, "big"), (2000).to_bytes(4, "big")
    assert list(store.scan(INODES, low, high)) == sorted(i for i in model.items() if low <= i[0] < high)


def test_map_grows_by_itself(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "s", map_size=1 << 20)
    for k in range(8):
        put(store, **{f"k{k}.{n}": "x" * 1000 for n in range(1000)})
        flush(store)
    assert len(everything(store)) == 8000
    store.close()
    store = Store.open(tmp_path / "s", map_size=1 << 20)
    assert len(everything(store)) == 8000
    store.close()


def test_reads_go_on_while_a_worker_writes_and_the_map_grows(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "s", map_size=1 << 20)
    put(store, first="1")
    flush(store)
    put(store, **{f"k{n:06}": "x" * 500 for n in range(20_000)})
    layer = store.freeze()
    assert layer is not None
    worker = threading.Thread(target=store.write, args=(layer,))
    worker.start()
    rounds = 0
    while worker.is_alive():
        rounds += 1
        assert store.get(INODES, b"first") == b"1"
        put(store, **{f"z{rounds % 100}": str(rounds)})
        assert [key for key, _value in store.scan(INODES, b"a", b"k000002")] == [b"first", b"k000000", b"k000001"]
    worker.join()
    store.release(layer)
    assert store.get(INODES, b"k019999") == b"x" * 500
    flush(store)
    assert len(everything(store)) == 20_001 + min(rounds, 100)
    store.close()


def test_pending_bytes_follow_the_layers(store: Store) -> None:
    assert store.pending_bytes == 0
    put(store, a="x" * 100)
    one = store.pending_bytes
    assert one > 100
    put(store, a="x" * 100)
    assert store.pending_bytes == one
    put(store, a=None)
    assert store.pending_bytes == one - 100
    store.begin()
    store.put(INODES, b"b", b"y")
    store.put(INODES, b"a", b"yy")
    store.rollback()
    assert store.pending_bytes == one - 100
    layer = store.freeze()
    assert layer is not None and store.pending_bytes == one - 100
    store.write(layer)
    store.release(layer)
    assert store.pending_bytes == 0
    assert store.freeze() is None


def test_only_one_layer_is_frozen_at_a_time(store: Store) -> None:
    put(store, a="1")
    layer = store.freeze()
    put(store, a="2")
    assert store.freeze() is None
    assert layer is not None
    store.write(layer)
    assert store.get(INODES, b"a") == b"2"
    store.release(layer)
    assert store.freeze() is not None


def test_copy_is_of_what_is_written(store: Store, tmp_path: Path) -> None:
    put(store, a="1")
    flush(store)
    put(store, a="2")
    store.copy_to(tmp_path / "copy")
    copy = Store.open(tmp_path / "copy")
    assert everything(copy) == {b"a": b"1"}
    copy.close()


@pytest.mark.parametrize("damage", ["junk", "cut", "pages"])
def test_damage_is_told_with_the_way_out(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "s"
    store = Store.open(path)
    put(store, **{f"k{n}": "x" * 100 for n in range(5000)})
    flush(store)
    store.close()
    data = path / "data.mdb"
    raw = bytearray(data.read_bytes())
    if damage == "junk":
        raw[:] = b"x" * len(raw)
    elif damage == "cut":
        del raw[len(raw) // 2 :]
    else:
        for page in range(2, len(raw) // 4096):
            raw[page * 4096 + 8 : (page + 1) * 4096] = b"\xff" * 4088
    data.write_bytes(raw)
    with pytest.raises(StoreCorrupt, match="remove that directory") as caught:
        Store.open(path)
    assert str(path) in str(caught.value)


def test_other_schema_version(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "s")
    store.begin()
    store.put(META, schema.META_SCHEMA, b"\x91\x63")
    store.commit()
    flush(store)
    store.close()
    with pytest.raises(StoreCorrupt, match=rf"schema version is \(99,\), this program's is {schema.SCHEMA_VERSION}"):
        Store.open(tmp_path / "s")


def test_environment_of_somebody_else(tmp_path: Path) -> None:
    with lmdb.open(str(tmp_path / "s")) as env, env.begin(write=True) as txn:
        txn.put(b"a", b"b")
    with pytest.raises(StoreCorrupt, match="not a LockstepFS state"):
        Store.open(tmp_path / "s")


def test_opened_twice_is_no_damage(store: Store) -> None:
    """A mistake of ours must not end in the advice to remove the state."""
    with pytest.raises(StoreFailed, match="already open"):
        Store.open(store.path)


def test_place_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreFailed, match="cannot be opened"):
        Store.open(tmp_path / "file" / "s")


def test_an_empty_environment_is_a_new_one(tmp_path: Path) -> None:
    """The power went between making the file and the first commit."""
    lmdb.open(str(tmp_path / "s")).close()
    Store.open(tmp_path / "s").close()
    Store.open(tmp_path / "s").close()


@given(st.integers(1, 2**63 - 1), st.integers(1, 2**63 - 1), st.binary(max_size=20), st.binary(max_size=20))
def test_keys_of_one_prefix_are_a_range(one: int, other: int, name: bytes, second: bytes) -> None:
    prefix = schema.u64(one)
    inside = prefix <= schema.dirent_key(other, name) < schema.after(prefix)
    assert inside == (one == other)
    assert schema.cookie_key(one, 5) < schema.cookie_key(one, 6)
    assert schema.dirent_key(one, second).startswith(prefix)


def test_writing_goes_on_while_copies_are_taken_slowly(tmp_path: Path) -> None:
    """Two learners, or a learner and an administrator, take the state, and both stop in the midst of it."""
    store = Store.open(tmp_path / "s", map_size=1 << 23)
    put(store, **{f"k{n:06}": "x" * 500 for n in range(3000)})
    flush(store)

    def copy(end: int) -> None:
        store.copy_into(end)
        os.close(end)

    pipes = [os.pipe() for _ in range(2)]
    copies = [threading.Thread(target=copy, args=(end,)) for _, end in pipes]
    for thread in copies:
        thread.start()
    begun = [os.read(start, 4096) for start, _ in pipes]  # more than a pipe holds is left: neither can be over
    put(store, **{f"m{n:06}": "y" * 500 for n in range(3000)})
    flush(store)
    assert all(thread.is_alive() for thread in copies)
    for (start, _), first, where in zip(pipes, begun, ("a", "b"), strict=True):
        (tmp_path / where).mkdir()
        with os.fdopen(start, "rb") as rest:
            (tmp_path / where / "data.mdb").write_bytes(first + rest.read())
        copied = Store.open(tmp_path / where)
        assert len(everything(copied)) == 3000
        copied.close()
    for thread in copies:
        thread.join()
    store.close()

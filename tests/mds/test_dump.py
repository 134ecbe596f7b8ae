"""A dump is a whole namespace: what is loaded from it is the same, and what is damaged is not loaded."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from mds import dump, schema
from mds.check import check
from mds.machine import Bootstrap, StateMachine
from mds.store import Store
from tests.mds.harness import ROOT, TOP, World, contents
from wire import ops
from wire.codec import pack
from wire.fileops import Reserve

CLUSTER = b"c" * 16
BOOTSTRAP = Bootstrap(replicas=((1, "127.0.0.1:1"), (2, "127.0.0.1:2")))


def dumped(world: World) -> bytes:
    inos = [world.create(b"f%d" % k) for k in range(20)]
    directory = world.mkdir(b"dir")
    world.create(b"below", directory)
    world.ok(ops.Link(ROOT, inos[0], directory, b"hard"))
    world.ok(ops.Symlink(ROOT, TOP, b"soft", b"f1"))
    world.ok(ops.SetXattr(ROOT, inos[1], b"user.a", b"value", 0))
    world.ok(ops.SetXattr(ROOT, inos[2], b"user.b", b"of one without a name", 0))
    for ino in inos[2:4]:
        world.ok(world.set_attr(ino, size=0))  # nobody has carried it out yet
        world.ok(Reserve(ino, 10, 0))
    world.ok(ops.Unlink(ROOT, TOP, b"f2"))
    out = io.BytesIO()
    dump.write(world.store, CLUSTER, out)
    return out.getvalue()


def loaded(path: Path, data: bytes, keep: bool = True) -> StateMachine:
    store = Store.open(path)
    header, records = dump.read(io.BytesIO(data))
    assert header.cluster == CLUSTER
    dump.load(store, header, records, BOOTSTRAP, keep)
    return StateMachine(store, 1, BOOTSTRAP)


def named(store: Store) -> list[tuple[int, bytes, bytes]]:
    tables = (schema.INODES, schema.DIRENTS, schema.COOKIES, schema.SYMLINKS, schema.XATTRS, schema.CHAINS)
    return [record for record in contents(store) if record[0] in {t.number for t in tables}]


def test_what_is_loaded_is_what_was_dumped(world: World, tmp_path: Path) -> None:
    data = dumped(world)
    machine = loaded(tmp_path / "new", data)
    assert check(machine.store) == []
    machine.validate()
    orphan = next(world.store.scan(schema.ORPHANS, b"", None))[0]
    assert named(machine.store) == [
        r for r in named(world.store) if not (r[0] in (1, 5) and r[1][:8] == orphan)
    ]
    assert [ino for ino, _ in machine.reclaimable(10)] == [int.from_bytes(orphan, "big")]
    assert [cuts for _, _, cuts in machine.untrimmed(10, 0)] == [((1, 0),)], "of the one with a name"
    assert machine.roster.replicas == BOOTSTRAP.replicas and machine.session_count == 0
    highest = max(int.from_bytes(key, "big") for key, _ in world.store.scan(schema.INODES, b"", None))
    machine.view_event(0, 1, 1, (1,))
    (outcome,) = machine.apply(1, 1, pack([(1, 0, 1, 1, ops_open())]))
    assert outcome.status == 0
    session = next(machine.sessions())[0]
    assert session > highest, "no number is given twice"
    again = loaded(tmp_path / "again", data)
    assert again.digest == loaded(tmp_path / "third", data).digest, "all replicas begin with the same"


def ops_open() -> bytes:
    from wire.codec import encode

    return encode(ops.SessionOpen(b"k" * 16, "a", 4, 1, 1))


def test_without_its_targets_all_files_are_empty(world: World, tmp_path: Path) -> None:
    ino = world.create(b"full")
    world.ok(ops.Commit(ino, 5000, 1))
    machine = loaded(tmp_path / "new", dumped(world), keep=False)
    assert check(machine.store) == []
    assert machine.storage_map()[1:] == ((), ())
    found = machine.query(ops.GetAttr(ino))
    assert found.status == 0
    assert not list(machine.store.scan(schema.RECLAIM, b"", None))


@pytest.mark.parametrize("at", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("how", ["bit", "cut", "more"])
def test_damage_is_told(world: World, tmp_path: Path, how: str, at: float) -> None:
    data = bytearray(dumped(world))
    place = int(len(data) * at)
    if how == "bit":
        data[place] ^= 0x10
    elif how == "cut":
        del data[place:]
    else:
        data += b"\x01"
    with pytest.raises(dump.DumpError):
        loaded(tmp_path / "new", bytes(data))


@pytest.mark.parametrize(
    ("first", "text"),
    [
        (b"PK\3\4", "no dump"),
        (b"", "no dump"),
        (pack(("lockstep-dump", 99, {})), "its format is 99"),
        (pack(("lockstep-dump", 1, {"cluster": CLUSTER})), "head"),
    ],
)
def test_what_is_no_dump_is_refused(first: bytes, text: str) -> None:
    with pytest.raises(dump.DumpError, match=text):
        dump.read(io.BytesIO(first))


def test_another_schema_is_refused(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = dumped(world)
    monkeypatch.setattr(schema, "SCHEMA_VERSION", schema.SCHEMA_VERSION + 1)
    with pytest.raises(dump.DumpError, match="schema version"):
        loaded(tmp_path / "new", data)


ODD_INODE = pack((0o100644, 0, *(0,) * 7, (4096, (1,)), (), *(0,) * 5, -1, 0, ()))
DAMAGED = [
    (schema.INLINE.name, b"\x93\x01", False, "contents of a small file"),
    (schema.INLINE.name, pack(7), False, "contents of a small file"),
    (schema.INODES.name, ODD_INODE, True, "inode"),
    (schema.INODES.name, ODD_INODE, False, "inode"),
    ({}, b"", True, "belongs in no dump"),
]


@pytest.mark.parametrize(("table", "value", "keep", "text"), DAMAGED)
def test_a_damaged_record_is_told_before_the_checksum_at_the_end_is_reached(
    world: World, tmp_path: Path, table: object, value: bytes, keep: bool, text: str
) -> None:
    header, _ = dump.read(io.BytesIO(dumped(world)))
    key = schema.u64(9)
    file = next(world.store.scan(schema.INODES, b"", None))[1]
    records: list[Any] = [(schema.INODES.name, key, file), (table, key, value)]
    store = Store.open(tmp_path / "new")
    try:
        with pytest.raises(dump.DumpError, match=text):
            dump.load(store, header, records, BOOTSTRAP, keep)
    finally:
        store.close()

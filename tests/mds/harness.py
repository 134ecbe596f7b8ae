"""A metadata state machine alone, as the tests drive it: one entry per batch, answers unpacked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mds.check import check
from mds.handles import Handles
from mds.machine import Bootstrap, Outcome, StateMachine
from mds.schema import TABLES
from mds.store import Store
from wire import ops
from wire.codec import encode, pack, unpack_untrusted
from wire.errors import OK

ROOT = ops.Cred(0, 0, (0,))
ALICE = ops.Cred(1001, 1001, (1001, 5000))
BOB = ops.Cred(1002, 1002, (1002,))
TOP = 1
KEY = b"k" * 16
START_NS = 1_700_000_000_000_000_000
ATTR = {name: place for place, name in enumerate(ops.ATTR_FIELDS)}


class Attr:
    """An attr tuple with its fields by name."""

    def __init__(self, values: tuple[Any, ...]) -> None:
        self.values = values

    def __getattr__(self, name: str) -> Any:
        return self.values[ATTR[name]]


class World:
    """A machine with a session, three members and (unless told otherwise) four targets."""

    def __init__(
        self, path: Path, members: tuple[int, ...] = (1, 2, 3), targets: int = 4, slots: int = 64, inline: int = 0
    ) -> None:
        self.path = path
        self.store = Store.open(path)
        self.machine = StateMachine(self.store, 1, Bootstrap(root_mode=0o777, inline=inline))
        self.handles = Handles()
        self.time = START_NS
        self.number = 0
        self.history: list[tuple[int, bytes]] = []
        if members:
            self.machine.view_event(self.machine.index, 1, 1, members)
        self.session = self.internal(ops.SessionOpen(KEY, "host:1:/mnt", slots, 1, 1))
        for target in range(1, targets + 1):
            self.internal(ops.TargetSet(target, f"127.0.0.1:{9000 + target}", bytes([target]) * 16))

    def batch(self, *entries: tuple[int, int, int, int, bytes]) -> list[Outcome]:
        blob = pack(entries)
        index = self.machine.index + 1
        self.history.append((index, blob))
        return self.machine.apply(index, 1, blob)

    def entry(self, session: int, slot: int, number: int, op: Any) -> Outcome:
        self.time += 1_000_000
        outcome = self.batch((self.time, session, slot, number, encode(op)))[0]
        self.machine.validate()
        return outcome

    def run(self, op: Any) -> Outcome:
        """A client's request in slot 0."""
        self.number += 1
        return self.entry(self.session, 0, self.number, op)

    def ok(self, op: Any) -> Any:
        outcome = self.run(op)
        assert outcome.status == OK, f"{op} answered {outcome.status}"
        return unpack_untrusted(outcome.body)

    def attr(self, op: Any) -> Attr:
        return Attr(self.ok(op))

    def status(self, op: Any) -> int:
        """The status of a request that is refused: everything but its reply stays as it was."""
        before = contents(self.store)
        outcome = self.run(op)
        if outcome.status != OK:
            after = contents(self.store)
            assert [r for r in before if r[0] not in (0, 11)] == [r for r in after if r[0] not in (0, 11)]
        return outcome.status

    def internal(self, op: Any) -> Any:
        outcome = self.entry(0, 1, 1, op)
        assert outcome.status == OK, f"{op} answered {outcome.status}"
        return unpack_untrusted(outcome.body)

    def ask(self, op: Any) -> Any:
        result = self.machine.query(op, self.handles)
        assert result.status == OK, f"{op} answered {result.status}"
        return unpack_untrusted(result.body)

    def refused(self, op: Any) -> int:
        return self.machine.query(op, self.handles).status

    def stat(self, ino: int) -> Attr:
        return Attr(self.ask(ops.GetAttr(ino)))

    def lookup(self, parent: int, name: bytes) -> Attr:
        return Attr(self.ask(ops.Lookup(ROOT, parent, name)))

    def create(self, name: bytes, parent: int = TOP, mode: int = 0o644, cred: ops.Cred = ROOT) -> int:
        ino: int = self.ok(ops.Create(cred, parent, name, mode))[0]
        return ino

    def mkdir(self, name: bytes, parent: int = TOP, mode: int = 0o755, cred: ops.Cred = ROOT) -> int:
        ino: int = self.ok(ops.Mkdir(cred, parent, name, mode))[0]
        return ino

    def names(self, ino: int = TOP) -> list[bytes]:
        entries, end = self.ask(ops.ReadDir(ROOT, ino, 0, 4096))
        assert end
        return [name for name, _cookie, _attr in entries]

    def release(self, ino: int, replicas: tuple[int, ...] = (1, 2, 3)) -> None:
        for replica in replicas:
            self.internal(ops.OrphanAnswer(replica, (ino,), ()))

    def set_attr(self, ino: int, cred: ops.Cred = ROOT, handle: bool = False, **what: int) -> ops.SetAttr:
        """A SetAttr of mode=, uid=, gid=, size=, atime_ns=, mtime_ns= and, for now, atime_now=1, mtime_now=1."""
        bits = {
            "mode": ops.SET_MODE, "uid": ops.SET_UID, "gid": ops.SET_GID, "size": ops.SET_SIZE,
            "atime_ns": ops.SET_ATIME, "mtime_ns": ops.SET_MTIME,
            "atime_now": ops.SET_ATIME_NOW, "mtime_now": ops.SET_MTIME_NOW,
        }  # fmt: skip
        valid = sum(bits[name] for name in what)
        mode, uid, gid, size, atime_ns, mtime_ns = (
            what.get(name, 0) for name in ("mode", "uid", "gid", "size", "atime_ns", "mtime_ns")
        )
        return ops.SetAttr(cred, ino, valid, mode, uid, gid, size, atime_ns, mtime_ns, handle)

    def flush(self) -> None:
        """All of it to LMDB, as the replica's writing task does."""
        layer = self.store.freeze()
        if layer is not None:
            self.store.write(layer)
            self.store.release(layer)

    def reopen(self) -> None:
        """Stop and start: what is not flushed is lost."""
        self.store.close()
        self.store = Store.open(self.path)
        self.machine = StateMachine(self.store, 1)

    def finish(self) -> None:
        """At the end of each test: nothing is broken, and the state on disk is the state."""
        self.machine.validate()
        assert check(self.store) == []
        before, digest = contents(self.store), self.machine.digest
        self.flush()
        self.reopen()
        assert contents(self.store) == before
        assert self.machine.digest == digest
        self.machine.validate()
        self.store.close()


def contents(store: Store) -> list[tuple[int, bytes, bytes]]:
    """Every record there is."""
    return [(table.number, key, value) for table in TABLES for key, value in store.scan(table, b"", None)]

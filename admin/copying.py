"""The admin tool's copy of the whole state, from one replica at one index while all go on, and of what targets hold."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio

from admin.ask import AskError, hello_of, statuses
from admin.targets import storage_map
from daemon.config import Config
from mds import schema
from mds.machine import StateMachine
from mds.namespace import delegations
from mds.snapshot import Receiver
from mds.store import Store, StoreCorrupt
from ossd.identity import FANOUT
from wire.chains import OFFLINE
from wire.codec import unpack_untrusted
from wire.delegation import NUMBERS
from wire.errors import OK, WireError, describe
from wire.group import SnapshotPart
from wire.messages import Answer, CopyCall
from wire.peer import Connection, ConnectionLost, dial
from wire.storage import ObjectList

SILENCE_S: Final = 30.0
"""A daemon that sends nothing for so long is given up."""
DIRECTORIES: Final = 8
"""Of objects, asked for at a time: some hundred kilobytes where a target holds millions."""


@contextlib.asynccontextmanager
async def _conversation(config: Config, address: str) -> AsyncIterator[Connection]:
    """A connection with its writer at work. Raises :class:`AskError` for whatever becomes of it."""
    failed: str | None = None
    try:
        conn = await dial(address, hello_of(config))
    except ConnectionLost as exc:
        raise AskError(str(exc)) from exc
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(conn.run_writer)
            try:
                yield conn
            except (ConnectionLost, WireError) as exc:
                failed = f"{address}: {exc}"  # raised outside: a nursery would wrap it
            except trio.TooSlowError:
                failed = f"{address}: nothing came within {SILENCE_S:g} s"
            nursery.cancel_scope.cancel()
    finally:
        conn.close()
    if failed is not None:
        raise AskError(failed)


# --- the state ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Copy:
    """A replica's state at one index."""

    store: Store
    replica: int
    index: int
    numbers_below: int
    """Every inode number that is there, or ever was by then, is below this."""
    given_out: tuple[int, ...]
    """The first numbers of blocks that clients had by then: they may make files of these later (wire.delegation)."""

    def may_be_newer(self, number: int) -> bool:
        """Whether an inode of that number may have been made after the copy."""
        return number >= self.numbers_below or any(first <= number < first + NUMBERS for first in self.given_out)


@contextlib.contextmanager
def state_of(config: Config, replica: int | None, where: Path | None) -> Iterator[Copy]:
    """A copy of the state of *replica* (None: of one that serves), in a directory below *where* while it is used.

    Raises :class:`AskError`, :class:`mds.store.StoreCorrupt`.
    """
    with tempfile.TemporaryDirectory(prefix="lockstep-copy-", dir=where) as scratch:
        base = Path(scratch)
        number = trio.run(_fetch, config, replica, base)
        store = Store.open(Receiver(base).path)
        try:
            applied = store.get(schema.META, schema.META_APPLIED)
            if applied is None:
                raise StoreCorrupt(store.path, "the copied state is an empty one")
            complete(store, number)
            index = unpack_untrusted(applied)[0]
            base_number = schema.numbers_from(store.get(schema.META, schema.META_NUMBERS))
            yield Copy(store, number, index, schema.number_at(base_number + index + 1, 0), given_out(store))
        finally:
            store.close()


def given_out(store: Store) -> tuple[int, ...]:
    """The first numbers of all blocks that sessions have."""
    sessions = [int.from_bytes(key, "big") for key, _ in store.scan(schema.HOLDERS, b"", None)]
    return tuple(first for session in sessions for first in delegations.holder(store, session).blocks)


def complete(store: Store, replica: int) -> None:
    """Execute what was delivered and waited for its locks when this state was written (mds.schedule): elsewhere it may
    have been answered by then. Nothing is written to the disk."""
    if store.get(schema.META, schema.META_WAITING) is not None:
        StateMachine(store, replica)


async def _fetch(config: Config, replica: int | None, base: Path) -> int:
    """The replica whose state came into *base*."""
    wanted = [r for r in config.replicas if replica in (None, r.id)]
    if not wanted:
        raise AskError(f"the configuration names no replica {replica}")
    said = await statuses(config, [r.address for r in wanted])
    # The last one first: the first of the view does more than the others.
    last = "no replica was asked"
    for one in reversed(wanted):
        reply = said[one.address]
        # One whose state may be wrong gives it to who asks for that one, to see what it is.
        good = ("active",) if replica is None else ("active", "diverged")
        if isinstance(reply, AskError) or reply.body.get("state") not in good:
            last = str(reply) if isinstance(reply, AskError) else f"replica {one.id} does not serve"
            continue
        try:
            await _receive(config, one.address, base)
            return one.id
        except AskError as exc:
            last = str(exc)
    raise AskError(f"no replica gave a copy of its state: {last}")


async def _receive(config: Config, address: str, base: Path) -> None:
    receiver = Receiver(base)
    async with _conversation(config, address) as conn:
        conn.send(CopyCall(1))
        while True:
            with trio.fail_after(SILENCE_S):
                message, bulk = await conn.receive()
            if isinstance(message, Answer):
                raise WireError(f"no copy of the state: {describe(message.status)}")
            if not isinstance(message, SnapshotPart):
                continue  # a new view, a ping
            complete = receiver.part(message, bulk)
            if complete:
                return
            if message.last:
                raise WireError("the copy of the state arrived damaged")


# --- the objects ----------------------------------------------------------------------------------

Object = tuple[int, int, int]
"""(inode, column, chain); chain 0: the target does not know."""


async def objects_of(config: Config) -> tuple[dict[int, set[Object]], list[str]]:
    """What each target that answers holds, by target; and which do not answer, one sentence each."""
    _, targets, _ = await storage_map(config)
    found: dict[int, set[Object]] = {}
    missing = [f"target {t} is offline: its objects are not looked at" for t, _, s, _ in targets if s == OFFLINE]

    async def one(target: int, address: str) -> None:
        try:
            found[target] = await _list(config, address)
        except AskError as exc:
            missing.append(f"target {target} does not list its objects: {exc}")

    async with trio.open_nursery() as nursery:
        for target, address, state, _ in targets:
            if state != OFFLINE:
                nursery.start_soon(one, target, address)
    return found, missing


async def _list(config: Config, address: str) -> set[Object]:
    found: set[Object] = set()
    async with _conversation(config, address) as conn:
        for first in range(0, FANOUT, DIRECTORIES):
            conn.send(ObjectList(first + 1, 0, first, DIRECTORIES))
            body: Any = None
            while body is None:
                with trio.fail_after(SILENCE_S):
                    message, bulk = await conn.receive()
                if isinstance(message, Answer):
                    if message.status != OK:
                        raise WireError(f"objects are not listed: {describe(message.status)}")
                    body = unpack_untrusted(bulk)
            for ino, column, chain in body:
                found.add((ino, column, chain))
    return found

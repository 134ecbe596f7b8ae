"""The keeper's connections: heartbeats to the storage targets, and what :mod:`mds.keeper` wants ordered.

Every replica runs this; it does something only while its replica is the lowest of the view.
"""

from __future__ import annotations

import logging
import os
from typing import Any, Final

import trio

from mds.keeper import BEAT_US, Keeper
from mds.machine import Outcome
from mds.placement import news
from mds.replica import Replica
from wire.capability import KEY_BYTES, ROTATE_US, fingerprint
from wire.chains import StorageMap
from wire.codec import pack
from wire.errors import OK, WireError, describe
from wire.ids import PROTOCOL_VERSION
from wire.messages import Hello, Role, Welcome
from wire.peer import Connection, ConnectionLost, dial
from wire.storage import Beat, BeatSaid
from wire.targetops import KeyRotate, TargetSpace

log = logging.getLogger(__name__)

ROUND_S: Final = 0.02
"""How often the map and the targets' state are looked at: a killed target is noticed by its connection at once."""
STALL_US: Final = 300_000
"""A round that is late by more says that this process was not running."""
SPACE_US: Final = 2_000_000
"""How often free space is looked at."""
REDIAL_S: Final = 0.05
DIAL_S: Final = 1.0


class Tending:
    """See the module."""

    def __init__(self, replica: Replica, cluster: bytes, uuid: bytes) -> None:
        self._replica = replica
        self._hello = Hello(PROTOCOL_VERSION, cluster, Role.MDS, str(replica.me), uuid, 0, "main")
        self._wrong: dict[int, str] = {}
        """Targets that have another disk than the map says -> what was said of it."""
        self.keeper: Keeper | None = None
        self._rotating = False
        self._told_space_at = 0

    async def run(self) -> None:
        while True:
            await trio.sleep(ROUND_S)
            if self._replica.lowest:
                await self._tend()

    async def _tend(self) -> None:
        """Be the keeper for as long as this replica is the lowest of its view."""
        keeper = self.keeper = Keeper(self._now())
        known: dict[int, str] = {}
        before = self._now()
        async with trio.open_nursery() as nursery:
            while self._replica.lowest:
                now = self._now()
                if now - before > STALL_US:
                    keeper.stalled(now)
                before = now
                found = self._replica.state.storage_map()
                for target, address, _, _ in found[1]:
                    if known.get(target) != address:
                        known[target] = address
                        nursery.start_soon(self._keep, keeper, target, address)
                for op in keeper.orders(found, now):
                    log.info("ordering %s", op)
                    self._replica.internal(op, lambda outcome, op=op: self._ordered(op, outcome))  # type: ignore[misc]
                self._rotate_keys()
                self._tell_space(keeper, now)
                await trio.sleep(ROUND_S)
            nursery.cancel_scope.cancel()
        self.keeper = None

    def _ordered(self, op: Any, outcome: Any) -> None:
        if outcome.status != OK:
            log.warning("%s: %s", op, describe(outcome.status))

    def _rotate_keys(self) -> None:
        """Have the next signing key ordered when it is time: a new cluster needs two at once, see wire.capability."""
        known, now_ns = self._replica.state.keys, self._replica.shell.stamp_ns()
        if self._rotating or (len(known.keys) > 1 and now_ns - known.since_ns < 1000 * ROTATE_US):
            return
        self._rotating = True

        def rotated(outcome: Outcome) -> None:
            self._rotating = False
            log.info("signing keys: %s", "another one" if outcome.status == OK else describe(outcome.status))

        self._replica.internal(KeyRotate(known.rotations, os.urandom(KEY_BYTES)), rotated)

    def _tell_space(self, keeper: Keeper, now: int) -> None:
        """Have it ordered when targets have become noticeably fuller, or emptier, than others."""
        if now - self._told_space_at < SPACE_US:
            return
        self._told_space_at = now
        told = news(keeper.spaces(now), self._replica.state.space_shares())
        if told:
            log.info("free space, in sixteenths of the most: %s", ", ".join(f"target {t}: {n}" for t, n in told))
            op = TargetSpace(told)
            self._replica.internal(op, lambda outcome: self._ordered(op, outcome))

    def _now(self) -> int:
        return self._replica.shell.now()

    def _entry(self, target: int) -> tuple[int, str, str, int] | None:
        return next((entry for entry in self._replica.state.storage_map()[1] if entry[0] == target), None)

    async def _keep(self, keeper: Keeper, target: int, address: str) -> None:
        """Be connected with *target* as long as it is in the map at *address*."""
        while True:
            entry = self._entry(target)
            if entry is None or entry[1] != address:
                return  # it is not in the map, or served at its other address by another of us
            try:
                with trio.move_on_after(DIAL_S) as scope:
                    conn = await dial(address, self._hello)
                if scope.cancelled_caught:
                    continue
            except ConnectionLost as exc:
                log.debug("target %d: %s", target, exc)
                await trio.sleep(REDIAL_S)
                continue
            reason = self._is_another(target, conn)
            if reason is not None:
                if self._wrong.get(target) != reason:
                    self._wrong[target] = reason
                    log.error("target %d at %s is not taken in: %s", target, address, reason)
                conn.close()
                await trio.sleep(1.0)  # until somebody has done something about it
                continue
            self._wrong.pop(target, None)
            assert isinstance(conn.hello, Welcome), "it was dialled"
            keeper.connected(target, conn.hello.incarnation, self._now())
            await self._serve(keeper, target, conn)
            entry = self._entry(target)
            if entry is None or entry[1] == address:  # else another of us may be connected with it by now
                keeper.lost(target, self._now())

    def _is_another(self, target: int, conn: Connection) -> str | None:
        """Why this is not the target that the map means, or None."""
        said = conn.hello
        assert said is not None
        uuid = self._replica.state.target_uuid(target)
        if said.name != str(target):
            return f"it says it is target {said.name}"
        if uuid is not None and uuid != said.uuid:
            return f"its disk {said.uuid.hex()} is not {uuid.hex()}; `lockstep target replace` if that is meant"
        return None

    async def _serve(self, keeper: Keeper, target: int, conn: Connection) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(conn.run_writer)
            nursery.start_soon(self._beat, keeper, target, conn)
            try:
                while True:
                    message, _ = await conn.receive()
                    if isinstance(message, BeatSaid):
                        keeper.said(
                            target, message.run, message.clock_us, message.version, (message.total, message.free),
                            message.synced, message.missed, self._now(), message.keys, message.failed,
                        )  # fmt: skip
                        keeper.balance.found(message.weighed, message.weights)
            except ConnectionLost as exc:
                log.info("target %d: %s", target, exc)
            except WireError as exc:
                log.warning("target %d: %s", target, exc)
            finally:
                conn.close("left")
            nursery.cancel_scope.cancel()

    async def _beat(self, keeper: Keeper, target: int, conn: Connection) -> None:
        replica = self._replica
        number = 0
        packed: tuple[int, bytes] = (-1, b"")
        told = -1
        told_keys = b""
        last = 0
        while True:
            found: StorageMap = replica.state.storage_map()
            now = self._now()
            keys = replica.state.keys.keys
            wanted = fingerprint(keys)
            news = found[0] != told or wanted != told_keys
            if news or now - last >= BEAT_US or (number < 2 and keeper.version_of(target)):
                if packed[0] != found[0]:
                    packed = found[0], pack(found)
                number += 1
                # Nobody else can be the keeper while our own lease runs (see mds.keeper).
                leased = replica.lowest and replica.group.may_read(now)
                behind = keeper.version_of(target) < found[0]
                # Nor does anybody else tell it keys then, who might have missed a rotation.
                new_keys = keys if leased and keeper.keys_of(target) != wanted else ()
                try:
                    echo = keeper.echo(target, found) if leased else 0
                    conn.send(
                        Beat(number, echo, found[0], packed[1] if behind else b"", new_keys, keeper.balance.number)
                    )
                except ConnectionLost:
                    return  # the receiver has found out, too
                told, told_keys, last = found[0], wanted, now
            await trio.sleep(ROUND_S)

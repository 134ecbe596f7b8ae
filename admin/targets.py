"""The admin tool's dealings with storage targets: the map, what is to become of a target, scrubbing."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import trio

from admin.ask import ASK_TIMEOUT_S, AskError, Reply, call, order, status_of, statuses
from daemon.config import Config
from ossd.identity import FANOUT
from wire import ops, targetops
from wire.capability import KEY_BYTES, KEYS_MAX
from wire.chains import HOLDS, OFFLINE, Members, StorageMap, answer_untrusted, copies_of, holders
from wire.codec import encode
from wire.errors import FileSystemError
from wire.messages import QueryCall
from wire.storage import LIST_DIRECTORIES, Scrubbed, TargetScrub

SCRUB_ANSWER_S: Final = 24 * 3600.0
"""A part of a scrub takes as long as its rate wants."""


async def storage_map(config: Config, timeout_s: float = 10.0) -> StorageMap:
    """The storage map, as any replica tells it. Raises :class:`AskError`."""
    last = "no replica was asked"
    with trio.move_on_after(timeout_s):
        while True:
            for replica in config.replicas:
                try:
                    reply = await call(config, replica.address, QueryCall(1, encode(ops.StorageMap())))
                    return answer_untrusted(reply.body)[0]
                except (AskError, FileSystemError, ValueError) as exc:
                    last = str(exc)
            await trio.sleep(0.1)
    raise AskError(f"no replica has told the storage map: {last}")


@dataclass(frozen=True, slots=True)
class TargetState:
    """One target: what the map says of it, and what it says itself."""

    id: int
    address: str
    state: str
    chains: dict[str, int]
    """State in a chain -> in how many chains."""
    said: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Plain values, with the keys that `lockstep target list --json` promises."""
        keys = ("bytes_total", "bytes_free", "objects", "blocks_bad", "blocks_mended", "failure")
        known = {key: self.said.get(key) for key in keys}
        return {"id": self.id, "address": self.address, "state": self.state, "chains": self.chains, **known}


@dataclass(frozen=True, slots=True)
class Syncing:
    """One chain's member that is being given what it lacks."""

    chain: int
    target: int
    objects: int
    bytes: int
    percent: int
    seconds_left: int | None
    """An estimate; None: there is nothing yet that would tell."""


async def listing(config: Config) -> tuple[list[TargetState], list[Syncing]]:
    """All targets of the map, and what is being synced. Raises :class:`AskError`."""
    _, targets, chains = await storage_map(config)
    said = await statuses(config, [address for _, address, _, _ in targets], ASK_TIMEOUT_S)
    states: list[TargetState] = []
    under_way: list[Syncing] = []
    for target, address, state, _ in targets:
        counts: dict[str, int] = {}
        for _, _, members in chains:
            mine = dict(members).get(target)
            if mine is not None:
                counts[mine] = counts.get(mine, 0) + 1
        reply = said[address]
        body: dict[str, Any] = dict(reply.body) if isinstance(reply, Reply) else {}
        states.append(TargetState(target, address, state, counts, body))
        for chain, other, percent, objects, size, left in body.get("syncing", ()):
            seconds = None if left is None else round(left)
            under_way.append(Syncing(chain, other, objects, size, percent, seconds))
    return states, under_way


async def add(config: Config, target: int, timeout_s: float) -> None:
    """Enter target *target* of the configuration in the map."""
    settings = config.target(target)
    reply = await status_of(config, settings.address)
    await order(config, ops.TargetSet(target, settings.address, reply.uuid), timeout_s)


async def replace(config: Config, target: int, lost: bool, timeout_s: float) -> None:
    """Target *target* has another, empty disk."""
    reply = await status_of(config, config.target(target).address)
    await order(config, targetops.TargetReplace(target, reply.uuid, lost), timeout_s)


async def drain(config: Config, target: int, undo: bool, timeout_s: float) -> None:
    await order(config, targetops.TargetDrain(target, not undo), timeout_s)


async def remove(config: Config, target: int, lost: bool, timeout_s: float) -> None:
    await order(config, targetops.TargetRemove(target, lost), timeout_s)


async def rotate_keys(config: Config, forget: bool, timeout_s: float) -> int:
    """Have another key for capabilities ordered; *forget*: so many that no target accepts one it knew before.

    How often keys have been rotated.
    """
    count: int = await order(config, targetops.KeyRotate(0, os.urandom(KEY_BYTES)), timeout_s)
    for _ in range(KEYS_MAX if forget else 1):
        count = await order(config, targetops.KeyRotate(count, os.urandom(KEY_BYTES)), timeout_s)
    return count


def scrubbed_json(found: Scrubbed) -> dict[str, Any]:
    """Plain values, with the keys that `lockstep scrub --json` promises."""
    return {
        "objects": found.objects, "bytes": found.bytes, "blocks_bad": found.bad, "blocks_mended": found.mended,
        "wrong": found.wrong,
    }  # fmt: skip


def lacking(chains: tuple[tuple[int, int, Members], ...]) -> list[str]:
    """Members that chains with too few copies lack. One that is being moved has them all, at who is to leave."""
    return [
        f"chain {chain}: target {target} is {state}"
        for chain, _, members in chains
        if len(holders(members)) < copies_of(chain)
        for target, state in members
        if state not in HOLDS
    ]


async def scrub(config: Config, rate: int, verify: bool, progress: Callable[[int, int], None]) -> Scrubbed:
    """Have every target check its objects, all at once; *progress* is told (directories done, of how many).

    Raises :class:`AskError` when one cannot be asked.
    """
    _, targets, chains = await storage_map(config)
    found = Scrubbed()
    total = FANOUT * len(targets)
    done = 0
    for target, _, state, _ in targets:
        if state == OFFLINE:
            found.wrong.append(f"target {target} is offline")
    found.wrong += lacking(chains)

    async def one(target: int, address: str) -> None:
        nonlocal done
        for first in range(0, FANOUT, LIST_DIRECTORIES):
            msg = TargetScrub(1, first, LIST_DIRECTORIES, rate, verify)
            try:
                objects, size, bad, mended, wrong = (await call(config, address, msg, SCRUB_ANSWER_S)).body
            except (AskError, FileSystemError) as exc:
                found.wrong.append(f"target {target}: {exc}")
                return
            found.objects += objects
            found.bytes += size
            found.bad += bad
            found.mended += mended
            found.wrong += [f"target {target}: {text}" for text in wrong]
            done += LIST_DIRECTORIES
            progress(done, total)

    async with trio.open_nursery() as nursery:
        for target, address, state, _ in targets:
            if state != OFFLINE:
                nursery.start_soon(one, target, address)
    return found

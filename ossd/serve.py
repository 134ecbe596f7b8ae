"""The storage target's process: disk, listener, the witness it may host. What it does: :mod:`ossd.target`."""

from __future__ import annotations

import logging
import resource
from functools import partial
from typing import TYPE_CHECKING

import trio

from daemon.journal import JournalCorrupt
from ossd.copystore import CopyStore
from ossd.identity import StoreRefused
from ossd.store import OPEN_MAX
from ossd.target import Target
from ossd.witness import WITNESS_NAME, WitnessHost
from wire.ids import PROTOCOL_VERSION
from wire.messages import Hello, Role, Welcome
from wire.peer import Connection, Handler, Listener

if TYPE_CHECKING:
    from daemon.config import Config

log = logging.getLogger(__name__)


def _descriptors() -> int:
    """Have as many descriptors as we may; how many objects may be open then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < 6 * OPEN_MAX and soft != hard:
        soft = 6 * OPEN_MAX if hard == resource.RLIM_INFINITY else min(hard, 6 * OPEN_MAX)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return OPEN_MAX if soft == resource.RLIM_INFINITY else max(16, min(OPEN_MAX, soft // 4))


async def _count(target: Target) -> None:
    try:
        await trio.to_thread.run_sync(target.store.count_objects)
    except OSError as exc:
        log.error("target %d: objects cannot be counted: %s", target.id, exc)
        return
    target.counted = True


async def serve(
    config: Config, target_id: int, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve target *target_id* of *config* until cancelled; ``started`` gives the port.

    Raises :class:`StoreRefused` for a data directory that is not this target's, ConfigError when the configuration
    has no such target, OSError.
    """
    settings = config.target(target_id)
    # Listen first: a second daemon that is started by mistake finds the address taken before it touches the disk.
    listener = Listener(settings.address)
    try:
        open_store = partial(CopyStore.open, settings.data, config.cluster.id, target_id, open_max=_descriptors())
        store = await trio.to_thread.run_sync(open_store)
        try:
            target = Target(store, target_id, settings.witness)
            await _run(config, target, listener, task_status)
        finally:
            store.stop_counting()
            with trio.CancelScope(shield=True):  # all operations have ended: whoever stops us waits for the disk
                await trio.to_thread.run_sync(store.close)
            log.info("target %d: stopped, everything is on disk", target_id)
    finally:
        listener.close()


async def _run(config: Config, target: Target, listener: Listener, task_status: trio.TaskStatus[int]) -> None:
    handlers: dict[str, Handler] = dict.fromkeys(
        (Role.CLIENT, Role.MDS, Role.ADMIN, Role.TARGET), target.converse
    )
    witness: WitnessHost | None = None
    if target.witness is not None:
        witness = WitnessHost(config, target.witness, target.store.path / WITNESS_NAME)
        handlers[Role.REPLICA] = witness.converse

    def judge(hello: Hello) -> str | None:
        if hello.role == Role.REPLICA and witness is not None:
            return witness.judge(hello)
        if hello.role in handlers:
            return None
        if hello.role == Role.REPLICA:
            return f"target {target.id} hosts no witness"
        return f"role {hello.role} has no business with a storage target"

    def welcome(hello: Hello) -> Welcome:
        if hello.role == Role.REPLICA and witness is not None:
            return witness.welcome()
        who = target.store.identity
        return Welcome(PROTOCOL_VERSION, Role.TARGET, str(target.id), who.uuid, target.store.incarnation)

    async def converse(conn: Connection, hello: Hello) -> None:
        await handlers[hello.role](conn, hello)

    try:
        async with trio.open_nursery() as nursery:
            target.nursery = target.links.nursery = nursery
            nursery.start_soon(_count, target)
            nursery.start_soon(target.resync.run)
            nursery.start_soon(target.clearing.run)
            nursery.start_soon(target.weighing.run)
            if witness is not None:
                witness.start()
                nursery.start_soon(witness.watch)
            log.info("target %d: serving %s on port %d", target.id, target.store.path, listener.port)
            task_status.started(listener.port)
            await listener.serve(nursery, config.cluster.id, judge, welcome, converse)
    finally:
        if witness is not None:
            witness.close()


def main(config: Config, target_id: int) -> int:
    """Run the daemon until SIGTERM or SIGINT; the process's exit code."""
    from daemon.exits import EXIT_FAILED
    from daemon.process import run

    refused: list[StoreRefused | JournalCorrupt] = []

    async def until_stopped() -> None:
        try:
            await serve(config, target_id)
        except (StoreRefused, JournalCorrupt) as exc:
            refused.append(exc)  # one line for the operator, without a traceback

    code = run(until_stopped)
    if refused:
        log.critical("target %d cannot start: %s", target_id, refused[0])
        return EXIT_FAILED
    return code

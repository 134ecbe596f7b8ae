"""Work owed to storage targets: deleting the objects of removed files.

The queue is replicated state; the lowest member of the view does the work, the next one takes over. Deleting
twice is harmless, so nothing needs to be remembered about work half done.
"""

from __future__ import annotations

import logging

import trio

from mds import limits
from mds.errands import ask
from mds.replica import Replica
from wire import ops
from wire.chains import path
from wire.errors import describe
from wire.ids import PROTOCOL_VERSION
from wire.messages import Hello, ObjectDelete, Role
from wire.peer import ConnectionLost

log = logging.getLogger(__name__)


class Reclaimer:
    """Drains the reclaim queue while this replica is the one to do it."""

    def __init__(self, replica: Replica, cluster: bytes, uuid: bytes) -> None:
        self._replica = replica
        self._hello = Hello(PROTOCOL_VERSION, cluster, Role.MDS, str(replica.me), uuid, 0, "main")
        self._busy = False
        self._complained: set[int] = set()

    async def round(self) -> None:
        """Delete the objects of some removed files, and order that it is done."""
        replica = self._replica
        if self._busy or not replica.lowest:
            return
        files = replica.state.reclaimable(limits.RECLAIM_FILES, replica.shell.stamp_ns())
        if not files:
            return
        _, targets, chains = replica.state.storage_map()
        addresses = {target: address for target, address, _, _ in targets}
        known = {number: (version, path(members)) for number, version, members in chains}
        wanted: dict[int, list[tuple[int, int]]] = {}
        for ino, (_, columns) in files:
            for column, number in enumerate(columns):
                wanted.setdefault(number, []).append((ino, column))
        failed: set[int] = set()

        async def ask(number: int, keys: list[tuple[int, int]]) -> None:
            version, order = known[number]
            delete = ObjectDelete(1, number, version, tuple(keys), replica.signer.service(self._hello.uuid))
            # Members that are offline lose theirs when they are synced.
            if not order or not await self._delete(order[0], addresses[order[0]], delete):
                failed.update(ino for ino, _ in keys)

        async with trio.open_nursery() as nursery:
            for number, keys in sorted(wanted.items()):
                if number in known:  # else nobody is left who could hold any of it
                    nursery.start_soon(ask, number, keys)
        done = tuple(sorted(ino for ino, _ in files if ino not in failed))
        if done and replica.lowest:
            self._busy = True

            def finished(outcome: object) -> None:
                self._busy = False

            replica.internal(ops.ReclaimDone(done), finished)

    async def _delete(self, target: int, address: str, delete: ObjectDelete) -> bool:
        try:
            answer = await ask(address, self._hello, delete)
        except ConnectionLost as exc:
            if target not in self._complained:
                self._complained.add(target)
                log.warning("objects of removed files wait for target %d: %s", target, exc)
            return False
        if answer.status:
            log.info(
                "target %d did not delete %d objects: %s; asked again",
                target, len(delete.keys), describe(answer.status),
            )  # fmt: skip
            return False
        self._complained.discard(target)
        return True

"""Work owed to storage targets: truncations that the client which asked for them has not seen carried out.

A truncation is ordered first, and its client then has the targets cut the objects off and settles it. If it dies in
between nobody ever sees old bytes, because everybody who asks a target passes the truncation along. But who has the
file open with attributes from before does not, and what he writes would be cut off by the next one who does. So it must
not stay like that. The lowest member of the view does what is left, the next one takes over; twice is harmless.
"""

from __future__ import annotations

import logging

import trio

from mds import limits
from mds.errands import ask
from mds.namespace.inline import objects_of
from mds.namespace.inode import Layout, Truncations
from mds.replica import Replica
from wire import ops
from wire.chains import path
from wire.columns import object_truncations
from wire.errors import describe
from wire.ids import PROTOCOL_VERSION
from wire.messages import Hello, ObjectKey, ObjectTruncate, Role
from wire.peer import ConnectionLost

log = logging.getLogger(__name__)


class Trimmer:
    """See the module."""

    def __init__(self, replica: Replica, cluster: bytes, uuid: bytes) -> None:
        self._replica = replica
        self._hello = Hello(PROTOCOL_VERSION, cluster, Role.MDS, str(replica.me), uuid, 0, "main")
        self._settling: set[int] = set()
        """Ordered and not answered yet."""
        self._complained: set[int] = set()

    async def round(self) -> None:
        """Have some files cut off, and order that it is done."""
        replica = self._replica
        if not replica.lowest:
            return
        before_ns = replica.shell.stamp_ns() - int(limits.TRIM_AFTER_S * 1e9)
        files = [f for f in replica.state.untrimmed(limits.TRIM_FILES, before_ns) if f[0] not in self._settling]
        async with trio.open_nursery() as nursery:
            for file in files:
                nursery.start_soon(self._trim, *file)

    async def _trim(self, ino: int, layout: Layout, truncations: Truncations) -> None:
        replica = self._replica
        _, targets, chains = replica.state.storage_map()
        addresses = {target: address for target, address, _, _ in targets}
        known = {number: (version, path(members)) for number, version, members in chains}
        stripe_size, columns = layout
        token = replica.signer.service(self._hello.uuid)
        for column, number in enumerate(columns):
            version, order = known.get(number, (0, ()))
            if not order:
                continue  # nobody is left who could hold any of it
            trims = object_truncations(truncations, column, stripe_size, len(columns))
            key = ObjectKey(objects_of(replica.state.store, ino), column)
            cut = ObjectTruncate(1, key, number, version, trims, token)
            try:
                answer = await ask(addresses[order[0]], self._hello, cut)
            except ConnectionLost as exc:
                self._complain(ino, str(exc))
                return
            if answer.status:
                self._complain(ino, f"target {order[0]}: {describe(answer.status)}")
                return
        self._complained.discard(ino)
        if replica.lowest:
            log.info("inode %d: truncation %d, left by its client, is carried out", ino, truncations[-1][0])
            self._settling.add(ino)
            replica.internal(ops.Settle(ino, truncations[-1][0]), lambda outcome: self._settling.discard(ino))

    def _complain(self, ino: int, why: str) -> None:
        """Once per file: it is tried again and again."""
        if ino not in self._complained:
            self._complained.add(ino)
            log.warning("inode %d is not cut off yet: %s", ino, why)

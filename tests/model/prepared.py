"""A cluster that begins with many files: made by the state machine alone, dumped, and loaded before the first start."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from admin import loading
from admin.local import LocalCluster
from mds import dump
from mds.machine import Bootstrap, Outcome, StateMachine
from mds.store import Store
from wire import ids, ops
from wire.codec import encode, pack, unpack_untrusted
from wire.errors import OK

ROOT: Final = ops.Cred(0, 0, ())
BATCH: Final = 500
TIME_NS: Final = 1_700_000_000_000_000_000


def directory(cluster: LocalCluster, name: str, names: Sequence[str]) -> None:
    """The cluster, which was never started, begins with directory *name* in its root and files *names* in that."""
    with tempfile.TemporaryDirectory(prefix="lockstep-prepared-") as scratch:
        store = Store.open(Path(scratch) / "state")
        machine = StateMachine(store, 1, Bootstrap(root_mode=0o777))

        def order(batch: list[object]) -> list[Outcome]:
            index = machine.index + 1
            entries = [(TIME_NS, 0, 1, index * BATCH + k, encode(op)) for k, op in enumerate(batch)]
            outcomes = machine.apply(index, 1, pack(entries))
            assert all(outcome.status == OK for outcome in outcomes)
            return outcomes

        (made,) = order([ops.Mkdir(ROOT, ids.ROOT_INO, name.encode(), 0o777)])
        parent = unpack_untrusted(made.body)[0]
        for at in range(0, len(names), BATCH):
            order([ops.Create(ROOT, parent, one.encode(), 0o644) for one in names[at : at + BATCH]])
            if store.pending_bytes > dump.LAYER_BYTES:
                _to_disk(store)
        _to_disk(store)
        with tempfile.TemporaryFile(dir=scratch) as file:
            dump.write(store, cluster.config.cluster.id, file)
            store.close()
            file.seek(0)
            loading.load(cluster.config, None, file, empty=False)


def _to_disk(store: Store) -> None:
    layer = store.freeze()
    if layer is not None:
        store.write(layer)
        store.release(layer)

"""A replica comes upon a damaged record of its state while it serves: it takes the state of the others by itself."""

from __future__ import annotations

import os
from pathlib import Path

import lmdb
import pytest

from mds import audit, schema
from tests.live import live, unavailable

pytestmark = pytest.mark.system


def test_a_replica_with_a_damaged_record_resyncs(tmp_path: Path) -> None:
    reason = unavailable()
    if reason is not None:
        pytest.fail(reason)
    with live(replicas=3, targets=1) as small:
        one = small.mount("one", 1)
        (one / "victim").touch()
        ino = (one / "victim").stat().st_ino
        written = "what was applied is not written"
        small.cluster.wait(lambda s: all(r.get("unwritten_bytes", 1) == 0 for r in s.replicas), written, 30.0)
        state = small.cluster.config.replica(2).data / "state"
        # LMDB lets several processes write: for the replica this is its disk giving something else than it was given.
        with lmdb.open(str(state), max_dbs=len(schema.TABLES) + 1) as env:
            db = env.open_db(schema.INODES.name.encode())
            with env.begin(write=True, db=db) as txn:
                stored = txn.get(schema.u64(ino))
                assert stored is not None
                txn.put(schema.u64(ino), stored[:-1] + bytes([stored[-1] ^ 1]))
        (one / "other").touch()  # its commit lets the replica see it
        small.cluster.wait(lambda s: all(r.get("unwritten_bytes", 1) == 0 for r in s.replicas), written, 30.0)
        os.chmod(one / "victim", 0o600)
        assert (one / "victim").stat().st_mode & 0o777 == 0o600
        log = small.cluster.log_file("mds-2")
        small.cluster.wait(lambda _: "another is taken from the others" in log.read_text(), "it is not noticed", 30.0)
        small.settled()
        assert state.with_name(audit.ASIDE).is_dir()
        assert "the checksum of a record of inodes is wrong" in log.read_text()
        small.unmount("one")

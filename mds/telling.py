"""What a replica tells of itself: to `lockstep status`, and to whoever watches over the cluster."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mds.alarm import Standing

if TYPE_CHECKING:
    from mds.serve import Process


def told_by(process: Process) -> dict[str, Any]:
    """What `lockstep status` shows of this replica."""
    replica, core = process.replica, process.replica.group.core
    newest = core.newest
    return {
        "role": "mds",
        "id": process.me,
        "state": _state(process),
        "generation": newest.epoch >> 40,
        "epoch": newest.epoch,
        "members": list(newest.members),
        "voters": list(newest.voters),
        "standing": asdict(replica.group.standing()),
        "roster": replica.state.roster.to_tuple(),
        "index": core.history.index,
        "digest": replica.state.digest.hex(),
        "sessions": replica.state.session_count,
        "inodes": replica.state.inodes,
        "clients": sorted(c.name for c in replica.clients if c.session),
        "incarnation": process.incarnation,
        "log_bytes": process.journal.size,
        "unwritten_bytes": replica.state.store.pending_bytes,
        "requests": replica.answered,
        "queries": replica.reading.answered,
        "open_files": len(replica.handles),
        "readable": replica.group.may_read(process.now()),
        "alarm": replica.comparing.status(),
    }


def _state(process: Process) -> str:
    """``active``: it serves."""
    replica = process.replica
    if replica.comparing.standing is not Standing.ALIKE:
        return "diverged"
    if replica.active:
        return "active"
    return "learner" if replica.group.core.outside else "changing view"

"""What a replica tells: its clients of the view, `lockstep status`, and whoever watches over the cluster, of itself."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mds.alarm import Standing
from mds.namespace.roster import Roster
from vsync.view import generation_of
from wire.group import View
from wire.messages import ViewChanged

if TYPE_CHECKING:
    from mds.serve import Process


def view_changed(view: View, roster: Roster) -> ViewChanged:
    """What clients are told of *view*: where its members are, and who else there is."""
    told = tuple((m, address) for m in view.members if (address := roster.address_of(m)) is not None)
    return ViewChanged(generation_of(view.epoch), view.epoch, told, roster.replicas)


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
        "low": replica.state.low,
        "digest": replica.state.digest.hex(),
        "sessions": replica.state.session_count,
        "inodes": replica.state.inodes,
        "clients": sorted(c.name for c in replica.clients if c.session),
        "incarnation": process.incarnation,
        "log_bytes": process.journal.size,
        "unwritten_bytes": replica.state.store.pending_bytes,
        "requests": replica.answering.answered,
        "queries": replica.reading.answered,
        "refused": replica.reading.rights.refused,
        "delegations": {
            "held": len(replica.state.delegated),
            "recalls": replica.delegating.recalls,
            "revocations": replica.delegating.revocations,
            "aside": len(replica.delegating),
        },
        "locks": replica.schedule.statistics(),
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

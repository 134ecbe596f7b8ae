"""Changing which replicas make up the metadata service: ask for it, follow it to its end, say what is missing.

The roster, in the ordered state, says who belongs to the cluster; an order changes it and is done at once. The view
follows: a new replica learns until it is close and becomes a member, voters move one per view. All of that the
replicas do by themselves; here is only asked, waited and told.
"""

from __future__ import annotations

import errno
import getpass
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import trio

from admin import ask
from admin.ask import AskError
from admin.status import ClusterStatus, DaemonStatus, fetch
from daemon.config import Config
from mds.namespace.roster import Roster
from wire.errors import FileSystemError
from wire.ids import REPLICA_ID_MAX
from wire.messages import ControlCall
from wire.roster import ReplicaRemove, ReplicaSet

ORDER_TIMEOUT_S: Final = 30.0
LOOK_S: Final = 0.2
"""Between two looks at how far a change is."""
CONTROL_TIMEOUT_S: Final = 15.0

Tell = Callable[[str], None]
"""Shows one line of progress."""


class ReplicaError(Exception):
    """The change was refused, or is not complete in time; the text says why and what is missing."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a change stands when the command ends."""

    done: bool
    replica: int
    missing: str
    """What the change still waits for; "" when it is complete."""
    status: ClusterStatus

    def to_json(self) -> dict[str, Any]:
        roster = self.status.roster or Roster()
        newest = self.status.newest
        return {
            "done": self.done,
            "replica": self.replica,
            "missing": self.missing,
            "members": list(self.status.members),
            "voters": [] if newest is None else list(newest.get("voters", ())),
            "roster": [{"id": n, "address": a} for n, a in roster.replicas],
            "tolerated_failures": self.status.tolerated,
        }


def who() -> str:
    """Who asks, for the roster's record of removals."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "somebody"  # a container's user without a name
    return f"{user}@{socket.gethostname()}"[:255]


def roster_of(status: ClusterStatus) -> Roster:
    """Raises :class:`ReplicaError` when no replica tells."""
    roster = status.roster
    if roster is None or status.newest is None:
        why = "; ".join(status.problems) or "no replica serves"
        raise ReplicaError(f"no replica of the cluster serves: {why}")
    return roster


def free_id(roster: Roster, config: Config) -> int:
    """A number that no replica or witness has, or ever had."""
    taken = {*roster.voter_ids, *(n for n, *_ in roster.removed), *(v.id for v in config.voters)}
    for number in range(1, REPLICA_ID_MAX + 1):
        if number not in taken and number > max(taken, default=0):
            return number
    for number in range(1, REPLICA_ID_MAX + 1):
        if number not in taken:
            return number
    raise ReplicaError(f"all {REPLICA_ID_MAX} numbers of replicas are used up")


# --- how far a change is --------------------------------------------------------------------------


def missing_to_add(status: ClusterStatus, number: int) -> str:
    """What keeps replica *number* from being a whole part of the service; "" for nothing."""
    newest = status.newest
    if newest is None:
        return _nobody_serves(status)
    mine = next((r for r in status.replicas if r.configured.id == number), None)
    if mine is None:
        return f"replica {number} is not in the roster"
    if mine.said is None:
        return (
            f"replica {number} does not answer at {mine.configured.address} ({mine.error}); is it started? "
            f"(lockstep mds --id {number} --join {newest.configured.address})"
        )
    if number not in status.members:
        behind = max(0, int(newest.get("index", 0)) - int(mine.get("index", 0)))
        return f"replica {number} is learning: {behind} batches behind"
    return _missing_vote(newest, number, wanted=True)


def _nobody_serves(status: ClusterStatus) -> str:
    if not status.ties:
        return "the view is changing"
    number, tie = next(iter(status.ties.items()))
    return f"replica {number} waits for a decision: {tie}; give up another state"


def missing_to_remove(status: ClusterStatus, number: int) -> str:
    """What keeps replica *number* from being done without; "" for nothing."""
    newest = status.newest
    if newest is None:
        return _nobody_serves(status)
    roster = newest.roster
    if roster is not None and number in roster.replica_ids:
        return f"replica {number} is in the roster still"
    if number in status.members:
        return f"replica {number} is a member of the view still"
    return _missing_vote(newest, number, wanted=False)


def _missing_vote(newest: DaemonStatus, number: int, wanted: bool) -> str:
    """What keeps the vote of *number* from being counted, or from being needed no more. Others may be on their way."""
    voters = tuple(newest.get("voters", ()))
    if (number in voters) is not wanted:
        becomes = "is not a voter yet" if wanted else "is a voter still"
        return f"replica {number} {becomes} (voters are {_list(voters)}; a majority of those to come must be up)"
    standing = newest.get("standing") or {}
    stored = standing.get("stored", voters)
    if 2 * len(stored) <= len(voters):
        return f"the view is on the disks of voters {_list(stored)} only, a majority of {_list(voters)} is needed"
    return ""


def _list(items: Any) -> str:
    return ", ".join(map(str, items)) or "none"


async def follow(
    config: Config, number: int, missing: Callable[[ClusterStatus, int], str], timeout_s: float, tell: Tell
) -> Outcome:
    """Until nothing is *missing* any more, or *timeout_s* is over (0: one look)."""
    until = time.monotonic() + timeout_s
    said = ""
    while True:
        status = await fetch(config)
        why = missing(status, number)
        if not why:
            return Outcome(True, number, "", status)
        if time.monotonic() >= until:
            return Outcome(False, number, why, status)
        if why != said:
            said = why
            tell(why)
        await trio.sleep(LOOK_S)


# --- changes --------------------------------------------------------------------------------------


def serving_addresses(status: ClusterStatus) -> list[str]:
    """Where an order is carried out at once."""
    return [r.configured.address for r in status.replicas if r.serving]


def check_replace(roster: Roster, old: int, new: int | None) -> None:
    """Whether *old* can be replaced by *new* (None: a free number). Raises :class:`ReplicaError`. One that was removed
    already can: the command is given again."""
    if old == new:
        raise ReplicaError(f"replica {old} cannot replace itself: with another disk it gets another number")
    if old not in roster.replica_ids and roster.removal_of(old) is None:
        raise ReplicaError(f"there is no replica {old} to replace, only {_list(sorted(roster.replica_ids))}")


async def order_add(config: Config, number: int, address: str) -> None:
    """Enter replica *number* at *address* in the roster. Raises :class:`ReplicaError`, AskError. Idempotent."""
    status = await fetch(config)
    roster = roster_of(status)
    if (by := roster.removal_of(number)) is not None:
        raise ReplicaError(f"replica {number} was removed from this cluster by {by}: take another number")
    try:
        op = ReplicaSet(number, address, who())
        await ask.order(config, op, ORDER_TIMEOUT_S, serving_addresses(status))
    except FileSystemError as exc:
        reason = {
            errno.EEXIST: f"number {number} belongs to a witness, or was removed",
            errno.EADDRINUSE: f"{address} is the address of another replica or witness",
        }.get(exc.status, str(exc))
        raise ReplicaError(f"replica {number} is not added: {reason}") from exc


async def order_remove(config: Config, number: int) -> None:
    """Take replica *number* out of the roster. Raises :class:`ReplicaError`, AskError. Idempotent."""
    status = await fetch(config)
    roster = roster_of(status)
    if number in roster.replica_ids and not set(status.members) - {number}:
        raise ReplicaError(f"replica {number} is the only one that has the state: no other could go on without it")
    others = [a for a in serving_addresses(status) if a != roster.address_of(number)]
    try:
        await ask.order(config, ReplicaRemove(number, who()), ORDER_TIMEOUT_S, others)
    except FileSystemError as exc:
        reason = {
            errno.ENOENT: "there is none of that number",
            errno.EBUSY: "it is the last one",
        }.get(exc.status, str(exc))
        raise ReplicaError(f"replica {number} is not removed: {reason}") from exc


async def control(config: Config, number: int, what: str) -> None:
    """Tell replica *number* itself to leave, to restart, or to force a view. Raises :class:`ReplicaError`."""
    status = await fetch(config)
    known = {r.id: r.address for r in config.replicas}
    if status.roster is not None:
        known |= dict(status.roster.replicas)
    if number not in known:
        raise ReplicaError(f"there is no replica {number}, only {_list(sorted(known))}")
    try:
        await ask.call(config, known[number], ControlCall(1, what), CONTROL_TIMEOUT_S)
    except (AskError, FileSystemError) as exc:
        raise ReplicaError(f"replica {number} has not done it: {exc}") from exc


async def resync(config: Config, number: int, timeout_s: float, tell: Tell) -> None:
    """Give up the state of replica *number*, and have the others compare theirs anew. Raises :class:`ReplicaError`."""
    status = await fetch(config)
    mine = next((r for r in status.replicas if r.configured.id == number), None)
    if mine is None:
        raise ReplicaError(f"there is no replica {number}, only {_list(r.configured.id for r in status.replicas)}")
    if not any(r.said is not None for r in status.replicas if r is not mine):
        raise ReplicaError(f"replica {number} keeps its state: no other replica answers that could give it another")
    if mine.said is not None:
        await control(config, number, "resync")
        tell(f"replica {number} sets its state aside")
    else:
        tell(f"replica {number} does not answer: when it comes back, its state is compared with the others'")
    until = time.monotonic() + timeout_s
    while number in _members_elsewhere(status, number) and _same_run(status, mine):
        if time.monotonic() >= until:
            raise ReplicaError(f"replica {number} is a member of the view still: the others are not told to go on")
        await trio.sleep(LOOK_S)
        status = await fetch(config)
    for other in status.ties:
        if other != number:
            await control(config, other, "trust")
            tell(f"replica {other} compares anew")


def _members_elsewhere(status: ClusterStatus, number: int) -> set[int]:
    """Members of the newest view that another replica than *number* knows."""
    others = [r for r in status.replicas if r.said is not None and r.configured.id != number]
    newest = max(others, key=lambda r: r.view, default=None)
    return set() if newest is None else set(newest.get("members", ()))


def _same_run(status: ClusterStatus, before: DaemonStatus) -> bool:
    """The replica has not been started again since *before*, as far as is known."""
    now = next((r for r in status.replicas if r.configured.id == before.configured.id), None)
    return now is None or now.said is None or now.get("incarnation") == before.get("incarnation")


def missing_after_force(status: ClusterStatus, number: int) -> str:
    """What keeps the forced view from serving; "" for nothing."""
    newest = status.newest
    if newest is None or number not in status.members:
        return f"replica {number} does not serve yet"
    return ""

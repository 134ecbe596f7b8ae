"""What a cluster looks like from outside: every daemon asked, the answers judged, a table or JSON made of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Final

import trio
from rich.console import Console
from rich.table import Table

from admin.ask import ASK_TIMEOUT_S, AskError, Reply, statuses
from daemon.config import Config, ReplicaConfig, TargetConfig
from mds.namespace.roster import Roster, from_tuple_untrusted
from wire.errors import WireError

SERVING: Final = "active"
"""``state`` of a replica that is active in a view and serves clients."""


class Health(IntEnum):
    """The verdict; its value is the exit code of `lockstep status`."""

    HEALTHY = 0
    DEGRADED = 1
    """It serves, but something that the configuration names is missing or differs."""
    UNREACHABLE = 2
    """No replica serves."""
    DIVERGED = 3
    """Replicas' states differ and none has a majority: nothing is served until an administrator decides."""


@dataclass(frozen=True, slots=True)
class DaemonStatus:
    """One daemon as configured, and what it said (None with the reason in *error* when it said nothing)."""

    configured: ReplicaConfig | TargetConfig
    said: Mapping[str, Any] | None
    uuid: bytes
    error: str

    @property
    def name(self) -> str:
        return f"{'mds' if isinstance(self.configured, ReplicaConfig) else 'ossd'}-{self.configured.id}"

    @property
    def serving(self) -> bool:
        return self.said is not None and self.said.get("state") == SERVING

    def get(self, key: str, default: Any = None) -> Any:
        return default if self.said is None else self.said.get(key, default)

    @property
    def roster(self) -> Roster | None:
        """What a replica says of who belongs to the cluster."""
        said = self.get("roster")
        try:
            return None if said is None else from_tuple_untrusted(said)
        except WireError:
            return None  # of another version of the program

    @property
    def view(self) -> tuple[int, int]:
        return int(self.get("generation", 0)), int(self.get("epoch", 0))


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """Every daemon's answer at about one time."""

    config: Config
    replicas: tuple[DaemonStatus, ...]
    targets: tuple[DaemonStatus, ...]

    @property
    def newest(self) -> DaemonStatus | None:
        """The serving replica that knows the latest view."""
        return max((r for r in self.replicas if r.serving), key=lambda r: r.view, default=None)

    @property
    def roster(self) -> Roster | None:
        """Who belongs to the cluster, as the replica says that knows of the most changes; None: nobody says."""
        said = [r.roster for r in self.replicas if r.roster is not None]
        return max(said, key=lambda roster: roster.version, default=None)

    @property
    def expected_voters(self) -> tuple[int, ...]:
        """Who should vote: the roster's voters, the configuration's where no replica tells of a roster."""
        roster = self.roster
        return tuple(v.id for v in self.config.voters) if roster is None else roster.voter_ids

    @property
    def learners(self) -> tuple[int, ...]:
        """Replicas that answer and are no members."""
        return tuple(r.configured.id for r in self.replicas if r.said is not None and r.configured.id not in
        self.members)

    @property
    def tolerated(self) -> int:
        """How many more voters may fail, whichever they are, with the service going on. 0: the next one may end it."""
        newest = self.newest
        if newest is None:
            return 0
        if "standing" in (newest.said or {}):
            return int(newest.get("standing")["tolerates"])
        voters = set(newest.get("voters", ()))
        alive = {r.configured.id for r in self.replicas if r.said is not None}
        alive |= {t.get("witness") for t in self.targets if t.said is not None}
        majority = len(voters) // 2 + 1
        return max(0, min(len(voters & alive) - majority, len(self.members) - 1))

    @property
    def members(self) -> tuple[int, ...]:
        """Members of the latest view that a serving replica knows."""
        return () if self.newest is None else tuple(self.newest.get("members", ()))

    @property
    def health(self) -> Health:
        if self.ties:
            return Health.DIVERGED
        if self.newest is None:
            return Health.UNREACHABLE
        return Health.DEGRADED if self.problems else Health.HEALTHY

    @property
    def ties(self) -> dict[int, str]:
        """Replica -> what differs, of those that wait for an administrator to decide whose state counts."""
        said = {r.configured.id: r.get("alarm") or {} for r in self.replicas}
        return {number: str(alarm["tie"]) for number, alarm in said.items() if alarm.get("tie")}

    @property
    def replicas_equal(self) -> bool:
        """Every configured replica answered, with one index and one digest."""
        return (
            all(r.said is not None for r in self.replicas)
            and len({(r.get("index"), r.get("low"), r.get("digest")) for r in self.replicas}) == 1
        )

    @property
    def problems(self) -> list[str]:
        """What is not as it should be, one sentence each; empty in a healthy cluster."""
        found = [f"{d.name} does not answer: {d.error}" for d in (*self.replicas, *self.targets) if d.said is None]
        for number, tie in self.ties.items():
            found.append(f"mds-{number} serves nothing: {tie}; `lockstep replica resync` says whose state is given up")
        newest = self.newest
        if newest is None:
            return [*found, "no replica serves"]
        for one in self.replicas:
            if one.said is None:
                continue
            if not one.serving and one.configured.id not in self.ties:
                found.append(f"{one.name} does not serve: {one.get('state', 'state unknown')}")
            elif one.view != newest.view:
                found.append(f"{one.name} is in view {_view(one)}, {newest.name} in {_view(newest)}")
            if one.configured.id not in self.members:
                found.append(f"{one.name} is no member of view {_view(newest)}")
        expected = self.expected_voters
        if set(expected) != set(newest.get("voters", ())):
            found.append(f"voters are {_list(newest.get('voters', ()))}, they should be {_list(expected)}")
        # The digest is a sum over everything up to `low`, so it may be compared where that is equal only.
        by_index: dict[Any, set[Any]] = {}
        for one in self.replicas:
            if one.said is not None:
                by_index.setdefault(one.get("low"), set()).add(one.get("digest"))
        for index, digests in by_index.items():
            if len(digests) > 1:
                found.append(f"replicas differ at index {index}: digests {_list(sorted(map(str, digests)))}")
        for target in self.targets:
            witness = getattr(target.configured, "witness", None)
            if target.said is not None and target.get("witness") != witness:
                found.append(f"{target.name} hosts witness {target.get('witness')}, configured is {witness}")
        return found

    def to_json(self) -> dict[str, Any]:
        """The whole as plain values, with the keys that `lockstep status --json` promises."""
        newest = self.newest
        return {
            "cluster": self.config.cluster.name,
            "id": self.config.cluster.id.hex(),
            "health": self.health.name.lower(),
            "problems": self.problems,
            "view": None
            if newest is None
            else {
                "generation": newest.get("generation"),
                "epoch": newest.get("epoch"),
                "members": list(self.members),
                "voters": list(newest.get("voters", ())),
            },
            "learners": list(self.learners),
            "tolerated_failures": self.tolerated,
            "replicas_equal": self.replicas_equal,
            "ties": {str(number): tie for number, tie in self.ties.items()},
            "replicas": [_daemon_json(r) for r in self.replicas],
            "targets": [_daemon_json(t) for t in self.targets],
        }


def _view(one: DaemonStatus) -> str:
    """Generation and number of the view. The epoch's number on the wire carries the generation in its upper bits."""
    generation, epoch = one.view
    return f"{generation}.{epoch % 2**40}"


def _list(items: Any) -> str:
    return ", ".join(str(i) for i in items) or "none"


def _daemon_json(one: DaemonStatus) -> dict[str, Any]:
    made: dict[str, Any] = {"id": one.configured.id, "address": one.configured.address}
    if one.said is None:
        return {**made, "answered": False, "error": one.error}
    return {**made, "answered": True, **{k: _plain(v) for k, v in one.said.items() if k not in ("id", "role")}}


def _plain(value: Any) -> Any:
    """*value* as JSON knows it: tuples become lists, bytes hexadecimal digits, keys texts."""
    if isinstance(value, bytes | bytearray):
        return value.hex()
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, tuple | list) else value


async def fetch(config: Config, timeout_s: float = ASK_TIMEOUT_S) -> ClusterStatus:
    """Ask every replica and target at once, then those replicas that only the cluster itself knows of; takes at most
    about twice *timeout_s*."""
    everyone: list[ReplicaConfig | TargetConfig] = [*config.replicas, *config.targets]
    said = await statuses(config, [d.address for d in everyone], timeout_s)

    def judged(configured: ReplicaConfig | TargetConfig) -> DaemonStatus:
        reply = said[configured.address]
        if isinstance(reply, Reply):
            return DaemonStatus(configured, reply.body, reply.uuid, "")
        assert isinstance(reply, AskError), "statuses() gives one or the other"
        return DaemonStatus(configured, None, b"", str(reply).removeprefix(f"{configured.address}: "))

    found = ClusterStatus(config, tuple(map(judged, config.replicas)), tuple(map(judged, config.targets)))
    roster = found.roster
    if roster is None:
        return found
    # The configuration tells how the cluster began; who was added since may not be in it, who was removed may be.
    known = {r.id: r.address for r in config.replicas}
    added = [ReplicaConfig(n, a, Path()) for n, a in roster.replicas if known.get(n) != a]
    said |= await statuses(config, [r.address for r in added], timeout_s)
    there = {r.id: r for r in config.replicas if r.id in roster.replica_ids} | {r.id: r for r in added}
    return ClusterStatus(config, tuple(judged(there[n]) for n in sorted(there)), found.targets)


def fetch_blocking(config: Config, timeout_s: float = ASK_TIMEOUT_S) -> ClusterStatus:
    """:func:`fetch` for callers that are no trio task."""
    return trio.run(fetch, config, timeout_s)


_COLOUR: Final = {Health.HEALTHY: "green", Health.DEGRADED: "yellow", Health.UNREACHABLE: "red", Health.DIVERGED: "red"}


def _bytes(count: Any) -> str:
    if not isinstance(count, int):
        return "?"
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def _table(*headings: str) -> Table:
    """A table whose cells are never cut off: what does not fit continues on the next line."""
    made = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for heading in headings:
        made.add_column(heading, overflow="fold")
    return made


def show(status: ClusterStatus, console: Console) -> None:
    """Print *status* for a person."""
    if not console.is_terminal:
        console.width = max(console.width, 120)  # a file or a pipe has no width of its own
    colour = _COLOUR[status.health]
    console.print(f"cluster [bold]{status.config.cluster.name}[/]: [{colour}]{status.health.name.lower()}[/]")
    newest = status.newest
    if newest is not None:
        console.print(
            f"view {_view(newest)}  members {_list(status.members)}  voters {_list(newest.get('voters', ()))}"
            + (f"  learners {_list(status.learners)}" if status.learners else "")
        )
        console.print(f"tolerates {status.tolerated} more failures now", highlight=False)
    replicas = _table("replica", "address", "state", "view", "index", "digest", "sessions", "inodes")
    for one in status.replicas:
        if one.said is None:
            replicas.add_row(str(one.configured.id), one.configured.address, "[red]no answer[/]", *["-"] * 5)
            continue
        state = str(one.get("state", "?"))
        replicas.add_row(
            str(one.configured.id),
            one.configured.address,
            f"[green]{state}[/]" if one.serving else f"[yellow]{state}[/]",
            _view(one),
            *(str(one.get(key, "?")) for key in ("index", "digest", "sessions", "inodes")),
        )
    console.print(replicas)
    for one in status.replicas:
        if one.said is not None and one.get("locks"):
            console.print(f"{one.name}: {lock_line(one.get('locks'))}", highlight=False)
    targets = _table("target", "address", "state", "objects", "size", "free", "witness")
    for one in status.targets:
        if one.said is None:
            targets.add_row(str(one.configured.id), one.configured.address, "[red]no answer[/]", *["-"] * 4)
            continue
        witness = one.get("witness")
        targets.add_row(
            str(one.configured.id),
            one.configured.address,
            "[green]up[/]",
            str(one.get("objects", "?")),
            _bytes(one.get("bytes_total")),
            _bytes(one.get("bytes_free")),
            "-" if witness is None else str(witness),
        )
    console.print(targets)
    for problem in status.problems:
        console.print(f"[yellow]-[/] {problem}", highlight=False)


def lock_line(said: dict[str, Any]) -> str:
    """What a replica's transaction control has done, in one line (the JSON has it whole)."""
    cells = [
        f"{asked} after {held}: {count} {what}"
        for held, row in said["cells"].items()
        for asked, cell in row.items()
        for what, count in cell.items()
        if count
    ]
    return (
        f"{said['straight']} requests executed at once, {said['declared']} by the lock table: {said['held']} held back "
        f"by caches, {said['queued']} queued, {said['waiting']} wait now" + (f" ({'; '.join(cells)})" if cells else "")
    )


def most_common_index(status: ClusterStatus) -> int | None:
    """The index most replicas are at: what the others have to catch up to."""
    found = Counter(r.get("index") for r in status.replicas if r.said is not None).most_common(1)
    return int(found[0][0]) if found and isinstance(found[0][0], int) else None

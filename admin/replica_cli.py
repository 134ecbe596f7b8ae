"""`lockstep replica`: arguments in, admin.replicas does it, one line or one JSON object out."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import click
import trio
from rich.console import Console
from rich.table import Table

from admin import replicas
from admin.ask import AskError
from admin.local import ClusterError, LocalCluster, find_config
from admin.processes import ProcessError
from admin.replicas import Outcome, ReplicaError
from admin.status import ClusterStatus, fetch_blocking
from daemon.config import CONFIG_NAME, Config, ConfigError
from daemon.exits import EXIT_CONFIG, EXIT_FAILED, EXIT_OK
from wire.peer import split_address

WAIT_S: Final = 300.0

_EXITS = """\b
Exit codes:
  0  complete
  1  refused, or not complete in time; what is missing is printed. The command may be given again
  2  the configuration is not usable, or the arguments are not"""

_SPEC = click.argument("spec", type=click.Path(path_type=Path), metavar="DIR|CONFIG")
_ID = click.argument("number", type=click.IntRange(1, 255), metavar="ID")
_WAIT = click.option("--wait/--no-wait", default=True, show_default=True, help="Wait until the change is complete.")
_TIMEOUT = click.option(
    "--timeout", "timeout_s", type=click.FloatRange(0.1, 86_400), default=WAIT_S, show_default=True,
    help="Seconds to wait for it.",
)  # fmt: skip
_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end.")
_DELETE = click.option("--delete", is_flag=True, help="Delete the removed replica's data directory (local clusters).")


@contextlib.contextmanager
def _reported() -> Iterator[None]:
    """Expected failures become one line on standard error and an exit code."""
    try:
        yield
    except ConfigError as exc:
        print(f"lockstep: {exc}", file=sys.stderr)
        sys.exit(EXIT_CONFIG)
    except (ReplicaError, AskError, ClusterError, ProcessError) as exc:
        print(f"lockstep: {exc}", file=sys.stderr)
        sys.exit(EXIT_FAILED)


def _tell(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)


def _local(spec: Path) -> LocalCluster | None:
    """The local cluster whose directory *spec* is."""
    if spec.is_dir() and (spec / CONFIG_NAME).exists():
        return LocalCluster.open(spec.absolute())
    return None


def _follow(
    config: Config,
    number: int,
    missing: Callable[[ClusterStatus, int], str],
    wait: bool,
    timeout_s: float,
) -> Outcome:
    return trio.run(replicas.follow, config, number, missing, timeout_s if wait else 0.0, _tell)


def _end(outcome: Outcome, what: str, wait: bool, as_json: bool) -> None:
    """Say how it stands; the exit code says whether it is complete (without waiting: that it was ordered)."""
    if as_json:
        print(json.dumps(outcome.to_json()))
    elif outcome.done:
        newest = outcome.status.newest
        voters = () if newest is None else newest.get("voters", ())
        print(
            f"{what}: members {', '.join(map(str, outcome.status.members))}, "
            f"voters {', '.join(map(str, voters))}; tolerates {outcome.status.tolerated} more failures"
        )
    else:
        print(f"{what}: ordered, not complete: {outcome.missing}", file=sys.stdout if not wait else sys.stderr)
    sys.exit(EXIT_OK if outcome.done or not wait else EXIT_FAILED)


@click.group(
    short_help="Add, remove, replace and restart metadata replicas.",
    epilog="""\b
Examples:
  lockstep replica list lockstep-cluster
  lockstep replica add lockstep-cluster
  lockstep replica replace /etc/lockstep/lockstep.toml 2 6 f.example.org:7700

"""
    + _EXITS,
)
def replica() -> None:
    """Change which metadata replicas a running cluster has. Mounts notice nothing.

    Who belongs to the cluster is part of the file system's replicated state: these commands have a change of it ordered
    by any live replica, and follow the view on its way there. Each may be given again: what is done is not done twice.

    CONFIG is a configuration file; DIR the directory of a local cluster (`lockstep up`), where the commands start and
    stop the processes as well.
    """


@replica.command(
    "list",
    short_help="Who belongs to the cluster.",
    epilog="""\b
Examples:
  lockstep replica list lockstep-cluster
  lockstep replica list /etc/lockstep/lockstep.toml --json

"""
    + _EXITS,
)
@_SPEC
@_JSON
def list_replicas(spec: Path, as_json: bool) -> None:
    """Show the roster: replicas, witnesses, and the numbers that were removed, with who removed them."""
    with _reported():
        status = fetch_blocking(find_config(spec))
        roster = replicas.roster_of(status)
        newest = status.newest
        voters = () if newest is None else newest.get("voters", ())
        if as_json:
            print(
                json.dumps(
                    {
                        "version": roster.version,
                        "replicas": [
                            {"id": n, "address": a, "member": n in status.members, "voter": n in voters}
                            for n, a in roster.replicas
                        ],
                        "witnesses": [{"id": n, "address": a, "voter": n in voters} for n, a in roster.witnesses],
                        "removed": [{"id": n, "address": a, "by": by, "time_ns": t} for n, a, by, t in roster.removed],
                        "tolerated_failures": status.tolerated,
                    }
                )
            )
            return
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
        for heading in ("id", "kind", "address", "member", "voter"):
            table.add_column(heading, overflow="fold")
        for number, address in roster.replicas:
            member = "yes" if number in status.members else "learner" if number in status.learners else "no"
            table.add_row(str(number), "replica", address, member, "yes" if number in voters else "no")
        for number, address in roster.witnesses:
            table.add_row(str(number), "witness", address, "-", "yes" if number in voters else "no")
        for number, address, by, _ in roster.removed:
            table.add_row(str(number), "removed", address, "-", f"by {by}")
        console = Console()
        if not console.is_terminal:
            console.width = max(console.width, 120)
        console.print(table)


@replica.command(
    short_help="Add a replica.",
    epilog="""\b
Examples:
  lockstep replica add lockstep-cluster             one more, with a free number and port; it is started
  lockstep replica add /etc/lockstep/lockstep.toml 4 d.example.org:7700
                                                    on d: lockstep mds --config F --id 4 --join a.example.org:7700

"""
    + _EXITS,
)
@_SPEC
@click.argument("number", type=click.IntRange(1, 255), metavar="[ID]", required=False)
@click.argument("address", metavar="[ADDRESS]", required=False)
@_WAIT
@_TIMEOUT
@_JSON
def add(spec: Path, number: int | None, address: str | None, wait: bool, timeout_s: float, as_json: bool) -> None:
    """Add replica ID, which listens at ADDRESS (HOST:PORT), to the cluster.

    In a local cluster ID and ADDRESS are chosen where they are not given, the section is written to the
    configuration, and the process is started. Elsewhere ADDRESS may be left out if the configuration has a section
    for ID; the replica itself is started on its host, before or after this command, with a section that says `joins =
    true`, or with `lockstep mds --join`.

    Complete means: the new replica has the whole state and is a member of the active view, it is a voter, and a
    majority of the voters has that view on disk.
    """
    with _reported():
        outcome = _add(spec, number, address, wait, timeout_s)
    _end(outcome, f"replica {outcome.replica} is added", wait, as_json)


def _add(spec: Path, number: int | None, address: str | None, wait: bool, timeout_s: float) -> Outcome:
    config = find_config(spec)
    local = _local(spec)
    roster = replicas.roster_of(fetch_blocking(config))
    if number is None:
        if local is None:
            raise ReplicaError("which number? (ID and ADDRESS are chosen in local clusters only)")
        number = replicas.free_id(roster, config)
    if address is None:
        address = dict(roster.replicas).get(number) or next(
            (r.address for r in config.replicas if r.id == number), local.free_address() if local is not None else None
        )
        if address is None:
            raise ReplicaError(f"at which address? the configuration has no section for replica {number}")
    try:
        split_address(address)
    except ValueError as exc:
        raise ReplicaError(str(exc)) from exc
    trio.run(replicas.order_add, config, number, address)
    if local is not None:
        with local.lock():
            local.include_replica(number, address)
            local.start(f"mds-{number}")
    return _follow(find_config(spec), number, replicas.missing_to_add, wait, timeout_s)


@replica.command(
    short_help="Remove a replica, dead or alive.",
    epilog="""\b
Examples:
  lockstep replica remove lockstep-cluster 4 --delete
  lockstep replica remove /etc/lockstep/lockstep.toml 2

"""
    + _EXITS,
)
@_SPEC
@_ID
@_WAIT
@_TIMEOUT
@_JSON
@_DELETE
def remove(spec: Path, number: int, wait: bool, timeout_s: float, as_json: bool, delete: bool) -> None:
    """Remove replica ID from the cluster, for ever: the number is never used again.

    Its clients go on at other replicas. Its process ends by itself with code 4, and is refused should it come back.
    The last replica that has the state is not removed. Take its section out of the configuration files (in a local
    cluster that is done here) before its data is deleted, and delete nothing before the command says that it is
    complete: until a majority of the remaining voters has the new view on disk, its vote may still be needed.
    """
    with _reported():
        outcome = _remove(spec, number, wait, timeout_s, delete)
    _end(outcome, f"replica {number} is removed", wait, as_json)


def _remove(spec: Path, number: int, wait: bool, timeout_s: float, delete: bool) -> Outcome:
    config = find_config(spec)
    trio.run(replicas.order_remove, config, number)
    outcome = _follow(config, number, replicas.missing_to_remove, wait, timeout_s)
    local = _local(spec)
    if local is not None and outcome.done:
        with local.lock():
            local.drop_replica(number, delete)
    return outcome


@replica.command(
    short_help="Put a new replica in the place of another.",
    epilog="""\b
Examples:
  lockstep replica replace lockstep-cluster 2       the new one gets a free number and port
  lockstep replica replace /etc/lockstep/lockstep.toml 2 6 f.example.org:7700

"""
    + _EXITS,
)
@_SPEC
@click.argument("old", type=click.IntRange(1, 255), metavar="OLD")
@click.argument("new", type=click.IntRange(1, 255), metavar="[NEW]", required=False)
@click.argument("address", metavar="[ADDRESS]", required=False)
@_TIMEOUT
@_JSON
@_DELETE
def replace(
    spec: Path, old: int, new: int | None, address: str | None, timeout_s: float, as_json: bool, delete: bool
) -> None:
    """Add replica NEW (see `add`), wait until that is complete, then remove replica OLD, which may be dead.

    For a replica whose disk is lost or damaged: with another disk it is another replica, under another number.
    """
    with _reported():
        replicas.check_replace(replicas.roster_of(fetch_blocking(find_config(spec))), old, new)
        added = _add(spec, new, address, True, timeout_s)
        if not added.done:
            raise ReplicaError(f"replica {added.replica} is not complete, replica {old} is kept: {added.missing}")
        _tell(f"replica {added.replica} is complete")
        outcome = _remove(spec, old, True, timeout_s, delete)
    _end(outcome, f"replica {old} is replaced by {added.replica}", True, as_json)


_CONTROL_EXITS = """\b
Exit codes:
  0  done
  1  not; the reason is printed
  2  the configuration is not usable, or the arguments are not"""


@replica.command(
    short_help="Have a replica stop without a pause.",
    epilog="""\b
Example:
  lockstep replica leave /etc/lockstep/lockstep.toml 2

"""
    + _CONTROL_EXITS,
)
@_SPEC
@_ID
def leave(spec: Path, number: int) -> None:
    """Have replica ID left out of the view and stop; it stays a part of the cluster, and a voter.

    The others need not find out, nor wait for what they promised it: clients see a pause of some milliseconds.
    SIGTERM to its process does the same (`systemctl stop`). Started again, it returns by itself.
    """
    with _reported():
        trio.run(replicas.control, find_config(spec), number, "leave")
    print(f"replica {number} has left the view and stops")


@replica.command(
    short_help="Restart a replica without a pause.",
    epilog="""\b
Example:
  lockstep replica restart /etc/lockstep/lockstep.toml 2

"""
    + _CONTROL_EXITS,
)
@_SPEC
@_ID
@_WAIT
@_TIMEOUT
@_JSON
def restart(spec: Path, number: int, wait: bool, timeout_s: float, as_json: bool) -> None:
    """Have replica ID leave the view, end, and be started again by its watchdog: for a new release of the program."""
    with _reported():
        config = find_config(spec)
        trio.run(replicas.control, config, number, "restart")
        outcome = _follow(config, number, replicas.missing_to_add, wait, timeout_s)
    _end(outcome, f"replica {number} is restarted", wait, as_json)


@replica.command(
    short_help="Give up the state of a replica; it takes that of the others.",
    epilog="""\b
Example:
  lockstep replica resync /etc/lockstep/lockstep.toml 2

"""
    + _CONTROL_EXITS,
)
@_SPEC
@_ID
@_WAIT
@_TIMEOUT
@_JSON
def resync(spec: Path, number: int, wait: bool, timeout_s: float, as_json: bool) -> None:
    """Set the state of replica ID aside, as state.diverged in its data directory, and have it take that of the others.

    This is how you decide when replicas differ and `lockstep status` says that none has a majority: the state of
    replica ID is given up, and the others compare theirs anew. Where more than two differ, it may take one command for
    each state to be given up. Nobody but you can know which is right; each replica still gives a copy of its own
    (`lockstep dump --replica`). Until you have decided, mounts wait; nothing ends that by itself but a replica that was
    away, comes back, and agrees with one side.

    A replica that finds itself in the minority does all this without being asked.
    """
    with _reported():
        config = find_config(spec)
        trio.run(replicas.resync, config, number, timeout_s, _tell)
        outcome = _follow(config, number, replicas.missing_to_add, wait, timeout_s)
    _end(outcome, f"replica {number} has another state", wait, as_json)


@replica.command(
    short_help="Last resort: go on with one replica alone.",
    epilog="""\b
Example:
  lockstep replica force /etc/lockstep/lockstep.toml 1 --others-are-fenced

"""
    + _CONTROL_EXITS,
)
@_SPEC
@_ID
@click.option("--others-are-fenced", is_flag=True, help="You have made sure of it: no other replica runs or ever will.")
@_TIMEOUT
@_JSON
def force(spec: Path, number: int, others_are_fenced: bool, timeout_s: float, as_json: bool) -> None:
    """Begin a new generation of views with replica ID as its only member and voter.

    Only for when a majority of the voters is gone for good. What is lost: every operation that other replicas
    answered and this one does not have. Replica ID has all that was answered in the last view it was active in; if
    others went on without it, what they did since is gone, and clients that saw it see it undone.

    What must be sure: the other replicas are fenced, that is switched off or cut off from every client, and never come
    back with their present disks. A replica that still runs would serve the old state to whoever reaches it: two file
    systems under one name. Nobody but you can know, so the command asks for --others-are-fenced.

    Afterwards remove the others (`lockstep replica remove`), and add new ones.
    """
    with _reported():
        if not others_are_fenced:
            raise ReplicaError(
                "nothing is done: what other replicas answered and this one does not have would be lost, and a replica "
                "that still runs would serve another file system under the same name. If none runs or ever will again, "
                "say --others-are-fenced"
            )
        config = find_config(spec)
        trio.run(replicas.control, config, number, "force")
        outcome = _follow(config, number, replicas.missing_after_force, True, timeout_s)
    _end(outcome, f"replica {number} goes on alone", True, as_json)

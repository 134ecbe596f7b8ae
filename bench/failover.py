"""For how long is no request answered when a metadata replica fails, leaves or joins?

    python -m bench.failover [--json] [--trials 30] [--faults kill,stop,partition] [--replicas 2,3,5] [--mount]

A client creates and queries back to back (:mod:`bench.failover_load`, a process of its own). A trial is one fault; its
figure is the longest time between two answers from before the fault until the replica is back in the view and requests
have gone on.  In every other trial the victim is the replica that the client is attached to, else another one: ``rows``
are over both, ``by_victim`` tells them apart.  The replica that comes back is part of the trial.

    kill        kill -9 of the replica's process; its watchdog certifies that and starts it again
    stop        SIGSTOP of the replica and its watchdog, and SIGCONT when the others have gone on without it
    partition   the replica is cut off from everybody, the client included, and nobody is told (network namespaces:
                root only), and joined again when the others have gone on without it
    leave       the replica is told to stop (SIGTERM): it asks to be left out first. Until the others have gone on
    join        it is started again, until it is a member: the second half of the trial of leaving

Claims: of three replicas, the p99 of the stall is at most 500 ms for stop and partition (the thesis: 500 ms; CephFS 17
to 21 s; MooseFS has no failover; GlusterFS 46 s for a hung brick) and at most 100 ms for kill (GlusterFS: 35 ms),
leave and join.

The p99 of n trials is the ceil(0.99 n)-th smallest: of 30 the longest.  ``availability``: what the thesis's equations
make of the recovery time measured here, the p99 of the worst of the faults that are not planned.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import trio

from admin import ask, mounts, network, runs
from admin.local import ClusterError, LocalCluster, child_environment, daemon_command, python_module
from admin.processes import ProcessError
from bench import availability, mdtest
from daemon.config import Config, write

FAULTS: Final = ("kill", "stop", "partition", "leave", "join")
THESIS_REPLICAS: Final = (2, 3, 5)
WAIT_S: Final = 60.0
"""A cluster that is not whole again within this time never will be."""
STOP_S: Final = 30.0
POLL_S: Final = 0.05
OUT_FOR_S: Final = 0.3
"""A stopped or cut off replica stays so for this long after the others have gone on without it."""
STAYED_S: Final = 10.5
"""A replica is not hurt again before it was a member for so long: the group lets one that fails sooner wait for ever
longer before it is taken in again (vsync.limits.STAY_GOOD)."""
ANSWERS_AFTER: Final = 50
"""Answers after everything is whole again: they belong to the trial."""


class FailoverError(Exception):
    """The measurement failed; the text says where and why."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One fault and its figure."""

    fault: str
    victim: int
    attached: bool
    """The victim was the replica that the client was attached to."""
    stall_ms: float
    until: str = ""
    """What was answered at its end, and when (UTC)."""


# --- the client -----------------------------------------------------------------------------------


class Load:
    """The client process."""

    def __init__(self, config: Config, name: str, where: str) -> None:
        self.name = name
        argv = python_module("bench.failover_load", str(config.path), name, where)
        with (config.path.parent / "log" / "load.log").open("ab") as log:
            self._child = subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=child_environment(), bufsize=0
            )

    def say(self, command: str) -> dict[str, Any]:
        """Send *command*; what it answers."""
        assert self._child.stdin is not None and self._child.stdout is not None, "pipes"
        try:
            self._child.stdin.write(f"{command}\n".encode())
        except BrokenPipeError as exc:
            raise FailoverError("the client has ended") from exc
        line = self._child.stdout.readline()
        if not line:
            raise FailoverError(f"the client has ended with code {self._child.wait()}")
        said: dict[str, Any] = json.loads(line)
        if said["errors"]:
            raise FailoverError(f"the client met errors: {said['errors']}")
        return said

    def more(self, answers: int) -> None:
        """Wait until so many more requests are answered."""
        first = self.say("tell")["answers"]
        wait(lambda: self.say("tell")["answers"] >= first + answers, f"no {answers} answers")

    def end(self) -> None:
        self._child.kill()
        self._child.wait()


def wait(until: Callable[[], bool], what: str) -> None:
    """Ask *until* again and again. Raises :class:`FailoverError` after WAIT_S."""
    deadline = time.monotonic() + WAIT_S
    while not until():
        if time.monotonic() > deadline:
            raise FailoverError(f"{what} within {WAIT_S:g} s")
        time.sleep(POLL_S)


# --- the cluster ----------------------------------------------------------------------------------


class Subject:
    """A cluster, its client, and what is done to its replicas."""

    def __init__(self, cluster: LocalCluster, load: Load, net: network.Network | None) -> None:
        self.cluster = cluster
        self.replicas = [r.id for r in cluster.config.replicas]
        self._load = load
        self._net = net
        self.log = Log(cluster.directory / "log")
        self._back: dict[int, float] = {}
        """When each replica came back the last time."""

    def said_by(self, replica: int) -> dict[str, Any] | None:
        """The replica's status; None when it gives none."""
        try:
            body = trio.run(ask.status_of, self.cluster.config, self.cluster.config.replica(replica).address).body
        except ask.AskError:
            return None
        assert isinstance(body, dict)
        return body

    def whole(self) -> bool:
        """All replicas are active in one view of all of them."""
        said = [self.said_by(r) for r in self.replicas]
        return all(
            s is not None and s["state"] == "active" and list(s["members"]) == self.replicas for s in said
        ) and len({s["epoch"] for s in said if s is not None}) == 1

    def attached_to(self) -> int:
        """The replica that the client is attached to."""
        for replica in self.replicas:
            said = self.said_by(replica)
            if said is not None and any(self._is_ours(str(name)) for name in said["clients"]):
                return replica
        raise FailoverError("no replica has the client's session")

    def _is_ours(self, name: str) -> bool:
        return name == self._load.name or name.endswith(f":{self._load.name}")

    def trial(self, fault: str, number: int) -> Iterator[Trial]:
        """One trial; one of leaving is followed by one of joining. Everything is whole before and after."""
        wait(self.whole, "the cluster is not whole")
        here = self.attached_to()
        attached = number % 2 == 0
        others = [r for r in self.replicas if r != here]
        victim = here if attached else min(others, key=lambda r: self._back.get(r, 0.0))
        rest = self._back.get(victim, 0.0) + STAYED_S - time.monotonic()
        if rest > 0:
            time.sleep(rest)
        yield self._measured(fault, victim, attached)
        if fault == "leave":
            yield self._measured("join", victim, attached)
        self._back[victim] = time.monotonic()

    def _measured(self, fault: str, victim: int, attached: bool) -> Trial:
        self._load.say("mark")
        self._load.more(ANSWERS_AFTER)
        self.log.mark()
        getattr(self, fault)(victim)
        if fault != "leave":
            wait(self.whole, f"replica {victim} is not back after {fault}")
        self._load.more(ANSWERS_AFTER)
        said = self._load.say("tell")
        return Trial(fault, victim, attached, round(said["longest_ms"], 1), said["longest_until"])

    def _gone_on_without(self, victim: int) -> None:
        other = next(r for r in self.replicas if r != victim)

        def without() -> bool:
            said = self.said_by(other)
            return said is not None and said["state"] == "active" and victim not in said["members"]

        wait(without, f"the others do not go on without replica {victim}")
        time.sleep(OUT_FOR_S)

    # -- the faults

    def kill(self, victim: int) -> None:
        before = self.said_by(victim)
        assert before is not None, "the cluster is whole"
        self.cluster.crash(f"mds-{victim}")

        def again() -> bool:
            said = self.said_by(victim)
            return said is not None and said["incarnation"] > before["incarnation"]

        wait(again, f"replica {victim} is not started again")

    def stop(self, victim: int) -> None:
        self.cluster.pause(f"mds-{victim}")
        try:
            self._gone_on_without(victim)
        finally:
            self.cluster.resume(f"mds-{victim}")

    def partition(self, victim: int) -> None:
        assert self._net is not None, "the partition's cluster has a network of its own"
        name = f"mds-{victim}"
        others = [h for h in self._net.hosts if h != name]
        self._net.cut([*((name, h) for h in others), *((h, name) for h in others)])
        try:
            self._gone_on_without(victim)
        finally:
            self._net.heal()

    def leave(self, victim: int) -> None:
        how = self.cluster.stop(f"mds-{victim}", STOP_S)
        if how != "stopped":
            raise FailoverError(f"replica {victim} was told to stop and was {how}")
        self._gone_on_without(victim)

    def join(self, victim: int) -> None:
        self.cluster.start(f"mds-{victim}")


@contextmanager
def subject(replicas: int, own_network: bool, mounted: bool) -> Iterator[Subject]:
    """A running cluster with its client, cleared at the end whatever happens."""
    with ExitStack() as undo:
        run = undo.enter_context(runs.temporary("failover"))
        plain = LocalCluster.create(run.cluster, replicas, targets=1)
        net = None
        cluster = plain
        if own_network:
            net = undo.enter_context(network_of(plain))
            cluster = LocalCluster(_in_network(plain.config, net), _command_in(net))
        # Not cluster.down(): a stopped replica need not be asked.
        cluster.up()
        where, name = "library", "failover"
        if mounted:
            mountpoint = run.mountpoint("load")
            mounts.mount(cluster.config, mountpoint)
            where, name = str(mountpoint / "load"), str(mountpoint)
        load = Load(cluster.config, name, where)
        undo.callback(load.end)
        load.more(ANSWERS_AFTER)
        yield Subject(cluster, load, net)


@contextmanager
def network_of(cluster: LocalCluster) -> Iterator[network.Network]:
    """A network with a host per replica; everything else, this process included, is at its hub."""
    net = network.Network(f"mds-{r.id}" for r in cluster.config.replicas)
    try:
        net.make()
        with net.at_hub():
            yield net
    finally:
        left = net.remove()
    if left:
        raise FailoverError("not everything could be removed: " + "; ".join(left))


def _in_network(config: Config, net: network.Network) -> Config:
    """*config* with addresses of *net*, written to its file."""

    def moved(address: str, host: str) -> str:
        return f"{net.address(host)}:{address.rpartition(':')[2]}"

    moved_config = replace(
        config,
        replicas=tuple(replace(r, address=moved(r.address, f"mds-{r.id}")) for r in config.replicas),
        targets=tuple(replace(t, address=moved(t.address, network.HUB)) for t in config.targets),
    )
    write(moved_config)
    return moved_config


def _command_in(net: network.Network) -> Callable[[Any, int, Path, str], list[str]]:
    def command(kind: Any, number: int, config: Path, log_level: str) -> list[str]:
        argv = daemon_command(kind, number, config, log_level)
        return net.command(f"mds-{number}", argv) if kind == "mds" else argv

    return command


class Log:
    """What all processes of a cluster say from a moment on."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._sizes: dict[Path, int] = {}
        self._began = ""

    def mark(self) -> None:
        """From now on."""
        self._sizes = {path: path.stat().st_size for path in self._directory.glob("*.log")}
        self._began = datetime.now(UTC).isoformat(timespec="milliseconds")

    def since(self) -> list[str]:
        """Lines since :meth:`mark`, in the order of time, each with its milliseconds since then."""
        began = datetime.fromisoformat(self._began)
        found = []
        for path in sorted(self._directory.glob("*.log")):
            with path.open("rb") as file:
                file.seek(self._sizes.get(path, 0))
                text = file.read().decode(errors="replace")
            for line in text.splitlines():
                time_of, _, rest = line.partition(" ")
                if re.fullmatch(r"[-0-9]+T[0-9:.]+Z", time_of):
                    found.append(((datetime.fromisoformat(time_of) - began).total_seconds() * 1000, rest))
        return [f"{at:8.0f} ms {rest}" for at, rest in sorted(found)]


# --- figures --------------------------------------------------------------------------------------


def p99(values: list[float]) -> float:
    """The ceil(0.99 n)-th smallest."""
    return sorted(values)[math.ceil(0.99 * len(values)) - 1]


def row(config: Config, fault: str, trials: list[Trial]) -> dict[str, Any]:
    stalls = [t.stall_ms for t in trials]
    return {
        "replicas": len(config.replicas),
        "witnesses": sum(v.witness for v in config.voters),
        "fault": fault,
        "trials": len(stalls),
        "median_ms": round(statistics.median(stalls), 1),
        "p99_ms": p99(stalls),
        "max_ms": max(stalls),
    }


UNPLANNED: Final = ("kill", "stop", "partition")


def availabilities(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Table A.3 with the recovery time measured here, per number of replicas, beside the thesis's 500 ms."""
    worst: dict[int, float] = {}
    for one in rows:
        if one["fault"] in UNPLANNED:
            worst[one["replicas"]] = max(worst.get(one["replicas"], 0.0), one["p99_ms"])
    table = []
    for replicas, recovery_ms in sorted({1: 0.0, **worst}.items()):
        theirs = availability.symmetric(replicas, availability.THESIS_RECOVERY_S)
        ours = availability.symmetric(replicas, recovery_ms / 1000) if replicas > 1 else None
        table.append(
            {
                "replicas": replicas,
                "thesis_recovery_ms": availability.THESIS_RECOVERY_S * 1000,
                "thesis_availability": theirs,
                "thesis_down_s_per_year": round(availability.down_s_per_year(theirs), 3),
                "recovery_ms": recovery_ms if replicas > 1 else None,
                "availability": ours,
                "down_s_per_year": None if ours is None else round(availability.down_s_per_year(ours), 3),
            }
        )
    return table


def measure(replicas: list[int], faults: list[str], trials: int, mounted: bool, trace: bool) -> dict[str, Any]:
    """Everything that --json prints. Raises :class:`FailoverError` and what clusters and networks raise."""
    load_before = os.getloadavg()
    if network.refusal() is None:
        network.clear_abandoned()
    rows: list[dict[str, Any]] = []
    by_victim: list[dict[str, Any]] = []
    single: list[dict[str, Any]] = []
    for count in replicas:
        for own_network in (False, True):
            asked = [f for f in faults if (f == "partition") == own_network]
            if not asked:
                continue
            with subject(count, own_network, mounted) as one:
                done: dict[str, list[Trial]] = {fault: [] for fault in asked}
                for fault in dict.fromkeys("leave" if f == "join" else f for f in asked):
                    for number in range(trials):
                        for trial in one.trial(fault, number):
                            done.setdefault(trial.fault, []).append(trial)
                            print(f"{count} replicas: {trial}", file=sys.stderr, flush=True)
                            if trace:
                                print(*one.log.since(), sep="\n", file=sys.stderr, flush=True)
                for fault in asked:
                    rows.append(row(one.cluster.config, fault, done[fault]))
                    for attached in (True, False):
                        part = [t for t in done[fault] if t.attached == attached]
                        if part:
                            victim = "the client's replica" if attached else "another replica"
                            by_victim.append({**row(one.cluster.config, fault, part), "victim": victim})
                    single += [
                        {"replicas": count, "fault": t.fault, "victim": t.victim, "attached": t.attached,
                         "stall_ms": t.stall_ms} for t in done[fault]
                    ]  # fmt: skip
    for table_of in (rows, by_victim):
        table_of.sort(key=lambda r: (r["replicas"], faults.index(r["fault"])))
    return {
        "benchmark": "failover",
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": mdtest.machine(),
        "load_average_before": [round(x, 2) for x in load_before],
        "client": "mount" if mounted else "library",
        "rows": rows,
        "by_victim": by_victim,
        "availability": availabilities(rows),
        "trials": single,
    }


def table(found: dict[str, Any]) -> str:
    """What is printed without --json."""
    lines = [
        f"longest time without an answer (ms); client: {found['client']}",
        f"{'replicas':>8} {'witnesses':>9}  {'fault':<10} {'victim':<21}{'trials':>7}{'median':>9}{'p99':>9}{'max':>9}",
    ]
    for one in [*found["rows"], *found["by_victim"]]:
        lines.append(
            f"{one['replicas']:>8} {one['witnesses']:>9}  {one['fault']:<10} {one.get('victim', 'both'):<21}"
            f"{one['trials']:>7}{one['median_ms']:>9.1f}{one['p99_ms']:>9.1f}{one['max_ms']:>9.1f}"
        )
    lines += ["", "availability by the thesis's equations (MTTF 5,000 h, MTTR 36 h)"]
    lines.append(f"{'replicas':>8}{'thesis (500 ms)':>20}{'ours':>14}{'recovery':>12}{'down s/year':>14}")
    for one in found["availability"]:
        ours = "" if one["availability"] is None else f"{100 * one['availability']:.6f} %"
        recovery = "" if one["recovery_ms"] is None else f"{one['recovery_ms']:.1f} ms"
        down = "" if one["down_s_per_year"] is None else f"{one['down_s_per_year']:.2f}"
        lines.append(
            f"{one['replicas']:>8}{100 * one['thesis_availability']:>18.6f} %{ours:>14}{recovery:>12}{down:>14}"
        )
    return "\n".join(lines)


# --- the command ----------------------------------------------------------------------------------


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.failover", description="Stalls when a replica fails.")
    parser.add_argument("--trials", type=int, default=30, help="of each fault (30)")
    parser.add_argument("--faults", default=",".join(FAULTS), help=f"which ({','.join(FAULTS)})")
    parser.add_argument("--replicas", default=",".join(map(str, THESIS_REPLICAS)), help="cluster sizes (2,3,5)")
    parser.add_argument("--mount", action="store_true", help="the client uses a mount, not the library")
    parser.add_argument("--trace", action="store_true", help="say what all processes logged in each trial")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    found = parser.parse_args(argv)
    found.faults = found.faults.split(",")
    unknown = [f for f in found.faults if f not in FAULTS]
    if unknown:
        parser.error(f"--faults: {', '.join(unknown)} is none of {', '.join(FAULTS)}")
    if not all(r.isdigit() and 2 <= int(r) <= 9 for r in found.replicas.split(",")):
        parser.error("--replicas: numbers from 2 to 9")
    found.replicas = [int(r) for r in found.replicas.split(",")]
    if found.trials < 1:
        parser.error("--trials: at least 1")
    if "partition" in found.faults and (reason := network.refusal()) is not None:
        parser.error(f"--faults: partition is not possible here: {reason}")
    return found


def main(argv: list[str]) -> int:
    asked = parse(argv)
    try:
        with runs.interruptible():
            found = measure(asked.replicas, asked.faults, asked.trials, asked.mount, asked.trace)
    except (FailoverError, ClusterError, mounts.MountError, network.NetworkError, ProcessError) as exc:
        print(f"bench.failover: {exc}", file=sys.stderr)
        return 1
    except runs.Interrupted as exc:
        print("bench.failover: interrupted; everything is cleared", file=sys.stderr)
        return 128 + exc.number
    print(json.dumps(found, indent=1) if asked.json else table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""`make faults-data`: storage targets killed, stopped, cut off and returned at random under writers and readers that
check every byte, on two mounts. Cut off: as root only, in network namespaces; else that is left out.

    python -m tests.faults.data --faults 100 --seed 1

Ends with "N passed, 0 failed": a fault is passed when no application met an error or a wrong byte during it and all
chains served again afterwards; the last ones are that everything is read back, that `lockstep scrub --verify` finds all
copies equal and no bad block, that `lockstep fsck` reports nothing, and that no writer waited for long.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import select
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import trio

from admin import mounts, network, runs, targets
from admin.ask import AskError
from admin.fsck import fsck
from admin.local import LocalCluster, child_environment, python_module, witnesses_for
from admin.network import HUB, Network
from tests.faults.data_load import Floors
from tests.faults.networked import names, networked

WHOLE_S: Final = 60.0
"""After a fault every chain serves with all its copies again within this time, or it never will."""
TARGETS: Final = 3
MOUNTS: Final = ("one", "two")
KINDS: Final = ("kill", "kill", "kill", "stop", "blink", "restart", "keys")
"""keys: all that capabilities were signed with is forgotten."""
CUTS: Final = ("cut", "cut", "cut-targets", "cut-keeper", "cut-mount")
"""A target is cut off from everybody, from the other targets, from the replicas, from a mount; in both directions, or
in one."""


class Load:
    """One process of tests.faults.data_load."""

    def __init__(self, what: str, directory: Path, floors: Path, seed: int) -> None:
        self.what = what
        self.operations = 0
        self.longest_ms = 0
        self.wrong: list[str] = []
        self._rest = b""
        argv = python_module("tests.faults.data_load", what, str(directory), str(floors), str(seed))
        self._child = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=child_environment(), bufsize=0
        )

    def take(self, wait_s: float) -> bool:
        """What it has said, waiting so long for something; False at the end."""
        assert self._child.stdout is not None
        if not select.select([self._child.stdout], [], [], wait_s)[0]:
            return True
        data = self._child.stdout.read(1 << 16)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            said: dict[str, Any] = json.loads(line)
            self.operations = said["operations"]
            self.longest_ms = max(self.longest_ms, said["longest_ms"])
            self.wrong += [text for text in said["wrong"] if text not in self.wrong]
        return bool(data)

    def stall(self) -> int:
        """The longest operation since this was asked last, one that has not ended included."""
        longest, self.longest_ms = self.longest_ms, 0
        return longest

    def finish(self) -> list[str]:
        assert self._child.stdin is not None
        self._child.stdin.close()
        until = time.monotonic() + 60
        while self.take(1.0):
            if time.monotonic() > until:
                self._child.kill()
                self.wrong.append("it did not end")
        if self._child.wait() != 0 and not self.wrong:
            self.wrong.append(f"it ended with code {self._child.returncode}")
        return [f"{self.what}: {text}" for text in self.wrong]


@dataclass
class Outcome:
    passed: int = 0
    failed: int = 0
    stalls: dict[str, list[int]] = field(default_factory=dict)

    def judge(self, what: str, wrong: list[str]) -> None:
        if wrong:
            self.failed += 1
            print(f"FAILED {what}: {'; '.join(wrong[:5])}", flush=True)
        else:
            self.passed += 1


def whole(cluster: LocalCluster) -> str | None:
    """Why the cluster's data is not whole, or None."""
    try:
        _, found, chains = trio.run(targets.storage_map, cluster.config, 5.0)
    except AskError as exc:
        return str(exc)
    wrong = [f"target {t} is {state}" for t, _, state, _ in found if state != "serving"]
    wrong += [f"chain {c}: {t} is {state}" for c, _, members in chains for t, state in members if state != "serving"]
    return "; ".join(wrong) or None


class Run:
    """The whole of it."""

    def __init__(self, cluster: LocalCluster, net: Network | None, loads: list[Load], rng: random.Random) -> None:
        self.cluster = cluster
        self.net = net
        self.loads = loads
        self.rng = rng
        self.outcome = Outcome()

    def follow(self, seconds: float) -> None:
        """Let the loads work for *seconds*: the length of a fault, or of a pause between faults."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            for load in self.loads:
                load.take(min(left, 0.02))

    def run_of(self, target: int) -> int:
        """Which run of the target's process the map is about."""
        _, found, _ = trio.run(targets.storage_map, self.cluster.config, 20.0)
        return next(run for number, _, _, run in found if number == target)

    def until_whole(self, target: int = 0, before: int = 0) -> list[str]:
        """Wait until every chain serves whole, and *target* in another run than *before*; or what is wrong."""
        until = time.monotonic() + WHOLE_S
        while (reason := whole(self.cluster)) is not None or (before and self.run_of(target) == before):
            if time.monotonic() > until:
                return [f"not whole after {WHOLE_S:g} s: {reason}"]
            self.follow(0.2)
        return []

    def until_all_go_on(self) -> list[str]:
        """Wait until every load has done another operation: what still hangs, hangs because of this fault."""
        before = [load.operations for load in self.loads]
        until = time.monotonic() + WHOLE_S
        while hang := [load for load, done in zip(self.loads, before, strict=True) if load.operations == done]:
            if time.monotonic() > until or any(load.wrong for load in hang):
                return [f"{load.what} hangs" for load in hang if not load.wrong]
            self.follow(0.05)
        return []

    def fault(self, kind: str, name: str) -> None:
        cluster, rng = self.cluster, self.rng
        number = int(name.rpartition("-")[2])
        before = self.run_of(number)
        for load in self.loads:
            load.stall()
        if kind in ("kill", "wipe"):
            cluster.kill(name)
            self.follow(rng.uniform(0.7, 2.0))
            if kind == "wipe":
                shutil.rmtree(cluster.directory / "data" / name)
            cluster.start(name)
        elif kind == "restart":
            cluster.kill(name)
            cluster.start(name)
        elif kind == "stop":
            cluster.pause(name)
            self.follow(rng.uniform(1.5, 3.0))
            cluster.resume(name)
        elif kind == "blink":
            cluster.pause(name)
            self.follow(rng.uniform(0.05, 0.8))
            cluster.resume(name)
        elif kind == "keys":
            trio.run(targets.rotate_keys, cluster.config, True, 20.0)
        elif kind in CUTS:
            self._cut(kind, name)
        else:
            raise AssertionError(f"fault {kind!r}")
        if kind == "wipe":
            cluster.wait(lambda s: all(t.said is not None for t in s.targets), "the wiped target is up", 20.0)
            trio.run(targets.replace, cluster.config, number, True, 20.0)
        # A quick restart is not noticed at once, and with the next fault both copies of something would be away.
        wrong = self.until_whole(number, before if kind in ("kill", "wipe", "restart") else 0)
        wrong += self.until_all_go_on()
        stall = max(load.stall() for load in self.loads if load.what == "write")
        self.outcome.stalls.setdefault(kind, []).append(stall)
        for load in self.loads:
            wrong += [f"{load.what}: {text}" for text in load.wrong]
        self.outcome.judge(f"{kind} of {name}", wrong)

    def _cut(self, kind: str, name: str) -> None:
        net, rng = self.net, self.rng
        assert net is not None, "cables are cut where there are any"
        others = [host for host in net.hosts if host not in (name, HUB)]
        if kind == "cut-targets":
            others = [host for host in others if host.startswith("ossd")]
        elif kind == "cut-keeper":
            others = [host for host in others if host.startswith("mds")]
        elif kind == "cut-mount":
            others = [rng.choice(MOUNTS)]
        there, back = [(name, host) for host in others], [(host, name) for host in others]
        net.cut(rng.choice((there + back, there + back, there, back)))
        self.follow(rng.uniform(0.2, 3.0))
        net.heal()


def percentile(values: list[int], share: float) -> int:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))] if values else 0


def made_cluster(stack: contextlib.ExitStack, run: runs.Run, replicas: int) -> tuple[LocalCluster, Network | None]:
    """A cluster, nothing started yet, with cables if that is possible here; *stack* removes what is made."""
    if network.refusal() is not None:
        return LocalCluster.create(run.cluster, replicas, TARGETS), None
    network.clear_abandoned()
    of_replicas, of_targets = names(replicas, TARGETS)
    net = Network([*of_replicas, *of_targets, *MOUNTS])
    stack.callback(net.remove)
    net.make()
    stack.callback(run.clear)  # before the network goes that it lives in
    stack.enter_context(net.at_hub())
    return networked(run.cluster, net, replicas, TARGETS, witnesses_for(replicas, TARGETS)), net


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--stall-ms", type=int, default=1000, help="p99 of a writer's stall by a kill; 0: not judged")
    parser.add_argument("--logs", type=Path, help="keep the daemons' logs here")
    args = parser.parse_args(argv)
    rng = random.Random(args.seed)
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        run = stack.enter_context(runs.temporary("faultsdata"))
        cluster, net = made_cluster(stack, run, args.replicas)
        cluster.up()
        places = []
        for name in MOUNTS:
            where = run.mountpoint(name)
            with net.at(name) if net is not None else contextlib.nullcontext():
                mounts.mount(cluster.config, where, (), None)
            places.append(where)
        subprocess.run(
            python_module("admin", "layout", "set", "--copies", "2", str(places[0])),
            check=True, env=child_environment(),
        )  # fmt: skip
        loads = []
        files = []
        for k, where in enumerate(places):
            floors = run.directory / f"floors{k}"
            Floors.make(floors)
            (where / f"d{k}").mkdir()
            files.append((k, floors))
            loads.append(Load("write", where / f"d{k}", floors, args.seed * 100 + k))
            loads.append(Load("read", places[1 - k] / f"d{k}", floors, args.seed * 100 + 50 + k))
        work = Run(cluster, net, loads, rng)
        kinds = KINDS if net is None else KINDS + CUTS
        work.outcome.judge("the start", work.until_whole())
        for number in range(args.faults):
            kind = "wipe" if number == args.faults // 2 else rng.choice(kinds)
            name = f"ossd-{rng.randrange(1, TARGETS + 1)}"
            work.fault(kind, name)
            if number % 10 == 9:
                done = sum(load.operations for load in loads)
                print(f"{number + 1} faults, {done} operations, {work.outcome.failed} failed", flush=True)
            if work.outcome.failed > 5:
                break
            work.follow(rng.uniform(0.0, 0.3))
        outcome = work.outcome
        for load in loads:
            outcome.judge(f"{load.what} at the end", load.finish())
        for k, floors in files:
            for where in places:
                argv_ = python_module("tests.faults.data_load", "check", str(where / f"d{k}"), str(floors))
                done_ = subprocess.run(argv_, capture_output=True, text=True, env=child_environment(), check=False)
                wrong = [] if done_.returncode == 0 else [done_.stdout[-500:] + done_.stderr[-500:]]
                outcome.judge(f"d{k} read back through {where.name}", wrong)
        outcome.judge("whole at the end", work.until_whole())
        scrubbed = trio.run(targets.scrub, cluster.config, 1 << 40, True, lambda done, total: None)
        print(f"scrub --verify: {json.dumps(targets.scrubbed_json(scrubbed))}")
        bad = [f"{scrubbed.bad} bad blocks, which nobody has made"] if scrubbed.bad else []
        outcome.judge("all copies equal", scrubbed.wrong + bad)
        checked = fsck(cluster.config, None, True, False, None, lambda text: None)
        print(f"fsck: {json.dumps(checked.to_json())}")
        hollow = [f"{checked.hollow} files have lost all their objects"] if checked.hollow else []
        outcome.judge("the file system check reports nothing", checked.problems + hollow)
        kills = [s for kind in ("kill", "wipe") for s in outcome.stalls.get(kind, [])]
        p99 = percentile(kills, 0.99)
        if args.stall_ms:
            wrong = [] if p99 <= args.stall_ms else ["too long"]
            what = f"a writer's longest stall, target killed: p99 {p99} ms of at most {args.stall_ms}"
            outcome.judge(what, wrong)
            print(f"{what}, {len(kills)} kills")
        for kind, stalls in sorted(outcome.stalls.items()):
            middle, high = percentile(stalls, 0.5), percentile(stalls, 0.99)
            print(f"longest stall of a writer, {kind}: median {middle} ms, p99 {high} ms, {len(stalls)} faults")
        if args.logs:
            shutil.copytree(run.cluster / "log", args.logs, dirs_exist_ok=True)
    print(f"{outcome.passed} passed, {outcome.failed} failed ({time.monotonic() - began:.0f} s)")
    return 1 if outcome.failed else 0


if __name__ == "__main__":
    sys.exit(main())

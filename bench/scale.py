"""Does a file system with a million files cost more than one with ten thousand: per request, in memory, at a start?

    python -m bench.scale [--json] [--files 10000,100000,1000000] [--replicas 3] [--clients 2] [--rounds 3]

One cluster on this host grows to each of the sizes, filled by clients of the library (:mod:`bench.scale_load`), each
with as many requests outstanding as its session has slots. With that many files there, each of these is measured:

    create, lookup   requests per second, the median of some rounds of 5,000; lookups of names at random
    memory           of each replica's process, after a second of rest: RssAnon is its own; RssFile is mostly LMDB's
                     map: page cache, given back when anybody needs it
    restart          a replica is stopped, and started: seconds until it is a member that may answer; and killed:
                     seconds until its watchdog has started it again and it is one
    whole            it is stopped, what lets its state be trusted is removed, as a power cut does, and it is started:
                     seconds, in which it reads all of it
    join             a new replica is added while one client makes files one by one and another eight at a time: the
                     longest time that either waited between two answers, and the seconds until it is a member. Removed
                     again at the end

Claims: at a million files at least 0.8 of the rates at ten thousand; 64 MB more memory at most; a restart within 3 s; a
stall of at most 500 ms while a replica joins.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import trio

from admin import ask, runs
from admin.local import ClusterError, LocalCluster, child_environment, python_module
from admin.processes import ProcessError
from bench import mdtest
from mds import trust

SIZES: Final = (10_000, 100_000, 1_000_000)
SAMPLE: Final = 5_000
FILL_PIECE: Final = 20_000
LIMIT_S: Final = 1500.0
"""A run is given up after this time: what is not measured by then is missing."""
WAIT_S: Final = 120.0
POLL_S: Final = 0.02
WRITTEN_BYTES: Final = 1 << 20
"""A replica with no more unwritten than this has written what it applied."""
REST_S: Final = 1.0
LOAD_WIDTH: Final = 8
LOAD_S: Final = 2.0
"""The load goes on for so long before and after the new replica has joined."""


class ScaleError(Exception):
    """The measurement failed; the text says where and why."""


class Client:
    """One process of :mod:`bench.scale_load`."""

    def __init__(self, cluster: LocalCluster, replica: int, share: int, shares: int) -> None:
        name = f"scale-{share}"
        argv = python_module("bench.scale_load", str(cluster.config.path), name, str(replica), str(share), str(shares))
        with (cluster.directory / "log" / f"{name}.log").open("ab") as log:
            self._child = subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=child_environment(), text=True
            )

    def tell(self, command: str) -> None:
        assert self._child.stdin is not None, "a pipe"
        self._child.stdin.write(command + "\n")
        self._child.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self._child.stdout is not None, "a pipe"
        line = self._child.stdout.readline()
        if not line:
            raise ScaleError(f"a client has ended with code {self._child.wait()}; see its log")
        said: dict[str, Any] = json.loads(line)
        return said

    def end(self) -> None:
        self._child.kill()
        self._child.wait()


class Subject:
    """The cluster and its clients."""

    def __init__(self, cluster: LocalCluster, clients: list[Client], rounds: int) -> None:
        self.cluster = cluster
        self.clients = clients
        self.rounds = rounds
        self.files = 0
        self._until = time.monotonic() + LIMIT_S

    def all(self, command: str) -> list[dict[str, Any]]:
        """Every client does it at the same time."""
        if time.monotonic() > self._until:
            raise ScaleError(f"not done within {LIMIT_S:g} s; {self.files} files were made")
        for client in self.clients:
            client.tell(command)
        return [client.answer() for client in self.clients]

    def create(self, count: int) -> float:
        """Make so many files more; how many per second."""
        began = time.monotonic()
        self.all(f"create {self.files} {count}")
        self.files += count
        return count / (time.monotonic() - began)

    def lookup(self, seed: int) -> float:
        each = SAMPLE // len(self.clients)
        began = time.monotonic()
        for k, client in enumerate(self.clients):
            client.tell(f"lookup {each} {seed * 100 + k}")
        for client in self.clients:
            client.answer()
        return each * len(self.clients) / (time.monotonic() - began)

    # -- the replicas

    def said_by(self, replica: int) -> dict[str, Any] | None:
        try:
            body = trio.run(ask.status_of, self.cluster.config, self.cluster.config.replica(replica).address).body
        except ask.AskError:
            return None
        return dict(body)

    def wait(self, until: Callable[[], bool], what: str) -> float:
        """Seconds until it is so."""
        began = time.monotonic()
        while not until():
            if time.monotonic() - began > WAIT_S:
                raise ScaleError(f"{what} within {WAIT_S:g} s")
            time.sleep(POLL_S)
        return time.monotonic() - began

    def settled(self) -> None:
        """Everything is applied and written everywhere."""

        def written() -> bool:
            said = [self.said_by(r.id) for r in self.cluster.config.replicas]
            return all(s is not None and s["unwritten_bytes"] < WRITTEN_BYTES for s in said)

        self.wait(written, "the replicas have not written what they applied")

    def memory(self) -> dict[str, dict[str, float]]:
        """MiB of each replica's process."""
        self.settled()
        time.sleep(REST_S)
        found: dict[str, dict[str, float]] = {}
        for replica in self.cluster.config.replicas:
            who = self.cluster.guarded(f"mds-{replica.id}")
            assert who is not None, "it has just answered"
            lines = Path(f"/proc/{who.pid}/status").read_text(encoding="ascii").splitlines()
            sizes = {line.partition(":")[0]: line.split()[1] for line in lines if line.startswith(("VmRSS", "Rss"))}
            found[str(replica.id)] = {name: round(int(kib) / 1024, 1) for name, kib in sizes.items()}
        return found

    def _serves(self, replica: int, after: int) -> bool:
        said = self.said_by(replica)
        serves = said is not None and said["state"] == "active" and said["readable"]
        return serves and said is not None and said["incarnation"] > after

    def _incarnation(self, replica: int) -> int:
        said = self.said_by(replica)
        assert said is not None, "it serves"
        return int(said["incarnation"])

    def restart(self, replica: int) -> dict[str, float]:
        """Seconds until it serves again."""
        name = f"mds-{replica}"
        found = {}
        before = self._incarnation(replica)
        began = time.monotonic()
        self.cluster.stop(name, WAIT_S)
        found["stop_s"] = round(time.monotonic() - began, 2)
        found["start_s"] = self._seconds(replica, before, lambda: self.cluster.start(name))
        found["killed_s"] = self._seconds(replica, self._incarnation(replica), lambda: self.cluster.crash(name))
        return found

    def read_whole(self, replica: int) -> float:
        """Seconds from a start to serving, if it is as after a power cut."""
        name = f"mds-{replica}"
        before = self._incarnation(replica)
        self.cluster.stop(name, WAIT_S)
        for word in (trust.NOTE, trust.IMPRINT):
            (self.cluster.config.replica(replica).data / "state" / word).unlink(missing_ok=True)
        return self._seconds(replica, before, lambda: self.cluster.start(name))

    def _seconds(self, replica: int, before: int, do: Callable[[], object]) -> float:
        """From *do* until the replica serves in a life after *before*."""
        began = time.monotonic()
        do()
        self.wait(lambda: self._serves(replica, before), f"replica {replica} does not serve again")
        return round(time.monotonic() - began, 2)

    def join(self) -> dict[str, Any]:
        """A new replica, and its removal, under load."""
        loads = list(zip(self.clients, (1, LOAD_WIDTH), strict=False))
        for client, width in loads:
            self._one(client, f"load {width}")
        time.sleep(LOAD_S)
        for client, _ in loads:
            self._one(client, "mark")
        began = time.monotonic()
        added = self._lockstep("replica", "add")
        took = time.monotonic() - began
        time.sleep(LOAD_S)
        told = [self._one(client, "rest") for client, _ in loads]
        self._lockstep("replica", "remove", str(added["replica"]), "--delete")
        self.cluster = LocalCluster.open(self.cluster.directory)
        return {"seconds": round(took, 2), "stall_ms": max(t["longest_ms"] for t in told), "clients": told}

    def _one(self, client: Client, command: str) -> dict[str, Any]:
        client.tell(command)
        return client.answer()

    def _lockstep(self, group: str, verb: str, *more: str) -> dict[str, Any]:
        argv = python_module("admin", group, verb, str(self.cluster.directory), *more, "--json", "--timeout", "300")
        done = subprocess.run(argv, capture_output=True, text=True, env=child_environment(), check=False)
        if done.returncode:
            raise ScaleError(f"lockstep {group} {verb}: {done.stderr.strip()}")
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    # -- one size

    def measure(self, size: int, say: Callable[[str], None]) -> dict[str, Any]:
        """Grow to *size* files and measure everything there."""
        began = time.monotonic()
        first = self.files
        while self.files < size:
            self.create(min(FILL_PIECE, size - self.files))
            say(f"{self.files} files")
        filled = time.monotonic() - began
        found: dict[str, Any] = {"files": size}
        if size > first:
            found["fill_per_s"] = round((size - first) / filled, 1)
        found["memory_mib"] = self.memory()
        creates, lookups = [], []
        for k in range(self.rounds):
            creates.append(self.create(SAMPLE))
            lookups.append(self.lookup(k))
        found["create_per_s"] = round(statistics.median(creates), 1)
        found["lookup_per_s"] = round(statistics.median(lookups), 1)
        found["creates"] = [round(x, 1) for x in creates]
        found["lookups"] = [round(x, 1) for x in lookups]
        say(f"{size} files: {found['create_per_s']} creates/s, {found['lookup_per_s']} lookups/s")
        self.settled()
        state = self.cluster.config.replicas[0].data / "state" / "data.mdb"
        found["state_mib"] = round(state.stat().st_size / (1 << 20), 1)
        last = self.cluster.config.replicas[-1].id
        found["restart"] = self.restart(last)
        say(f"restart: {found['restart']}")
        found["join"] = self.join()
        say(f"join: {found['join']}")
        # By now it has been a member for so long that it is taken in again at once (vsync.limits.STAY_GOOD).
        found["read_whole_s"] = self.read_whole(last)
        say(f"read whole: {found['read_whole_s']}")
        return found


def summary(sizes: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures the claims are about: the largest size against the smallest."""
    small, large = sizes[0], sizes[-1]

    def anonymous(one: dict[str, Any]) -> float:
        return max(float(m["RssAnon"]) for m in one["memory_mib"].values())

    return {
        "create_ratio": round(large["create_per_s"] / small["create_per_s"], 3),
        "lookup_ratio": round(large["lookup_per_s"] / small["lookup_per_s"], 3),
        "memory_growth_mib": round(anonymous(large) - anonymous(small), 1),
        "restart_s": max(large["restart"]["start_s"], large["restart"]["killed_s"]),
        "read_whole_s": large["read_whole_s"],
        "join_stall_ms": large["join"]["stall_ms"],
    }


def run(sizes: tuple[int, ...], replicas: int, clients: int, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    load_before = os.getloadavg()
    found: list[dict[str, Any]] = []
    with runs.interruptible(), runs.temporary("scale") as place:
        cluster = LocalCluster.create(place.cluster, replicas, targets=1)
        cluster.up()
        made: list[Client] = []
        try:
            made += [Client(cluster, k % replicas + 1, k, clients) for k in range(clients)]
            subject = Subject(cluster, made, rounds)
            for size in sizes:
                found.append(subject.measure(size, say))
        finally:
            for client in made:
                client.end()
        LocalCluster.open(place.cluster).down()
    return {
        "benchmark": "scale",
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "options": {"replicas": replicas, "clients": clients, "rounds": rounds},
        "machine": mdtest.machine(),
        "load_average_before": [round(x, 2) for x in load_before],
        "sizes": found,
        "summary": summary(found),
    }


def table(found: dict[str, Any]) -> str:
    """One line per size."""
    head = (
        "files", "creates/s", "lookups/s", "state MiB", "RssAnon", "RSS MiB", "start s", "killed s", "whole s",
        "join s", "stall ms",
    )  # fmt: skip
    lines = ["".join(f"{name:>11}" for name in head)]
    for one in found["sizes"]:
        memory = one["memory_mib"].values()
        cells = (
            one["files"], one["create_per_s"], one["lookup_per_s"], one["state_mib"],
            max(m["RssAnon"] for m in memory), max(m["VmRSS"] for m in memory),
            one["restart"]["start_s"], one["restart"]["killed_s"], one["read_whole_s"],
            one["join"]["seconds"], one["join"]["stall_ms"],
        )  # fmt: skip
        lines.append("".join(f"{cell:>11}" for cell in cells))
    return "\n".join([*lines, "", ", ".join(f"{name} {value}" for name, value in found["summary"].items())])


def _sizes(text: str) -> tuple[int, ...]:
    words = text.split(",")
    if not all(word.isdigit() and int(word) for word in words) or sorted(words, key=int) != words:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of rising numbers")
    return tuple(map(int, words))


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description="What a million files cost.")
    parser.add_argument("--files", type=_sizes, default=SIZES, help="numbers of files, rising (10000,100000,1000000)")
    parser.add_argument("--replicas", type=int, default=3, choices=range(1, 8), help="metadata replicas (3)")
    parser.add_argument("--clients", type=int, default=2, choices=range(2, 17), help="client processes (2)")
    parser.add_argument("--rounds", type=int, default=3, choices=range(1, 100), help="rounds per rate (3)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    asked = parser.parse_args(argv)
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:.0f} s: {text}", file=sys.stderr, flush=True)

    try:
        found = run(asked.files, asked.replicas, asked.clients, asked.rounds, say)
    except (ScaleError, ClusterError, ProcessError) as exc:
        print(f"scale: {exc}", file=sys.stderr)
        return 1
    except runs.Interrupted as exc:
        print("scale: interrupted; everything is cleared", file=sys.stderr)
        return 128 + exc.number
    print(json.dumps(found) if asked.json else table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

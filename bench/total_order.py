"""What does total order cost, by group size? The thesis's Table A.4, on one machine.

    python -m bench.total_order [--json] [--csv FILE] [--plot FILE] [--members 1,2,3,4,5,6,7,8] [--messages 200]

The latency of a message at its sender, from the call that submits it to its delivery: one process per member, on
loopback, with the machine, the links and the journal of the metadata service and nothing that applies
(:mod:`bench.group_member`).  One sender, and all members sending at once; every sender has one message under way.  The
one sender has the highest number: messages of one clock are ordered by it, so it has to hear from everyone, where the
lowest need not wait for anybody as long as the others are silent.

    heartbeat         acknowledgements ride on the heartbeats, every 500 ms as in the thesis: the original. A message is
                      sent at a random time (one sent at a delivery would always meet the longest wait)
    heartbeat 50 ms   the same with the interval of our own heartbeats
    agreed            the thesis's fast acknowledgement: delivered when it is ordered, whoever has it in memory
    safe, no flush    delivered when it is in the log of all members; the logs are on a memory file system
    safe              the same with logs on a disk, flushed before anything is acknowledged: what the file system uses

Claims, for one sender: fast acknowledgement (agreed) is at least 50 times below the original, for every group size from
2 to 8; and where no disk is waited for (agreed; safe, no flush) latencies do not grow more than linearly: per other
member they are never more than GROWTH_MAX times what they are for one other (a linear growth is a + b (n - 1), and a is
not negative).  All members share this machine's cores and its one disk. So with a flush before every acknowledgement
the first members to share it cost more than the later ones, where every member of the thesis's had a computer of its
own; and with all sending, n times as many messages go to n times as many members, and the processor time of a round
grows with the square of n.  That growth is shown, and nothing is claimed.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from admin import processes, runs
from admin.local import child_environment, free_ports, python_module
from admin.processes import ProcessError
from bench import mdtest
from vsync import limits

MEMORY: Final = Path("/dev/shm")
MEMBERS_MAX: Final = 8
OURS_US: Final = limits.HEARTBEAT
ORIGINAL_US: Final = 500_000
GROWTH_MAX: Final = 1.25
GROWS_LINEARLY: Final = ("agreed", "safe, no flush")
BELOW_MIN: Final = 50.0
READY_S: Final = 60.0


class OrderError(Exception):
    """The measurement failed; the text says where and why."""


@dataclass(frozen=True, slots=True)
class Series:
    """One way to order."""

    name: str
    level: str
    on_disk: bool
    heartbeat_us: int = OURS_US
    pause_us: int = 0
    """A sender waits for a random time of up to this before each message."""
    messages_most: int = 1 << 30
    """A message of the original takes half a second."""


SERIES: Final = (
    Series("heartbeat", "heartbeat", False, ORIGINAL_US, ORIGINAL_US, 25),
    Series("heartbeat 50 ms", "heartbeat", False, OURS_US, OURS_US, 100),
    Series("agreed", "agreed", False),
    Series("safe, no flush", "safe", False),
    Series("safe", "safe", True),
)
THESIS_US: Final[dict[str, tuple[int | None, ...]]] = {
    "heartbeat-driven, one sender, minimum": (230, 940, 1020, 1070, 1150, 1200, 1280, 1340),
    "fast delivery, one sender": (235, 952, 1031, 1089, 1158, 1213, 1290, 1348),
    "fast delivery, all senders": (None, 971, 1461, 1845, 2236, 2646, 3073, 3514),
}
"""Table A.4, by group size 1 to 8: dual Pentium IV 2 GHz, Fast Ethernet hub. The maximum of the heartbeat-driven one is
the interval of the heartbeats, about 500,000."""


# --- a group --------------------------------------------------------------------------------------


class Group:
    """The members' processes."""

    def __init__(self, directory: Path, members: int, level: str) -> None:
        directory.mkdir(parents=True)
        ports = [str(port) for port in free_ports(members)]
        self._children: list[subprocess.Popen[bytes]] = []
        with (directory / "log").open("ab") as log:
            for me in range(1, members + 1):
                argv = python_module("bench.group_member", f"{directory}/", str(me), level, *ports)
                self._children.append(
                    subprocess.Popen(
                        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=child_environment(),
                        bufsize=0,
                    )
                )  # fmt: skip
        self._log = directory / "log"

    def wait_ready(self) -> None:
        for child in self._children:
            if self._line(child) != "ready":
                raise OrderError("a member says something else than ready")

    def _line(self, child: subprocess.Popen[bytes]) -> str:
        assert child.stdout is not None, "a pipe"
        line = child.stdout.readline().decode().strip()
        if not line:
            tail = self._log.read_text(encoding="utf-8", errors="replace")[-2000:]
            raise OrderError(f"a member has ended:\n{tail}")
        return line

    def send(self, series: Series, senders: int, messages: int) -> list[float]:
        """The last *senders* members send *messages* each, all at once; all latencies in microseconds."""
        for number, child in enumerate(self._children):
            # Who does not send has the heartbeats of the series all the same.
            count = messages if number >= len(self._children) - senders else 0
            assert child.stdin is not None, "a pipe"
            child.stdin.write(f"measure {count} {series.pause_us} {series.heartbeat_us}\n".encode())
        found: list[float] = []
        for child in self._children:
            found += json.loads(self._line(child))["latencies_us"]
        return found

    def end(self) -> None:
        for child in self._children:
            child.kill()
        for child in self._children:
            child.wait()


@contextlib.contextmanager
def memory_directory() -> Iterator[Path]:
    """A directory on the memory file system, deleted at the end; those of runs whose owners are dead go now."""
    me = processes.identify(os.getpid())
    assert me is not None, "this process runs"
    for path in MEMORY.glob("lockstep-order-*"):
        match = re.fullmatch(r"lockstep-order-(\d+)-(\d+)", path.name)
        owner = None if match is None else processes.identify(int(match[1]))
        if match is not None and (owner is None or owner.start_ticks != int(match[2])):
            for who in processes.of_directory(path):
                processes.kill(who)
            shutil.rmtree(path)
    directory = MEMORY / f"lockstep-order-{me.pid}-{me.start_ticks}"
    directory.mkdir()
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


# --- figures --------------------------------------------------------------------------------------


def row(series: Series, members: int, senders: str, latencies: list[float]) -> dict[str, Any]:
    ordered = sorted(latencies)
    return {
        "series": series.name,
        "members": members,
        "senders": senders,
        "messages": len(ordered),
        "min_us": round(ordered[0], 1),
        "median_us": round(statistics.median(ordered), 1),
        "mean_us": round(statistics.fmean(ordered), 1),
        "p99_us": round(ordered[math.ceil(0.99 * len(ordered)) - 1], 1),
        "max_us": round(ordered[-1], 1),
    }


def measure(series: list[Series], members: list[int], messages: int) -> dict[str, Any]:
    """Everything that --json prints."""
    load_before = os.getloadavg()
    rows: list[dict[str, Any]] = []
    with runs.temporary("order") as run, memory_directory() as memory:
        for one in series:
            for count in members:
                base = run.directory if one.on_disk else memory
                directory = base / f"{one.name.replace(' ', '-')}-{count}"
                group = Group(directory, count, one.level)
                try:
                    group.wait_ready()
                    asked = min(messages, one.messages_most)
                    group.send(one, 1, min(asked, 5))  # warm
                    for senders in ("one", "all") if count > 1 else ("one",):
                        latencies = group.send(one, count if senders == "all" else 1, asked)
                        rows.append(row(one, count, senders, latencies))
                        print(rows[-1], file=sys.stderr, flush=True)
                finally:
                    group.end()
                shutil.rmtree(directory)
    return {
        "benchmark": "total_order",
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": mdtest.machine(),
        "load_average_before": [round(x, 2) for x in load_before],
        "rows": rows,
        "claims": claims(rows),
        "thesis_us": THESIS_US,
    }


def claims(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What was claimed above, with the figures: None where it was not measured."""
    median = {(r["series"], r["members"], r["senders"]): r["median_us"] for r in rows}
    ratios = {
        n: round(median["heartbeat", n, "one"] / fast, 1)
        for (name, n, senders), fast in sorted(median.items())
        if name == "agreed" and senders == "one" and n > 1 and ("heartbeat", n, "one") in median
    }
    growth: dict[str, dict[str, float]] = {"one": {}, "all": {}}
    for (name, n, senders), value in median.items():
        two = median.get((name, 2, senders))
        if two is not None and n > 2 and not name.startswith("heartbeat"):
            of = growth[senders]
            of[name] = max(of.get(name, 0.0), round(value / (n - 1) / two, 2))
    claimed = [growth["one"][name] for name in GROWS_LINEARLY if name in growth["one"]]
    return {
        "original_over_fast": ratios,
        "at_least_50_times_below": min(ratios.values()) >= BELOW_MIN if ratios else None,
        "per_other_member_over_that_of_one": growth,
        "no_growth_beyond_linear": max(claimed) <= GROWTH_MAX if claimed else None,
    }


def table(found: dict[str, Any]) -> str:
    """What is printed without --json: medians and p99 in microseconds, by group size."""
    rows = {(r["series"], r["senders"], r["members"]): r for r in found["rows"]}
    sizes = sorted({r["members"] for r in found["rows"]})
    lines = ["latency in microseconds by number of members: median (p99)"]
    lines.append(f"{'':<34}" + "".join(f"{n:>17}" for n in sizes))
    for name, senders in dict.fromkeys((r["series"], r["senders"]) for r in found["rows"]):
        cells = []
        for n in sizes:
            one = rows.get((name, senders, n))
            cells.append("" if one is None else f"{one['median_us']:.0f} ({one['p99_us']:.0f})")
        lines.append(f"{name + ', ' + senders + ' sending':<34}" + "".join(f"{cell:>17}" for cell in cells))
    lines.append("the thesis, 2008 (averages)")
    for name, figures in THESIS_US.items():
        cells = [str(figures[n - 1] or "") if n <= len(figures) else "" for n in sizes]
        lines.append(f"  {name:<38}"[:34].ljust(34) + "".join(f"{cell:>17}" for cell in cells))
    said = found["claims"]
    ratios = ", ".join(f"{n}: {ratio}" for n, ratio in said["original_over_fast"].items())
    lines.append(f"original over fast, one sender: {ratios}: {_verdict(said['at_least_50_times_below'])}")
    verdict = _verdict(said["no_growth_beyond_linear"])
    lines.append(f"growth, one sender: {verdict} (at most {GROWTH_MAX}; {', '.join(GROWS_LINEARLY)})")
    for senders, growth in said["per_other_member_over_that_of_one"].items():
        lines += [f"  {f'{name}, {senders} sending':<34}{value:>6}" for name, value in growth.items()]
    return "\n".join(lines)


def _verdict(held: bool | None) -> str:
    return {True: "as claimed", False: "NOT as claimed", None: "not measured"}[held]


def write_csv(found: dict[str, Any], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(found["rows"][0]))
        writer.writeheader()
        writer.writerows(found["rows"])


def write_plot(found: dict[str, Any], path: Path) -> None:
    """Medians over members, logarithmic: one line per series, broken for all sending. The suffix says the format."""
    from matplotlib.figure import Figure  # optional: `pip install lockstepfs[bench]`

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for number, name in enumerate(dict.fromkeys(r["series"] for r in found["rows"])):
        for senders, style in (("one", "-o"), ("all", "--s")):
            rows = [r for r in found["rows"] if (r["series"], r["senders"]) == (name, senders)]
            members, medians = [r["members"] for r in rows], [r["median_us"] for r in rows]
            axes.plot(members, medians, style, color=f"C{number}", label=f"{name}, {senders} sending")
    axes.set(xlabel="members", ylabel="latency of a message (microseconds, median)", yscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize="small")
    figure.savefig(path)


# --- the command ----------------------------------------------------------------------------------


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.total_order", description="The cost of total order.")
    parser.add_argument("--members", default=",".join(map(str, range(1, MEMBERS_MAX + 1))), help="sizes (1,2,...,8)")
    parser.add_argument("--series", default=None, help="some of: " + "; ".join(s.name for s in SERIES))
    parser.add_argument("--messages", type=int, default=500, help="per sender (500; the original sends fewer)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--csv", type=Path, help="write the rows there")
    parser.add_argument("--plot", type=Path, help="draw them there (.svg, .png, .pdf); needs matplotlib")
    found = parser.parse_args(argv)
    if not all(n.isdigit() and 1 <= int(n) <= MEMBERS_MAX for n in found.members.split(",")):
        parser.error(f"--members: numbers from 1 to {MEMBERS_MAX}")
    found.members = [int(n) for n in found.members.split(",")]
    names = [s.name for s in SERIES] if found.series is None else found.series.split(";")
    if unknown := [n for n in names if n not in {s.name for s in SERIES}]:
        parser.error(f"--series: there is no {unknown[0]!r}; separate them by semicolons")
    found.series = [s for s in SERIES if s.name in names]
    if found.messages < 1:
        parser.error("--messages: at least 1")
    if found.plot is not None:
        try:
            import matplotlib  # noqa: F401  found out before an hour of measuring, not after
        except ImportError:
            parser.error("--plot needs matplotlib: pip install lockstepfs[bench]")
    return found


def main(argv: list[str]) -> int:
    asked = parse(argv)
    try:
        with runs.interruptible():
            found = measure(asked.series, asked.members, asked.messages)
    except (OrderError, ProcessError) as exc:
        print(f"bench.total_order: {exc}", file=sys.stderr)
        return 1
    except runs.Interrupted as exc:
        print("bench.total_order: interrupted; everything is cleared", file=sys.stderr)
        return 128 + exc.number
    if asked.csv is not None:
        write_csv(found, asked.csv)
    if asked.plot is not None:
        write_plot(found, asked.plot)
    print(json.dumps(found, indent=1) if asked.json else table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""How many metadata operations per second does a mounted directory carry?

The phases of mdtest with plain POSIX calls, so that any file system can be measured with the same program::

    python -m bench.mdtest -d DIR -n ITEMS [-N PROCESSES] [-u] [-w BYTES] [-e BYTES] [-Y] [-i ITERATIONS] [--json]

As in mdtest, every process waits at a barrier before each phase, works on its own items, and the phase's rate is the
number of all items divided by the time of the slowest process.  A file is created, written (-w), closed; a file that
is read (-e) is opened, read, closed.  With -u each process has a directory of its own, otherwise all work in one.
Directories of one iteration: DIR/mdtest.I (the tree), below it one per process with -u. With -Y each phase ends with
fsync(2) of its directory, in the time that is measured: so what is answered before it is durable counts when it is.

The claim it serves: with three replicas that flush their logs, one process creates at least 1,000 files/s and stats
5,000/s on two cores (its directory is delegated to its mount then; with -Y all are durable when the time is taken).
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, Final

BARRIER_TIMEOUT_S: Final = 600.0
"""The slowest phase's bound: a process that died must not leave the others waiting for ever."""

PHASES: Final = (
    "directory creation", "directory stat", "directory rename", "directory removal",
    "file creation", "file stat", "file read", "file rename", "file removal",
)  # fmt: skip
TREE_CREATION: Final = "tree creation"
TREE_REMOVAL: Final = "tree removal"


@dataclass(frozen=True, slots=True)
class Options:
    """What is measured."""

    directory: str
    items: int
    processes: int = 1
    unique: bool = False
    write_bytes: int = 0
    read_bytes: int = 0
    iterations: int = 1
    sync_phases: bool = False


class BenchError(Exception):
    """The measurement failed; the text says where and why."""


# --- the operations of one process ----------------------------------------------------------------


class Rank:
    """One process's items in one iteration: *base* is where it works."""

    def __init__(self, options: Options, base: str, rank: int) -> None:
        self.items = range(options.items)
        self._base = base
        self._directory = f"{base}/dir.mdtest.{rank}."
        self._file = f"{base}/file.mdtest.{rank}."
        self._payload = bytes(options.write_bytes)
        self._read_bytes = options.read_bytes
        self._sync_phases = options.sync_phases

    def phase(self, name: str) -> Callable[[], None]:
        """The work of phase *name*, ready to be timed."""
        found = getattr(self, name.replace(" ", "_"))
        assert callable(found)
        if not self._sync_phases:
            return found  # type: ignore[no-any-return]

        def synced() -> None:
            found()
            fd = os.open(self._base, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

        return synced

    def directory_creation(self) -> None:
        for k in self.items:
            os.mkdir(f"{self._directory}{k}")

    def directory_stat(self) -> None:
        for k in self.items:
            os.stat(f"{self._directory}{k}")

    def directory_rename(self) -> None:
        for k in self.items:
            os.rename(f"{self._directory}{k}", f"{self._directory}{k}-XX")

    def directory_removal(self) -> None:
        for k in self.items:
            os.rmdir(f"{self._directory}{k}-XX")

    def file_creation(self) -> None:
        for k in self.items:
            fd = os.open(f"{self._file}{k}", os.O_CREAT | os.O_RDWR, 0o644)
            try:
                _write(fd, self._payload)
            finally:
                os.close(fd)

    def file_stat(self) -> None:
        for k in self.items:
            os.stat(f"{self._file}{k}")

    def file_read(self) -> None:
        for k in self.items:
            fd = os.open(f"{self._file}{k}", os.O_RDONLY)
            try:
                _read(fd, self._read_bytes)
            finally:
                os.close(fd)

    def file_rename(self) -> None:
        for k in self.items:
            os.rename(f"{self._file}{k}", f"{self._file}{k}-XX")

    def file_removal(self) -> None:
        for k in self.items:
            os.unlink(f"{self._file}{k}-XX")


def _write(fd: int, payload: bytes) -> None:
    view = memoryview(payload)
    while view:
        view = view[os.write(fd, view) :]


def _read(fd: int, size: int) -> None:
    left = size
    while left:
        got = os.read(fd, min(left, 1 << 20))
        if not got:
            raise BenchError(f"a file ends {left} bytes before its {size}")
        left -= len(got)


# --- processes ------------------------------------------------------------------------------------


def _work(options: Options, rank: int, barrier: Barrier, results: Connection) -> None:
    """One process: every iteration, every phase. Sends ``(rank, {phase: [seconds]}, error)``."""
    times: dict[str, list[float]] = {phase: [] for phase in (TREE_CREATION, *PHASES, TREE_REMOVAL)}
    error = None
    try:
        for iteration in range(options.iterations):
            tree = f"{options.directory}/mdtest.{iteration}"
            base = f"{tree}/{rank}" if options.unique else tree
            mine = Rank(options, base, rank)

            def create_tree(tree: str = tree) -> None:
                # The first process makes the whole tree, as mdtest does.
                if rank == 0:
                    os.mkdir(tree)
                    for k in range(options.processes if options.unique else 0):
                        os.mkdir(f"{tree}/{k}")

            def remove_tree(tree: str = tree) -> None:
                if rank == 0:
                    for k in range(options.processes if options.unique else 0):
                        os.rmdir(f"{tree}/{k}")
                    os.rmdir(tree)

            work = {TREE_CREATION: create_tree, TREE_REMOVAL: remove_tree}
            for phase in times:
                call = work[phase] if phase in work else mine.phase(phase)
                barrier.wait(BARRIER_TIMEOUT_S)
                began = time.perf_counter()
                call()
                times[phase].append(time.perf_counter() - began)
    except threading.BrokenBarrierError:
        error = ""  # another process failed and says why
    except (OSError, BenchError) as exc:
        error = str(exc)
    if error is not None:
        barrier.abort()
    results.send((rank, times, error))


def measure(options: Options) -> dict[str, list[float]]:
    """Operations per second of every phase, one figure per iteration. Raises :class:`BenchError`.

    Tree phases count one operation. Processes are forked: they begin with everything imported.
    """
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(options.processes)
    told: list[tuple[int, dict[str, list[float]], str | None]] = []
    workers = []
    try:
        for rank in range(options.processes):
            receiver, sender = context.Pipe(duplex=False)
            worker = context.Process(target=_work, args=(options, rank, barrier, sender))
            worker.start()
            sender.close()  # so that a process which is killed gives an end of file here
            workers.append((worker, receiver))
        for rank, (_, receiver) in enumerate(workers):
            try:
                told.append(receiver.recv())
            except EOFError:
                barrier.abort()
                told.append((rank, {}, "ended without a result"))
    except BaseException:
        for worker, _ in workers:
            worker.kill()
        raise
    finally:
        for worker, receiver in workers:
            worker.join()
            receiver.close()
    errors = [(rank, error) for rank, _, error in told if error is not None]
    if errors:
        # Those with an empty text only say that another one failed.
        raise BenchError("; ".join(f"process {rank}: {error}" for rank, error in errors if error) or "out of step")
    slowest = {
        phase: [max(each) for each in zip(*(times[phase] for _, times, _ in told), strict=True)] for phase in told[0][1]
    }
    total = options.items * options.processes
    return {
        phase: [(1 if phase in (TREE_CREATION, TREE_REMOVAL) else total) / seconds for seconds in each]
        for phase, each in slowest.items()
    }


# --- results --------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = ""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        model = platform.processor()
    return {
        "cpu": model or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def summary(rates: list[float]) -> dict[str, float]:
    """max, min, mean and (population) standard deviation, as mdtest prints them."""
    return {
        "max": max(rates),
        "min": min(rates),
        "mean": statistics.fmean(rates),
        "stddev": statistics.pstdev(rates),
    }


def report(options: Options, rates: dict[str, list[float]], load_before: tuple[float, ...]) -> dict[str, Any]:
    """Everything about one measurement, as --json prints it."""
    return {
        "benchmark": "mdtest",
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "options": asdict(options),
        "machine": machine(),
        "load_average_before": [round(x, 2) for x in load_before],
        "rates": {phase: {k: round(v, 3) for k, v in summary(each).items()} for phase, each in rates.items()},
    }


def table(found: dict[str, Any]) -> str:
    """mdtest's summary table."""
    options = found["options"]
    lines = [
        f"{options['processes']} processes, {options['items']} items each, "
        f"{options['items'] * options['processes']} files and directories, "
        f"{'a directory for each' if options['unique'] else 'one shared directory'}",
        "",
        f"SUMMARY rate (operations/s): of {options['iterations']} iterations",
        f"   {'Operation':<22}{'Max':>14}{'Min':>14}{'Mean':>14}{'Std Dev':>14}",
        f"   {'---------':<22}{'---':>14}{'---':>14}{'----':>14}{'-------':>14}",
    ]
    for phase, rate in found["rates"].items():
        figures = "".join(f"{rate[k]:>14.3f}" for k in ("max", "min", "mean", "stddev"))
        lines.append(f"   {phase.capitalize():<22}{figures}")
    return "\n".join(lines)


@contextmanager
def _prepared(directory: str) -> Iterator[None]:
    """*directory* exists meanwhile; if it was made for this it is removed when empty."""
    made = not os.path.isdir(directory)
    os.makedirs(directory, exist_ok=True)
    yield
    if made:
        os.rmdir(directory)


def _size(text: str) -> int:
    """``3901``, ``4k``, ``1m`` as bytes."""
    factor = {"k": 1 << 10, "m": 1 << 20}.get(text[-1:].lower(), 1)
    digits = text if factor == 1 else text[:-1]
    if not digits.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a size")
    return int(digits) * factor


def _count(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return int(text)


def parse(argv: list[str]) -> tuple[Options, bool]:
    """(options, whether JSON is asked for)."""
    parser = argparse.ArgumentParser(prog="python -m bench.mdtest", description="Metadata operations per second.")
    parser.add_argument("-d", dest="directory", required=True, help="directory to work in; made if missing")
    parser.add_argument("-n", dest="items", type=_count, required=True, help="files and directories per process")
    parser.add_argument("-N", dest="processes", type=_count, default=1, help="processes (1)")
    parser.add_argument("-u", dest="unique", action="store_true", help="a directory for each process")
    parser.add_argument("-w", dest="write_bytes", type=_size, default=0, help="bytes written to each file (0)")
    parser.add_argument("-e", dest="read_bytes", type=_size, default=0, help="bytes read from each file (0)")
    parser.add_argument("-Y", dest="sync_phases", action="store_true", help="fsync the directory after each phase")
    parser.add_argument("-i", dest="iterations", type=_count, default=1, help="iterations (1)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    found = parser.parse_args(argv)
    if found.read_bytes > found.write_bytes:
        parser.error("-e: more is read than -w writes")
    as_json = found.json
    del found.json
    return Options(**vars(found)), as_json


def run(options: Options) -> dict[str, Any]:
    """Measure and report. Raises :class:`BenchError`."""
    load_before = os.getloadavg()
    try:
        with _prepared(options.directory):
            rates = measure(options)
    except OSError as exc:
        raise BenchError(str(exc)) from exc
    assert all(math.isfinite(r) for each in rates.values() for r in each), "no phase takes no time at all"
    return report(options, rates, load_before)


def main(argv: list[str]) -> int:
    options, as_json = parse(argv)
    try:
        found = run(options)
    except BenchError as exc:
        print(f"mdtest: {exc}", file=sys.stderr)
        return 1
    print(json.dumps(found) if as_json else table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

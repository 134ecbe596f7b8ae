"""``python -m tests.sim --seeds N [--first S]``, ``--seed S --trace`` to see one run, ``--mutants`` to hunt them."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace

from tests.sim.cluster import Cluster
from tests.sim.setup import Setup, setup_of

TAIL_LINES = 60
PROCESSES = 2
SHRINK_RUNS = 150
SHRINK_S = 60


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one run."""

    seed: int
    failure: str | None
    tail: tuple[str, ...]
    counts: tuple[int, ...]
    """steps, views, requests answered, questions answered, messages lost, runs with a liveness phase"""
    digest: str


def attempt(setup: Setup | int, trace: bool = False) -> Result:
    """One run."""
    cluster = Cluster(setup, trace)
    failure = None
    try:
        cluster.run()
    except Exception as exc:  # noqa: BLE001 - whatever the core raises is the finding; it is shown whole
        failure = _told(exc)
    checkers = cluster.checkers
    counts = (cluster.clock.happened, len(checkers.views), checkers.answers, checkers.reads, cluster.network.lost,
              int(cluster.live))  # fmt: skip
    return Result(cluster.seed, failure, tuple(cluster.tail), counts, checkers.digest)


def _told(exc: Exception) -> str:
    if isinstance(exc, AssertionError) and exc.args:
        where = traceback.extract_tb(exc.__traceback__)[-1]
        return f"{type(exc).__name__} at {where.filename}:{where.lineno}: {exc}"
    return "".join(traceback.format_exception(exc))


def shrink(setup: Setup) -> Setup:
    """A run with as few faults as possible that fails still (not necessarily in the same way)."""
    runs, until = 0, time.monotonic() + SHRINK_S
    size = max(1, len(setup.schedule) // 2)
    while True:
        at, smaller = 0, False
        while at < len(setup.schedule) and runs < SHRINK_RUNS and time.monotonic() < until:
            fewer = replace(setup, schedule=setup.schedule[:at] + setup.schedule[at + size :])
            runs += 1
            if attempt(fewer).failure is not None:
                setup, smaller = fewer, True
            else:
                at += size
        if runs >= SHRINK_RUNS or time.monotonic() >= until or (size == 1 and not smaller):
            return setup
        size = max(1, size // 2)


def _runs(seeds: range, processes: int) -> Iterator[Result]:
    if processes == 1:
        yield from map(attempt, seeds)
        return
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        yield from pool.imap(attempt, seeds, chunksize=4)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description="simulated clusters under faults")
    parser.add_argument("--seeds", type=int, default=100, help="how many runs")
    parser.add_argument("--first", type=int, default=0, help="seed of the first")
    parser.add_argument("--seed", type=int, help="this run only")
    parser.add_argument("--without", default="", help="leave out these faults (numbers, with --seed)")
    parser.add_argument("--trace", action="store_true", help="print all that happens (with --seed)")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first seed that fails")
    parser.add_argument("--no-shrink", action="store_true", help="do not look for a smaller schedule that fails")
    parser.add_argument("--processes", type=int, default=PROCESSES)
    parser.add_argument("--mutants", nargs="*", metavar="NAME", help="hunt deliberate bugs (all, or those named)")
    args = parser.parse_args()
    if args.mutants is not None:
        from tests.sim.hunt import hunt

        return hunt(args.mutants, args.processes)
    if args.seed is not None:
        return _one(args.seed, {int(n) for n in args.without.split(",") if n}, args.trace)
    return _many(range(args.first, args.first + args.seeds), args.processes, args.keep_going, not args.no_shrink)


def _one(seed: int, without: set[int], trace: bool) -> int:
    setup = setup_of(seed)
    setup = replace(setup, schedule=tuple(f for f in setup.schedule if f.number not in without))
    print(setup)
    result = attempt(setup, trace)
    if trace or result.failure is not None:
        print("\n".join(result.tail if trace else result.tail[-TAIL_LINES:]))
    print(f"{result.failure or 'passed'} (digest {result.digest})")
    return 1 if result.failure is not None else 0


def _many(seeds: range, processes: int, keep_going: bool, shrinking: bool) -> int:
    passed, failed = 0, 0
    counts = [0] * 6
    began = time.monotonic()
    for result in _runs(seeds, processes):
        counts = [a + b for a, b in zip(counts, result.counts, strict=True)]
        if result.failure is None:
            passed += 1
            continue
        failed += 1
        _show(result, shrinking and failed == 1)
        if not keep_going:
            break
    took = time.monotonic() - began
    steps, views, answers, reads, lost, live = counts
    print(
        f"seeds {seeds.start}..{seeds.start + passed + failed - 1}: {steps} steps, {views} views, {answers} requests "
        f"and {reads} questions answered, {lost} messages lost, {live} runs had to converge, {took:.1f} s"
    )
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


def _show(result: Result, shrinking: bool) -> None:
    print("\n".join(result.tail[-TAIL_LINES:]))
    print(result.failure)
    print(f"FAILED: seed {result.seed}; again with: python -m tests.sim --seed {result.seed} --trace", flush=True)
    if not shrinking:
        return
    small = shrink(setup_of(result.seed))
    kept = {f.number for f in small.schedule}
    without = ",".join(str(f.number) for f in setup_of(result.seed).schedule if f.number not in kept)
    print(f"it fails as well with no other faults than these:\n{small}")
    print(f"{attempt(small).failure}\nsee it with: python -m tests.sim --seed {result.seed} --trace"
          + (f" --without {without}" if without else ""), flush=True)  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())

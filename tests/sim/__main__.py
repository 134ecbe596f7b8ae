"""``python -m tests.sim --seeds N [--first S]``, or ``--seed S --trace`` to see one run."""

from __future__ import annotations

import argparse
import sys
import time
import traceback

from tests.sim.cluster import Cluster

TAIL_LINES = 60


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description="simulated clusters under faults")
    parser.add_argument("--seeds", type=int, default=100, help="how many runs")
    parser.add_argument("--first", type=int, default=0, help="seed of the first")
    parser.add_argument("--seed", type=int, help="this run only")
    parser.add_argument("--trace", action="store_true", help="print all that happens (with --seed)")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first seed that fails")
    args = parser.parse_args()
    seeds = range(args.first, args.first + args.seeds) if args.seed is None else range(args.seed, args.seed + 1)
    passed = failed = steps = answers = reads = views = 0
    began = time.monotonic()
    for seed in seeds:
        cluster = Cluster(seed, trace=args.trace and args.seed is not None)
        try:
            cluster.run()
        except Exception as exc:  # noqa: BLE001 - whatever the core raises is the finding; it is shown whole
            failed += 1
            _show(cluster, exc, args.trace)
            if not args.keep_going:
                break
        else:
            passed += 1
            if args.trace:
                print("\n".join(cluster.tail))
        steps += cluster.clock.happened
        answers += cluster.checkers.answers
        reads += cluster.checkers.reads
        views += len(cluster.checkers.views)
    took = time.monotonic() - began
    runs = passed + failed
    print(
        f"seeds {seeds.start}..{seeds.start + runs - 1}: {steps} steps, {views} views, {answers} requests answered, "
        f"{reads} reads, {took:.1f} s ({runs / max(took, 0.001):.1f} seeds/s)"
    )
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


def _show(cluster: Cluster, exc: Exception, everything: bool) -> None:
    lines = list(cluster.tail)
    print("\n".join(lines if everything else lines[-TAIL_LINES:]))
    if isinstance(exc, AssertionError) and exc.args:
        where = traceback.extract_tb(exc.__traceback__)[-1]
        print(f"{type(exc).__name__} at {where.filename}:{where.lineno}: {exc}")
    else:
        print("".join(traceback.format_exception(exc)))
    print(f"FAILED: seed {cluster.seed}; again with: python -m tests.sim --seed {cluster.seed} --trace", flush=True)


if __name__ == "__main__":
    sys.exit(main())

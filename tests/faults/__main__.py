"""``python -m tests.faults``: real replicas under load and faults, and a judge of what their clients saw."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from random import SystemRandom

from admin import runs
from tests.faults.run import run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--faults", type=int, default=200, help="how many in one run (%(default)s)")
    parser.add_argument("--seed", type=int, help="of the run (of the first); printed, random if it is not given")
    parser.add_argument("--hours", type=float, help="run after run, with seeds one after the other, for so long")
    parser.add_argument("--keep", type=Path, help="directory for the logs of a run that fails")
    parser.add_argument("--only", default="", help="only faults with one of these words (a,b,...) in their name")
    given = parser.parse_args()
    seed = given.seed if given.seed is not None else SystemRandom().randrange(10**6)
    until = time.monotonic() + 3600 * (given.hours or 0)
    passed = failed = 0
    with runs.interruptible():
        while True:
            result = run(sys.stdout, seed, given.faults, given.keep, given.only)
            passed += result.passed
            failed += len(result.failures)
            if failed or time.monotonic() >= until:
                break
            seed += 1
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except runs.Interrupted as exc:
        print(f"ended by signal {exc.number}", file=sys.stderr)
        sys.exit(128 + exc.number)

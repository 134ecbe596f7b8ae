"""``python -m tests.model --steps N [--first SEED]``: rounds of random calls, on a live cluster and locally.

A round that fails is shrunk by Hypothesis and shown; ``--first SEED --rounds 1`` runs that one again. ``--local`` says
where the local directory is made (it should be ext4; the default is the place for temporary files).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path

from admin import runs
from tests.live import Live, live, unavailable
from tests.model import machine
from tests.model.mounted import model_mounts
from tests.model.twin import Hang, Stage, stage


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.model", description="mounts against a local file system")
    parser.add_argument("--steps", type=int, default=20_000, help="calls to make")
    parser.add_argument("--first", type=int, default=0, help="seed of the first round")
    parser.add_argument("--rounds", type=int, default=1 << 30, help="at most so many rounds")
    parser.add_argument("--examples", type=int, default=10, help="examples of a round")
    parser.add_argument("--limit-s", type=float, default=3600.0, help="begin no round after so many seconds")
    parser.add_argument("--no-shrink", action="store_true", help="show the failing calls as they were")
    parser.add_argument("--local", type=Path, help="where to make the local directory")
    args = parser.parse_args()
    reason = unavailable()
    if reason is not None:
        print(reason, file=sys.stderr)
        return 1
    with contextlib.ExitStack() as stack:
        stack.enter_context(runs.interruptible())
        cluster = stack.enter_context(live())
        local = cluster.run.directory
        if args.local is not None:
            local = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=args.local, prefix="lockstep-model-")))
            os.chmod(local, 0o711)
        made = stack.enter_context(stage(local / "local", model_mounts(cluster)))
        return rounds(made, args, cluster)


def rounds(made: Stage, args: argparse.Namespace, cluster: Live) -> int:
    first, steps, most, limit_s = args.first, args.steps, args.rounds, args.limit_s
    began = time.monotonic()
    number = first
    failed = False
    while made.steps < steps and number - first < most and time.monotonic() - began < limit_s and not failed:
        before = made.steps
        try:
            machine.run(made, number, args.examples, shrink=not args.no_shrink)
        except (Exception, Hang):  # noqa: BLE001 - whatever went wrong is the finding; it is shown whole
            failed = True
            print("\n".join(traceback.format_exc().splitlines()[-70:]))
            print(f"FAILED: again with: python -m tests.model --rounds 1 --examples {args.examples} --first {number}")
        number += 1
        print(f"seed {number - 1}: {made.steps - before} calls, {time.monotonic() - began:.0f} s", flush=True)
    if not failed:
        cluster.settled()
    took = time.monotonic() - began
    enough = made.steps >= steps or number - first >= most
    print(f"seeds {first}..{number - 1}: {made.steps} calls, {took:.0f} s; {'failed' if failed else 'passed'}")
    return 1 if failed or not enough else 0


if __name__ == "__main__":
    sys.exit(main())

"""``python -m mds`` is a metadata replica's own process, which its watchdog starts. `lockstep mds` is what people use.

It imports no more than it needs: the commands of `lockstep` take a third of a start, and some megabytes for good.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from daemon import config, logs, memory
from daemon.exits import EXIT_CONFIG
from daemon.guarded import Guard
from mds.serve import main as serve


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m mds", description="A metadata replica, guarded by its watchdog.")
    parser.add_argument("--config", type=Path, required=True, help="the cluster's configuration file")
    parser.add_argument("--id", type=int, required=True, help="which [[replica]] this is")
    parser.add_argument("--join", metavar="HOST:PORT", help="a replica of the cluster that this one joins")
    parser.add_argument("--log-level", choices=logs.LEVELS, default="info", help="least severe records to log (info)")
    parser.add_argument("--guarded", type=int, required=True, metavar="FD", help="the pipe to the watchdog")
    asked = parser.parse_args(argv)
    try:
        found = config.load(asked.config)
        found.replica(asked.id)
    except config.ConfigError as exc:
        print(f"lockstep: {exc}", file=sys.stderr)
        return EXIT_CONFIG
    memory.keep_apart()
    logs.setup(f"mds-{asked.id}", asked.log_level)
    return serve(found, asked.id, Guard(asked.guarded), asked.join)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

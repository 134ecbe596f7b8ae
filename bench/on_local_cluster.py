"""``make bench``: mdtest on a fresh local cluster of three replicas and three targets, the figures kept in results/.

One process: as it comes; with -Y, so that every file is durable by the end of its phase; on a mount with ``dirsync``,
where each create is durable before the next. One process that writes 3,901 bytes (the size mdtest is usually run with
to stand for small files): in the metadata, and in objects. Four processes in directories of their own.  The cluster,
its mounts and its directory are gone afterwards.

    python -m bench.on_local_cluster [--replicas 3] [--targets 3] [-n 1000] [-i 3] [--results DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from admin import mounts, runs
from admin.local import ClusterError, LocalCluster
from admin.processes import ProcessError
from bench import mdtest

RESULTS: Final = Path(__file__).parent / "results"
SMALL_FILE_BYTES: Final = 3_901


def measure(replicas: int, targets: int, items: int, iterations: int) -> dict[str, Any]:
    """All configurations on one cluster; the reports by name."""
    found: dict[str, Any] = {}
    with runs.interruptible(), runs.temporary("bench") as run:
        cluster = LocalCluster.create(run.cluster, replicas, targets)
        cluster.up()
        mountpoint, patient = run.mountpoint("one"), run.mountpoint("two")
        mounts.mount(cluster.config, mountpoint, replica=1)
        mounts.mount(cluster.config, patient, ["dirsync"], replica=1)
        in_objects = mountpoint / "in objects"
        in_objects.mkdir()
        os.setxattr(in_objects, "lockstep.layout", b"inline=0")
        base = mdtest.Options(str(mountpoint / "mdtest"), items, iterations=iterations)
        small = replace(base, write_bytes=SMALL_FILE_BYTES, read_bytes=SMALL_FILE_BYTES)
        for name, options in (
            ("1 process", base),
            ("1 process, -Y", replace(base, sync_phases=True)),
            ("1 process, dirsync", replace(base, directory=str(patient / "mdtest"))),
            ("1 process, 3901 bytes", small),
            ("1 process, 3901 bytes, -Y", replace(small, sync_phases=True)),
            ("1 process, 3901 bytes in objects", replace(small, directory=str(in_objects / "mdtest"))),
            ("4 processes, own directories", replace(base, processes=4, unique=True)),
        ):
            found[name] = mdtest.run(options)
            print(f"\n{name}\n{mdtest.table(found[name])}", flush=True)
        mounts.unmount(patient)
        mounts.unmount(mountpoint)
        cluster.down()
    return {
        "cluster": {"replicas": replicas, "targets": targets, "where": "all on one host"},
        "measured": found,
    }


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.on_local_cluster", description=__doc__)
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--targets", type=int, default=3)
    parser.add_argument("-n", dest="items", type=int, default=1000)
    parser.add_argument("-i", dest="iterations", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS)
    asked = parser.parse_args(argv)
    try:
        found = measure(asked.replicas, asked.targets, asked.items, asked.iterations)
    except (ClusterError, mounts.MountError, mdtest.BenchError, ProcessError) as exc:
        print(f"bench: {exc}", file=sys.stderr)
        return 1
    except runs.Interrupted as exc:
        print("bench: interrupted; everything is cleared", file=sys.stderr)
        return 128 + exc.number
    asked.results.mkdir(parents=True, exist_ok=True)
    path = asked.results / f"mdtest-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.json"
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"\nwritten to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

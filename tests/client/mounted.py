"""A mount in a process of its own, over :mod:`tests.client.one_replica` in another, both ended whatever fails.

    python -m tests.client.mounted ADDRESS MOUNTPOINT [OPTIONS]       the mount process itself
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from client.mount import main as run_mount
from tests.client.one_replica import config_of

ROOT = Path(__file__).resolve().parents[2]
START_S = 30.0
STOP_S = 20.0


@dataclass
class Rig:
    """The processes of one test."""

    base: Path
    targets: int = 2
    stripe_size: int = 1 << 20
    service: subprocess.Popen[bytes] | None = None
    address: str = ""
    mounts: dict[Path, subprocess.Popen[bytes]] = field(default_factory=dict)

    def _spawn(self, *argv: str) -> subprocess.Popen[bytes]:
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        with (self.base / "log").open("ab") as log:
            command = [sys.executable, "-m", *argv]
            return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, env=env)

    def _first_line(self, process: subprocess.Popen[bytes]) -> bytes:
        """What *process* prints when it is ready."""
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], START_S)
        line = process.stdout.readline() if ready else b""
        assert line, "not ready:\n" + (self.base / "log").read_text(errors="replace")[-4000:]
        return line

    def start_service(self) -> None:
        data = self.base / "data"
        data.mkdir(exist_ok=True)
        size, targets = str(self.stripe_size), str(self.targets)
        self.service = self._spawn("tests.client.one_replica", str(data), "--targets", targets, "--stripe-size", size)
        self.address = json.loads(self._first_line(self.service))["replica"]

    def stop_service(self) -> None:
        if self.service is not None:
            _end(self.service)
            self.service = None

    def mount(self, name: str = "mnt", options: str = "") -> Path:
        where = self.base / name
        where.mkdir(exist_ok=True)
        process = self._spawn("tests.client.mounted", self.address, str(where), *([options] if options else []))
        self.mounts[where] = process
        self._first_line(process)
        return where

    def unmount(self, where: Path) -> int:
        """End the mount by SIGTERM; its exit code."""
        return _end(self.mounts.pop(where))

    def log(self) -> str:
        return (self.base / "log").read_text(errors="replace")

    def close(self) -> None:
        for where, process in self.mounts.items():
            _end(process)
            _detach(where)
        self.stop_service()


def _end(process: subprocess.Popen[bytes]) -> int:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
    if process.stdout is not None:
        process.stdout.close()
    return process.wait()


def _detach(where: Path) -> None:
    """A mount that its process left behind."""
    ctypes.CDLL(None).umount2(os.fsencode(where), 2)


@contextlib.contextmanager
def rig(base: Path, targets: int = 2, stripe_size: int = 1 << 20) -> Iterator[Rig]:
    """Processes below *base*, ended at the end."""
    made = Rig(base, targets, stripe_size)
    try:
        made.start_service()
        yield made
    finally:
        made.close()


def main() -> int:
    logging.basicConfig(level=os.environ.get("LOCKSTEP_LOG", "INFO"), format="%(levelname)s %(name)s: %(message)s")
    address, where, *options = sys.argv[1:]
    return run_mount(config_of(address), where, options, ready=lambda: print("ready", flush=True))


if __name__ == "__main__":
    sys.exit(main())

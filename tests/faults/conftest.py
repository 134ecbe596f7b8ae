"""Loads as processes beside the faults."""

from __future__ import annotations

import json
import select
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from admin.local import child_environment, python_module
from tests.live import Live

SILENCE_MAX_S: Final = 30.0
"""A load whose operations take longer than this together hangs."""


class Running:
    """A load as a process; :meth:`more` follows its progress, :meth:`finish` ends it."""

    def __init__(self, directory: Path, argv: list[str]) -> None:
        self.directory = directory
        self.operations = 0
        self.errors: list[str] = []
        self.longest_ms = 0
        self._rest = b""
        self._child = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=child_environment(), bufsize=0
        )

    def _take(self) -> bool:
        """Wait for some of its lines; False at their end."""
        assert self._child.stdout is not None, "a pipe"
        ready, _, _ = select.select([self._child.stdout], [], [], SILENCE_MAX_S)
        assert ready, f"the load in {self.directory} has done nothing for {SILENCE_MAX_S:g} s"
        data = self._child.stdout.read(1 << 16)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            said: dict[str, Any] = json.loads(line)
            self.operations = said["operations"]
            self.errors = said["errors"]
            self.longest_ms = said["longest_ms"]
        return bool(data)

    def more(self, operations: int) -> None:
        """Wait until it has done so many more operations, all without an error."""
        wanted = self.operations + operations
        while self.operations < wanted:
            assert self._take(), f"the load in {self.directory} has ended: {self.errors}"
            assert self.errors == []

    def during(self, seconds: float) -> None:
        """Follow it for *seconds*: the length of a fault, not a time something is expected to take."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.more(1)

    def finish(self) -> None:
        """End it; it must have met no error."""
        assert self._child.stdin is not None, "a pipe"
        self._child.stdin.close()
        while self._take():
            pass
        code = self._child.wait()
        assert self.errors == []
        assert code == 0

    def end(self) -> None:
        self._child.kill()
        self._child.wait()


class Worker(Running):
    """A load on a mount; :meth:`check` checks every promise it was given."""

    def __init__(self, live: Live, directory: Path, seed: int) -> None:
        self.journal = live.run.directory / f"journal-{directory.name}-{seed}.json"
        super().__init__(
            directory, python_module("tests.faults.load", "work", str(directory), str(self.journal), str(seed))
        )

    def check(self, directory: Path) -> int:
        """Compare what lies in *directory* (through any mount) with what was answered; how much was checked."""
        argv = python_module("tests.faults.load", "check", str(directory), str(self.journal))
        done = subprocess.run(argv, capture_output=True, env=child_environment(), timeout=60, check=False)
        assert done.stdout, done.stderr.decode()
        found = json.loads(done.stdout)
        assert found["wrong"] == []
        assert done.returncode == 0
        return int(found["checked"])


class Caller(Running):
    """A load through the client library, which prefers *replica*; it checks what it finds itself."""

    def __init__(self, live: Live, name: str, replica: int) -> None:
        config = str(live.cluster.config.path)
        super().__init__(Path(name), python_module("tests.faults.api_load", config, name, str(replica)))


Start = Callable[[Path], Worker]


@pytest.fixture
def load(cluster: Live) -> Iterator[Start]:
    """Starts a load in a directory on a mount."""
    started: list[Worker] = []

    def start(directory: Path) -> Worker:
        worker = Worker(cluster, directory, seed=len(started) + 1)
        started.append(worker)
        return worker

    yield start
    for worker in started:
        worker.end()

"""`lockstep demo`: a replica is killed with -9 under a running copy, and nothing is lost.

A temporary cluster on this host, two mounts through different replicas.  The standard library of the running
Python is copied in through the first; in the middle the replica which that mount is connected to is killed.  The
copy is read back through the second mount and compared, the dead replica is started again and must return to the
same state as the others.  At the end nothing is left: no process, no mount, no file.

This process itself never touches a mount: with a service that hangs it could not be interrupted.
"""

from __future__ import annotations

import json
import select
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from admin import ask, mounts, processes, runs
from admin.local import ClusterError, LocalCluster, child_environment, python_module
from admin.mounts import MountError
from admin.status import ClusterStatus

REPLICAS: Final = 3
TARGETS: Final = 3
KILL_AT: Final = 0.4
"""Share of the files copied when the replica is killed: well inside, with as much to come."""
SILENCE_MAX_S: Final = 60.0
"""A copy that says nothing for so long has failed."""
REJOIN_TIMEOUT_S: Final = 60.0
EQUAL_TIMEOUT_S: Final = 30.0
SHOWN_MAX: Final = 10
"""Errors and mismatches printed one by one; all are counted."""


class DemoError(Exception):
    """The demonstration cannot go on; the text says why."""


@dataclass(slots=True)
class Result:
    """What the last line says, in this order."""

    files: int = 0
    """Regular files and symbolic links."""
    bytes: int = 0
    mismatches: int = 0
    errors: int = 0
    """System calls on a mount that failed, and steps of the demonstration that did."""
    killed_replica: int | None = None
    longest_stall_ms: float | None = None
    """Longest time between two completed system calls of the copy (admin.tree.Stopwatch)."""
    replicas_equal: bool = False
    rejoined: bool = False

    @property
    def good(self) -> bool:
        return not self.mismatches and not self.errors and self.replicas_equal and self.rejoined

    def line(self) -> str:
        return json.dumps(asdict(self))


class Worker:
    """One ``admin.tree`` process and the objects it prints."""

    def __init__(self, *args: str) -> None:
        self._what = args[0]
        self._child = subprocess.Popen(
            # -B: importing must not write into the very tree that is being copied.
            [sys.executable, "-B", *python_module("admin.tree", *args)[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env=child_environment(),
        )

    def messages(self) -> Iterator[dict[str, Any]]:
        """What it prints until it ends. Raises :class:`DemoError` when it falls silent or breaks."""
        assert self._child.stdout is not None, "opened as a pipe above"
        pipe = self._child.stdout.fileno()
        poller = select.poll()
        poller.register(pipe, select.POLLIN)
        rest = b""
        while True:
            if not poller.poll(int(SILENCE_MAX_S * 1000)):
                raise DemoError(f"no operation on the mount has completed for {SILENCE_MAX_S:g} s")
            data = self._child.stdout.read1(1 << 16)  # type: ignore[attr-defined]  # a BufferedReader
            if not data:
                break
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                yield json.loads(line)
        code = self._child.wait()
        if code not in (0, 1):
            raise DemoError(f"the process that should {self._what} ended with code {code}")

    def end(self) -> None:
        """Kill it if it still runs (it may be stuck on a mount until that is gone)."""
        if self._child.poll() is None:
            self._child.kill()


@dataclass(slots=True)
class Demo:
    """One demonstration; :meth:`run` is the whole of it."""

    run_in: runs.Run
    console: Console
    result: Result = field(default_factory=Result)
    source: Path = field(default_factory=lambda: Path(sysconfig.get_path("stdlib")))
    """The tree that is copied."""
    shown: int = 0
    workers: list[Worker] = field(default_factory=list)

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True)

    def fault(self, text: str) -> None:
        """Something the demonstration promises not to happen; counted by the caller."""
        self.shown += 1
        if self.shown <= SHOWN_MAX:
            print(f"lockstep demo: {text}", file=sys.stderr)

    def run(self) -> None:
        """All steps. Raises :class:`DemoError` and the errors of the modules below."""
        cluster = LocalCluster.create(self.run_in.cluster, REPLICAS, TARGETS)
        self.say(f"[bold]1[/] starting {REPLICAS} metadata replicas and {TARGETS} storage targets")
        cluster.up()
        one, two = self.run_in.mountpoint("one"), self.run_in.mountpoint("two")
        self.say("[bold]2[/] mounting twice: one through replica 1, two through replica 2")
        mounts.mount(cluster.config, one, replica=1)
        mounts.mount(cluster.config, two, replica=2)
        manifest = self.run_in.directory / "manifest.json"
        self.say(f"[bold]3[/] copying {self.source} to mount one")
        self._copy(cluster, one, manifest)
        self.say("[bold]4[/] reading everything back through mount two and comparing it")
        self._compare(two / "copy", manifest)
        killed = self.result.killed_replica
        assert killed is not None, "_copy() kills one or raises"
        self.say(f"[bold]5[/] starting replica {killed} again")
        self._rejoin(cluster, killed)
        self.say("[bold]6[/] unmounting, stopping everything")
        for mountpoint in (one, two):
            mounts.unmount(mountpoint)
        cluster.down()
        left = self.run_in.leftovers()
        if left:
            raise DemoError("left behind: " + ", ".join(left))

    # -- the copy

    def _copy(self, cluster: LocalCluster, mountpoint: Path, manifest: Path) -> None:
        totals: dict[str, Any] = {}
        stall: float | None = None

        def told(message: dict[str, Any], progress: Progress, bar: Any) -> None:
            nonlocal totals, stall
            if "files_total" in message:
                totals = message
                progress.update(bar, total=message["bytes_total"])
                if message["links_made"]:
                    progress.console.print(
                        f"  the tree has few symbolic links: {message['links_made']} are added", highlight=False
                    )
                return
            stall = message["longest_stall_ms"]
            self.result.files, self.result.bytes = message["files"], message["bytes"]
            if self.result.killed_replica is None and message.get("files", 0) >= KILL_AT * totals["files_total"]:
                self.result.killed_replica = self._kill_replica_of(cluster, mountpoint, progress.console)

        began = time.monotonic()
        self._work("copying", told, "copy", str(self.source), str(mountpoint / "copy"), str(manifest))
        self.result.longest_stall_ms = stall
        if self.result.killed_replica is None:
            raise DemoError("the copy ended before the replica was killed")
        self.say(
            f"  {self.result.files} files, {self.result.bytes / 1e6:.1f} MB in {time.monotonic() - began:.1f} s; "
            f"longest stall {stall} ms, {self.result.errors} errors"
        )

    def _kill_replica_of(self, cluster: LocalCluster, mountpoint: Path, console: Console) -> int:
        """kill -9 of the replica that the mount is connected to; its number."""
        suffix = f":{mountpoint}"
        for replica in cluster.status().replicas:
            if any(str(name).endswith(suffix) for name in replica.get("clients", ())):
                number = replica.configured.id
                cluster.kill(replica.name)
                console.print(
                    f"  [bold red]kill -9[/] of replica {number}, which mount one is connected to", highlight=False
                )
                return number
        raise DemoError(f"no replica names {mountpoint} among its clients")

    # -- comparing, returning

    def _compare(self, target: Path, manifest: Path) -> None:
        self._work("comparing", lambda *_: None, "compare", str(target), str(manifest))
        self.say(f"  {self.result.mismatches} mismatches, {self.result.errors} errors")

    def _work(self, title: str, told: Callable[[dict[str, Any], Progress, Any], None], *args: str) -> None:
        """Run a worker to its end with a progress bar, its findings entered in the result."""
        worker = Worker(*args)
        self.workers.append(worker)
        errors = self.result.errors
        columns = (TextColumn(f"  {title}"), BarColumn(), TaskProgressColumn(), DownloadColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.console) as progress:
            bar = progress.add_task(title, total=self.result.bytes or None)
            for message in worker.messages():
                if "error" in message or "mismatch" in message:
                    self.fault(message.get("error") or message["mismatch"])
                else:
                    told(message, progress, bar)
                if "files" in message:
                    self.result.errors = errors + message["errors"]
                    self.result.mismatches = message.get("mismatches", 0)
                    progress.update(bar, completed=message["bytes"])

    def _rejoin(self, cluster: LocalCluster, killed: int) -> None:
        began = time.monotonic()
        cluster.start(f"mds-{killed}")

        def is_member(status: ClusterStatus) -> bool:
            return killed in status.members and all(r.serving for r in status.replicas)

        cluster.wait(is_member, f"replica {killed} has not rejoined", REJOIN_TIMEOUT_S, [f"mds-{killed}"])
        self.result.rejoined = True
        status = cluster.wait(
            lambda s: s.replicas_equal, "the replicas have not become equal", EQUAL_TIMEOUT_S, [f"mds-{killed}"]
        )
        self.result.replicas_equal = True
        first = status.replicas[0]
        self.say(
            f"  a member again after {time.monotonic() - began:.1f} s; all replicas at index {first.get('index')} "
            f"with digest {first.get('digest')}"
        )

    def end(self) -> None:
        for worker in self.workers:
            worker.end()


def main(json_only: bool, keep_logs: Path | None = None) -> int:
    """Run the demonstration; the process's exit code. The last line on standard output is the result.

    The logs of all its processes are copied to *keep_logs*, if given, before everything is deleted.
    """
    console = Console(quiet=json_only)
    result = Result()
    try:
        with runs.interruptible(), runs.temporary("demo") as run:
            demo = Demo(run, console, result)
            try:
                demo.run()
            except (DemoError, ClusterError, MountError, ask.AskError, processes.ProcessError) as exc:
                result.errors += 1
                print(f"lockstep demo: {exc}", file=sys.stderr)
            finally:
                demo.end()
                if keep_logs is not None and (run.cluster / "log").is_dir():
                    shutil.copytree(run.cluster / "log", keep_logs, dirs_exist_ok=True)
    except processes.ProcessError as exc:
        result.errors += 1
        print(f"lockstep demo: {exc}", file=sys.stderr)
    except runs.Interrupted as exc:
        print("lockstep demo: interrupted; everything is cleared", file=sys.stderr)
        return 128 + exc.number
    print(result.line(), flush=True)
    return 0 if result.good else 1

"""Temporary clusters that clean up after themselves, and after those of their kind that could not.

A run is a directory ``lockstep-<kind>-<pid>-<start ticks>-xxxx`` in the temporary directory; its name says who owns
it.  Leaving the run ends its mounts and processes and deletes it.  An owner that was killed with -9 leaves all of
it behind: the next run finds the directory, sees that its owner is dead, and clears it.  Everything a run starts
has a path below its directory among its arguments, so nothing else is ever touched.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Final

from admin import processes
from admin.mounts import MountError, end_mount, mount_processes, mounts_below, unmount
from daemon.config import CONFIG_NAME

_NAME: Final = re.compile(r"lockstep-[a-z]+-(\d+)-(\d+)-[^/]+")


class Interrupted(BaseException):
    """SIGTERM or SIGINT arrived: unwinds to the end of the run, where everything is cleared.

    No Exception, so that no handler for an expected failure takes it for one.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Run:
    """One temporary run: a directory for a cluster and its mountpoints."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.cluster = directory / "cluster"

    def mountpoint(self, name: str) -> Path:
        """A fresh empty directory to mount at."""
        path = self.directory / "mnt" / name
        path.mkdir(parents=True)
        return path

    def clear(self) -> list[str]:
        """End every mount and process of the run, delete its directory; what could not be undone."""
        left = []
        # Mount processes first: with them gone nobody is stuck in a system call on the mount.
        for one in mount_processes(self.cluster / CONFIG_NAME):
            end_mount(one, 5.0)
        for path in mounts_below(self.directory):
            try:
                unmount(path)
            except MountError as exc:
                left.append(f"mount: {exc}")
        for who in processes.of_directory(self.directory):
            try:
                processes.kill(who)
            except processes.ProcessError as exc:
                left.append(str(exc))
        if mounts_below(self.directory):
            left.append(f"directory {self.directory} is kept: something is mounted below it")
        else:
            shutil.rmtree(self.directory, ignore_errors=True)
            if self.directory.exists():
                left.append(f"directory {self.directory} could not be deleted")
        return left

    def leftovers(self) -> list[str]:
        """What of the run is still there: empty after a clean end. The directory itself does not count."""
        left = [f"process {who.pid}" for who in processes.of_directory(self.directory)]
        return left + [f"mount {path}" for path in mounts_below(self.directory)]


def temporary_root() -> Path:
    return Path(os.path.realpath(tempfile.gettempdir()))


def clear_abandoned() -> list[Path]:
    """Clear the runs of this user whose owners are dead; their directories."""
    cleared = []
    for path in temporary_root().glob("lockstep-*"):
        match = _NAME.fullmatch(path.name)
        if match is None:
            continue
        try:
            found = path.lstat()
        except FileNotFoundError:
            continue  # another run has cleared it meanwhile
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            continue
        owner = processes.identify(int(match[1]))
        if owner is not None and owner.start_ticks == int(match[2]):
            continue
        Run(path).clear()
        cleared.append(path)
    return cleared


@contextlib.contextmanager
def temporary(kind: str) -> Iterator[Run]:
    """A run of *kind* (lower-case letters), cleared at the end whatever happens."""
    assert kind.isalpha() and kind.islower(), "the kind is part of a name that is parsed"
    clear_abandoned()
    me = processes.identify(os.getpid())
    assert me is not None, "this process runs"
    prefix = f"lockstep-{kind}-{me.pid}-{me.start_ticks}-"
    run = Run(Path(tempfile.mkdtemp(prefix=prefix, dir=temporary_root())))
    try:
        yield run
    finally:
        with uninterrupted():
            left = run.clear()
        if left:
            raise processes.ProcessError("not everything could be cleared: " + "; ".join(left))


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Clearing takes seconds and has bounds of its own: a second Ctrl-C must not leave half of it."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM, SIGINT and SIGHUP raise :class:`Interrupted` in the main thread meanwhile."""

    def raise_it(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, raise_it) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

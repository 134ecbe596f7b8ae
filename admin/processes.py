"""Processes that outlive the command which started them: who they are, whether they still run, how they are ended.

A process id alone is not an identity: the kernel gives it to another process once the first has ended.  The pair
(process id, start time in clock ticks since boot) together with the boot's id is one, and a signal is sent through
a pidfd that was opened before the identity was checked, so it cannot reach anybody else.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
OUR_MODULES: Final = ("admin", "bench", "daemon", "mds", "tests")
"""Top packages that are run with ``python -m``: how our processes are recognised."""


class ProcessError(Exception):
    """A process did not do what was asked of it; the text says which and what."""


@dataclass(frozen=True, slots=True)
class Identity:
    """One process, told apart from every other one that has run or will run on this host."""

    pid: int
    start_ticks: int
    boot: str

    def to_json(self) -> dict[str, int | str]:
        return {"pid": self.pid, "start_ticks": self.start_ticks, "boot": self.boot}


def boot_id() -> str:
    return _BOOT_ID.read_text(encoding="ascii").strip()


def _stat_fields(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat from the third (state) on, or None when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field, the command's name in brackets, may hold blanks and brackets itself.
    return text.rpartition(")")[2].split()


def identify(pid: int) -> Identity | None:
    """The identity of the process that has *pid* now; None when there is none or it is a zombie."""
    fields = _stat_fields(pid)
    if fields is None or fields[0] in ("Z", "X"):
        return None
    return Identity(pid, int(fields[19]), boot_id())


def parent_of(pid: int) -> int | None:
    """The parent's process id."""
    fields = _stat_fields(pid)
    return None if fields is None else int(fields[1])


def children_of(pid: int) -> list[Identity]:
    """The processes whose parent is *pid*."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and parent_of(int(entry.name)) == pid:
            who = identify(int(entry.name))
            if who is not None:
                found.append(who)
    return found


def argv_of(pid: int) -> list[str]:
    """The process's command line; empty when it has none, has ended, or is not ours to read."""
    try:
        data = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError as exc:
        if exc.errno in (errno.ENOENT, errno.ESRCH, errno.EACCES, errno.EPERM):
            return []
        raise
    return [os.fsdecode(part) for part in data.split(b"\0")[:-1]]


def running(who: Identity) -> bool:
    """True while the process runs (a stopped one runs, a zombie does not)."""
    return identify(who.pid) == who


@contextlib.contextmanager
def _pidfd(who: Identity) -> Iterator[int | None]:
    """A pidfd of *who*, or None when it has ended."""
    try:
        fd = os.pidfd_open(who.pid)
    except ProcessLookupError:
        yield None
        return
    try:
        # Checked after opening: from here on the descriptor stays with this very process.
        yield fd if running(who) else None
    finally:
        os.close(fd)


def send(who: Identity, number: signal.Signals) -> bool:
    """Send a signal; False when the process has ended already."""
    with _pidfd(who) as fd:
        if fd is None:
            return False
        try:
            signal.pidfd_send_signal(fd, number)
        except ProcessLookupError:
            return False
        return True


def wait_end(who: Identity, timeout_s: float) -> bool:
    """Wait until the process has ended; False when it has not within *timeout_s*."""
    deadline = time.monotonic() + timeout_s
    with _pidfd(who) as fd:
        if fd is None:
            _reap(who)
            return True
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        while True:
            # poll() with 0 still asks once, so a process that has ended is seen with any timeout.
            left_ms = max(0, int((deadline - time.monotonic()) * 1000))
            if poller.poll(left_ms):
                _reap(who)
                return True
            if time.monotonic() >= deadline:
                return False


def _reap(who: Identity) -> None:
    """Take the ended process's exit code if it was our own child, so that no zombie stays."""
    with contextlib.suppress(ChildProcessError):  # not our child, or taken already
        os.waitpid(who.pid, os.WNOHANG)


def end(who: Identity, term_timeout_s: float, kill_timeout_s: float = 10.0) -> str:
    """SIGTERM, and SIGKILL when that is not enough in time.

    The result is ``"stopped"``, ``"killed"`` or ``"was not running"``. Raises :class:`ProcessError` for a process
    that survives SIGKILL (it hangs in the kernel).
    """
    if not send(who, signal.SIGTERM):
        _reap(who)
        return "was not running"
    send(who, signal.SIGCONT)  # a stopped process would keep SIGTERM pending
    if wait_end(who, term_timeout_s):
        return "stopped"
    kill(who, kill_timeout_s)
    return "killed"


def kill(who: Identity, timeout_s: float = 10.0) -> None:
    """SIGKILL, and wait until it is gone. Raises :class:`ProcessError` when it is not within *timeout_s*."""
    send(who, signal.SIGKILL)
    if not wait_end(who, timeout_s):
        raise ProcessError(f"process {who.pid} has not ended {timeout_s:g} s after SIGKILL")


# --- pid files ------------------------------------------------------------------------------------


def write_pid_file(path: Path, who: Identity, **more: str) -> None:
    """Record *who* at *path*, with *more* texts that a reader may want."""
    new = path.with_name(path.name + ".new")
    new.write_text(json.dumps({**who.to_json(), **more}) + "\n", encoding="utf-8")
    new.replace(path)


def read_pid_file(path: Path) -> tuple[Identity, dict[str, str]] | None:
    """What :func:`write_pid_file` wrote; None when there is no file or it is not one of ours."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        who = Identity(int(found.pop("pid")), int(found.pop("start_ticks")), str(found.pop("boot")))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError):
        # Half a file can only be from a host that lost power, and then the process is gone as well.
        return None
    return who, {str(k): str(v) for k, v in found.items()}


def find(wanted: Callable[[list[str]], bool]) -> list[tuple[Identity, list[str]]]:
    """This user's processes that run one of our modules (``python -m admin ...``) and whose argv is *wanted*."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        pid = int(entry.name)
        argv = argv_of(pid)
        # An editor that shows one of our files is left alone; a profiler that runs one of our modules is not.
        run = {after.split(".")[0] for flag, after in itertools.pairwise(argv) if flag == "-m"}
        if run.isdisjoint(OUR_MODULES) or not wanted(argv):
            continue
        try:
            mine = entry.stat().st_uid == os.geteuid()
        except FileNotFoundError:
            continue  # it has ended meanwhile
        who = identify(pid)
        if mine and who is not None:
            found.append((who, argv))
    return found


def of_directory(directory: Path) -> list[Identity]:
    """Our processes that were started with a path below *directory* among their arguments."""
    prefix = f"{directory}/"
    return [who for who, _ in find(lambda argv: any(arg.startswith(prefix) for arg in argv))]

"""Mounting and unmounting from outside the mount's own process, and what the kernel says is mounted.

Nothing here touches the mounted tree: with every server gone a mere stat of it would wait for one to return.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from admin import processes
from admin.local import child_environment, python_module
from admin.processes import Identity
from daemon.config import Config

MOUNT_TIMEOUT_S: Final = 90.0
"""The mount's process gives up by itself before, and says why."""
UNMOUNT_TIMEOUT_S: Final = 10.0
"""After the unmount the mount's process closes its session; with no server left it gives up within this time."""
FUSERMOUNT: Final = "fusermount3"


class MountError(Exception):
    """A mount or unmount failed; the text says why."""


@dataclass(frozen=True, slots=True)
class MountProcess:
    """A running `lockstep mount` and where it mounts."""

    who: Identity
    mountpoint: Path


def resolved(mountpoint: Path) -> Path:
    """*mountpoint* as the kernel lists it, without touching the mountpoint itself."""
    whole = mountpoint.absolute()
    return Path(os.path.realpath(whole.parent)) / whole.name if whole.name not in ("", "..") else whole.resolve()


def _unescaped(text: str) -> str:
    """A path as /proc/self/mountinfo writes it (octal escapes for blanks and the like)."""
    return re.sub(r"\\([0-7]{3})", lambda m: chr(int(m.group(1), 8)), text)


def parse_mountinfo(text: str) -> list[tuple[Path, str]]:
    """(mountpoint, file system type) of every line of a mountinfo file."""
    found = []
    for line in text.splitlines():
        fields = line.split(" ")
        # Optional fields end with a lone dash; the type follows it (proc(5)).
        found.append((Path(_unescaped(fields[4])), fields[fields.index("-", 6) + 1]))
    return found


def mounted_paths() -> list[tuple[Path, str]]:
    """(mountpoint, type) of everything mounted in our namespace, oldest first."""
    data = Path("/proc/self/mountinfo").read_bytes()
    return parse_mountinfo(os.fsdecode(data))


def is_mounted(mountpoint: Path) -> bool:
    """Whether a FUSE file system is mounted at *mountpoint*."""
    where = resolved(mountpoint)
    return any(path == where and kind.startswith("fuse") for path, kind in mounted_paths())


def mounts_below(directory: Path) -> list[Path]:
    """FUSE mountpoints below *directory*, the innermost first."""
    root = Path(os.path.realpath(directory))
    found = [path for path, kind in mounted_paths() if kind.startswith("fuse") and root in path.parents]
    return sorted(found, key=lambda p: len(p.parts), reverse=True)


def mount_processes(config_path: Path) -> list[MountProcess]:
    """The running mounts of this user that use the configuration at *config_path*."""
    wanted = str(config_path)
    found = processes.find(lambda argv: "--foreground" in argv and "mount" in argv and wanted in argv)
    return [MountProcess(who, Path(argv[argv.index(wanted) + 1])) for who, argv in found]


def options_of(config: Config, asked: Sequence[str]) -> list[str]:
    """Mount options in the order in which later ones win: the configuration's, then those that were asked for."""
    mine = ["soft", f"timeo={max(1, config.client.timeout_ms // 100)}"] if config.client.soft else []
    return mine + [option for one in asked for option in one.split(",") if option]


def default_log_file(config: Config, mountpoint: Path) -> Path:
    """Where a mount in the background logs: beside the daemons of a local cluster, else in the user's state."""
    name = "mount" + str(resolved(mountpoint)).replace("/", "-") + ".log"
    beside = config.path.parent / "log"
    if beside.is_dir() and os.access(beside, os.W_OK):
        return beside / name
    if os.geteuid() == 0:
        return Path("/var/log/lockstep") / name
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(state) / "lockstep" / name


def host_refusal() -> str | None:
    """Why nothing can be mounted on this host, or None."""
    if shutil.which(FUSERMOUNT) is None:
        return f"{FUSERMOUNT} is not installed (package fuse3)"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse is not there or not accessible: load the kernel module fuse, or run as a user who may mount"
    return None


def refusal(mountpoint: Path) -> str | None:
    """Why nothing can be mounted at *mountpoint*, or None."""
    if is_mounted(mountpoint):
        return f"{mountpoint} is mounted already"
    if not mountpoint.is_dir():
        return f"{mountpoint} is not a directory"
    return host_refusal()


def foreground_command(
    config: Config, mountpoint: Path, options: Sequence[str], replica: int | None, log_level: str, ready_fd: int
) -> list[str]:
    """argv of the process that is the mount; it writes one byte to *ready_fd* when the mount answers."""
    argv = python_module("admin", "mount", "--foreground", "--ready-fd", str(ready_fd), "--log-level", log_level)
    if replica is not None:
        argv += ["--replica", str(replica)]
    if options:
        argv += ["-o", ",".join(options)]
    return [*argv, str(config.path), str(resolved(mountpoint))]


def mount(
    config: Config,
    mountpoint: Path,
    options: Sequence[str] = (),
    replica: int | None = None,
    log_file: Path | None = None,
    log_level: str = "info",
    timeout_s: float = MOUNT_TIMEOUT_S,
) -> Identity:
    """Mount in the background and return when the mount answers: the process that serves it.

    Raises :class:`MountError`; then nothing is left running or mounted.
    """
    reason = refusal(mountpoint)
    if reason is not None:
        raise MountError(reason)
    log_file = log_file or default_log_file(config, mountpoint)
    log_file.parent.mkdir(parents=True, exist_ok=True)
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb", buffering=0) as ready, log_file.open("ab") as log:
        before = log.tell()
        try:
            child = subprocess.Popen(
                foreground_command(config, mountpoint, options, replica, log_level, write_end),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=(write_end,),
                start_new_session=True,
                cwd="/",  # a mount must not keep the directory busy that somebody happened to be in
                env=child_environment(),
            )
        finally:
            os.close(write_end)
        who = processes.identify(child.pid)
        try:
            # A byte: it answers. The end: the process has ended, or will. Nothing: it hangs.
            told, _, _ = select.select([ready], [], [], timeout_s)
            if told and ready.read(1) and who is not None:
                child.returncode = 0  # known by its identity from now on, not by Popen
                return who
        except BaseException:
            # Interrupted while waiting: what was begun is taken back, then the interruption goes on.
            _abandon(child, mountpoint)
            raise
    _abandon(child, mountpoint)
    why = f"ended with code {child.returncode}" if told else f"does not answer after {timeout_s:g} s"
    with log_file.open("rb") as log:
        log.seek(before)
        said = log.read().decode("utf-8", "replace").strip()
    raise MountError(f"the mount at {mountpoint} {why}" + (f":\n{said[-4000:]}" if said else f"; see {log_file}"))


def _abandon(child: subprocess.Popen[bytes], mountpoint: Path) -> None:
    """End a mount that did not come about; one that is about to end by itself gets the time to say why."""
    try:
        child.wait(1)
    except subprocess.TimeoutExpired:
        child.terminate()
    try:
        child.wait(5)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    if is_mounted(mountpoint):
        _fusermount(mountpoint, lazy=True)


def _fusermount(mountpoint: Path, lazy: bool) -> str | None:
    """Have the kernel drop the mount; None, or what went wrong."""
    argv = [FUSERMOUNT, "-u", *(["-z"] if lazy else []), "--", str(resolved(mountpoint))]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=UNMOUNT_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return f"{FUSERMOUNT} did not end within {UNMOUNT_TIMEOUT_S:g} s"
    except FileNotFoundError:
        return f"{FUSERMOUNT} is not installed (package fuse3)"
    return None if done.returncode == 0 else done.stderr.strip() or f"code {done.returncode}"


def unmount(mountpoint: Path, timeout_s: float = UNMOUNT_TIMEOUT_S) -> str:
    """Unmount, and wait until the mount's process has ended too: ``unmounted``, or ``detached`` when it was busy.

    A busy mount is detached: it disappears from the tree at once and ends when its last file is closed.
    Raises :class:`MountError` when there is nothing mounted or the kernel refuses.
    """
    where = resolved(mountpoint)
    if not is_mounted(where):
        raise MountError(f"{mountpoint} is not mounted")
    serving = processes.find(lambda argv: "--foreground" in argv and "mount" in argv and str(where) in argv)
    how = "unmounted"
    if _fusermount(where, lazy=False) is not None and is_mounted(where):
        how = "detached"
        reason = _fusermount(where, lazy=True)
        if reason is not None and is_mounted(where):
            raise MountError(f"{mountpoint}: {reason}")
    if how == "unmounted":
        for who, _ in serving:
            processes.wait_end(who, timeout_s)
    return how


def end_mount(one: MountProcess, timeout_s: float = UNMOUNT_TIMEOUT_S) -> None:
    """Unmount and see the process off, whatever state both are in. For cleaning up."""
    if is_mounted(one.mountpoint):
        _fusermount(one.mountpoint, lazy=True)
    if not processes.wait_end(one.who, timeout_s):
        processes.end(one.who, 1.0)

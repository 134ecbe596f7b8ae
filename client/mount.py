"""The mount process: one FUSE mount from the first connection to the unmount.

Order of life: session attached, mounted, serving (``ready``) | unmounted by somebody, or a signal | buffers
flushed, unmounted, session closed.  No step of the second half needs a server to answer for ever.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Protocol

import pyfuse3
import trio

from client import kernel_turn, limits
from client.cache import CachePolicy
from client.fuse_ops import LockstepOperations
from client.options import MountOptions, OptionError, parse
from client.service import errno_of
from client.volume import Volume
from wire.errors import FileSystemError

log = logging.getLogger(__name__)

MNT_DETACH: Final = 2
BDI: Final = Path("/sys/class/bdi")
"""What the kernel keeps per device, each under its number."""


class MountFailed(Exception):
    """The file system could not be mounted; the text says why."""


class Member(Protocol):
    """A replica in the configuration."""

    @property
    def id(self) -> int: ...
    @property
    def address(self) -> str: ...


class Cluster(Protocol):
    """The ``[cluster]`` part of the configuration."""

    @property
    def name(self) -> str: ...
    @property
    def id(self) -> bytes: ...


class ClusterConfig(Protocol):
    """What a mount needs of :class:`daemon.config.Config`."""

    @property
    def cluster(self) -> Cluster: ...
    @property
    def replicas(self) -> Sequence[Member]: ...


def volume_of(
    config: ClusterConfig, name: str, options: MountOptions, prefer: int | None = None, *, mounted: bool = False
) -> Volume:
    """The file system that *config* describes, as *options* want it; *name* is told to the servers.

    *mounted*: a kernel is above us.
    """
    return Volume(
        config.cluster.id,
        tuple((replica.id, replica.address) for replica in config.replicas),
        name,
        prefer=prefer if prefer is not None else options.prefer_replica,
        soft_after=options.soft_after,
        page_cache=mounted and options.attr_s == 0,
        atime=mounted and not options.kernel & {"noatime", "ro"},
        # Soft: what waits to be ordered could be given up. The other two want a file to be in place when it is made.
        delegations=mounted and options.soft_after is None and not options.kernel & {"sync", "dirsync", "ro"},
    )


async def mount(
    config: ClusterConfig,
    mountpoint: str | os.PathLike[str],
    *,
    options: MountOptions | None = None,
    prefer_replica: int | None = None,
    ready: Callable[[], None] = lambda: None,
) -> None:
    """Mount at *mountpoint* and serve until it is unmounted or a SIGTERM or SIGINT comes.

    *ready* is called when the mount answers. One mount per process (pyfuse3's limit). Raises
    :class:`MountFailed`.
    """
    options = options or MountOptions()
    where = _checked_mountpoint(mountpoint)
    policy = CachePolicy(options.entry_s, options.attr_s, options.direct_io)
    volume = volume_of(config, where, options, prefer_replica, mounted=True)
    async with trio.open_nursery() as nursery:
        failure: MountFailed | None = None
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            await nursery.start(volume.run)
            try:
                root = await _attach(volume, options, signals)
                if root is not None:
                    operations = LockstepOperations(volume, policy, root)
                    _mount(operations, where, config.cluster.name, options, policy)
                    await _serve(volume, operations, where, signals, ready)
            except MountFailed as exc:
                failure = exc  # carried out of the nursery as itself
            with trio.CancelScope(shield=True):  # bounded: UNMOUNT_FLUSH_S and CLOSE_TIMEOUT_S
                await volume.close()
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


def _checked_mountpoint(mountpoint: str | os.PathLike[str]) -> str:
    """The absolute path to mount at. Raises :class:`MountFailed`."""
    where = os.path.abspath(mountpoint)
    try:
        found = os.stat(where)
    except OSError as exc:
        if exc.errno == errno.ENOTCONN:
            raise MountFailed(f"{where}: a dead mount is there; unmount it first (umount -l {where})") from exc
        raise MountFailed(f"{where}: {exc.strerror}") from exc
    if not stat.S_ISDIR(found.st_mode):
        raise MountFailed(f"{where} is not a directory")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise MountFailed("/dev/fuse is not there or not accessible: is the kernel module fuse loaded?")
    return where


async def _attach(volume: Volume, options: MountOptions, signals: object) -> int | None:
    """The inode to mount, once a replica has taken the session; None when a signal came first."""
    root: int | None = None

    async def attach(scope: trio.CancelScope) -> None:
        nonlocal root
        await volume.service.wait_attached()
        attr = await volume.resolve(options.subdir)
        if not attr.is_directory:
            raise MountFailed(f"/{options.subdir} is not a directory of the file system")
        root = attr.ino
        scope.cancel()

    failures: list[MountFailed] = []
    with trio.move_on_after(limits.MOUNT_TIMEOUT_S) as limit:
        async with trio.open_nursery() as nursery:

            async def guarded() -> None:
                try:
                    await attach(nursery.cancel_scope)
                except MountFailed as exc:
                    failures.append(exc)
                except FileSystemError as exc:
                    reason = os.strerror(errno_of(exc))
                    failures.append(MountFailed(f"/{options.subdir} of the file system: {reason}"))
                nursery.cancel_scope.cancel()

            nursery.start_soon(guarded)
            async for number in signals:  # type: ignore[attr-defined]
                log.info("%s before anything was mounted", signal.Signals(number).name)
                nursery.cancel_scope.cancel()
    if failures:
        raise failures[0]
    if limit.cancelled_caught:
        raise MountFailed(f"no metadata replica answers (tried for {limits.MOUNT_TIMEOUT_S:g} s)")
    return root


def _mount(
    operations: LockstepOperations, where: str, cluster: str, options: MountOptions, policy: CachePolicy
) -> None:
    kernel = set(options.kernel) | {f"fsname=lockstep:{_plain(cluster)}", "subtype=lockstep"}
    if policy.default_permissions or "dev" in options.kernel:
        # The kernel opens devices (FIFOs and sockets too) without asking us. Where it lets devices be devices,
        # it has to check.
        kernel.add("default_permissions")
    # A kernel that checks would else go by the modes of what has an access control list.
    operations.enable_acl = "default_permissions" in kernel
    try:
        pyfuse3.init(operations, where, kernel)
    except RuntimeError as exc:
        raise MountFailed(f"{where}: the kernel refused the mount ({exc}); see the lines above") from exc


def _plain(text: str) -> str:
    """*text* as part of a mount option: a comma would end it, a backslash escape it."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "_" for c in text)


async def _serve(
    volume: Volume, operations: LockstepOperations, where: str, signals: object, ready: Callable[[], None]
) -> None:
    """Answer the kernel until the mount is gone, or a signal has made it go."""
    unmounted = False
    try:
        async with trio.open_nursery() as nursery:

            async def answer(task_status: trio.TaskStatus[trio.lowlevel.Task]) -> None:
                nonlocal unmounted
                task_status.started(trio.lowlevel.current_task())
                kernel_turn.install(operations.running)
                await pyfuse3.main(limits.FUSE_TASKS_IDLE, limits.FUSE_TASKS_MAX)
                unmounted = True
                log.info("%s was unmounted", where)
                nursery.cancel_scope.cancel()

            async def announce() -> None:
                await operations.initialised.wait()
                # Asked through the kernel: the answer proves that the mount serves.
                root = await trio.to_thread.run_sync(os.stat, where, abandon_on_cancel=True)
                _read_far_ahead(root.st_dev)
                log.info("mounted at %s", where)
                ready()

            main_task = await nursery.start(answer)
            nursery.start_soon(announce)
            nursery.start_soon(operations.watch)
            nursery.start_soon(_end_with_connection, main_task, operations, nursery.cancel_scope)
            async for number in signals:  # type: ignore[attr-defined]
                log.info("%s: unmounting %s", signal.Signals(number).name, where)
                await volume.flush_all()
                # Tried while we still serve: unmounting may ask us things, and an idle mount ends by itself then.
                if not await trio.to_thread.run_sync(_unmount, where, abandon_on_cancel=True):
                    log.warning("%s is busy: detached, its open files give errors from now on", where)
                    nursery.cancel_scope.cancel()
                break
    finally:
        # Also unmounts when it is still mounted (a failure of ours): nobody finds a dead mount afterwards.
        pyfuse3.close(unmount=not unmounted)


def _read_far_ahead(device: int, bdi: Path = BDI) -> None:
    """Have the kernel read large files in pieces of a megabyte, several at a time.

    Its default for FUSE is 128 KiB, which a file system may only lower in its answer to INIT; the superuser may raise
    it afterwards. A mount of anyone else reads on with the default.
    """
    knob = bdi / f"{os.major(device)}:{os.minor(device)}" / "read_ahead_kb"
    try:
        knob.write_text(f"{limits.KERNEL_READ_AHEAD >> 10}\n")
    except OSError as exc:
        log.info("%s stays as it is, large files are read more slowly: %s", knob, exc.strerror)


async def _end_with_connection(
    main_task: trio.lowlevel.Task, operations: LockstepOperations, scope: trio.CancelScope
) -> None:
    """End the mount when the kernel has ended it while operations of it still wait for servers that are gone.

    pyfuse3's main returns when all its workers have; each worker is one task, and one at least waits for the
    kernel's next request unless the connection is over.  So when there are as many workers as operations in work,
    nobody reads: it is over, and what waits is waited for by nobody.
    """
    while True:
        await trio.sleep(limits.KILL_CHECK_S)
        workers = [task for nursery in main_task.child_nurseries for task in nursery.child_tasks]
        while len(workers) == 1 and workers[0].child_nurseries:  # wrappers of pyfuse3 around its own nursery
            workers = [task for nursery in workers[0].child_nurseries for task in nursery.child_tasks]
        busy = len(operations.running)
        if workers and busy and len(workers) <= busy < limits.FUSE_TASKS_MAX:
            log.warning("unmounted with %d operations waiting: they are given up", busy)
            scope.cancel()
            return


def _unmount(where: str) -> bool:
    """Unmount *where*; detached (False) when it is busy. Blocking. An error is logged; the process ends anyhow."""
    if os.geteuid() != 0:
        done = subprocess.run(["fusermount3", "-u", where], capture_output=True, check=False)
        if done.returncode == 0:
            return True
        log.info("fusermount3: %s", done.stderr.decode(errors="replace").strip())
        subprocess.run(["fusermount3", "-uz", where], capture_output=True, check=False)
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    path = os.fsencode(where)
    if libc.umount2(path, 0) == 0:
        return True
    code = ctypes.get_errno()
    if code == errno.EINVAL:
        return True  # unmounted by somebody else meanwhile
    log.info("umount %s: %s", where, os.strerror(code))
    libc.umount2(path, MNT_DETACH)
    return False


def main(
    config: ClusterConfig,
    mountpoint: str | os.PathLike[str],
    options: Sequence[str] = (),
    prefer_replica: int | None = None,
    ready: Callable[[], None] = lambda: None,
) -> int:
    """Mount in the foreground; the exit code: 0 unmounted again, 1 not mounted (the reason is logged)."""
    try:
        parsed = parse(options)
        if parsed.log_file is not None:
            _log_to(parsed.log_file)
        trio.run(_main, config, mountpoint, parsed, prefer_replica, ready)
    except (MountFailed, OptionError) as exc:
        log.error("not mounted: %s", exc)
        return 1
    return 0


async def _main(
    config: ClusterConfig,
    mountpoint: str | os.PathLike[str],
    options: MountOptions,
    prefer_replica: int | None,
    ready: Callable[[], None],
) -> None:
    await mount(config, mountpoint, options=options, prefer_replica=prefer_replica, ready=ready)


def _log_to(path: str) -> None:
    """Log to the file *path* as well. Raises :class:`MountFailed`."""
    try:
        handler = logging.FileHandler(path)
    except OSError as exc:
        raise MountFailed(f"log file {path}: {exc.strerror}") from exc
    root = logging.getLogger()
    handler.setFormatter(root.handlers[0].formatter if root.handlers else None)
    root.addHandler(handler)


def background(
    config: ClusterConfig,
    mountpoint: str | os.PathLike[str],
    options: Sequence[str] = (),
    prefer_replica: int | None = None,
) -> int:
    """Mount in a process of its own; returns its exit code's meaning when it serves (0) or has failed (1).

    Call it before any trio, thread or LMDB environment exists in this process: it forks.  The mount process is no
    child of ours, has no terminal, and works in ``/``.
    """
    mountpoint = Path(mountpoint).absolute()
    read_end, write_end = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        code = 1
        # Whatever happens in the children, they never return into the caller's program.
        try:
            os.close(read_end)
            os.setsid()
            if os.fork() == 0:
                code = _run_detached(config, mountpoint, options, prefer_replica, write_end)
            else:
                code = 0
        finally:
            os._exit(code)
    os.close(write_end)
    os.waitpid(child, 0)
    with open(read_end, "rb") as said:
        return 0 if said.read(1) == b"+" else 1  # nothing but the end: it failed, the reason is in its log


def _run_detached(
    config: ClusterConfig, mountpoint: Path, options: Sequence[str], prefer_replica: int | None, write_end: int
) -> int:
    os.chdir("/")  # a mount must not keep the directory busy that somebody happened to be in
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)

    def ready() -> None:
        os.write(write_end, b"+")
        os.close(write_end)
        os.dup2(null, 1)
        os.dup2(null, 2)  # from here on the log file has it all

    try:
        return main(config, mountpoint, options, prefer_replica, ready)
    finally:
        with contextlib.suppress(OSError):  # closed when it was ready
            os.close(write_end)

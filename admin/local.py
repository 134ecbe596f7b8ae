"""A cluster of real daemons on this host's loopback: made, started, hurt and stopped.

`lockstep up` and `down` are thin over this, and so are the demonstration, the system tests and the benchmarks.
A local cluster is one directory::

    lockstep.toml       the configuration, with the ports that were free when it was made
    data/mds-1 ...      what the daemons keep
    log/mds-1.log ...   what they said
    run/mds-1.pid ...   who they are (admin.processes), and run/lock against two commands at once
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal, NoReturn

import trio

import admin
from admin import ask, processes
from admin.processes import Identity
from admin.status import ClusterStatus, fetch_blocking
from daemon.config import CONFIG_NAME, ClusterConfig, Config, ConfigError, ReplicaConfig, TargetConfig, load, write
from wire.errors import FileSystemError

LOOPBACK: Final = "127.0.0.1"
REPLICAS_MAX: Final = 9
"""More replicas on one host show nothing that nine do not."""
TARGETS_MAX: Final = 64
PORTS_FROM: Final = 10_240
START_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 10.0
"""A daemon that has not ended so long after SIGTERM is killed; its log makes that as safe as any crash."""
LOG_TAIL_LINES: Final = 15

Kind = Literal["mds", "ossd"]
Command = Callable[[Kind, int, Path, str], Sequence[str]]
"""(kind, id, config, log level) -> argv of a daemon."""


class ClusterError(Exception):
    """The local cluster cannot do what was asked; the text says why, with the log's end where that helps."""


@dataclass(frozen=True, slots=True)
class Daemon:
    """One process of the cluster."""

    kind: Kind
    id: int
    address: str

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.id}"


def python_module(*args: str) -> list[str]:
    """argv that runs one of our modules with this very interpreter.

    -P: no module is taken from the working directory, where a ``client`` or ``wire`` may lie that is not ours.
    """
    return [sys.executable, "-P", "-m", *args]


def child_environment() -> dict[str, str]:
    """The environment of our own child processes: they import the tree this process runs from."""
    root = str(Path(admin.__file__).parents[1])
    paths = [root, *(p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p and p != root)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def daemon_command(kind: Kind, number: int, config: Path, log_level: str) -> list[str]:
    """argv of a daemon in the foreground."""
    return python_module("admin", kind, "--config", str(config), "--id", str(number), "--log-level", log_level)


def become_watchdog(config: Config, number: int, join: str | None, log_level: str) -> NoReturn:
    """Replace this process by the watchdog of replica *number*, which starts the replica."""
    which = ("--config", str(config.path), "--id", str(number), "--log-level", log_level)
    guarded = python_module("mds", *which, *(("--join", join) if join else ()))
    argv = python_module("daemon.watchdog", *which, "--cluster", config.cluster.id.hex(), "--", *guarded)
    os.execve(argv[0], argv, child_environment())


def witnesses_for(replicas: int, targets: int) -> int:
    """How many targets host a witness.

    With n-1 witnesses beside n replicas a majority of voters is left when only one replica is, and 2n-1 is odd:
    an even number of voters tolerates no more failures than one less. A single replica gets none: it could not
    serve with itself gone, and a witness would be one more thing that has to be up.
    """
    count = min(replicas - 1, targets)
    return count if (replicas + count) % 2 else max(0, count - 1)


def free_ports(count: int) -> list[int]:
    """Ports on loopback that nobody listens at, outside the range from which the kernel gives out ports itself.

    Inside that range any outgoing connection may occupy one of them while the cluster is down.
    """
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split())
    candidates = [*range(PORTS_FROM, max(PORTS_FROM, first)), *range(last + 1, 65536)] or list(range(1024, 65536))
    random.shuffle(candidates)
    found: list[int] = []
    with contextlib.ExitStack() as held:
        for port in candidates:
            if len(found) == count:
                return found
            sock = held.enter_context(socket.socket())
            with contextlib.suppress(OSError):  # taken: the next one
                sock.bind((LOOPBACK, port))
                found.append(port)
    if len(found) < count:
        raise ClusterError(f"no {count} free ports on {LOOPBACK}")
    return found


class LocalCluster:
    """The cluster in one directory. Every method blocks; none leaves a half-started daemon unrecorded."""

    def __init__(self, config: Config, command: Command = daemon_command, log_level: str = "info") -> None:
        self._take(config)
        self._command = command
        self._log_level = log_level

    def _take(self, config: Config) -> None:
        self.config = config
        self.directory = config.path.parent
        self.daemons: tuple[Daemon, ...] = (
            *(Daemon("mds", r.id, r.address) for r in config.replicas),
            *(Daemon("ossd", t.id, t.address) for t in config.targets),
        )

    @classmethod
    def create(
        cls,
        directory: Path,
        replicas: int = 3,
        targets: int = 3,
        command: Command = daemon_command,
        log_level: str = "info",
    ) -> LocalCluster:
        """A new cluster's directory and configuration; nothing is started."""
        if not 1 <= replicas <= REPLICAS_MAX or not 1 <= targets <= TARGETS_MAX:
            raise ClusterError(f"a local cluster has 1 to {REPLICAS_MAX} replicas and 1 to {TARGETS_MAX} targets")
        directory = directory.absolute()
        path = directory / CONFIG_NAME
        if path.exists():
            raise ClusterError(f"{directory} holds a cluster already")
        ports = iter(free_ports(replicas + targets))
        witnesses = witnesses_for(replicas, targets)
        config = Config(
            path=path,
            cluster=ClusterConfig(directory.name[:64] or "local", secrets.token_bytes(16)),
            replicas=tuple(
                ReplicaConfig(k, f"{LOOPBACK}:{next(ports)}", directory / f"data/mds-{k}")
                for k in range(1, replicas + 1)
            ),
            targets=tuple(
                TargetConfig(
                    k,
                    f"{LOOPBACK}:{next(ports)}",
                    directory / f"data/ossd-{k}",
                    replicas + k if k <= witnesses else None,
                )
                for k in range(1, targets + 1)
            ),
        )
        directory.mkdir(parents=True, exist_ok=True)
        write(config)
        return cls(config, command, log_level)

    @classmethod
    def open(cls, directory: Path, command: Command = daemon_command, log_level: str = "info") -> LocalCluster:
        """The cluster that was made in *directory*. Raises :class:`daemon.config.ConfigError`."""
        return cls(load(directory / CONFIG_NAME), command, log_level)

    # -- who runs

    def daemon(self, name: str) -> Daemon:
        """The daemon called *name* (``mds-1``, ``ossd-2``)."""
        for one in self.daemons:
            if one.name == name:
                return one
        raise ClusterError(f"there is no {name}, only {', '.join(d.name for d in self.daemons)}")

    @property
    def run_directory(self) -> Path:
        return self.directory / "run"

    def _pid_file(self, name: str) -> Path:
        return self.run_directory / f"{name}.pid"

    def log_file(self, name: str) -> Path:
        return self.directory / "log" / f"{name}.log"

    def identity(self, name: str) -> Identity | None:
        """The running process of daemon *name*, or None."""
        found = processes.read_pid_file(self._pid_file(name))
        return found[0] if found is not None and processes.running(found[0]) else None

    def running(self, name: str) -> bool:
        """True while the daemon's process exists (a paused one does)."""
        return self.identity(name) is not None

    def log_tail(self, name: str) -> str:
        """The end of the daemon's log, for an error message."""
        try:
            lines = self.log_file(name).read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return "(no log)"
        return "\n".join(f"  {line}" for line in lines[-LOG_TAIL_LINES:]) or "  (the log is empty)"

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Held by the commands that start and stop daemons. Raises :class:`ClusterError` when another has it."""
        self.run_directory.mkdir(parents=True, exist_ok=True)
        with (self.run_directory / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                raise ClusterError(f"another lockstep command is at work in {self.directory}") from exc
            yield

    # -- one daemon

    def start(self, name: str) -> bool:
        """Start the daemon if it does not run; whether it was started. Readiness: :meth:`wait_serving`."""
        daemon = self.daemon(name)
        if self.running(name):
            return False
        for directory in (self.run_directory, self.log_file(name).parent, self.directory / "data"):
            directory.mkdir(parents=True, exist_ok=True)
        argv = self._command(daemon.kind, daemon.id, self.config.path, self._log_level)
        with self.log_file(name).open("ab") as log:
            child = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # A session of its own: it outlives the terminal, and Ctrl-C there is not for it.
                start_new_session=True,
                cwd=self.directory,
                env=child_environment(),
            )
        who = processes.identify(child.pid)
        if who is None:
            raise ClusterError(f"{name} ended at once with code {child.wait()}:\n{self.log_tail(name)}")
        processes.write_pid_file(self._pid_file(name), who)
        # Popen's own bookkeeping ends here: the process is known by its identity from now on.
        child.returncode = 0
        return True

    def _here(self, name: str) -> Identity:
        self.daemon(name)
        who = self.identity(name)
        if who is None:
            raise ClusterError(f"{name} does not run")
        return who

    def stop(self, name: str, timeout_s: float = STOP_TIMEOUT_S) -> str:
        """SIGTERM (a replica leaves the view first), then SIGKILL after *timeout_s*: ``stopped``, ``killed`` or
        ``was not running``."""
        self.daemon(name)
        found = processes.read_pid_file(self._pid_file(name))
        how = "was not running" if found is None else processes.end(found[0], timeout_s)
        self._pid_file(name).unlink(missing_ok=True)
        return how

    def guarded(self, name: str) -> Identity | None:
        """The process that the watchdog of daemon *name* guards now; None where there is none (a target has none)."""
        who = self.identity(name)
        for child in processes.children_of(who.pid) if who is not None else ():
            if self._is_ours(child.pid):
                return child
        return None

    def kill(self, name: str) -> None:
        """kill -9 of the daemon, and of its watchdog before it: as when the host is gone. Nobody certifies it, and it
        stays dead until it is started."""
        who, guarded = self._here(name), self.guarded(name)
        processes.kill(who)
        if guarded is not None:
            processes.kill(guarded)
        self._pid_file(name).unlink(missing_ok=True)

    def crash(self, name: str) -> Identity:
        """kill -9 of a replica's own process; its watchdog certifies that and starts it again. Who it was."""
        self._here(name)
        guarded = self.guarded(name)
        if guarded is None:
            raise ClusterError(f"{name} has no watchdog, or it is about to start it")
        processes.kill(guarded)
        return guarded

    def _is_ours(self, pid: int) -> bool:
        argv = processes.argv_of(pid)
        return str(self.config.path) in argv and "--id" in argv

    def pause(self, name: str) -> None:
        """SIGSTOP of the daemon and its watchdog: as when the host hangs. The connections stay open."""
        who, guarded = self._here(name), self.guarded(name)
        for one in (who, guarded):
            if one is not None:
                processes.send(one, signal.SIGSTOP)

    def hang(self, name: str) -> Identity:
        """SIGSTOP of a replica's own process, which its watchdog will kill, certify and start again. Who it was."""
        guarded = self.guarded(name)
        if guarded is None:
            raise ClusterError(f"{name} has no watchdog, or does not run")
        processes.send(guarded, signal.SIGSTOP)
        return guarded

    def resume(self, name: str) -> None:
        """SIGCONT after :meth:`pause`."""
        who, guarded = self._here(name), self.guarded(name)
        for one in (guarded, who):  # the guarded first: its watchdog has no time to find it stopped
            if one is not None:
                processes.send(one, signal.SIGCONT)

    # -- which replicas there are

    def free_address(self) -> str:
        """For one more daemon."""
        return f"{LOOPBACK}:{free_ports(1)[0]}"

    def include_replica(self, number: int, address: str) -> None:
        """Write a section for replica *number*, which joins the others, into the configuration. Idempotent."""
        section = ReplicaConfig(number, address, self.directory / f"data/mds-{number}", joins=True)
        there = next((r for r in self.config.replicas if r.id == number), None)
        if there is not None and there.address == address:
            return
        others = tuple(r for r in self.config.replicas if r.id != number)
        self._write(tuple(sorted((*others, section), key=lambda r: r.id)))

    def drop_replica(self, number: int, delete: bool) -> str:
        """Stop replica *number*, which is removed from the cluster, and take it out of the configuration; its data goes
        if *delete* says so. How its process ended."""
        name = f"mds-{number}"
        if not any(r.id == number for r in self.config.replicas):
            return "was not here"
        how = self.stop(name)
        data = self.config.replica(number).data
        self._write(tuple(r for r in self.config.replicas if r.id != number))
        if delete and data.is_relative_to(self.directory):
            shutil.rmtree(data, ignore_errors=True)
        return how

    def _write(self, replicas: tuple[ReplicaConfig, ...]) -> None:
        config = replace(self.config, replicas=replicas)
        write(config)
        self._take(config)

    # -- all of them

    def start_all(self) -> list[str]:
        """Start what does not run; the names of what was started."""
        return [d.name for d in self.daemons if self.start(d.name)]

    def stop_all(self, timeout_s: float = STOP_TIMEOUT_S) -> dict[str, str]:
        """Stop everything; how each daemon ended.

        All get SIGTERM before any is waited for: together they take as long as the slowest.
        """
        ran = [d.name for d in self.daemons if self._ask_to_stop(d.name)]
        deadline = time.monotonic() + timeout_s
        ended = {d.name: self.stop(d.name, max(0.05, deadline - time.monotonic())) for d in self.daemons}
        # One that has ended between the two signals was stopped by the first.
        return {name: "stopped" if how == "was not running" and name in ran else how for name, how in ended.items()}

    def _ask_to_stop(self, name: str) -> bool:
        who = self.identity(name)
        # A replica that is to leave first would ask others that stop as well.
        number = signal.SIGINT if self.daemon(name).kind == "mds" else signal.SIGTERM
        if who is None or not processes.send(who, number):
            return False
        processes.send(who, signal.SIGCONT)  # a paused one would keep it pending
        return True

    def running_names(self) -> list[str]:
        return [d.name for d in self.daemons if self.running(d.name)]

    def status(self, timeout_s: float = ask.ASK_TIMEOUT_S) -> ClusterStatus:
        """Ask every daemon. Not from within a trio task."""
        return fetch_blocking(self.config, timeout_s)

    def wait(
        self, until: Callable[[ClusterStatus], bool], what: str, timeout_s: float, alive: Sequence[str] = ()
    ) -> ClusterStatus:
        """Ask again and again until *until* holds; the status for which it did.

        Raises :class:`ClusterError` after *timeout_s*, or as soon as one of the daemons *alive* has ended.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            status = self.status()
            if until(status):
                return status
            for name in alive:
                if not self.running(name):
                    raise ClusterError(f"{name} has ended; the end of {self.log_file(name)}:\n{self.log_tail(name)}")
            if time.monotonic() > deadline:
                problems = "; ".join(status.problems) or "nothing else is wrong"
                raise ClusterError(f"{what}: not within {timeout_s:g} s ({problems})")
            time.sleep(0.05)  # between two questions to the daemons, not for anything of ours

    def wait_serving(self, timeout_s: float = START_TIMEOUT_S) -> ClusterStatus:
        """Wait until every replica is active in one view of all and every target answers."""

        def whole(status: ClusterStatus) -> bool:
            return (
                all(r.serving for r in status.replicas)
                and len({r.view for r in status.replicas}) == 1
                and set(status.members) == {r.configured.id for r in status.replicas}
                and all(t.said is not None for t in status.targets)
            )

        return self.wait(whole, "the cluster does not serve", timeout_s, [d.name for d in self.daemons])

    def register_targets(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Enter every target, with its address and its disk's uuid, in the ordered storage map. Idempotent."""
        try:
            trio.run(ask.register_targets, self.config, timeout_s)
        except (ask.AskError, FileSystemError) as exc:
            raise ClusterError(str(exc)) from exc

    def up(self, timeout_s: float = START_TIMEOUT_S) -> list[str]:
        """Start what does not run, wait until the cluster serves, register its targets; what was started."""
        with self.lock():
            started = self.start_all()
            self.wait_serving(timeout_s)
            self.register_targets(timeout_s)
        return started

    def down(self, timeout_s: float = STOP_TIMEOUT_S) -> dict[str, str]:
        """Stop everything; how each daemon ended.

        Also what no pid file tells of: a command that was interrupted between starting a daemon and recording it, or a
        replica that was removed while its host was thought dead.
        """
        with self.lock():
            ended = self.stop_all(timeout_s)
            for who in processes.of_directory(self.directory):
                if self._is_ours(who.pid):
                    how = processes.end(who, timeout_s)
                    if how != "was not running":  # the child of one that was ended before it
                        ended[f"process {who.pid}"] = how
            return ended

    def remove(self) -> None:
        """Delete the directory of a stopped cluster with all its data."""
        if self.running_names():
            raise ClusterError(f"{', '.join(self.running_names())} still run in {self.directory}")
        shutil.rmtree(self.directory)


def find_config(spec: Path) -> Config:
    """The configuration that *spec* names: a file, or the directory of a local cluster. Raises ConfigError."""
    path = spec / CONFIG_NAME if spec.is_dir() else spec
    if not spec.exists():
        raise ConfigError(spec, "", "there is neither a configuration file nor a cluster's directory")
    return load(path)

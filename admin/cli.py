"""The `lockstep` command: arguments in, one call, an exit code and one line about what went wrong out."""

from __future__ import annotations

import json
import os
import sys
from importlib import metadata
from pathlib import Path
from typing import Final

import click
import trio
from rich.console import Console

from admin import mounts, state_commands, target_commands
from admin.ask import ASK_TIMEOUT_S, register_targets
from admin.local import REPLICAS_MAX, TARGETS_MAX, ClusterError, LocalCluster, become_watchdog, find_config
from admin.mounts import MountError
from admin.quotas import quota
from admin.replica_cli import replica
from admin.reporting import reported as _reported
from admin.status import fetch_blocking, show
from daemon import logs
from daemon.config import CONFIG_NAME

DEFAULT_DIRECTORY: Final = Path("lockstep-cluster")
"""In the working directory, so that a cluster's data lies where its user sees it and is not forgotten."""

_LOG_LEVEL = click.option(
    "--log-level",
    type=click.Choice(logs.LEVELS),
    default="info",
    show_default=True,
    help="Least severe records to log.",
)
_CONFIG = click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    required=True,
    help="The cluster's configuration file (or a local cluster's directory).",
)


def _version() -> str:
    try:
        return metadata.version("lockstepfs")
    except metadata.PackageNotFoundError:
        return "(not installed)"


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
Examples:
  lockstep demo                       see a replica die under a running copy
  lockstep up                         start a cluster in ./lockstep-cluster
  lockstep mount lockstep-cluster /mnt
  lockstep status
  lockstep umount /mnt
  lockstep down

Every command has its own --help.""",
)
@click.version_option(_version(), prog_name="lockstep")
def main() -> None:
    """LockstepFS: a parallel file system whose metadata service is replicated in lockstep.

    Any metadata replica may die; applications see a short pause, never an error.
    """


# --- local clusters -------------------------------------------------------------------------------


@main.command(
    short_help="Start a local cluster.",
    epilog="""\b
Examples:
  lockstep up                         3 replicas and 3 targets in ./lockstep-cluster
  lockstep up /srv/try --replicas 2   two replicas, with a witness as third voter
  lockstep up /srv/try                start again what does not run

\b
Exit codes:
  0  the cluster serves
  1  it could not be started; the reason is printed
  2  the configuration is not usable, or the arguments are not""",
)
@click.argument("directory", type=click.Path(path_type=Path), default=DEFAULT_DIRECTORY)
@click.option("--replicas", type=click.IntRange(1, REPLICAS_MAX), help="Metadata replicas of a new cluster (3).")
@click.option("--targets", type=click.IntRange(1, TARGETS_MAX), help="Storage targets of a new cluster (3).")
@_LOG_LEVEL
def up(directory: Path, replicas: int | None, targets: int | None, log_level: str) -> None:
    """Start a local cluster in DIRECTORY (default ./lockstep-cluster) and wait until it serves.

    All daemons run on this host and listen on loopback only. A new DIRECTORY gets a configuration,
    lockstep.toml, with ports that are free; it keeps them for later starts. Data, logs and process ids lie
    below DIRECTORY. In a DIRECTORY that holds a cluster already, what does not run is started.
    """
    with _reported():
        directory = directory.absolute()
        if (directory / CONFIG_NAME).exists():
            cluster = LocalCluster.open(directory, log_level=log_level)
            for what, asked, there in (
                ("replicas", replicas, len(cluster.config.replicas)),
                ("targets", targets, len(cluster.config.targets)),
            ):
                if asked is not None and asked != there:
                    raise ClusterError(f"the cluster in {directory} has {there} {what}, not {asked}")
        else:
            cluster = LocalCluster.create(directory, replicas or 3, targets or 3, log_level=log_level)
        started = cluster.up()
        show(cluster.status(), Console())
        print(f"started: {', '.join(started)}" if started else "everything ran already")
        print(f"configuration: {cluster.config.path}")


@main.command(
    short_help="Stop a local cluster.",
    epilog="""\b
Example:
  lockstep down /srv/try

\b
Exit codes:
  0  nothing of the cluster runs any more
  1  something could not be ended; the reason is printed
  2  there is no cluster in DIRECTORY""",
)
@click.argument("directory", type=click.Path(path_type=Path), default=DEFAULT_DIRECTORY)
@click.option("--delete", is_flag=True, help="Delete DIRECTORY with all data afterwards.")
def down(directory: Path, delete: bool) -> None:
    """Stop the local cluster in DIRECTORY (default ./lockstep-cluster); its data stays.

    Mounts of it that this user has made are unmounted first. Each daemon is asked to end and killed when it has not
    after 10 seconds; replicas do not leave the view first, as all stop together. Only processes that `lockstep up`
    started are ever touched, and a process id that belongs to another process by now is recognised.
    """
    with _reported():
        cluster = LocalCluster.open(directory.absolute())
        for one in mounts.mount_processes(cluster.config.path):
            mounts.end_mount(one)
            print(f"unmounted {one.mountpoint}")
        for name, how in cluster.down().items():
            print(f"{name}: {how}")
        if delete:
            cluster.remove()
            print(f"deleted {cluster.directory}")


# --- mounting -------------------------------------------------------------------------------------


@main.command(
    short_help="Mount a cluster's file system.",
    epilog="""\b
Examples:
  lockstep mount lockstep-cluster /mnt
  lockstep mount /etc/lockstep/lockstep.toml /mnt -o soft,timeo=600
  lockstep mount --foreground --replica 2 /etc/lockstep/lockstep.toml /mnt

\b
Exit codes:
  0  mounted (with --foreground: unmounted again)
  1  not mounted; the reason is printed
  2  the configuration is not usable, or the arguments are not""",
)
@click.argument("spec", type=click.Path(path_type=Path), metavar="DIR|CONFIG")
@click.argument("mountpoint", type=click.Path(path_type=Path))
@click.option("-o", "options", multiple=True, metavar="OPTIONS", help="Mount options, separated by commas; see below.")
@click.option("--replica", type=click.IntRange(1, 255), help="Connect to this metadata replica first.")
@click.option("--foreground", is_flag=True, help="Stay in the foreground and log to standard error (for containers).")
@click.option("--ready-fd", type=int, hidden=True, help="Descriptor that gets a byte when the mount answers.")
@click.option("--log-file", type=click.Path(path_type=Path), help="Where a mount in the background logs.")
@_LOG_LEVEL
def mount(
    spec: Path,
    mountpoint: Path,
    options: tuple[str, ...],
    replica: int | None,
    foreground: bool,
    ready_fd: int | None,
    log_file: Path | None,
    log_level: str,
) -> None:
    """Mount the file system of the cluster DIR|CONFIG at MOUNTPOINT.

    DIR is a local cluster's directory, CONFIG a configuration file. The command returns when the file system is
    mounted; the process that serves it goes on in the background.

    \b
    Options (-o), by the names NFS and FUSE users know:
      hard             wait as long as no replica answers (default)
      soft,timeo=N     give up with ETIMEDOUT after N tenths of a second
      subdir=PATH      mount this directory of the file system instead of its root
      actimeo=SECONDS  let the kernel keep names and attributes so long (also entry_timeout=,
                       attr_timeout=); other mounts' changes are then seen later (default 0)
      direct_io        no page cache for file contents
      dirsync, sync    a file is in place on the replicas' disks when it is made: slower where many are
                       (else a crash of this host may lose those of its last 20 ms that were not fsynced)
      ro, rw           read-only, read-write (default)
      allow_other      let other users than the mounting one in (needs user_allow_other in
                       /etc/fuse.conf unless root mounts)
      default_permissions  let the kernel check permissions as well: FIFOs and sockets are opened
                       without asking the file system (implied by dev; costs a request for
                       each step of a path)
      suid, dev, noexec, noatime, ...  as for any mount; nosuid and nodev are the default
    """
    with _reported():
        config = find_config(spec)
        if replica is not None:
            config.replica(replica)
        if not foreground:
            mounts.mount(config, mountpoint, options, replica, log_file, log_level)
            return
        reason = mounts.refusal(mountpoint)
        if reason is not None:
            raise MountError(reason)
    logs.setup("mount", log_level)
    from client.mount import main as run_mount

    def ready() -> None:
        if ready_fd is not None:
            os.write(ready_fd, b"+")
            os.close(ready_fd)

    sys.exit(run_mount(config, mounts.resolved(mountpoint), mounts.options_of(config, options), replica, ready))


@main.command(
    short_help="Unmount it.",
    epilog="""\b
Example:
  lockstep umount /mnt

\b
Exit codes:
  0  unmounted
  1  not; the reason is printed""",
)
@click.argument("mountpoint", type=click.Path(path_type=Path))
def umount(mountpoint: Path) -> None:
    """Unmount the file system at MOUNTPOINT; works with every server gone, too.

    A mount that is busy is detached: it disappears from the tree at once and ends when its last file is closed.
    """
    with _reported():
        if mounts.unmount(mountpoint) == "detached":
            print(f"{mountpoint} is busy: detached, it ends when its last open file is closed")


# --- status ---------------------------------------------------------------------------------------


@main.command(
    short_help="Show a cluster's health.",
    epilog="""\b
Examples:
  lockstep status
  lockstep status /etc/lockstep/lockstep.toml --json

\b
Exit codes:
  0  healthy: every replica is a member of one view, every target answers, equal digests at an equal index
  1  degraded: it serves, but something is missing or differs; each problem is listed
  2  unreachable: no replica serves, or the configuration is not usable
  3  replicas' states differ and none has a majority: nothing is served until you decide (lockstep replica resync)""",
)
@click.argument("spec", type=click.Path(path_type=Path), metavar="[DIR|CONFIG]", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0.1, 60),
    default=ASK_TIMEOUT_S,
    show_default=True,
    help="Seconds to wait for a daemon's answer; all are asked at once.",
)
def status(spec: Path | None, as_json: bool, timeout_s: float) -> None:
    """Show what the daemons of the cluster DIR|CONFIG (default ./lockstep-cluster) say about themselves.

    The view (generation.epoch), its members and voters; each replica's state, index (batches applied) and
    digest (a checksum over everything applied, to be compared at an equal index); each target's space.
    """
    with _reported():
        found = fetch_blocking(find_config(spec or DEFAULT_DIRECTORY), timeout_s)
        if as_json:
            print(json.dumps(found.to_json()))
        else:
            show(found, Console())
    sys.exit(int(found.health))


@main.command(
    short_help="Enter targets in the storage map.",
    epilog="""\b
Example:
  lockstep register /etc/lockstep/lockstep.toml

\b
Exit codes:
  0  every target of the configuration is in the storage map
  1  not; the reason is printed
  2  the configuration is not usable""",
)
@click.argument("spec", type=click.Path(path_type=Path), metavar="DIR|CONFIG")
@click.option("--timeout", "timeout_s", type=click.FloatRange(1, 3600), default=60.0, help="Seconds to try (60).")
def register(spec: Path, timeout_s: float) -> None:
    """Enter the configuration's storage targets in the file system's storage map.

    Needed once after the first start of a cluster that was set up by hand, and again when a target was added or has
    another address; `lockstep up` does it by itself. All targets and a majority of the voters must run. Doing it
    twice changes nothing.
    """
    with _reported():
        config = find_config(spec)
        trio.run(register_targets, config, timeout_s)
        print(f"registered: {', '.join(f'target {t.id} at {t.address}' for t in config.targets) or 'no targets'}")


for _command in (*target_commands.COMMANDS, *state_commands.COMMANDS):
    main.add_command(_command)
main.add_command(replica)
main.add_command(quota)


# --- daemons --------------------------------------------------------------------------------------

_DAEMON_EPILOG = """\b
Exit codes:
  0  stopped by SIGTERM or SIGINT
  1  failed; the reason is logged
  2  the configuration is not usable"""


@main.command(
    short_help="Run a metadata replica.",
    epilog="""\b
Signals, to the watchdog (the process that this command becomes):
  SIGTERM  planned stop: the replica has itself left out of the view, sends its clients elsewhere,
           writes its state and ends; nobody waits for it
  SIGINT   stop at once, without leaving: for a whole cluster that is stopped together
  SIGKILL  takes the replica with it; as nobody certifies that, the others wait out what they
           promised it (a third of a second)

\b
Exit codes:
  0  stopped by a signal, or by `lockstep replica leave`
  1  failed before it ever ran; the reason is logged (later failures are followed by another start)
  2  the configuration is not usable
  3  its disk or what is on it cannot be vouched for; the log says what to do
  4  the replica was removed from the cluster""",
)
@_CONFIG
@click.option("--id", "number", type=click.IntRange(1, 255), required=True, help="Which [[replica]] this is.")
@click.option(
    "--join",
    metavar="HOST:PORT",
    help="A replica of the cluster that this one joins when it is new; needed where the configuration does not name "
    "the others.",
)
@click.option("--no-watchdog", is_flag=True, help="Run the replica itself in the foreground, for a debugger.")
@_LOG_LEVEL
def mds(config_path: Path, number: int, join: str | None, no_watchdog: bool, log_level: str) -> None:
    """Run a metadata replica in the foreground; it logs to standard error.

    The replica runs under a small watchdog process, which is the one that this command becomes. The watchdog starts
    the replica again when it dies, kills it when it hangs or is stopped (SIGSTOP), and tells the other replicas when
    it is dead: they go on at once then, without waiting for what they promised it.

    A replica whose section in the configuration says `joins = true`, or that is given --join, is no part of the
    cluster's first view: when it is new it waits until `lockstep replica add` has made it part of the cluster, takes
    the state from the others, and becomes a member and a voter.
    """
    with _reported():
        config = find_config(config_path)
        config.replica(number)
    if not no_watchdog:
        become_watchdog(config, number, join, log_level)
    logs.setup(f"mds-{number}", log_level)
    from mds.serve import main as serve

    sys.exit(serve(config, number, None, join))


@main.command(short_help="Run a storage target.", epilog=_DAEMON_EPILOG)
@_CONFIG
@click.option("--id", "number", type=click.IntRange(1, 65535), required=True, help="Which [[target]] this is.")
@_LOG_LEVEL
def ossd(config_path: Path, number: int, log_level: str) -> None:
    """Run a storage target, and the witness it hosts if any, in the foreground; it logs to standard error."""
    with _reported():
        config = find_config(config_path)
        config.target(number)
    logs.setup(f"ossd-{number}", log_level)
    from ossd.serve import main as serve

    sys.exit(serve(config, number))


# --- demonstration --------------------------------------------------------------------------------


@main.command(
    short_help="See a replica die under a running copy.",
    epilog="""\b
The last line on standard output is one JSON object:
  files             regular files and symbolic links copied
  bytes             bytes in them
  mismatches        things that differ when read back through the other mount: contents, mode,
                    modification time, link target; missing or superfluous names
  errors            system calls on the mounts that failed, and steps that did
  killed_replica    number of the replica that was killed
  longest_stall_ms  longest time between two completed system calls of the copy (mkdir, open, each
                    write of up to 1 MiB, fchmod, close, utime, symlink), whatever happened between them
  replicas_equal    all replicas ended at one index with one digest
  rejoined          the killed replica became a member of the view again

\b
Exit codes:
  0    no mismatch, no error, replicas equal, replica rejoined
  1    otherwise
  130, 143  interrupted; everything is cleared all the same""",
)
@click.option("--json", "json_only", is_flag=True, help="Print the last line only.")
@click.option("--logs", "keep_logs", type=click.Path(path_type=Path), help="Keep all logs in this directory.")
def demo(json_only: bool, keep_logs: Path | None) -> None:
    """See a metadata replica die under a running copy, and nothing happen.

    A cluster of three replicas and three targets starts in a temporary directory and is mounted twice, through
    different replicas. The standard library of the running Python is copied in through mount one; in the middle
    the replica that mount one is connected to is killed with -9. Everything is read back through mount two and
    compared, the dead replica is started again and must catch up. At the end everything is stopped and deleted.
    """
    from admin import demo as demonstration

    with _reported():
        reason = mounts.host_refusal()
        if reason is not None:
            raise MountError(reason)
        sys.exit(demonstration.main(json_only, keep_logs))

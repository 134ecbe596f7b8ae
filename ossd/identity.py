"""Whose disk this is: the format file, the lock on the data directory, and the count of lossy starts.

A target's data directory::

    format     identity, written last when the directory is made, never changed afterwards; flock()ed while served
    starts     how the last start ended: can unsynced writes have been lost since?
    objects/   000 .. 3ff: the objects (ossd.store)
    ledgers/   000 .. 3ff: their stamps and checksums (ossd.ledger)
    witness/   state of the witness hosted here, if any (vsync.voter)

*Incarnation*: an ObjectWrite is answered when the data is in the page cache.  A crash of the daemon loses none of
it, a crash of the machine does, and then a client's later ObjectSync would "succeed" although its data is gone.
So the incarnation, told to the keeper in ``Welcome.incarnation``, moves on at each start that may come after
such a loss; it is entered in the ordered state, from which clients with unsynced writes know when they must report them
lost (mds.namespace.chains.loses, client.acks; NFS calls this the write verifier).
It stays the same after a clean stop, which has synced
everything, and after an unclean one under the same running kernel (same boot id), whose page cache still holds
everything; but not when the disk has failed meanwhile (:mod:`ossd.losses`).
"""

from __future__ import annotations

import errno
import fcntl
import os
import tomllib
import uuid as uuids
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

FORMAT_VERSION: Final = 2
"""2: objects with ledgers beside them (checksums per block, stamps), truncation number in an extended attribute.
1: without ledgers; not served any more, because nothing tells which of its copies are equal.

Another way of keeping objects gets the next number; a daemon serves the versions it knows.
"""
FORMATS_KNOWN: Final = frozenset({FORMAT_VERSION})

FORMAT_NAME: Final = "format"
STARTS_NAME: Final = "starts"
OBJECTS_NAME: Final = "objects"
LEDGERS_NAME: Final = "ledgers"
FANOUT: Final = 1024
"""Directories below objects/: with 100 million objects each holds 100,000, well within what ext4 and XFS index."""

_FILE_MAX: Final = 64 << 10
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class StoreRefused(Exception):
    """The data directory cannot be served; the text names the file, what is wrong and what to do."""

    def __init__(self, path: Path, what: str, advice: str) -> None:
        super().__init__(f"{path}: {what}; {advice}")
        self.path = path


@dataclass(frozen=True, slots=True)
class Identity:
    """What the format file says."""

    version: int
    cluster: bytes
    target: int
    uuid: bytes


def fanout_names() -> list[str]:
    return [f"{k:03x}" for k in range(FANOUT)]


def sync_directory(path: Path) -> None:
    """Make the entries of directory *path* durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_durably(path: Path, text: str) -> None:
    """Replace *path* by *text*, whole or not at all, durable on return."""
    new = path.with_name(path.name + ".new")
    with new.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.rename(path)
    sync_directory(path.parent)


def format_directory(path: Path, cluster: bytes, target: int) -> Identity:
    """Make *path* (missing or empty) the data directory of *target*. Raises :class:`StoreRefused`, OSError.

    The format file comes last: a directory with one is complete.
    """
    path.mkdir(parents=True, exist_ok=True)
    strangers = sorted(set(os.listdir(path)) - {OBJECTS_NAME, LEDGERS_NAME, "lost+found", FORMAT_NAME + ".new"})
    if strangers:
        raise StoreRefused(
            path,
            f"holds {strangers[0]!r} but no file {FORMAT_NAME!r}, so it is not a target's data directory",
            "give the target an empty directory, or mount the disk that belongs here",
        )
    if any((path / OBJECTS_NAME / name).is_dir() and os.listdir(path / OBJECTS_NAME / name) for name in fanout_names()):
        raise StoreRefused(
            path,
            f"holds objects but no file {FORMAT_NAME!r}",
            f"restore that file (uuid, cluster, target number) from a backup; without it nobody knows whose these "
            f"objects are. To give the disk up, empty {path}",
        )
    for name in fanout_names():
        for tree in (OBJECTS_NAME, LEDGERS_NAME):
            (path / tree / name).mkdir(parents=True, exist_ok=True)
    sync_directory(path / OBJECTS_NAME)
    sync_directory(path / LEDGERS_NAME)
    sync_directory(path)
    sync_directory(path.parent)
    made = Identity(FORMAT_VERSION, cluster, target, uuids.uuid4().bytes)
    write_durably(
        path / FORMAT_NAME,
        "# Identity of a LockstepFS storage target's disk. Do not change it, and do not copy it to another disk.\n"
        f"format = {made.version}\n"
        f'cluster = "{cluster.hex()}"\n'
        f"target = {target}\n"
        f'uuid = "{made.uuid.hex()}"\n',
    )
    return made


def _table(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        text = file.read(_FILE_MAX)
    return tomllib.loads(text.decode("utf-8"))


def read_identity(path: Path, cluster: bytes, target: int) -> Identity:
    """The identity of data directory *path*, which must be *target* of *cluster*.

    Raises :class:`StoreRefused` when it is not, FileNotFoundError when there is no format file.
    """
    where = path / FORMAT_NAME
    mend = "restore the file from a backup, or empty the directory to begin with an empty target"
    try:
        table = _table(where)
        version = table["format"]
        if version not in FORMATS_KNOWN:
            raise StoreRefused(
                where,
                f"format {version!r} is not known here (known: {', '.join(map(str, sorted(FORMATS_KNOWN)))})",
                "run the release of LockstepFS that this disk was last served by, or a later one",
            )
        found = Identity(version, bytes.fromhex(table["cluster"]), table["target"], bytes.fromhex(table["uuid"]))
    except FileNotFoundError:
        raise
    except OSError as exc:
        raise StoreRefused(where, f"cannot be read: {exc.strerror}", "check the disk and the permissions") from exc
    except (ValueError, KeyError, TypeError) as exc:  # not UTF-8, not TOML, a key missing, a field of another type
        raise StoreRefused(where, f"is damaged ({type(exc).__name__}: {exc})", mend) from exc
    if len(found.cluster) != 16 or len(found.uuid) != 16 or type(found.target) is not int:
        raise StoreRefused(where, "is damaged (a field has the wrong size)", mend)
    if found.cluster != cluster:
        raise StoreRefused(
            where,
            f"the disk belongs to cluster {found.cluster.hex()}, the configuration says {cluster.hex()}",
            "correct the data directory or the cluster's id in the configuration",
        )
    if found.target != target:
        raise StoreRefused(
            where,
            f"the disk is target {found.target}, and was to be served as target {target}",
            "correct the data directories in the configuration: two may be swapped, or a disk mounted elsewhere",
        )
    return found


def lock_directory(path: Path) -> int:
    """Keep any other process from serving *path*; the descriptor returned holds the lock until it is closed."""
    fd = os.open(path / FORMAT_NAME, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        os.close(fd)
        raise StoreRefused(
            path / FORMAT_NAME, "is locked: another process serves this directory", "stop that process first"
        ) from exc
    except BaseException:
        os.close(fd)
        raise
    return fd


def refuse_without_attributes(path: Path) -> None:
    try:
        os.setxattr(path / OBJECTS_NAME, "user.lockstep.probe", b"1")
    except OSError as exc:
        if exc.errno in (errno.ENOTSUP, errno.EPERM, errno.ENOSYS):
            raise StoreRefused(
                path / OBJECTS_NAME,
                "the file system keeps no extended attributes of users",
                "use ext4, XFS, Btrfs or ZFS (xattr=sa), mounted without nouser_xattr",
            ) from exc
        raise


# --- incarnation ----------------------------------------------------------------------------------


def boot_id() -> str:
    """What tells this run of the kernel from any other; "" where the kernel does not say."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _write_starts(path: Path, incarnation: int, boot: str, clean: bool, lost: bool) -> None:
    write_durably(
        path / STARTS_NAME,
        "# How this target was last started and stopped (see Welcome.incarnation). Written by the daemon.\n"
        f"incarnation = {incarnation}\n"
        f'boot = "{boot}"\n'
        f"clean = {'true' if clean else 'false'}\n"
        f"lost = {'true' if lost else 'false'}\n",
    )


def begin_incarnation(path: Path, boot: str, lost_before: bool = False) -> int:
    """Record a start under kernel run *boot*; the incarnation it belongs to. Durable on return.

    *lost_before*: writes from before are known to be lost, whatever the file says of how the last run ended.
    """
    try:
        table = _table(path / STARTS_NAME)
        last, before = int(table["incarnation"]), str(table["boot"])
        clean, lost = table["clean"] is True, table["lost"] is True
        kept = not lost and not lost_before and (clean or (before == boot and boot != ""))
    except FileNotFoundError:
        last, kept = 0, False
    except (ValueError, KeyError, TypeError) as exc:
        raise StoreRefused(
            path / STARTS_NAME,
            f"is damaged ({type(exc).__name__}: {exc})",
            "remove it when no client that uses this target is mounted",
        ) from exc
    incarnation = last if kept else last + 1
    _write_starts(path, incarnation, boot, clean=False, lost=False)
    return incarnation


def note_loss(path: Path, incarnation: int, boot: str) -> None:
    """Record, while the target is served, that writes were lost. Durable on return."""
    _write_starts(path, incarnation, boot, clean=False, lost=True)


def end_incarnation(path: Path, incarnation: int, boot: str, lost: bool) -> None:
    """Record a stop: everything is synced, or (*lost*) some writes were lost and not everybody was told."""
    _write_starts(path, incarnation, boot, clean=not lost, lost=lost)

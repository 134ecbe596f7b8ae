"""A directory in which checks are carried out, and what comes out of each of their calls.

A check calls a :class:`Place` as it would the kernel. The place notes every call with its outcome; the same check in
two file systems must leave the same notes. Who acts is changed call by call, by the effective ids of this process.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

AT_FDCWD: Final = -100
AT_SYMLINK_NOFOLLOW: Final = 0x100
AT_SYMLINK_FOLLOW: Final = 0x400
UTIME_NOW: Final = (1 << 30) - 1
UTIME_OMIT: Final = (1 << 30) - 2
RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2
CLOCK_REALTIME_COARSE: Final = 5
ADDRESS_MAX: Final = 107
"""unix(7)."""

REGULAR, DIRECTORY, FIFO, BLOCK, CHAR, SOCKET, SYMLINK = "regular", "dir", "fifo", "block", "char", "socket", "symlink"
TYPES: Final = (REGULAR, DIRECTORY, FIFO, BLOCK, CHAR, SOCKET, SYMLINK)

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Who:
    """As whom a call is made. A mount knows the groups of a process for a moment by its uid and gid: so in one check a
    uid and gid always come with the same groups."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"uid {self.uid} gid {self.gid}" + (f" groups {self.groups}" if self.groups else "")


ROOT: Final = Who(0, 0)


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result


def renameat2(old: str | bytes, new: str | bytes, flags: int) -> None:
    _checked(_libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags))


def utimens(path: str | bytes, atime: tuple[int, int], mtime: tuple[int, int], follow: bool = True) -> None:
    """utimensat(2) with (seconds, nanoseconds)."""
    times = (ctypes.c_long * 4)(*atime, *mtime)
    _checked(_libc.utimensat(AT_FDCWD, os.fsencode(path), times, 0 if follow else AT_SYMLINK_NOFOLLOW))


def linkat(old: str | bytes, new: str | bytes, flags: int = 0) -> None:
    _checked(_libc.linkat(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags))


def open_(path: str | bytes, flags: int, mode: int = 0o666) -> None:
    os.close(os.open(path, flags | os.O_NONBLOCK, mode))


def bind(path: str | bytes) -> None:
    if len(os.fsencode(path)) > ADDRESS_MAX:
        raise OSError(errno.EINVAL, "no address of a socket is that long")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path)


def touch(path: str | bytes, mode: int = 0o644) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))


def write(path: str | bytes, data: bytes) -> int:
    """Into what is there, without truncating it."""
    fd = os.open(path, os.O_WRONLY)
    try:
        return os.write(fd, data)
    finally:
        os.close(fd)


def read(path: str | bytes) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.read(fd, 1 << 16)
    finally:
        os.close(fd)


def access(path: str | bytes, mask: int) -> bool:
    return os.access(path, mask, effective_ids=True)


def chdir(path: str | bytes) -> None:
    here = os.open(".", os.O_PATH)
    try:
        os.chdir(path)
        os.fchdir(here)
    finally:
        os.close(here)


def names(path: str | bytes) -> list[Any]:
    return sorted(os.listdir(path))


def execute(path: str) -> int:
    """execve(2): the exit code; its error is raised here."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.execv(path, [path])
        except OSError as exc:
            os.write(writer, bytes([exc.errno or 0]))
        finally:
            os._exit(127)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        failed = pipe.read()
    _, status = os.waitpid(pid, 0)
    if failed:
        raise OSError(failed[0], "")
    return os.waitstatus_to_exitcode(status)


def wait_for_clock(after_ns: int) -> None:
    """Until what changes gets a time later than *after_ns*: the clock of file systems ticks every few milliseconds."""
    while time.clock_gettime_ns(CLOCK_REALTIME_COARSE) <= after_ns:
        pass


class Place:
    """See the module. The current directory is that of the check, empty at first."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self._groups: dict[tuple[int, int], tuple[int, ...]] = {}

    def note(self, what: str, outcome: object) -> None:
        self.notes.append(f"{what} -> {outcome}")

    @contextmanager
    def acting(self, who: Who) -> Iterator[None]:
        if who == ROOT:
            yield
            return
        assert self._groups.setdefault((who.uid, who.gid), who.groups) == who.groups, "see Who"
        os.setgroups(who.groups)
        os.setegid(who.gid)
        os.seteuid(who.uid)
        try:
            yield
        finally:
            os.seteuid(0)
            os.setegid(0)
            os.setgroups([])

    def __call__(self, call: Callable[..., Any], *args: Any, by: Who = ROOT, as_: str = "") -> Any:
        """Make *call* as *by* and note its outcome; the result, or the name of the errno. *as_*: what to note of it."""
        with self.acting(by):
            outcome: Any
            try:
                outcome = call(*args)
            except OSError as exc:
                outcome = errno.errorcode[exc.errno or 0]
        shown = as_ or f"{call.__name__}({', '.join(_short(a) for a in args)})"
        self.note(f"{by}: {shown}", outcome)
        return outcome

    def must(self, call: Callable[..., Any], *args: Any, by: Who = ROOT) -> Any:
        """As preparation: an error ends the check."""
        with self.acting(by):
            return call(*args)

    def make(self, kind: str, name: str, mode: int | None = None, uid: int = 0, gid: int = 0) -> str:
        """Something of type *kind*; a symbolic link points nowhere."""
        if kind == REGULAR:
            touch(name)
        elif kind == DIRECTORY:
            os.mkdir(name)
        elif kind == FIFO:
            os.mkfifo(name, 0o644)
        elif kind == BLOCK:
            os.mknod(name, 0o644 | stat.S_IFBLK, os.makedev(1, 2))
        elif kind == CHAR:
            os.mknod(name, 0o644 | stat.S_IFCHR, os.makedev(1, 2))
        elif kind == SOCKET:
            bind(name)
        else:
            os.symlink("nowhere", name)
        if uid or gid:
            os.lchown(name, uid, gid)
        if mode is not None and kind != SYMLINK:
            os.chmod(name, mode)
        return name

    def stat(self, name: str, follow: bool = False) -> None:
        """Note the attributes. Of a directory's size every file system thinks differently."""
        self(_attributes, name, follow, as_=f"{'stat' if follow else 'lstat'} {_short(name)}")

    def tree(self, top: str = ".") -> None:
        """Note all there is below *top*, with names of the same inode as such."""
        first: dict[int, str] = {}
        found = []
        for above, dirs, files in sorted(os.walk(top)):
            for name in sorted(dirs + files):
                path = os.path.relpath(os.path.join(above, name), top)
                there = os.lstat(os.path.join(above, name))
                found.append(
                    f"{path}={first.setdefault(there.st_ino, path)}:{stat.filemode(there.st_mode)[0]}{there.st_nlink}"
                )
        self.note(f"tree {top}", " ".join(found))

    @contextmanager
    def moving(self, *paths: str, after: tuple[str, ...] = ()) -> Iterator[None]:
        """Note of *paths* (their names *after*, when they change) which of mtime and ctime move."""
        before = [os.lstat(path) for path in paths]
        wait_for_clock(max(found.st_ctime_ns for found in before))
        yield
        for path, old in zip(after or paths, before, strict=True):
            try:
                new = os.lstat(path)
            except OSError as exc:
                self.note(f"times of {path}", errno.errorcode[exc.errno or 0])
                continue
            moved = [n for n in ("mtime", "ctime") if getattr(new, f"st_{n}_ns") > getattr(old, f"st_{n}_ns")]
            back = [n for n in ("mtime", "ctime") if getattr(new, f"st_{n}_ns") < getattr(old, f"st_{n}_ns")]
            self.note(f"times of {path}", f"moved {moved} back {back}")


def _attributes(name: str, follow: bool) -> str:
    found = os.stat(name) if follow else os.lstat(name)
    text = f"{stat.filemode(found.st_mode)} nlink {found.st_nlink} owner {found.st_uid}:{found.st_gid}"
    if not stat.S_ISDIR(found.st_mode):
        text += f" size {found.st_size}"
    if stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode):
        text += f" device {os.major(found.st_rdev)},{os.minor(found.st_rdev)}"
    return text


def _short(value: Any) -> str:
    if isinstance(value, str | bytes) and len(value) > 60:
        return f"<{len(value)}: {value[:8]!r}...{value[-8:]!r}>"
    if isinstance(value, int) and value > 9:
        return oct(value)
    return repr(value)


Check = Callable[[Place], None]


def local_directory() -> Path:
    """Where the local file system is that says what is right."""
    return Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else Path(os.environ.get("TMPDIR", "/tmp"))

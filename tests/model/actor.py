"""One user, in a process of its own, who does what it is told: system calls in directories, by path or by handle.

``python -m tests.model.actor uid gid group,group`` reads calls from standard input and answers on standard output, one
line each, as Python literals. A call is ``(root, verb, arguments)``: the same verb with the same arguments is done
below the root of a mount and below the root of a local directory, so what a path means is decided here and nowhere
else. What an answer leaves out is what two file systems may differ in: inode numbers, times, sizes of directories.
"""

from __future__ import annotations

import ast
import ctypes
import errno
import os
import stat
import sys
from collections.abc import Callable
from typing import Any, Final

AT_FDCWD: Final = -100
AT_SYMLINK_NOFOLLOW: Final = 0x100
UTIME_NOW: Final = (1 << 30) - 1
UTIME_OMIT: Final = (1 << 30) - 2
LONG_AGO_NS: Final = 1_500_000_000 * 10**9
FAR_NS: Final = 4_000_000_000 * 10**9
_LONG: Final = {
    b"<255>": b"n" * 255,
    b"<256>": b"n" * 256,
    b"<255u>": "ü".encode() * 127 + b"x",
    b"<256u>": "ü".encode() * 128,
    b"<4081>": b"./" * 2040 + b".",
    b"<4121>": b"./" * 2060 + b".",
}

_libc = ctypes.CDLL(None, use_errno=True)

Time = int | str
"""Nanoseconds, "now" or "omit"."""


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_int64), ("tv_nsec", ctypes.c_int64))


def _timespec(time: Time) -> tuple[int, int]:
    if time == "now":
        return 0, UTIME_NOW
    if time == "omit":
        return 0, UTIME_OMIT
    assert isinstance(time, int)
    return divmod(time, 10**9)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def facts(s: os.stat_result) -> tuple[Any, ...]:
    """What two file systems must agree on."""
    special = stat.S_ISCHR(s.st_mode) or stat.S_ISBLK(s.st_mode)
    size = 0 if stat.S_ISDIR(s.st_mode) else s.st_size
    return oct(s.st_mode), s.st_nlink, s.st_uid, s.st_gid, size, s.st_rdev if special else 0


def given(time_ns: int) -> Time:
    """A time that was set to a value; a clock's value is only told to be one."""
    return time_ns if time_ns < LONG_AGO_NS or time_ns > FAR_NS else "clock"


def expanded(text: bytes) -> bytes:
    """``<255>`` and the like in a path are names (and paths) of so many bytes: calls stay readable."""
    for short, long in _LONG.items():
        text = text.replace(short, long)
    return text


def long(name: str) -> str:
    """The same for names of attributes."""
    return name.replace("<250>", "n" * 250).replace("<251>", "n" * 251)


class Calls:
    """The verbs. Handles are numbered by the caller, for each root apart."""

    def __init__(self) -> None:
        self.handles: dict[tuple[bytes, int], int] = {}
        self.root = b""

    def call(self, root: bytes, verb: str, args: tuple[Any, ...]) -> tuple[str, Any]:
        """("ok", result) or ("error", name of the errno)."""
        self.root = root
        method: Callable[..., Any] = getattr(self, verb)
        try:
            return "ok", method(*args)
        except OSError as exc:
            return "error", errno.errorcode[exc.errno or 0]

    def at(self, path: bytes) -> bytes:
        # An empty path stays one: POSIX has it be ENOENT.
        return self.root + b"/" + expanded(path) if path else b""

    def fd(self, slot: int) -> int:
        return self.handles[self.root, slot]

    # -- handles

    def open(self, path: bytes, flags: int, mode: int, slot: int) -> None:
        """Not waiting: a FIFO has nobody at its other end."""
        assert (self.root, slot) not in self.handles
        self.handles[self.root, slot] = os.open(self.at(path), flags | os.O_NONBLOCK | os.O_NOCTTY, mode)

    def close(self, slot: int) -> None:
        os.close(self.handles.pop((self.root, slot)))

    def close_all(self) -> None:
        """At the end, also when the two sides have come apart."""
        for root, slot in [key for key in self.handles if key[0] == self.root]:
            os.close(self.handles.pop((root, slot)))

    def flush(self, slot: int) -> None:
        """What a close does, without losing the handle."""
        os.close(os.dup(self.fd(slot)))

    def read(self, slot: int, size: int) -> bytes:
        return os.read(self.fd(slot), size)

    def write(self, slot: int, data: bytes) -> int:
        return os.write(self.fd(slot), data)

    def pread(self, slot: int, size: int, offset: int) -> bytes:
        return os.pread(self.fd(slot), size, offset)

    def pwrite(self, slot: int, data: bytes, offset: int) -> int:
        return os.pwrite(self.fd(slot), data, offset)

    def lseek(self, slot: int, offset: int, whence: int) -> int:
        fd = self.fd(slot)
        if (offset or whence != os.SEEK_SET) and stat.S_ISDIR(os.fstat(fd).st_mode):
            return 0  # a directory's offsets are its file system's own
        return os.lseek(fd, offset, whence)

    def ftruncate(self, slot: int, size: int) -> None:
        os.ftruncate(self.fd(slot), size)

    def fsync(self, slot: int) -> None:
        os.fsync(self.fd(slot))

    def fdatasync(self, slot: int) -> None:
        os.fdatasync(self.fd(slot))

    def fstat(self, slot: int) -> tuple[Any, ...]:
        return facts(os.fstat(self.fd(slot)))

    def fchmod(self, slot: int, mode: int) -> None:
        os.fchmod(self.fd(slot), mode)

    def fchown(self, slot: int, uid: int, gid: int) -> None:
        os.fchown(self.fd(slot), uid, gid)

    def futimens(self, slot: int, atime: Time, mtime: Time) -> None:
        times = (_Timespec * 2)(_timespec(atime), _timespec(mtime))
        _checked(_libc.futimens(self.fd(slot), times))

    def fsetxattr(self, slot: int, name: str, value: bytes, flags: int) -> None:
        os.setxattr(self.fd(slot), long(name), value, flags)

    def fgetxattr(self, slot: int, name: str) -> bytes:
        return os.getxattr(self.fd(slot), long(name))

    def flistdir(self, slot: int) -> list[bytes]:
        os.lseek(self.fd(slot), 0, os.SEEK_SET)
        return sorted(os.fsencode(name) for name in os.listdir(self.fd(slot)))

    def relink(self, slot: int, path: bytes) -> None:
        """linkat(2) of an open file: a file without a name does not get one again."""
        os.link(b"/proc/self/fd/%d" % self.fd(slot), self.at(path), follow_symlinks=True)

    # -- names

    def mkdir(self, path: bytes, mode: int) -> None:
        os.mkdir(self.at(path), mode)

    def rmdir(self, path: bytes) -> None:
        os.rmdir(self.at(path))

    def unlink(self, path: bytes) -> None:
        os.unlink(self.at(path))

    def mknod(self, path: bytes, mode: int, device: int) -> None:
        os.mknod(self.at(path), mode, device)

    def symlink(self, target: bytes, path: bytes) -> None:
        os.symlink(expanded(target), self.at(path))

    def readlink(self, path: bytes) -> bytes:
        return os.readlink(self.at(path))

    def link(self, old: bytes, new: bytes, follow: bool) -> None:
        os.link(self.at(old), self.at(new), follow_symlinks=follow)

    def rename(self, old: bytes, new: bytes, flags: int) -> None:
        _checked(_libc.renameat2(AT_FDCWD, self.at(old), AT_FDCWD, self.at(new), flags))

    def listdir(self, path: bytes) -> list[tuple[bytes, str]]:
        with os.scandir(self.at(path)) as scan:
            return sorted((entry.name, self._kind(entry)) for entry in scan)

    def _kind(self, entry: os.DirEntry[bytes]) -> str:
        if entry.is_symlink():
            return "link"
        if entry.is_dir(follow_symlinks=False):
            return "directory"
        return "file" if entry.is_file(follow_symlinks=False) else "special"

    # -- attributes

    def stat(self, path: bytes) -> tuple[Any, ...]:
        return facts(os.stat(self.at(path)))

    def lstat(self, path: bytes) -> tuple[Any, ...]:
        return facts(os.lstat(self.at(path)))

    def access(self, path: bytes, mode: int) -> bool:
        return os.access(self.at(path), mode)

    def chmod(self, path: bytes, mode: int) -> None:
        os.chmod(self.at(path), mode)

    def chown(self, path: bytes, uid: int, gid: int, follow: bool) -> None:
        os.chown(self.at(path), uid, gid, follow_symlinks=follow)

    def truncate(self, path: bytes, size: int) -> None:
        os.truncate(self.at(path), size)

    def utimens(self, path: bytes, atime: Time, mtime: Time, follow: bool) -> None:
        times = (_Timespec * 2)(_timespec(atime), _timespec(mtime))
        _checked(_libc.utimensat(AT_FDCWD, self.at(path), times, 0 if follow else AT_SYMLINK_NOFOLLOW))

    def setxattr(self, path: bytes, name: str, value: bytes, flags: int, follow: bool) -> None:
        os.setxattr(self.at(path), long(name), value, flags, follow_symlinks=follow)

    def getxattr(self, path: bytes, name: str, follow: bool) -> bytes:
        return os.getxattr(self.at(path), long(name), follow_symlinks=follow)

    def removexattr(self, path: bytes, name: str, follow: bool) -> None:
        os.removexattr(self.at(path), long(name), follow_symlinks=follow)

    def listxattr(self, path: bytes, follow: bool) -> list[str]:
        """Without what a security module of this host keeps there."""
        found = os.listxattr(self.at(path), follow_symlinks=follow)
        return sorted(name for name in found if not name.startswith("security."))

    def statvfs(self, path: bytes) -> tuple[Any, ...]:
        s = os.statvfs(self.at(path))
        whole = 0 <= s.f_bavail <= s.f_bfree <= s.f_blocks and 0 <= s.f_ffree <= s.f_files
        return whole, s.f_namemax, s.f_bsize > 0

    # -- the whole tree (root's)

    def tree(self) -> list[tuple[Any, ...]]:
        """(path, facts, names of the same inode by their first, (atime, mtime, ctime) ns, contents) of everything."""
        found: list[tuple[Any, ...]] = []
        first: dict[int, bytes] = {}

        def look(relative: bytes) -> None:
            path = os.path.join(self.root, relative) if relative else self.root
            s = os.lstat(path)
            contents: Any = None
            inside: list[bytes] = []
            if stat.S_ISREG(s.st_mode):
                contents = self._contents(path)
            elif stat.S_ISLNK(s.st_mode):
                contents = os.readlink(path)
            elif stat.S_ISDIR(s.st_mode):
                inside = sorted(os.listdir(path))
            xattrs: dict[str, bytes] = {}
            if stat.S_ISREG(s.st_mode) or stat.S_ISDIR(s.st_mode):
                names = [n for n in os.listxattr(path, follow_symlinks=False) if not n.startswith("security.")]
                xattrs = {n: os.getxattr(path, n, follow_symlinks=False) for n in sorted(names)}
            same = first.setdefault(s.st_ino, relative)
            times = (s.st_atime_ns, s.st_mtime_ns, s.st_ctime_ns)
            found.append((relative, facts(s), same, times, contents, xattrs))
            for name in inside:
                look(os.path.join(relative, name))

        look(b"")
        return found

    def _contents(self, path: bytes) -> bytes:
        fd = os.open(path, os.O_RDONLY | os.O_NOATIME)
        try:
            parts = []
            while part := os.read(fd, 1 << 20):
                parts.append(part)
            return b"".join(parts)
        finally:
            os.close(fd)

    def times(self, path: bytes) -> tuple[int, int, int]:
        s = os.lstat(self.at(path))
        return s.st_atime_ns, s.st_mtime_ns, s.st_ctime_ns


def main() -> int:
    uid, gid = int(sys.argv[1]), int(sys.argv[2])
    if os.geteuid() == 0:
        os.setgroups([int(group) for group in sys.argv[3].split(",") if group])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    os.umask(0)
    calls = Calls()
    for line in sys.stdin:
        answers = [calls.call(root, verb, args) for root, verb, args in ast.literal_eval(line)]
        print(repr(answers), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

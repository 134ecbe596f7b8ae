"""What the conformance suites for POSIX file systems (pjdfstest) look at beside :mod:`tests.fuse.test_namespace`: other
users and their groups, sticky directories, set-id bits, times, limits in bytes."""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuse.test_namespace import as_user, fails
from tests.live import Live

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root acts as others"),
]
ALICE, BOB = 1234, 1235
_number = itertools.count(1)
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2


@pytest.fixture
def open_to_all(cluster: Live) -> Iterator[Path]:
    """A directory of a mount that lets everybody in."""
    name = f"conformance-{next(_number)}"
    top = cluster.mount(name, 2, ("allow_other",))
    os.chmod(cluster.run.directory, 0o711)
    try:
        made = top / name
        made.mkdir()
        made.chmod(0o777)
        yield made
    finally:
        cluster.unmount(name)


def mode_of(path: str | Path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def utimens(path: Path, atime: tuple[int, int], mtime: tuple[int, int]) -> None:
    """utimensat(2) with (seconds, nanoseconds)."""
    libc = ctypes.CDLL(None, use_errno=True)
    times = (ctypes.c_long * 4)(*atime, *mtime)
    if libc.utimensat(-100, os.fsencode(path), times, 0):
        raise OSError(ctypes.get_errno(), "utimensat")


def test_supplementary_groups_count(open_to_all: Path) -> None:
    secret = open_to_all / "secret"
    secret.write_bytes(b"x")
    os.chown(secret, 0, 7777)
    secret.chmod(0o640)
    as_user(ALICE, open_to_all, lambda: fails(errno.EACCES, os.open, "secret", os.O_RDONLY))
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.chdir(open_to_all)
            os.setgroups([5, 7777])
            os.setresgid(ALICE, ALICE, ALICE)
            os.setresuid(ALICE, ALICE, ALICE)
            os.close(os.open("secret", os.O_RDONLY))
            fails(errno.EACCES, os.open, "secret", os.O_WRONLY)
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0


def test_a_sticky_directory(open_to_all: Path) -> None:
    place = open_to_all / "sticky"
    place.mkdir()
    place.chmod(0o1777)
    as_user(ALICE, place, lambda: (os.mkdir("d"), os.mknod("f", 0o666 | stat.S_IFREG)))

    def others() -> None:
        fails(errno.EPERM, os.unlink, "f")
        fails(errno.EPERM, os.rmdir, "d")
        fails(errno.EPERM, os.rename, "f", "g")
        os.mknod("mine", 0o600 | stat.S_IFREG)
        fails(errno.EPERM, os.rename, "mine", "f")
        os.unlink("mine")

    as_user(BOB, place, others)
    as_user(ALICE, place, lambda: (os.rename("f", "g"), os.unlink("g"), os.rmdir("d")))


def test_set_id_bits_go_with_a_write_and_a_change_of_owner(open_to_all: Path) -> None:
    program = open_to_all / "program"
    program.write_bytes(b"x")
    os.chown(program, ALICE, ALICE)
    program.chmod(0o6777)
    as_user(BOB, open_to_all, lambda: Path("program").write_bytes(b"y"))
    assert mode_of(program) == 0o777
    program.chmod(0o6777)
    as_user(ALICE, open_to_all, lambda: os.chown("program", -1, ALICE))
    assert mode_of(program) == 0o777
    program.chmod(0o6777)
    as_user(BOB, open_to_all, lambda: os.truncate("program", 0))
    assert mode_of(program) == 0o777


def test_times_are_kept_to_the_nanosecond_and_left_out_where_asked(open_to_all: Path) -> None:
    file = open_to_all / "f"
    file.write_bytes(b"")
    utimens(file, (5, 123456789), (7, 987654321))
    found = os.stat(file)
    assert (found.st_atime_ns, found.st_mtime_ns) == (5_123456789, 7_987654321)
    before = time.time_ns()
    utimens(file, (0, UTIME_OMIT), (0, UTIME_NOW))
    found = os.stat(file)
    assert found.st_atime_ns == 5_123456789
    assert abs(found.st_mtime_ns - before) < 60 * 10**9
    ctime = found.st_ctime_ns
    utimens(file, (0, UTIME_OMIT), (0, UTIME_OMIT))
    assert os.stat(file).st_ctime_ns == ctime
    utimens(file, (-1, 1), (1 << 33, 2))  # before 1970, after 2106
    found = os.stat(file)
    assert (found.st_atime_ns, found.st_mtime_ns) == (-(10**9) + 1, (1 << 33) * 10**9 + 2)


def test_limits_are_in_bytes(open_to_all: Path) -> None:
    name = "ü" * 127 + "x"
    (open_to_all / name).mkdir()
    fails(errno.ENAMETOOLONG, os.mkdir, open_to_all / (name + "y"))
    os.symlink("x" * 4095, open_to_all / "l")
    assert len(os.readlink(open_to_all / "l")) == 4095
    fails(errno.ENAMETOOLONG, os.symlink, "x" * 4096, open_to_all / "m")
    deep = str(open_to_all) + "/." * 2040
    fails(errno.ENAMETOOLONG, os.stat, deep + "/." * 50)


def test_what_only_root_may(open_to_all: Path) -> None:
    (open_to_all / "d").mkdir()

    def alice() -> None:
        fails(errno.EPERM, os.mknod, "disk", 0o600 | stat.S_IFBLK, os.makedev(1, 1))
        os.mkfifo("p")
        fails(errno.EPERM, os.chown, "p", BOB, -1)
        fails(errno.EPERM, os.chown, "p", -1, BOB)
        fails(errno.EPERM, os.chmod, "d", 0o777)
        fails(errno.EPERM, os.utime, "d", (1, 1))
        fails(errno.EPERM, os.link, "d", "e")

    as_user(ALICE, open_to_all, alice)

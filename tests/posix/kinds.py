"""Checks: each call on each kind of object, its effect on attributes and times.

Of pjdfstest: chmod/00, 11, chown/00, ftruncate/00, 09, 12, 13, truncate/00, 09, 12, 13, link/00, 10, 11, mkdir/00, 10,
mkfifo/00, 09, mknod/00, 01, 08, 11, open/00, 13, 17, 22, 24, rename/00, rmdir/00, 06, 07, symlink/00, 08, unlink/00,
08, 14, utimensat/00-09, posix_fallocate/00.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from typing import Any

from tests.posix.place import (
    AT_SYMLINK_FOLLOW,
    SYMLINK,
    TYPES,
    UTIME_NOW,
    UTIME_OMIT,
    Place,
    Who,
    access,
    bind,
    linkat,
    names,
    open_,
    read,
    touch,
    utimens,
    write,
)

OWNER = Who(65534, 65534)
STRICT = tuple(map(int, re.findall(r"\d+", os.uname().release)[:2])) >= (6, 2)
"""Since Linux 6.2 a set-gid bit goes, too, that means none, where whoever changes the file is not of its group. The
service holds to that whatever kernel asks."""
NOW, OMIT = (0, UTIME_NOW), (0, UTIME_OMIT)

ON_ONE: dict[str, Callable[[str], Any]] = {
    "chmod": lambda n: os.chmod(n, 0o111),
    "chmod of all bits": lambda n: os.chmod(n, 0o7777),
    "chmod to the same": lambda n: os.chmod(n, stat.S_IMODE(os.stat(n).st_mode)),
    "chown": lambda n: os.chown(n, 123, 456),
    "lchown": lambda n: os.lchown(n, 123, 456),
    "chown to nobody in particular": lambda n: os.lchown(n, -1, -1),
    "chown of the group": lambda n: os.lchown(n, -1, 456),
    "truncate": lambda n: os.truncate(n, 5),
    "utimensat": lambda n: utimens(n, (1, 2), (3, 4), False),
    "utimensat to now": lambda n: utimens(n, NOW, NOW, False),
    "utimensat of atime": lambda n: utimens(n, (1, 2), OMIT, False),
    "utimensat of nothing": lambda n: utimens(n, OMIT, OMIT, False),
    "link": lambda n: linkat(n, f"{n} linked"),
    "link what it points to": lambda n: linkat(n, f"{n} linked", AT_SYMLINK_FOLLOW),
    "unlink": os.unlink,
    "rmdir": os.rmdir,
    "rename": lambda n: os.rename(n, f"{n} renamed"),
    "rename to itself": lambda n: os.rename(n, n),
    "rename into a directory": lambda n: os.rename(n, f"place/{n} renamed"),
    "open to read": lambda n: open_(n, os.O_RDONLY),
    "open, not a link": lambda n: open_(n, os.O_RDONLY | os.O_NOFOLLOW),
    "open a directory": lambda n: open_(n, os.O_RDONLY | os.O_DIRECTORY),
    "open as a path": lambda n: open_(n, os.O_PATH | os.O_NOFOLLOW),
    "open to read and cut": lambda n: open_(n, os.O_RDONLY | os.O_TRUNC),
    "create": lambda n: open_(n, os.O_WRONLY | os.O_CREAT | os.O_EXCL),
    "create or open": lambda n: open_(n, os.O_RDONLY | os.O_CREAT),
    "create or open, not a link": lambda n: open_(n, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW),
    "mkdir": os.mkdir,
    "mkfifo": os.mkfifo,
    "mknod": lambda n: os.mknod(n, 0o600 | stat.S_IFCHR, os.makedev(1, 3)),
    "symlink": lambda n: os.symlink("aim", n),
    "bind": bind,
    "list": lambda n: names(n),
    "readlink": os.readlink,
    "setxattr": lambda n: os.setxattr(n, "user.x", b"1", follow_symlinks=False),
    "setxattr trusted": lambda n: os.setxattr(n, "trusted.x", b"1", follow_symlinks=False),
    "listxattr": lambda n: os.listxattr(n, follow_symlinks=False),
    "removexattr": lambda n: os.removexattr(n, "user.x", follow_symlinks=False),
    "access": lambda n: access(n, os.X_OK),
}
KERNELS_OWN = {
    "open to read",
    "open, not a link",
    "open to read and cut",
    "create or open",
    "create or open, not a link",
}
"""Opening a device is the kernel's business, and whether a mount lets it (nodev) that of its options."""


def check_every_call_on_every_kind(at: Place) -> None:
    for kind in TYPES:
        os.mkdir(kind)
        os.chdir(kind)
        os.mkdir("place")
        for number, (label, call) in enumerate(ON_ONE.items()):
            if kind in ("block", "char") and label in KERNELS_OWN:
                continue
            name = at.make(kind, f"x{number}")
            with at.moving(".", "place"):
                before = os.lstat(name)
                at(call, name, as_=f"{label} of a {kind}")
                for path in (name, f"{name} linked", f"{name} renamed", f"place/{name} renamed"):
                    try:
                        after = os.lstat(path)
                    except FileNotFoundError:
                        continue
                    moved = after.st_mtime_ns - before.st_mtime_ns, after.st_ctime_ns - before.st_ctime_ns
                    at.note(f"times of {path}", [(by > 0) - (by < 0) for by in moved])
                    at.stat(path)
        at.tree()
        os.chdir("..")


def check_modes_of_what_is_made(at: Place) -> None:
    """open/00, mkdir/00, mkfifo/00, mknod/00: the mode less the umask; owner and group, also below a set-gid
    directory."""
    member, stranger = Who(65533, 65532, (777,)), Who(65531, 65530)
    makers: dict[str, Callable[[str, int], Any]] = {
        "create": touch,
        "mkdir": os.mkdir,
        "mkfifo": os.mkfifo,
        "mknod": lambda n, m: os.mknod(n, m | stat.S_IFREG),
        "mknod of a socket": lambda n, m: os.mknod(n, m | stat.S_IFSOCK),
        "symlink": lambda n, m: os.symlink("x" * 7, n),
    }
    for parent, mode in (("plain", 0o777), ("set-gid", 0o2777), ("sticky", 0o1777), ("both", 0o3777)):
        at.make("dir", parent, mode, 0, 777)
        os.chmod(parent, mode)
        for who in (Who(0, 0), member, stranger):
            for asked, umask in (
                (0o755, 0),
                (0o151, 0o77),
                (0o345, 0o501),
                (0o7777, 0),
                (0o2755, 0o22),
                (0o2745, 0),
                (0, 0),
            ):
                for label, make in makers.items():
                    name = f"{parent}/{label} {asked:o} {umask:o} {who.uid}"
                    old = os.umask(umask)
                    at(make, name, asked, by=who)
                    os.umask(old)
                    at.stat(name)


def check_times_of_what_is_made(at: Place) -> None:
    """All three times of a new object are now, and those of its directory move."""
    for kind in TYPES:
        with at.moving("."):
            before = os.lstat(".").st_mtime_ns
            at.make(kind, kind)
        made = os.lstat(kind)
        at.note(kind, [t > before for t in (made.st_atime_ns, made.st_mtime_ns, made.st_ctime_ns)])
        at.note("no two times", len({made.st_mtime_ns, made.st_ctime_ns}))


def check_ownership(at: Place) -> None:
    """chown/00 and 07: who may give away what, and what becomes of set-id bits."""
    member, plain = Who(65534, 65532, (65531,)), Who(65533, 65533)
    cases: list[tuple[Who, int, int]] = [
        (Who(0, 0), 123, 456),
        (Who(0, 0), -1, -1),
        (Who(0, 0), -1, 7),
        (member, 65534, 65532),
        (member, -1, 65532),
        (member, -1, 65531),
        (member, -1, 65533),
        (member, -1, 9),
        (member, 65533, -1),
        (member, 65534, -1),
        (member, -1, -1),
        (member, 65533, 65532),
        (plain, -1, -1),
        (plain, 65533, -1),
        (plain, -1, 65533),
        (plain, 65534, 65533),
    ]
    for kind in TYPES:
        strict = (0o2745,) if STRICT else ()
        for mode in (0o6555, 0o6755, 0o4644, 0o1777, *strict) if kind in ("regular", "dir") else (0o6555,):
            for who, uid, gid in cases:
                if os.path.lexists("x"):
                    (os.rmdir if kind == "dir" else os.unlink)("x")
                at.make(kind, "x", mode, 65534, 65533)
                at(os.lchown, "x", uid, gid, by=who)
                at.stat("x")
        (os.rmdir if kind == "dir" else os.unlink)("x")


def check_chmod(at: Place) -> None:
    """chmod/00, 07, 11, 12: by owner, member and others; set-gid by an owner outside of the group; sticky files."""
    inside, outside, other = Who(65534, 65534), Who(65534, 65533), Who(65532, 65532, (65534,))
    for kind in TYPES:
        if kind == SYMLINK:
            continue
        at.make(kind, kind, 0o644, 65534, 65534)
        for who in (Who(0, 0), inside, outside, other):
            for mode in (0o755, 0o2755, 0o4755, 0o1644, 0o7777, 0o2644, 0):
                with at.moving(kind):
                    at(os.chmod, kind, mode, by=who)
                at.stat(kind)
    os.symlink("regular", "link")
    at(os.chmod, "link", 0o600)
    at.stat("link")
    at.stat("regular")


def check_set_id_bits_after_a_change_of_contents(at: Place) -> None:
    """chmod/12 and what xfstests generic/193, 673 and 683-687 look at."""
    other, member = Who(65532, 65532), Who(65531, 65533)

    def cut(name: str) -> None:
        fd = os.open(name, os.O_RDWR)
        try:
            os.ftruncate(fd, 3)
        finally:
            os.close(fd)

    def write_with_it_open(name: str) -> str:
        fd = os.open(name, os.O_RDWR)
        try:
            os.pwrite(fd, b"y", 1)
            return oct(os.fstat(fd).st_mode)
        finally:
            os.close(fd)

    changes: dict[str, Callable[[str], Any]] = {
        "write": lambda n: write(n, b"x"),
        "write nothing": lambda n: write(n, b""),
        "write seen at once": write_with_it_open,
        "truncate": lambda n: os.truncate(n, 2),
        "truncate to the same": lambda n: os.truncate(n, 10),
        "ftruncate": cut,
        "open and cut": lambda n: open_(n, os.O_WRONLY | os.O_TRUNC),
        "open": lambda n: open_(n, os.O_RDWR),
        "fallocate": lambda n: _allocate(n, 0, 20),
    }
    for who in (Who(0, 0), OWNER, other, member):
        for mode in (0o6777, 0o2767, 0o6766, 0o6711) if STRICT else (0o6777, 0o6711):
            for label, change in changes.items():
                at.make("regular", "f", None, 65534, 65533)
                write("f", b"0123456789")
                os.chmod("f", mode)
                with at.moving("f"):
                    at(change, "f", by=who, as_=f"{label} of {mode:o}")
                at.stat("f")
                os.unlink("f")


def _allocate(name: str, offset: int, length: int) -> None:
    fd = os.open(name, os.O_WRONLY)
    try:
        os.posix_fallocate(fd, offset, length)
    finally:
        os.close(fd)


def check_sizes(at: Place) -> None:
    """truncate/00, 12, 13, ftruncate/00, 12, 13, posix_fallocate/00, open/25: lengths, holes, refusals."""
    at.make("regular", "f")
    write("f", b"some bytes")
    for size in (5, 5, 0, 12, 5000, 100_000, 3, 10_000, 9):
        with at.moving("f"):
            at(os.truncate, "f", size)
        at.stat("f")
        at(read, "f")
    for bad in (-1, -(2**63)):
        at(os.truncate, "f", bad)
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR | os.O_APPEND):
        fd = os.open("f", flags)
        at(lambda fd=fd: os.ftruncate(fd, 7), as_=f"ftruncate of {flags:o}")
        at(lambda fd=fd: os.ftruncate(fd, -1), as_=f"ftruncate to -1 of {flags:o}")
        if not flags & os.O_APPEND:  # the C library does it by writing here, and cannot then
            at(lambda fd=fd: os.posix_fallocate(fd, 20, 5), as_=f"posix_fallocate of {flags:o}")
        at(lambda fd=fd: os.posix_fallocate(fd, 0, 0), as_=f"posix_fallocate of nothing {flags:o}")
        at(lambda fd=fd: os.pread(fd, 5, 3), as_=f"read of {flags:o}")
        at(lambda fd=fd: os.pwrite(fd, b"zz", 30), as_=f"write of {flags:o}")
        at.note("size", os.fstat(fd).st_size)
        os.close(fd)
    fd = os.open("large", os.O_CREAT | os.O_RDWR)
    at(lambda: os.pwrite(fd, b"a", 2**31 + 1), as_="write behind 2 GiB")
    at(lambda: os.pread(fd, 3, 2**31), as_="read it")
    at(lambda: os.pread(fd, 4, 1000), as_="read the hole")
    at(lambda: os.lseek(fd, 0, os.SEEK_END), as_="its end")
    os.close(fd)
    at.stat("large")
    for kind in TYPES:
        if kind != "regular":
            at.make(kind, kind)
            at(os.truncate, kind, 0)


def check_times_that_are_set(at: Place) -> None:
    """utimensat/00-09: each combination, by each of those who may and may not; before 1970 and after 2106."""
    at.make("regular", "f")
    at.make("dir", "d")
    os.symlink("f", "l")
    moments = {"given": (7, 123456789), "now": NOW, "omit": OMIT}
    for name, follow in (("f", True), ("d", True), ("l", True), ("l", False)):
        for seconds in (0, 1, -1, 2**31 - 1, 2**31, 2**32, 2**33, -(2**30)):
            at(utimens, name, (seconds, 999_999_999), (seconds + 1, 1), follow)
            found = os.stat(name, follow_symlinks=follow)
            at.note("times", (found.st_atime_ns, found.st_mtime_ns))
    for bad in ((0, 10**9), (0, -1)):
        at(utimens, "f", bad, (0, 0))
    owner, writer, reader = Who(65534, 65534), Who(65533, 65530), Who(65532, 65532)
    for kind in ("regular", "dir", "fifo"):
        at.make(kind, f"timed {kind}", 0o664, 65534, 65530)
        for who in (Who(0, 0), owner, writer, reader):
            for first, atime in moments.items():
                for second, mtime in moments.items():
                    os.utime(f"timed {kind}", ns=(10**9, 10**9))
                    with at.moving(f"timed {kind}"):
                        at(utimens, f"timed {kind}", atime, mtime, by=who, as_=f"{first}, {second} of a {kind}")
                    found = os.stat(f"timed {kind}")
                    at.note("atime", (found.st_atime_ns > 10**18, found.st_atime_ns < 10**18 and found.st_atime_ns))


def check_hard_links(at: Place) -> None:
    """link/00, 10, 11; unlink/00: counts, ctime of the inode and times of its directory."""
    for kind in TYPES:
        os.mkdir(f"d {kind}")
        os.chdir(f"d {kind}")
        at.make(kind, "a")
        for call, args in (
            (linkat, ("a", "b")),
            (linkat, ("b", "c")),
            (linkat, ("a", "b")),
            (os.chmod, ("c", 0o640)),
            (os.unlink, ("a",)),
            (os.lchown, ("c", 5, 6)),
            (os.rename, ("b", "c")),
            (os.rename, ("b", "e")),
            (os.unlink, ("b",)),
            (os.unlink, ("c",)),
        ):
            if kind == SYMLINK and call is os.chmod:
                continue
            with at.moving("."):
                at(call, *args)
            at.tree()
        os.chdir("..")


def check_protected_hard_links(at: Place) -> None:
    """link/07 and proc(5) protected_hardlinks, whichever way that stands on this host."""
    at.make("dir", "open", 0o777)
    for mode, uid in (
        (0o644, 0),
        (0o666, 0),
        (0o4777, 0),
        (0o2777, 0),
        (0o2767, 0),
        (0o600, OWNER.uid),
        (0o444, OWNER.uid),
    ):
        name = f"f{mode:o}-{uid}"
        at.make("regular", name, mode, uid, uid)
        os.chmod(name, mode)
        at(linkat, name, f"open/{name}", by=OWNER)
    for kind in ("fifo", "symlink", "socket"):
        at.make(kind, kind, 0o666)
        at(linkat, kind, f"open/{kind}", by=OWNER)
    at.tree()


def check_extended_attributes(at: Place) -> None:
    """xfstests generic/020, 062, 097, 117, 337, 377, 486: by kind, name space and caller."""
    other = Who(65532, 65532)
    calls: dict[str, Callable[[str, str], Any]] = {
        "set": lambda k, n: os.setxattr(k, n, b"v", follow_symlinks=False),
        "get": lambda k, n: os.getxattr(k, n, follow_symlinks=False),
        "remove": lambda k, n: os.removexattr(k, n, follow_symlinks=False),
    }
    for kind in TYPES:
        at.make(kind, kind, 0o666, 65534, 65534)
        for who in (Who(0, 0), OWNER, other):
            for name in ("user.a", "trusted.a", "bogus.a", "user.", "user." + "n" * 250, "user." + "n" * 251):
                for label, call in calls.items():
                    at(call, kind, name, by=who, as_=f"{label} {name[:20]} of {kind}")
    at.make("dir", "sticky", 0o1777)
    at(lambda: os.setxattr("sticky", "user.a", b"v"), by=other, as_="on a sticky directory")
    with at.moving("regular"):
        at(lambda: os.setxattr("regular", "user.b", b"v", os.XATTR_REPLACE), as_="replace what is not there")
    with at.moving("regular"):
        at(lambda: os.setxattr("regular", "user.b", b"v", os.XATTR_CREATE), as_="make")
    with at.moving("regular"):
        at(lambda: os.setxattr("regular", "user.b", b"w", os.XATTR_CREATE), as_="make again")
    at(lambda: sorted(os.listxattr("regular")), as_="list")
    os.chmod("regular", 0o200)
    at(lambda: os.getxattr("regular", "user.b"), by=OWNER, as_="get without permission to read")
    os.chmod("regular", 0o400)
    at(lambda: os.setxattr("regular", "user.b", b"x"), by=OWNER, as_="set without permission to write")

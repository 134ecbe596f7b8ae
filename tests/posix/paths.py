"""Checks: what is wrong with a path, asked by every call that takes one.

Of pjdfstest: ENOTDIR, ENAMETOOLONG, ENOENT, EACCES for search and ELOOP of chmod/01-06, chown/01-06, ftruncate/02-05
and 07, truncate/01-05 and 07, link/01-04, 06, 08, 09, mkdir/01-05, 07, mkfifo/01-05, 07, mknod/01-05, 07, open/01-05,
12, 16, rename/01-04, 11, rmdir/01-05, 12, symlink/01-05, 07, unlink/01-05, 07, utimensat; and what comes of ".", ".."
and a slash at the end.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import Any

from tests.posix.place import TYPES, Place, Who, access, bind, chdir, linkat, names, open_, renameat2, utimens

USER = Who(1002, 1002)

Call = Callable[[str | bytes], Any]

ON_WHAT_IS_THERE: dict[str, Call] = {
    "stat": lambda p: os.stat(p) and None,
    "lstat": lambda p: os.lstat(p) and None,
    "chmod": lambda p: os.chmod(p, 0o755),
    "chown": lambda p: os.chown(p, 0, 0),
    "lchown": lambda p: os.lchown(p, 0, 0),
    "truncate": lambda p: os.truncate(p, 0),
    "open to read": lambda p: open_(p, os.O_RDONLY),
    "open to write": lambda p: open_(p, os.O_WRONLY),
    "open what is no link": lambda p: open_(p, os.O_RDONLY | os.O_NOFOLLOW),
    "open a directory": lambda p: open_(p, os.O_RDONLY | os.O_DIRECTORY),
    "open or create": lambda p: open_(p, os.O_WRONLY | os.O_CREAT),
    "access": lambda p: access(p, os.R_OK),
    "utimensat": lambda p: utimens(p, (1, 2), (3, 4)),
    "utimensat of a link": lambda p: utimens(p, (1, 2), (3, 4), False),
    "readlink": os.readlink,
    "chdir": chdir,
    "list": lambda p: names(p) and None,
    "setxattr": lambda p: os.setxattr(p, "user.x", b"1"),
    "getxattr": lambda p: os.getxattr(p, "user.y"),
    "listxattr": lambda p: os.listxattr(p) and None,
    "statvfs": lambda p: os.statvfs(p).f_namemax,
    "unlink": os.unlink,
    "rmdir": os.rmdir,
    "link from": lambda p: linkat(p, "linked"),
    "rename from": lambda p: os.rename(p, "renamed"),
    "exchange": lambda p: renameat2(p, "d2", 2),
}
MAKING: dict[str, Call] = {
    "create": lambda p: open_(p, os.O_WRONLY | os.O_CREAT | os.O_EXCL),
    "mkdir": os.mkdir,
    "mkfifo": os.mkfifo,
    "mknod of a device": lambda p: os.mknod(p, 0o600 | stat.S_IFCHR, os.makedev(1, 3)),
    "mknod of a file": lambda p: os.mknod(p, 0o600 | stat.S_IFREG),
    "bind": bind,
    "symlink": lambda p: os.symlink("aim", p),
    "link to": lambda p: linkat("f", p),
    "rename a file to": lambda p: os.rename("f", p),
    "rename a directory to": lambda p: os.rename("d2", p),
}
CALLS = {**ON_WHAT_IS_THERE, **MAKING}
CHANGING_NOTHING = {
    "stat",
    "lstat",
    "open to read",
    "open to write",
    "open what is no link",
    "open a directory",
    "access",
    "readlink",
    "chdir",
    "list",
    "getxattr",
    "listxattr",
    "statvfs",
    "chown",
    "lchown",
    "utimensat",
    "utimensat of a link",
    "chmod",
    "setxattr",
}
"""Nothing that another call of these would notice."""
ALL_KINDS = tuple(f"a {kind}" for kind in TYPES)
LINKS = {
    "to f": "f",
    "to d": "a dir",
    "loop": "loop",
    "pool a": "pool b",
    "pool b": "pool a",
    "to missing": "missing/x",
}


def furnish(at: Place, where: str, wanted: tuple[str, ...]) -> None:
    """A directory with what every call needs and with *wanted*, in which we are then."""
    os.mkdir(where)
    os.chdir(where)
    at.make("regular", "f")
    os.mkdir("d2")
    for name in wanted:
        if name in LINKS:
            os.symlink(LINKS[name], name)
        elif name == "d":
            os.makedirs("d/e")
        else:
            at.make(name.removeprefix("a "), name)


def each(at: Place, paths: dict[str, str | bytes], wanted: tuple[str, ...] = ()) -> None:
    """Every call with every path, in a directory with *wanted*; a fresh one after each that has changed something."""
    number = 0
    furnish(at, f"room {number}", wanted)
    for label, call in CALLS.items():
        for what, path in paths.items():
            outcome = at(call, path, as_=f"{label}: {what}")
            if label not in CHANGING_NOTHING and not is_refused(outcome):
                os.chdir("..")
                at.tree(f"room {number}")
                number += 1
                furnish(at, f"room {number}", wanted)
    os.chdir("..")


def is_refused(outcome: object) -> bool:
    return isinstance(outcome, str) and outcome in errno.errorcode.values()


def check_a_component_that_is_no_directory(at: Place) -> None:
    paths: dict[str, str | bytes] = {f"below a {kind}": f"a {kind}/x" for kind in TYPES if kind != "dir"}
    each(at, paths, ALL_KINDS)


def check_what_is_missing(at: Place) -> None:
    paths: dict[str, str | bytes] = {
        "below nothing": "missing/x",
        "nothing": "missing",
        "no name": "",
        "a link to nothing": "to missing",
        "below a link to nothing": "to missing/x",
        "a link to what could be": "a symlink",
    }
    each(at, paths, ("to missing", "a symlink"))


def check_loops(at: Place) -> None:
    paths: dict[str, str | bytes] = {
        "loop": "loop",
        "below two that are a loop": "pool b/x",
    }
    each(at, paths, ("loop", "pool a", "pool b"))  # the kernel asks forty times for each


def check_lengths_of_names(at: Place) -> None:
    text = "ü" * 127
    paths: dict[str, str | bytes] = {
        "255 bytes": "n" * 255,
        "256 bytes": "n" * 256,
        "255 bytes in 128 letters": text + "x",
        "256 bytes in 128 letters": text + "ü",
        "below 256 bytes": "n" * 256 + "/x",
        "255 bytes, no text": b"\xff" * 255,
        "256 bytes, no text": b"\xfe" * 256,
        "below 255 bytes": "n" * 255 + "/x",
    }
    each(at, paths)


def check_lengths_of_paths(at: Place) -> None:
    def path(length: int, end: str) -> str:
        return "./" * ((length - len(end)) // 2) + "/" * ((length - len(end)) % 2) + end

    paths: dict[str, str | bytes] = {
        "4095 bytes to a file": path(4095, "f"),
        "4096 bytes to a file": path(4096, "f"),
        "4095 bytes to nothing": path(4095, "new"),
        "4096 bytes to nothing": path(4096, "new"),
        "4096 bytes to a directory": path(4096, "d2"),
        "4095 bytes to a directory": path(4095, "d2"),
    }
    each(at, paths)


def check_aims_of_symbolic_links(at: Place) -> None:
    """symlink/02 and 03, and 40 links on the way."""
    for length in (0, 1, 255, 4095, 4096):
        at(os.symlink, "x" * length, f"l{length}")
    at.tree()
    at(os.readlink, "l4095")
    at.make("regular", "file")
    os.symlink("file", "s0")
    for k in range(1, 42):
        os.symlink(f"s{k - 1}", f"s{k}")
    for k in (38, 39, 40, 41):
        at(open_, f"s{k}", os.O_RDONLY)


TWO_ERRORS = {("rmdir", "in one to be searched only"), ("rename a directory to", "in one to be searched only")}
"""A file is in the way, and the directory may not be written: above a FUSE file system that checks permission itself,
the kernel tells the first before it has asked for the second."""


def check_search_permission(at: Place) -> None:
    paths: dict[str, str | bytes] = {
        "in a closed directory": "closed/f",
        "nothing in a closed directory": "closed/new",
        "through a closed directory": "closed/e/../f",
        "by a link": "to closed/f",
        "in an open one": "d3/f",
        "in one to be searched only": "search/f",
        "in one to be read only": "read/f",
        "new in an open one": "d3/new",
    }
    calls = {**CALLS, "link to": lambda p: linkat("d3/own", p), "rename a file to": lambda p: os.rename("d3/own", p)}
    number = 0

    def again() -> None:
        nonlocal number
        os.mkdir(f"try {number}")
        os.chmod(f"try {number}", 0o777)
        os.chdir(f"try {number}")
        for name, mode in (("closed", 0o600), ("d3", 0o700), ("search", 0o100), ("read", 0o400)):
            os.makedirs(f"{name}/e")
            at.make("regular", f"{name}/f", 0o644, USER.uid, USER.gid)
            os.chown(name, USER.uid, USER.gid)
            os.chmod(name, mode)
        at.make("regular", "d3/own", 0o644, USER.uid, USER.gid)
        at.make("dir", "d2", 0o755, USER.uid, USER.gid)
        at.make("regular", "f", 0o644, USER.uid, USER.gid)
        os.symlink("closed", "to closed")
        number += 1

    again()
    for label, call in calls.items():
        for what, path in paths.items():
            if (label, what) in TWO_ERRORS:
                continue
            outcome = at(call, path, as_=f"{label}: {what}", by=USER)
            if label not in CHANGING_NOTHING and not is_refused(outcome):
                os.chdir("..")
                at.tree(f"try {number - 1}")
                again()
    os.chdir("..")


def check_slashes_and_dots(at: Place) -> None:
    """rename/19, rmdir/12, and what Linux makes of a slash behind a name that is there or not."""
    paths: dict[str, str | bytes] = {
        "a file/": "f/",
        "a directory/": "a dir/",
        "a link to a file/": "to f/",
        "a link to a directory/": "to d/",
        "a link to a directory": "to d",
        "a link to a file": "to f",
        "a link to nothing/": "to missing/",
        "nothing/": "missing/",
        ".": ".",
        "a directory/.": "a dir/.",
        "a directory/..": "a dir/..",
        "a full directory": "d",
        "a full directory/": "d/",
        "two slashes": "a dir//",
        "a fifo/": "a fifo/",
    }
    each(at, paths, ("a dir", "a fifo", "to f", "to d", "to missing", "d"))

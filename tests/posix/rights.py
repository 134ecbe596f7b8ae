"""Checks: who may do what, by the mode of the object and of the directory it is in.

Of pjdfstest: chmod/05, 07, ftruncate/05, 06, truncate/05, 06, link/06, 07, mkdir/05, 06, mkfifo/05, 06, mknod/05, 06,
open/05-08, rename/04, 05, 09, 10, 21, rmdir/07, 08, 11, symlink/05, 06, unlink/05, 06, 11, utimensat/06, 07.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from typing import Any

from tests.posix.place import (
    ROOT,
    UTIME_NOW,
    Place,
    Who,
    access,
    execute,
    linkat,
    names,
    open_,
    renameat2,
    touch,
    utimens,
)

OWNER = Who(65534, 65500)
OF_GROUP = Who(65533, 777)
ALSO_OF_GROUP = Who(65532, 65501, (5, 777, 9))
OTHER = Who(65531, 65502, (5, 9))
ALL = (OWNER, OF_GROUP, ALSO_OF_GROUP, OTHER, ROOT)
NOW = (0, UTIME_NOW)

MODES = (0o000, 0o400, 0o200, 0o100, 0o040, 0o020, 0o010, 0o004, 0o002, 0o001, 0o077, 0o707, 0o770, 0o750, 0o1777)

ON_A_FILE: dict[str, Callable[[str], Any]] = {
    "read": lambda n: open_(n, os.O_RDONLY),
    "write": lambda n: open_(n, os.O_WRONLY),
    "both": lambda n: open_(n, os.O_RDWR),
    "read and cut": lambda n: open_(n, os.O_RDONLY | os.O_TRUNC),
    "create or read": lambda n: open_(n, os.O_RDONLY | os.O_CREAT),
    "truncate": lambda n: os.truncate(n, 0),
    "times to now": lambda n: utimens(n, NOW, NOW),
    "times": lambda n: utimens(n, (1, 2), (3, 4)),
    "R": lambda n: access(n, os.R_OK),
    "W": lambda n: access(n, os.W_OK),
    "X": lambda n: access(n, os.X_OK),
    "RWX": lambda n: access(n, os.R_OK | os.W_OK | os.X_OK),
    "stat": lambda n: os.stat(n) and None,
    "chmod": lambda n: os.chmod(n, stat.S_IMODE(os.stat(n).st_mode)),
    "getxattr": lambda n: os.getxattr(n, "user.x"),
    "setxattr": lambda n: os.setxattr(n, "user.x", b"1"),
}
ON_A_DIRECTORY: dict[str, Callable[[str], Any]] = {
    "list": names,
    "open": lambda n: open_(n, os.O_RDONLY | os.O_DIRECTORY),
    "stat inside": lambda n: os.stat(f"{n}/inner") and None,
    "read inside": lambda n: open_(f"{n}/inner", os.O_RDONLY),
    "stat of nothing inside": lambda n: os.stat(f"{n}/none"),
    "create inside": lambda n: (touch(f"{n}/new"), os.unlink(f"{n}/new"))[0],
    "mkdir inside": lambda n: (os.mkdir(f"{n}/new"), os.rmdir(f"{n}/new"))[0],
    "link inside": lambda n: (linkat("own", f"{n}/new"), os.unlink(f"{n}/new"))[0],
    "chdir": lambda n: (os.chdir(n), os.chdir(".."))[0],
    **{name: ON_A_FILE[name] for name in ("times to now", "times", "R", "W", "X", "chmod", "getxattr", "setxattr")},
}


def check_mode_of_a_file(at: Place) -> None:
    at.make("regular", "f")
    os.setxattr("f", "user.x", b"1")
    os.chown("f", OWNER.uid, 777)
    for mode in MODES:
        os.chmod("f", mode)
        for who in ALL:
            for label, call in ON_A_FILE.items():
                at(call, "f", by=who, as_=f"{label} of {mode:o}")
    at.stat("f")


def check_mode_of_a_directory(at: Place) -> None:
    os.chmod(".", 0o777)
    for who in ALL:
        at.make("regular", f"own{who.uid}", 0o666, who.uid, who.gid)
    at.make("dir", "d")
    at.make("regular", "d/inner", 0o644)
    os.setxattr("d", "user.x", b"1")
    os.chown("d", OWNER.uid, 777)
    for mode in MODES:
        os.chmod("d", mode)
        for who in ALL:
            os.rename(f"own{who.uid}", "own")
            for label, call in ON_A_DIRECTORY.items():
                at(call, "d", by=who, as_=f"{label} of {mode:o}")
            os.rename("own", f"own{who.uid}")
    at.tree()


def check_permission_to_execute(at: Place) -> None:
    shutil.copyfile("/bin/true", "program")
    os.chown("program", OWNER.uid, 777)
    for mode in (0o000, 0o666, 0o100, 0o010, 0o001, 0o500, 0o755, 0o655):
        os.chmod("program", mode)
        for who in ALL:
            at(execute, "./program", by=who, as_=f"execute {mode:o}")


BUSINESS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "create": ("", lambda k: touch(f"d/new{k}")),
    "mkdir": ("", lambda k: os.mkdir(f"d/new{k}")),
    "mkfifo": ("", lambda k: os.mkfifo(f"d/new{k}")),
    "symlink": ("", lambda k: os.symlink("aim", f"d/new{k}")),
    "link to": ("mine", lambda k: linkat(f"mine{k}", f"d/new{k}")),
    "unlink": ("d/f", lambda k: os.unlink(f"d/f{k}")),
    "rmdir": ("d/e", lambda k: os.rmdir(f"d/e{k}")),
    "rename within": ("d/f", lambda k: os.rename(f"d/f{k}", f"d/new{k}")),
    "rename out": ("d/f", lambda k: os.rename(f"d/f{k}", f"new{k}")),
    "rename in": ("mine", lambda k: os.rename(f"mine{k}", f"d/new{k}")),
    "rename over": ("mine d/f", lambda k: os.rename(f"mine{k}", f"d/f{k}")),
    "rename a directory within": ("d/e", lambda k: os.rename(f"d/e{k}", f"d/new{k}")),
    "rename a directory out": ("d/e", lambda k: os.rename(f"d/e{k}", f"new{k}")),
    "rename a directory in": ("dir", lambda k: os.rename(f"dir{k}", f"d/new{k}")),
    "rename a directory over": ("dir d/e", lambda k: os.rename(f"dir{k}", f"d/e{k}")),
    "exchange": ("mine d/f", lambda k: renameat2(f"mine{k}", f"d/f{k}", 2)),
    "exchange a directory": ("dir d/e", lambda k: renameat2(f"dir{k}", f"d/e{k}", 2)),
    "exchange within": ("d/e d/f", lambda k: renameat2(f"d/e{k}", f"d/f{k}", 2)),
    "not to replace": ("mine d/f", lambda k: renameat2(f"mine{k}", f"d/f{k}", 1)),
}
"""By name: what there must be (directories are those called e and dir), and the call."""


def check_changing_a_directory(at: Place) -> None:
    """The cross of its mode, of who owns it, of who owns what is in it, and of who asks."""
    me, somebody = OWNER.uid, 4242
    cases = [(m, d, i, OWNER) for m in (0o1777, 0o777) for d in (me, somebody) for i in (me, somebody)]
    cases += [(mode, somebody, me, OWNER) for mode in (0o755, 0o1755, 0o776, 0o773)]
    cases += [(mode, me, somebody, OWNER) for mode in (0o700, 0o600, 0o500, 0o1300)]
    cases += [(0o770, somebody, me, who) for who in (OF_GROUP, ALSO_OF_GROUP, OTHER)]
    cases += [(0o1770, somebody, somebody, who) for who in (OF_GROUP, ALSO_OF_GROUP, ROOT)]
    for number, (mode, directory, inner, who) in enumerate(cases):
        os.mkdir(f"t{number}")
        os.chdir(f"t{number}")
        os.chmod(".", 0o777)
        os.mkdir("d")
        os.chmod("d", 0o777)
        for kind, name, by in (
            ("regular", "d/f", Who(inner, inner)),
            ("dir", "d/e", Who(inner, inner)),
            ("regular", "mine", who),
            ("dir", "dir", who),
        ):
            with at.acting(by if by.uid != who.uid else who):
                for k, (needs, _) in enumerate(BUSINESS.values()):
                    if name in needs.split():
                        at.make(kind, f"{name}{k}")
        os.chown("d", directory, 777)
        os.chmod("d", mode)
        for k, (label, (_, call)) in enumerate(BUSINESS.items()):
            at(call, str(k), by=who, as_=f"{label}: d {mode:o} of {directory}, in it of {inner}")
        at.tree()
        os.chdir("..")


def check_not_moving_atime(at: Place) -> None:
    """open(2): O_NOATIME is the owner's. (Whoever may not read either is told so here, and EACCES elsewhere.)"""
    at.make("regular", "f", 0o644, OWNER.uid, 777)
    for who in ALL:
        at(open_, "f", os.O_RDONLY | os.O_NOATIME, by=who)


def check_moving_a_directory_that_one_may_not_write(at: Place) -> None:
    """rename/21: its ".." is part of it."""
    for name in ("a", "b"):
        at.make("dir", name, 0o777)
        os.chmod(name, 0o777)
    for mode in (0o700, 0o755, 0o777, 0o722):
        at.make("dir", "a/x", mode)
        os.chmod("a/x", mode)
        at(os.rename, "a/x", "a/y", by=OTHER)
        at(os.rename, "a/y", "a/x", by=OTHER)
        at(os.rename, "a/x", "b/x", by=OTHER)
        at.tree()
        for left in ("a/x", "b/x"):
            if os.path.exists(left):
                os.rmdir(left)

"""Checks: renameat2(2) of everything over everything, with each of its flags.

Of pjdfstest: rename/00, 06-08 (flags of inodes: not on Linux), 12-15, 17-24; xfstests generic/023-025, 245, 309, 626.
"""

from __future__ import annotations

import itertools
import os

from tests.posix.place import RENAME_EXCHANGE, RENAME_NOREPLACE, Place, linkat, renameat2

FROM = ("file", "dir", "full dir", "symlink", "fifo")
TO = ("nothing", "file", "another name", "dir", "full dir", "symlink", "fifo", "itself")


def put(at: Place, what: str, name: str) -> None:
    if what == "full dir":
        os.makedirs(f"{name}/inner")
    elif what != "nothing":
        at.make({"file": "regular"}.get(what, what), name)


def check_everything_over_everything(at: Place) -> None:
    for flags in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
        for where in ("a", "b"):
            os.mkdir(f"{flags}{where}")
            os.chdir(f"{flags}{where}")
            os.mkdir("a")
            os.mkdir("b")
            for number, (source, target) in enumerate(itertools.product(FROM, TO)):
                if target == "another name" and source in ("dir", "full dir"):
                    continue
                old, new = f"a/from {number}", f"{where}/to {number}"
                put(at, source, old)
                if target == "itself":
                    new = old
                elif target == "another name":
                    linkat(old, new)
                else:
                    put(at, target, new)
                inode = os.lstat(old).st_ino
                with at.moving("a", "b"):
                    at(renameat2, old, new, flags, as_=f"rename {source} over {target} in {where}, flags {flags}")
                at.note("it is there", os.path.lexists(new) and os.lstat(new).st_ino == inode)
                at.note("links", [os.lstat(name).st_nlink for name in ("a", "b")])
            at.tree()
            os.chdir("..")


def check_ctime_of_what_is_renamed(at: Place) -> None:
    """rename/00, 22, 23."""
    for kind in ("regular", "dir", "fifo", "symlink", "socket"):
        os.mkdir(kind)
        os.chdir(kind)
        at.make(kind, "a")
        with at.moving("a", after=("b",)):
            at(os.rename, "a", "b")
        at.make(kind, "c")
        if kind != "dir":
            linkat("c", "also c")
            with at.moving("also c", "b", after=("also c", "c")):
                at(os.rename, "b", "c")
        else:
            with at.moving("b", "c", after=("c", "b")):
                at(renameat2, "b", "c", RENAME_EXCHANGE)
        at.tree()
        os.chdir("..")


def check_loops_and_dots(at: Place) -> None:
    """rename/18, 19, 24: not below itself, neither way; "." and ".." stay; ".." follows."""
    for flags in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
        os.mkdir(f"flags {flags}")
        os.chdir(f"flags {flags}")
        os.makedirs("a/b/c")
        at.make("regular", "f")
        for old, new in (
            ("a", "a/b/c/d"),
            ("a", "a/b/c"),
            ("a", "a/b"),
            ("a/b/c", "a"),
            ("a/b", "a"),
            ("f", "a"),
            ("f", "a/b/c/f/x"),
            ("a/.", "x"),
            ("a/..", "x"),
            ("f", "a/."),
            ("f", "a/.."),
            ("a", "a/."),
            ("a/b", "a/b/.."),
            (".", "x"),
            ("..", "x"),
            ("a", "."),
            ("none", "."),
            ("none", "a"),
            ("a", "none/x"),
            ("f", "f/x"),
            ("a/b/", "f"),
            ("f/", "g"),
            ("f", "g/"),
        ):
            at(renameat2, old, new, flags)
        at.tree()
        os.chdir("..")
    at(renameat2, "flags 0", "new", RENAME_NOREPLACE | RENAME_EXCHANGE)
    os.makedirs("a/b/c")
    inner = os.lstat("a/b").st_ino
    at(os.rename, "a/b/c", "moved")
    at.note("its parent", os.lstat("moved/..").st_ino == os.lstat(".").st_ino)
    at(renameat2, "moved", "a/b", RENAME_EXCHANGE)
    for name, parent in (("moved/..", "."), ("a/b/..", "a")):
        at.note("its parent", os.lstat(name).st_ino == os.lstat(parent).st_ino)
    at.note("exchanged", os.lstat("moved").st_ino == inner)
    at.tree()

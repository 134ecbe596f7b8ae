"""Checks: what goes on through descriptors when names go, and flags of open(2).

Of pjdfstest: open/00, 06-08, 16-23, unlink/14, ftruncate/11, truncate/11, open/20 (ETXTBSY); and what xfstests' generic
tests look at in these calls.
"""

from __future__ import annotations

import mmap
import os
import shutil
import subprocess

from tests.posix.place import TYPES, Place, Who, execute, linkat, names, open_, read, touch, write

OWNER, OTHER = Who(65534, 65534), Who(65533, 65533)


def check_flags_of_open(at: Place) -> None:
    number = 0
    flags = {
        "R": os.O_RDONLY,
        "W": os.O_WRONLY,
        "RW": os.O_RDWR,
        "R cut": os.O_RDONLY | os.O_TRUNC,
        "W cut": os.O_WRONLY | os.O_TRUNC,
        "append": os.O_WRONLY | os.O_APPEND,
        "directory": os.O_RDONLY | os.O_DIRECTORY,
        "no link": os.O_RDONLY | os.O_NOFOLLOW,
        "no link, directory": os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY,
        "path": os.O_PATH,
        "path, no link": os.O_PATH | os.O_NOFOLLOW,
        "create": os.O_CREAT | os.O_WRONLY,
        "create R": os.O_CREAT | os.O_RDONLY,
        "create only": os.O_CREAT | os.O_EXCL | os.O_WRONLY,
        "create, no link": os.O_CREAT | os.O_NOFOLLOW | os.O_WRONLY,
        "create and cut": os.O_CREAT | os.O_TRUNC | os.O_WRONLY,
        "create a directory": os.O_CREAT | os.O_DIRECTORY,
        "W directory": os.O_WRONLY | os.O_DIRECTORY,
        "sync": os.O_RDWR | os.O_SYNC,
        "no atime": os.O_RDONLY | os.O_NOATIME,
    }
    fresh = False
    for aim in ("missing", "f", "d", "fifo", "socket", "to f", "to d", "to missing", "to loop"):
        for label, flag in flags.items():
            if not fresh:
                number += 1
                os.mkdir(f"o{number}")
                os.chdir(f"o{number}")
                touch("f")
                write("f", b"bytes")
                os.mkdir("d")
                for kind in ("fifo", "socket"):
                    at.make(kind, kind)
                for name, to in (("to f", "f"), ("to d", "d"), ("to missing", "missing"), ("to loop", "to loop")):
                    os.symlink(to, name)
            with at.moving("."):
                outcome = at(open_, aim, flag, as_=f"open {label} of {aim}")
            fresh = outcome is not None or not flag & (os.O_CREAT | os.O_TRUNC)
            if not fresh:
                at.tree()
                at.stat("f")
                os.chdir("..")


def check_creating_what_one_may_not_write(at: Place) -> None:
    """open(2): the mode of a new file does not count for the descriptor that made it."""
    os.chmod(".", 0o777)

    def make_and_write(mode: int, flags: int) -> bytes:
        fd = os.open("new", os.O_CREAT | os.O_EXCL | flags, mode)
        try:
            if flags & (os.O_WRONLY | os.O_RDWR):
                os.write(fd, b"written")
                os.ftruncate(fd, 5)
            return os.pread(fd, 9, 0) if not flags & os.O_WRONLY else b""
        finally:
            os.close(fd)

    for who in (Who(0, 0), OWNER):
        for mode in (0, 0o444, 0o222, 0o777):
            for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
                at(make_and_write, mode, flags, by=who)
                at.stat("new")
                os.unlink("new")


def check_rights_outlive_the_mode(at: Place) -> None:
    """What was allowed when a file was opened stays allowed, and only that."""
    os.chmod(".", 0o777)
    touch("f", 0o600)
    os.chown("f", OWNER.uid, OWNER.gid)
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND):
        with at.acting(OWNER):
            fd = os.open("f", flags)
        os.chmod("f", 0)
        os.chown("f", 0, 0)
        for who in (OWNER, OTHER):
            for label, call in (
                ("write", lambda fd=fd: os.write(fd, b"more")),
                ("read", lambda fd=fd: os.pread(fd, 4, 0)),
                ("ftruncate", lambda fd=fd: os.ftruncate(fd, 6)),
                ("fchmod", lambda fd=fd: os.fchmod(fd, 0o600)),
                ("fchown", lambda fd=fd: os.fchown(fd, 1, 1)),
                ("futimens", lambda fd=fd: os.utime(fd)),
                ("fsync", lambda fd=fd: os.fsync(fd)),
            ):
                at(call, by=who, as_=f"{label} of {flags:o}")
        os.close(fd)
        at.stat("f")
        os.chown("f", OWNER.uid, OWNER.gid)
        os.chmod("f", 0o600)


def check_removed_while_it_is_open(at: Place) -> None:
    """unlink/14: bytes, attributes and times go on; no name can be given back (generic/035, 236, 257)."""
    for how in ("unlink", "rename over"):
        touch("f")
        write("f", b"Hello, World!")
        touch("g")
        fd = os.open("f", os.O_RDWR)
        at(os.unlink, "f") if how == "unlink" else at(os.rename, "g", "f")
        at.note("links", os.fstat(fd).st_nlink)
        at(lambda fd=fd: os.pread(fd, 20, 0), as_="read")
        at(lambda fd=fd: os.pwrite(fd, b"again", 13), as_="write")
        at(lambda fd=fd: os.fchmod(fd, 0o640), as_="fchmod")
        at(lambda fd=fd: os.fchown(fd, 7, 8), as_="fchown")
        at(lambda fd=fd: os.ftruncate(fd, 16), as_="ftruncate")
        at(lambda fd=fd: os.utime(fd, ns=(5, 6)), as_="futimens")
        at(lambda fd=fd: os.setxattr(fd, "user.x", b"1"), as_="fsetxattr")
        at(lambda fd=fd: os.fsync(fd), as_="fsync")
        found = os.fstat(fd)
        at.note("attributes", (oct(found.st_mode), found.st_uid, found.st_gid, found.st_size, found.st_nlink))
        at.note("mtime", found.st_mtime_ns)
        at(linkat, f"/proc/self/fd/{fd}", "back", 0x400, as_="link it back")
        at(lambda fd=fd: os.close(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)), as_="open it again")
        at(lambda fd=fd: os.pread(fd, 20, 0), as_="read")
        os.close(fd)
        at.tree()
        os.rename("f", "g") if how != "unlink" else os.unlink("g")


def check_directories_removed_while_they_are_open(at: Place) -> None:
    os.mkdir("d")
    fd = os.open("d", os.O_RDONLY | os.O_DIRECTORY)
    for name in ("a", "b"):
        touch(f"d/{name}")
    at(lambda: sorted(os.listdir(fd)), as_="list")
    at(os.rmdir, "d")
    for name in ("a", "b"):
        os.unlink(f"d/{name}")
    at(lambda: os.listdir(fd), as_="list the empty one")
    at(os.rmdir, "d")
    at(lambda: os.listdir(fd), as_="list what is gone")
    at(lambda: os.stat("x", dir_fd=fd), as_="stat in it")
    for label, call in (
        ("open", lambda: os.open("x", os.O_CREAT | os.O_WRONLY, dir_fd=fd)),
        ("mkdir", lambda: os.mkdir("x", dir_fd=fd)),
        ("symlink", lambda: os.symlink("x", "y", dir_fd=fd)),
        ("mkfifo", lambda: os.mkfifo("x", dir_fd=fd)),
        ("unlink", lambda: os.unlink("x", dir_fd=fd)),
    ):
        at(call, as_=f"{label} in it")
    at.make("regular", "f")
    at(lambda: os.link("f", "x", dst_dir_fd=fd), as_="link into it")
    at(lambda: os.rename("f", "x", dst_dir_fd=fd), as_="rename into it")
    os.close(fd)
    at.tree()


def check_a_program_that_runs(at: Place) -> None:
    """ETXTBSY: open/20, truncate/11, ftruncate/11; and a file that is open for writing is not executed."""
    shutil.copyfile("/bin/cat", "cat")
    os.chmod("cat", 0o755)
    with subprocess.Popen(["./cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdin is not None and running.stdout is not None
        running.stdin.write(b"x")
        running.stdin.flush()
        assert running.stdout.read(1) == b"x"
        at(open_, "cat", os.O_WRONLY)
        at(open_, "cat", os.O_RDWR)
        at(open_, "cat", os.O_RDONLY)
        at(os.truncate, "cat", 100)
        at(os.rename, "cat", "dog")
        at(os.unlink, "dog")
        running.stdin.close()
        at.note("its end", running.wait())
    shutil.copyfile("/bin/true", "true")
    os.chmod("true", 0o755)
    fd = os.open("true", os.O_RDWR)
    at(execute, "./true")
    os.close(fd)
    at(execute, "./true")


def check_reading_and_writing(at: Place) -> None:
    fd = os.open("f", os.O_CREAT | os.O_RDWR | os.O_APPEND)
    for label, call in (
        ("append", lambda: os.write(fd, b"one")),
        ("append at 0", lambda: os.pwrite(fd, b"two", 0)),
        ("seek", lambda: os.lseek(fd, 1, os.SEEK_SET)),
        ("append again", lambda: os.write(fd, b"three")),
        ("where", lambda: os.lseek(fd, 0, os.SEEK_CUR)),
        ("all", lambda: os.pread(fd, 100, 0)),
        ("beyond the end", lambda: os.pread(fd, 10, 100)),
        ("seek before the start", lambda: os.lseek(fd, -1, os.SEEK_SET)),
        ("read before the start", lambda: os.pread(fd, 1, -1)),
        ("vectors", lambda: os.pwritev(fd, [b"a", b"bc"], 50)),
        ("all", lambda: os.pread(fd, 100, 0)),
    ):
        at(call, as_=label)
    os.close(fd)
    at.stat("f")
    source, target = os.open("f", os.O_RDONLY), os.open("copy", os.O_CREAT | os.O_RDWR)
    at(lambda: os.copy_file_range(source, target, 8, 2, 5), as_="copy_file_range")
    at(lambda: os.sendfile(target, source, 3, 4), as_="sendfile")
    at(lambda: os.write(source, b"x"), as_="write to what is open for reading")
    os.close(source)
    os.close(target)
    at(read, "copy")
    for kind in TYPES:
        if kind == "dir":
            os.mkdir("d")
            fd = os.open("d", os.O_RDONLY)
            at(lambda fd=fd: os.read(fd, 1), as_="read a directory")
            at(lambda fd=fd: os.fsync(fd), as_="fsync of a directory")
            os.close(fd)


def check_mappings(at: Place) -> None:
    """generic/080, 141, 215, 246: what is written through a mapping is in the file, and moves its times."""
    touch("f")
    write("f", b"0" * 10_000)
    fd = os.open("f", os.O_RDWR)
    with at.moving("f"):
        with mmap.mmap(fd, 10_000) as mapped:
            mapped[5000:5004] = b"four"
            mapped.flush()
        os.fsync(fd)
    at(lambda: os.pread(fd, 8, 4998), as_="what was mapped")
    os.close(fd)
    with open("f", "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        at.note("read through it", mapped[4999:5005])


def check_listing(at: Place) -> None:
    for name in (b"\xff\xfe", b"a\nb", b" ", b"-", "ü".encode(), b"...", b"x" * 255, b"*"):
        touch(name)
    at(names, b".")
    with os.scandir(".") as found:
        at.note("kinds", all(entry.is_file(follow_symlinks=False) for entry in found))
    for kind in TYPES:
        at.make(kind, f"a {kind}")
    with os.scandir(".") as found:
        at.note("kinds", sorted((e.name, e.is_dir(follow_symlinks=False), e.is_symlink()) for e in found))

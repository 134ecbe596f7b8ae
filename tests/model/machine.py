"""The state machine: random calls by three users on two mounts, small enough a world that they meet.

Hypothesis makes the runs and shrinks one that fails to the few calls that matter; those become a named test in
``test_found.py``. :func:`run` is one round: so many examples of so many calls, from a seed.
"""

from __future__ import annotations

import os
import stat
from typing import Any, Final

import hypothesis.strategies as st
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from tests.model.twin import ROOT, Stage, Twin

STEPS_PER_EXAMPLE: Final = 50
SLOTS: Final = 4

# Simple ones first: Hypothesis shrinks towards them. Often enough something is at them, of whatever kind.
PLAIN: Final = [
    *(b"a", b"a", b"b", b"c"),
    *(b"a/a", b"a/a", b"a/b", b"b/a", b"b/b", b"c/a"),
    *(b"a/a/a", b"a/a/b", b"a/b/a", b"b/a/a"),
]
ODD: Final = [
    *(b"a/", b"b/", b"a/.", b"a/..", b".", b"", b"../a", b"a/../b", b"a//b", b"./c", b"a/a/"),
    *(b"<255>", b"<256>", b"a/<255>", b"<255u>", b"<256u>", b"a/<4081>/a", b"a/<4121>/a"),
    *(b"\xff\xfe\n", b"a/\x80", b" "),
]
PATHS: Final = PLAIN * 5 + ODD
TARGETS: Final = [b"a", b"b", b"c", b"a/a", b"../a", b"b/a", b".", b"nowhere", b"a/", b"<255>", b"\xff", b""]
MODES: Final = [0o777, 0o755, 0o644, 0o700, 0o666, 0o600, 0o1777, 0o2775, 0o6755, 0o4711, 0o2644, 0o070, 0o007, 0]
SIZES: Final = [0, 1, 5, 100, 4096, 70_000, 1_100_000]
OFFSETS: Final = [0, 1, 3, 4095, 4096, 70_000, 1_048_570]
TIMES: Final = ["now", "omit", 0, 1, 1_000_000_001, 1_234_567_890_123_456_789, 4_100_000_000_000_000_007]
IDS: Final = [-1, 0, 1001, 1002, 5000, 5001]
NAMES: Final = ["user.a", "user.b", "user.", "trusted.a", "nonsense", "nonsense.a", "user.<250>", "user.<251>"]
OPENING: Final = [
    os.O_RDONLY,
    os.O_RDWR | os.O_CREAT,
    os.O_WRONLY | os.O_CREAT | os.O_EXCL,
    os.O_RDWR,
    os.O_WRONLY | os.O_APPEND,
    os.O_RDWR | os.O_APPEND | os.O_CREAT,
    os.O_RDWR | os.O_TRUNC,
    os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
    os.O_RDONLY | os.O_TRUNC,
    os.O_RDONLY | os.O_CREAT,
    os.O_RDONLY | os.O_DIRECTORY,
    os.O_RDWR | os.O_DIRECTORY,
    os.O_RDONLY | os.O_NOFOLLOW,
    os.O_RDWR | os.O_NOFOLLOW | os.O_CREAT,
    os.O_PATH | os.O_NOFOLLOW,
    os.O_RDONLY | os.O_NOATIME,
    os.O_RDWR | os.O_SYNC,
    os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_DIRECTORY,
]
NODES: Final = [
    (stat.S_IFREG, 0),
    (0, 0),
    (stat.S_IFIFO, 0),
    (stat.S_IFSOCK, 0),
    (stat.S_IFCHR, os.makedev(1, 3)),
    (stat.S_IFBLK, os.makedev(250, 300)),
    (stat.S_IFCHR, 0),
    (stat.S_IFDIR, 0),
]

paths = st.sampled_from(PATHS)
modes = st.sampled_from(MODES)
times = st.sampled_from(TIMES)
mounts = st.integers(0, 1)
users = st.integers(0, 2)
slots = st.integers(0, SLOTS - 1)
sizes = st.sampled_from(SIZES)
offsets = st.sampled_from(OFFSETS)
follow = st.booleans()
names = st.sampled_from(NAMES)
xattr_flags = st.sampled_from([0, os.XATTR_CREATE, os.XATTR_REPLACE])
letters = st.sampled_from([b"x", b"y", b"z"])


class TwinMachine(RuleBasedStateMachine):
    """One example: calls in a fresh pair of directories."""

    stage: Stage

    def __init__(self) -> None:
        super().__init__()
        self.twin: Twin = self.stage.begin()
        self._values = 0

    def value(self, size: int) -> bytes:
        """For an extended attribute, another one each time. Whether ctime moves when the value that is there is set
        again no standard says: on ext4 it does not, on tmpfs and here it does."""
        self._values += 1
        return (b"%d" % self._values).ljust(size, b"v")

    def user(self, number: int) -> str:
        return self.twin.users[number % len(self.twin.users)]

    def slot(self, number: int) -> int:
        """An open one."""
        return sorted(self.twin.open)[number % len(self.twin.open)]

    def flags_for(self, u: int, flags: int) -> int:
        """Root's alone: pyfuse3 asks getxattr first where there are any, and whoever may not read gets its errno."""
        return flags if self.user(u) == ROOT else 0

    def any_open(self) -> bool:
        return bool(self.twin.open)

    @initialize(made=st.lists(st.sampled_from(["a", "b", "a/a", "c file", "b/a file", "l"]), unique=True))
    def populate(self, made: list[str]) -> None:
        """Something to begin with, more often than not."""
        for what in made:
            path, _, kind = what.partition(" ")
            if what == "l":
                self.twin.do(self.user(0), 0, "symlink", b"a", b"a/b")
            elif kind:
                self.twin.do(self.user(0), 0, "mknod", path.encode(), 0o666, 0)
            else:
                self.twin.do(self.user(0), 0, "mkdir", path.encode(), 0o777)

    # -- by path

    @rule(u=users, m=mounts, path=paths, flags=st.sampled_from(OPENING), mode=modes, slot=slots)
    def open(self, u: int, m: int, path: bytes, flags: int, mode: int, slot: int) -> None:
        self.twin.open_file(self.user(u), m, slot, path, flags, mode)

    @rule(m=mounts, path=st.sampled_from(PLAIN), mode=st.sampled_from([0o777, 0o666, 0o755]), slot=slots)
    def create(self, m: int, path: bytes, mode: int, slot: int) -> None:
        self.twin.open_file(self.user(0), m, slot, path, os.O_RDWR | os.O_CREAT, mode)

    @rule(u=users, m=mounts, path=paths, mode=st.sampled_from([0o777, 0o777, 0o1777, 0o2777, 0o755, 0o700, 0o4755]))
    def mkdir(self, u: int, m: int, path: bytes, mode: int) -> None:
        self.twin.do(self.user(u), m, "mkdir", path, mode)

    @rule(m=mounts, path=st.sampled_from(PLAIN))
    def make_directory(self, m: int, path: bytes) -> None:
        self.twin.do(self.user(0), m, "mkdir", path, 0o777)

    @rule(u=users, m=mounts, path=paths)
    def rmdir(self, u: int, m: int, path: bytes) -> None:
        self.twin.do(self.user(u), m, "rmdir", path)

    @rule(u=users, m=mounts, path=paths)
    def unlink(self, u: int, m: int, path: bytes) -> None:
        self.twin.do(self.user(u), m, "unlink", path)

    @rule(u=users, m=mounts, path=paths, mode=modes, node=st.sampled_from(NODES))
    def mknod(self, u: int, m: int, path: bytes, mode: int, node: tuple[int, int]) -> None:
        # To others than root the kernel refuses devices by itself, before it asks for permission to write.
        user = ROOT if node[1] else self.user(u)
        self.twin.do(user, m, "mknod", path, node[0] | mode, node[1])

    @rule(u=users, m=mounts, aim=st.sampled_from(TARGETS), path=paths)
    def symlink(self, u: int, m: int, aim: bytes, path: bytes) -> None:
        self.twin.do(self.user(u), m, "symlink", aim, path)

    @rule(u=users, m=mounts, path=paths)
    def readlink(self, u: int, m: int, path: bytes) -> None:
        self.twin.do(self.user(u), m, "readlink", path)

    @rule(u=users, m=mounts, old=paths, new=paths, follow=follow)
    def link(self, u: int, m: int, old: bytes, new: bytes, follow: bool) -> None:
        self.twin.do(self.user(u), m, "link", old, new, follow)

    @rule(u=users, m=mounts, old=paths, new=paths, flags=st.sampled_from([0, 0, 0, 1, 2, 3, 4, 8]))
    def rename(self, u: int, m: int, old: bytes, new: bytes, flags: int) -> None:
        if flags == 4:  # RENAME_WHITEOUT: for overlay file systems, we say no
            return
        # "." is refused before anybody asks whether the other path can be walked, see Twin.do.
        user = ROOT if b"." in (old, new) else self.user(u)
        self.twin.do(user, m, "rename", old, new, flags)

    @rule(u=users, m=mounts, path=paths)
    def listdir(self, u: int, m: int, path: bytes) -> None:
        self.twin.do(self.user(u), m, "listdir", path)

    @rule(u=users, m=mounts, path=paths, verb=st.sampled_from(["stat", "lstat", "statvfs"]))
    def stat(self, u: int, m: int, path: bytes, verb: str) -> None:
        self.twin.do(self.user(u), m, verb, path)

    @rule(u=users, m=mounts, path=paths, mode=st.integers(0, 7))
    def access(self, u: int, m: int, path: bytes, mode: int) -> None:
        self.twin.do(self.user(u), m, "access", path, mode)

    @rule(u=users, m=mounts, path=paths, mode=modes)
    def chmod(self, u: int, m: int, path: bytes, mode: int) -> None:
        self.twin.do(self.user(u), m, "chmod", path, mode)

    @rule(u=users, m=mounts, path=paths, uid=st.sampled_from(IDS), gid=st.sampled_from(IDS), follow=follow)
    def chown(self, u: int, m: int, path: bytes, uid: int, gid: int, follow: bool) -> None:
        if uid >= 0 or gid >= 0:  # with neither POSIX leaves open whether ctime moves, and the kernel asks for nothing
            self.twin.do(self.user(u), m, "chown", path, uid, gid, follow)

    @rule(u=users, m=mounts, path=paths, size=sizes)
    def truncate(self, u: int, m: int, path: bytes, size: int) -> None:
        self.twin.do(self.user(u), m, "truncate", path, size)

    @rule(u=users, m=mounts, path=paths, atime=times, mtime=times, follow=follow)
    def utimens(self, u: int, m: int, path: bytes, atime: Any, mtime: Any, follow: bool) -> None:
        self.twin.do(self.user(u), m, "utimens", path, atime, mtime, follow)

    @rule(u=users, m=mounts, path=paths, name=names, size=st.sampled_from([1, 300]), flags=xattr_flags, follow=follow)
    def setxattr(self, u: int, m: int, path: bytes, name: str, size: int, flags: int, follow: bool) -> None:
        self.twin.do(self.user(u), m, "setxattr", path, name, self.value(size), self.flags_for(u, flags), follow)

    @rule(u=users, m=mounts, path=paths, name=names, verb=st.sampled_from(["getxattr", "removexattr"]), follow=follow)
    def xattr(self, u: int, m: int, path: bytes, name: str, verb: str, follow: bool) -> None:
        self.twin.do(self.user(u), m, verb, path, name, follow)

    @rule(u=users, m=mounts, path=paths, follow=follow)
    def listxattr(self, u: int, m: int, path: bytes, follow: bool) -> None:
        self.twin.do(self.user(u), m, "listxattr", path, follow)

    # -- by handle

    @precondition(any_open)
    @rule(slot=slots)
    def close(self, slot: int) -> None:
        self.twin.on_handle(self.slot(slot), "close")

    @precondition(any_open)
    @rule(slot=slots, letter=letters, size=sizes)
    def write(self, slot: int, letter: bytes, size: int) -> None:
        self.twin.on_handle(self.slot(slot), "write", letter * size)

    @precondition(any_open)
    @rule(slot=slots, letter=letters, size=sizes, offset=offsets)
    def pwrite(self, slot: int, letter: bytes, size: int, offset: int) -> None:
        self.twin.on_handle(self.slot(slot), "pwrite", letter * size, offset)

    @precondition(any_open)
    @rule(slot=slots, size=sizes)
    def read(self, slot: int, size: int) -> None:
        self.twin.on_handle(self.slot(slot), "read", size)

    @precondition(any_open)
    @rule(slot=slots, size=sizes, offset=offsets)
    def pread(self, slot: int, size: int, offset: int) -> None:
        self.twin.on_handle(self.slot(slot), "pread", size, offset)

    @precondition(any_open)
    @rule(slot=slots, offset=offsets, whence=st.sampled_from([os.SEEK_SET, os.SEEK_CUR, os.SEEK_END]))
    def lseek(self, slot: int, offset: int, whence: int) -> None:
        self.twin.on_handle(self.slot(slot), "lseek", offset, whence)

    @precondition(any_open)
    @rule(slot=slots, size=sizes)
    def ftruncate(self, slot: int, size: int) -> None:
        self.twin.on_handle(self.slot(slot), "ftruncate", size)

    @precondition(any_open)
    @rule(slot=slots, verb=st.sampled_from(["fstat", "flush", "fsync", "fdatasync", "flistdir"]))
    def ask(self, slot: int, verb: str) -> None:
        self.twin.on_handle(self.slot(slot), verb)

    @precondition(any_open)
    @rule(slot=slots, mode=modes)
    def fchmod(self, slot: int, mode: int) -> None:
        self.twin.on_handle(self.slot(slot), "fchmod", mode)

    @precondition(any_open)
    @rule(slot=slots, uid=st.sampled_from(IDS), gid=st.sampled_from(IDS))
    def fchown(self, slot: int, uid: int, gid: int) -> None:
        if uid >= 0 or gid >= 0:
            self.twin.on_handle(self.slot(slot), "fchown", uid, gid)

    @precondition(any_open)
    @rule(slot=slots, atime=times, mtime=times)
    def futimens(self, slot: int, atime: Any, mtime: Any) -> None:
        self.twin.on_handle(self.slot(slot), "futimens", atime, mtime)

    @precondition(any_open)
    @rule(slot=slots, name=names, flags=xattr_flags)
    def fsetxattr(self, slot: int, name: str, flags: int) -> None:
        found = self.slot(slot)
        root = self.twin.open[found].user == ROOT
        self.twin.on_handle(found, "fsetxattr", name, self.value(1), flags if root else 0)

    @precondition(any_open)
    @rule(slot=slots, path=paths)
    def relink(self, slot: int, path: bytes) -> None:
        self.twin.on_handle(self.slot(slot), "relink", path)

    # -- the whole

    @rule()
    def compare(self) -> None:
        self.twin.compare()

    def teardown(self) -> None:
        """Also after a failure: then there is nothing left to compare."""
        self.stage.steps += self.twin.steps
        try:
            if self.twin.sound:
                self.twin.compare()
        finally:
            self.twin.close()


def run(on: Stage, number: int, examples: int, steps: int = STEPS_PER_EXAMPLE, *, shrink: bool) -> None:
    """One round from seed *number*. Raises what failed; with *shrink* it is minimised before."""

    class Machine(TwinMachine):
        stage = on

    phases = (Phase.generate, Phase.shrink) if shrink else (Phase.generate,)
    # Timings are those of a cluster on a busy host: no deadline, and no complaint about slowness.
    chosen = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        phases=phases,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    run_state_machine_as_test(seed(number)(Machine), settings=chosen)

"""Random operations by three users, on the state machine and on a local file system of Linux: same errors, same tree.

This is the model: what a kernel answers is what applications expect. Run by root it acts as three users, else as one.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import random
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.mds.harness import ALICE, BOB, ROOT, TOP, Attr, World
from wire import ops
from wire.codec import unpack_untrusted

PLACE = "/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir()
AT_FDCWD = -100
PROTECTED_HARDLINKS = Path("/proc/sys/fs/protected_hardlinks")

PATHS = [
    *(("a",), ("a",), ("a",), ("b",), ("b",), ("c",)),
    *(("a", "a"), ("a", "a"), ("a", "b"), ("a", "b"), ("b", "a"), ("b", "b"), ("b", "c"), ("c", "a")),
    *(("a", "a", "a"), ("a", "a", "b"), ("a", "b", "a"), ("b", "a", "a")),
]
"""Some more often than others, so that there is usually something at them."""
SELF = ops.Cred(os.geteuid(), os.getegid(), tuple(os.getgroups()))
CREDS = [ROOT, ALICE, ALICE, BOB] if os.geteuid() == 0 else [SELF]
MODES = [0o777, 0o777, 0o755, 0o700, 0o666, 0o644, 0o600, 0o1777, 0o2773, 0o6755, 0o070, 0o000]
GROUPS = [0, 1001, 1002, 5000]
USERS = [0, 1001, 1002]
STEPS = 400


def random_call(rng: random.Random) -> tuple[Any, ...]:
    path, other, mode = rng.choice(PATHS), rng.choice(PATHS), rng.choice(MODES)
    return rng.choice(
        [
            ("create", path, mode),
            ("create", path, mode),
            ("mkdir", path, mode),
            ("mkdir", path, rng.choice([0o777, 0o1777, mode])),
            ("mkdir", path, rng.choice([0o777, 0o1777, mode])),
            ("mkfifo", path, mode),
            ("symlink", path),
            ("link", path, other),
            ("unlink", path),
            ("rmdir", path),
            ("rename", path, other, rng.choice([0, 0, 0, 1, 2])),
            ("rename", path, other, rng.choice([0, 0, 0, 1, 2])),
            ("chmod", path, mode),
            ("chown", path, rng.choice(USERS), rng.choice(GROUPS)),
            ("chgrp", path, rng.choice(GROUPS)),
            ("truncate", path, rng.randrange(9)),
            ("touch", path),
            ("utime", path),
            ("open", path, rng.choice([os.O_RDONLY, os.O_WRONLY, os.O_RDWR])),
            ("list", path),
        ]
    )


@contextlib.contextmanager
def acting_as(cred: ops.Cred) -> Iterator[None]:
    if cred is SELF:
        yield
        return
    before = os.getgroups(), os.getegid(), os.geteuid()
    os.setgroups(list(cred.groups))
    os.setegid(cred.gid)
    os.seteuid(cred.uid)
    try:
        yield
    finally:
        os.seteuid(before[2])
        os.setegid(before[1])
        os.setgroups(before[0])


def errno_of(call: Callable[[], object]) -> int:
    try:
        call()
    except OSError as exc:
        return int(exc.errno or 0)
    return 0


class Kernel:
    """The calls on a local directory."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.libc = ctypes.CDLL(None, use_errno=True)

    def at(self, path: tuple[str, ...]) -> str:
        return os.path.join(self.root, *path)

    def call(self, cred: ops.Cred, verb: str, path: tuple[str, ...], *args: Any) -> int:
        where = self.at(path)
        with acting_as(cred):
            return errno_of(lambda: getattr(self, verb)(where, *args))

    def create(self, path: str, mode: int) -> None:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))

    def mkdir(self, path: str, mode: int) -> None:
        os.mkdir(path, mode)

    def mkfifo(self, path: str, mode: int) -> None:
        os.mkfifo(path, mode)

    def symlink(self, path: str) -> None:
        os.symlink("/nowhere/at/all", path)

    def link(self, path: str, other: tuple[str, ...]) -> None:
        os.link(path, self.at(other), follow_symlinks=False)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def rmdir(self, path: str) -> None:
        os.rmdir(path)

    def rename(self, path: str, other: tuple[str, ...], flags: int) -> None:
        new = self.at(other)
        if self.libc.renameat2(AT_FDCWD, path.encode(), AT_FDCWD, new.encode(), flags) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))

    def chmod(self, path: str, mode: int) -> None:
        os.chmod(path, mode)

    def chown(self, path: str, uid: int, gid: int) -> None:
        os.chown(path, uid, gid, follow_symlinks=False)

    def chgrp(self, path: str, gid: int) -> None:
        os.chown(path, -1, gid, follow_symlinks=False)

    def truncate(self, path: str, size: int) -> None:
        os.truncate(path, size)

    def touch(self, path: str) -> None:
        os.utime(path)

    def utime(self, path: str) -> None:
        os.utime(path, (5, 6))

    def open(self, path: str, flags: int) -> None:
        os.close(os.open(path, flags | os.O_NONBLOCK))

    def list(self, path: str) -> None:
        os.listdir(path)

    def tree(self) -> dict[str, Any]:
        found = {}
        for above, dirs, files in os.walk(self.root):
            for name in dirs + files:
                path = os.path.join(above, name)
                s = os.lstat(path)
                found[os.path.relpath(path, self.root)] = (
                    s.st_ino, s.st_mode, s.st_nlink, s.st_uid, s.st_gid, 0 if stat.S_ISDIR(s.st_mode) else s.st_size
                )  # fmt: skip
        return found


class Ours:
    """The same calls on the state machine, as a client makes them from paths."""

    def __init__(self, world: World) -> None:
        self.world = world

    def call(self, cred: ops.Cred, verb: str, path: tuple[str, ...], *args: Any) -> int:
        return errno_of(lambda: getattr(self, verb)(cred, path, *args))

    def ask(self, op: Any) -> Any:
        result = self.world.machine.query(op)
        if result.status:
            raise OSError(result.status, str(op))
        return unpack_untrusted(result.body)

    def do(self, op: Any) -> None:
        outcome = self.world.run(op)
        if outcome.status:
            raise OSError(outcome.status, str(op))
        for ino in outcome.orphaned:
            self.world.release(ino)

    def parent(self, cred: ops.Cred, path: tuple[str, ...]) -> int:
        at = TOP
        for name in path[:-1]:
            attr = Attr(self.ask(ops.Lookup(cred, at, name.encode())))
            if stat.S_ISLNK(attr.mode):
                raise OSError(errno.ENOENT, "it leads nowhere")
            at = attr.ino
        # The kernel asks for search permission in the last directory before it calls a file system.
        self.ask(ops.Lookup(cred, at, b"."))
        return at

    def find(self, cred: ops.Cred, path: tuple[str, ...], follow: bool = True) -> Attr:
        attr = Attr(self.ask(ops.Lookup(cred, self.parent(cred, path), path[-1].encode())))
        if follow and stat.S_ISLNK(attr.mode):
            raise OSError(errno.ENOENT, "it leads nowhere")
        return attr

    def create(self, cred: ops.Cred, path: tuple[str, ...], mode: int) -> None:
        self.do(ops.Create(cred, self.parent(cred, path), path[-1].encode(), mode))

    def mkdir(self, cred: ops.Cred, path: tuple[str, ...], mode: int) -> None:
        self.do(ops.Mkdir(cred, self.parent(cred, path), path[-1].encode(), mode))

    def mkfifo(self, cred: ops.Cred, path: tuple[str, ...], mode: int) -> None:
        self.do(ops.Mknod(cred, self.parent(cred, path), path[-1].encode(), stat.S_IFIFO | mode, 0))

    def symlink(self, cred: ops.Cred, path: tuple[str, ...]) -> None:
        self.do(ops.Symlink(cred, self.parent(cred, path), path[-1].encode(), b"/nowhere/at/all"))

    def link(self, cred: ops.Cred, path: tuple[str, ...], other: tuple[str, ...]) -> None:
        ino = self.find(cred, path, follow=False).ino
        self.do(ops.Link(cred, ino, self.parent(cred, other), other[-1].encode()))

    def unlink(self, cred: ops.Cred, path: tuple[str, ...]) -> None:
        self.do(ops.Unlink(cred, self.parent(cred, path), path[-1].encode()))

    def rmdir(self, cred: ops.Cred, path: tuple[str, ...]) -> None:
        self.do(ops.Rmdir(cred, self.parent(cred, path), path[-1].encode()))

    def rename(self, cred: ops.Cred, path: tuple[str, ...], other: tuple[str, ...], flags: int) -> None:
        one, two = self.parent(cred, path), self.parent(cred, other)
        self.do(ops.Rename(cred, one, path[-1].encode(), two, other[-1].encode(), flags))

    def chmod(self, cred: ops.Cred, path: tuple[str, ...], mode: int) -> None:
        self.do(self.world.set_attr(self.find(cred, path).ino, cred, mode=mode))

    def chown(self, cred: ops.Cred, path: tuple[str, ...], uid: int, gid: int) -> None:
        self.do(self.world.set_attr(self.find(cred, path, follow=False).ino, cred, uid=uid, gid=gid))

    def chgrp(self, cred: ops.Cred, path: tuple[str, ...], gid: int) -> None:
        self.do(self.world.set_attr(self.find(cred, path, follow=False).ino, cred, gid=gid))

    def truncate(self, cred: ops.Cred, path: tuple[str, ...], size: int) -> None:
        ino = self.find(cred, path).ino
        self.do(self.world.set_attr(ino, cred, size=size))
        self.do(ops.Settle(ino, 2**32))

    def touch(self, cred: ops.Cred, path: tuple[str, ...]) -> None:
        self.do(self.world.set_attr(self.find(cred, path).ino, cred, atime_now=1, mtime_now=1))

    def utime(self, cred: ops.Cred, path: tuple[str, ...]) -> None:
        self.do(self.world.set_attr(self.find(cred, path).ino, cred, atime_ns=5, mtime_ns=6))

    def open(self, cred: ops.Cred, path: tuple[str, ...], flags: int) -> None:
        attr = self.find(cred, path)
        self.ask(ops.Open(cred, attr.ino, flags))
        if stat.S_ISFIFO(attr.mode) and flags == os.O_WRONLY:
            raise OSError(errno.ENXIO, "nobody reads: the client's kernel says so, not the file system")

    def list(self, cred: ops.Cred, path: tuple[str, ...]) -> None:
        attr = self.find(cred, path)
        if not stat.S_ISDIR(attr.mode):
            raise OSError(errno.ENOTDIR, "O_DIRECTORY")
        self.ask(ops.Open(cred, attr.ino, os.O_RDONLY))
        self.ask(ops.ReadDir(cred, attr.ino, 0, 100))

    def tree(self) -> dict[str, Any]:
        found: dict[str, Any] = {}

        def walk(ino: int, above: str) -> None:
            for name, _cookie, values in self.ask(ops.ReadDir(ROOT, ino, 0, 1000))[0]:
                a = Attr(values)
                path = os.path.join(above, name.decode())
                is_dir = stat.S_ISDIR(a.mode)
                found[path] = (a.ino, a.mode, a.nlink, a.uid, a.gid, 0 if is_dir else a.size)
                if is_dir:
                    walk(a.ino, path)

        walk(TOP, "")
        return found


def same_inodes(tree: dict[str, Any]) -> list[list[str]]:
    """Which paths are names of one inode."""
    by_ino: dict[int, list[str]] = {}
    for path in sorted(tree):
        by_ino.setdefault(tree[path][0], []).append(path)
    return sorted(by_ino.values())


def without_numbers(tree: dict[str, Any]) -> dict[str, Any]:
    return {path: facts[1:] for path, facts in tree.items()}


@pytest.mark.parametrize("seed", range(20))
def test_as_linux_does(seed: int) -> None:
    rng = random.Random(seed)
    root = tempfile.mkdtemp(dir=PLACE)
    state = tempfile.mkdtemp(dir=PLACE)
    mask = os.umask(0)
    try:
        os.chmod(root, 0o777)
        kernel, world = Kernel(root), World(Path(state) / "s")
        ours = Ours(world)
        protected = PROTECTED_HARDLINKS.exists() and PROTECTED_HARDLINKS.read_text().strip() == "1"
        for step in range(STEPS):
            cred, (verb, *args) = rng.choice(CREDS), random_call(rng)
            theirs = kernel.call(cred, verb, *args)
            if verb == "link" and theirs == errno.EPERM and protected and cred is not ROOT:
                continue  # a rule of the client's kernel (sysctl), before it asks a file system
            mine = ours.call(cred, verb, *args)
            assert name_of(mine) == name_of(theirs), f"step {step}: uid {cred.uid} {verb} {args}"
            if step % 20 == 0:
                left, right = kernel.tree(), ours.tree()
                assert without_numbers(right) == without_numbers(left)
                assert same_inodes(right) == same_inodes(left)
        world.finish()
    finally:
        os.umask(mask)
        shutil.rmtree(root)
        shutil.rmtree(state)


def name_of(code: int) -> str:
    return errno.errorcode.get(code, str(code)) if code else "OK"

"""The same calls on a mount and on a local directory, compared: results, errnos, and the trees they leave.

Two mounts on different replicas take part. A call names the mount it is made on; what one mount has written and not
closed or synced need not be seen by the other one (close-to-open), so before a call on one the handles written to on
the other are flushed.
"""

from __future__ import annotations

import ast
import itertools
import os
import re
import select
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from admin.local import child_environment
from tests.model.actor import given

ROOT: Final = "root"
USERS: Final = {"root": (0, 0, ()), "alice": (1001, 1001, (5000,)), "bob": (1002, 1002, (1001, 5001))}
"""name -> (uid, gid, supplementary groups). Bob is in Alice's group."""
MINE: Final = {"root": (os.geteuid(), os.getegid(), tuple(os.getgroups()))}
"""Who takes part when this is not run by root: nobody else can be acted as."""
ATIME = False
CALL_LIMIT_S: Final = 20.0
"""A call that takes longer hangs: nothing here waits for anything."""

NAMING: Final = ("mkdir", "rmdir", "unlink", "rename", "link", "mknod", "symlink", "relink")
NOT_ALLOWED: Final = (("error", "EACCES"), ("error", "EPERM"))
KERNEL_FIRST: Final = tuple(
    ("error", name) for name in ("ENOTDIR", "EISDIR", "EBUSY", "EINVAL", "EPERM", "EEXIST", "ENOENT")
)
"""Where a call is refused for two reasons: a kernel asks a local file system's directory for permission first and then
looks at the types of what is there. For a FUSE mount it looks at the types, refuses, and we are never asked."""
_DOTS: Final = re.compile(rb"[^/.]/+\.\.?(/|$)")

Answer = tuple[str, Any]


class Hang(BaseException):
    """A call does not return. No Exception: there is nothing to shrink on a stage where somebody is stuck."""


class Actor:
    """A process that acts as one user, see :mod:`tests.model.actor`."""

    def __init__(self, uid: int, gid: int, groups: tuple[int, ...]) -> None:
        argv = [sys.executable, "-m", "tests.model.actor", str(uid), str(gid), ",".join(map(str, groups))]
        self._process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=child_environment(), text=True
        )

    def calls(self, *calls: tuple[bytes, str, tuple[Any, ...]]) -> list[Answer]:
        """Make *calls*, (root, verb, arguments) each, one after the other."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(repr(list(calls)) + "\n")
        self._process.stdin.flush()
        # One answer a line, one line a question: what the reader has buffered is never more than this answer.
        if not select.select([self._process.stdout], [], [], CALL_LIMIT_S)[0]:
            self._process.kill()
            raise Hang(f"no answer after {CALL_LIMIT_S} s: {[call for call in calls]}")
        line = self._process.stdout.readline()
        assert line, "the actor has ended: see its traceback"
        answers: list[Answer] = ast.literal_eval(line)
        return answers

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


@dataclass(frozen=True, slots=True)
class Handle:
    """An open file of both sides."""

    user: str
    mount: int


class Difference(AssertionError):
    """The mount does otherwise than the local file system."""


class Twin:
    """One directory on the mounts, and its twin on the local file system."""

    def __init__(self, local: Path, mounts: tuple[Path, ...], actors: dict[str, Actor], fine_times: bool) -> None:
        """*fine_times*: the local file system's times move with every change, however soon it comes after a look."""
        self.actors = actors
        self.open: dict[int, Handle] = {}
        self.steps = 0
        self.sound = True
        """Nothing has differed yet."""
        self._tops = (local, *mounts)
        self.fine_times = fine_times
        self._dirty: set[int] = set()
        self._before: list[dict[bytes, tuple[Any, ...]]] = []
        for top in (local, mounts[0]):
            # Two levels, so that ".." leads to a place that is compared as well.
            (top / "top").mkdir(parents=True)
            os.chmod(top / "top", 0o777)
        self.roots = tuple(os.fsencode(top / "top") for top in self._tops)
        self.compare()

    @property
    def users(self) -> list[str]:
        return list(self.actors)

    # -- calls

    def do(self, user: str, mount: int, verb: str, *args: Any) -> Answer:
        """Let *user* make a call by path on *mount* (0, 1) and on the local directory; the answer of both.

        Left out is what FUSE cannot tell us: a walk over "." and ".." asks the file system nothing, so that somebody
        who may not search a directory still gets out of it again.
        """
        if user != ROOT and any(isinstance(arg, bytes) and _DOTS.search(arg) for arg in args):
            return "left out", None
        self._settle(mount)
        return self._both(user, mount, verb, args)

    def on_handle(self, slot: int, verb: str, *args: Any) -> Answer:
        """A call on the open file *slot*, by who opened it."""
        handle = self.open[slot]
        self._settle(handle.mount)
        if verb in ("write", "pwrite"):
            self._dirty.add(slot)
        elif verb in ("flush", "fsync", "close"):
            self._dirty.discard(slot)
        if verb == "close":
            del self.open[slot]
        return self._both(handle.user, handle.mount, verb, (slot, *args))

    def open_file(self, user: str, mount: int, slot: int, path: bytes, flags: int, mode: int = 0o644) -> Answer:
        """open(2); the file is *slot* from now on, in place of what that was."""
        if slot in self.open:
            self.on_handle(slot, "close")
        if self._is_special(path):
            return "left out", None
        answer = self.do(user, mount, "open", path, flags, mode, slot)
        if answer[0] == "ok":
            self.open[slot] = Handle(user, mount)
        return answer

    def _is_special(self, path: bytes) -> bool:
        """The kernel opens these without asking a FUSE file system (tests/fuse/test_special_files.py)."""
        ((kind, facts),) = self.actors[ROOT].calls((self.roots[0], "stat", (path,)))
        return kind == "ok" and stat.S_IFMT(int(facts[0], 8)) not in (stat.S_IFREG, stat.S_IFDIR)

    def _settle(self, mount: int) -> None:
        """Let the others' writes be seen on *mount*."""
        for slot in sorted(self._dirty):
            handle = self.open[slot]
            if handle.mount != mount:
                self._dirty.discard(slot)
                self._both(handle.user, handle.mount, "flush", (slot,))

    def _both(self, user: str, mount: int, verb: str, args: tuple[Any, ...]) -> Answer:
        self.steps += 1
        self.sound = False
        theirs, ours = self.actors[user].calls(
            (self.roots[0], verb, args), (self.roots[1 + mount], verb, args)
        )
        if theirs != ours and not (verb in NAMING and theirs in NOT_ALLOWED and ours in KERNEL_FIRST):
            raise Difference(f"{user} on mount {mount}: {verb}{args}: {ours}, and a local file system: {theirs}")
        self.sound = True
        return ours

    # -- trees

    def compare(self) -> None:
        """Compare everything there is, through both mounts, and which times have moved since the last time."""
        for slot in sorted(self._dirty):
            handle = self.open[slot]
            self._both(handle.user, handle.mount, "flush", (slot,))
        self._dirty.clear()
        self.sound = False
        trees = []
        for top in self._tops:
            ((kind, found),) = self.actors[ROOT].calls((os.fsencode(top), "tree", ()))
            if kind != "ok":
                raise Difference(f"{top} cannot be walked: {found}")
            trees.append({entry[0]: entry[1:] for entry in found})
        local, *ours = trees
        for mount, tree in enumerate(ours):
            self._same(f"mount {mount}", tree, local)
        if self._before:
            self._moved(local, ours[0])
        self._before = [local, ours[0]]
        self.sound = True

    def _same(self, where: str, ours: dict[bytes, tuple[Any, ...]], local: dict[bytes, tuple[Any, ...]]) -> None:
        if list(ours) != list(local):
            raise Difference(f"{where}: has {list(ours)}, and a local file system {list(local)}")
        for path, (facts, same, times, contents, xattrs) in local.items():
            # A walk reads directories and links, which may move their atime.
            asked = 0 if ATIME and is_file(facts) else 1
            theirs = (facts, same, tuple(map(given, times[asked:2])), contents, xattrs)
            mine_facts, mine_same, mine_times, mine_contents, mine_xattrs = ours[path]
            mine = (mine_facts, mine_same, tuple(map(given, mine_times[asked:2])), mine_contents, mine_xattrs)
            if mine != theirs:
                raise Difference(f"{where}: {path!r}: {mine}, and a local file system {theirs}")

    def _moved(self, local: dict[bytes, tuple[Any, ...]], ours: dict[bytes, tuple[Any, ...]]) -> None:
        """What is at the same path as before: have its times moved here and there alike?"""
        for path, now in local.items():
            if path not in self._before[0] or path not in self._before[1]:
                continue
            theirs = [a != b for a, b in zip(self._before[0][path][2], now[2], strict=True)]
            mine = [a != b for a, b in zip(self._before[1][path][2], ours[path][2], strict=True)]
            if not (ATIME and is_file(now[0])):
                theirs[0] = mine[0] = False
            wrong = [
                name
                for name, a, b in zip(("atime", "mtime", "ctime"), mine, theirs, strict=True)
                if (a != b if self.fine_times else b and not a)
            ]
            if wrong:
                moved = f"moved (atime, mtime, ctime): {mine}, and on a local file system: {theirs}"
                raise Difference(f"{path!r}: {moved}; wrong: {wrong}")

    def close(self) -> None:
        """Close what is open, remove both directories."""
        for actor in self.actors.values():
            actor.calls(*((root, "close_all", ()) for root in self.roots))
        for top in self._tops[:2]:
            shutil.rmtree(top)


def is_file(facts: tuple[Any, ...]) -> bool:
    return stat.S_ISREG(int(facts[0], 8))


class Stage:
    """Where examples take place: the mounts, a local directory, the actors; a fresh pair of directories for each."""

    def __init__(self, local: Path, mounts: tuple[Path, ...], actors: dict[str, Actor]) -> None:
        self.local = local
        self.mounts = mounts
        self.actors = actors
        self.steps = 0
        self._numbers = itertools.count(1)
        self.fine_times = self._has_fine_times()

    def begin(self) -> Twin:
        name = f"example-{next(self._numbers)}"
        return Twin(self.local / name, tuple(m / name for m in self.mounts), self.actors, self.fine_times)

    @contextmanager
    def twin(self) -> Iterator[Twin]:
        """For one example; both directories are compared at its end."""
        made = self.begin()
        try:
            yield made
            made.compare()
        finally:
            self.steps += made.steps
            made.close()

    def _has_fine_times(self) -> bool:
        """Whether ctime moves when a file is changed right after it was looked at (Linux 6.13's multigrain times)."""
        probe = self.local / "probe"
        probe.touch()
        seen = set()
        for mode in (0o600, 0o640) * 10:
            os.chmod(probe, mode)
            seen.add(os.stat(probe).st_ctime_ns)
        probe.unlink()
        return len(seen) == 20


@contextmanager
def stage(local: Path, mounts: tuple[Path, ...]) -> Iterator[Stage]:
    """A stage with its actors; they end with it."""
    with ExitStack() as stack:
        actors = {}
        for name, who in (USERS if os.geteuid() == 0 else MINE).items():
            actor = Actor(*who)
            stack.callback(actor.close)
            actors[name] = actor
        local.mkdir(exist_ok=True)
        os.chmod(local, 0o755)
        yield Stage(local, mounts, actors)

"""Pure. What a cell must answer: two directories with a few names each, as POSIX and our protocol have it.

A cell is one object to the checker of histories (tests.linearizable): operations of several clients contend for its
names, and some touch two of them. A *slot* is a name in one of the directories, numbered through. Inodes carry a
register (their mtime) and an extended attribute, so that a write that is lost, doubled or seen too early or too late
contradicts what is read, like a name does.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from tests.linearizable import Operation

NAMES: Final = 4
"""Names in each directory."""
DIRECTORIES: Final = 2
SLOTS: Final = NAMES * DIRECTORIES
FILE: Final = "file"
DIRECTORY: Final = "directory"

NOREPLACE: Final = 1
EXCHANGE: Final = 2
CREATE: Final = 1
REPLACE: Final = 2
"""As in renameat2(2) and setxattr(2)."""
READS: Final = frozenset(("find", "lookup", "readdir", "links", "stat", "fstat", "get_xattr"))
GONE: Final = (errno.ESTALE, errno.ENOENT)
"""What an operation on an inode without a name may say, when nobody has it open."""


class Inode(NamedTuple):
    """What is behind a name. An inode whose number nobody was told has a negative one, unique."""

    number: int
    kind: str
    mtime: int | None
    """None: not told yet."""
    xattr: str | None


class Seen(NamedTuple):
    """What an answer says about an inode."""

    number: int
    kind: str
    links: int
    mtime: int


State = tuple[Inode | None, ...]
EMPTY: Final[State] = (None,) * SLOTS


def slot_of(directory: int, name: int) -> int:
    return directory * NAMES + name


class Cell:
    """The model. An answer is ``(0, result)`` or ``(errno, None)``."""

    def __init__(self, start: State = EMPTY) -> None:
        self._start = start

    def initial(self) -> State:
        return self._start

    def reads(self, op: Operation) -> bool:
        return op.what[0] in READS or (op.ended is not None and op.answer[0] != 0)

    def step(self, state: State, op: Operation) -> Iterable[State]:
        kind, *args = op.what
        told = Told(op)
        match kind:
            case "create" | "mkdir":
                return _make(state, FILE if kind == "create" else DIRECTORY, args[0], op, told)
            case "unlink" | "rmdir":
                return _remove(state, args[0], FILE if kind == "unlink" else DIRECTORY, told)
            case "rename":
                return _rename(state, args[0], args[1], args[2], told)
            case "link":
                return _link(state, args[0], args[1], told)
            case "lookup":
                inode = state[args[0]]
                return told.fails(state, errno.ENOENT) if inode is None else told.sees(state, [inode])
            case "readdir":
                return _readdir(state, args[0], told)
            case "links":
                return told.says(state, 2 + sum(i is not None and i.kind == DIRECTORY for i in _part(state, args[0])))
        inode = _find(state, args[0])
        if inode is None:
            return told.of_one_without_name(state, args[0], kind == "fstat")
        return _on_inode(state, inode, kind, args[1:], told)


class Told:
    """An operation's answer, held against what the model says; an unknown one agrees with everything."""

    def __init__(self, op: Operation) -> None:
        self.known = op.ended is not None
        self.status, self.result = op.answer if self.known else (0, None)

    def fails(self, state: State, *codes: int) -> Sequence[State]:
        """It fails with one of *codes* and changes nothing."""
        return (state,) if not self.known or self.status in codes else ()

    def done(self, after: State) -> Sequence[State]:
        """It succeeds, with nothing to tell."""
        return (after,) if not self.known or self.status == 0 else ()

    def says(self, state: State, result: Any) -> Sequence[State]:
        return (state,) if not self.known or (self.status, self.result) == (0, result) else ()

    def sees(self, state: State, inodes: Sequence[Inode]) -> Sequence[State]:
        """It succeeds and tells about *inodes* as they are in *state*; what was open about them is known then."""
        if not self.known:
            return (state,)
        if self.status != 0 or len(self.result) != len(inodes):
            return ()
        for inode, what in zip(inodes, self.result, strict=True):
            seen = Seen(*what)
            now = inode._replace(number=seen.number, mtime=seen.mtime)
            if inode.number < 0:
                if _find(state, seen.number) is not None:
                    return ()
            elif inode.number != seen.number:
                return ()
            if inode.mtime not in (None, seen.mtime) or inode.kind != seen.kind:
                return ()
            if seen.links != (2 if inode.kind == DIRECTORY else sum(i == inode for i in state)):
                return ()
            if now != inode:
                state = tuple(now if i == inode else i for i in state)
        return (state,)

    def of_one_without_name(self, state: State, number: int, is_open: bool) -> Sequence[State]:
        """It is about an inode without a name: gone, or there for whoever has it open, and never with a name."""
        if not self.known or (self.status in GONE and not is_open):
            return (state,)
        if self.status == 0 and type(self.result) is list and self.result:
            seen = Seen(*self.result[0])
            return (state,) if seen.number == number and seen.links == 0 else ()
        # The other answers are about its extended attribute, which nobody else can see any more.
        return () if is_open else (state,)


def _part(state: State, directory: int) -> State:
    return state[directory * NAMES : (directory + 1) * NAMES]


def _find(state: State, number: int) -> Inode | None:
    return next((i for i in state if i is not None and i.number == number), None)


def _with(state: State, slot: int, inode: Inode | None) -> State:
    return (*state[:slot], inode, *state[slot + 1 :])


def _make(state: State, kind: str, slot: int, op: Operation, told: Told) -> Sequence[State]:
    if state[slot] is not None:
        return told.fails(state, errno.EEXIST)
    made = Inode(-op.began, kind, None, None)
    return told.sees(_with(state, slot, made), [made])


def _remove(state: State, slot: int, kind: str, told: Told) -> Sequence[State]:
    inode = state[slot]
    if inode is None:
        return told.fails(state, errno.ENOENT)
    if inode.kind != kind:
        return told.fails(state, errno.EISDIR if kind == FILE else errno.ENOTDIR)
    return told.done(_with(state, slot, None))


def _rename(state: State, old: int, new: int, flags: int, told: Told) -> Sequence[State]:
    source, there = state[old], state[new]
    if source is None:
        return told.fails(state, errno.ENOENT)
    if flags == EXCHANGE:
        if there is None:
            return told.fails(state, errno.ENOENT)
        return told.done(_with(_with(state, old, there), new, source))
    if there is not None:
        if flags == NOREPLACE:
            return told.fails(state, errno.EEXIST)
        if there == source:
            return told.done(state)  # two names of one file: rename(2) does nothing
        if there.kind != source.kind:
            return told.fails(state, errno.EISDIR if there.kind == DIRECTORY else errno.ENOTDIR)
    return told.done(_with(_with(state, old, None), new, source))


def _link(state: State, number: int, slot: int, told: Told) -> Sequence[State]:
    inode = _find(state, number)
    refused = [] if state[slot] is None else [errno.EEXIST]
    if inode is None:
        refused += GONE
    elif inode.kind == DIRECTORY:
        refused.append(errno.EPERM)
    if refused:
        return told.fails(state, *refused)
    return told.sees(_with(state, slot, inode), [inode]) if inode is not None else ()


def _readdir(state: State, directory: int, told: Told) -> Sequence[State]:
    entries = [(name, inode) for name, inode in enumerate(_part(state, directory)) if inode is not None]
    if not told.known:
        return (state,)
    if told.status != 0 or [name for name, _ in told.result] != [name for name, _ in entries]:
        return ()
    told.result = [seen for _, seen in told.result]
    return told.sees(state, [inode for _, inode in entries])


def _on_inode(state: State, inode: Inode, kind: str, args: list[Any], told: Told) -> Sequence[State]:
    """An operation by number on an inode that has a name."""

    def becomes(now: Inode) -> State:
        return state if now == inode else tuple(now if i == inode else i for i in state)

    match kind:
        case "stat" | "fstat":
            return told.sees(state, [inode])
        case "set_mtime":
            now = inode._replace(mtime=args[0])
            return told.sees(becomes(now), [now])
        case "get_xattr":
            return told.fails(state, errno.ENODATA) if inode.xattr is None else told.says(state, inode.xattr)
        case "set_xattr":
            value, flags = args
            if flags == CREATE and inode.xattr is not None:
                return told.fails(state, errno.EEXIST)
            if flags == REPLACE and inode.xattr is None:
                return told.fails(state, errno.ENODATA)
            return told.done(becomes(inode._replace(xattr=value)))
        case "remove_xattr":
            if inode.xattr is None:
                return told.fails(state, errno.ENODATA)
            return told.done(becomes(inode._replace(xattr=None)))
    raise AssertionError(f"no operation is called {kind}")

"""Pure. A tree of names as a sequential object, for tests.linearizable: what users of a few directories were told."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import Any, Final

from tests.linearizable import Operation
from wire import ops
from wire.errors import OK

Entry = tuple[int, bytes, int, bool]
"""(directory, name, inode, whether it is a directory)"""
State = frozenset[Entry]
READS: Final = (ops.Lookup, ops.ReadDir, ops.GetAttr)


class Tree:
    """Files and directories below *roots*, directories that are there from the beginning to the end.

    What an operation is: its message. Its answer: (status, result), the result as :func:`essence` has it; None where
    which inode that was is not told.
    """

    def __init__(self, roots: Iterable[int]) -> None:
        self._roots = frozenset(roots)

    def initial(self) -> State:
        return frozenset()

    def reads(self, op: Operation) -> bool:
        return isinstance(op.what, READS) or (op.answer is not None and op.answer[0] != OK)

    def step(self, state: State, op: Operation) -> list[State]:
        status, result = op.answer
        request = op.what
        if status in (errno.EACCES, errno.EXDEV):
            return [state]  # of modes and quotas nothing is known here
        match request:
            case ops.GetAttr(ino):
                right = OK if self._is_there(state, ino) else errno.ESTALE
                return [state] if status == right else []
            case ops.ReadDir():
                if not self._is_there(state, request.ino):
                    return [state] if status == errno.ENOENT else []
                listed = frozenset((name, ino) for parent, name, ino, _ in state if parent == request.ino)
                return [state] if status == OK and listed == result else []
        if not self._is_there(state, request.parent):
            return [state] if status == errno.ENOENT else []
        found = _find(state, request.parent, request.name)
        match request:
            case ops.Lookup():
                return [state] if _told(status, result, found) else []
            case ops.Create() | ops.Mkdir():
                if status != OK:
                    return [state] if status == errno.EEXIST and found is not None else []
                new = (request.parent, request.name, result, isinstance(request, ops.Mkdir))
                return [state | {new}] if found is None else []
            case ops.Unlink():
                if not _told(status, result, found):
                    return []
                return [state - {found}] if found is not None else [state]
            case ops.Rmdir():
                if found is not None and any(parent == found[2] for parent, *_ in state):
                    return [state] if status == errno.ENOTEMPTY else []
                if not _told(status, result, found):
                    return []
                return [state - {found}] if found is not None else [state]
            case ops.Rename():
                return self._moved(state, request, status, result, found)
        raise AssertionError(f"{request} is not played here")

    def _moved(self, state: State, request: ops.Rename, status: int, result: Any, found: Entry | None) -> list[State]:
        """Names of files are names of files only, and those of directories too."""
        if found is None or not self._is_there(state, request.new_parent):
            return [state] if status == errno.ENOENT else []
        there = _find(state, request.new_parent, request.new_name)
        if there is not None and any(parent == there[2] for parent, *_ in state):
            return [state] if status == errno.ENOTEMPTY else []
        if status != OK or result not in (None, (found[2], 0 if there is None else there[2])):
            return []
        after = state - {found, *([there] if there is not None else [])}
        return [after | {(request.new_parent, request.new_name, found[2], found[3])}]

    def _is_there(self, state: State, ino: int) -> bool:
        return ino in self._roots or any(one == ino for _, _, one, _ in state)


def _find(state: State, parent: int, name: bytes) -> Entry | None:
    return next((entry for entry in state if entry[0] == parent and entry[1] == name), None)


def _told(status: int, result: Any, found: Entry | None) -> bool:
    """The inode *found* was told, or that there is none."""
    return status == errno.ENOENT if found is None else status == OK and result in (None, found[2])


def essence(request: Any, status: int, body: Any) -> tuple[int, Any]:
    """Of an answer what the tree knows of: inode numbers, and which names there are."""
    if status != OK or isinstance(request, ops.GetAttr):
        return status, None
    if isinstance(request, ops.ReadDir):
        listed = frozenset((name, attr[0]) for name, _, attr in body[0])
        assert body[1] and len(listed) == len(body[0]), f"a listing with something twice: {body}"
        return status, listed
    if isinstance(request, ops.Create | ops.Mkdir | ops.Lookup):
        return status, body[0]
    return status, body

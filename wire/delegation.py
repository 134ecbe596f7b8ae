"""Pure. Directory delegations: a client makes files in a directory by itself, and has them ordered a moment later.

A directory is *delegated* to at most one session. While it is, no other session is answered anything that depends on
the directory's entries or attributes, and no request of another one that touches them is executed: the holder is asked
to give the delegation back first (:class:`DelegationRecall`). So the holder knows by itself whether a name is there,
and answers its applications at once; the files get numbers that its session was given beforehand, and are ordered by
:class:`CreateDelegated`, often with their contents. It gives a delegation back (:class:`Undelegate`) when everything
that it has answered is ordered. The idea is that of NFSv4.1's directory delegations and of CephFS's asynchronous
creates.
"""

from __future__ import annotations

from typing import Final

from wire import ids
from wire.codec import message
from wire.inline import bad_pieces
from wire.ops import TIME_NS_MAX, Cred, bad_ino, bad_mode, bad_name

DIRECTORIES_MAX: Final = 1024
"""Directories in one Undelegate, DelegationRecall, RecallDelegations or RevokeDelegations; and delegated at all."""
NUMBERS: Final = 256
"""Inode numbers that come with one Delegate."""


def _bad_directories(directories: tuple[int, ...]) -> str | None:
    if not 0 < len(directories) <= DIRECTORIES_MAX:
        return f"{len(directories)} directories"
    if not all(type(ino) is int and 0 < ino < 2**63 for ino in directories):
        return "an entry that is no inode number"
    return None


@message(21)
class Delegate:
    """A session wants directory *parent* delegated to it, and numbers for files; *cred* has to be one who may make
    files there. One who has it already gets more numbers.

    Result: ``(attr, first, count, inline, time_ns)``: the directory as it is; the session may use the inode numbers
    from ``first`` on, ``count`` of them, in any directory that it is delegated; ``inline``: the limit of new files
    there (never 0); the service's time of now. None: not now, or never (somebody else has it, a quota, a default ACL,
    files there are in objects from the start).
    """

    cred: Cred
    parent: int

    def invalid(self) -> str | None:
        return bad_ino(self.parent)


@message(22)
class CreateDelegated:
    """A regular file that the client has made by itself in a directory delegated to it. Result: attr.

    As Create, with the inode number *ino* (one of those that Delegate gave to this session) and the time *time_ns* at
    which it was made; *pieces*, as in WriteInline (none: it is empty), have been written to it since, last at
    *mtime_ns*. One that comes late, when the delegation has been taken away, is executed if it still can be.
    EACCES: the number is not the session's, or is in use. STALE_LAYOUT: the pieces do not fit; nothing is made.
    """

    cred: Cred
    parent: int
    name: bytes
    mode: int
    ino: int
    time_ns: int
    pieces: tuple[tuple[int, bytes], ...] = ()
    mtime_ns: int = 0
    privileged: bool = False

    def invalid(self) -> str | None:
        if not 0 <= self.time_ns <= TIME_NS_MAX or not 0 <= self.mtime_ns <= TIME_NS_MAX:
            return "a time beyond 64 bits"
        if self.pieces and (reason := bad_pieces(self.pieces)) is not None:
            return reason
        return bad_ino(self.parent) or bad_name(self.name) or bad_mode(self.mode) or bad_ino(self.ino)

    @property
    def end(self) -> int:
        """One past the last byte; 0: it is empty."""
        return self.pieces[-1][0] + len(self.pieces[-1][1]) if self.pieces else 0


@message(23)
class Undelegate:
    """A session gives these delegations back: everything that it has answered on their strength is ordered. Those
    that it does not have are passed over. Result: None."""

    parents: tuple[int, ...]

    def invalid(self) -> str | None:
        return _bad_directories(self.parents)


@message(24)
class RecallDelegations:
    """Between replicas: these delegations are wanted back. It is written down with them, so that the holder is asked
    wherever it is attached, and again when it attaches elsewhere. *pause*: all are in the way of something, so for a
    moment nothing else is delegated. Result: None."""

    parents: tuple[int, ...]
    pause: bool = False

    def invalid(self) -> str | None:
        return _bad_directories(self.parents)


@message(25)
class RevokeDelegations:
    """Between replicas: the holder has not answered in time and has lost these, ``((directory, session), ...)``. Those
    that are another session's by now are passed over. Result: None."""

    delegations: tuple[tuple[int, int], ...]

    def invalid(self) -> str | None:
        if not all(
            type(one) is tuple and len(one) == 2 and type(one[1]) is int and 0 < one[1] <= ids.U64_MAX
            for one in self.delegations
        ):
            return "an entry that is no directory and session"
        return _bad_directories(tuple(directory for directory, _ in self.delegations))


@message(26)
class DelegationRecall:
    """A replica asks a client to give these delegations back (Undelegate), as soon as what it has answered is
    ordered. From now on it answers nothing by itself there."""

    parents: tuple[int, ...]

    def invalid(self) -> str | None:
        return _bad_directories(self.parents)


DelegationRequest = Delegate | CreateDelegated | Undelegate
"""What clients ask, in a slot."""

"""What the service cannot refuse in time by itself: writes beyond a quota. And what lies below a directory, added up.

Bytes go straight to the storage targets; the service hears of a file's size when it is committed, and refuses a commit
that its quota does not allow. So that a writer is told by write(2) and not seconds later by fsync(2), a mount asks how
much room a quota has before a file that is counted in it grows, and deducts what it lets grow. Others may take
the room meanwhile: then the commit is refused, and the writer told at fsync or close, as on NFS.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, Protocol

import trio

from client import limits
from client.attributes import Attr
from wire.errors import FileSystemError
from wire.ops import Cred
from wire.quotaops import QuotaRoom, Tally

USAGE: Final = {b"lockstep.rbytes": 0, b"lockstep.rfiles": 1, b"lockstep.rsubdirs": 2, b"lockstep.rentries": 3}
"""Extended attributes of a directory: bytes, files, directories, and both together, of all that lies below it."""

Ask = Callable[[Any], Awaitable[Any]]


class Growing(Protocol):
    """An open file."""

    @property
    def attr(self) -> Attr:
        """As the service knows it."""
        ...

    @property
    def size(self) -> int:
        """With what is not committed."""
        ...


class Rooms:
    """How much files may grow by, per quota root, as far as this mount knows."""

    def __init__(self, ask: Ask, dirty: Callable[[], Iterable[Growing]]) -> None:
        """*ask*: the service; *dirty*: the files of this mount that have something uncommitted."""
        self._ask = ask
        self._dirty = dirty
        self._left: dict[int, tuple[float, int | None]] = {}
        """Root -> (when it was asked, bytes that are left, None: any number)."""

    async def claim(self, root: int, growth: int) -> None:
        """A file counted in *root* is about to grow by so many bytes. Raises EDQUOT."""
        if growth <= 0:
            return
        known = self._left.get(root)
        now = trio.current_time()
        if known is None or now - known[0] > limits.QUOTA_ROOM_AGE_S or (known[1] is not None and known[1] < growth):
            left = await self._ask(QuotaRoom(root))
            if left is not None:
                left -= sum(max(0, f.size - f.attr.size) for f in self._dirty() if f.attr.quota == root)
            if len(self._left) >= limits.QUOTA_ROOMS_MAX:
                self._left.clear()
        else:
            now, left = known
        if left is not None:
            if left < growth:
                self._left[root] = (now, left)
                raise FileSystemError(errno.EDQUOT, f"quota of directory {root}: {max(0, left)} bytes are left")
            left -= growth
        self._left[root] = (now, left)


async def below(ask: Ask, cred: Cred, ino: int) -> tuple[int, int, int]:
    """(bytes, files, directories) that lie below directory *ino*; what is no directory counts as a file.

    At once of a quota root; else the directories below are gone through, as du does it: exact if nothing changes
    meanwhile. A file with several names counts once. In memory are the directories found and not yet gone through,
    and the files with several names. Raises ENOTDIR, EACCES for a directory that *cred* may not list.
    """
    size = files = directories = 0
    pending = [ino]
    linked: set[int] = set()
    while pending:
        directory, cookie, end = pending.pop(), 0, False
        while not end:
            try:
                more = await ask(Tally(cred, directory, cookie))
            except FileSystemError as exc:
                if exc.status == errno.ESTALE and directory != ino:
                    break  # removed meanwhile
                raise
            size += more[0]
            files += more[1]
            directories += more[2]
            pending.extend(more[3])
            for one, bytes_of_it in more[4]:
                if one not in linked:
                    linked.add(one)
                    files += 1
                    size += bytes_of_it
            cookie, end = more[5:]
    return size, files, directories


async def usage(ask: Ask, cred: Cred, ino: int, name: bytes) -> bytes:
    """The value of the attribute *name* (of USAGE) of directory *ino*. ENODATA for what is no directory."""
    try:
        size, files, directories = await below(ask, cred, ino)
    except FileSystemError as exc:
        if exc.status == errno.ENOTDIR:
            raise FileSystemError(errno.ENODATA) from exc
        raise
    return b"%d" % (size, files, directories, files + directories)[USAGE[name]]

"""Open directories: what whoever lists one is told, page by page."""

from __future__ import annotations

import errno
import stat
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from client import limits
from client.attributes import Attr, attr_untrusted
from client.births import Births
from client.credentials import ROOT
from client.inodes import DirectoryHandle
from wire.errors import FileSystemError
from wire.ops import ReadDir

Ask = Callable[[Any, bytes], Awaitable[tuple[Any, bytes]]]
"""As :meth:`client.service.MetadataClient.query_granting`."""


def removed(ino: int, handles: Iterable[DirectoryHandle]) -> Attr | None:
    """What those of *handles* see that have the removed directory *ino* open; None: none has."""
    held = [handle.attr for handle in handles if handle.ino == ino]
    if not held:
        return None
    known = next((attr for attr in held if attr is not None), None)
    if known is None:
        return Attr(ino, stat.S_IFDIR | 0o700, 0, 0, 0, 0, 0, 0, 0, 0, None, (), 0, ino)
    return known._replace(nlink=0)


async def fill(ask: Ask, handle: DirectoryHandle, cookie: int, births: Births | None) -> None:
    """See to it that ``handle.buffer`` goes on after *cookie* and is empty only at the end. *ask*: the service;
    *births*: who makes files ahead of it."""
    if cookie != handle.position or cookie == 0:
        handle.forget()  # rewound, or seeked
        handle.position = cookie
    if handle.buffer or handle.complete:
        return
    if births is None:
        found, end = await _page(ask, handle, cookie)
    else:
        moves = births.moves
        found, end = await _page(ask, handle, cookie)
        if births.is_older(moves, handle.ino):
            # 1. It is being asked for. 2. A file is made here. 3. Another is removed, which the service knows first.
            # 4. It answers, with neither. Who saw 2 happen before 3 must not be told that.
            births.give_up(handle.ino)
            found, end = await _page(ask, handle, cookie)
    handle.buffer.extend((name, mark, attr_untrusted(attr)) for name, mark, attr in found)
    handle.complete = end


async def _page(ask: Ask, handle: DirectoryHandle, cookie: int) -> tuple[Any, bool]:
    """The entries after *cookie*, and whether those are all."""
    # Permission was asked when it was opened; asked by root, so that a later chmod does not stop the listing.
    # Where root is not root (exports), the one who opened it asks, and gets a capability for the rest of it.
    shown = handle.capability
    try:
        try:
            page, granted = await ask(ReadDir(ROOT, handle.ino, cookie, limits.READDIR_BATCH), shown)
        except FileSystemError as exc:
            if exc.status != errno.EACCES:
                raise
            page, granted = await ask(ReadDir(handle.cred, handle.ino, cookie, limits.READDIR_BATCH), shown)
    except FileSystemError as exc:
        if exc.status not in (errno.ENOENT, errno.ESTALE):
            raise
        return (), True  # removed while open: an empty directory (POSIX readdir)
    handle.capability = granted or shown
    found, end = page
    return found, end

"""Whether a state on disk is what was written there: looked at before it is used, in a process of its own.

LMDB follows whatever a damaged page says, outside its map if need be, and the process is gone without a word. A child
that reads everything first takes that upon itself; what it finds, or that it died, is told as StoreCorrupt. That costs
about two seconds per million records at each start of a replica, while the others serve.
"""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path
from typing import Final

from daemon.guarded import end_with_parent
from mds.store import Store, StoreCorrupt, StoreFailed

_FROM_OUTSIDE: Final = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def verify(path: Path) -> None:
    """Read the state in *path* whole. Raises :class:`StoreCorrupt`, :class:`StoreFailed`.

    Call it before the process opens the environment or starts a thread: it forks. No state at all is well.
    """
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        # Whatever happens here, this process never returns into its parent's program.
        try:
            os.close(read_end)
            # It has the journal's lock, too: were its parent killed, the next start would find it taken.
            end_with_parent()
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            os.write(write_end, _found(path))
        finally:
            os._exit(0)
    os.close(write_end)
    with open(read_end, "rb") as said:
        text = said.read().decode()
    _, status = os.waitpid(child, 0)
    # Killed from outside (no memory, a stop of the whole service) it says nothing of the state.
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) not in _FROM_OUTSIDE:
        number = signal.Signals(os.WTERMSIG(status)).name
        raise StoreCorrupt(path, f"whoever reads it dies of {number}, so its pages are damaged")
    verdict, _, what = text.partition(" ")
    if verdict == "corrupt":
        raise StoreCorrupt(path, what)
    if verdict != "well":
        raise StoreFailed(path, f"cannot be verified: {what or 'the verifying process failed'}")


def _found(path: Path) -> bytes:
    """``well``, or ``corrupt`` or ``failed`` and why."""
    try:
        Store.verify(path)
    except StoreCorrupt as exc:
        return f"corrupt {exc.what}".encode()
    except StoreFailed as exc:
        return f"failed {exc.what}".encode()
    return b"well"

"""Whether a state on disk is what was written there: looked at before it is used, in a process of its own.

LMDB follows whatever a damaged page says, outside its map if need be, and the process is gone without a word. A child
that reads everything first takes that upon itself; what it finds, or that it died, is told as StoreDamaged. That costs
about two seconds per million records, so a large state is read only where there is a reason to (:mod:`mds.trust`), and
otherwise in the background (:mod:`mds.audit`).
"""

from __future__ import annotations

import logging
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Final

from daemon.guarded import end_with_parent
from mds import trust
from mds.store import Store, StoreCorrupt, StoreDamaged, StoreFailed

log = logging.getLogger(__name__)

_FROM_OUTSIDE: Final = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def trusted_or_verified(path: Path, whole_max: int = trust.READ_WHOLE_MAX) -> bool:
    """Before the state in *path* is used: read it whole, if it is no larger than *whole_max* or there is a reason to.

    False: it was not read. As :func:`verify` otherwise.
    """
    data = path / trust.DATA
    if data.exists() and data.stat().st_size > whole_max and (why := trust.is_trusted(path)) is not None:
        log.info("%s is used without being read first: %s", path, why)
        return False
    verify(path)
    return True


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
            os.write(write_end, found(path).encode())
        finally:
            os._exit(0)
    os.close(write_end)
    with open(read_end, "rb") as said:
        text = said.read().decode()
    _, status = os.waitpid(child, 0)
    judge(path, text, os.waitstatus_to_exitcode(status))


def judge(path: Path, said: str, code: int) -> None:
    """What came of a process that read the state in *path*, *said* what :func:`found` gives, and ended with *code*."""
    # Killed from outside (no memory, a stop of the whole service) it says nothing of the state.
    if code < 0 and -code not in _FROM_OUTSIDE:
        number = signal.Signals(-code).name
        raise StoreDamaged(path, f"whoever reads it dies of {number}, so its pages are damaged")
    verdict, _, what = said.partition(" ")
    if verdict == "damaged":
        raise StoreDamaged(path, what)
    if verdict == "corrupt":
        raise StoreCorrupt(path, what)
    if verdict != "well":
        raise StoreFailed(path, f"cannot be verified: {what or 'the verifying process failed'}")


def found(path: Path, pace: Callable[[], None] | None = None) -> str:
    """``well``, or ``damaged``, ``corrupt`` or ``failed`` and why. *pace*: see :meth:`mds.store.Store.verify`."""
    try:
        Store.verify(path, pace)
    except StoreDamaged as exc:
        return f"damaged {exc.what}"
    except StoreCorrupt as exc:
        return f"corrupt {exc.what}"
    except StoreFailed as exc:
        return f"failed {exc.what}"
    return "well"

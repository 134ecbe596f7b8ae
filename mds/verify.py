"""Whether a state on disk is what was written there: looked at before it is used, in a process of its own.

LMDB follows whatever a damaged page says, outside its map if need be, and the process is gone without a word. A child
that reads everything first takes that upon itself; what it finds, or that it died, is told as StoreDamaged. That costs
0.7 s of CPU per million records, shared by a process per CPU; a file has three. So a large state is read only where
there is a reason to (:mod:`mds.trust`), and otherwise in the background (:mod:`mds.audit`).
"""

from __future__ import annotations

import logging
import os
import resource
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from daemon.guarded import end_with_parent
from mds import trust
from mds.seal import SUM_MASK
from mds.store import RANGES_MAX, Store, StoreCorrupt, StoreDamaged, StoreFailed

log = logging.getLogger(__name__)

PROCESSES_MAX: Final = 8
assert RANGES_MAX <= 256, "a turn is one byte in a pipe"
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
    data = path / trust.DATA
    count = 1
    if data.exists() and data.stat().st_size > trust.READ_WHOLE_MAX:
        count = min(len(os.sched_getaffinity(0)), PROCESSES_MAX)
        _read_ahead(data)
    # Who is through with one range of keys takes the next from the pipe.
    turns, filled = os.pipe()
    os.write(filled, bytes(range(RANGES_MAX)))
    os.close(filled)
    children = [_fork_reader(path, turns) for _ in range(count)]
    os.close(turns)
    ended: list[tuple[str, int]] = []
    for pid, read_end in children:
        with open(read_end, "rb") as said:
            text = said.read().decode()
        _, status = os.waitpid(pid, 0)
        ended.append((text, os.waitstatus_to_exitcode(status)))
    judge(path, ended)


def _fork_reader(path: Path, turns: int) -> tuple[int, int]:
    """(pid, where it says what it found)."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        # Whatever happens here, this process never returns into its parent's program.
        try:
            os.close(read_end)
            # It has the journal's lock, too: were its parent killed, the next start would find it taken.
            end_with_parent()
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            os.write(write_end, found(path, (turn[0] for turn in iter(lambda: os.read(turns, 1), b""))).encode())
        finally:
            os._exit(0)
    os.close(write_end)
    return child, read_end


def _read_ahead(data: Path) -> None:
    """After a power cut nothing is in memory, and a disk is read faster in its own order than in that of the tree."""
    fd = os.open(data, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)
    finally:
        os.close(fd)


def judge(path: Path, ended: list[tuple[str, int]]) -> None:
    """What came of the processes that have read the state in *path* among them: of each what it said, as :func:`found`
    gives it, and its exit code."""
    records = total = 0
    expected = set()
    for said, code in ended:
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
        numbers = tuple(map(int, what.split()))
        records, total = records + numbers[0], total + numbers[1] & SUM_MASK
        expected.add(numbers[2:])
    if expected != {(records, total)}:
        raise StoreDamaged(path, "its records are not all those that were written")


def found(path: Path, turns: Iterable[int] = range(RANGES_MAX), pace: Callable[[], None] | None = None) -> str:
    """``well`` and the numbers of a :class:`mds.store.Whole`, or ``damaged``, ``corrupt`` or ``failed`` and why.

    *turns*, *pace*: see :meth:`mds.store.Store.read_whole`.
    """
    try:
        read = Store.read_whole(path, turns, pace)
    except StoreDamaged as exc:
        return f"damaged {exc.what}"
    except StoreCorrupt as exc:
        return f"corrupt {exc.what}"
    except StoreFailed as exc:
        return f"failed {exc.what}"
    return f"well {read.records} {read.total} {read.all_records} {read.all_total}"

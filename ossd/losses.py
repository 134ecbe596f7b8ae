"""That the disk has lost writes, noted at once, where neither a kill nor a disk that is read-only takes it away.

The kernel forgets the pages that it could not write, so whatever is asked afterwards "succeeds", the last sync of a
clean stop included. The stamps of objects may have reached the disk all the same. So the next start must be another
incarnation, in which no stamp of before is relied on (:mod:`ossd.ledger`). Two notes, because either may be lost:

1. The file ``starts`` says it (:mod:`ossd.identity`), unless the disk cannot be written any more.
2. A file in memory, named by the disk's uuid. It is gone when the machine is started again, and then the boot id tells,
   as ``starts`` says nothing of a clean stop.
"""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

from ossd import identity

log = logging.getLogger(__name__)

MEMORY = Path("/dev/shm")


def _marker(uuid: bytes) -> Path:
    return MEMORY / f"lockstep-lost-{uuid.hex()}"


def is_marked(uuid: bytes) -> bool:
    """Has a process of this run of the kernel noted a loss of disk *uuid* that no later start has seen?"""
    return os.path.lexists(_marker(uuid))


def unmark(uuid: bytes) -> None:
    """It is written down elsewhere."""
    try:
        _marker(uuid).unlink(missing_ok=True)
    except OSError as exc:
        log.error("%s stays, and every start is taken for one after lost writes: %s", _marker(uuid), exc.strerror)


class Losses:
    """Of one start of the target whose disk is *uuid*, at *path*. See the module."""

    def __init__(self, path: Path, uuid: bytes, incarnation: int, boot: str) -> None:
        self.happened = False
        self._path = path
        self._uuid = uuid
        self._incarnation = incarnation
        self._boot = boot
        self._lock = threading.Lock()
        self._writing: threading.Thread | None = None

    def note(self) -> None:
        """Writes may be lost. Does not wait for the disk: a failing one keeps its callers waiting."""
        with self._lock:
            if self.happened:
                return
            self.happened = True
            self._writing = threading.Thread(target=self._write, daemon=True, name="losses")
        try:
            os.close(os.open(_marker(self._uuid), os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        except OSError as exc:
            log.error("%s cannot be made: %s", _marker(self._uuid), exc.strerror)
        self._writing.start()

    def _write(self) -> None:
        try:
            identity.note_loss(self._path, self._incarnation, self._boot)
        except OSError as exc:
            log.error("%s: that writes were lost cannot be noted there: %s", self._path, exc.strerror)

    def written(self) -> None:
        """Wait until what was noted is on disk, or has failed to get there."""
        if self._writing is not None:
            self._writing.join()

    def close(self) -> None:
        """The target has stopped, and all is synced but for what was noted. Raises OSError."""
        self.written()
        identity.end_incarnation(self._path, self._incarnation, self._boot, self.happened)
        if self.happened:
            unmark(self._uuid)

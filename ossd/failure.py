"""Pure. When a target's disk has failed: from then on it takes no change of what others have, too, and is left out.

The keeper hears of it with the next heartbeat, lets the lease run out and marks the target offline, as if it had been
killed; clients and the members before it wait for that, and go on with the others. A target that alone has a chain
stays in it: what can be read is read, and a writer is told the error.

It does not come back before it is started again: a disk that takes one write and refuses the next would otherwise come
and go. That there is no space is no failure of the disk.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from typing import Final

from wire.chains import Members, holders

log = logging.getLogger(__name__)

FAILED: Final = frozenset({errno.EIO, errno.EROFS, errno.ENXIO, errno.ENODEV, errno.EUCLEAN, errno.ESHUTDOWN})
"""What a write, or a sync, of a disk that cannot be relied on ends in."""


class Failure:
    """Of target *me*'s disk. See the module."""

    def __init__(self, me: int, where: str, lost: Callable[[], None]) -> None:
        """*lost* is called when it fails: what it was given before may never reach it."""
        self._me = me
        self._lost = lost
        self._where = where
        self.reason = ""
        """What was told first; empty: the disk is good."""

    def note(self, number: int, what: str) -> None:
        """A change or a sync has ended in error *number*; *what* it was, with the error's text."""
        if number in FAILED and not self.reason:
            self.reason = what
            self._lost()
            log.critical(
                "target %d: ITS DISK HAS FAILED (%s: %s). What has copies elsewhere goes on without this target; "
                "writes to what has none end in an error. It stays out until it is started again: look at the kernel's "
                "log, have the disk repaired, stop this process and start it again, and it is given what it missed. "
                "With a new disk: `lockstep target replace`; with none: `lockstep target remove --lost`.",
                self._me, self._where, what,
            )  # fmt: skip

    def refuses(self, members: Members) -> bool:
        """Whether a change of a chain with *members* is to wait for another to take it."""
        return bool(self.reason) and any(target != self._me for target in holders(members))

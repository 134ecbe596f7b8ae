"""How a replica's process comes to its end."""

from __future__ import annotations

import logging

from daemon.exits import EXIT_RESTART

log = logging.getLogger(__name__)


class Asked(Exception):
    """An administrator asked this replica to stop."""

    def __init__(self, code: int) -> None:
        super().__init__(f"asked to stop (code {code})")
        self.code = code


class GivenUp(Exception):
    """The state of this replica is not that of the others: it is set aside, and theirs is taken."""

    def __init__(self, why: str, asked: bool) -> None:
        """*asked*: by an administrator."""
        super().__init__(f"the state is given up: {why}")
        self.asked = asked

    def if_left(self, outside: bool) -> Exception:
        """How it ends after all; *outside*: the others have gone on without this replica.

        Where they have not, nobody may be left to take a state from: they died, or give up theirs at the same time
        (somebody has asked two replicas that differ).
        """
        if outside:
            return self
        log.error("%s: not done, the others have not gone on without this replica, which keeps its state", self)
        return Asked(EXIT_RESTART)


def said(group: BaseExceptionGroup[Exception], code: int) -> int:
    """The reason is logged; *code* is how the process ends."""
    for exc in leaves_of(group):
        log.critical("%s", exc)
    return code


def leaves_of(group: BaseExceptionGroup[Exception]) -> list[Exception]:
    """The exceptions in the group and in the groups in it."""
    found: list[Exception] = []
    for exc in group.exceptions:
        found += leaves_of(exc) if isinstance(exc, BaseExceptionGroup) else [exc]
    return found

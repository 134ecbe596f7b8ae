"""What is on disk of a state that differs from the others': the alarm kept with it, and the state that was given up."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Final

from daemon.exits import EXIT_RESTART, EXIT_UNUSABLE
from mds import audit, ending

log = logging.getLogger(__name__)

DIVERGED: Final = "state.diverged"
"""Beside the state: the last one that was given up because the others' was another."""
ALARM: Final = "alarm"
"""In the state: what differs, while nobody has decided which is right. It goes where the state goes."""


def keep_alarm(state: Path, tie: str) -> None:
    """Blocking, and durable when it returns: keep *tie* with *state*; "" ends it."""
    path = state / ALARM
    if tie:
        with path.open("w", encoding="utf-8") as file:
            file.write(tie)
            file.flush()
            os.fsync(file.fileno())
    else:
        path.unlink(missing_ok=True)
    fd = os.open(state, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def kept_alarm(state: Path) -> str:
    """What :func:`keep_alarm` kept, or ""."""
    path = state / ALARM
    if not path.exists():
        return ""
    return path.read_text(encoding="utf-8", errors="replace") or "the replicas' states are not the same"


def give_up(state: Path, reasons: list[Exception]) -> int:
    """Set *state* aside, for *reasons*; how the process ends."""
    asked = False
    for reason in reasons:
        assert isinstance(reason, ending.GivenUp), "what the caller has caught"
        log.critical("%s", reason)
        asked |= reason.asked
    if not audit.set_aside(state, DIVERGED, asked):
        log.critical("one has been given up not long ago: whether this host computes right had better be looked at")
        return EXIT_UNUSABLE
    log.error("that state is kept in %s; another is taken from the others", DIVERGED)
    return EXIT_RESTART

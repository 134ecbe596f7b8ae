"""Logging of a daemon: one line per record to standard error, with time, level, the daemon's name and where from."""

from __future__ import annotations

import logging
import sys
import time
from typing import Final

LEVELS: Final = ("debug", "info", "warning", "error")


class _LineFormatter(logging.Formatter):
    """UTC time with milliseconds; newlines inside a message are shown as text, so one record stays one line.

    A traceback keeps its lines, each marked, because a person has to read it.
    """

    converter = staticmethod(time.gmtime)

    def __init__(self, daemon: str) -> None:
        super().__init__(
            fmt=f"%(asctime)s.%(msecs)03dZ %(levelname)-7s {daemon.replace('%', '%%')} %(name)s: %(message)s",
            datefmt="%Y-%m-%dT%H:%M:%S",
        )

    def formatMessage(self, record: logging.LogRecord) -> str:
        return super().formatMessage(record).replace("\r", "\\r").replace("\n", "\\n")

    def formatException(self, ei: object) -> str:
        text = super().formatException(ei)  # type: ignore[arg-type]  # the base class's own tuple, passed on
        return "\n".join("    | " + line for line in text.splitlines())


def setup(daemon: str, level: str = "info") -> None:
    """Log records of *level* and above to standard error as *daemon* (``mds-1``, ``ossd-2``, ``mount``)."""
    if level not in LEVELS:
        raise ValueError(f"log level {level!r} is none of {', '.join(LEVELS)}")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_LineFormatter(daemon))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    logging.captureWarnings(True)

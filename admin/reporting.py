"""How a command of the `lockstep` tool ends: what is expected to fail becomes one line and an exit code."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from admin.ask import AskError
from admin.local import ClusterError
from admin.mounts import MountError
from admin.processes import ProcessError
from daemon.config import ConfigError
from daemon.exits import EXIT_CONFIG, EXIT_FAILED
from wire.errors import FileSystemError


@contextlib.contextmanager
def reported() -> Iterator[None]:
    """Expected failures become one line on standard error and an exit code; anything else is a bug and is shown."""
    try:
        yield
    except ConfigError as exc:
        print(f"lockstep: {exc}", file=sys.stderr)
        sys.exit(EXIT_CONFIG)
    except (ClusterError, MountError, AskError, ProcessError, FileSystemError) as exc:
        print(f"lockstep: {exc}", file=sys.stderr)
        sys.exit(EXIT_FAILED)
    except OSError as exc:
        print(f"lockstep: {exc.strerror}: {exc.filename}" if exc.filename else f"lockstep: {exc}", file=sys.stderr)
        sys.exit(EXIT_FAILED)

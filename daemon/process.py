"""Running a daemon's main task under trio: signals stop it cleanly, an unexpected exception is logged and is fatal."""

from __future__ import annotations

import logging
import signal
from collections.abc import Awaitable, Callable
from typing import Final

import trio

log = logging.getLogger(__name__)

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
"""A daemon that fails says so with this code, so that a supervisor may start it again."""

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


async def _stop_on_signal(stop: trio.CancelScope, *, task_status: trio.TaskStatus[None]) -> None:
    with trio.open_signal_receiver(*STOP_SIGNALS) as arrived:
        task_status.started()
        async for number in arrived:
            log.info("stopping: %s", signal.Signals(number).name)
            stop.cancel()
            return


async def _until_stopped(serve: Callable[[], Awaitable[None]]) -> None:
    async with trio.open_nursery() as nursery:
        # Listen for signals before anything else, so that a stop during the start is clean as well.
        await nursery.start(_stop_on_signal, nursery.cancel_scope)
        await serve()
        nursery.cancel_scope.cancel()


def run(serve: Callable[[], Awaitable[None]]) -> int:
    """Run *serve* until it returns or SIGTERM or SIGINT cancels it; the result is the process's exit code.

    Any exception is logged with its traceback and gives :data:`EXIT_FAILED`: a daemon whose state nobody can
    vouch for must end, not go on.
    """
    try:
        trio.run(_until_stopped, serve)
    except Exception:
        # The outermost frame of the process: nothing is resumed here, the code tells the supervisor.
        log.critical("stopped by an unexpected error", exc_info=True)
        return EXIT_FAILED
    log.info("stopped")
    return EXIT_OK

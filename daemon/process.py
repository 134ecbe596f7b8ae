"""Running a daemon's main task under trio: signals stop it cleanly, an unexpected exception is logged and is fatal."""

from __future__ import annotations

import logging
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

import trio

from daemon.exits import EXIT_FAILED, EXIT_OK

log = logging.getLogger(__name__)

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


Leave = Callable[[], Awaitable[None]]
"""What a daemon does before it stops at SIGTERM; bounded by itself."""


async def _stop_on_signal(stop: trio.CancelScope, leave: Leave | None, *, task_status: trio.TaskStatus[None]) -> None:
    with trio.open_signal_receiver(*STOP_SIGNALS) as arrived:
        task_status.started()
        async for number in arrived:
            log.info("stopping: %s", signal.Signals(number).name)
            if number == signal.SIGTERM and leave is not None:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_until_hurried, arrived, nursery.cancel_scope)
                    await leave()
                    nursery.cancel_scope.cancel()
            stop.cancel()
            return


async def _until_hurried(arrived: AsyncIterator[int], scope: trio.CancelScope) -> None:
    """SIGINT while it leaves: stop at once. Another SIGTERM says nothing new (systemd sends it to every process)."""
    async for number in arrived:
        if number == signal.SIGINT:
            scope.cancel()
            return


async def _until_stopped(serve: Callable[[], Awaitable[int | None]], leave: Leave | None) -> int:
    code: int | None = None
    async with trio.open_nursery() as nursery:
        # Listen for signals before anything else, so that a stop during the start is clean as well.
        await nursery.start(_stop_on_signal, nursery.cancel_scope, leave)
        code = await serve()
        nursery.cancel_scope.cancel()
    return EXIT_OK if code is None else code


def run(serve: Callable[[], Awaitable[int | None]], leave: Leave | None = None) -> int:
    """Run *serve* until it returns or SIGTERM or SIGINT cancels it; the result is the process's exit code.

    What *serve* returns is the code, None meaning all is well. At SIGTERM *leave*, if given, is awaited before that;
    SIGINT stops at once.

    Any exception is logged with its traceback and gives :data:`EXIT_FAILED`: a daemon whose state nobody can
    vouch for must end, not go on.
    """
    try:
        code = trio.run(_until_stopped, serve, leave)
    except Exception:
        # The outermost frame of the process: nothing is resumed here, the code tells the supervisor.
        log.critical("stopped by an unexpected error", exc_info=True)
        return EXIT_FAILED
    log.info("stopped")
    return code

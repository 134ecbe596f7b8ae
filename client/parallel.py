"""Several calls to targets at once, and how their failure is told: to who waits for them, or later."""

from __future__ import annotations

import trio

from wire.errors import FileSystemError


async def together(calls: list[tuple[object, object]]) -> None:
    """Run the calls ((function, argument), ...) in parallel; the first FileSystemError of any is raised as itself."""
    failures: list[FileSystemError] = []

    async def one(function: object, argument: object) -> None:
        try:
            await function(argument)  # type: ignore[operator]
        except FileSystemError as exc:
            failures.append(exc)

    async with trio.open_nursery() as nursery:
        for function, argument in calls:
            nursery.start_soon(one, function, argument)
    if failures:
        raise failures[0]


class WriteFailed(FileSystemError):
    """Written data was lost earlier; ``errors`` is the count a handle remembers once it was told."""

    def __init__(self, status: int, errors: int) -> None:
        super().__init__(status, "written data was lost")
        self.errors = errors

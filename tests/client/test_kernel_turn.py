"""The turn to read the kernel's requests: kept by who comes back at once, never left where nobody takes it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from client import kernel_turn
from client.kernel_turn import REQUESTS_IN_A_ROW, Turn


async def _worker(turn: Turn, said: list[str], name: str, requests: int) -> None:
    for _ in range(requests):
        async with turn:
            said.append(name)


def test_who_comes_back_at_once_keeps_it() -> None:
    """A request answered by its reader: no other worker is woken in between."""

    async def main() -> list[str]:
        turn, said = Turn(), []
        async with trio.open_nursery() as nursery:
            trio.lowlevel.add_instrument(turn)
            async with turn:
                nursery.start_soon(_worker, turn, said, "b", 1)
                await wait_all_tasks_blocked()
            await _worker(turn, said, "a", 3)
            said.append("waits")
            turn.pass_on()
        return said

    assert trio.run(main) == ["a", "a", "a", "waits", "b"]


def test_one_that_ends_passes_it_on() -> None:
    """The kernel has ended the session: each worker finds that out under the lock, one after the other."""

    async def main() -> list[str]:
        turn, said = Turn(), []
        trio.lowlevel.add_instrument(turn)
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                async with turn:
                    for name in "abc":
                        nursery.start_soon(_worker, turn, said, name, 1)
                    await wait_all_tasks_blocked()
                turn.pass_on()
        return said

    assert sorted(trio.run(main)) == ["a", "b", "c"]


def test_a_cancelled_one_is_not_given_it() -> None:
    """The mount ends by a signal while workers wait."""

    async def main() -> list[str]:
        turn, said = Turn(), []
        trio.lowlevel.add_instrument(turn)
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                async with turn:
                    async with trio.open_nursery() as cancelled:
                        cancelled.start_soon(_worker, turn, said, "a", 1)
                        await wait_all_tasks_blocked()
                        cancelled.cancel_scope.cancel()
                    nursery.start_soon(_worker, turn, said, "b", 1)
                    await wait_all_tasks_blocked()
                turn.pass_on()
        return said

    assert trio.run(main) == ["b"]


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """(read end, write end): stands for the kernel's device."""
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def _rounds(monkeypatch: pytest.MonkeyPatch, fd: int, times: int) -> list[int]:
    """Which of so many waits for *fd*, counted from 0, went through trio's loop."""
    took: list[int] = []

    async def main() -> None:
        kernel = kernel_turn._Kernel(())
        for k in range(times):

            async def counted(fd: int, k: int = k) -> None:
                took.append(k)

            monkeypatch.setattr(trio.lowlevel, "wait_readable", counted)
            await kernel.wait_readable(fd)

    trio.run(main)
    return took


def test_a_request_that_is_there_takes_no_round_of_the_loop(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program asks again at once, as one that works through many files does. But one caller must not keep the
    service's answers from all others."""
    os.write(pipe[1], b"x")
    n = REQUESTS_IN_A_ROW
    assert _rounds(monkeypatch, pipe[0], 2 * n + 3) == [n, 2 * n + 1]


@pytest.mark.parametrize("in_work", [(), ("one",)])
def test_with_no_request_it_waits_through_trio(pipe: tuple[int, int], in_work: tuple[str, ...]) -> None:
    """The mount is idle, or its operations wait for the service: the request that comes later is not missed."""

    async def main() -> None:
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(kernel_turn._Kernel(in_work).wait_readable, pipe[0])
                await wait_all_tasks_blocked()
                os.write(pipe[1], b"x")

    trio.run(main)


def test_a_descriptor_that_select_does_not_know(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """select() takes numbers below 1,024: a program with more files open than that has mounted by client.mount."""
    os.write(pipe[1], b"x")
    high = fcntl.fcntl(pipe[0], fcntl.F_DUPFD_CLOEXEC, 1024)
    try:
        assert _rounds(monkeypatch, high, 2) == [0, 1]
    finally:
        os.close(high)

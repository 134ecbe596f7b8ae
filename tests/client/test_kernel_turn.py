"""The turn to read the kernel's requests: kept by who comes back at once, never left where nobody takes it."""

from __future__ import annotations

import trio
from trio.testing import wait_all_tasks_blocked

from client.kernel_turn import Turn


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

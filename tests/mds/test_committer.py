"""When the state is written to disk: now and then, and at once when the view has changed again and again."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from daemon.memory import Rest
from mds import limits
from mds.serve import Process
from vsync.limits import VIEWS_UNCOMMITTED
from vsync.view import genesis


@pytest.mark.parametrize(
    ("views", "written_s"),
    [
        (0, [limits.COMMIT_INTERVAL_S]),
        (VIEWS_UNCOMMITTED - 1, [limits.COMMIT_INTERVAL_S]),
        (VIEWS_UNCOMMITTED, [0.0, limits.COMMIT_INTERVAL_S]),
        (2 * VIEWS_UNCOMMITTED, [0.0, limits.COMMIT_INTERVAL_S]),
    ],
)
def test_many_views_are_not_left_for_a_restart_to_deliver(views: int, written_s: list[float]) -> None:
    """Links flap, and the view changes a hundred times between two commits: were the replica killed then, it would
    have to know every one of those views to deliver what its log holds."""
    process = Process.__new__(Process)  # its sockets and files have no part in this
    core = SimpleNamespace(newest=genesis((1, 2), ()))
    process.replica = SimpleNamespace(group=SimpleNamespace(core=core), state=SimpleNamespace(roster=None))  # type: ignore[assignment]
    process.follower = SimpleNamespace(update=lambda roster, in_view: None)  # type: ignore[assignment]
    process._views_uncommitted = 0
    written: list[float] = []

    async def commit() -> bool:
        process._views_uncommitted = 0
        written.append(trio.current_time() - began)
        return True

    process.commit = commit  # type: ignore[method-assign]
    began = 0.0

    async def main() -> None:
        nonlocal began
        began = trio.current_time()
        process._commit_soon = trio.Event()
        process._state_lock = trio.Lock()
        process._rest = Rest()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.committer)
            await wait_all_tasks_blocked()
            for _ in range(views):
                process.membership_changed()
            await trio.sleep(1.5 * limits.COMMIT_INTERVAL_S)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert written == pytest.approx(written_s)


def test_at_rest_memory_is_given_back_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not while there is something to write each time: who allocates memory waits for it."""
    process = Process.__new__(Process)
    wrote = iter([True, True, True, False, False, False, True, False, False])
    said: list[str] = []

    async def commit() -> bool:
        done = next(wrote)
        said.append("wrote" if done else "nothing")
        return done

    process.commit = commit  # type: ignore[method-assign]
    monkeypatch.setattr("daemon.memory.give_back", lambda: said.append("given back"))

    async def main() -> None:
        process._commit_soon = trio.Event()
        process._state_lock = trio.Lock()
        process._rest = Rest()
        with pytest.raises(BaseExceptionGroup) as raised:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(process.committer)
        assert raised.group_contains(RuntimeError), "there are no more answers"

    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert said == [
        "wrote", "wrote", "wrote", "nothing", "given back", "nothing", "nothing", "wrote", "nothing", "given back",
        "nothing",
    ]  # fmt: skip

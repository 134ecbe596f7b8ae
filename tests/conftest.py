"""Fixtures for all tests. What starts daemons or mounts is in :mod:`tests.live`; the pure rooms need none of it."""

from __future__ import annotations

import contextlib
import functools
import inspect
import signal
from collections.abc import Awaitable, Callable, Iterator
from types import FrameType
from typing import Any, Final

import pytest
import trio

from tests.live import Live, guarded, live, unavailable

PHASE_LIMIT_S: Final = 120
"""A test's setup, call or teardown that takes longer hangs: better one failure than none of the results."""
CANCEL_LIMIT_S: Final = 10
"""A test that is cancelled has so long to clean up."""


def pytest_configure(config: pytest.Config) -> None:
    """A time limit around the tests ends them with SIGTERM: let that unwind the fixtures, as Ctrl-C does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


_running: list[tuple[trio.lowlevel.TrioToken, trio.CancelScope]] = []
"""The test that is a trio task, while it runs."""


@contextlib.contextmanager
def limited(item: pytest.Item, what: str) -> Iterator[None]:
    """Fails the test after PHASE_LIMIT_S, wherever it is (but in a system call: that is for tests.live.guarded)."""

    cancelled = False

    def too_long(number: int, frame: FrameType | None) -> None:
        nonlocal cancelled
        if _running:
            # An exception out of trio's own loop would leave a broken one behind: the test is cancelled.
            token, scope = _running.pop()
            token.run_sync_soon(scope.cancel)
            cancelled = True
            signal.alarm(CANCEL_LIMIT_S)
            return
        if cancelled:
            item.session.shouldstop = f"{item.nodeid} hangs and cannot be cancelled: no trio test can follow it"
        pytest.fail(f"{what} takes longer than {PHASE_LIMIT_S} s", pytrace=False)

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(PHASE_LIMIT_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _cancellable(test: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    @functools.wraps(test)
    async def run(*args: Any, **named: Any) -> None:
        with trio.CancelScope() as scope:
            mine = (trio.lowlevel.current_trio_token(), scope)
            _running.append(mine)
            try:
                await test(*args, **named)
            finally:
                if mine in _running:
                    _running.remove(mine)
        if scope.cancelled_caught:
            pytest.fail(f"the test takes longer than {PHASE_LIMIT_S} s", pytrace=False)

    return run


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
            item.obj = _cancellable(item.obj)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    with limited(item, "the setup"):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    with limited(item, "the teardown"):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Each test on a live cluster is guarded against hanging on a mount, and shows the daemons' logs when it fails."""
    found = getattr(item, "funcargs", {}).get("cluster")
    with limited(item, "the test"):
        if not isinstance(found, Live):
            return (yield)
        try:
            with guarded(found):
                return (yield)
        except BaseException:
            item.add_report_section("call", "logs of the cluster", found.logs())
            raise


@pytest.fixture(scope="module")
def cluster() -> Iterator[Live]:
    """Three replicas and three targets, mounted as ``one`` (through replica 1) and ``two`` (through replica 2)."""
    reason = unavailable()
    if reason is not None:
        # Not skipped: a run without these tests has not shown what it is for.
        pytest.fail(reason)
    with live() as made:
        made.mount("one", 1)
        made.mount("two", 2)
        yield made

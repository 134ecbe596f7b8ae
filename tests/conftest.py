"""Fixtures for all tests. What starts daemons or mounts is in :mod:`tests.live`; the pure rooms need none of it."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Final

import pytest

from tests.live import Live, guarded, live, unavailable

PHASE_LIMIT_S: Final = 120
"""A test's setup, call or teardown that takes longer hangs: better one failure than none of the results."""


def pytest_configure(config: pytest.Config) -> None:
    """A time limit around the tests ends them with SIGTERM: let that unwind the fixtures, as Ctrl-C does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@contextlib.contextmanager
def limited(what: str) -> Iterator[None]:
    """Fails the test after PHASE_LIMIT_S, wherever it is (but in a system call: that is for tests.live.guarded)."""

    def too_long(number: int, frame: FrameType | None) -> None:
        pytest.fail(f"{what} takes longer than {PHASE_LIMIT_S} s")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(PHASE_LIMIT_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    with limited("the setup"):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    with limited("the teardown"):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Each test on a live cluster is guarded against hanging on a mount, and shows the daemons' logs when it fails."""
    found = getattr(item, "funcargs", {}).get("cluster")
    with limited("the test"):
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

"""Fixtures for all tests. What starts daemons or mounts is in :mod:`tests.live`; the pure rooms need none of it."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.live import Live, guarded, live, unavailable


def pytest_configure(config: pytest.Config) -> None:
    """A time limit around the tests ends them with SIGTERM: let that unwind the fixtures, as Ctrl-C does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Each test on a live cluster is guarded against hanging, and shows the daemons' logs when it fails."""
    found = getattr(item, "funcargs", {}).get("cluster")
    if not isinstance(found, Live):
        return (yield)
    try:
        with guarded(found):
            return (yield)
    except BaseException:
        item.add_report_section("call", "logs of the cluster", found.logs())
        raise

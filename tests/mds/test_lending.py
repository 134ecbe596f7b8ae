"""Which recalls say that names change, too: a kernel walks through a directory without asking."""

from __future__ import annotations

from typing import Any

import pytest

from mds.caches import CLIENTS_MARGIN_US, LEASE_US
from mds.lending import Lending
from mds.namespace.acl import ACCESS
from mds.pending import Pending
from mds.shell import Client
from tests.mds.harness import ROOT
from wire import messages as msg
from wire import ops

DIRECTORY = 5


class Stub:
    """The process around, and the client's connection: time stands still."""

    def __init__(self, read_until: int = 0) -> None:
        self.sent: list[Any] = []
        self._read_until = read_until

    def now(self) -> int:
        return 1

    def read_until(self) -> int:
        return self._read_until

    def send(self, message: Any) -> None:
        self.sent.append(message)


@pytest.mark.parametrize(
    ("op", "names"),
    [
        (ops.SetAttr(ROOT, DIRECTORY, ops.SET_MODE, 0o700, 0, 0, 0, 0, 0, False), True),
        (ops.SetAttr(ROOT, DIRECTORY, ops.SET_MODE, 0o755, 0, 0, 0, 0, 0, False), False),
        (ops.SetXattr(ROOT, DIRECTORY, ACCESS, b"", 0), True),
        (ops.RemoveXattr(ROOT, DIRECTORY, ACCESS), True),
        (ops.SetXattr(ROOT, DIRECTORY, b"user.x", b"", 0), False),
        (ops.Create(ROOT, DIRECTORY, b"x", 0o644), False),
    ],
)
def test_who_may_pass_changes_like_a_name(op: Any, names: bool) -> None:
    stub = Stub()
    lending = Lending(None, Pending(), stub)  # type: ignore[arg-type]
    client = Client(stub, "client")
    lending.caches.renew(client, 100)
    lending.caches.grant(client, frozenset({DIRECTORY}), 1)
    lending.recall(op, None, None, "what")
    assert stub.sent == [msg.Recall(1, (DIRECTORY,), (DIRECTORY,) if names else ())]


@pytest.mark.parametrize("ours", [LEASE_US, 100_000, CLIENTS_MARGIN_US - 1])
def test_a_client_stops_before_anyone_goes_on_without_asking_it(ours: int) -> None:
    """Its clock may be slower than that of its replica, which waits for it, and of those who wait in its place."""
    stub = Stub(read_until=1 + ours)
    lending = Lending(stub, Pending(), stub)  # type: ignore[arg-type]
    client = Client(stub, "client")
    client.session = 7
    lending.keep(client, 3)
    assert stub.sent == [msg.CacheLease(3, 1, max(0, ours - CLIENTS_MARGIN_US))]
    lending.caches.grant(client, frozenset({DIRECTORY}), 1)
    lending.recall(ops.Create(ROOT, DIRECTORY, b"x", 0o644), None, None, "what")
    assert lending.caches.held(ours) and not lending.caches.held(1 + ours)

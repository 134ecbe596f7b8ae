"""Which recalls say that names change, too: a kernel walks through a directory without asking."""

from __future__ import annotations

from typing import Any

import pytest

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

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def now(self) -> int:
        return 1

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

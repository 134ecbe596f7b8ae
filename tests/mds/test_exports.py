"""As whom a client's requests count."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from daemon.config import ExportConfig
from mds.exports import Exports, Squash
from tests.mds.group import Group
from tests.mds.harness import TOP
from wire import messages as msg
from wire import ops
from wire.codec import encode
from wire.delegation import CreateDelegated
from wire.inline import WriteInline
from wire.ops import Commit, Create, Cred, GetAttr

RULES = (
    ExportConfig("10.0.0.0/8", "root", 99),
    ExportConfig("10.1.0.0/16", "none"),
    ExportConfig("10.1.2.0/24", "all", 77),
    ExportConfig("fd00::/8"),
)


@pytest.mark.parametrize(
    ("host", "squash"),
    [
        ("10.9.9.9", Squash(False, 99)),
        ("10.1.9.9", None),
        ("10.1.2.3", Squash(True, 77)),
        ("::ffff:10.9.9.9", Squash(False, 99)),
        ("fd00::1%eth0", Squash(False, 65534)),
        ("192.168.0.1", None),
    ],
)
def test_the_narrowest_network_counts(host: str, squash: Squash | None) -> None:
    assert Exports(RULES).squash(host) == squash


def test_nothing_of_root_is_left() -> None:
    squash = Squash(False, 99)
    assert squash.cred(Cred(0, 0, (0, 5))) == Cred(99, 99, (99, 5))
    assert squash.cred(Cred(7, 8, (0, 5))) == Cred(7, 8, (99, 5))
    assert squash.cred(Cred(7, 0, ())) == Cred(7, 99, ())
    alice = Cred(7, 8, (5,))
    assert squash.cred(alice) is alice
    assert Squash(True, 77).cred(alice) == Cred(77, 77, ())


def test_operations() -> None:
    squash = Squash(False, 99)
    assert squash.applied(Create(Cred(0, 0, ()), 1, b"f", 0o644)) == Create(Cred(99, 99, ()), 1, b"f", 0o644)
    assert squash.applied(Commit(5, 10, 0, True)) == Commit(5, 10, 0, False)
    pieces = ((0, b"x"),)
    assert squash.applied(WriteInline(5, pieces, 1, True)) == WriteInline(5, pieces, 1, False)
    born = CreateDelegated(Cred(0, 0, ()), 1, b"f", 0o644, 5, 1, pieces, 1, True)
    counts = CreateDelegated(Cred(99, 99, ()), 1, b"f", 0o644, 5, 1, pieces, 1, False)
    assert squash.applied(born) == counts
    assert squash.applied(counts) is counts
    own = Create(Cred(1, 1, ()), 1, b"f", 0o644)
    for same in (WriteInline(5, pieces, 1), own, Commit(5, 10, 0), GetAttr(5), ops.StatFs()):
        assert squash.applied(same) is same


def test_a_replica_orders_and_answers_for_whom_it_counts(tmp_path: Path) -> None:
    """Root of a squashed host makes a file: it is nobody's; he may not read root's, nor administer."""
    group = Group(tmp_path)
    try:
        honest, squashed = group.user("honest", 1), group.user("squashed", 2)
        assert squashed.line is not None
        squashed.line.client.squash = Squash(False, 99)
        root = Cred(0, 0, ())
        group.complete(honest.request(ops.SetAttr(root, TOP, ops.SET_MODE, 0o777, 0, 0, 0, 0, 0, False)))
        secret = group.complete(honest.request(Create(root, TOP, b"secret", 0o600)))
        made = group.complete(squashed.request(Create(root, TOP, b"f", 0o644)))
        assert made.body[3:5] == (99, 99)
        ino = secret.body[0]
        assert group.complete(squashed.query(ops.Open(root, ino, 0))).status == errno.EACCES
        chmod = ops.SetAttr(root, ino, ops.SET_MODE, 0o666, 0, 0, 0, 0, 0, False)
        assert group.complete(squashed.request(chmod)).status == errno.EPERM
        assert group.complete(honest.query(ops.Open(root, ino, 0))).status == 0
        sent: list[object] = []
        squashed.line.client.conn = _Sink(sent)
        squashed.line.node.replica.client_message(
            squashed.line.client, msg.AdminCall(7, encode(ops.TargetSet(9, "127.0.0.1:1", bytes(16))))
        )
        assert sent == [msg.Answer(7, errno.EPERM, b"")]
    finally:
        group.close()


class _Sink:
    def __init__(self, sent: list[object]) -> None:
        self.sent = sent

    def send(self, message: object) -> None:
        self.sent.append(message)

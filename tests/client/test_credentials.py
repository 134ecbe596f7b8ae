"""client.credentials: whose groups are known, and how many at most."""

from __future__ import annotations

from types import SimpleNamespace

from client import limits
from client.credentials import ROOT, Credentials
from wire.ops import Cred


def test_groups_of_root_are_not_kept_without_end() -> None:
    """A service of root's that takes on one group after the other."""
    known = Credentials()
    for gid in range(1, 3 * limits.GROUPS_CACHE_MAX):
        assert known.of(SimpleNamespace(uid=0, gid=gid, pid=1)) == Cred(0, gid, ())
    assert len(known._root) <= limits.GROUPS_CACHE_MAX
    assert known.of(SimpleNamespace(uid=0, gid=0, pid=1)) == ROOT

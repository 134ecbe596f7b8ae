"""What another replica tells of a quota, and of what lies below a directory: whatever was answered anywhere is counted.

A create is answered when every member has it on disk; the others execute it some milliseconds later."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mds.namespace import quota
from tests.mds.group import Group, User, create, mkdir
from tests.mds.harness import ROOT
from wire import ops
from wire.quotaops import QuotaList, QuotaRoom, Tally


def by_attribute(group: Group, user: User, root: int, below: int) -> int:
    """As ``lockstep quota`` shows it."""
    found: int = json.loads(group.ask(user, ops.GetXattr(ROOT, root, quota.USAGE)))[0]["inodes_used"]
    return found


def by_list(group: Group, user: User, root: int, below: int) -> int:
    ((told,), _end) = group.ask(user, QuotaList(ROOT, 0))
    found: int = told["inodes_used"]
    return found


def by_tally_of_the_root(group: Group, user: User, root: int, below: int) -> int:
    _, files, directories, *_ = group.ask(user, Tally(ROOT, root, 0))
    return int(1 + files + directories)


def by_tally_from_above(group: Group, user: User, root: int, below: int) -> int:
    """A page that meets the root among other directories."""
    _, files, directories, *_ = group.ask(user, Tally(ROOT, 1, 0))
    return int(files + directories)


def by_tally_of_what_is_below(group: Group, user: User, root: int, below: int) -> int:
    """Added up entry by entry."""
    _, files, directories, *_ = group.ask(user, Tally(ROOT, below, 0))
    return int(2 + files + directories)


def set_quota(group: Group, user: User, root: int, text: bytes = b"") -> None:
    assert group.complete(user.request(ops.SetXattr(ROOT, root, quota.ATTRIBUTE, text, 0))).ok


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Group]:
    group = Group(tmp_path)
    try:
        yield group
        group.finish()
    finally:
        group.close()


@pytest.mark.parametrize(
    "told",
    [by_attribute, by_list, by_tally_of_the_root, by_tally_from_above, by_tally_of_what_is_below],
)
def test_what_was_answered_here_is_counted_there(group: Group, told: Callable[[Group, User, int, int], int]) -> None:
    here, there = group.user("here", 1), group.user("there", 2)
    root = group.ask(here, mkdir(b"q"))[0]
    set_quota(group, here, root)
    below = group.ask(here, mkdir(b"deep", root))[0]
    behind = 0
    for count in range(1, 9):
        make = mkdir if count % 2 else create
        group.ask(here, make(b"%d" % count, below))
        behind += len(group.nodes[2].replica.pending) > 0
        assert told(group, there, root, below) == 2 + count
    assert behind, "some were answered before they were executed there, or nothing is shown here"


def test_who_asks_for_room_waits_for_nobody(group: Group) -> None:
    """A mount asks it before a file grows, and others may take it before it does."""
    here, there = group.user("here", 1), group.user("there", 2)
    root = group.ask(here, mkdir(b"q"))[0]
    set_quota(group, here, root, b"bytes_hard=1000")
    group.until(lambda: not len(group.nodes[2].replica.pending))
    group.ask(here, create(b"f", root))
    assert len(group.nodes[2].replica.pending)
    assert group.ask(there, QuotaRoom(root)) == 1000
    assert len(group.nodes[2].replica.pending)

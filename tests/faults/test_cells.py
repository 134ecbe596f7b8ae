"""The model of a cell: what it lets pass and what it does not, each a short story of one client after the other."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from tests.faults.cells import CREATE, EXCHANGE, NOREPLACE, REPLACE, Cell
from tests.linearizable import Operation, check

Step = tuple[tuple[Any, ...], int, Any]
"""What was asked, the errno or 0, the result."""


def serial(*steps: Step, unknown: tuple[int, ...] = ()) -> list[Operation]:
    """*steps* one after the other; nobody knows what came of those at the places *unknown*."""
    return [
        Operation(0, what, 10 * k + 1, None if k in unknown else 10 * k + 5, (status, result))
        for k, (what, status, result) in enumerate(steps)
    ]


def seen(number: int, links: int = 1, mtime: int = 100, kind: str = "file") -> list[Any]:
    return [number, kind, links, mtime]


def create(slot: int, number: int) -> Step:
    return ("create", slot), 0, [seen(number)]


def mkdir(slot: int, number: int) -> Step:
    return ("mkdir", slot), 0, [seen(number, 2, kind="directory")]


def listing(directory: int, *entries: tuple[int, list[Any]]) -> Step:
    return ("readdir", directory), 0, [list(entry) for entry in entries]


GOOD: dict[str, list[Step]] = {
    "made, found, removed": [
        (("lookup", 0), errno.ENOENT, None), create(0, 7), (("create", 0), errno.EEXIST, None),
        (("lookup", 0), 0, [seen(7)]), (("unlink", 0), 0, None), (("lookup", 0), errno.ENOENT, None),
    ],
    "renamed into the other directory": [
        create(0, 7), (("rename", 0, 5, NOREPLACE), 0, None), listing(0), listing(1, (1, seen(7))),
    ],
    "renamed over another": [create(0, 7), create(1, 8), (("rename", 0, 1, 0), 0, None), listing(0, (1, seen(7)))],
    "exchanged": [
        create(0, 7), mkdir(5, 8), (("rename", 0, 5, EXCHANGE), 0, None), (("lookup", 5), 0, [seen(7)]),
        (("links", 0), 0, 3), (("links", 1), 0, 2),
    ],
    "a second name": [
        create(0, 7), (("link", 7, 4), 0, [seen(7, 2)]), (("unlink", 0), 0, None), (("stat", 7), 0, [seen(7)]),
    ],
    "two names of one file: rename does nothing": [
        create(0, 7), (("link", 7, 1), 0, [seen(7, 2)]), (("rename", 0, 1, 0), 0, None),
        listing(0, (0, seen(7, 2)), (1, seen(7, 2))),
    ],
    "open after unlink": [
        create(0, 7), (("unlink", 0), 0, None), (("fstat", 7), 0, [seen(7, 0)]), (("stat", 7), errno.ESTALE, None),
    ],
    "registers": [
        create(0, 7), (("set_mtime", 7, 5), 0, [seen(7, mtime=5)]), (("lookup", 0), 0, [seen(7, mtime=5)]),
        (("get_xattr", 7), errno.ENODATA, None), (("set_xattr", 7, "a", CREATE), 0, None),
        (("set_xattr", 7, "b", CREATE), errno.EEXIST, None), (("set_xattr", 7, "c", REPLACE), 0, None),
        (("get_xattr", 7), 0, "c"), (("remove_xattr", 7), 0, None), (("remove_xattr", 7), errno.ENODATA, None),
    ],
    "directories": [
        mkdir(0, 7), (("unlink", 0), errno.EISDIR, None), (("link", 7, 1), errno.EPERM, None), create(1, 8),
        (("rmdir", 1), errno.ENOTDIR, None), (("rename", 0, 1, 0), errno.ENOTDIR, None),
        (("rename", 1, 0, 0), errno.EISDIR, None), (("rmdir", 0), 0, None), (("links", 0), 0, 2),
    ],
}  # fmt: skip
BAD: dict[str, list[Step]] = {
    "a create is lost": [create(0, 7), (("lookup", 0), errno.ENOENT, None)],
    "a create is lost in a listing": [create(0, 7), listing(0)],
    "a create is done twice": [create(0, 7), create(0, 8)],
    "a removal is done twice": [create(0, 7), (("unlink", 0), errno.ENOENT, None)],
    "an exchange is done twice": [
        create(0, 7), create(1, 8), (("rename", 0, 1, EXCHANGE), 0, None), (("lookup", 0), 0, [seen(7)]),
    ],
    "two inodes of one number": [create(0, 7), create(1, 7)],
    "one name in two places": [create(0, 7), (("rename", 0, 1, 0), 0, None), listing(0, (0, seen(7)), (1, seen(7)))],
    "a link count that was": [
        create(0, 7), (("link", 7, 1), 0, [seen(7, 2)]), (("unlink", 1), 0, None), (("stat", 7), 0, [seen(7, 2)]),
    ],
    "an old register": [
        create(0, 7), (("set_mtime", 7, 5), 0, [seen(7, mtime=5)]), (("stat", 7), 0, [seen(7, mtime=100)]),
    ],
    "an old attribute in a listing": [
        create(0, 7), (("set_mtime", 7, 5), 0, [seen(7, mtime=5)]), listing(0, (0, seen(7, mtime=100))),
    ],
    "an attribute set twice": [create(0, 7), (("set_xattr", 7, "a", CREATE), errno.EEXIST, None)],
    "a file that is open is gone": [
        create(0, 7), (("unlink", 0), 0, None), (("fstat", 7), errno.ESTALE, None),
    ],
    "a name that is there is stale": [create(0, 7), (("stat", 7), errno.ESTALE, None)],
    "a removed file has a name": [create(0, 7), (("unlink", 0), 0, None), (("stat", 7), 0, [seen(7, 1)])],
    "a removed file is brought back": [create(0, 7), (("unlink", 0), 0, None), (("link", 7, 1), 0, [seen(7, 1)])],
    "an error nobody should see": [(("lookup", 0), errno.EIO, None)],
    "a directory's link count": [mkdir(0, 7), (("links", 0), 0, 2)],
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_what_posix_allows_passes(name: str) -> None:
    verdict = check(Cell(), serial(*GOOD[name]))
    assert verdict, str(verdict.impossible)


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_is_found(name: str) -> None:
    history = serial(*BAD[name])
    verdict = check(Cell(), history)
    assert verdict.impossible is history[-1]


def test_a_create_of_unknown_outcome_may_have_been_and_has_one_number() -> None:
    """Its client was killed. Others see the file, or they do not; who sees it sees the same one."""
    unknown: Step = ("create", 0), 0, None
    assert check(Cell(), serial(unknown, (("lookup", 0), errno.ENOENT, None), unknown=(0,)))
    there = serial(unknown, (("lookup", 0), 0, [seen(9)]), (("stat", 9), 0, [seen(9)]), unknown=(0,))
    assert check(Cell(), there)
    another = serial(unknown, (("lookup", 0), 0, [seen(9)]), (("lookup", 0), 0, [seen(8)]), unknown=(0,))
    assert not check(Cell(), another)
    twice = serial(unknown, (("lookup", 0), 0, [seen(9)]), (("unlink", 0), 0, None),
                   (("lookup", 0), 0, [seen(8)]), unknown=(0,))  # fmt: skip
    assert not check(Cell(), twice)

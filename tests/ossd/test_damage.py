"""What is on disk of one object is not what was written: that costs this copy, and not the target."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ossd.ledger import BLOCK
from ossd.store import TRIM_ATTR
from tests.ossd.test_copies import some
from wire.chains import OFFLINE, SERVING, SYNCING
from wire.errors import OK, Status
from wire.messages import ObjectKey


@pytest.mark.parametrize("changed", [False, True], ids=["equal", "behind"])
async def test_a_damaged_attribute_costs_one_copy_of_one_object(tmp_path: Path, changed: bool) -> None:
    """Not the target: a member that passes a change on, or brings it in step, has all of the object."""
    async with some(tmp_path, 1, 2) as targets:
        assert await targets.write(0, b"a" * (BLOCK + 10)) == OK
        where = targets.file(2)
        assert where is not None
        await targets.stop(2)
        await targets.tell((1, SERVING), (2, OFFLINE))
        if changed:
            assert await targets.write(0, b"b") == OK
        os.setxattr(where, TRIM_ATTR, b"123")
        await targets.start(2)
        await targets.tell((1, SERVING), (2, SYNCING))
        await targets.synced(1, 2)
        await targets.tell((1, SERVING), (2, SERVING))
        assert await targets.write(5, b"!") == OK
        assert await targets.read(2) == await targets.read(1)
        assert (await targets.status(2))["failure"] == ""
        assert await targets.scrubbed(1) == []


async def test_a_damaged_attribute_of_the_only_copy_is_an_error_of_that_object(tmp_path: Path) -> None:
    async with some(tmp_path, 1) as targets:
        assert await targets.write(0, b"data") == OK
        where = targets.file(1)
        assert where is not None
        await targets.stop(1)
        os.setxattr(where, TRIM_ATTR, b"123")
        await targets.start(1)
        await targets.tell((1, SERVING))
        assert await targets.write(0, b"more") == Status.CORRUPT
        assert (await targets.status(1))["failure"] == ""
        assert where.read_bytes() == b"data"
        assert await targets.write(0, b"other", key=ObjectKey(6, 0)) == OK

"""Accessed from outside: what is in its tuple may be anything."""

from __future__ import annotations

from typing import Any

import pytest

from wire.ops import ACCESSED_MAX, TIME_NS_MAX, Accessed


@pytest.mark.parametrize(
    "files",
    [
        (),
        (1, 2),
        ((1,),),
        ((1, 2, 3),),
        ((b"1", 2),),
        ((1, None),),
        ((True, 2),),
        ([1, 2],),
        ((0, 5),),
        ((2, 5), (2, 5)),
        ((3, 5), (2, 5)),
        ((1, -1),),
        ((1, TIME_NS_MAX + 1),),
        ((2**63, 5),),
        tuple((n, 5) for n in range(1, ACCESSED_MAX + 2)),
    ],
)
def test_what_is_refused(files: Any) -> None:
    assert Accessed(files).invalid() is not None


def test_what_is_taken() -> None:
    assert Accessed(tuple((n, 5) for n in range(1, ACCESSED_MAX + 1))).invalid() is None

"""Mount options: what is understood, and that nothing misspelt is ignored."""

from __future__ import annotations

import pytest

from client.options import MountOptions, OptionError, parse


def test_nothing_is_hard_and_uncached() -> None:
    assert parse([]) == MountOptions(None, None, 0.0, 0.0, False, "", None, frozenset())


def test_everything() -> None:
    words = ["soft,timeo=50", "replica=2,actimeo=1.5", "ro,allow_other,_netdev,x-systemd.automount", "subdir=/a/b/"]
    found = parse(words)
    assert found.soft_after == 5.0
    assert found.prefer_replica == 2
    assert (found.entry_s, found.attr_s) == (1.5, 1.5)
    assert found.kernel == {"ro", "allow_other"}
    assert found.subdir == "a/b"


def test_the_last_of_hard_and_soft_counts() -> None:
    assert parse(["soft,hard"]).soft_after is None
    assert parse(["soft"]).soft_after == 60.0


@pytest.mark.parametrize("word", ["sofft", "timeo=", "timeo=x", "replica=0", "actimeo=-1", "hard=1", "ro=1", "log="])
def test_what_is_wrong_is_named(word: str) -> None:
    with pytest.raises(OptionError, match=word):
        parse([f"ro,{word}"])

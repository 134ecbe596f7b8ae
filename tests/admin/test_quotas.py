"""Units, and how quotas are shown."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from admin import quotas
from admin.quotas import printable, state


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (quotas._BYTES, "1024", 1024),
        (quotas._BYTES, "2K", 2048),
        (quotas._BYTES, "3 GiB", 3 << 30),
        (quotas._BYTES, "1tb", 1 << 40),
        (quotas._COUNT, "5k", 5000),
        (quotas._TIME, "14d", 14 * 86400),
        (quotas._TIME, "90", 90),
    ],
)
def test_amounts(kind: click.ParamType, text: str, value: int) -> None:
    assert kind.convert(text, None, None) == value


@pytest.mark.parametrize("text", ["", "x", "-1", "1.5G", "10 parsecs", "1i"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        quotas._BYTES.convert(text, None, None)


def test_a_path_that_is_not_there_is_an_argument_error() -> None:
    assert CliRunner().invoke(quotas.quota, ["get", "/no/such/path"]).exit_code == 2


def test_state() -> None:
    quiet = {
        "live": True, "counting": False, "grace_s": 60, "bytes_over_ns": 0, "inodes_over_ns": 0,
        "bytes_hard": 10, "bytes_used": 9, "inodes_hard": 0, "inodes_used": 5,
    }  # fmt: skip
    now = 10**12
    assert state(quiet, now) == "ok"
    assert state(quiet | {"bytes_used": 10}, now) == "no bytes left"
    over = quiet | {"inodes_over_ns": now - 20 * 10**9}
    assert state(over, now) == "inodes over the soft limit, 40 s left"
    assert state(over, now + 40 * 10**9) == "inodes over the soft limit, grace time is over"
    assert state(quiet | {"counting": True}, now) == "being counted"
    assert state(quiet | {"live": False}, now).startswith("ended")


def test_a_path_is_shown_without_control_characters() -> None:
    assert printable("/a\x1b[2J/\udcff/ü") == "/a\\x1b[2J/\\xff/ü"

"""`lockstep quota`: limits for what lies below a directory, and how much of them is used."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any, Final

import click
import trio
from rich.console import Console
from rich.table import Table

from admin.local import find_config
from admin.reporting import reported
from client.api import open_file_system
from client.credentials import ROOT
from client.options import MountOptions
from daemon.config import Config
from wire.quotaops import QuotaList

QUOTA: Final = "lockstep.quota"
USAGE: Final = "lockstep.usage"
_CODES: Final = """\b
Exit codes:
  0  done
  1  not; the reason is printed
  2  the configuration is not usable, or the arguments are not"""
_PATH = click.argument("path", type=click.Path(path_type=Path, exists=True))
_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
_UNITS: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}
_THOUSANDS: Final = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
_TIMES: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


class _Amount(click.ParamType):  # type: ignore[type-arg]  # generic in some versions of click only
    """A number with a unit."""

    def __init__(self, name: str, units: dict[str, int], suffix: str) -> None:
        self.name = name
        self._units = units
        self._pattern = re.compile(rf"(\d{{1,18}})\s*([a-z]?)(?:{suffix})?", re.ASCII)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        found = self._pattern.fullmatch(str(value).strip().lower())
        if found is None or found[2] not in self._units:
            self.fail(f"{value!r} is no number with one of the units {', '.join(u for u in self._units if u)}")
        return int(found[1]) * self._units[found[2]]


_BYTES: Final = _Amount("bytes", _UNITS, "i?b")
_COUNT: Final = _Amount("count", _THOUSANDS, "")
_TIME: Final = _Amount("time", _TIMES, "")


@click.group(short_help="Directory quotas: set, get, list, clear.", epilog=_CODES)
def quota() -> None:
    """Limits for the bytes and inodes below a directory.

    A quota counts the sizes of all files below its directory (holes count, copies do not) and every file, directory and
    link. What would pass a hard limit is refused (EDQUOT), for root, too. A soft limit may be passed for the grace
    time. Quotas may lie within each other: all count.
    """


@quota.command(
    "set",
    epilog=f"""\b
Examples:
  lockstep quota set --bytes 100G --inodes 1m /mnt/home/alice
  lockstep quota set --bytes-soft 90G --grace 14d /mnt/home/alice
  lockstep quota set /mnt/projects         count what is used, limit nothing

{_CODES}""",
)
@_PATH
@click.option("--bytes", "bytes_hard", type=_BYTES, help="Most bytes (units k, M, G, T, P, of 1024); 0: no limit.")
@click.option("--bytes-soft", type=_BYTES, help="Bytes that may be passed for the grace time.")
@click.option("--inodes", "inodes_hard", type=_COUNT, help="Most files, directories, links (units k, m, g, of 1000).")
@click.option("--inodes-soft", type=_COUNT, help="Inodes that may be passed for the grace time.")
@click.option("--grace", "grace_s", type=_TIME, help="Grace time (units s, m, h, d, w); 7d for a new quota.")
def set_(path: Path, **limits: int | None) -> None:
    """Give directory PATH of a mounted file system a quota, or change the limits of the one it has.

    What is not given stays as it is. Only root may. A directory that holds something already is counted in the
    background; `quota get` says when that is done, and until then limits go by what is counted so far. The same can be
    done with setfattr -n lockstep.quota.
    """
    with reported():
        os.setxattr(path, QUOTA, b" ".join(f"{k}={v}".encode() for k, v in limits.items() if v is not None) or b" ")


@quota.command(epilog=_CODES)
@_PATH
@_JSON
def get(path: Path, as_json: bool) -> None:
    """Show the quotas that PATH is counted in, nearest first."""
    with reported():
        _show(json.loads(os.getxattr(path, USAGE)), as_json, f"{path} is in no quota")


@quota.command(epilog=_CODES)
@_PATH
def clear(path: Path) -> None:
    """End the quota of directory PATH. What lies below it is counted for the next quota above, if any."""
    with reported():
        os.removexattr(path, QUOTA)


@quota.command("list", epilog=_CODES)
@click.argument("spec", type=click.Path(path_type=Path), metavar="DIR|CONFIG")
@_JSON
@click.option("--timeout", "timeout_s", type=click.FloatRange(1, 3600), default=60.0, help="Seconds to try (60).")
def list_(spec: Path, as_json: bool, timeout_s: float) -> None:
    """List all quotas of the cluster DIR|CONFIG."""
    with reported():
        _show(trio.run(_listing, find_config(spec), timeout_s), as_json, "there are no quotas")


async def _listing(config: Config, timeout_s: float) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    async with open_file_system(config, name="quota", options=MountOptions(soft_after=timeout_s)) as fs:
        end = False
        while not end:
            items, end = await fs.volume.service.query(QuotaList(ROOT, found[-1]["ino"] if found else 0))
            found += items
    for one in found:
        one["path"] = one["path"].decode("utf-8", "surrogateescape")
    return found


def _show(quotas: list[dict[str, Any]], as_json: bool, none: str) -> None:
    if as_json:
        print(json.dumps({"quotas": quotas}))
        return
    if not quotas:
        print(none)
        return
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for heading in ("directory", "bytes", "soft", "hard", "inodes", "soft", "hard", "state"):
        table.add_column(heading, overflow="fold", justify="left" if heading in ("directory", "state") else "right")
    for one in quotas:
        cells = [f"{one['bytes_used']:,}", *_limits(one, "bytes"), f"{one['inodes_used']:,}", *_limits(one, "inodes")]
        table.add_row(printable(one["path"]), *cells, state(one, time.time_ns()))
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def _limits(one: dict[str, Any], what: str) -> tuple[str, str]:
    soft, hard = one[f"{what}_soft"], one[f"{what}_hard"]
    return f"{soft:,}" if soft else "-", f"{hard:,}" if hard else "-"


def printable(path: str) -> str:
    """*path* as a terminal can show it: bytes that are no text, and control characters, become escapes."""
    text = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def state(one: dict[str, Any], now_ns: int) -> str:
    """What a reader should know: limits that are reached, grace times, and whether the figures are complete."""
    said = []
    if not one["live"]:
        said.append("ended; something of it is open or not recounted yet")
    for what in ("bytes", "inodes"):
        over = one[f"{what}_over_ns"]
        if one[f"{what}_hard"] and one[f"{what}_used"] >= one[f"{what}_hard"]:
            said.append(f"no {what} left")
        elif over:
            left_s = one["grace_s"] - (now_ns - over) // 10**9
            said.append(f"{what} over the soft limit, {f'{left_s} s left' if left_s > 0 else 'grace time is over'}")
    if one["counting"]:
        said.append("being counted")
    return "; ".join(said) or "ok"

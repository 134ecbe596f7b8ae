"""Commands about file contents: `lockstep target`, `lockstep scrub`, `lockstep layout`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Final

import click
import trio
from rich.console import Console
from rich.table import Table

from admin import targets
from admin.local import find_config
from admin.reporting import reported
from daemon.exits import EXIT_FAILED
from wire.inline import INLINE_MAX

LAYOUT: Final = "lockstep.layout"
_SPEC = click.argument("spec", type=click.Path(path_type=Path), metavar="DIR|CONFIG")
_ID = click.argument("number", type=click.IntRange(1, 65535), metavar="ID")
_SECONDS = click.FloatRange(1, 3600)
_TIMEOUT = click.option("--timeout", "timeout_s", type=_SECONDS, default=60.0, help="Seconds to try (60).")
_CODES = """\b
Exit codes:
  0  done
  1  not; the reason is printed
  2  the configuration is not usable"""


@click.group(short_help="Storage targets: list, add, drain, remove, replace.", epilog=_CODES)
def target() -> None:
    """Storage targets: which there are, what becomes of them."""


@target.command("list", epilog=_CODES)
@_SPEC
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_(spec: Path, as_json: bool) -> None:
    """List the storage targets of the cluster DIR|CONFIG, and what is being copied.

    A target's state is serving, draining (everything on it is being moved) or offline (it does not answer, or its
    disk has failed, which is said below the table; files with copies elsewhere go on). Chains: in how many it serves,
    is being synced, and so on.
    """
    with reported():
        states, under_way = trio.run(targets.listing, find_config(spec))
        if as_json:
            syncing = [
                {
                    "chain": s.chain, "target": s.target, "objects": s.objects, "bytes": s.bytes,
                    "percent": s.percent, "seconds_left": s.seconds_left,
                }
                for s in under_way
            ]  # fmt: skip
            print(json.dumps({"targets": [state.to_json() for state in states], "syncing": syncing}))
            return
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
        for heading in ("target", "address", "state", "chains", "free MiB", "objects", "bad blocks", "mended"):
            table.add_column(heading, overflow="fold")
        for one in states:
            said = one.to_json()
            chains = ", ".join(f"{count} {state}" for state, count in sorted(one.chains.items())) or "none"
            free = "?" if said["bytes_free"] is None else str(said["bytes_free"] >> 20)
            rest = ("?" if said[key] is None else str(said[key]) for key in ("objects", "blocks_bad", "blocks_mended"))
            table.add_row(str(one.id), one.address, one.state, chains, free, *rest)
        Console(width=None if sys.stdout.isatty() else 140).print(table)
        for one in states:
            if failure := one.said.get("failure"):
                print(f"target {one.id}: its disk has failed ({failure}): it stays out until it is started again")
        for s in under_way:
            left = "time left not known yet" if s.seconds_left is None else f"about {s.seconds_left} s left"
            print(
                f"chain {s.chain}: target {s.target} is being synced: {s.percent} %, {s.objects} objects, "
                f"{s.bytes >> 20} MiB so far, {left}"
            )


@target.command(epilog=_CODES)
@_SPEC
@_ID
@_TIMEOUT
def add(spec: Path, number: int, timeout_s: float) -> None:
    """Take target ID, which the configuration DIR|CONFIG names and which runs, into the cluster.

    New files use it at once. Of the copies on the others as many chains are moved to it, in the background, as makes
    their places equal; files with one copy are moved, one chain at a time, until targets are about as full as each
    other. Nothing is interrupted by that. `lockstep target list` shows what is under way.
    """
    with reported():
        trio.run(targets.add, find_config(spec), number, timeout_s)


@target.command(epilog=_CODES)
@_SPEC
@_ID
@click.option("--undo", is_flag=True, help="It stays after all.")
@_TIMEOUT
def drain(spec: Path, number: int, undo: bool, timeout_s: float) -> None:
    """Move everything that is on target ID elsewhere, in the background; `target list` shows how far it is.

    The target serves until the last of it is moved. Then it has no chains, and `target remove` takes it out.
    """
    with reported():
        trio.run(targets.drain, find_config(spec), number, undo, timeout_s)


@target.command(epilog=_CODES)
@_SPEC
@_ID
@click.option("--lost", is_flag=True, help="Its disk will never come back: give up what it alone had.")
@_TIMEOUT
def remove(spec: Path, number: int, lost: bool, timeout_s: float) -> None:
    """Take target ID out of the cluster. Refused (busy) while it has data that belongs there: drain it first.

    With --lost the copies that were on it are made anew on other targets, in the background.
    """
    with reported():
        trio.run(targets.remove, find_config(spec), number, lost, timeout_s)


@target.command(epilog=_CODES)
@_SPEC
@_ID
@click.option("--lost", is_flag=True, help="What it alone had is gone: files with one copy there have holes now.")
@_TIMEOUT
def replace(spec: Path, number: int, lost: bool, timeout_s: float) -> None:
    """Target ID runs with another, empty disk: give it everything that it had.

    Refused (busy) where it alone served: files with one copy are lost with their disk, and that is to be said.
    """
    with reported():
        trio.run(targets.replace, find_config(spec), number, lost, timeout_s)


@target.command("rotate-keys", epilog=_CODES)
@_SPEC
@click.option("--forget", is_flag=True, help="A key is known to others: nothing signed before counts any more.")
@_TIMEOUT
def rotate_keys(spec: Path, forget: bool, timeout_s: float) -> None:
    """Have the metadata service sign what it allows clients with another key. It does so by itself every 12 hours.

    Clients go on: what they hold is renewed where it is refused.
    """
    with reported():
        print(f"rotated {trio.run(targets.rotate_keys, find_config(spec), forget, timeout_s)} times so far")


@click.command(
    short_help="Check all file contents.",
    epilog="""\b
Examples:
  lockstep scrub lockstep-cluster
  lockstep scrub --verify --rate 500 /etc/lockstep/lockstep.toml

\b
Exit codes:
  0  everything is as it should be, or was mended
  1  something is wrong; each is listed
  2  the configuration is not usable""",
)
@_SPEC
@click.option("--verify", is_flag=True, help="Compare the copies of each object as well.")
@click.option("--rate", type=click.IntRange(1, 100_000), default=50, help="MiB/s per target at most (50).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def scrub(spec: Path, verify: bool, rate: int, as_json: bool) -> None:
    """Read everything on all targets of DIR|CONFIG and compare it with its checksums; mend what is bad.

    With --verify the copies are compared with each other as well, and a target or chain that is not serving counts as
    wrong.
    """
    with reported():

        def progress(done: int, total: int) -> None:
            if not as_json and sys.stdout.isatty():
                print(f"\r{100 * done // total} %", end="", flush=True)

        found = trio.run(targets.scrub, find_config(spec), rate << 20, verify, progress)
        if as_json:
            print(json.dumps(targets.scrubbed_json(found)))
        else:
            if sys.stdout.isatty():
                print("\r", end="")
            for text in found.wrong:
                print(text)
            print(
                f"{found.objects} objects, {found.bytes >> 20} MiB checked; {found.bad} bad blocks, "
                f"{found.mended} of them mended; {len(found.wrong)} things wrong"
            )
        if found.wrong:
            sys.exit(EXIT_FAILED)


@click.group(short_help="How files are laid out: get, set.", epilog=_CODES)
def layout() -> None:
    """How the contents of files are laid out over the storage targets."""


@layout.command(
    epilog="""\b
Example:
  lockstep layout get /mnt/results"""
)
@click.argument("path", type=click.Path(path_type=Path))
def get(path: Path) -> None:
    """Show the layout of a file, or the one that new files in a directory get, on a mounted file system."""
    with reported():
        print(os.getxattr(path, LAYOUT).decode("ascii", "replace"))


@layout.command(
    "set",
    epilog="""\b
Example:
  lockstep layout set --copies 2 --stripe-count 1 /mnt/results""",
)
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--stripe-size", type=click.IntRange(4096, 8 << 20), help="Bytes, a multiple of 4096.")
@click.option("--stripe-count", type=click.IntRange(1, 64), help="Targets that one file is spread over.")
@click.option("--copies", type=click.IntRange(1, 3), help="Copies of the contents, each on another target.")
@click.option("--inline", type=click.IntRange(0, INLINE_MAX), help="Bytes up to which a file is in the metadata alone.")
def set_(
    path: Path, stripe_size: int | None, stripe_count: int | None, copies: int | None, inline: int | None
) -> None:
    """Set the layout of a directory (for files and directories made in it from now on) or of a file that is empty.

    What is not given stays as it is. The same can be done with setfattr -n lockstep.layout.
    """
    with reported():
        given = {"stripe_size": stripe_size, "stripe_count": stripe_count, "copies": copies, "inline": inline}
        text = " ".join(f"{name}={value}" for name, value in given.items() if value is not None)
        if not text:
            raise click.UsageError("nothing to set")
        os.setxattr(path, LAYOUT, text.encode())


COMMANDS: Final = (target, scrub, layout)

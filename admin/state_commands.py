"""Commands about the whole namespace: `lockstep dump`, `lockstep load`, `lockstep fsck`."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

import click

from admin import fsck as checking
from admin import loading
from admin.copying import state_of
from admin.local import find_config
from admin.reporting import reported
from daemon.exits import EXIT_FAILED
from mds import dump as dumps
from mds.store import StoreCorrupt, StoreFailed

_SPEC = click.argument("spec", type=click.Path(path_type=Path), metavar="DIR|CONFIG")
_REPLICA = click.option("--replica", type=click.IntRange(1, 255), help="The replica to take the copy from.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
_SCRATCH = click.option(
    "--scratch",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Where there is room for a copy of the state, some 600 bytes per file (the directory for temporary files).",
)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    with reported():
        try:
            yield
        except (StoreCorrupt, StoreFailed, dumps.DumpError) as exc:
            print(f"lockstep: {exc}", file=sys.stderr)
            sys.exit(EXIT_FAILED)


@click.command(
    short_help="Write the namespace to a file.",
    epilog="""\b
Examples:
  lockstep dump lockstep-cluster tree.dump
  lockstep dump /etc/lockstep/lockstep.toml - | zstd > tree.dump.zst

\b
Exit codes:
  0  all of it is written
  1  not; the reason is printed
  2  the configuration is not usable""",
)
@_SPEC
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True), metavar="FILE")
@_REPLICA
@_SCRATCH
@_JSON
def dump(spec: Path, file: Path, replica: int | None, scratch: Path | None, as_json: bool) -> None:
    """Write the namespace of the cluster DIR|CONFIG to FILE (-: standard output), as it is at one moment.

    Names, attributes, links, extended attributes, the contents of small files that are in the metadata, and where those
    of the others lie. FILE can be read by its owner alone. One replica is
    asked for a copy of its state, which it gives while it serves. The format is documented in mds/dump.py: a stream of
    msgpack arrays with a version at its head and a checksum at its end.
    """
    with _told():
        config = find_config(spec)
        with state_of(config, replica, scratch) as copy:
            if str(file) == "-":
                records = dumps.write(copy.store, config.cluster.id, sys.stdout.buffer)
                sys.stdout.flush()
            else:
                with _whole(file) as out:
                    records = dumps.write(copy.store, config.cluster.id, out)
            said = {"replica": copy.replica, "index": copy.index, "records": records}
    text = json.dumps(said) if as_json else f"{records} records: replica {copy.replica} at index {copy.index}"
    print(text, file=sys.stderr if str(file) == "-" else sys.stdout)


@contextlib.contextmanager
def _whole(file: Path) -> Iterator[BinaryIO]:
    """*file* is there when all of it is on disk, or as it was. Nobody else may read it: names and small files, which
    are in it, may be anybody's secret."""
    partial = file.with_name(file.name + ".partial")
    partial.unlink(missing_ok=True)
    try:
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


@click.command(
    short_help="Make a new cluster's namespace from a dump.",
    epilog="""\b
Examples:
  lockstep load lockstep-cluster tree.dump
  lockstep load /etc/lockstep/lockstep.toml tree.dump --replica 1     on each replica's host
  zstd -d < tree.dump.zst | lockstep load --empty /etc/lockstep/other.toml - --replica 1

\b
Exit codes:
  0  done; the cluster can be started
  1  not; the reason is printed, and nothing is changed
  2  the configuration is not usable""",
)
@_SPEC
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True), metavar="FILE")
@click.option("--replica", type=click.IntRange(1, 255), help="Only this replica, whose data is on this host.")
@click.option("--empty", is_flag=True, help="The storage targets are others: all files are empty.")
@_JSON
def load(spec: Path, file: Path, replica: int | None, empty: bool, as_json: bool) -> None:
    """Make what is in FILE (-: standard input) the namespace that the cluster DIR|CONFIG begins with.

    The cluster must never have been started; every replica needs the same FILE. With the configuration of the cluster
    that was dumped (its id), and its storage targets, files have their contents. A replica that lost its disk needs
    none of this: it takes the state from the others.
    """
    with _told():
        config = find_config(spec)
        with contextlib.ExitStack() as held:
            stream = sys.stdin.buffer if str(file) == "-" else held.enter_context(file.open("rb"))
            inodes, numbers = loading.load(config, replica, stream, empty)
        if as_json:
            print(json.dumps({"inodes": inodes, "replicas": numbers}))
        else:
            print(f"{inodes} inodes: state of replica {', '.join(map(str, numbers))}")


@click.command(
    short_help="Check the namespace and what targets hold.",
    epilog="""\b
Examples:
  lockstep fsck lockstep-cluster
  lockstep fsck --repair /etc/lockstep/lockstep.toml

\b
Exit codes:
  0  nothing is wrong (any more)
  1  something is; each is listed
  2  the configuration is not usable""",
)
@_SPEC
@click.option("--repair", is_flag=True, help="Put right what can be, by requests to the cluster.")
@click.option("--names-only", is_flag=True, help="Do not ask the storage targets what they hold.")
@_REPLICA
@_SCRATCH
@_JSON
def fsck(
    spec: Path, repair: bool, names_only: bool, replica: int | None, scratch: Path | None, as_json: bool
) -> None:
    """Check the file system of the cluster DIR|CONFIG while it is in use.

    Entries without inodes and inodes without entries, link counts, unlinked files that wait for nobody, everything
    derived; objects on storage targets without inodes. Files with a size and no object at all are counted: they may
    be nothing but a hole. One replica is asked for a copy of its state; nobody waits for it.

    With --repair, names that lead nowhere are removed, files without a name get one in /lost+found, counts are made
    what they should be, and objects that nobody knows are deleted. Contents are checked by `lockstep scrub`.
    """
    with _told():

        def say(text: str) -> None:
            if not as_json and sys.stderr.isatty():
                print(text, file=sys.stderr)

        found = checking.fsck(find_config(spec), replica, not names_only, repair, scratch, say)
        if as_json:
            print(json.dumps(found.to_json()))
        else:
            for problem in found.problems:
                print(problem)
            print(
                f"replica {found.replica} at index {found.index}: {found.inodes} inodes, {found.objects} objects; "
                f"{found.hollow} files are nothing but a hole; {found.mended} things mended; "
                f"{len(found.problems)} wrong"
            )
        if found.problems:
            sys.exit(EXIT_FAILED)


COMMANDS: Final = (dump, load, fsck)

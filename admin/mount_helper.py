"""``mount.lockstep``: what mount(8) runs for ``mount -t lockstep CONFIG DIR -o ...``, and so for fstab and autofs.

``CONFIG:/subdir`` mounts a directory of the file system.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from admin import mounts
from admin.local import find_config
from admin.mounts import MountError
from daemon.config import ConfigError

USAGE: Final = "usage: mount.lockstep CONFIG[:/SUBDIR] MOUNTPOINT [-sfnv] [-o OPTIONS] [-t TYPE]"

# Exit codes of mount(8).
EXIT_USAGE: Final = 1
EXIT_FAILED: Final = 32


class UsageError(Exception):
    """The arguments are not those of mount(8)."""


@dataclass(frozen=True, slots=True)
class Arguments:
    """What mount(8) asked for."""

    spec: Path
    mountpoint: Path
    options: tuple[str, ...] = ()
    fake: bool = False


def parse(argv: list[str]) -> Arguments:
    """mount(8): ``mount.TYPE SPEC DIR [-sfnv] [-N namespace] [-o options] [-t type.subtype]``."""
    places: list[str] = []
    options: list[str] = []
    fake = False
    rest = iter(argv)
    for arg in rest:
        if arg in ("-o", "-t", "-N"):
            value = next(rest, None)
            if value is None:
                raise UsageError(f"{arg} without a value")
            if arg == "-o":
                options += [o for o in value.split(",") if o]
            elif arg == "-N":
                raise UsageError("-N is not supported: run mount inside the namespace")
        elif arg.startswith("-") and len(arg) > 1 and set(arg[1:]) <= set("sfnvwr"):
            fake = fake or "f" in arg
            options += ["ro"] if "r" in arg[1:] else []
        elif arg.startswith("-"):
            raise UsageError(f"unknown option {arg}")
        else:
            places.append(arg)
    if len(places) != 2:
        raise UsageError("a configuration and a mountpoint are needed")
    if any(option.partition("=")[0] == "remount" for option in options):
        raise UsageError("remount is not supported: unmount and mount again")
    spec, subdir = split_spec(places[0])
    return Arguments(spec, Path(places[1]), (*options, *([f"subdir={subdir}"] if subdir else [])), fake)


def split_spec(text: str) -> tuple[Path, str]:
    """``CONFIG`` or ``CONFIG:/subdir`` as (path, directory in the file system or "")."""
    if os.path.exists(text) or ":/" not in text:
        return Path(text), ""
    path, _, subdir = text.rpartition(":/")
    return Path(path), subdir.strip("/")


def main() -> None:
    try:
        asked = parse(sys.argv[1:])
    except UsageError as exc:
        print(f"mount.lockstep: {exc}\n{USAGE}", file=sys.stderr)
        sys.exit(EXIT_USAGE)
    try:
        config = find_config(asked.spec)
        if not asked.fake:
            mounts.mount(config, asked.mountpoint, asked.options)
    except (ConfigError, MountError, OSError) as exc:
        print(f"mount.lockstep: {exc}", file=sys.stderr)
        sys.exit(EXIT_FAILED)


if __name__ == "__main__":
    main()

"""Pure. Mount options as NFS and FUSE users know them, from the words after ``-o``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from wire.ids import number_untrusted

KERNEL_OPTIONS: Final = frozenset((
    "ro", "rw", "suid", "nosuid", "dev", "nodev", "exec", "noexec", "atime", "noatime", "diratime", "nodiratime",
    "relatime", "norelatime", "sync", "async", "dirsync", "allow_other", "allow_root", "default_permissions",
))  # fmt: skip
"""Passed on as they are."""
IGNORED_OPTIONS: Final = frozenset(("_netdev", "auto", "noauto", "user", "nouser", "users", "defaults", "nofail"))
"""For mount(8) and the init system, not for us."""
IGNORED_PREFIXES: Final = ("x-", "X-", "comment=")
TIMEO_DEFAULT: Final = 600
"""Tenths of a second, as in nfs(5)."""


class OptionError(ValueError):
    """A mount option cannot be used; the text names it."""


@dataclass(frozen=True, slots=True)
class MountOptions:
    """What a mount was asked for; times in seconds."""

    soft_after: float | None = None
    """None: hard."""
    prefer_replica: int | None = None
    entry_s: float = 0.0
    attr_s: float = 0.0
    direct_io: bool = False
    subdir: str = ""
    log_file: str | None = None
    kernel: frozenset[str] = field(default_factory=frozenset)


def parse(words: Iterable[str]) -> MountOptions:
    """The options in *words*, each of which may hold several separated by commas. Raises :class:`OptionError`.

    ``hard`` | ``soft``, ``timeo=`` tenths of a second; ``replica=`` number; ``entry_timeout=``, ``attr_timeout=``,
    ``actimeo=`` (both) seconds; ``direct_io``; ``subdir=``; ``log=`` file; and the kernel's own (ro, allow_other, ...).
    """
    soft = False
    timeo = TIMEO_DEFAULT
    replica: int | None = None
    entry_s = attr_s = 0.0
    direct_io = False
    subdir = ""
    log_file: str | None = None
    kernel: set[str] = set()
    for word in (part for one in words for part in one.split(",") if part):
        name, equals, value = word.partition("=")
        match name:
            case "hard" | "soft" if not equals:
                soft = name == "soft"
            case "timeo":
                timeo = _number(word, value, 1, 10**6)
            case "replica":
                replica = _number(word, value, 1, 255)
            case "entry_timeout":
                entry_s = _seconds(word, value)
            case "attr_timeout":
                attr_s = _seconds(word, value)
            case "actimeo":
                entry_s = attr_s = _seconds(word, value)
            case "direct_io" if not equals:
                direct_io = True
            case "subdir":
                subdir = value.strip("/")
            case "log":
                if not value:
                    raise OptionError(f"mount option {word!r}: a file name is missing")
                log_file = value
            case _ if name in KERNEL_OPTIONS and not equals:
                kernel.add(name)
            case _ if name in IGNORED_OPTIONS or word.startswith(IGNORED_PREFIXES):
                continue
            case _:
                raise OptionError(f"mount option {word!r} is not known")
    return MountOptions(timeo / 10 if soft else None, replica, entry_s, attr_s, direct_io, subdir, log_file,
                        frozenset(kernel))  # fmt: skip


def _number(word: str, value: str, low: int, high: int) -> int:
    number = number_untrusted(value)
    if number is None or not low <= number <= high:
        raise OptionError(f"mount option {word!r}: a whole number from {low} to {high} is needed")
    return number


def _seconds(word: str, value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 86400:
        raise OptionError(f"mount option {word!r}: seconds from 0 to 86400 are needed")
    return seconds

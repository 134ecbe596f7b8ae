"""Whether a state on disk may be used before it is read whole: what is noted about its file, and compared at a start.

Reading every record costs seconds per million, so it is done first only where there is a reason to doubt:

1. After a clean stop there is an *imprint*, checksums over the whole file. They are compared: a gigabyte in a second.
2. After any other end of the process there is the *note* of its last commit: which file it was, its length and times,
   in which run of the kernel. If nobody has touched the file since, the pages are those that LMDB left, and what a
   process that is killed leaves is sound. One that is killed in the midst of a commit has touched it itself: then its
   watchdog knows when that was over.
3. Else (a power cut, another file, a disk that gives something else, a reader that died of what it read) it is read.

Neither of the first two is ever a reason to refuse a state. What they cannot see, a disk that forgets below a file that
nobody touches, is looked for in the background (:mod:`mds.audit`).
"""

from __future__ import annotations

import contextlib
import os
import zlib
from pathlib import Path
from typing import Any, Final

from daemon.exits import DIED_AT, DIED_OF
from wire.codec import pack, unpack_untrusted
from wire.errors import WireError

DATA: Final = "data.mdb"
NOTE: Final = "note"
IMPRINT: Final = "imprint"
CHUNK: Final = 4 << 20
IMPRINT_MAX: Final = 4 << 30
"""Of a larger file none is taken: stopping and starting would take longer than is worth it."""
READ_WHOLE_MAX: Final = 16 << 20
"""So much, some 30,000 records, is read whole at each start: it takes a tenth of a second."""
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


def note(path: Path) -> None:
    """After a commit to the state in *path*. Not synced: it is void after a power cut anyway."""
    _write(path / NOTE, _identity(path))


def imprint(path: Path) -> None:
    """Blocking, after a clean stop, with the environment closed."""
    if (path / DATA).stat().st_size <= IMPRINT_MAX:
        _write(path / IMPRINT, _sums(path))


def forget_imprint(path: Path) -> None:
    """Before the first change."""
    with contextlib.suppress(FileNotFoundError):  # there was no clean stop
        (path / IMPRINT).unlink()


def is_trusted(path: Path) -> str | None:
    """Why the state in *path* may be used without reading it whole first, or None."""
    if os.environ.get(DIED_OF):
        return None
    if (path / IMPRINT).exists():
        return "it is what was stopped" if _read(path / IMPRINT) == _sums(path) else None
    noted, present = _read(path / NOTE), _identity(path)
    if noted == present:
        return "nobody has touched it since it was written"
    # The same file in the same run of the kernel, and all times of it are of when the replica lived.
    died_at = os.environ.get(DIED_AT, "")
    if noted is not None and noted[:3] == present[:3] and died_at.isdigit() and max(present[4:]) < int(died_at):
        return "nobody has touched it since the replica died"
    return None


def _identity(path: Path) -> tuple[Any, ...]:
    stat = (path / DATA).stat()
    return _BOOT_ID.read_text().strip(), stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _sums(path: Path) -> tuple[int, ...]:
    """CRC-32 of each CHUNK of the file."""
    sums: list[int] = []
    buffer = bytearray(CHUNK)
    with (path / DATA).open("rb", buffering=0) as file:
        while got := file.readinto(buffer):
            sums.append(zlib.crc32(memoryview(buffer)[:got]))
    return tuple(sums)


def _write(path: Path, what: tuple[Any, ...]) -> None:
    """*what* with a checksum: a part of it says nothing."""
    data = pack(what)
    path.write_bytes(zlib.crc32(data).to_bytes(4, "big") + data)


def _read(path: Path) -> Any:
    """What :func:`_write` wrote, or None."""
    try:
        data = path.read_bytes()
        if data[:4] == zlib.crc32(data[4:]).to_bytes(4, "big"):
            return unpack_untrusted(data[4:])
    except (FileNotFoundError, WireError):
        pass  # nothing was ever noted, or by another program
    return None

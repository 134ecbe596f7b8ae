"""Damage to what a stopped replica has on disk: its state (LMDB), its journal; whole disks gone or full."""

from __future__ import annotations

import errno
import os
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

from daemon.journal import BATCH, BATCH_MAGIC, HEADER

PAGE: Final = 4096
DATA: Final = "data.mdb"


# --- the state ------------------------------------------------------------------------------------


def _overwrite(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def no_meta_pages(state: Path, rng: Random) -> None:
    """Both pages LMDB begins with are zero."""
    _overwrite(state / DATA, 0, bytes(2 * PAGE))


def cut_off(state: Path, rng: Random) -> None:
    """The file ends early."""
    size = (state / DATA).stat().st_size
    os.truncate(state / DATA, rng.randrange(1, max(2, size // PAGE)) * PAGE)


def noise(state: Path, rng: Random) -> None:
    """A tenth of the pages hold noise."""
    size = (state / DATA).stat().st_size
    for page in rng.sample(range(2, size // PAGE), max(1, size // PAGE // 10)):
        _overwrite(state / DATA, page * PAGE, rng.randbytes(PAGE))


def one_bit(state: Path, rng: Random) -> None:
    """One bit is another."""
    path = state / DATA
    at = rng.randrange(2 * PAGE, path.stat().st_size)
    with path.open("r+b") as file:
        file.seek(at)
        old = file.read(1)[0]
        file.seek(at)
        file.write(bytes([old ^ (1 << rng.randrange(8))]))


def exchanged_pages(state: Path, rng: Random) -> None:
    """Two pages were written in each other's place."""
    path = state / DATA
    one, other = rng.sample(range(2, path.stat().st_size // PAGE), 2)
    data = path.read_bytes()
    _overwrite(path, one * PAGE, data[other * PAGE : (other + 1) * PAGE])
    _overwrite(path, other * PAGE, data[one * PAGE : (one + 1) * PAGE])


def deleted(state: Path, rng: Random) -> None:
    """The directory is gone."""
    shutil.rmtree(state)


def no_data_file(state: Path, rng: Random) -> None:
    """The file is gone, its directory is there."""
    (state / DATA).unlink()


STATE_DAMAGE: Final[tuple[Callable[[Path, Random], None], ...]] = (
    no_meta_pages, cut_off, noise, one_bit, exchanged_pages, deleted, no_data_file,
)  # fmt: skip


# --- the journal ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Batch:
    """Where a good batch of a journal lies."""

    path: Path
    at: int
    length: int
    """Of its contents."""
    number: int

    @property
    def end(self) -> int:
        return self.at + BATCH.size + self.length


def batches(journal: Path) -> Iterator[Batch]:
    """All good batches, in order; read as the format is written down, not as the daemon reads it."""
    for path in sorted(journal.glob("*.journal")):
        data = path.read_bytes()
        at = HEADER.size
        while at + BATCH.size <= len(data):
            magic, length, number, crc = BATCH.unpack_from(data, at)
            body = data[at + BATCH.size : at + BATCH.size + length]
            if magic != BATCH_MAGIC or crc != zlib.crc32(body, zlib.crc32(struct.pack("!IQ", length, number))):
                break
            yield Batch(path, at, length, number)
            at += BATCH.size + length


def torn_batch(journal: Path, rng: Random) -> None:
    """A batch was under way when it ended, and a part of it came to the disk. Nobody was told of it."""
    last = list(batches(journal))[-1]
    body = rng.randbytes(rng.randrange(1, 2000))
    head = BATCH.pack(BATCH_MAGIC, len(body), last.number + 1, zlib.crc32(b"of the whole"))
    _overwrite(last.path, last.end, (head + body)[: rng.randrange(1, BATCH.size + len(body) + 1)])


def damaged_batch(journal: Path, rng: Random) -> None:
    """A byte of a batch that was on disk is another one, and batches follow it."""
    chosen = rng.choice(list(batches(journal))[:-1])
    at = rng.randrange(chosen.at, chosen.end)
    old = chosen.path.read_bytes()[at]
    _overwrite(chosen.path, at, bytes([old ^ rng.randrange(1, 256)]))


def missing_segment(journal: Path, rng: Random) -> None:
    """A file with batches in the middle is gone; where there is none, a batch is damaged."""
    between = sorted({batch.path for batch in batches(journal)})[1:-1]
    if between:
        rng.choice(between).unlink()
    else:
        damaged_batch(journal, rng)


# --- the disk -------------------------------------------------------------------------------------


def fill(directory: Path) -> Path:
    """Take all the space there is below *directory*; the file that does."""
    ballast = directory / "ballast"
    with ballast.open("wb") as file:
        piece = 1 << 20
        while piece >= PAGE:
            try:
                os.posix_fallocate(file.fileno(), file.tell(), piece)
                file.seek(piece, os.SEEK_CUR)
            except OSError as exc:
                if exc.errno != errno.ENOSPC:
                    raise
                piece //= 4
    return ballast

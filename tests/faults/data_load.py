"""Writers and readers that check every byte, beside faults of storage targets.

    python -m tests.faults.data_load write DIR FLOORS SEED     until standard input ends
    python -m tests.faults.data_load read DIR FLOORS SEED
    python -m tests.faults.data_load check DIR FLOORS          everything, once

Files are made of pages that say which they are and in which version. After an fsync the writer notes, in FLOORS (shared
memory, beside the file system), how new each page has to be; whoever opens a file after that must find it so new.
Beside them each writer has a file of its own that is made, cut off, extended and removed again and again (Scratch).
A line of JSON every 50 ms tells how many operations were done, the longest since the line before, and what was wrong.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import select
import struct
import sys
import time
from pathlib import Path
from typing import Final

PAGE: Final = 4096
PAGES: Final = 768
"""Per file: three stripe units."""
FILES: Final = 6
HEAD: Final = struct.Struct("!QQQ")
SLOT: Final = struct.Struct("!I")
SAY_S: Final = 0.05


def page(file: int, number: int, version: int) -> bytes:
    """What page *number* of file *file* holds in *version*: no two pages or versions are alike anywhere."""
    word = HEAD.pack(file, number, version)
    return (word * (PAGE // len(word) + 1))[:PAGE]


def version_of(data: bytes, file: int, number: int) -> int | None:
    """Which version of the page *data* is (0: it was never written); None: it is none of ours."""
    if not any(data):
        return 0
    _, _, version = HEAD.unpack_from(data)
    return version if data == page(file, number, version) else None


class Floors:
    """How new each page has to be."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)

    @staticmethod
    def make(path: Path) -> None:
        path.write_bytes(bytes(SLOT.size * PAGES * FILES))

    def get(self, file: int, number: int) -> int:
        version: int = SLOT.unpack_from(self._map, SLOT.size * (file * PAGES + number))[0]
        return version

    def put(self, file: int, number: int, version: int) -> None:
        SLOT.pack_into(self._map, SLOT.size * (file * PAGES + number), version)


class Teller:
    """Times operations and says how it goes."""

    def __init__(self) -> None:
        self.operations = 0
        self.wrong: list[str] = []
        self._longest = 0.0
        self._said = time.monotonic()

    def timed(self, began: float) -> None:
        now = time.monotonic()
        self.operations += 1
        self._longest = max(self._longest, now - began)
        if now - self._said >= SAY_S or self.wrong:
            self.say()

    def say(self) -> None:
        self._said = time.monotonic()
        line = {"operations": self.operations, "longest_ms": round(self._longest * 1000), "wrong": self.wrong[:5]}
        print(json.dumps(line), flush=True)
        self._longest = 0.0


def _asked_to_end() -> bool:
    return bool(select.select([sys.stdin], [], [], 0)[0])


class Scratch:
    """A file whose size goes up and down, compared with what it should hold: what was cut off never comes back. It
    begins small, in the metadata, and grows out of them; the objects of those removed have to go."""

    SIZE_MAX: Final = 2_500_000

    def __init__(self, path: Path, rng: random.Random) -> None:
        self._path = path
        self._rng = rng
        self._fd = -1
        self._model = bytearray()

    def step(self) -> str | None:
        """One operation; what was wrong, or None. Raises OSError."""
        rng, model = self._rng, self._model
        if self._fd < 0:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
            model.clear()
        at = rng.choice((rng.randrange(4000), rng.randrange(self.SIZE_MAX)))
        kind = rng.choice(("write", "write", "append", "cut", "cut", "read", "read", "sync", "remove"))
        if kind == "cut":
            os.ftruncate(self._fd, at)
            model[:] = model[:at].ljust(at, b"\0")
        elif kind in ("write", "append"):
            at = len(model) if kind == "append" else at
            data = rng.randbytes(min(rng.choice((100, 5000, 200_000)), max(1, self.SIZE_MAX - at)))
            os.pwrite(self._fd, data, at)
            model.extend(bytes(max(0, at - len(model))))
            model[at : at + len(data)] = data
        elif kind == "sync":
            os.fsync(self._fd)
        elif kind == "read":
            return self._compare(self._fd)
        elif rng.random() < 0.3:
            os.close(self._fd)
            self._fd = -1
            os.unlink(self._path)
        return None

    def _compare(self, fd: int) -> str | None:
        size, data = os.fstat(fd).st_size, os.pread(fd, len(self._model) + 1, 0)
        if size != len(self._model) or len(data) != size:
            return f"{self._path.name}: {len(data)} bytes, size {size}, where {len(self._model)} should be"
        if data == self._model:
            return None
        at = next(k for k, (one, two) in enumerate(zip(data, self._model, strict=True)) if one != two)
        return f"{self._path.name}: byte {at} of {size} is {data[at]}, not {self._model[at]}"

    def end(self) -> str | None:
        if self._fd < 0:
            return None
        os.pwrite(self._fd, b"end", 0)  # to fsck a file that is one hole looks like one that has lost everything
        self._model[:3] = b"end"
        os.fsync(self._fd)
        found = self._compare(self._fd)
        os.close(self._fd)
        return found


def write(directory: Path, floors: Floors, seed: int) -> int:
    rng = random.Random(seed)
    scratch = Scratch(directory / "scratch", random.Random(seed + 1_000_000))
    teller = Teller()
    version = 0
    handles = [os.open(directory / f"f{k}", os.O_RDWR | os.O_CREAT, 0o644) for k in range(FILES)]
    dirty: dict[tuple[int, int], int] = {}
    while not _asked_to_end() and not teller.wrong:
        file = rng.randrange(FILES)
        first = rng.randrange(PAGES)
        count = min(rng.choice((1, 1, 4, 16, 64)), PAGES - first)
        version += 1
        began = time.monotonic()
        try:
            if rng.random() < 0.05 and (wrong := scratch.step()) is not None:
                teller.wrong.append(wrong)
            if rng.random() < 0.85:
                data = b"".join(page(file, first + k, version) for k in range(count))
                done = os.pwrite(handles[file], data, first * PAGE)
                if done != len(data):
                    teller.wrong.append(f"short write: {done} of {len(data)}")
                dirty |= {(file, first + k): version for k in range(count)}
            else:
                data = os.pread(handles[file], PAGE, first * PAGE)
                found = version_of(data.ljust(PAGE, b"\0"), file, first)
                want = dirty.get((file, first), floors.get(file, first))
                if found != want:
                    teller.wrong.append(f"own read: file {file} page {first} has version {found}, not {want}")
            if rng.random() < 0.05:
                os.fsync(handles[file])
                for at, written in [item for item in dirty.items() if item[0][0] == file]:
                    floors.put(*at, written)
                    del dirty[at]
        except OSError as exc:
            teller.wrong.append(f"error: {exc}")
        teller.timed(began)
    for handle in handles:
        os.fsync(handle)
        os.close(handle)
    for at, written in dirty.items():
        floors.put(*at, written)
    if (wrong := scratch.end()) is not None:
        teller.wrong.append(wrong)
    teller.say()
    return 1 if teller.wrong else 0


def _look(directory: Path, floors: Floors, file: int, pages: range, teller: Teller) -> None:
    want = {number: floors.get(file, number) for number in pages}
    try:
        handle = os.open(directory / f"f{file}", os.O_RDONLY)
        try:
            data = os.pread(handle, len(pages) * PAGE, pages.start * PAGE)
        finally:
            os.close(handle)
    except FileNotFoundError:
        return
    except OSError as exc:
        teller.wrong.append(f"error: {exc}")
        return
    for k, number in enumerate(pages):
        found = version_of(data[k * PAGE : (k + 1) * PAGE].ljust(PAGE, b"\0"), file, number)
        if found is None or found < want[number]:
            teller.wrong.append(f"file {file} page {number} has version {found}, and {want[number]} was synced before")


def read(directory: Path, floors: Floors, seed: int) -> int:
    rng = random.Random(seed)
    teller = Teller()
    while not _asked_to_end() and not teller.wrong:
        first = rng.randrange(PAGES)
        began = time.monotonic()
        _look(directory, floors, rng.randrange(FILES), range(first, min(first + 16, PAGES)), teller)
        teller.timed(began)
    teller.say()
    return 1 if teller.wrong else 0


def check(directory: Path, floors: Floors) -> int:
    teller = Teller()
    for file in range(FILES):
        _look(directory, floors, file, range(PAGES), teller)
        teller.operations += 1
    teller.say()
    return 1 if teller.wrong else 0


def main(argv: list[str]) -> int:
    what, directory, floors = argv[0], Path(argv[1]), Floors(Path(argv[2]))
    if what == "check":
        return check(directory, floors)
    return {"write": write, "read": read}[what](directory, floors, int(argv[3]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""A directory tree copied with plain POSIX calls, its operations timed; and compared with what was copied.

Runs as a process of its own (``python -m admin.tree copy|compare``), because whoever touches a mount may have to
wait for it, and whoever directs a demonstration must not.  It prints one JSON object per line on standard output.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

CHUNK: Final = 1 << 20
REPORT_S: Final = 0.05
"""Progress is printed at most so often."""
FILES_MIN: Final = 2_000
"""With fewer source files than this the compiled ones are copied as well."""
FILES_MAX: Final = 6_000
BYTES_MAX: Final = 512 << 20
SYMLINKS_MIN: Final = 100
"""A tree with fewer symbolic links gets links of ours, in one directory of their own."""
LINKS_NAME: Final = "lockstep-demo-links"
SKIPPED: Final = frozenset({"site-packages", "dist-packages"})
"""What somebody installed is not the standard library."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that was copied. *path* is relative; *digest* is BLAKE2b of a file's contents."""

    path: str
    kind: str
    mode: int = 0
    mtime_ns: int = 0
    size: int = 0
    digest: str = ""
    target: str = ""


class Stopwatch:
    """The longest time between two completed system calls on the mount.

    Counted from the end of one call to the end of the next, reading and hashing the source between them included:
    that is what an application would see as a pause, and never less than the service's own.
    """

    def __init__(self) -> None:
        self.longest_s = 0.0
        self.calls = 0
        self._last = time.monotonic()

    def done(self) -> None:
        """One system call on the mount has returned."""
        now = time.monotonic()
        self.longest_s = max(self.longest_s, now - self._last)
        self._last = now
        self.calls += 1


def _say(**values: object) -> None:
    print(json.dumps(values), flush=True)


# --- what there is to copy ------------------------------------------------------------------------


def listing(source: Path, compiled: bool) -> Iterator[tuple[str, os.stat_result]]:
    """(relative path, lstat) of everything below *source*, parents before children, in a fixed order.

    ``compiled``: with __pycache__. Only directories, regular files and symbolic links that can be read.
    """
    pending = [""]
    while pending:
        base = pending.pop()
        with os.scandir(source / base) as scan:
            found = sorted(scan, key=lambda e: e.name)
        below = []
        for entry in found:
            if entry.name in SKIPPED or (entry.name == "__pycache__" and not compiled):
                continue
            path = f"{base}/{entry.name}" if base else entry.name
            info = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(info.st_mode) and os.access(entry.path, os.R_OK | os.X_OK):
                below.append(path)
            elif not stat.S_ISLNK(info.st_mode) and not (
                stat.S_ISREG(info.st_mode) and os.access(entry.path, os.R_OK)
            ):
                continue
            yield path, info
        pending += reversed(below)


def choose(source: Path) -> list[tuple[str, os.stat_result]]:
    """What of *source* is copied: sources only where they are enough, and never more than the bounds."""
    for compiled in (False, True):
        found = list(listing(source, compiled))
        if sum(stat.S_ISREG(info.st_mode) for _, info in found) >= FILES_MIN:
            break
    chosen = []
    files = size = 0
    for path, info in found:
        if stat.S_ISREG(info.st_mode):
            if files >= FILES_MAX or size + info.st_size > BYTES_MAX:
                continue
            files += 1
            size += info.st_size
        chosen.append((path, info))
    return chosen


# --- copying --------------------------------------------------------------------------------------


class Copier:
    """Copies *source* to *target* (on the mount), which does not exist yet."""

    def __init__(self, source: Path, target: Path) -> None:
        self.source = source
        self.target = target
        self.watch = Stopwatch()
        self.entries: list[Entry] = []
        self.errors = 0
        self.files = 0
        self.bytes = 0
        self._reported = 0.0

    def run(self) -> None:
        chosen = choose(self.source)
        links = sum(stat.S_ISLNK(info.st_mode) for _, info in chosen)
        made = self._links_to_make(chosen) if links < SYMLINKS_MIN else []
        _say(
            files_total=sum(not stat.S_ISDIR(i.st_mode) for _, i in chosen) + len(made),
            bytes_total=sum(i.st_size for _, i in chosen if stat.S_ISREG(i.st_mode)),
            links_made=len(made),
        )
        self.watch = Stopwatch()
        directories = [("", os.lstat(self.source))]
        self._attempt("", self._directory, "")
        for path, info in chosen:
            if stat.S_ISDIR(info.st_mode):
                directories.append((path, info))
                self._attempt(path, self._directory, path)
            elif stat.S_ISLNK(info.st_mode):
                self._attempt(path, self._link, path, os.readlink(self.source / path), info.st_mtime_ns)
            else:
                self._attempt(path, self._file, path, info)
            self._report()
        if made:
            self._attempt(LINKS_NAME, self._directory, LINKS_NAME)
            directories.append((LINKS_NAME, os.lstat(self.source)))
            for name, aim in made:
                self._attempt(name, self._link, name, aim, 1_000_000_000)
                self._report()
        # A directory's times last, deepest first: every entry made in it has changed them.
        for path, info in reversed(directories):
            self._attempt(path, self._finish_directory, path, info)
        self._report(last=True)

    @staticmethod
    def _links_to_make(chosen: list[tuple[str, os.stat_result]]) -> list[tuple[str, str]]:
        files = [path for path, info in chosen if stat.S_ISREG(info.st_mode)]
        step = max(1, len(files) // SYMLINKS_MIN)
        picked = files[::step][:SYMLINKS_MIN]
        return [(f"{LINKS_NAME}/{k:03d}", f"../{path}") for k, path in enumerate(picked)]

    def _attempt(self, path: str, what: object, *args: object) -> None:
        assert callable(what)
        try:
            what(*args)
        except OSError as exc:
            # The very thing that is counted: the demonstration promises that there are none.
            self.errors += 1
            _say(error=f"{path or '.'}: {exc.strerror}")

    def _directory(self, path: str) -> None:
        os.mkdir(self.target / path)
        self.watch.done()

    def _finish_directory(self, path: str, info: os.stat_result) -> None:
        where = self.target / path
        mode = stat.S_IMODE(info.st_mode) & 0o1777 | 0o700
        os.chmod(where, mode)
        self.watch.done()
        os.utime(where, ns=(info.st_mtime_ns, info.st_mtime_ns))
        self.watch.done()
        self.entries.append(Entry(path, "directory", mode, info.st_mtime_ns))

    def _link(self, path: str, aim: str, mtime_ns: int) -> None:
        where = self.target / path
        os.symlink(aim, where)
        self.watch.done()
        os.utime(where, ns=(mtime_ns, mtime_ns), follow_symlinks=False)
        self.watch.done()
        self.files += 1
        self.entries.append(Entry(path, "symlink", mtime_ns=mtime_ns, target=aim))

    def _file(self, path: str, info: os.stat_result) -> None:
        mode = stat.S_IMODE(info.st_mode) & 0o777 | 0o400
        digest = hashlib.blake2b(digest_size=16)
        size = 0
        where = self.target / path
        with open(self.source / path, "rb", buffering=0) as source:
            out = os.open(where, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            self.watch.done()
            try:
                while chunk := source.read(CHUNK):
                    digest.update(chunk)
                    view = memoryview(chunk)
                    while view:
                        written = os.write(out, view)
                        self.watch.done()
                        view = view[written:]
                    size += len(chunk)
                    self.bytes += len(chunk)
                    self._report()
                os.fchmod(out, mode)
                self.watch.done()
            finally:
                os.close(out)
                self.watch.done()
        os.utime(where, ns=(info.st_mtime_ns, info.st_mtime_ns))
        self.watch.done()
        self.files += 1
        self.entries.append(Entry(path, "file", mode, info.st_mtime_ns, size, digest.hexdigest()))

    def _report(self, last: bool = False) -> None:
        now = time.monotonic()
        if last or now - self._reported >= REPORT_S:
            self._reported = now
            _say(
                files=self.files,
                bytes=self.bytes,
                errors=self.errors,
                longest_stall_ms=round(self.watch.longest_s * 1000, 1),
            )


def copy(source: Path, target: Path, manifest: Path) -> int:
    """Copy, and write what was copied to *manifest*; the number of errors."""
    copier = Copier(source, target)
    copier.run()
    with manifest.open("w", encoding="utf-8", errors="surrogateescape") as file:
        json.dump([asdict(entry) for entry in copier.entries], file)
    return copier.errors


# --- comparing ------------------------------------------------------------------------------------


def differences(target: Path, entry: Entry) -> str | None:
    """How what lies at *target* differs from *entry*, or None. Raises OSError."""
    where = target / entry.path
    info = os.lstat(where)
    kinds = {"directory": stat.S_ISDIR, "symlink": stat.S_ISLNK, "file": stat.S_ISREG}
    if not kinds[entry.kind](info.st_mode):
        return f"is no {entry.kind} but has mode {info.st_mode:#o}"
    # What matters most first: one reason is given.
    if entry.kind == "file":
        if info.st_size != entry.size:
            return f"{info.st_size} bytes, not {entry.size}"
        if _digest_of(where) != entry.digest:
            return "contents differ"
    if entry.kind == "symlink":
        aim = os.readlink(where)
        if aim != entry.target:
            return f"points to {aim!r}, not {entry.target!r}"
    elif stat.S_IMODE(info.st_mode) != entry.mode:
        return f"mode {stat.S_IMODE(info.st_mode):#o}, not {entry.mode:#o}"
    return None if info.st_mtime_ns == entry.mtime_ns else f"mtime {info.st_mtime_ns} ns, not {entry.mtime_ns}"


def _digest_of(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def compare(target: Path, manifest: Path) -> int:
    """Compare the tree at *target* with *manifest*; the number of mismatches, also of what is there too much."""
    with manifest.open(encoding="utf-8", errors="surrogateescape") as file:
        entries = [Entry(**values) for values in json.load(file)]
    mismatches = errors = files = size = 0
    reported = 0.0
    for entry in entries:
        try:
            found = differences(target, entry)
        except FileNotFoundError:
            found = "is missing"
        except OSError as exc:
            errors += 1
            _say(error=f"{entry.path}: {exc.strerror}")
            continue
        if found is not None:
            mismatches += 1
            _say(mismatch=f"{entry.path or '.'}: {found}")
        files += entry.kind != "directory"
        size += entry.size
        if time.monotonic() - reported >= REPORT_S:
            reported = time.monotonic()
            _say(files=files, bytes=size, errors=errors, mismatches=mismatches)
    wanted = {entry.path for entry in entries}
    unreadable: list[OSError] = []
    for base, directories, names in os.walk(target, onerror=unreadable.append):
        for name in (*directories, *names):
            path = os.path.relpath(os.path.join(base, name), target)
            if path not in wanted:
                mismatches += 1
                _say(mismatch=f"{path}: was never copied")
    for failure in unreadable:
        errors += 1
        _say(error=f"{failure.filename}: {failure.strerror}")
    _say(files=files, bytes=size, errors=errors, mismatches=mismatches)
    return mismatches + errors


def main(argv: list[str]) -> int:
    match argv:
        case ["copy", source, target, manifest]:
            return 1 if copy(Path(source), Path(target), Path(manifest)) else 0
        case ["compare", target, manifest]:
            return 1 if compare(Path(target), Path(manifest)) else 0
    print("usage: python -m admin.tree copy SOURCE TARGET MANIFEST | compare TARGET MANIFEST", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

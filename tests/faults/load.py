"""A load that remembers what it was promised: runs beside the faults, then checks that every promise was kept.

Run as a process, because whoever uses a mount may have to wait for it::

    python -m tests.faults.load work DIR JOURNAL SEED       until standard input ends
    python -m tests.faults.load check DIR JOURNAL           compare DIR with the journal

``work`` creates, writes, reads, renames, links and removes in DIR, one operation at a time, and keeps in JOURNAL
what must be there after the operations that were answered.  Each operation must succeed, and must find what the
ones before it have left.  Both print one JSON object per line.
"""

from __future__ import annotations

import json
import os
import random
import select
import sys
import time
from pathlib import Path
from typing import Final

REPORT_EVERY: Final = 10
FILES_MAX: Final = 400
"""Above this as many files are removed as are made."""


class Load:
    """One directory and what must be in it: names of files with their contents, of links with their targets."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.directory = directory
        self.random = random.Random(seed)
        self.files: dict[str, str] = {}
        self.links: dict[str, str] = {}
        self.operations = 0
        self.errors: list[str] = []
        self.longest_s = 0.0
        self._count = 0

    def _new_name(self) -> str:
        self._count += 1
        return f"f{self._count:06d}"

    def _some_file(self) -> str:
        return self.random.choice(sorted(self.files))

    def step(self) -> None:
        """One operation. The expectation changes only after the call has returned."""
        kinds = [self.create] * 6
        if self.files:
            kinds += [self.read] * 3 + [self.rename] * 2 + [self.rewrite] * 2 + [self.link, self.stat]
        if len(self.files) > FILES_MAX:
            kinds += [self.remove] * 12
        kind = self.random.choice(kinds)
        began = time.monotonic()
        try:
            kind()
        except OSError as exc:
            self.errors.append(f"{kind.__name__}: {exc}")
        self.longest_s = max(self.longest_s, time.monotonic() - began)
        self.operations += 1

    def create(self) -> None:
        name = self._new_name()
        content = f"{name} {self.random.getrandbits(64):x}"
        with open(self.directory / name, "x", encoding="ascii") as file:
            file.write(content)
        self.files[name] = content

    def rewrite(self) -> None:
        name = self._some_file()
        content = f"{name} again {self.random.getrandbits(64):x}" * self.random.randrange(1, 50)
        with open(self.directory / name, "w", encoding="ascii") as file:
            file.write(content)
        self.files[name] = content

    def read(self) -> None:
        name = self._some_file()
        found = (self.directory / name).read_text(encoding="ascii")
        if found != self.files[name]:
            self.errors.append(f"read: {name} holds {found[:60]!r}, not {self.files[name][:60]!r}")

    def stat(self) -> None:
        name = self._some_file()
        size = os.stat(self.directory / name).st_size
        if size != len(self.files[name]):
            self.errors.append(f"stat: {name} has {size} bytes, not {len(self.files[name])}")

    def rename(self) -> None:
        # Half of them over a file that is there.
        name = self._some_file()
        new = self._some_file() if self.random.random() < 0.5 else self._new_name()
        os.rename(self.directory / name, self.directory / new)
        self.files[new] = self.files.pop(name) if new != name else self.files[name]

    def link(self) -> None:
        name = "l" + self._new_name()
        aim = f"../{self._some_file()}"
        os.symlink(aim, self.directory / name)
        self.links[name] = aim

    def remove(self) -> None:
        name = self._some_file()
        os.unlink(self.directory / name)
        del self.files[name]


def work(directory: Path, journal: Path, seed: int) -> int:
    directory.mkdir()
    load = Load(directory, seed)
    while True:
        ended, _, _ = select.select([sys.stdin], [], [], 0)
        if ended:
            break
        load.step()
        if load.operations % REPORT_EVERY == 0 or load.errors:
            _say(load)
        if len(load.errors) > 20:
            break  # enough to judge by
    journal.write_text(json.dumps({"files": load.files, "links": load.links}), encoding="utf-8")
    _say(load)
    return 1 if load.errors else 0


def _say(load: Load) -> None:
    print(
        json.dumps({"operations": load.operations, "errors": load.errors, "longest_ms": round(load.longest_s * 1000)}),
        flush=True,
    )


def check(directory: Path, journal: Path) -> int:
    expected = json.loads(journal.read_text(encoding="utf-8"))
    wrong = []
    there = set(os.listdir(directory))
    named = {*expected["files"], *expected["links"]}
    wrong += [f"{name} is missing" for name in sorted(named - there)]
    wrong += [f"{name} is there, but was removed or never made" for name in sorted(there - named)]
    for name in sorted(named & there):
        if name in expected["links"]:
            found = os.readlink(directory / name)
            want = expected["links"][name]
        else:
            found = (directory / name).read_text(encoding="utf-8", errors="replace")
            want = expected["files"][name]
        if found != want:
            wrong.append(f"{name} holds {found[:60]!r}, not {want[:60]!r}")
    print(json.dumps({"checked": len(named), "wrong": wrong}), flush=True)
    return 1 if wrong else 0


def main(argv: list[str]) -> int:
    match argv:
        case ["work", directory, journal, seed]:
            return work(Path(directory), Path(journal), int(seed))
        case ["check", directory, journal]:
            return check(Path(directory), Path(journal))
    print("usage: python -m tests.faults.load work DIR JOURNAL SEED | check DIR JOURNAL", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

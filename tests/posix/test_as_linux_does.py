"""What pjdfstest and the basic tests of xfstests look at, on a mount and on a local file system: no difference.

The checks are ours and follow the subjects of these suites (docs/posix.md says what is left out and why). A
check does not know what is right: the local file system says so. Each runs in a process of its own, in both places.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.client.mounted import rig
from tests.live import unavailable
from tests.posix import handles, kinds, paths, renames, rights
from tests.posix.place import Check, Place, local_directory

pytestmark = pytest.mark.system

CHECKS: dict[str, Check] = {
    f"{module.__name__.rpartition('.')[2]}: {name.removeprefix('check_').replace('_', ' ')}": check
    for module in (paths, kinds, rights, renames, handles)
    for name, check in vars(module).items()
    if name.startswith("check_")
}
CONTEXT = 6
"""Notes shown before the first that differs."""


@pytest.fixture(scope="module")
def mounted() -> Iterator[Path]:
    reason = unavailable() or ("only root acts as others" if os.geteuid() else None)
    if reason is not None:
        # Not skipped: a run without these tests has not shown what it is for.
        pytest.fail(reason)
    with tempfile.TemporaryDirectory(prefix="posix-") as base, rig(Path(base)) as processes:
        yield processes.mount(options="allow_other")


def notes_of(check: Check, where: Path) -> list[str]:
    """Carry out *check* in *where*, a directory that is there and empty, in a process of its own."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        place = Place()
        try:
            os.umask(0o022)
            os.chdir(where)
            os.setgroups([])
            check(place)
        except BaseException:  # noqa: BLE001 - whatever it is, it is noted, and the other place has noted none
            place.note("the check has failed", traceback.format_exc())
        try:
            with os.fdopen(writer, "w", encoding="ascii") as pipe:
                json.dump(place.notes, pipe)
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, encoding="ascii") as pipe:
        told = pipe.read()
    os.waitpid(pid, 0)
    found: list[str] = json.loads(told)
    return found


@pytest.mark.parametrize("name", CHECKS)
def test_as_a_local_file_system(name: str, mounted: Path) -> None:
    local = Path(tempfile.mkdtemp(prefix="posix-", dir=local_directory()))
    local.chmod(0o755)
    try:
        there = mounted / name.replace(" ", "-")
        there.mkdir(mode=0o755)
        wanted, found = notes_of(CHECKS[name], local), notes_of(CHECKS[name], there)
    finally:
        shutil.rmtree(local)
    assert not any(note.startswith("the check has failed") for note in wanted), wanted[-1]
    different = [k for k, (want, have) in enumerate(zip(wanted, found, strict=False)) if want != have]
    if different or len(wanted) != len(found):
        first = different[0] if different else min(len(wanted), len(found)) - 1
        lines = [f"{len(different)} of {len(wanted)} notes differ, the first of them:"]
        lines += ["    " + note for note in wanted[max(0, first - CONTEXT) : first]]
        lines += [f"want {wanted[k]}\nhave {found[k]}" for k in (different or [first])[:20]]
        pytest.fail("\n".join(lines), pytrace=False)
    assert len(wanted) > 2, "it has looked at something"

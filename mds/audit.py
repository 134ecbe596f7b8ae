"""Reading a replica's whole state in the background, while it serves: is everything there as it was written?

A process of its own reads (``python -m mds.audit STATE``), with the lowest priority and at most half of a core, in one
snapshot of LMDB: what is changed meanwhile takes new pages, so the file may grow by that, once. It dies in place of the
replica if pages are damaged. What it finds ends the replica (:func:`set_aside` says what then).
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio

from mds import verify
from mds.store import Store, StoreCorrupt, StoreFailed

log = logging.getLogger(__name__)

BEGIN_S: Final = 5.0
"""After a start that has not read the state; a replica that is just back has better things to do."""
AGAIN_S: Final = 24 * 3600.0
NICE: Final = 19
REST: Final = 1.0
"""Rest per time of work."""
TWICE_S: Final = 3600.0
"""A state damaged again so soon: the disk is not to be used any more."""
ASIDE: Final = "state.damaged"


async def audit(store: Callable[[], Store], read: bool, die: Callable[[Exception], None]) -> None:
    """For ever. *store* gives the present one; *read*: it was read whole just now; *die* gets what is wrong."""
    await trio.sleep(AGAIN_S if read else BEGIN_S)
    while True:
        looked_at = store()
        path = looked_at.path
        began = trio.current_time()
        done = await trio.run_process(
            [sys.executable, "-P", "-m", "mds.audit", str(path), str(os.getpid())],
            capture_stdout=True, check=False, stdin=subprocess.DEVNULL, env=_environment(),
        )  # fmt: skip
        if store() is looked_at:  # else a snapshot took its place, and what was read is gone
            looked_at.forget_dead_readers()
            try:
                verify.judge(path, [(done.stdout.decode(), done.returncode)])
                log.info("the state was read whole in %.1f s: it is well", trio.current_time() - began)
            except StoreFailed as exc:
                log.warning("%s; tried again later", exc)
            except StoreCorrupt as exc:
                die(exc)
                return
        await trio.sleep(AGAIN_S)


def _environment() -> dict[str, str]:
    """The child imports the tree that this process runs from."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def set_aside(state: Path, name: str = ASIDE, asked: bool = False) -> bool:
    """Move a state that is not to be used out of the way, to *name* beside it, so that the next start takes the whole
    of it from another replica.

    False: one was moved not long ago, and this disk had better be left alone; unless somebody has *asked* for it.
    """
    aside = state.with_name(name)
    if not asked and aside.exists() and time.time() - aside.stat().st_ctime < TWICE_S:
        return False
    shutil.rmtree(aside, ignore_errors=True)
    state.rename(aside)
    return True


def main(argv: list[str]) -> int:
    path, parent = Path(argv[0]), int(argv[1])
    os.nice(NICE)
    last = time.monotonic()

    def pace() -> None:
        nonlocal last
        if os.getppid() != parent:  # nobody waits for what is found any more
            os._exit(1)
        time.sleep(REST * (time.monotonic() - last))
        last = time.monotonic()

    os.write(1, verify.found(path, pace=pace).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

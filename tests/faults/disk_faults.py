"""Faults of a replica's disk: its state or journal damaged or deleted while it is down, its disk full.

A replica with a damaged state must refuse to start and say how to recover, or take its state from the others; with a
damaged journal it must not take part at all. Whether it answered wrongly meanwhile is for the history to tell; what
lies on its disk at the end is compared with the others'.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Final

from daemon.journal import POISON
from tests.faults import damage
from tests.faults.menu import Fault, Faulty
from tests.faults.site import Broken, Site

JUDGED_S: Final = 15.0
"""A replica with a damaged disk has ended, or joined, within this time, or it does neither."""
REFUSED_S: Final = 1.5
"""A replica that must not take part is watched for so long."""
FULL_S: Final = 3.0


def _down(site: Site, rng: Random) -> str:
    """A replica, killed."""
    name = rng.choice(site.replicas)
    site.kill(name)
    return name


def _said(site: Site, name: str, since: int) -> str:
    """What *name* has logged after byte *since*."""
    with site.cluster.log_file(name).open("rb") as log:
        log.seek(since)
        return log.read().decode(errors="replace")


def _log_size(site: Site, name: str) -> int:
    return site.cluster.log_file(name).stat().st_size


def _comes_back(site: Site, name: str, what: str) -> None:
    """It was started with a damaged state: wait for what it does, and help as its message says."""
    since = _log_size(site, name)
    site.start(name)
    deadline = time.monotonic() + JUDGED_S

    def judged() -> bool:
        return not site.cluster.running(name) or site.active(name) or time.monotonic() > deadline

    site.wait(judged, "the clients", 2 * JUDGED_S)
    if site.cluster.running(name):
        site.say(f"  {name} runs with {what}")
        site.count("damaged states joined by themselves")
        site.suspicious.add(name)
        return
    told = _said(site, name, since)
    if "To recover, stop this replica and remove that directory" not in told:
        raise Broken(f"{name} ended with {what} and does not say what to do about it: ...{told[-1500:]}")
    site.say(f"  {name} refuses {what}: it is removed")
    site.count("damaged states refused")
    shutil.rmtree(site.data(name) / "state", ignore_errors=True)
    site.start(name)


def state_fault(hurt: Callable[[Path, Random], None]) -> Fault:
    @contextlib.contextmanager
    def fault(site: Site, rng: Random) -> Faulty:
        name = _down(site, rng)
        what = (hurt.__doc__ or "").strip().rstrip(".").lower()
        site.say(f"kill -9 {name}; in its state {what}")
        state = site.data(name) / "state"
        if (state / damage.DATA).exists():
            hurt(state, rng)
        yield
        _comes_back(site, name, f"a damaged state ({hurt.__name__})")

    fault.__name__ = f"state_{hurt.__name__}"
    return fault


@contextlib.contextmanager
def state_from_before(site: Site, rng: Random) -> Faulty:
    """Somebody restored a copy of the state that is older than what the journal still holds."""
    name = rng.choice(site.replicas)
    state = site.data(name) / "state"
    copy = site.directory / f"old-state-{name}"
    site.say(f"kill -9 {name} twice; then its state is that of the first time")
    site.kill(name)
    shutil.rmtree(copy, ignore_errors=True)
    if state.exists():
        shutil.copytree(state, copy)
    site.start(name)
    yield
    site.whole()
    site.kill(name)
    if copy.exists():
        shutil.rmtree(state, ignore_errors=True)
        shutil.copytree(copy, state)
    _comes_back(site, name, "an old state")


# --- the journal ----------------------------------------------------------------------------------


@contextlib.contextmanager
def torn_journal(site: Site, rng: Random) -> Faulty:
    """What a power cut leaves of a batch that nobody was told of: nothing is wrong with that."""
    name = _down(site, rng)
    site.say(f"kill -9 {name}; a torn batch at the end of its journal")
    damage.torn_batch(site.data(name) / "journal", rng)
    yield
    site.start(name)


def _refuses(site: Site, name: str, what: str) -> None:
    """Started now, it ends and says that it must be replaced."""
    since = _log_size(site, name)
    site.start(name)
    site.wait(lambda: not site.cluster.running(name), f"{name} runs with {what}", JUDGED_S)
    told = _said(site, name, since)
    if "must not take part" not in told:
        raise Broken(f"{name} ended with {what} and does not say so: ...{told[-1500:]}")
    site.count("damaged journals refused")


def _journal_fault(hurt: Callable[[Path, Random], None]) -> Fault:
    @contextlib.contextmanager
    def fault(site: Site, rng: Random) -> Faulty:
        name = _down(site, rng)
        site.say(f"kill -9 {name}; {hurt.__name__} in its journal; it must refuse")
        journal, copy = site.data(name) / "journal", site.directory / f"journal-{name}"
        shutil.copytree(journal, copy)
        try:
            hurt(journal, rng)
            _refuses(site, name, hurt.__name__)
            yield
        finally:
            # The disk can be read again, and holds what it held.
            shutil.rmtree(journal)
            shutil.copytree(copy, journal)
            shutil.rmtree(copy)
        site.start(name)

    fault.__name__ = f"journal_{hurt.__name__}"
    return fault


@contextlib.contextmanager
def other_disk(site: Site, rng: Random) -> Faulty:
    """Its journal is gone, or the whole disk: what comes back is another replica under its number. The others know."""
    name = _down(site, rng)
    whole = rng.random() < 0.5
    site.say(f"kill -9 {name}; {'its whole disk' if whole else 'its journal'} is gone; nobody may know it")
    base, copy = site.data(name), site.directory / f"disk-{name}"
    gone = [path for path in base.iterdir() if whole or path.name == "journal"]
    copy.mkdir()
    for path in gone:
        shutil.move(path, copy / path.name)
    try:
        site.start(name)
        watched = time.monotonic() + REFUSED_S
        while time.monotonic() < watched:
            if site.active(name):
                raise Broken(f"{name} takes part although its disk is another one")
            site.hold(0.1)
        yield
        site.kill(name)
    finally:
        site.kill(name)
        for path in gone:
            shutil.rmtree(base / path.name, ignore_errors=True)
            shutil.move(copy / path.name, path)
        shutil.rmtree(copy)
    site.start(name)


# --- the disk -------------------------------------------------------------------------------------


@contextlib.contextmanager
def full_disk(site: Site, rng: Random) -> Faulty:
    """Nothing can be written any more; when there is room again the replica comes back with what it had."""
    name = site.own_disk
    assert name is not None, "faults of disks need one"
    site.say(f"the disk of {name} is full")
    ballast = damage.fill(site.data(name))
    try:
        if rng.random() < 0.5:
            site.hold(rng.uniform(0.0, FULL_S))
            site.kill(name)
            site.start(name)  # it may not even be able to
        site.hold(rng.uniform(1.0, FULL_S))
        yield
    finally:
        ballast.unlink()
    if site.cluster.running(name):
        site.count("full disks survived")
        return
    if (site.data(name) / "journal" / POISON).exists():
        raise Broken(f"{name} has a poison mark after a full disk")
    site.count("full disks died of")
    site.start(name)


DISK_FAULTS: Final[tuple[tuple[Fault, int], ...]] = (
    *((state_fault(hurt), 1) for hurt in damage.STATE_DAMAGE),
    (state_from_before, 1), (torn_journal, 2), (_journal_fault(damage.damaged_batch), 1),
    (_journal_fault(damage.missing_segment), 1), (other_disk, 2),
)  # fmt: skip
OWN_DISK_FAULTS: Final[tuple[tuple[Fault, int], ...]] = ((full_disk, 3),)
"""These need a small disk, so root."""

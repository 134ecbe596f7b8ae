"""`lockstep load`: the state that a new cluster begins with, made from a dump before it is started."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import BinaryIO, Final

from admin.ask import AskError
from daemon.config import Config
from mds import dump
from mds.beginning import beginning
from mds.store import Store

LOADING: Final = "loading"
"""Directory beside the state in which it is made."""


def load(config: Config, replica: int | None, stream: BinaryIO, empty: bool) -> tuple[int, list[int]]:
    """Make the state of *replica*, or of all whose data lies on this host by the configuration; (inodes, replicas).

    Raises :class:`AskError` where there is a state already, :class:`mds.dump.DumpError`.
    """
    numbers = [r.id for r in config.replicas if replica in (None, r.id) and not r.joins]
    if not numbers:
        raise AskError(f"the configuration names no replica {replica or ''} of a new cluster")
    for number in numbers:
        data = config.replica(number).data
        if (data / "state").exists() or (data / "journal").exists():
            raise AskError(f"{data}: replica {number} was started before; a dump is loaded into a new cluster only")
    _, bootstrap = beginning(config, None)
    header, records = dump.read(stream)
    if header.cluster != config.cluster.id and not empty:
        raise dump.DumpError(
            "it is of another cluster, whose storage targets hold the files' contents; "
            "with --empty the files are there and empty"
        )
    first, *others = (config.replica(number).data for number in numbers)
    for data in (first, *others):
        data.mkdir(mode=0o700, parents=True, exist_ok=True)  # as a replica makes it: nobody else's to read
    made = first / LOADING
    shutil.rmtree(made, ignore_errors=True)
    try:
        store = Store.open(made)
        try:
            inodes = dump.load(store, header, records, bootstrap, keep=not empty)
        finally:
            store.close()
        for data in others:
            shutil.rmtree(data / LOADING, ignore_errors=True)
            (data / LOADING).mkdir()
            shutil.copy(made / "data.mdb", data / LOADING / "data.mdb")  # with its mode
        for data in (first, *others):
            _sync(data / LOADING / "data.mdb")
            _sync(data / LOADING)
        for data in (first, *others):
            (data / LOADING).rename(data / "state")
            _sync(data)
    finally:
        for data in (first, *others):
            shutil.rmtree(data / LOADING, ignore_errors=True)
    return inodes, numbers


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

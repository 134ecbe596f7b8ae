"""One operation each on a store that is open: as a target does them, in one line of a test."""

from __future__ import annotations

from pathlib import Path

from ossd.objects import Truncations
from ossd.store import Buffer, Key, Store

A: Key = (1, 0)
B: Key = (1, 1)


def write(store: Store, key: Key, offset: int, data: Buffer, known: Truncations = (), client: str = "c") -> None:
    file = store.fetch(key, create=True)
    assert file is not None
    try:
        store.write(file, offset, data, known, client)
    finally:
        store.release(file)


def read(store: Store, key: Key, offset: int = 0, length: int = 1 << 20, known: Truncations = ()) -> bytes | None:
    file = store.fetch(key, create=False)
    if file is None:
        return None
    try:
        at_once = store.read_at_once(file, offset, length, known)
        data = store.read(file, offset, length, known)
        assert at_once is None or at_once == data
        return data
    finally:
        store.release(file)


def truncate(store: Store, key: Key, known: Truncations, client: str = "c") -> None:
    file = store.fetch(key, create=True)
    assert file is not None
    try:
        store.truncate(file, known, client)
    finally:
        store.release(file)


def sync(store: Store, key: Key, client: str = "c") -> int:
    file = store.cached(key)
    assert file is not None, "it is open as long as there is anything to sync"
    try:
        return store.sync(file, file.book.writes, client)
    finally:
        store.release(file)


def files(path: Path) -> set[str]:
    return {p.name for p in (path / "objects").glob("*/*")}

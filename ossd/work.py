"""What a target does in threads: one function per operation, each gives (status, body, bulk) of the answer."""

from __future__ import annotations

from ossd.objectfile import Key, ObjectFile
from ossd.objects import Truncations
from ossd.store import Buffer, Store
from wire.codec import pack
from wire.errors import OK

Result = tuple[int, bytes, Buffer]
"""(status, body, bulk) of an answer."""
DONE: Result = (OK, b"", b"")


def read(store: Store, key: Key, offset: int, length: int, truncations: Truncations) -> Result:
    file = store.fetch(key, create=False)
    if file is None:
        return DONE
    try:
        return OK, b"", store.read(file, offset, length, truncations)
    finally:
        store.release(file)


def sync(store: Store, file: ObjectFile, upto: int, client: str) -> Result:
    return store.sync(file, upto, client), b"", b""


def stat(store: Store) -> Result:
    total, free = store.space()
    return OK, pack((total, free, store.objects)), b""


def status(store: Store, known: dict[str, object]) -> Result:
    total, free = store.space()
    return OK, pack(known | {"bytes_total": total, "bytes_free": free}), b""

"""Pure. What one request sees and may do: the store, the time, a fresh number, and what it reports."""

from __future__ import annotations

import errno

from mds import schema
from mds.namespace import quota
from mds.namespace.inode import Inode, decode
from mds.namespace.layout import Storage
from mds.store import Store
from wire.errors import FileSystemError

Delegated = tuple[int, bool]
"""(session, whether it is wanted back) of a directory that is delegated."""


class Scope:
    """One per machine, set up anew for each request by :meth:`start`. Operations keep nothing of it."""

    __slots__ = (
        "_inodes_before",
        "_sessions_before",
        "block",
        "delegated",
        "fresh",
        "inodes",
        "keys_changed",
        "members",
        "now",
        "opened",
        "orphaned",
        "redelegated",
        "roster_changed",
        "session",
        "session_gone",
        "sessions",
        "storage",
        "storage_changed",
        "store",
    )

    def __init__(self, store: Store, storage: Storage) -> None:
        self.store = store
        self.storage = storage
        self.members: tuple[int, ...] = ()
        """Replicas of the last view: who may hold handles."""
        self.inodes = 0
        """Inodes there are, orphans among them."""
        self.sessions = 0
        self.delegated: dict[int, Delegated] = {}
        """Directories that are delegated, as the store has it."""
        self.start(0, 0)

    def start(self, now: int, fresh: int, session: int = 0, block: int = 0) -> None:
        """Before a request: *now* is the state's time, *fresh* the number that what it makes gets, *session* who asks
        (0: a replica), *block* the first of the numbers that it may give out (0: none)."""
        self.now = now
        self.fresh = fresh
        self.session = session
        self.block = block
        self.redelegated: dict[int, Delegated | None] = {}
        """What has changed in :attr:`delegated`, which the machine does afterwards."""
        self.opened = 0
        self.orphaned: list[int] = []
        self.session_gone = 0
        self.storage_changed = False
        self.roster_changed = False
        self.keys_changed = False
        self._inodes_before = self.inodes
        self._sessions_before = self.sessions

    def undo(self) -> None:
        """After the store's rollback: forget what the request reported."""
        self.inodes = self._inodes_before
        self.sessions = self._sessions_before
        self.redelegated = {}
        self.opened = 0
        self.orphaned = []
        self.session_gone = 0
        self.storage_changed = False
        self.roster_changed = False
        self.keys_changed = False

    def find(self, ino: int) -> Inode | None:
        record = self.store.get(schema.INODES, ino.to_bytes(8, "big"))
        return decode(record) if record is not None else None

    def inode(self, ino: int) -> Inode:
        """Inode *ino*. Raises ESTALE when there is none: the caller has its number from an earlier answer."""
        record = self.store.get(schema.INODES, ino.to_bytes(8, "big"))
        if record is None:
            raise FileSystemError(errno.ESTALE)
        return decode(record)

    def put(self, ino: int, inode: Inode) -> None:
        """Store *inode*; what a file in a quota has grown or shrunk by is counted. Raises EDQUOT."""
        if inode.quota and inode.is_file:
            quota.resized(self, ino, inode)
        self.store.put(schema.INODES, ino.to_bytes(8, "big"), inode.encode())

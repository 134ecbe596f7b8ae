"""Pure. Open handles of the sessions attached to this replica.

Not replicated: a client declares its handles again when it attaches elsewhere.  What is replicated is the answer
that each replica owes for an unlinked inode, see mds.namespace.ops.orphans.
"""

from __future__ import annotations

from collections import Counter


class Handles:
    """Counts of open handles by session and inode."""

    def __init__(self) -> None:
        self._sessions: dict[int, Counter[int]] = {}
        self._total: Counter[int] = Counter()

    def open(self, session: int, ino: int, count: int = 1) -> None:
        """*session* has *count* more handles of *ino*."""
        self._sessions.setdefault(session, Counter())[ino] += count
        self._total[ino] += count

    def close(self, session: int, ino: int, count: int) -> bool:
        """*session* closed *count* handles of *ino*. True: nobody here has one any more."""
        held = self._sessions.get(session)
        count = min(count, held[ino]) if held is not None else 0
        if held is None or count == 0:
            return False
        held[ino] -= count
        if not held[ino]:
            del held[ino]
        self._total[ino] -= count
        if self._total[ino]:
            return False
        del self._total[ino]
        return True

    def declare(self, session: int, handles: tuple[tuple[int, int], ...]) -> list[int]:
        """*session* attached here: these are all its handles (what was counted for it before is void).

        Returns the inodes nobody here has open any more.
        """
        before = self.forget(session)
        for ino, count in handles:
            self.open(session, ino, count)
        return [ino for ino in before if ino not in self._total]

    def forget(self, session: int) -> list[int]:
        """*session* is gone from here. Returns the inodes nobody here has open any more."""
        free = []
        for ino, count in self._sessions.pop(session, Counter()).items():
            self._total[ino] -= count
            if not self._total[ino]:
                del self._total[ino]
                free.append(ino)
        return free

    def clear(self) -> None:
        self._sessions.clear()
        self._total.clear()

    def is_open(self, ino: int) -> bool:
        return ino in self._total

    def has(self, session: int, ino: int) -> bool:
        """*session* has *ino* open."""
        held = self._sessions.get(session)
        return held is not None and ino in held

    def sessions(self) -> list[int]:
        return sorted(self._sessions)

    def __len__(self) -> int:
        return len(self._total)

    def validate(self) -> None:
        """Assert that the total is the sum over sessions."""
        total: Counter[int] = Counter()
        for held in self._sessions.values():
            assert all(count > 0 for count in held.values())
            total.update(held)
        assert total == self._total

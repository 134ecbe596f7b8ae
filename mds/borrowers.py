"""Pure. Whether the clients of a dead replica have let go of what it lent to their caches.

1. A replica is killed, and its watchdog certifies that. 2. It reads nothing any more, but its clients may answer from
their caches for as long as it has lent to them (mds.caches.LEASE_US). 3. They notice at once that their connection
broke, drop what they keep, and attach elsewhere: the AttachSession says so, by its attempt, before it is ordered.
4. Whoever gets it tells the other replicas (wire.group.LetGo). 5. When every session that was attached to the dead has
let go, the view that leaves it out need not wait for the rest of the time.

The sessions in question are those attached to the dead by the state or by messages in the log that are not applied yet:
whatever it has applied is in the log of whoever has flushed the next view.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mds.sessions import Session
from wire import ops


class Borrowers:
    """What clients have said of themselves."""

    def __init__(self) -> None:
        self._let_go: dict[int, tuple[int, int]] = {}
        """session -> (attempt of the attachment that said so, from when on it holds, by our clock)."""

    def let_go(self, session: int, attempt: int, since: int) -> None:
        """The client of *session* keeps nothing, from *since* on, of what it was lent before its *attempt*."""
        if attempt > self._let_go.get(session, (0, 0))[0]:
            self._let_go[session] = (attempt, since)

    def returned(
        self, dead: int, sessions: Iterable[tuple[int, Session]], logged: Iterable[Any], now: int
    ) -> bool:
        """Whether nothing is used any more of what replica *dead* lent.

        *sessions*: of the state; *logged*: the operations in the log that are not applied to it.
        """
        # 1. A client leaves a replica that lives, says that its kernel goes on for a moment, and is attached elsewhere.
        # 2. Then the replica dies. Nobody is attached to it, but what it lent is in use for that moment still.
        if any(now < since for _, since in self._let_go.values()):
            return False
        attached = {number: session.attempt for number, session in sessions if session.replica == dead}
        for op in logged:
            if isinstance(op, ops.SessionOpen) and op.replica == dead:
                return False  # its number is not known before it is applied
            if isinstance(op, ops.SessionAttach) and op.replica == dead:
                attached[op.session] = max(op.attempt, attached.get(op.session, 0))
        return all(self._let_go.get(number, (0, 0))[0] > attempt for number, attempt in attached.items())

    def forget(self, sessions: Iterable[tuple[int, Session]], now: int) -> None:
        """A view is active: what was said by attempts that are ordered is of no more use, once it holds.

        Not before: 1. A client leaves a replica that lives, and its kernel goes on for a moment. 2. Its attachment
        elsewhere is ordered, and a view becomes active that has to do with neither. 3. The replica it has left dies.
        """
        attempts = {number: session.attempt for number, session in sessions}
        self._let_go = {
            n: (attempt, since)
            for n, (attempt, since) in self._let_go.items()
            if now < since or attempt > attempts.get(n, attempt)
        }

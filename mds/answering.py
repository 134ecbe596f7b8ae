"""Who waits at this replica for what comes of a request, and what each is told: clients, and the replica itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mds.capabilities import Signer
from mds.handles import Handles
from mds.lending import Lending
from mds.machine import Outcome
from mds.shell import Client
from wire import messages as msg
from wire.codec import pack
from wire.delegation import Delegate
from wire.errors import OK, Status

Done = Callable[[Outcome], None]


class Answering:
    """See the module."""

    def __init__(self, me: int, incarnation: int, handles: Handles, lending: Lending, signer: Signer) -> None:
        self.answered = 0
        self._me = me
        self._handles = handles
        self._lending = lending
        self._signer = signer
        self._waiting: dict[tuple[int, int, int], tuple[Client, int]] = {}
        self._internal: dict[int, Done] = {}
        self._token = incarnation << 32
        """Never one of an earlier life: what that has sent may be delivered in this one."""

    def wait(self, session: int, slot: int, number: int, client: Client, call: int) -> None:
        """*client* waits for this request of its."""
        self._waiting[session, slot, number] = (client, call)

    def own(self, done: Done) -> int:
        """A number for a request of this replica itself; *done* gets the outcome (NOT_SERVING: we were left out)."""
        self._token += 1
        self._internal[self._token] = done
        return self._token

    def awaited(self, item: Any) -> bool:
        """Somebody here waits for the outcome of this entry."""
        session, slot, number = item[1:4]
        return (session, slot, number) in self._waiting if session else slot == self._me and number in self._internal

    def requester(self, item: Any) -> Client | None:
        """The client that waits for this entry."""
        waiting = self._waiting.get((item[1], item[2], item[3]))
        return waiting[0] if waiting is not None else None

    def is_own(self, outcome: Outcome) -> bool:
        """It is of a request of this life of the replica itself."""
        return outcome.slot == self._me and outcome.number in self._internal

    def came_of(self, op: Any, outcome: Outcome, k: int, uncertain: tuple[int, dict[int, int]] | None) -> None:
        """Tell who waits for it what came of the request *op*, the *k*-th of its message; *uncertain*: see
        :func:`mds.pending.changed_later`."""
        if not outcome.session:
            done = self._internal.pop(outcome.number, None) if outcome.slot == self._me else None
            if done is not None:
                done(outcome)
            return
        client, call = self._waiting.pop((outcome.session, outcome.slot, outcome.number), (None, 0))
        if client is None:
            return
        attached = client.session == outcome.session and not client.gone
        if outcome.opened and outcome.status == OK and attached:
            self._handles.open(outcome.session, outcome.opened)
        self.answered += 1
        # A reply given again tells of a state that others may have changed since.
        made = op if outcome.status == OK and outcome.store_reply else None
        lease = self._lending.grant_made(client, made, outcome.body, k, uncertain)
        capability = self._signer.replied(client.uuid, op, outcome) if attached else b""
        body = outcome.body
        if isinstance(op, Delegate) and outcome.status == OK and not outcome.store_reply:
            body = pack(None)  # it may have been recalled, given back or taken away since
        client.send(msg.Answer(call, outcome.status, body, lease, capability))

    def turn_away(self) -> None:
        """All that wait go on elsewhere."""
        waiting, self._waiting = self._waiting, {}
        internal, self._internal = self._internal, {}
        for token, done in internal.items():
            done(Outcome(0, self._me, token, Status.NOT_SERVING, b"", False))
        for client, call in waiting.values():
            client.send(msg.Answer(call, Status.NOT_SERVING, b""))

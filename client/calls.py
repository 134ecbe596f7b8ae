"""Pure. The calls of one session that are not over: slots and numbers, what was sent, what waits, what is paused.

A request occupies a slot from the moment it has a number until its answer is there, whether anyone still waits
for it or not: the number must not be used for anything else before the replicas' reply table has given its answer
(20-metadata, "exactly once").
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from client import limits
from client.session_events import Kind

NEVER: Final = float("inf")


@dataclass(eq=False, slots=True)
class Call:
    """One call, from Submit to Complete."""

    token: int
    kind: Kind
    op: bytes
    opens: bool
    expires: float
    """Soft mode: when the caller is told ETIMEDOUT."""
    capability: bytes = b""
    slot: int = -1
    number: int = 0
    sent_as: int = 0
    """The call id it was last sent under on the present connection; 0: not sent on it."""
    ever_sent: bool = False
    """On any connection: a request that never was has no effect for sure."""
    waited_for: bool = True
    """False: the caller has gone (cancelled, or timed out); the answer still settles slot and handle."""
    pause: float = 0.0
    """Last pause after OVERLOADED."""
    again_at: float = 0.0
    """Not sent before this time; 0: at once."""
    first: bool = False
    """It waits for no other: the slots that are set aside are for this."""


@dataclass(slots=True)
class _Slot:
    number: int = 0
    call: Call | None = None


class Calls:
    """See the module. Nothing here knows of connections, only of "the present one"."""

    def __init__(self, slots: int, aside: int = 0) -> None:
        """*aside*: so many of the slots are not for requests that may wait for others."""
        self._aside = aside
        self._calls: dict[int, Call] = {}
        """token -> every call that is not over."""
        self._sent: dict[int, Call] = {}
        """call id -> the call it stands for on the present connection."""
        self._slots = [_Slot() for _ in range(slots)]
        self._free = list(range(slots - 1, -1, -1))
        self._queue: deque[Call] = deque()
        """Requests that wait for a slot."""
        self._firsts: deque[Call] = deque()
        """The same, of those for which slots are set aside."""
        self._paused: list[Call] = []
        """Calls refused as OVERLOADED, to be sent again at their ``again_at``."""
        self._expiring: deque[Call] = deque()
        """Soft mode: calls in the order in which they expire; some are over already."""

    def __len__(self) -> int:
        return len(self._calls)

    @property
    def slots(self) -> int:
        return len(self._slots)

    def emptied(self) -> Calls:
        """The same without any call."""
        return Calls(self.slots, self._aside)

    @property
    def any_sent(self) -> bool:
        return bool(self._sent)

    @property
    def any_queued(self) -> bool:
        """Whether a request waits for a slot."""
        return bool(self._queue or self._firsts)

    def get(self, token: int) -> Call | None:
        return self._calls.get(token)

    def add(self, call: Call) -> bool:
        """Take *call* in; False when too many wait for a slot already."""
        assert call.token not in self._calls, f"token {call.token} is in use"
        if call.kind is Kind.REQUEST:
            if len(self._free) > (0 if call.first else self._aside):
                self._occupy(call)
            elif call.first:
                self._firsts.append(call)
            elif len(self._queue) >= limits.WAITING_MAX:
                return False
            else:
                self._queue.append(call)
        self._calls[call.token] = call
        if call.expires != NEVER:
            self._expiring.append(call)
            # The first hangs until it expires, while any number of others come and go behind it.
            if len(self._expiring) > 2 * len(self._calls) + limits.EXPIRING_SLACK:
                self._expiring = deque(c for c in self._expiring if self._calls.get(c.token) is c)
        return True

    def _occupy(self, call: Call) -> None:
        call.slot = self._free.pop()
        slot = self._slots[call.slot]
        assert slot.call is None, f"slot {call.slot} is on the free list and busy"
        slot.number += 1
        slot.call = call
        call.number = slot.number

    def unsent(self) -> list[Call]:
        """What may be sent on the present connection and has not been, oldest first."""
        return [
            call
            for call in self._calls.values()
            if not call.sent_as and not call.again_at and (call.slot >= 0 or call.kind is Kind.QUERY)
        ]

    def sent(self, call: Call, call_id: int) -> None:
        """*call* goes out as *call_id* now."""
        assert not call.sent_as and not call.again_at
        call.sent_as = call_id
        call.ever_sent = True
        self._sent[call_id] = call

    def answered(self, call_id: int) -> Call | None:
        """The call that *call_id* stands for; None: of one that was given up."""
        return self._sent.get(call_id)

    def over(self, call: Call) -> None:
        """No trace of *call* is left but its slot's number."""
        del self._calls[call.token]
        if call.sent_as:
            del self._sent[call.sent_as]
            call.sent_as = 0
        if call.again_at:
            self._paused.remove(call)
            call.again_at = 0.0
        if call.slot >= 0:
            slot = self._slots[call.slot]
            assert slot.call is call
            slot.call = None
            self._free.append(call.slot)

    def fill_slots(self) -> Iterator[Call]:
        """Give free slots to requests that wait; those that have one now."""
        while self._free:
            if self._firsts:
                call = self._firsts.popleft()
            elif self._queue and len(self._free) > self._aside:
                call = self._queue.popleft()
            else:
                return
            self._occupy(call)
            yield call

    def give_up(self, call: Call) -> None:
        """Nobody waits for *call* any more. What may have effects at the replicas stays until its answer is there."""
        call.waited_for = False
        if call.kind is Kind.QUERY:
            if not (call.opens and call.sent_as):
                self.over(call)
        elif call.slot < 0:
            (self._firsts if call.first else self._queue).remove(call)
            del self._calls[call.token]
        elif not call.ever_sent:
            self._slots[call.slot].number -= 1  # numbers have no gaps
            self.over(call)

    # -- pauses and expiry

    def pause(self, call: Call, until: float) -> None:
        """*call* was refused for now."""
        del self._sent[call.sent_as]
        call.sent_as = 0
        call.again_at = until
        self._paused.append(call)

    def next_resume(self) -> float:
        return min(call.again_at for call in self._paused) if self._paused else NEVER

    def resume(self, now: float) -> list[Call]:
        """Calls whose pause is over."""
        due = [call for call in self._paused if call.again_at <= now]
        if due:
            self._paused = [call for call in self._paused if call.again_at > now]
            for call in due:
                call.again_at = 0.0
        return due

    def next_expiry(self) -> float:
        return self._expiring[0].expires if self._expiring else NEVER

    def expired(self, now: float) -> list[Call]:
        """Calls that somebody has waited for too long."""
        found = []
        while self._expiring and (self._expiring[0].expires <= now or self._expiring[0].token not in self._calls):
            call = self._expiring.popleft()
            if self._calls.get(call.token) is call and call.waited_for:
                found.append(call)
        return found

    # -- the great changes

    def connection_gone(self) -> None:
        """Nothing is sent any more, and a query that nobody waits for is not asked again."""
        for call in self._sent.values():
            call.sent_as = 0
        self._sent = {}
        for call in self._paused:
            call.again_at = 0.0
        self._paused = []
        for call in [c for c in self._calls.values() if not c.waited_for and c.kind is Kind.QUERY]:
            self.over(call)  # an abandoned Open: its handle went with the connection

    def session_lost(self) -> list[Call]:
        """The requests whose outcome nobody can tell any more; they are over. Numbers begin again.

        What was never sent goes on in the next session.
        """
        assert not self._sent and not self._paused
        unknown = [slot.call for slot in self._slots if slot.call is not None and slot.call.ever_sent]
        for call in unknown:
            self.over(call)
        for slot in self._slots:
            slot.number = 0
            if slot.call is not None:
                slot.call.number = slot.number = 1
        for _ in self.fill_slots():
            pass  # sent after the next attachment, like everything that is not sent yet
        return unknown

    def waited_for(self) -> list[Call]:
        return [call for call in self._calls.values() if call.waited_for]

    def validate(self, *, ready: bool) -> None:
        """*ready*: calls can be sent, so none is held back without a reason."""
        busy = {number for number, slot in enumerate(self._slots) if slot.call is not None}
        assert busy.isdisjoint(self._free) and len(busy) + len(self._free) == len(self._slots)
        assert len(set(self._free)) == len(self._free)
        for number in busy:
            occupant = self._slots[number].call
            assert occupant is not None and occupant.slot == number
            assert occupant.number == self._slots[number].number > 0
            assert self._calls.get(occupant.token) is occupant
        for call_id, call in self._sent.items():
            assert call.sent_as == call_id and self._calls.get(call.token) is call and not call.again_at
        for token, call in self._calls.items():
            assert call.token == token
            assert not call.sent_as or self._sent[call.sent_as] is call
            if call.kind is Kind.REQUEST:
                assert (call.slot < 0) == (call in (self._firsts if call.first else self._queue))
            else:
                assert call.slot < 0 and (call.waited_for or call.sent_as)
            assert bool(call.again_at) == (call in self._paused)
            waits_for_slot = call.kind is Kind.REQUEST and call.slot < 0
            assert not ready or call.sent_as or call.again_at or waits_for_slot
        assert not self._queue or len(self._free) <= self._aside, "a request waits although a slot is free"
        assert not self._firsts or not self._free
        assert ready or (not self._sent and not self._paused)

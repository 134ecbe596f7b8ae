"""The state under the group in simulated runs: registers, and the reply table that makes a request count once.

It is what the metadata state machine is to the group, cut down to what the promises need: a request names its client
and carries a number; one that was executed before is answered again from the table; a snapshot carries both.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from wire.codec import pack, unpack_untrusted

ROSTER_KEY: Final = -1
"""The key under which a request replaces the roster; its value is (replicas, voters)."""

Roster = tuple[tuple[int, ...], tuple[int, ...]]


class Request(NamedTuple):
    """Client *client* asks, as its request *number*: put *value* under *key*, tell what was there."""

    client: int
    number: int
    key: int
    value: int | Roster


class Outcome(NamedTuple):
    """What one request of a message came to, the same at every replica."""

    client: int
    number: int
    reply: int | Roster | None
    """What was under the key before."""
    executed: bool
    """False: it had been executed before, the reply is the one kept."""


def pack_batch(requests: list[Request]) -> bytes:
    """The payload of a message."""
    return pack(tuple(tuple(r) for r in requests))


def unpack_batch(payload: bytes) -> list[Request]:
    return [Request(*item) for item in unpack_untrusted(payload)]


class State:
    """Registers, reply table and roster. What is applied depends on the state and the message alone."""

    def __init__(self, roster: Roster) -> None:
        self.values: dict[int, int] = {}
        self.replies: dict[int, tuple[int, int | Roster | None]] = {}
        """Client -> (number, reply) of its last request."""
        self.roster = roster
        self.waiting: dict[tuple[int, int], Request] = {}
        """(index of the message, number in it) -> what is delivered and not executed, in the order of delivery."""

    def copy(self) -> State:
        """What a snapshot or a commit holds."""
        other = State(self.roster)
        other.values = dict(self.values)
        other.replies = dict(self.replies)
        other.waiting = dict(self.waiting)
        return other

    def execute(self, request: Request) -> Outcome | None:
        """Execute a request, once, whatever happens. None: its number is an older one. Its client has its answer, and
        nobody waits for it."""
        number, reply = self.replies.get(request.client, (0, None))
        if request.number < number:
            return None
        if request.number == number:
            return Outcome(request.client, number, reply, False)
        answer: int | Roster | None
        if request.key == ROSTER_KEY:
            answer = self.roster
            assert isinstance(request.value, tuple)
            self.roster = request.value
        else:
            answer = self.values.get(request.key)
            assert isinstance(request.value, int)
            self.values[request.key] = request.value
        self.replies[request.client] = (request.number, answer)
        return Outcome(request.client, request.number, answer, True)

    def take_up(self) -> list[tuple[tuple[int, int], Outcome | None]]:
        """A process begins with this state: execute what waited when it was written, in the order of delivery."""
        waiting, self.waiting = self.waiting, {}
        return [(at, self.execute(request)) for at, request in waiting.items()]

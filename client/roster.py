"""Pure. Which replica to turn to next: the preferred, members of the newest view known, then the others.

The others are those the replicas tell of; until they have told, those configured. Who was removed from the cluster is
not turned to any more, who was added is, so a client goes on although none of its configured replicas is left.
"""

from __future__ import annotations

from collections import deque
from random import Random  # the type only: the generator is injected

from client import limits

Members = tuple[tuple[int, str], ...]
"""((id, address), ...)"""


class Roster:
    """The addresses tried, round after round, with a pause that grows between rounds in vain."""

    def __init__(self, configured: Members, random: Random, prefer: int | None) -> None:
        assert configured, "a cluster has at least one replica"
        self._known = configured
        """All that belong to the cluster, as far as we know."""
        self._told = False
        """By a replica, not by the configuration."""
        self._random = random
        self._prefer = prefer
        self._view = (-1, -1)
        self._members: Members = ()
        self._round: deque[str] = deque()
        self._backoff = limits.BACKOFF_FIRST_S
        self._lefts = 0
        self._left: dict[str, int] = {}
        """address -> when it was left (a count), of those left since any of them answered a call."""
        self._failed: dict[str, int] = {}
        """address -> when it last failed us (a count): left, or no good to stand by."""

    def learn(self, generation: int, epoch: int, members: Members, replicas: Members = ()) -> bool:
        """A replica told of a view, and of all *replicas* there are; False when an equal or newer one is known (told by
        one that lags)."""
        if (generation, epoch) <= self._view or not members:
            return False
        self._view = (generation, epoch)
        self._members = members
        if replicas:
            self._known, self._told = replicas, True
        self._round.clear()
        return True

    def candidates(self) -> list[str]:
        """Addresses in the order to try them; shuffled, so that clients spread over the replicas."""
        members = list(self._members)
        ids = {number for number, _ in members}
        others = [item for item in self._known if item[0] not in ids]
        self._random.shuffle(members)
        self._random.shuffle(others)
        order = members + others
        order.sort(key=lambda item: item[0] != self._prefer)  # stable: only the preferred moves
        return list(dict.fromkeys(address for _, address in order))

    def next(self) -> str:
        if not self._round:
            self._round = deque(self.candidates())
        return self._round.popleft()

    def standby(self, current: str) -> str | None:
        """Whom to keep a second connection with while *current* serves us: another member, of those that have failed
        us the one for which that is longest ago; of all while no view is known."""
        others = list(self._members or self._known)
        self._random.shuffle(others)
        others.sort(key=lambda item: self._failed.get(item[1], 0))
        return next((address for _, address in others if address != current), None)

    def failed(self, address: str) -> None:
        """A connection with *address* was left, or could not stand by."""
        self._failed[address] = max(self._failed.values(), default=0) + 1

    def is_member(self, address: str) -> bool:
        """Whether the replica at *address* is in the newest view known (or none is known)."""
        return not self._members or any(address == other for _, other in self._members)

    def turn_to(self, address: str) -> None:
        """*address* is the next of this round: there is a connection with it."""
        self._round = deque([address, *(other for other in self._round if other != address)])

    @property
    def round_is_over(self) -> bool:
        return not self._round

    def round_without(self, address: str, *, first: bool = False) -> None:
        """Begin a round in which *address*, just left, is the last to be tried (or the first)."""
        order = self.candidates()
        if first:
            order = [address, *(other for other in order if other != address)]
        else:
            # By when each was left last, this one just now: else two that take us and serve nothing would send us to
            # and fro between them, past a third that serves.
            self._lefts += 1
            self._left[address] = self._lefts
            if address not in order and not self._told:
                order.append(address)  # known from an older view only
            order.sort(key=lambda other: self._left.get(other, 0))
        self._round = deque(order)

    def attached(self) -> None:
        """A replica took us: the next round begins anew."""
        self._round.clear()

    def proved(self) -> None:
        """A replica has answered a call: the next outage begins with a short pause again."""
        self._backoff = limits.BACKOFF_FIRST_S
        if self._left:
            self._left.clear()

    def pause(self) -> float:
        """Seconds to wait before the next round; spread, so that clients do not come back all at once."""
        pause = self._backoff * (0.5 + self._random.random() / 2)
        self._backoff = min(self._backoff * 2, limits.BACKOFF_MAX_S)
        return pause

"""Pure. What a target knows of the chains it is in, and what it may do by that. See :mod:`wire.chains`.

The keeper tells a target the storage map, and by its heartbeats that the map still holds. Writes need no more than the
map: a change counts only when every member has taken it under the same version of the chain, so whoever was left out of
the chain can complete none. A read needs the keeper's word (the lease), because others may have written without us; but
not where nobody else serves: who alone has the data is never left out.
"""

from __future__ import annotations

from dataclasses import dataclass

from wire.chains import EMPTY, HOLDS, SYNCING, Members, StorageMap, path, readers, state_in
from wire.errors import OK, Status


@dataclass(frozen=True, slots=True)
class Chain:
    """One chain as this target sees it."""

    number: int
    version: int
    members: Members
    mine: str | None
    """This target's state in it; None: it is no member."""
    path: tuple[int, ...]
    """See wire.chains.path."""
    next: int | None
    """Whom this target passes changes on to."""
    before: int | None
    """From whom it takes them; None: it is the head, and takes them from clients."""
    alone: bool
    """Nobody else has any of it, and nobody is about to."""


class ChainTable:
    """The chains of target *me* in its run *run*."""

    def __init__(self, me: int, run: int) -> None:
        self.me = me
        self.run = run
        self.map: StorageMap = EMPTY
        self.lease_until = 0
        """By the clock that goes with :meth:`extend`."""
        self._chains: dict[int, Chain] = {}
        self._addresses: dict[int, str] = {}
        self._known = False

    @property
    def version(self) -> int:
        return self.map[0]

    def install(self, found: StorageMap) -> bool:
        """Go by *found* unless it is older than what is known; whether anything changed."""
        if found[0] <= self.map[0]:
            return False
        self.map = found
        self._addresses = {target: address for target, address, _, _ in found[1]}
        runs = {target: run for target, _, _, run in found[1]}
        # 1. We were killed and started again. 2. The map still shows us as serving, in the run before. 3. A change
        # that was under way may be here and not at the others. So nothing holds before the keeper has seen this run.
        self._known = runs.get(self.me) == self.run
        self._chains = {number: self._seen(number, version, members) for number, version, members in found[2]}
        return True

    def _seen(self, number: int, version: int, members: Members) -> Chain:
        order = path(members)
        mine = state_in(members, self.me)
        at = order.index(self.me) if self.me in order else -1
        after = order[at + 1] if 0 <= at < len(order) - 1 else None
        before = order[at - 1] if at > 0 else None
        alone = mine in HOLDS and order == (self.me,)
        return Chain(number, version, members, mine, order, after, before, alone)

    def get(self, chain: int) -> Chain | None:
        return self._chains.get(chain)

    def chains(self) -> list[Chain]:
        """Those this target is a member of."""
        return [chain for chain in self._chains.values() if chain.mine is not None]

    def address(self, target: int) -> str | None:
        return self._addresses.get(target)

    def extend(self, until: int) -> None:
        """The keeper's word holds until *until*."""
        self.lease_until = max(self.lease_until, until)

    # -- may we?

    def _stale(self, number: int, version: int) -> Status | None:
        chain = self._chains.get(number)
        if chain is None or not self._known or version > chain.version:
            return Status.NOT_SERVING  # we are told soon
        return Status.STALE_CHAIN if version < chain.version or chain.mine is None else None

    def judge_client(self, number: int, version: int) -> int:
        """OK when a client's change may enter the chain here, else what it is told."""
        stale = self._stale(number, version)
        if stale is not None:
            return stale
        chain = self._chains[number]
        return OK if chain.mine in HOLDS and chain.before is None else Status.STALE_CHAIN

    def judge_member(self, number: int, version: int, sender: int) -> int:
        """OK when a change may come from target *sender*."""
        stale = self._stale(number, version)
        if stale is not None:
            return stale
        chain = self._chains[number]
        return OK if chain.before == sender and chain.mine in HOLDS | {SYNCING} else Status.STALE_CHAIN

    def judge_read(self, number: int, version: int, now: int) -> int:
        """OK when a read may be answered here."""
        stale = self._stale(number, version)
        if stale is not None:
            return stale
        chain = self._chains[number]
        if self.me not in readers(chain.members):
            return Status.STALE_CHAIN
        return OK if chain.alone or now < self.lease_until else Status.NOT_SERVING

    def validate(self) -> None:
        """Assert what always holds."""
        for chain in self._chains.values():
            assert chain.alone <= (chain.mine in HOLDS)
            assert (chain.before is None) or chain.before != self.me != chain.next
            assert chain.next is None or chain.next in chain.path

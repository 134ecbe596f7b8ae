"""Pure. The keeper of the storage targets: who answers, what the map should say of it, and what to have ordered.

One replica does this for all, the lowest of the view. It sends each target heartbeats; what is to change is an ordered
request like any other (wire.targetops.TargetUp and its neighbours), so every keeper after it goes on from the same map.

*The lease.* A target answers reads of a chain that others serve, too, only until LEASE_US after a moment that it has
told us of and that we have told back to it. So whoever has told us nothing for as long as that reads nothing any more,
and only then is marked offline. A new keeper knows of no words of the one before: it waits as long from when it began.
(That one gives no word without a lease of its own among the replicas, and those are waited out before a view without
it is active.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from mds.balance import Balance
from mds.namespace.chains import leaving, surplus
from wire import targetops
from wire.chains import DRAINING, HOLDS, OFFLINE, SERVING, SYNCING, Members, StorageMap, copies_of, holders
from wire.storage import LEASE_US

SILENCE_US: Final = 900_000
"""A target that has a connection and says nothing for so long is taken for dead: a busy host takes its time."""
GONE_US: Final = 100_000
"""One whose connection broke and that could not be reached again for so long is."""
BEAT_US: Final = 75_000
ORDER_AGAIN_US: Final = 1_000_000
"""What was ordered and has not shown in the map by then is ordered again."""
SHUNNED_US: Final = 5_000_000
"""A target that another one cannot reach, although we do, comes back into the chains after so long at the earliest."""
AWAY_US: Final = 60_000_000
"""A target that one which drains waits for and that has been offline for so long is replaced by a third."""

assert 3 * BEAT_US < LEASE_US < SILENCE_US, "two heartbeats may be lost before a read has to wait"


@dataclass(slots=True)
class _Seen:
    """What is known of one target."""

    run: int = 0
    """0: it has not answered on the present connection."""
    connected: bool = False
    heard_us: int = 0
    lost_us: int = 0
    """When the connection broke."""
    promised_us: int = 0
    """Until when a heartbeat of ours may let it read."""
    clock_us: int = 0
    """Its own clock, as it said last..."""
    told_us: int = 0
    """... at this time of ours."""
    version: int = 0
    """Of the map that it goes by."""
    keys: bytes = b""
    """Fingerprint of the signing keys that it knows."""
    space: tuple[int, int] = (0, 0)
    shunned_us: int = 0
    offline_us: int = 0
    """Since when the map shows it so, as far as this keeper knows; 0: it does not."""
    failed: bool = False
    """Its disk has, as it says itself: it is dead to us, and serves only what nobody else has."""
    synced: tuple[tuple[int, int, int], ...] = ()


@dataclass(slots=True)
class Keeper:
    """See the module. Times are microseconds of the caller's clock. Made anew when this replica becomes the keeper."""

    began_us: int
    balance: Balance = field(default_factory=Balance)
    _seen: dict[int, _Seen] = field(default_factory=dict)
    _ordered: dict[Any, int] = field(default_factory=dict)
    """Request -> when it was given out last."""

    def _of(self, target: int) -> _Seen:
        seen = self._seen.get(target)
        if seen is None:
            seen = self._seen[target] = _Seen(lost_us=self.began_us, promised_us=self.began_us + LEASE_US)
        return seen

    # -- what happens

    def connected(self, target: int, now: int) -> None:
        seen = self._of(target)
        seen.connected, seen.run, seen.clock_us, seen.version, seen.heard_us = True, 0, 0, 0, now
        seen.synced, seen.keys, seen.failed = (), b"", False

    def lost(self, target: int, now: int) -> None:
        seen = self._of(target)
        if seen.connected:
            seen.connected, seen.lost_us = False, now

    def said(
        self, target: int, run: int, clock_us: int, version: int, space: tuple[int, int],
        synced: tuple[tuple[int, int, int], ...], missed: tuple[int, ...], now: int, keys: bytes = b"",
        failed: bool = False,
    ) -> None:  # fmt: skip
        """*target* has answered a heartbeat."""
        seen = self._of(target)
        seen.run, seen.clock_us, seen.version, seen.space, seen.heard_us = run, clock_us, version, space, now
        seen.synced, seen.told_us, seen.keys, seen.failed = synced, now, keys, failed
        for other in missed:
            self._of(other).shunned_us = now + SHUNNED_US

    def echo(self, target: int, found: StorageMap) -> int:
        """The target's clock to be sent with the next heartbeat: from now on it may read for LEASE_US after that, as
        soon as it goes by *found* and as long as it does."""
        seen = self._of(target)
        if seen.failed and not _left_out(found, target):
            return 0  # what it was given last runs out: then it can be marked offline
        if seen.clock_us:
            seen.promised_us = max(seen.promised_us, seen.told_us + LEASE_US)
        return seen.clock_us

    def stalled(self, now: int) -> None:
        """This process has not been running: silence was our own."""
        for seen in self._seen.values():
            seen.heard_us = now

    def version_of(self, target: int) -> int:
        return self._of(target).version

    def keys_of(self, target: int) -> bytes:
        return self._of(target).keys

    def spaces(self, now: int) -> dict[int, tuple[int, int]]:
        """(total, free) bytes of the targets that answer."""
        return {t: seen.space for t, seen in self._seen.items() if seen.space[0] and self.alive(t, now)}

    # -- what to do

    def dead(self, target: int, now: int) -> bool:
        """Is *target* to be marked offline?"""
        seen = self._of(target)
        if now < seen.promised_us:
            return False
        if now < seen.shunned_us or seen.failed:
            return True
        if seen.connected:
            return now - seen.heard_us >= SILENCE_US
        return now - seen.lost_us >= GONE_US

    def alive(self, target: int, now: int) -> bool:
        seen = self._of(target)
        there = seen.connected and seen.run != 0 and now - seen.heard_us < SILENCE_US
        return there and now >= seen.shunned_us and not seen.failed

    def orders(self, found: StorageMap, now: int) -> list[Any]:
        """Requests to be ordered now, that *found* does not show yet."""
        made: list[Any] = []
        ordered: dict[Any, int] = {}
        for op in self._wanted(found, now):
            ordered[op] = self._ordered.get(op, now)
            if op not in self._ordered or now - ordered[op] >= ORDER_AGAIN_US:
                ordered[op] = now
                made.append(op)
        self._ordered = ordered  # what is not wanted any more has happened, and may be wanted anew
        return made

    def _wanted(self, found: StorageMap, now: int) -> Iterator[Any]:
        _, targets, chains = found
        states = {target: state for target, _, state, _ in targets}
        self.balance.ask(frozenset(states), now)
        for target, _, state, run in targets:
            seen = self._of(target)
            seen.offline_us = (seen.offline_us or now) if state == OFFLINE else 0
            if self.alive(target, now):
                if state == OFFLINE or run != self._of(target).run:
                    yield targetops.TargetUp(target, self._of(target).run)
            # Offline and failed, it still holds what nobody else had then. Now somebody has, it refuses all changes.
            elif not _left_out(found, target) and self.dead(target, now):
                yield targetops.TargetDown(target, run)
        finished = {item for target in states for item in self._of(target).synced}
        for number, version, members in chains:
            for target, state in members:
                # One that has died since is not offline yet: it must not become the only one that has everything.
                if state == SYNCING and (number, version, target) in finished and self.alive(target, now):
                    yield targetops.ChainSynced(number, version, target)
            spare = surplus(number, members)
            if spare and all(self.alive(t, now) for t in spare):
                yield targetops.ChainLeave(number, version, max(spare[::-1], key=lambda t: states.get(t) == DRAINING))
            going = leaving(number, members)
            if going is not None and all(self.alive(t, now) for t in holders(members) if t != going):
                knows = self._of(going).version >= found[0]
                if knows or now >= self._of(going).promised_us:
                    yield targetops.ChainLeave(number, version, going)
        moves = list(self._moves(found, states, now))
        yield from moves
        give_and_take = [t for t, state in states.items() if state == SERVING and self.alive(t, now)]
        even = self.balance.move(found, {t: self._of(t).space for t in give_and_take}) if not moves else None
        if even is not None:
            yield targetops.ChainMove(*even)

    def _moves(self, found: StorageMap, states: dict[int, str], now: int) -> Iterator[targetops.ChainMove]:
        """One move at a time per chain: to where a member was lost for good, away from targets that drain, and from
        those with many places to others.

        Of several copies the first stays where it is for the sake of balance: each target heads as many chains. Single
        copies are balanced by what there is of them (mds.balance).
        """
        chains = found[2]
        places: dict[int, dict[int, int]] = {}
        for number, _, members in chains:
            there = places.setdefault(copies_of(number), dict.fromkeys(states, 0))
            for target, state in members:
                if target in there and state != DRAINING:
                    there[target] += 1
        for number, version, members in chains:
            if surplus(number, members):
                continue  # whoever is to leave need not be replaced
            under_way = any(state in (SYNCING, DRAINING) for _, state in members)
            gone = self._gone(number, members, now) if under_way else None
            if (under_way and gone is None) or not holders(members):
                continue
            there = places[copies_of(number)]
            inside = dict(members)
            free = [t for t, state in states.items() if state == SERVING and t not in inside and self.alive(t, now)]
            if not free:
                continue
            best = min(free, key=lambda t: (there[t], -self._of(t).space[1], t))
            if gone is not None or len(members) < copies_of(number):
                there[best] += 1
                yield targetops.ChainMove(number, version, best, gone or 0)
                continue
            drained = next((t for t in inside if states.get(t) == DRAINING), None)
            if drained is None:
                others = [t for t, state in members[1:] if state in HOLDS]
                fullest = max(others, key=lambda t: (there[t], t), default=None)
                drained = fullest if fullest is not None and there[fullest] - there[best] >= 2 else None
            if drained is None or (inside[drained] in HOLDS and not self.alive(drained, now)):
                continue
            there[best] += 1
            there[drained] -= 1
            yield targetops.ChainMove(number, version, best, drained)

    def _gone(self, number: int, members: Members, now: int) -> int | None:
        """Who has been away for long and keeps one that drains from leaving: the one that was to take its place, which
        is last in the chain, or an older member. (1. A copy is offline. 2. Another one is drained, and somebody synced
        in its place. 3. It is still needed, because without it there are too few copies.)"""
        states = [state for _, state in members]
        if SYNCING in states or DRAINING not in states or len(members) <= copies_of(number):
            return None
        away = (t for t, s in reversed(members) if s == OFFLINE and now - self._of(t).offline_us >= AWAY_US)
        return next(away, None)


def _left_out(found: StorageMap, target: int) -> bool:
    """Does *found* show *target* offline, and as holding only what nobody else does?"""
    if not any(t == target and state == OFFLINE for t, _, state, _ in found[1]):
        return False
    return not any(len(held := holders(members)) > 1 and target in held for _, _, members in found[2])

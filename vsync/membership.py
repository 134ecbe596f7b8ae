"""Pure. Who shall be in the group, and the way there: one view after the other, at most one change of voters in each.

The ordered state says who may be a member and who shall vote (the *roster*). The lowest active member brings the
view there; every other coordinator takes the same step when it changes the view for another reason.

Why one voter at a time, and which. The view of epoch n+1 is decided by a majority of the voters of view n. Voters that
know view n vote for no epoch up to n any more (they tell the view instead). With one voter more or less, a majority
of the new voters has one in common with every majority of the old ones: once a majority of the new voters has stored
view n, nobody who missed it can have anything decided with the old ones, and a register that is not among the new
voters is needed for nothing. An added voter comes with an empty register, which must not be taken for "nothing was
accepted here" in epochs decided before it came (a number may come back with another disk): so it must know all
decided views, durably, before it is added. A replica does when it has answered the seal, a witness is told the newest
view and answers that it is stored.
"""

from __future__ import annotations

from collections.abc import Collection, Set
from dataclasses import dataclass

from vsync import limits
from vsync.core import Core
from vsync.order import Order
from vsync.view import pack_views
from wire.group import Stored, View, Views


@dataclass(frozen=True, slots=True)
class Standing:
    """How far the view is on its way to the roster, as this replica knows it."""

    members: tuple[int, ...]
    voters: tuple[int, ...]
    replicas: tuple[int, ...]
    """Who may be a member."""
    wanted: tuple[int, ...]
    """Who shall vote."""
    stored: tuple[int, ...]
    """Voters that are known to have the newest view on disk."""
    settled: bool
    """Nobody is a member who may not be one, the voters are those that are wanted, and a majority of them has stored
    the active view: the register of a voter that was removed is needed no more."""
    tolerates: int
    """How many more voters may fail, as far as is known here, and the service goes on."""


class Membership:
    """What the roster asks of the view, at one replica."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self._stored: dict[int, int] = {}
        """Witness -> newest epoch it has stored; only while it is linked."""
        self._tried: tuple[int, ...] = ()
        self._wait = 0
        self._not_before = 0

    # -- who has stored the newest view

    def on_stored(self, peer: int, m: Stored) -> None:
        self._stored[peer] = max(m.epoch, self._stored.get(peer, -1))

    def forget(self, peer: int) -> None:
        """The link with *peer* broke."""
        self._stored.pop(peer, None)

    def _witnesses(self) -> list[int]:
        """Voters, now or wanted, that are not replicas."""
        core = self.core
        wanted = core.roster.voters if core.roster is not None else ()
        return sorted({*core.newest.voters, *wanted} - set(core.replicas))

    def tell_witnesses(self) -> None:
        """Tell the newest view to every witness that has not said yet that it is stored."""
        newest = self.core.newest
        for witness in self._witnesses():
            if witness in self.core.linked and self._stored.get(witness, -1) < newest.epoch:
                self.core.send(witness, Views(pack_views([newest])))

    def announce(self, view: View, before: View, *, durable: bool) -> None:
        """A view was decided here: every replica and every voter learns it, those that it removes as well.

        *durable*: a majority of voters has it on disk. If not, nobody hears of it before it is on disk here: 1. A view
        is forced and told to a witness. 2. This process is killed, and knows nothing of it. 3. It is forced once more,
        another view now, because its log ends elsewhere. 4. For the witness it is of another group, for ever.
        """
        packed = Views(pack_views([view]))
        tell = self.core.send if durable else self.core.after
        for peer in sorted({*self.core.others, *before.voters, *view.voters, *self._witnesses()} - {self.core.me}):
            tell(peer, packed)

    def _stored_by(self) -> set[int]:
        """Who has the newest view on disk: the members when it is active here, and witnesses that said so."""
        core = self.core
        stored = {w for w, epoch in self._stored.items() if epoch >= core.newest.epoch}
        return stored | (set(core.active.members) if core.active is not None else set())

    # -- the next step

    def voters_after(self, members: Collection[int], answered: Collection[int]) -> tuple[int, ...]:
        """Voters of the view that follows the newest one, with *members*; *answered*: replicas that are there."""
        core = self.core
        now = core.newest.voters
        if core.roster is None or core.history.epoch != core.newest.epoch:
            # Without its own event delivered, the roster here may be older than the view: it would be moved back.
            return now
        witnesses = {w for w in self._witnesses() if self._stored.get(w, -1) >= core.newest.epoch}
        return next_voters(now, core.roster.voters, {*members, *witnesses}, {*answered, *witnesses})

    def unwanted(self, members: Collection[int]) -> list[int]:
        """Those of *members* whom the roster does not have."""
        core = self.core
        if core.roster is None or core.history.epoch != core.newest.epoch:
            return []
        return [m for m in members if not core.may_be_member(m)]

    def reason(self, order: Order, now: int) -> str | None:
        """Why the view is to be changed now, by us, for the roster; or None."""
        core = self.core
        if any(core.detector.hears(p) for p in order.peers if p < core.me):
            return None  # a lower one does it
        there = [m for m in order.members if m == core.me or core.detector.hears(m)]
        gone = self.unwanted(order.members)
        voters = self.voters_after([m for m in order.members if m not in gone], there)
        if gone and len(gone) < len(order.members):
            why = f"replicas {gone} are removed"
        elif voters != order.view.voters:
            why = f"voters {list(order.view.voters)} become {list(voters)}"
        else:
            return None
        config = (*order.members, 0, *order.view.voters)
        if config != self._tried:
            self._tried, self._wait = config, limits.ROSTER_RETRY
        elif now < self._not_before:
            return None
        else:
            self._wait = min(2 * self._wait, limits.ROSTER_RETRY_MAX)
        self._not_before = now + self._wait
        return why

    def standing(self) -> Standing:
        """For those who wait for a change of the roster to be complete."""
        core = self.core
        view = core.newest
        roster = core.roster
        replicas = roster.replicas if roster is not None else core.replicas
        wanted = roster.voters if roster is not None else view.voters
        stored = self._stored_by() & set(view.voters)
        settled = (
            core.active is not None
            and set(view.members) <= set(replicas)
            and set(view.voters) == set(wanted)
            and 2 * len(stored) > len(view.voters)
        )
        up = [v for v in view.voters if v == core.me or v in core.linked]
        more = min(len(up) - len(view.voters) // 2, len(view.members)) - 1
        tolerates = max(0, more) if core.active is not None else 0
        return Standing(view.members, view.voters, replicas, wanted, tuple(sorted(stored)), settled, tolerates)


def next_voters(
    now: tuple[int, ...], wanted: tuple[int, ...], ready: Set[int], answered: Set[int]
) -> tuple[int, ...]:
    """The voters after *now* on the way to *wanted*: at most one more or one less.

    *ready*: who may become a voter. A step is taken only if a majority of its voters has *answered*, so that it cannot
    stop the group. First come those to be added: with them more failures are tolerated; then who is gone anyway.
    """
    more = [{*now, v} for v in sorted(set(wanted) - set(now)) if v in ready]
    less = [{*now} - {v} for v in sorted(set(now) - set(wanted), key=lambda v: (v in answered, v))]
    for voters in (*more, *less):
        if 2 * len(voters & answered) > len(voters):
            return tuple(sorted(voters))
    return now

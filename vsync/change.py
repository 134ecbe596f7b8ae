"""Pure. The coordinator of a view change: seal, find the base, decide.

Anybody may coordinate, several at once: the register decides one view per epoch.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace

from vsync import limits
from vsync.core import Core
from vsync.leases import UNKNOWN
from vsync.membership import Membership
from vsync.register import Proposer
from vsync.view import describe_epoch, first_of, generation_of, pack_views, unpack_view_untrusted
from wire.group import Accepted, Promise, Seal, SealReport, View


@dataclass(slots=True)
class Attempt:
    """One try at deciding the view of one epoch."""

    epoch: int
    reason: str
    deadline: int
    joiner: int = 0
    reports: dict[int, SealReport] = field(default_factory=dict)
    proposer: Proposer | None = None
    refusals: int = 0
    """Ballots of this attempt that were refused."""
    retry_at: int | None = None
    """When to propose with a higher ballot, unless this one gets through yet."""


class Change:
    """Coordinating half of the view change at one replica."""

    def __init__(self, core: Core, membership: Membership, now: int) -> None:
        self.core = core
        self.membership = membership
        self.attempt: Attempt | None = None
        self._round = 0
        self._tries = 0
        self._quiet_since = now
        self._wait = 0
        self._rearm()

    # -- when to start one

    def progress(self, now: int) -> None:
        """The group moved: whoever waits for it waits anew."""
        self._quiet_since = now

    def activated(self) -> None:
        self._tries = 0
        self._rearm()

    def _rearm(self) -> None:
        base = min(limits.PROGRESS_WAIT << min(self._tries, 8), limits.PROGRESS_WAIT_MAX)
        self._wait = base + self.core.rng.randrange(limits.RANK_STEP)

    def tick(self, now: int) -> None:
        """Drive what runs; start a change when there is no active view and nobody seems to be at it."""
        core = self.core
        if self.attempt is not None:
            if now >= self.attempt.deadline:
                self._timed_out(now)
            elif self.attempt.retry_at is not None and now >= self.attempt.retry_at:
                self._go_above(self.attempt, now)
            return
        if core.active is not None or core.amnesiac or not core.history.views:
            self._quiet_since = now
            return
        if core.outside and (core.leaving or not core.may_be_member(core.me)):
            self._quiet_since = now  # out for good: the others need nothing from us
            return
        if core.outside:
            said = {p: heard for p in core.others if (heard := core.detector.last(p)) is not None}
            newest = core.newest
            inside = [p for p, heard in said.items() if p in newest.members and heard.top >= newest.epoch]
            if not inside or any(heard.active >= core.newest.epoch for heard in said.values()):
                # Those inside are at work, or cannot be heard yet: 1. We were cut off, and learn from a witness that
                # the others went on. 2. Our connections with them are still backing off, or bring what they said
                # before. 3. Our Seal is the first thing that gets through, and stops them. Without one of them there
                # is no base in any case.
                self._quiet_since = now
                return
        quiet = now - max(self._quiet_since, core.hold_until if not core.outside else 0)
        if quiet >= self._wait + core.rank() * limits.RANK_STEP:
            self._tries += 1
            self._rearm()
            self.start("no active view", now)

    @property
    def deadline(self) -> int | None:
        a = self.attempt
        if a is None:
            return None
        return a.deadline if a.retry_at is None else min(a.deadline, a.retry_at)

    def start(self, reason: str, now: int, joiner: int = 0) -> None:
        """Begin the change to the next epoch: ask everyone to seal."""
        core = self.core
        epoch = core.newest.epoch + 1
        core.note(f"starts the change to view {describe_epoch(epoch)}: {reason}")
        self.attempt = Attempt(epoch, reason, now + limits.SEAL_WAIT, joiner)
        since = min(core.history.epoch, core.newest.epoch)
        views = pack_views([v for e, v in sorted(core.history.views.items()) if e >= since])
        for replica in core.replicas:
            core.send(replica, Seal(epoch, reason, views))

    def abandon_below(self, epoch: int) -> None:
        """A view was decided: an attempt at it or below is over."""
        if self.attempt is not None and self.attempt.epoch <= epoch:
            self.attempt = None

    def yield_to(self, peer: int, epoch: int) -> None:
        """*peer* coordinates the same change: the lower id goes on, the other steps back (the register keeps
        them apart in any case; this only saves time)."""
        a = self.attempt
        if a is not None and a.epoch == epoch and peer < self.core.me and a.proposer is None:
            self.attempt = None

    # -- seal

    def on_report(self, peer: int, m: SealReport, now: int) -> None:
        a = self.attempt
        if a is None or a.proposer is not None or m.epoch != a.epoch:
            return  # of an attempt that is over or has gone on
        a.reports[peer] = m
        # Not those who only copy the state: a learner slows nobody.
        awaited = [r for r in self.core.others if r in (*self.core.concerned, a.joiner) and self.core.detector.hears(r)]
        if self.core.me in a.reports and all(r in a.reports for r in awaited):
            self._propose(a, now)

    def _timed_out(self, now: int) -> None:
        a = self.attempt
        assert a is not None
        if a.proposer is None and self.core.me in a.reports:
            self._propose(a, now)
        else:
            self.core.note(f"the change to view {describe_epoch(a.epoch)} found no majority of voters in time")
            self.attempt = None
            self._quiet_since = now

    # -- base, members, decide

    def _propose(self, a: Attempt, now: int) -> None:
        core = self.core
        away = {r for r, m in a.reports.items() if m.leaving} | set(self.membership.unwanted(a.reports))
        dead = core.leases.dead_ms(now)
        view = plan_view(a.epoch, core.me, a.reports, core.history.views, a.joiner, away, dead)
        if isinstance(view, str):
            core.note(f"the change to view {describe_epoch(a.epoch)} waits: {view}")
            self.attempt = None
            self._quiet_since = now
            return
        view = replace(view, voters=self.membership.voters_after(view.members, a.reports.keys()))
        self._ballot(a, view, now)

    def _ballot(self, a: Attempt, view: View, now: int) -> None:
        core = self.core
        self._round += 1
        a.proposer = Proposer(a.epoch, (self._round, core.me, core.incarnation), core.newest.voters, view)
        a.deadline = now + limits.DECIDE_WAIT
        a.retry_at = None
        a.proposer.start(core.out)

    def on_promise(self, peer: int, m: Promise, now: int) -> None:
        # Also of a ballot that is not ours: refused, and the next one goes above it.
        self._round = max(self._round, m.ballot[0])
        a = self.attempt
        if a is None or a.proposer is None:
            return
        a.proposer.on_promise(peer, m, unpack_view_untrusted, self.core.out)
        if m.epoch == a.epoch and m.ballot > a.proposer.ballot and a.retry_at is None:
            self._refused(a, m.ballot[1], now)

    def _refused(self, a: Attempt, proposer: int, now: int) -> None:
        """A voter has promised *proposer* to accept nothing as low as our ballot.

        1. A coordinator dies with its view decided or about to be; its ballot is the highest. 2. Whoever goes on is
        refused. Nobody else will end what the dead one began, so it goes above that at once. While the other is heard
        it is at work: then it has as long as any proposal. That it may be heard by others and not by us, and that two
        may be refused at a time, is why the wait is drawn at random, and doubles.
        """
        core = self.core
        peers = core.detector.peers
        if core.detector.hears(proposer) if proposer in peers else proposer in core.linked:
            return
        wait = limits.BALLOT_RETRY << a.refusals
        a.refusals += 1
        a.retry_at = now + wait + core.rng.randrange(wait) + core.rank() * limits.BALLOT_RETRY

    def _go_above(self, a: Attempt, now: int) -> None:
        assert a.proposer is not None
        a.retry_at = None
        if not a.proposer.promised:  # else others than who refused were enough
            self._ballot(a, a.proposer.value, now)

    def on_accepted(self, peer: int, m: Accepted) -> View | None:
        """The view, when this makes it decided."""
        if self.attempt is None or self.attempt.proposer is None:
            return None
        self.attempt.proposer.on_accepted(peer, m)
        return self.attempt.proposer.decided

    # -- the last resort

    def forced(self) -> View | str:
        """The view of this replica alone that begins a new generation, or why there can be none.

        Its base is the last view on the chain of the newest one that was flushed here, its cut what is in our log: all
        of that may have been answered.
        """
        core = self.core
        history = core.history
        # Whoever has delivered nothing and has nothing in its log may never have been in the cluster: a replica set up
        # with a first view of its own would draw all others into a generation without a history.
        if core.amnesiac or (history.index == 0 and not any(history.tops().values())):
            return "this replica has no state to go on from"
        base = core.newest.epoch
        while base > history.epoch and base not in core.flushed:
            base = history.views[base].base if base in history.views else history.epoch
        base = max(base, history.epoch)
        cut = tuple(sorted((s, q) for s, q in history.tops().get(base, {}).items() if q))
        epoch = first_of(generation_of(core.newest.epoch) + 1)
        return View(epoch, (core.me,), (core.me,), base, cut, max(limits.LEASE, core.leases.lent) // limits.MS)


def plan_view(
    epoch: int,
    me: int,
    reports: dict[int, SealReport],
    views: dict[int, View],
    joiner: int,
    away: Set[int] = frozenset(),
    dead: Mapping[int, tuple[int, int]] = {},
) -> View | str:
    """The view a coordinator proposes for *epoch*, or why it has to wait [10-group: base, decide].

    *away*: those who want to leave or are removed; they stay only if nobody else holds the history.
    *dead*: certificates, per peer the incarnation and for how many ms what it lent may still be used.
    """
    last = views[max(views)]
    base = last.epoch
    while True:
        sealed = [r for r in sorted(reports) if r in views[base].members]
        if not sealed:
            return f"no member of view {describe_epoch(base)} answered"
        flushed = [r for r in sealed if base in reports[r].flushed]
        if flushed:
            break
        # Never active, and never will be: all who could flush it are sealed or would need those who are.
        # An absent member proves nothing, so this needs a sealed respondent, and the step is to the
        # view's base, not to the epoch before [153/4964].
        base = views[base].base
        if base not in views:
            return f"view {describe_epoch(base)} is not known here"
    before = views[base].base
    began = views[before].members if before in views else ()
    able = [r for r in sealed if r in flushed or (before in reports[r].flushed and r in began)]
    furthest = max(reports[r].index for r in flushed)
    if joiner in reports and joiner not in able and reports[joiner].index + 2 * limits.JOIN_CLOSE >= furthest:
        able.append(joiner)
    members: list[int] = []
    for there in ([r for r in able if r not in away], able):
        for first in ([me, *flushed], flushed):
            if not any(r in flushed for r in members):
                members = _mutual([r for r in (*first, *able) if r in there], reports)
    cut: dict[int, int] = {}
    for r in flushed:
        for e, tops in reports[r].received:
            if e == base:
                for sender, seq in tops:
                    cut[sender] = max(cut.get(sender, 0), seq)
    hold = max(m.hold_ms if r in members else max(m.hold_ms, m.lent_ms) for r, m in reports.items())
    owed: dict[tuple[int, int], int] = {}
    for m in reports.values():
        for peer, incarnation, left in m.promises:
            if peer in reports:
                continue  # sealed: it reads nothing any more, see vsync.leases
            certified, lent = dead.get(peer, (-1, 0))
            left = min(left, lent) if incarnation <= certified else left
            if left:
                owed[peer, incarnation] = max(left, owed.get((peer, incarnation), 0))
    # 1. A member that has lent is in this view and never flushes it. 2. The next one leaves it out, and nobody in that
    # has promised it anything: it had been alone until now.
    for r in members:
        if reports[r].lent_ms:
            owed[r, UNKNOWN] = max(reports[r].lent_ms, owed.get((r, UNKNOWN), 0))
    cut_pairs = tuple(sorted((s, q) for s, q in cut.items() if q))
    promises = tuple((peer, incarnation, left) for (peer, incarnation), left in sorted(owed.items()))
    return View(epoch, tuple(sorted(members)), last.voters, base, cut_pairs, hold, promises)


def _mutual(candidates: list[int], reports: dict[int, SealReport]) -> list[int]:
    """The first of *candidates* and, in order, all that hear everyone taken so far and are heard by them."""
    taken: list[int] = []
    for r in candidates:
        if r not in taken and all(r in reports[t].hears and t in reports[r].hears for t in taken):
            taken.append(r)
    return taken

"""Pure. From a decided view to an active one: learn, flush, activate."""

from __future__ import annotations

from vsync import limits
from vsync.core import Core
from vsync.order import Order
from vsync.records import Entry, Flushed
from vsync.view import describe_epoch
from wire.group import WANTS_MAX, Content, Fetch, View


class Flush:
    """The member's half of a view change."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.flushed_by: set[int] = set()
        """Who says it has flushed the newest view."""
        self._flush_ticket: int | None = None
        self._fetch_at = 0
        self._fetch_wait = limits.FETCH_FIRST
        self._turn = 0
        self.fetching = False

    # -- learn

    def learn(self, view: View, now: int) -> bool:
        """Learn a decided view. Implies the seal: nothing more is done in any epoch before it. False: known."""
        core = self.core
        newest = core.newest.epoch
        if not core.history.learn(view, core.out):
            return False
        core.seal(view.epoch, now)
        core.acquaint()
        if core.me in view.members:
            # Also a view that came and went while we were away binds us [10-group, rule 3: every member observes it].
            core.observe(view, now)
        if view.epoch > newest:
            self.flushed_by = set()
            core.leases.new_view()
            self._flush_ticket = None
            self.fetching = False
            self._fetch_at = now
            self._fetch_wait = limits.FETCH_FIRST
            self._turn = 0
            hold = max([view.hold_ms, *(ms for peer, _, ms in view.owed if peer not in view.members)])
            core.note(
                f"view {describe_epoch(view.epoch)} is decided: members {list(view.members)}, "
                f"base {describe_epoch(max(view.base, 0))}, hold {hold} ms"
            )
        return True

    # -- flush

    def tick(self, now: int) -> None:
        """Fetch what the log lacks before the newest view; when nothing is lacking, that is flushed."""
        core = self.core
        view = core.newest
        if core.outside or core.amnesiac or view.epoch in core.flushed or core.sealed > view.epoch:
            return
        lacking = core.history.wants(view)
        if lacking is None:
            return  # history here is not on the view's chain: a learner again (see Transfer)
        if not lacking:
            core.flushed.add(view.epoch)
            for old in [e for e in core.flushed if e < view.epoch and e < core.history.epoch - limits.VIEWS_KEPT]:
                core.flushed.discard(old)
            core.out.records.append(Flushed(view.epoch))
            self._flush_ticket = core.ticket + 1  # the ticket of this step's effects
            return
        if now < self._fetch_at:
            return
        self._fetch_at = now + self._fetch_wait
        self._fetch_wait = min(2 * self._fetch_wait, limits.FETCH_RETRY)
        self.fetching = True
        base = core.history.views[view.base].members
        sources = [p for p in core.others if core.detector.hears(p)]
        # Who sent it has it. A learner among the new members has less than we, and would say nothing.
        sources.sort(key=lambda p: (p != lacking[0][1], p not in base, p))
        if sources:
            core.send(sources[self._turn % len(sources)], Fetch(view.epoch, tuple(lacking[:WANTS_MAX])))
            self._turn += 1

    def on_fetch(self, peer: int, m: Fetch) -> None:
        """Give what we have, never beyond the cut; only who holds the base or has flushed the view is a source."""
        core = self.core
        view = core.history.views.get(m.epoch)
        if view is None or core.amnesiac or not (view.base in core.flushed or view.epoch in core.flushed):
            return
        cut = dict(view.cut)
        budget = limits.CONTENT_BYTES
        entries: list[Entry] = []
        for epoch, sender, first, last in m.wants:
            end = min(last, cut.get(sender, 0)) if epoch == view.base else last
            found = core.history.find(epoch, sender, first, end, budget)
            budget -= sum(len(e.payload) + 32 for e in found)
            entries.extend(found)
            if budget < 0:
                break
        core.send(peer, Content(m.epoch, tuple((e.epoch, e.sender, e.seq, e.clock, e.payload) for e in entries)))

    def on_content(self, m: Content, now: int) -> None:
        """Entries we asked for."""
        core = self.core
        view = core.newest
        if m.epoch != view.epoch or view.epoch in core.flushed or core.sealed > view.epoch or core.outside:
            return
        wanted = {(e, s): (first, last) for e, s, first, last in core.history.wants(view) or []}
        took = 0
        for item in m.entries:
            entry = Entry(*item)
            first, last = wanted.get((entry.epoch, entry.sender), (1, 0))
            if first <= entry.seq <= last and core.history.append(entry, core.out):
                took += 1
        if took:
            self._fetch_at = now  # the rest at once
            self.tick(now)

    # -- activate

    def on_durable(self, ticket: int, now: int) -> None:
        """The flush is on disk: say so."""
        core = self.core
        if self._flush_ticket is not None and ticket >= self._flush_ticket:
            self._flush_ticket = None
            core.flushed_durable = max(core.flushed)
            if core.sealed <= core.newest.epoch:
                self.flushed_by.add(core.me)
                core.beat(now)
                core.note(f"flushed view {describe_epoch(core.flushed_durable)}")

    def heard_flushed(self, peer: int, flushed: int) -> None:
        if flushed == self.core.newest.epoch:
            self.flushed_by.add(peer)

    def waits_until(self) -> int | None:
        """When the hold runs out, if that is all we wait for."""
        core = self.core
        view = core.newest
        if core.outside or core.sealed > view.epoch or (core.order is not None and core.order.epoch >= view.epoch):
            return None
        if not self.flushed_by.issuperset(view.members):
            return None
        # What we promised ourselves to those left out is in the view: we answered its seal, or we would not be in it.
        return max(core.hold_until, core.leases.owed_until(view.members))

    def awaits_return(self, now: int) -> list[tuple[int, int]]:
        """The dead whose loans the newest view waits for, once its flush is done here (and so the log complete)."""
        core = self.core
        view = core.newest
        if core.outside or core.sealed > view.epoch or core.flushed_durable != view.epoch or core.active is not None:
            return []
        return core.leases.awaits_return(view.members, now)

    def activate(self, now: int) -> bool:
        """Activate the newest view if every member has flushed it and every hold has run out."""
        core = self.core
        until = self.waits_until()
        if until is None or now < until:
            return False
        view = core.newest
        assert view.epoch in core.flushed and core.flushed_durable == view.epoch
        core.history.finish(view, core.out)
        core.order = Order(core.me, view, core.history, core.level)
        core.leases.activate()
        core.detector.activated(view.members)
        epoch = describe_epoch(view.epoch)
        core.note(f"view {epoch} is active: members {list(view.members)}, index {core.history.index}")
        return True

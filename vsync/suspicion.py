"""Pure. Which member of the active view is to be left out of the next, and when it is our turn to ask for that."""

from __future__ import annotations

from vsync import limits
from vsync.change import Change
from vsync.core import Core
from vsync.order import Order
from vsync.view import describe_epoch


class Suspicion:
    """What one member of the active view holds against the others."""

    def __init__(self, core: Core, change: Change) -> None:
        self.core = core
        self.change = change
        self._since: dict[int, int] = {}
        """Suspected member -> since when."""
        self._undurable: dict[int, tuple[int, int]] = {}
        """Member -> (own sequence number durable there, since when it stands still)."""

    def activated(self) -> None:
        """A view became active: everybody in it is beyond suspicion."""
        self._since.clear()
        self._undurable.clear()

    def look(self, now: int) -> None:
        """Start a change when a member is suspected: the lowest that can act at once, others when it is their turn."""
        core = self.core
        order = core.active
        if order is None or self.change.attempt is not None:
            return
        reasons = {}
        for peer in order.peers:
            reason = self._why(order, peer, now)
            if reason is not None:
                reasons[peer] = reason
        self._since = {p: self._since.get(p, now) for p in reasons}
        rank = sum(1 for p in order.peers if p < core.me and p not in reasons)
        for peer, reason in sorted(reasons.items()):
            if now - self._since[peer] >= rank * limits.RANK_STEP:
                self.change.start(f"replica {peer} {reason}", now)
                return

    def _why(self, order: Order, peer: int, now: int) -> str | None:
        detector = self.core.detector
        if not detector.hears(peer):
            return "is gone" if detector.peers[peer].broken or not detector.peers[peer].linked else "is silent"
        said = detector.peers[peer].said
        if said is not None and said.sealed > order.epoch and said.active != order.epoch:
            return f"is sealed below view {describe_epoch(said.sealed)}"
        if not order.undurable_at(peer):
            self._undurable.pop(peer, None)
            return None
        seq = order.durable[order.at[peer]][order.mine]
        before, since = self._undurable.get(peer, (-1, now))
        if seq != before:
            since = now
        self._undurable[peer] = (seq, since)
        return "does not make durable what it was sent" if now - since >= limits.UNDURABLE else None

"""Pure. Learners: a replica outside the active view is fed history until it is close, then taken in.

Learners never count in stability or backpressure; a slow one's feed is cut when it falls out of what is kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, fields

from vsync import limits
from vsync.core import Core
from vsync.effects import ViewEvent
from vsync.records import Entry, Reset, Trimmed
from vsync.view import Position, describe_epoch, generation_of, pack_views, unpack_view_untrusted
from wire.codec import to_tuple
from wire.errors import WireError
from wire.group import Feed, FeedAck, Join, View

_VIEW_TAG = View.TAG  # type: ignore[attr-defined]
_VIEW_LENGTH = len(fields(View)) + 1
"""An entry has five parts, a view more: the tag alone could be an epoch number."""


@dataclass(slots=True)
class Learner:
    """One learner as its feeder sees it."""

    next: int
    """Index of the next item to send."""
    acked: int
    since: int
    sent: deque[tuple[int, int]] = field(default_factory=deque)
    """(index after it, bytes) of each Feed not acknowledged yet."""

    @property
    def waiting_bytes(self) -> int:
        return sum(size for _, size in self.sent)


class Transfer:
    """Both halves: feeding others, and being fed."""

    def __init__(self, core: Core, now: int) -> None:
        self.core = core
        self.learners: dict[int, Learner] = {}
        self.snapshots: set[int] = set()
        """Peers a snapshot is on its way to."""
        self._pinned_until = 0
        self._stay: dict[int, int] = {}
        self._joined: dict[int, int] = {}
        self._tried: int = 0
        """The learner for whose sake the last change of the view was begun here."""
        self._asked: int | None = None
        self._quiet_since = now - limits.JOIN_RETRY
        self._turn = 0
        self._gap_told = False
        """The feeder was told of a gap in the feed, and nothing has been delivered since."""

    # -- feeding

    def on_join(self, peer: int, m: Join, now: int) -> None:
        core = self.core
        order = core.active
        if order is None or peer in order.members:
            return  # we cannot feed, or the peer does not know yet that it must be left out first
        if peer not in self.learners and len(self.learners) >= limits.LEARNERS:
            return  # it will ask again
        if not m.empty and core.history.can_feed(m.index, m.hash):
            known = self.learners.get(peer)
            # A learner that has nothing to be fed asks again and again: that does not begin its stay anew.
            self.learners[peer] = Learner(m.index, m.index, known.since if known is not None else now)
            if known is None:
                core.note(f"feeds learner {peer} from index {m.index} ({core.history.index - m.index} behind)")
            self.push(peer)
        elif not core.may_be_member(peer) or len(self.snapshots) >= limits.SNAPSHOTS:
            return  # removed: it is only to learn that it is, from the feed; or it asks again
        elif core.withheld:
            return  # a copy of what may be wrong would count like a state that has come about by itself
        elif peer not in self.snapshots and (m.empty or m.index <= core.history.index or self._left_behind(m)):
            self.snapshots.add(peer)
            core.history.pinned = True  # until when is seen to at each tick
            self.learners.pop(peer, None)
            core.note(f"learner {peer} at index {m.index} gets a snapshot: history is not kept that far, or differs")
            core.out.snapshot_for.append(peer)

    def _left_behind(self, m: Join) -> bool:
        """The learner's history goes on in an earlier generation, where a forced view has left it."""
        return generation_of(m.epoch) < generation_of(self.core.history.epoch)

    def push_all(self) -> None:
        for peer in list(self.learners):
            self.push(peer)

    def push(self, peer: int) -> None:
        """Send a learner what its window allows."""
        history = self.core.history
        learner = self.learners[peer]
        while (
            learner.next < history.index
            and learner.next - learner.acked < limits.FEED_WINDOW
            and learner.waiting_bytes <= limits.FEED_WINDOW_BYTES - limits.FEED_BYTES - limits.BATCH_BYTES
        ):
            if learner.next < history.items_first:
                del self.learners[peer]  # too slow: it will ask again and get a snapshot
                self.core.note(f"learner {peer} fell out of the history kept, its feed is cut")
                return
            items = history.items(learner.next, limits.FEED_ITEMS, limits.FEED_BYTES)
            packed = tuple(tuple(i) if isinstance(i, Entry) else to_tuple(i) for i in items)
            self.core.send(peer, Feed(learner.next, packed))
            learner.next += len(items)
            learner.sent.append((learner.next, sum(len(i.payload) if isinstance(i, Entry) else 512 for i in items)))

    def on_feed_ack(self, peer: int, m: FeedAck) -> None:
        learner = self.learners.get(peer)
        if learner is not None and learner.acked <= m.index <= learner.next:
            learner.acked = m.index
            while learner.sent and learner.sent[0][0] <= m.index:
                learner.sent.popleft()
            self.push(peer)

    def ready(self, now: int) -> int:
        """A learner to be taken in now, or 0."""
        order = self.core.active
        if order is None:
            return 0
        for peer, learner in sorted(self.learners.items()):
            if not self.core.may_be_member(peer):
                continue
            close = self.core.history.index - learner.acked <= limits.JOIN_CLOSE
            stayed = now - learner.since >= self._stay.get(peer, limits.JOIN_STAY_MIN)
            if close and stayed and self.core.detector.hear_each_other(order.members, peer):
                return peer
        return 0

    def try_to_take(self, peer: int) -> None:
        """The view is changed to take *peer* in; :meth:`on_view` will tell whether it was."""
        self._tried = peer

    def forget(self, peer: int) -> None:
        """The link with *peer* broke: it asks again."""
        self.learners.pop(peer, None)

    def on_view(self, event: ViewEvent, now: int) -> None:
        """A view event was delivered: learners that are members now need no feed; stays are counted.

        1. A learner's disk is slow: it is fed in time, but its report comes too late. 2. The view is changed without
        it. 3. Tried again at once, nothing else would be done any more: so that counts as a failed stay.
        """
        tried, self._tried = self._tried, 0
        if tried and tried not in event.view.members:
            self._stay[tried] = min(2 * self._stay.get(tried, limits.JOIN_STAY_MIN), limits.JOIN_STAY_MAX)
            if tried in self.learners:
                self.learners[tried].since = now
        for member in event.view.members:
            self.learners.pop(member, None)
            self._joined.setdefault(member, now)
        for gone in [r for r in self._joined if r not in event.view.members]:
            stayed = now - self._joined.pop(gone)
            before = self._stay.get(gone, limits.JOIN_STAY_MIN)
            longer = min(2 * before, limits.JOIN_STAY_MAX)
            self._stay[gone] = limits.JOIN_STAY_MIN if stayed >= limits.STAY_GOOD else longer

    # -- being fed

    @property
    def learning(self) -> bool:
        """We need a feed: outside the newest view, or in it without a way to flush it, or without a state."""
        core = self.core
        if core.leaving:
            return False
        if core.amnesiac:
            return True
        return core.outside or (core.newest.epoch not in core.flushed and core.history.wants(core.newest) is None)

    def tick(self, now: int) -> None:
        """Ask a member of the active view to feed us, another one each time nothing comes."""
        core = self.core
        if self.snapshots:
            self._pinned_until = now + limits.SNAPSHOT_TAKEN
        core.history.pinned = now < self._pinned_until
        if not self.learning or now - self._quiet_since < limits.JOIN_RETRY:
            return
        feeders = [p for p in core.others if (said := core.detector.last(p)) is not None and said.active >= 0]
        if not feeders:
            return
        self._asked = feeders[self._turn % len(feeders)]
        self._turn += 1
        self._quiet_since = now
        self._ask(self._asked)

    def _ask(self, peer: int) -> None:
        core = self.core
        here = core.history.position()
        core.send(peer, Join(here.epoch, here.index, here.hash, core.amnesiac or core.newcomer))

    def receiving(self, now: int) -> None:
        """Parts of a snapshot are coming in: no need to ask again."""
        self._quiet_since = now

    def on_feed(self, peer: int, m: Feed, learn: Callable[[View], None], now: int) -> None:
        """Deliver what is fed. *learn* is told each view before its event is delivered."""
        core = self.core
        if peer != self._asked or not core.outside:
            return
        self._quiet_since = now
        history = core.history
        before = history.index
        items = [_item_untrusted(item) for item in m.items]
        for index, item in enumerate(items, m.index):
            if index < history.index:
                continue  # fed twice, by a feeder before or after a reconnection
            if index > history.index:
                # 1. The bulk connection breaks alone, or comes up after the one that we asked over: what was fed is
                # lost. 2. The feeder does not know, and feeds what comes after it. 3. There is no silence in which we
                # would ask again, until it has fed a whole window for nothing.
                if not self._gap_told and history.index == before:
                    self._gap_told = True  # once: the answer may come behind a window of what is of no use
                    self._ask(peer)
                break
            if isinstance(item, View):
                learn(item)
                if not core.outside or item.base != history.epoch:
                    break  # it takes us in: what is left comes with the flush
                history.deliver_view(item, core.out)
            else:
                if item.epoch != history.epoch or item.seq != history.delivered.get(item.sender, 0) + 1:
                    core.note(f"feed item {index} from {peer} is out of place: {item[:3]}")
                    break
                history.deliver_fed(item, core.out)
        if history.index > before:
            self._gap_told = False
        core.send(peer, FeedAck(history.index))

    def installed(self, position: Position, now: int) -> None:
        """The state was replaced by a snapshot, its views are learned: go on from there."""
        core = self.core
        core.history.reset(position, core.out)
        core.out.records += [Reset(position.epoch), Trimmed(position.index)]
        core.amnesiac = False
        core.note(f"installed a snapshot at index {position.index}, view {describe_epoch(position.epoch)}")
        self._quiet_since = now - limits.JOIN_RETRY

    def views_for_snapshot(self) -> tuple[tuple[object, ...], ...]:
        """The views a snapshot carries."""
        return pack_views([v for _, v in sorted(self.core.history.views.items())])


def _item_untrusted(item: tuple) -> Entry | View:  # type: ignore[type-arg]
    if item[0] == _VIEW_TAG and len(item) == _VIEW_LENGTH:
        return unpack_view_untrusted(item)
    if len(item) != 5 or type(item[4]) is not bytes or not all(type(x) is int and x >= 0 for x in item[:4]):
        raise WireError("a feed item that is neither message nor view")
    return Entry(*item)

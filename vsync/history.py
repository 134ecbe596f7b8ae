"""Pure. The message log of one replica and its place in history.

History is the chain of bases of the decided views: for each view on the chain the messages of its base up to
its cut, ordered by (clock, sender), then the view event.  :class:`History` holds what is in the log and not
delivered, and a bounded tail of what was delivered, for those who come after us.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Final

from vsync import limits
from vsync.effects import Delivered, Effects, ViewEvent
from vsync.records import Decided, Entry, cut_off
from vsync.view import NOWHERE, START, Position, chain_message, chain_view, describe_epoch, first_of, generation_of
from wire.group import View

Item = Entry | View
VIEW_BYTES: Final = 512
"""What a view counts among items kept and sent."""
_NOTHING: frozenset[int] = frozenset()


def needed(views: Mapping[int, View], count: int, epoch: int, tips: Iterable[int]) -> set[int]:
    """Epochs of those of *views* that somebody may still need of a replica whose history is in *epoch*.

    The newest *count*; the view history is in, and its base (who was a member there may be one again); *count* of the
    chain of bases of the newest, since one of them is the base of the next; and the chains of *tips* as far as they
    are not delivered: what is in the log here can be delivered along them only.
    """
    kept = set(sorted(views)[-count:])
    for tip, length in ((max(views, default=epoch), count), *((tip, len(views)) for tip in tips)):
        for _ in range(length):
            if tip <= epoch or tip not in views:
                break
            kept.add(tip)
            tip = views[tip].base
    if epoch in views:
        kept |= {epoch, views[epoch].base} & views.keys()
    return kept


def _numbered(entries: deque[Entry], seq: int) -> Entry | None:
    """The one with that number among *entries*, which are numbered without a gap."""
    k = seq - entries[0].seq if entries else -1
    return entries[k] if 0 <= k < len(entries) else None


class History:
    """Log, decided views, position. All changes to the log go through here."""

    def __init__(self, views: dict[int, View], entries: Iterable[Entry], position: Position) -> None:
        self.views = dict(views)
        self._grown = True
        """Since :meth:`forget`, something may be needed no more."""
        self.epoch = self._began = position.epoch
        self.delivered: dict[int, int] = dict(position.delivered)
        self.index = position.index
        self.hash = position.hash
        self._queues: dict[int, dict[int, deque[Entry]]] = {}
        self._tops: dict[int, dict[int, int]] = {}
        self._recent: dict[tuple[int, int], deque[Entry]] = {}
        """Those of ``_items`` by epoch and sender: numbers without a gap."""
        self._items: deque[tuple[bytes, Item]] = deque()
        self._items_bytes = 0
        self._items_first = self.index
        """Index of the first item in ``_items``; the hash there is the hash *before* it."""
        self.pinned = False
        """A snapshot is on its way: what comes after it is kept longer (see limits.PINNED)."""
        for entry in sorted(entries):
            if entry.epoch < self.epoch or entry.seq <= self._floor(entry.epoch, entry.sender):
                continue  # the state has it already
            if entry.seq == self.top(entry.epoch, entry.sender) + 1:
                self._put(entry)
        # Entries after a gap are left out: the journal trims only what the state holds, so a gap means that
        # the entry is of an epoch that a snapshot has replaced.

    # -- the log

    def _floor(self, epoch: int, sender: int) -> int:
        return self.delivered.get(sender, 0) if epoch == self.epoch else 0

    def top(self, epoch: int, sender: int) -> int:
        """Highest contiguous sequence number of *sender* in *epoch* that is in the log or was delivered."""
        tops = self._tops.get(epoch)
        got = tops.get(sender, 0) if tops is not None else 0
        return max(got, self._floor(epoch, sender))

    def tops(self) -> dict[int, dict[int, int]]:
        """All of :meth:`top`, by epoch and sender, for a seal report."""
        out = {e: dict(t) for e, t in self._tops.items()}
        here = out.setdefault(self.epoch, {})
        for sender, seq in self.delivered.items():
            here[sender] = max(seq, here.get(sender, 0))
        return out

    def _put(self, entry: Entry) -> None:
        self._tops.setdefault(entry.epoch, {})[entry.sender] = entry.seq
        self._queues.setdefault(entry.epoch, {}).setdefault(entry.sender, deque()).append(entry)

    def append(self, entry: Entry, out: Effects) -> bool:
        """Put *entry* into the log if it is the sender's next. False: ignored (a duplicate, or not contiguous)."""
        if entry.epoch < self.epoch or entry.seq != self.top(entry.epoch, entry.sender) + 1:
            return False
        self._put(entry)
        out.records.append(entry)
        out.appended.append(entry)
        return True

    def head(self, epoch: int, sender: int) -> Entry | None:
        """The first undelivered entry of *sender* in *epoch*."""
        queues = self._queues.get(epoch)
        queue = queues.get(sender) if queues is not None else None
        return queue[0] if queue else None

    def heads(self, epoch: int) -> list[Entry]:
        """The first undelivered entry of each sender in *epoch* that has one."""
        queues = self._queues.get(epoch)
        return [queue[0] for queue in queues.values() if queue] if queues is not None else []

    def undelivered(self) -> list[Entry]:
        """Every entry in the log that is not delivered."""
        return [e for queues in self._queues.values() for queue in queues.values() for e in queue]

    def find(self, epoch: int, sender: int, first: int, last: int, budget: int) -> list[Entry]:
        """Entries first..last of a sender as far as they are in memory without a gap, at most *budget* bytes."""
        found: list[Entry] = []
        queue = self._queues.get(epoch, {}).get(sender, deque())
        recent = self._recent.get((epoch, sender), deque())
        for seq in range(first, last + 1):
            entry = _numbered(recent, seq) or _numbered(queue, seq)
            if entry is None or budget < 0:
                break
            budget -= len(entry.payload) + 32
            found.append(entry)
        return found

    # -- decided views

    @property
    def newest(self) -> View:
        """The last decided view known; NOWHERE before the first."""
        return self.views[max(self.views)] if self.views else NOWHERE

    @property
    def known_to(self) -> int:
        """The last epoch up to which no decided view is missing, from the one history is in.

        A forced view, the first of its generation, makes those of generations before it superfluous: nobody goes
        back behind it. So does a number of newer ones: who lacks views that old is fed. -1 when no view is known.
        """
        epoch = self.epoch
        if epoch not in self.views:
            if self.newest.epoch < epoch:
                return self.newest.epoch
            epoch = min(self.views, default=-1)
        forced = first_of(generation_of(self.newest.epoch))
        if forced > epoch and forced in self.views:
            epoch = forced
        if len(self.views) >= limits.VIEWS_KEPT:
            # What is missing before the newest was forgotten, here and by those who could tell it: to ask for it would
            # bring all the others again, with every heartbeat.
            epoch = max(epoch, sorted(self.views)[-limits.VIEWS_KEPT])
        while epoch + 1 in self.views:
            epoch += 1
        return epoch

    def contradiction(self, view: View) -> str | None:
        """Why *view* can be no view of the group that this replica is in; None: it may be one."""
        known = self.views.get(view.epoch)
        if known is None or known == view:
            return None
        return f"two views are decided for epoch {describe_epoch(view.epoch)}, {view} and here {known}"

    def learn(self, view: View, out: Effects) -> bool:
        """Learn a decided view; drops what it cuts off from the log. False: known already, or superseded."""
        why = self.contradiction(view)
        assert why is None, why  # whoever takes a view from a peer asks first
        if view.epoch in self.views:
            return False
        generation = generation_of(view.epoch)
        if any(v.base < view.epoch < e and generation_of(e) > generation for e, v in self.views.items()):
            return False  # decided by those whom a forced view has left behind: its cut must not touch our log
        self.views[view.epoch] = view
        self._grown = True
        out.records.append(Decided(view))
        for epoch in sorted(self._queues):
            for sender, queue in self._queues[epoch].items():
                while queue and cut_off(view, epoch, sender, queue[-1].seq):
                    out.dropped.append(queue.pop())
        for epoch, tops in self._tops.items():
            for sender in tops:
                if epoch == view.base:
                    cut = next((last for who, last in view.cut if who == sender), 0)
                    tops[sender] = min(tops[sender], max(cut, self._floor(epoch, sender)))
                elif view.base < epoch < view.epoch:
                    tops[sender] = self._floor(epoch, sender)
        return True

    @property
    def overfull(self) -> bool:
        """There are views that may be needed no more: :meth:`forget` them."""
        return self._grown and len(self.views) > limits.VIEWS_KEPT

    def forget(self, tips: Iterable[int]) -> None:
        """Drop the views that nobody needs of us any more. *tips*: see :func:`needed`.

        At the end of a step: while a snapshot is installed, history is not yet where its views belong.
        """
        kept = needed(self.views, limits.VIEWS_KEPT, self.epoch, tips)
        self.views = {e: v for e, v in self.views.items() if e in kept}
        self._grown = False

    def chain(self, view: View) -> list[View]:
        """The views on *view*'s chain of bases that are not in history here yet, oldest first.

        Empty when history here does not lie on the chain (or the chain is not known that far).
        """
        chain = [view]
        while chain[-1].base > self.epoch:
            base = self.views.get(chain[-1].base)
            if base is None:
                return []
            chain.append(base)
        if chain[-1].base != self.epoch:
            return []
        chain.reverse()
        return chain

    def wants(self, view: View) -> list[tuple[int, int, int, int]] | None:
        """What the log lacks before *view*: (epoch, sender, first, last). None: not reachable from here."""
        chain = self.chain(view)
        if not chain:
            return None
        lacking = []
        for v in chain:
            for sender, last in v.cut:
                have = self.top(v.base, sender)
                if have < last:
                    lacking.append((v.base, sender, have + 1, last))
        return lacking

    # -- delivery

    def deliver(self, entry: Entry, out: Effects, held: frozenset[int] = _NOTHING) -> None:
        """The entry at its queue's head is next in history; *held*: see :class:`vsync.effects.Delivered`."""
        queue = self._queues[entry.epoch][entry.sender]
        assert queue[0] is entry and entry.epoch == self.epoch, "only the head of a queue of the present epoch"
        queue.popleft()
        self._deliver(entry, out, held)

    def deliver_fed(self, entry: Entry, out: Effects) -> None:
        """A learner's feed says that *entry* is next in history; it may be in the log already or not."""
        assert entry.epoch == self.epoch, "the feed is in history's order"
        assert entry.seq == self.delivered.get(entry.sender, 0) + 1, "the feed leaves nothing out"
        head = self.head(entry.epoch, entry.sender)
        if head is not None:
            self._queues[entry.epoch][entry.sender].popleft()
        else:
            self._tops.setdefault(entry.epoch, {})[entry.sender] = entry.seq
            out.records.append(entry)
        self._deliver(entry, out)

    def _deliver(self, entry: Entry, out: Effects, held: frozenset[int] = _NOTHING) -> None:
        before = self.hash
        self.delivered[entry.sender] = entry.seq
        self.hash = chain_message(before, *entry)
        out.history.append(Delivered(self.index, entry, held))
        self._recent.setdefault(entry[:2], deque()).append(entry)
        self._keep(before, entry, len(entry.payload))

    def deliver_view(self, view: View, out: Effects) -> None:
        """The view event is next in history; its base's messages up to the cut were delivered before it."""
        assert view.base == self.epoch, f"view {view.epoch} follows {view.base}, history is at {self.epoch}"
        assert all(self.delivered.get(s, 0) == last for s, last in view.cut), "the cut was delivered to its end"
        before = self.hash
        for epoch in [e for e in self._queues if e < view.epoch]:
            assert not any(self._queues[epoch].values()), "nothing undelivered stays behind a view event"
            del self._queues[epoch]
        self._tops = {e: t for e, t in self._tops.items() if e >= self.epoch}
        self.epoch = view.epoch
        self.delivered = {}
        self.hash = chain_view(before, view)
        out.history.append(ViewEvent(self.index, view))
        self._grown = True
        self._keep(before, view, VIEW_BYTES)

    def finish(self, view: View, out: Effects) -> None:
        """Deliver history up to and with the event of *view*: the rest of each base up to its cut, in order
        [rule 5: also events of views that were flushed here and never activated]."""
        for v in self.chain(view):
            queues = self._queues.get(v.base, {})
            rest = sorted((e.clock, e.sender, e.seq) for queue in queues.values() for e in queue)
            for _, sender, seq in rest:
                entry = queues[sender][0]
                assert entry.seq == seq, "clocks of one sender rise with its sequence numbers"
                self.deliver(entry, out)
            self.deliver_view(v, out)

    def _keep(self, before: bytes, item: Item, size: int) -> None:
        self._items.append((before, item))
        self._items_bytes += size + limits.ITEM_BYTES
        self.index += 1
        times = limits.PINNED if self.pinned else 1
        while len(self._items) > times * limits.RECENT_ITEMS or self._items_bytes > times * limits.RECENT_BYTES:
            _, old = self._items.popleft()
            self._items_first += 1
            self._items_bytes -= limits.ITEM_BYTES
            if isinstance(old, Entry):
                self._items_bytes -= len(old.payload)
                of_sender = self._recent[old[:2]]
                gone = of_sender.popleft()
                assert gone is old, "both are in the order of delivery"
                if not of_sender:
                    del self._recent[old[:2]]
            else:
                self._items_bytes -= VIEW_BYTES

    # -- for those who come after

    def position(self) -> Position:
        """Where this replica stands in history."""
        return Position(self.epoch, tuple(sorted(self.delivered.items())), self.index, self.hash)

    def can_feed(self, index: int, hash_there: bytes) -> bool:
        """Whether a learner at *index* with history hash *hash_there* can go on from items kept here."""
        if index == self.index:
            return hash_there == self.hash
        if not self._items_first <= index < self.index:
            return False
        return self._items[index - self._items_first][0] == hash_there

    def items(self, first: int, count: int, budget: int) -> list[Item]:
        """Up to *count* history items from index *first* on, of at most about *budget* bytes (one at least)."""
        start = first - self._items_first
        assert start >= 0, "asked for items that are not kept"
        found: list[Item] = []
        for k in range(start, min(start + count, len(self._items))):
            item = self._items[k][1]
            budget -= len(item.payload) if isinstance(item, Entry) else VIEW_BYTES
            if found and budget < 0:
                break
            found.append(item)
        return found

    @property
    def items_first(self) -> int:
        """Index of the oldest item kept."""
        return self._items_first

    def reset(self, position: Position, out: Effects) -> None:
        """A snapshot replaced the state: history goes on from *position*; older entries are void."""
        for epoch in [e for e in self._queues if e <= position.epoch]:
            for queue in self._queues.pop(epoch).values():
                out.dropped.extend(queue)
        self._tops = {e: t for e, t in self._tops.items() if e > position.epoch}
        self.epoch = position.epoch
        self._grown = True
        self.delivered = dict(position.delivered)
        self.index = position.index
        self.hash = position.hash
        self._items.clear()
        self._items_bytes = 0
        self._items_first = self.index
        self._recent.clear()

    def validate(self) -> None:
        """Assert what always holds."""
        # A state may be committed before the journal's record of the last view in it is on disk; after a restart
        # such a replica is told the view again, perhaps after a newer one.
        assert self.epoch in self.views or self.epoch in (START.epoch, self._began) or self.epoch > self.newest.epoch
        assert self._items_first + len(self._items) == self.index, "items kept end at the index"
        kept = sum(isinstance(item, Entry) for _, item in self._items)
        assert sum(map(len, self._recent.values())) == kept, "entries kept are found by their numbers"
        for epoch, queues in self._queues.items():
            assert epoch >= self.epoch or not any(queues.values()), "nothing undelivered in an epoch gone by"
            for sender, queue in queues.items():
                if queue:
                    assert queue[0].seq == self._floor(epoch, sender) + 1, "queues begin after what is delivered"
                    assert queue[-1].seq == self.top(epoch, sender), "queues end at the top"

"""What must be true of any run, whatever happened: told what the replicas deliver, answer and read, and nothing else.

The checkers know the promises (docs: group layer), not how a replica keeps them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any, Final, Protocol

from tests.sim.holding import Part
from tests.sim.linear import Operation, illegal
from tests.sim.state import Outcome
from vsync.effects import Delivered, ViewEvent
from vsync.records import AcceptedValue, Decided, Entry, Record
from vsync.view import Position
from wire.group import View

ROUNDED: Final = 2
"""By so much (us) the time when a skewed clock shows something is rounded up: by then its owner may have gone by it."""


class Violation(AssertionError):
    """A promise was broken."""


class Holder(Protocol):
    """A replica, as far as the checkers look at it."""

    me: int

    def has(self, entry: Entry, index: int) -> bool: ...


class Checkers:
    """The one history, and what was promised about it."""

    def __init__(self, replica: Callable[[int], Holder]) -> None:
        self._replica = replica
        self.history: list[Entry | View] = []
        """What anybody delivered, by index."""
        self._hashes: dict[int, bytes] = {}
        self.views: dict[int, View] = {}
        """Decided views."""
        self.last_active = 0
        """Epoch of the last view whose event anybody delivered."""
        self._outcomes: dict[tuple[int, int], Outcome | None] = {}
        """(index, number of the request in the message) -> what it came to."""
        self._lent: dict[int, list[tuple[int, int, int, int]]] = {}
        """Key -> (replica, index, since, until): what it told of the key, true as of the index, a client goes by."""
        self.lent = 0
        """How often a client was to keep what it was told."""
        self._held: dict[Part, dict[int, tuple[int, int]]] = {}
        """Part of a message -> replica -> (until when a client of it uses what contradicts the part, until when it
        would if nobody told it otherwise); true time. Of those that are over some are still here."""
        self.held = 0
        """How often a part was held."""
        self.late = 0
        """Requests that were executed later than they were delivered, at one replica or another."""
        self.views_after_holds = 0
        """View events before which something had been held."""
        self.shortened = 0
        """How often a replica waited for what a dead one had lent, and heard that it was back."""
        self._executed: dict[tuple[int, int], int] = {}
        """(client, number) -> index of the item that executed it."""
        self._since_view: dict[int, tuple[int, list[tuple[int, int, int]]] | None] = {}
        """Replica -> (epoch of the last view event it delivered, what it delivered since); None: cannot be told."""
        self._between: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
        """(view, next view) -> what whoever went from one to the other delivered in between."""
        self._answered: dict[tuple[int, int], int] = {}
        self._newest: dict[int, int] = {}
        """Key -> index of the last item about it that was answered to a client."""
        self._asked: dict[int, int] = {}
        """Query -> what ``_newest`` said of its key when its client asked."""
        self.operations: list[Operation] = []
        self.reads = 0
        self._digest = blake2b(digest_size=8)

    @property
    def digest(self) -> str:
        """Names the course of the run: the same seed gives the same one, on any machine."""
        return self._digest.hexdigest()

    # -- promises 1, 3, 4, 5

    def recorded(self, records: list[Record]) -> None:
        """One view is decided for an epoch."""
        for record in records:
            if isinstance(record, Decided):
                known = self.views.setdefault(record.view.epoch, record.view)
                if known != record.view:
                    raise Violation(f"two views decided: {known} and {record.view}")
                before = self.views.get(record.view.epoch - 1)
                if before is not None and len(set(before.voters) ^ set(record.view.voters)) > 1:
                    raise Violation(f"more than one voter changes from {before} to {record.view}")
            elif isinstance(record, AcceptedValue) and record.view.epoch != record.epoch:
                raise Violation(f"register {record.epoch} holds the view of {record.view.epoch}")

    def delivered(self, by: Holder, items: Sequence[Delivered | ViewEvent]) -> None:
        """Replica *by* delivered *items*: the next of the one history, and safe where they are new to it."""
        fresh: list[tuple[int, Entry]] = []
        for item in items:
            what = item.entry if isinstance(item, Delivered) else item.view
            self._together(by.me, what)
            if item.index < len(self.history):
                before = self.history[item.index]
                if before != what:
                    raise Violation(f"replica {by.me}: item {item.index} is {what}, history has {before}")
                continue
            if item.index != len(self.history):
                raise Violation(f"replica {by.me} delivers item {item.index}, history ends at {len(self.history)}")
            self.history.append(what)
            if isinstance(what, Entry):
                fresh.append((item.index, what))
            else:
                self._digest.update(b"view %d " % what.epoch)
                self.last_active = max(self.last_active, what.epoch)
        views = [item.view for item in items if isinstance(item, ViewEvent)]
        for index, entry in fresh:
            # Delivered within its view; or on the way into a later one, whose members have all flushed it.
            members = (views[-1] if views else self.views[entry.epoch]).members
            for member in members:
                if not self._replica(member).has(entry, index):
                    raise Violation(f"replica {by.me} delivers {entry}, item {index}, not safe at {member}")

    def _together(self, who: int, what: Entry | View) -> None:
        """Virtual synchrony: who goes from one view to the next together delivered the same in between."""
        since = self._since_view.get(who)
        if isinstance(what, Entry):
            if since is not None:
                since[1].append(what[:3])
            return
        if since is not None:
            before = self._between.setdefault((since[0], what.epoch), since[1])
            if before != since[1]:
                raise Violation(
                    f"replica {who} went from view {since[0]} to {what.epoch} with {since[1]}, another with {before}"
                )
        self._since_view[who] = (what.epoch, [])

    def snapshot(self, by: Holder) -> None:
        """Replica *by* got another's state, or begins anew: what it delivered itself since the last view is unknown."""
        self._since_view[by.me] = None

    def same_hash(self, at: Position) -> None:
        """Equal index, equal history hash."""
        if self._hashes.setdefault(at.index, at.hash) != at.hash:
            raise Violation(f"two history hashes at index {at.index}")

    def applied(self, by: int, at: tuple[int, int], o: Outcome | None) -> None:
        """Replica *by* executed the request *at* (index, number): it comes to the same everywhere, and no request is
        executed twice."""
        if at in self._outcomes:
            before = self._outcomes[at]
            if before != o:
                raise Violation(f"replica {by}: request {at} comes to {o}, at another replica to {before}")
            return
        self._outcomes[at] = o
        if o is None:
            return
        index = at[0]
        self._digest.update(b"%d %d %d " % (o.client, o.number, index))
        if o.executed and self._executed.setdefault((o.client, o.number), index) != index:
            first = self._executed[o.client, o.number]
            raise Violation(f"request {o.number} of client {o.client} executed twice, as items {first} and {index}")

    # -- what clients keep (vsync.holds)

    def holds(self, by: int, part: Part, until: int, at_the_latest: int) -> None:
        """A client of replica *by* uses what contradicts *part* of a message."""
        self.held += 1
        self._held.setdefault(part, {})[by] = until, at_the_latest

    def holder_died(self, by: int, now: int) -> None:
        """Nobody calls back any more what replica *by* has lent: it is used to the end."""
        for holders in self._held.values():
            if by in holders and holders[by][0] > now:
                holders[by] = holders[by][1], holders[by][1]

    def in_use(self, by: int) -> tuple[Part, ...]:
        """Parts that clients of replica *by* contradict, or did."""
        return tuple(part for part, holders in self._held.items() if by in holders)

    def returned(self, by: int, parts: tuple[Part, ...], since: int, now: int) -> None:
        """The clients of replica *by*, which died at *since* while *parts* were in use, have let go of everything."""
        for key in self._lent:
            self.back(by, key, since)
        for part in parts:
            holders = self._held.get(part, {})
            if by in holders:
                holders[by] = min(now, holders[by][0]), min(now, holders[by][1])

    def let_go(self, by: int, now: int) -> None:
        """The clients of replica *by* have let go of everything."""
        for holders in self._held.values():
            if by in holders:
                holders[by] = now, now

    def executes(self, by: int, part: Part, now: int) -> None:
        """Replica *by*, a member, executes *part* of a message: no client anywhere contradicts it."""
        for holder, (until, _) in self._held.get(part, {}).items():
            if until > now:
                raise Violation(f"replica {by} executes {part}, which a client of replica {holder} contradicts")

    def lends(self, by: int, key: int, index: int, now: int, until: int) -> None:
        """A client of replica *by* keeps what that told it of *key*, which is true as of *index*."""
        self.lent += 1
        self._lent.setdefault(key, []).append((by, index, now, until))

    def back(self, by: int, key: int, since: int) -> None:
        """The clients of replica *by* have let go of what they were told of *key* up to *since*."""
        self._lent[key] = [one for one in self._lent.get(key, []) if one[0] != by or one[2] > since]

    def changes(self, by: int, index: int, key: int, now: int) -> None:
        """Replica *by*, a member, executes what changes *key* at *index*: no client keeps what it was told before."""
        loans = self._lent[key] = [one for one in self._lent.get(key, []) if one[3] > now + ROUNDED]
        for holder, told_at, when, until in loans:
            if told_at <= index:
                raise Violation(
                    f"replica {by} changes {key} at {index}, of which replica {holder} told at {told_at}, at {when}: "
                    f"until {until} a client answers by that"
                )

    def begins(self, by: int, epoch: int, now: int) -> None:
        """Replica *by* delivers the event of the view of *epoch*: everything before it is clear."""
        before = [part for part in self._held if part[0] < epoch]
        self.views_after_holds += bool(before)
        for part in before:
            for holder, (until, _) in self._held[part].items():
                if until > now:
                    raise Violation(
                        f"replica {by} is in view {epoch} while a client of replica {holder} contradicts {part}"
                    )
            del self._held[part]

    # -- promise 6, and no answered request lost

    def answering(self, client: int, number: int, index: int) -> None:
        """A replica answers a client's request from item *index*."""
        if (client, number) not in self._executed:
            raise Violation(f"request {number} of client {client} is answered and was never executed")
        self._answered[client, number] = self._executed[client, number]

    def answered(self, client: int, number: int, key: int) -> None:
        """The client has its answer: every query that begins from now on has to show the request's effect."""
        index = self._executed.get((client, number))
        if index is None:
            raise Violation(f"client {client} has an answer to its request {number}, which was never executed")
        self._newest[key] = max(index, self._newest.get(key, -1))

    def asked(self, query: int, key: int) -> None:
        """A client asks for *key*."""
        self._asked[query] = self._newest.get(key, -1)

    def read(self, by: int, query: int, key: int, index: int) -> None:
        """Replica *by* answers *query* from a state of *index* items."""
        self.reads += 1
        began = self._asked[query]
        if began >= index:
            raise Violation(
                f"stale read of key {key} at replica {by}: state of {index} items misses item {began}, answered before"
            )

    @property
    def answers(self) -> int:
        return len(self._answered)

    # -- at the end

    def finish(self) -> None:
        """Every answered request is in history, once; the clients saw one register each."""
        executed: dict[tuple[int, int], int] = {}
        for (index, _), o in sorted(self._outcomes.items(), key=lambda item: item[0]):
            if o is not None and o.executed:
                executed[o.client, o.number] = index
        for name, index in self._answered.items():
            if executed.get(name) != index or not isinstance(self.history[index], Entry):
                raise Violation(f"request {name} was answered as item {index} and is not there")
        stuck = illegal(self.operations)
        if stuck is not None:
            shown = "\n  ".join(map(str, stuck[-30:]))
            raise Violation(f"not linearizable, key {stuck[0].key}:\n  {shown}")


def difference(a: Any, b: Any) -> str:
    """What differs between two runs of one seed."""
    return f"{a.digest} {len(a.history)} items, {b.digest} {len(b.history)} items"

"""Pure. Cache leases: what the clients attached here may answer by themselves, and calling it back.

A client may keep what an answer told it of an inode (attributes; of a directory: names, also absent ones) while it
holds the lease on that inode and its lease as a whole has not run out.  A request that touches the inode is executed
nowhere before this replica has recalled the lease and the client has let go, or its lease has run out (vsync.holds
tells the others): so when a request is answered anywhere, no cache anywhere holds what it changed.  A client's lease
never outlasts the replica's own read lease, so the hold of a view change covers the clients of a replica that is gone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from typing import Any, Final, Generic, TypeVar

LEASE_US: Final = 250_000
"""Longest lease of a client. What a client that does not answer a recall can delay those by, once, who touch what it
keeps."""
CLIENTS_MARGIN_US: Final = 30_000
"""A client is told a lease shorter by this than what is waited for here and, by the group, after our end: its clock may
be slower than those (a clock that is being set right may be off by several percent for that while)."""
INODES_MAX: Final = 65_536
"""Inodes one client may hold leases on; beyond it answers come without, until it has let go of everything."""
LEASES_MAX: Final = 262_144
"""Leases of all clients together, some 20 MB. Then the client that holds the most is asked to let go of everything."""
NEARLY: Final = 4096
"""A client, or all of them, with so few leases to spare hold too much: more than one answer asks for."""
LINGERING_MAX: Final = 4096
"""Inodes called back of which it is remembered that a kernel may still use their names, before the old are dropped."""

_NOTHING: Final[frozenset[Hashable]] = frozenset()

C = TypeVar("C", bound=Hashable)


class Lent(Generic[C]):
    """The leases of one client since it last let go of everything. That takes no walk through them: they are void."""

    __slots__ = ("client", "count", "void")

    def __init__(self, client: C) -> None:
        self.client = client
        self.count = 0
        """Inodes."""
        self.void = False


class Holder(Generic[C]):
    """One client."""

    __slots__ = ("emptying", "epoch", "lent", "recalls", "until")

    def __init__(self, client: C) -> None:
        self.epoch = 1
        """Changes when leases were taken away without the client's word: it must drop all it keeps."""
        self.until = 0
        self.lent = Lent(client)
        self.recalls = 0
        """Number of the last recall sent."""
        self.emptying = 0
        """Number of the recall that asks it to let go of everything, because it holds too much; 0: none."""


class Recall(Generic[C]):
    """Some requests wait for one client to let go."""

    __slots__ = ("client", "inodes", "number", "until", "what")

    def __init__(self, client: C, number: int, inodes: tuple[int, ...], what: Hashable, until: int) -> None:
        self.client = client
        self.number = number
        self.inodes = frozenset(inodes)
        """Empty means all."""
        self.what = {what}
        """The requests: that which has called back, and those after it that touch the same. One recall each would be
        twice as many with each of these: a message of 30 that make files in one directory would never be through."""
        self.until = until


class Caches(Generic[C]):
    """The leases of all clients attached here."""

    def __init__(self) -> None:
        self._clients: dict[C, Holder[C]] = {}
        self._leases: dict[int, Lent[C] | tuple[Lent[C], ...]] = {}
        """By inode: mostly one client's, and without a tuple then. Void ones are in it until the next sweep."""
        self._live = 0
        self._void = 0
        """So many of each are in it."""
        self._asked_until = 0
        """Somebody was asked to let go of everything for the others' sake, and has until then to do so."""
        self._recalls: list[Recall[C]] = []
        self._lingering: dict[int, dict[C, int]] = {}
        """Inodes called back while their names stayed -> clients whose kernel may use these names until then."""
        self._forget_at = LINGERING_MAX

    # -- granting

    def renew(self, client: C, until: int) -> int:
        """*client*'s lease as a whole runs until then (our clock). Returns the lease's epoch."""
        holder = self._clients.get(client)
        if holder is None:
            holder = self._clients[client] = Holder(client)
        holder.until = max(holder.until, until)
        return holder.epoch

    def grant(self, client: C, inodes: frozenset[int], now: int) -> bool:
        """Let *client* keep what it is told of *inodes*, or not: it has no lease, or too much is lent."""
        holder = self._clients.get(client)
        if holder is None or holder.until <= now or holder.emptying:
            return False
        lent = holder.lent
        if lent.count + len(inodes) > INODES_MAX or self._live + len(inodes) > LEASES_MAX:
            return False
        for ino in inodes:
            there = self._leases.get(ino)
            if there is lent or (isinstance(there, tuple) and lent in there):
                continue
            others = self._only_live(there)
            self._leases[ino] = (*others, lent) if others else lent
            lent.count += 1
            self._live += 1
        return True

    def _only_live(self, there: Lent[C] | tuple[Lent[C], ...] | None) -> tuple[Lent[C], ...]:
        """What counts of an entry that is about to be replaced."""
        if there is None:
            return ()
        found = there if isinstance(there, tuple) else (there,)
        live = tuple(lent for lent in found if not lent.void)
        self._void -= len(found) - len(live)
        return live

    def has(self, client: C) -> bool:
        """Whether *client* asked for a lease at all."""
        return client in self._clients

    def too_full(self, client: C, now: int) -> tuple[C, int] | None:
        """After :meth:`grant` said no to *client*: if that was because too much is lent, whom to send a recall of
        everything, and its number. Until it is done its leases stand."""
        holder = self._clients.get(client)
        if holder is None:
            return None
        if holder.lent.count < INODES_MAX - NEARLY:
            if self._live < LEASES_MAX - NEARLY or now < self._asked_until:
                return None
            # Who was asked and has not done so will, or is not heard any more and its lease runs out.
            holder = max((h for h in self._clients.values() if not h.emptying), key=_lent_to, default=holder)
            self._asked_until = now + LEASE_US
        if holder.emptying:
            return None
        if holder.until <= now:
            self._take_all(holder.lent.client)
            return None
        holder.recalls += 1
        holder.emptying = holder.recalls
        return holder.lent.client, holder.emptying

    # -- recalling

    def recall(
        self,
        touched: frozenset[int] | None,
        requesters: set[C],
        what: Hashable,
        now: int,
        named: frozenset[int] = frozenset(),
    ) -> list[tuple[C, int, tuple[int, ...]]]:
        """Take back the leases on *touched* (None: all) from everyone but *requesters*, who know of their own request.

        *named*: those of *touched* whose names change (or who may pass through them). A client's kernel may use the
        name of a directory for a moment after the client has let go of the inode, so for these it is asked again.
        Until they have let go, *what* must not be executed (:meth:`held`).  Returns what to send: (client, number of
        the recall, inodes; () means all).
        """
        # 1. A request calls a lease back. 2. Another one touches the same inode before the client has answered: the
        # lease is no longer listed, and yet in use.
        for recall in self._recalls:
            if recall.client in requesters or recall.until <= now:
                continue
            if touched is None or not recall.inodes or not touched.isdisjoint(recall.inodes):
                recall.what.add(what)
        hit: dict[C, list[int]] = {}
        if touched is None:
            lingering = {client for clients in self._lingering.values() for client in clients}
            hit = {c: [] for c, holder in self._clients.items() if holder.lent.count or c in lingering}
        else:
            for ino in sorted(touched):
                clients = self._holders(ino)
                if ino in named and ino in self._lingering:
                    clients = tuple(dict.fromkeys((*clients, *(c for c in self._lingering[ino] if c in self._clients))))
                for client in clients:
                    hit.setdefault(client, []).append(ino)
        out: list[tuple[C, int, tuple[int, ...]]] = []
        for client, inodes in hit.items():
            if client in requesters:
                continue
            holder = self._clients[client]
            if holder.until <= now:
                self._take_all(client)  # it lets go by time; should it come back, it is told so by the epoch
                continue
            if not inodes:
                self._void_all(holder)
            for ino in inodes:
                self._release(holder.lent, ino)
                if ino not in named:
                    self._lingering.setdefault(ino, {})[client] = holder.until
            holder.recalls += 1
            self._recalls.append(Recall(client, holder.recalls, tuple(inodes), what, holder.until))
            out.append((client, holder.recalls, tuple(inodes)))
        if len(self._lingering) > self._forget_at:
            self._forget_lingering(now)
        return out

    def _forget_lingering(self, now: int) -> None:
        """Drop what has run out. Done when there is twice as much as the last time, so that it costs little."""
        self._lingering = {
            ino: still
            for ino, clients in self._lingering.items()
            if (still := {client: until for client, until in clients.items() if until > now})
        }
        self._forget_at = max(LINGERING_MAX, 2 * len(self._lingering))

    def done(self, client: C, number: int) -> None:
        """*client* has let go of what recall *number*, and those before it, named."""
        self._recalls = [r for r in self._recalls if r.client != client or r.number > number]
        holder = self._clients.get(client)
        if holder is not None and holder.emptying and number >= holder.emptying:
            holder.emptying = 0
            self._void_all(holder)

    def held(self, now: int) -> frozenset[Hashable]:
        """What must not be executed yet. Recalls end by time as well."""
        if not self._recalls:
            return _NOTHING
        for recall in [r for r in self._recalls if r.until <= now]:
            # 1. A lease is extended while a recall waits for its answer. 2. The client learns of that only after the
            # recall, and so lets go of what it names by the end of the old lease. 3. But it goes on to rely on all the
            # rest, which is to be recalled as ever. Test:
            # test_caches.test_a_slow_answer_does_not_cost_a_client_that_goes_on.
            if self._clients[recall.client].until <= now:
                self._take_all(recall.client)
        self._recalls = [r for r in self._recalls if r.until > now]
        return frozenset().union(*(r.what for r in self._recalls))

    def _holders(self, ino: int) -> tuple[C, ...]:
        """Who may keep what it was told of *ino*."""
        there = self._leases.get(ino)
        if there is None:
            return ()
        found = there if isinstance(there, tuple) else (there,)
        return tuple(lent.client for lent in found if not lent.void)

    def _release(self, lent: Lent[C], ino: int) -> None:
        there = self._leases.get(ino)
        if there is None:
            return
        live = self._only_live(there)
        left = tuple(other for other in live if other is not lent)
        if len(left) < len(live):
            lent.count -= 1
            self._live -= 1
        if left:
            self._leases[ino] = left if len(left) > 1 else left[0]
        else:
            del self._leases[ino]

    def _void_all(self, holder: Holder[C]) -> None:
        """The client has let go of everything."""
        lent = holder.lent
        lent.void = True
        self._live -= lent.count
        self._void += lent.count
        holder.lent = Lent(lent.client)
        if self._void > NEARLY + self._live // 4:
            self._sweep()

    def _sweep(self) -> None:
        """Drop what is void. Done when that is a good part of all, so that it costs little each time."""
        if not self._live:
            self._leases = {}
        for ino in [ino for ino, there in self._leases.items() if isinstance(there, tuple) or there.void]:
            left = self._only_live(self._leases[ino])
            if left:
                self._leases[ino] = left if len(left) > 1 else left[0]
            else:
                del self._leases[ino]
        self._void = 0

    def _take_all(self, client: C) -> None:
        holder = self._clients[client]
        self._void_all(holder)
        holder.epoch += 1
        holder.emptying = 0

    def take_all(self) -> None:
        """Take everything from everyone: this replica missed what happened (their leases have run out by then)."""
        for client in self._clients:
            self._take_all(client)

    def gone(self, client: C, now: int) -> bool:
        """*client*'s connection is gone; it may use its leases until they run out, so they are kept till then.

        True: there is nothing more to keep of it. Else ask again later.
        """
        holder = self._clients.get(client)
        if holder is None:
            return True
        if holder.until > now:
            return False
        self._take_all(client)
        del self._clients[client]
        self._recalls = [r for r in self._recalls if r.client != client]
        return True

    @property
    def any_held(self) -> bool:
        """Whether any client may have to be asked before something changes."""
        # What is being called back is not listed any more, but in use: it may be all there was.
        return bool(self._live or self._lingering or self._recalls)

    def __len__(self) -> int:
        """Leases of all clients."""
        return self._live

    def validate(self) -> None:
        """Assert that the counts are those of the leases."""
        live: Counter[Lent[C]] = Counter()
        void = 0
        for there in self._leases.values():
            entries = there if isinstance(there, tuple) else (there,)
            assert entries and len(set(entries)) == len(entries), "a client holds one lease on an inode"
            live.update(lent for lent in entries if not lent.void)
            void += sum(lent.void for lent in entries)
        assert {lent: lent.count for holder in self._clients.values() if (lent := holder.lent).count} == live
        assert (self._live, self._void) == (live.total(), void)
        assert self._live <= LEASES_MAX and self._void <= NEARLY + LEASES_MAX // 4
        assert all(recall.client in self._clients for recall in self._recalls)


def _lent_to(holder: Holder[Any]) -> int:
    return holder.lent.count

"""Pure. Total order inside one active view, from any member, without a leader.

A message (clock t, sender i) is delivered when every member is known to have a clock of at least t (nobody
can send anything ordered before it any more) and every member has it durable: one round trip and one flush.

An acknowledgement goes at once to those who wait for it, the members with messages that are not delivered here;
the others learn of it from the sender, who tells what it has delivered with its next message or a moment later.
What one member has delivered is durable at all, and everything ordered before it, too, so whoever hears of it
delivers it without collecting acknowledgements of its own. With one busy sender among n members that is 2(n-1)
frames per message where everyone acknowledging to everyone takes n*n - 1.

That is the level *safe*, and all that the file system uses. The others are there to be compared with it
(bench/total_order.py): *agreed* delivers as soon as nothing can come before the message, durable or not, with the same
acknowledgements on receipt; *heartbeat* is the same with the acknowledgements in the heartbeats only. Neither is safe
across a view change.
"""

from __future__ import annotations

from enum import StrEnum
from operator import lt

from vsync.effects import Effects
from vsync.history import History
from vsync.holds import Holds, Part
from vsync.records import Entry
from wire.group import Ack, Data, Heartbeat, View

_NOTHING: frozenset[int] = frozenset()


class Level(StrEnum):
    """What must be known of a message before it is delivered, and how it gets known."""

    SAFE = "safe"
    AGREED = "agreed"
    HEARTBEAT = "heartbeat"


class Order:
    """State of one active view at one member. Vectors are indexed like ``view.members``."""

    def __init__(self, me: int, view: View, history: History, level: Level = Level.SAFE) -> None:
        self.view = view
        self.level = level
        self.epoch = view.epoch
        self.members = view.members
        self.history = history
        n = len(self.members)
        self.at = {member: k for k, member in enumerate(self.members)}
        self.mine = self.at[me]
        self.me = me
        self.clock = 0
        self.known = [0] * n
        """L: what is known of each member's clock."""
        self.received = [0] * n
        """Highest contiguous sequence number received of each member (own: sent)."""
        self.durable = [[0] * n for _ in range(n)]
        """durable[k][j]: what member k has of sender j durable in its log."""
        self.delivered = [0] * n
        self.stable = [0] * n
        """What some member says it has delivered: safe for everyone."""
        self.told = 0
        """Own sequence number up to which we have told the others that it is delivered."""
        self.holds = Holds(self.members, self.mine)
        self.peers = [m for m in self.members if m != me]

    @property
    def own(self) -> int:
        """Own last sequence number."""
        return self.received[self.mine]

    @property
    def in_flight(self) -> int:
        """Own messages that are not delivered yet."""
        return self.received[self.mine] - self.delivered[self.mine]

    def multicast(self, payload: bytes, out: Effects) -> None:
        """Send *payload* to all members, ourselves included."""
        self.clock += 1
        seq = self.own + 1
        entry = Entry(self.epoch, self.me, seq, self.clock, payload)
        fresh = self.history.append(entry, out)
        assert fresh, "own messages are contiguous"
        self.received[self.mine] = seq
        self.known[self.mine] = self.clock
        self.told = self.delivered[self.mine]
        durable, delivered = tuple(self.durable[self.mine]), tuple(self.delivered)
        data = Data(self.epoch, seq, self.clock, durable, delivered, payload, *self.holds.own())
        out.send.extend((peer, data) for peer in self.peers)

    def on_data(self, peer: int, m: Data, out: Effects) -> bool:
        """A member's message. True: it is new. Answers duplicates with an Ack, ignores what leaves a gap."""
        k = self.at[peer]
        if m.seq != self.received[k] + 1:
            if m.seq <= self.received[k]:
                out.send.append((peer, self.ack()))  # our acknowledgement was lost with a broken link
            return False
        fresh = self.history.append(Entry(self.epoch, peer, m.seq, m.clock, m.payload), out)
        assert fresh, "history and the order agree on what was received"
        self.received[k] = m.seq
        self.clock = max(self.clock, m.clock)
        self.known[self.mine] = self.clock
        self.known[k] = max(self.known[k], m.clock)
        self._learn(k, m)
        if self.level is Level.AGREED:
            ack = self.ack()
            out.send.extend((other, ack) for other in self._waiting())
        return True

    def on_ack(self, peer: int, m: Ack | Heartbeat) -> None:
        """What a member says of its clock and log (in an Ack, or repeated in a Heartbeat)."""
        k = self.at[peer]
        if self.received[k] >= m.own:
            # [10-group: an acknowledgement must not overtake data lost with a broken link]
            self.known[k] = max(self.known[k], m.clock)
        self._learn(k, m)

    def _learn(self, k: int, m: Data | Ack | Heartbeat) -> None:
        durable, delivered = m.durable, m.delivered
        if not len(durable) == len(self.members) == len(delivered):
            return
        holds = self.holds
        row = self.durable[k]
        if m.held or m.unclear or holds.any:
            if not all(part[0] in self.at for part in (*m.held, *m.unclear)):
                return  # no member of this view says that
            # 1. A heartbeat says that nothing is held. 2. Then a message comes there, and with the acknowledgement the
            # word that it is held, over another connection. 3. The heartbeat arrives last.
            if any(map(lt, durable, row)) or any(map(lt, delivered, holds.said[k])):
                return
            holds.learn(k, m.held, m.unclear)
        holds.said[k] = delivered
        stable = self.stable
        for j, seq in enumerate(durable):
            if seq > row[j]:
                row[j] = seq
            if delivered[j] > stable[j]:
                stable[j] = delivered[j]

    def on_durable(self, received: list[int]) -> None:
        """The log is on disk up to *received* (a copy of ``received`` when it was handed over)."""
        row = self.durable[self.mine]
        for j, seq in enumerate(received):
            row[j] = max(row[j], seq)

    def ack(self) -> Ack:
        """What we have to say now."""
        durable, delivered = tuple(self.durable[self.mine]), tuple(self.delivered)
        return Ack(self.epoch, self.clock, self.own, durable, delivered, *self.holds.own())

    def hold(self, parts: frozenset[Part], out: Effects) -> None:
        """These parts of messages must not be executed: something here contradicts them."""
        if self.holds.hold(parts):
            ack = self.ack()  # somebody waits for what is let go of, and not only the message's sender
            out.send.extend((peer, ack) for peer in self.peers)

    def _clear(self, out: Effects) -> None:
        """Look whether parts that wait may go on; of our own messages we tell the others, who may not find out."""
        parts = self.holds.cleared(self.durable)
        out.cleared.extend((self.epoch, *part) for part in parts)
        if any(sender == self.me for sender, _, _ in parts):
            ack = self.ack()
            out.send.extend((peer, ack) for peer in self.peers)

    def awaiting(self) -> list[int]:
        """Who waits for us to tell that something is durable here."""
        return self._waiting() if self.level is Level.SAFE else []

    def _waiting(self) -> list[int]:
        """The other members with messages here that are not delivered: they wait for our acknowledgement."""
        return [peer for peer in self.peers if self.history.head(self.epoch, peer) is not None]

    @property
    def untold(self) -> bool:
        """Own messages are delivered and the others may not know, who would deliver them if they did."""
        return self.level is not Level.HEARTBEAT and self.told != self.delivered[self.mine]

    def resend(self, peer: int, received: int, budget: int, out: Effects) -> None:
        """Send *peer* our messages after *received* again (lost with a broken link)."""
        durable, delivered = tuple(self.durable[self.mine]), tuple(self.delivered)
        for entry in self.history.find(self.epoch, self.me, received + 1, self.own, budget):
            data = Data(self.epoch, entry.seq, entry.clock, durable, delivered, entry.payload, *self.holds.own())
            out.send.append((peer, data))

    def deliver(self, out: Effects) -> None:
        """Deliver, in order, everything that may be delivered by now."""
        if self.holds.any:
            self._clear(out)
        while True:
            heads = self.history.heads(self.epoch)
            if not heads:
                return
            first = heads[0] if len(heads) == 1 else min(heads, key=_place)
            j = self.at[first.sender]
            if self.level is not Level.SAFE:
                if not self._agreed(first) and not self._delivered_elsewhere(first):
                    return
            elif first.seq > self.stable[j]:
                clock, seq = first.clock, first.seq
                for k in range(len(self.members)):
                    if self.known[k] < clock or self.durable[k][j] < seq:
                        return
            held = self.holds.delivered(first.sender, first.seq, self.durable) if self.holds.any else _NOTHING
            self.history.deliver(first, out, held)
            self.delivered[j] = first.seq

    def _agreed(self, entry: Entry) -> bool:
        """Nothing can come before *entry*: at an equal clock the lower sender comes first."""
        return all(
            known >= (entry.clock if member < entry.sender else entry.clock - 1)
            for member, known in zip(self.members, self.known, strict=True)
        )

    def _delivered_elsewhere(self, entry: Entry) -> bool:
        """Somebody has delivered *entry*, and we have all that it had by then: nothing else comes before it. What
        members have delivered are beginnings of one order, so ``stable`` is the longest of them."""
        return (
            self.level is Level.AGREED
            and entry.seq <= self.stable[self.at[entry.sender]]
            and all(have >= seq for have, seq in zip(self.received, self.stable, strict=True))
        )

    def undurable_at(self, peer: int) -> bool:
        """Whether *peer* has something of ours not durable yet."""
        return self.durable[self.at[peer]][self.mine] < self.own

    def validate(self) -> None:
        """Assert what always holds."""
        for j, member in enumerate(self.members):
            assert self.durable[self.mine][j] <= self.received[j], f"durable of {member}"
            assert self.delivered[j] <= self.received[j], f"delivered of {member}"
            assert self.received[j] == self.history.top(self.epoch, member), f"log and order of {member}"
            if self.level is not Level.SAFE:
                continue
            # The rule that saves the acknowledgements: what one member delivered is durable everywhere, so also here.
            assert self.stable[j] <= self.durable[self.mine][j], f"somebody delivered {member}'s without our log"
            for k in range(len(self.members)):
                assert max(self.durable[k][j], self.stable[j]) >= self.delivered[j], "delivered what all have durable"
        assert self.known[self.mine] == self.clock
        self.holds.validate(lambda j: self.delivered[j])


def _place(entry: Entry) -> tuple[int, int]:
    """What orders messages."""
    return entry.clock, entry.sender

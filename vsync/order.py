"""Pure. Safe total order inside one active view, from any member, without a leader.

A message (clock t, sender i) is delivered when every member is known to have a clock of at least t (nobody
can send anything ordered before it any more) and every member has it durable: one round trip and one flush.
"""

from __future__ import annotations

from vsync.effects import Effects
from vsync.history import History
from vsync.records import Entry
from wire.group import Ack, Data, Heartbeat, View


class Order:
    """State of one active view at one member. Vectors are indexed like ``view.members``."""

    def __init__(self, me: int, view: View, history: History) -> None:
        self.view = view
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
        data = Data(self.epoch, seq, self.clock, tuple(self.durable[self.mine]), payload)
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
        self._learn_durable(k, m.durable)
        return True

    def on_ack(self, peer: int, m: Ack | Heartbeat) -> None:
        """What a member says of its clock and log (in an Ack, or repeated in a Heartbeat)."""
        k = self.at[peer]
        if self.received[k] >= m.own:
            # [10-group: an acknowledgement must not overtake data lost with a broken link]
            self.known[k] = max(self.known[k], m.clock)
        self._learn_durable(k, m.durable)

    def _learn_durable(self, k: int, vector: tuple[int, ...]) -> None:
        if len(vector) == len(self.members):
            row = self.durable[k]
            for j, seq in enumerate(vector):
                if seq > row[j]:
                    row[j] = seq

    def on_durable(self, received: list[int]) -> None:
        """The log is on disk up to *received* (a copy of ``received`` when it was handed over)."""
        row = self.durable[self.mine]
        for j, seq in enumerate(received):
            row[j] = max(row[j], seq)

    def ack(self) -> Ack:
        """What we have to say now."""
        return Ack(self.epoch, self.clock, self.own, tuple(self.durable[self.mine]))

    def resend(self, peer: int, received: int, budget: int, out: Effects) -> None:
        """Send *peer* our messages after *received* again (lost with a broken link)."""
        vector = tuple(self.durable[self.mine])
        for entry in self.history.find(self.epoch, self.me, received + 1, self.own, budget):
            out.send.append((peer, Data(self.epoch, entry.seq, entry.clock, vector, entry.payload)))

    def deliver(self, out: Effects) -> None:
        """Deliver, in order, everything that is safe by now."""
        head = self.history.head
        while True:
            first: Entry | None = None
            for member in self.members:
                entry = head(self.epoch, member)
                if entry is not None and (
                    first is None or entry.clock < first.clock or (entry.clock == first.clock and member < first.sender)
                ):
                    first = entry
            if first is None:
                return
            j = self.at[first.sender]
            clock, seq = first.clock, first.seq
            for k in range(len(self.members)):
                if self.known[k] < clock or self.durable[k][j] < seq:
                    return
            self.history.deliver(first, out)
            self.delivered[j] = seq

    def undurable_at(self, peer: int) -> bool:
        """Whether *peer* has something of ours not durable yet."""
        return self.durable[self.at[peer]][self.mine] < self.own

    def validate(self) -> None:
        """Assert what always holds."""
        for j, member in enumerate(self.members):
            assert self.delivered[j] <= self.durable[self.mine][j] <= self.received[j], f"vectors of {member}"
            assert self.received[j] == self.history.top(self.epoch, member), f"log and order of {member}"
            for k in range(len(self.members)):
                assert self.durable[k][j] >= self.delivered[j], "delivered only what all have durable"
        assert self.known[self.mine] == self.clock

"""Pure. Parts of messages that must wait although they are ordered: some member has something that contradicts them.

A member that has a message durable says so, and its place in history follows; if it has to call back a lease first,
it says in the same frame which parts it *holds*. A part is *clear* when no member of the view holds it; then, and not
before, it may be executed. What is durable without a hold is never held later, and a part that is clear stays so.

Who collects the acknowledgements of all members knows what each holds. Who learns of a delivery from another member's
word (see vsync.order) goes by that member's word here, too: every frame tells which parts its sender has delivered
without knowing them to be clear. When a view becomes active everything before it is clear: its members say "flushed"
only when they hold nothing, and for whom it leaves out it has waited (View.hold_ms).

While nobody holds anything, which is nearly always, frames carry two empty lists, and nothing is kept here.
"""

from __future__ import annotations

from collections.abc import Callable

Part = tuple[int, int, int]
"""(sender, sequence number, number of the part): of a message of the view's epoch."""

_NONE: frozenset[Part] = frozenset()


class Holds:
    """What is held in one view, as one member knows it. Lists are indexed like ``view.members``."""

    def __init__(self, members: tuple[int, ...], mine: int) -> None:
        n = len(members)
        self._at = {member: k for k, member in enumerate(members)}
        self._mine = mine
        self.held = [_NONE] * n
        """What each member holds, by its own last word."""
        self.unclear = [_NONE] * n
        """What each has delivered and does not know to be clear, by its own last word; at ours: so it is."""
        self.said: list[tuple[int, ...]] = [()] * n
        """What each has delivered, by its last word."""
        self.any = False
        """Somebody holds something, or may."""

    def learn(self, k: int, held: tuple[Part, ...], unclear: tuple[Part, ...]) -> None:
        """Member *k* said so."""
        self.held[k] = frozenset(held)
        self.unclear[k] = frozenset(unclear)
        self._sum_up()

    def hold(self, parts: frozenset[Part]) -> bool:
        """These are held here. True: others that were held no longer are."""
        before = self.held[self._mine]
        self.held[self._mine] = parts
        self._sum_up()
        return not before <= parts

    def _sum_up(self) -> None:
        self.any = any(self.held) or any(self.unclear)

    def delivered(self, sender: int, seq: int, durable: list[list[int]]) -> frozenset[int]:
        """A message is delivered. Returns the parts of it that are not clear."""
        named = {p for parts in (*self.held, *self.unclear) for p in parts if p[0] == sender and p[1] == seq}
        wait = frozenset(p for p in named if not self._clear(p, durable))
        if wait:
            self.unclear[self._mine] |= wait
        return frozenset(part for _, _, part in wait)

    def cleared(self, durable: list[list[int]]) -> list[Part]:
        """Parts delivered before that are clear now, in order."""
        now = sorted(p for p in self.unclear[self._mine] if self._clear(p, durable))
        if now:
            self.unclear[self._mine] -= frozenset(now)
            self._sum_up()
        return now

    def _clear(self, part: Part, durable: list[list[int]]) -> bool:
        """Whether every member has let go of it: each says so, or one that has found out does."""
        j, seq = self._at[part[0]], part[1]
        if part in self.held[self._mine]:
            return False
        for k, said in enumerate(self.said):
            if k != self._mine and len(said) > j and said[j] >= seq and part not in self.unclear[k]:
                return True
        return all(durable[k][j] >= seq and part not in held for k, held in enumerate(self.held))

    def own(self) -> tuple[tuple[Part, ...], tuple[Part, ...]]:
        """What our frames say: (held, unclear)."""
        if not self.any:
            return (), ()
        return tuple(sorted(self.held[self._mine])), tuple(sorted(self.unclear[self._mine]))

    def validate(self, delivered: Callable[[int], int]) -> None:
        """Assert what always holds; *delivered*: how far each sender's messages are delivered here."""
        assert self.any == (any(self.held) or any(self.unclear))
        assert all(seq <= delivered(self._at[sender]) for sender, seq, _ in self.unclear[self._mine])

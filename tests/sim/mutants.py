"""Rules of the protocol, each switched off: the simulator has to notice every one of them, or it proves nothing.

A mutant is a change to the source text of one function, made in memory only.  One whose text is no longer found
fails loudly: it has to be written anew when the rule's code changes.

Not here are rules whose breach takes a rarer schedule than a few hundred seeds meet, as in the search that the rules
come from: a sealed member flushes nothing, grants no lease and answers no query, a restarted replica holds a full lease
time, a seal and a promise are durable before they are told, and back by bases. Each has its scene in tests/vsync.
"""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from tests.sim.processes import Replica
from vsync import change
from vsync.change import Change
from vsync.flush import Flush
from vsync.history import History
from vsync.order import Order
from vsync.register import Acceptor, Proposer
from vsync.transfer import Transfer


@dataclass(frozen=True)
class Edit:
    """In ``function`` of ``owner`` (a class or module), ``old`` becomes ``new``."""

    owner: Any
    function: str
    old: str
    new: str


@dataclass(frozen=True)
class Mutant:
    """A rule switched off by ``edits``; the run of ``caught_by`` notices it."""

    rule: str
    caught_by: int
    edits: tuple[Edit, ...]


@contextmanager
def in_force(mutant: Mutant) -> Iterator[None]:
    """The cores without the mutant's rule, until the block ends."""
    originals = []
    try:
        for edit in mutant.edits:
            original = getattr(edit.owner, edit.function)
            originals.append((edit, original))
            setattr(edit.owner, edit.function, _edited(edit, original))
        yield
    finally:
        for edit, original in reversed(originals):
            setattr(edit.owner, edit.function, original)


def _edited(edit: Edit, original: Any) -> Any:
    source = textwrap.dedent(inspect.getsource(original))
    assert source.count(edit.old) == 1, f"{edit.old!r} is in {edit.function} {source.count(edit.old)} times"
    made: dict[str, Any] = {}
    code = "from __future__ import annotations\n" + source.replace(edit.old, edit.new)
    exec(compile(code, f"<{edit.function}, edited>", "exec"), vars(sys.modules[original.__module__]), made)
    return made[edit.function]


MUTANTS: Final = (
    Mutant(
        "a message is acknowledged only when it is durable",
        1,
        (Edit(Order, "on_data", "self.received[k] = m.seq", "self.received[k] = self.durable[self.mine][k] = m.seq"),),
    ),
    Mutant(
        "a message is delivered only when it is durable at every member",
        0,
        (Edit(Order, "deliver", " or self.durable[k][j] < seq", ""),),
    ),
    Mutant(
        "a message is delivered only when no member can send an earlier one",
        32,
        (Edit(Order, "deliver", "self.known[k] < clock or ", ""),),
    ),
    Mutant(
        "an acknowledgement does not overtake lost data",
        32,
        (Edit(Order, "on_ack", "if self.received[k] >= m.own:", "if True:"),),
    ),
    Mutant(
        "a decided view drops what lies beyond its cut",
        3,
        (Edit(History, "learn", "while queue and cut_off(view, epoch, sender, queue[-1].seq):", "while False:"),),
    ),
    Mutant(
        "a query waits for what is in the log",
        1,
        (Edit(Replica, "readable", "key is None or e.payload[-1] == key", "False"),),
    ),
    Mutant(
        "a member left out may read until its leases have run out",
        50,
        (Edit(change, "plan_view", "cut_pairs, hold, promises)", "cut_pairs, 0)"),),
    ),
    Mutant(
        "a member that does not answer is not one that has not flushed",
        3,
        (Edit(change, "plan_view", 'if not sealed:\n', 'if not sealed and base == 0:\n'),),
    ),
    Mutant(
        "a view is active when every member has flushed it",
        5,
        (Edit(Flush, "waits_until", "not self.flushed_by.issuperset(view.members)", "core.me not in self.flushed_by"),),
    ),
    Mutant(
        "the events of views that were never active here are history, too",
        0,
        (Edit(History, "finish", "for v in self.chain(view):", "for v in self.chain(view)[-1:]:"),),
    ),
    Mutant(
        "a proposer adopts what may have been decided",
        66,
        (Edit(Proposer, "on_promise", "if accepted:", "if False:"),),
    ),
    Mutant(
        "a voter accepts nothing below its promise",
        93,
        (Edit(Acceptor, "on_accept", "if state.promised is not None and m.ballot < state.promised:", "if False:"),),
    ),
    Mutant(
        "a refused proposer learns the higher ballot",
        77,
        (Edit(Change, "on_promise", "self._round = max(self._round, m.ballot[0])", "pass"),),
    ),
    Mutant(
        "a learner that asks again goes on with its stay",
        0,
        (Edit(Transfer, "on_join", "known.since if known is not None else now", "now"),),
    ),
)

"""Rules of the protocol, each switched off: the simulator has to notice every one of them, or it proves nothing.

A mutant is a change to the source text of one function, made in memory only.  One whose text is no longer found
fails loudly: it has to be written anew when the rule's code changes.  Numbers in brackets are those of the search
that the rules come from (design of the group layer): so many of so many schedules broke a promise without the rule.
"""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from daemon.acquaintances import Acquaintances
from tests.sim.replica import Replica
from vsync import change, membership
from vsync.change import Change
from vsync.core import Core
from vsync.flush import Flush
from vsync.history import History
from vsync.holds import Holds
from vsync.leases import Leases
from vsync.machine import Machine
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
    """A rule switched off by ``edits``."""

    name: str
    rule: str
    edits: tuple[Edit, ...]
    profiles: tuple[str, ...] = ()
    """It is hunted in runs of these profiles only: they are after its rule. None named: in all runs."""
    holding: bool = False
    """It is hunted in runs only in which clients keep what contradicts messages."""


@contextmanager
def in_force(mutant: Mutant) -> Iterator[None]:
    """The cores without the mutant's rule, until the block ends."""
    originals = []
    try:
        for edit in mutant.edits:
            original = inspect.getattr_static(edit.owner, edit.function)
            originals.append((edit, original))
            setattr(edit.owner, edit.function, _edited(edit, original))
        yield
    finally:
        for edit, original in reversed(originals):
            setattr(edit.owner, edit.function, original)


def _edited(edit: Edit, original: Any) -> Any:
    function = original.fget if isinstance(original, property) else original
    source = _SOURCES.get(function) or textwrap.dedent(inspect.getsource(function))
    assert source.count(edit.old) == 1, f"{edit.old!r} is in {edit.function} {source.count(edit.old)} times"
    made: dict[str, Any] = {}
    source = source.replace(edit.old, edit.new)
    code = "from __future__ import annotations\n" + source
    exec(compile(code, f"<{edit.function}, edited>", "exec"), vars(sys.modules[function.__module__]), made)
    edited = made[edit.function]
    _SOURCES[edited.fget if isinstance(edited, property) else edited] = source
    return edited


_SOURCES: dict[Any, str] = {}
"""Source text of edited functions, for a second edit of the same one."""

MUTANTS: Final = (
    # Total order inside a view.
    Mutant(
        "acknowledge-before-flush",
        "a message is acknowledged only when it is durable",
        (Edit(Order, "on_data", "self.received[k] = m.seq", "self.received[k] = self.durable[self.mine][k] = m.seq"),),
    ),
    Mutant(
        "deliver-before-stable",
        "a message is delivered only when it is durable at every member",
        (Edit(Order, "deliver", " or self.durable[k][j] < seq", ""),),
    ),
    Mutant(
        "fast-delivery-as-printed",
        "a message is delivered only when no member can send an earlier one: the thesis's figure 4.10 has no clocks "
        "[145/2000]",
        (Edit(Order, "deliver", "self.known[k] < clock or ", ""),),
    ),
    Mutant(
        "acknowledgement-overtakes-data",
        "what is known of a member's clock moves only when all it had sent by then is here [213/5146]",
        (Edit(Order, "on_ack", "if self.received[k] >= m.own:", "if True:"),),
        ("general", "in the middle", "learners"),
    ),
    Mutant(
        "durable-taken-for-delivered",
        "what one member has durable is not safe, only what it has delivered is",
        (
            Edit(Order, "_learn", "if delivered[j] > stable[j]:", "if seq > stable[j]:"),
            Edit(Order, "_learn", "stable[j] = delivered[j]", "stable[j] = seq"),
            Edit(Order, "validate", "assert self.stable[j] <=", "assert True or self.stable[j] <="),
        ),
    ),
    # Reads.
    Mutant(
        "query-ignores-the-log",
        "a query waits for what is in the log and conflicts with it",
        (Edit(Replica, "_conflicts", "if query.key in keys and k in query.arrived", "if False"),),
    ),
    Mutant(
        "read-after-exclusion",
        "a query is answered only while every other member's promise runs",
        (Edit(Machine, "may_read", "and self.core.leases.valid(order.peers, now)", ""),),
        ("readers cut off", "sleepers", "certificates"),
    ),
    Mutant(
        "read-while-sealed",
        "from seal to activation queries wait [5/6749]",
        (Edit(Machine, "may_read", "order = self.core.active", "order = self.core.order"),),
        ("leaving",),
    ),
    Mutant(
        "lease-100-ms-too-long",
        "a holder stops reading before its granter stops waiting",
        (Edit(Leases, "valid_until", "span = limits.LEASE - limits.LEASE_MARGIN", "span = limits.LEASE + 100_000"),),
        ("readers cut off",),
    ),
    Mutant(
        "lease-without-margin",
        "clocks drift, so the holder stops a margin earlier",
        (Edit(Leases, "valid_until", "span = limits.LEASE - limits.LEASE_MARGIN", "span = limits.LEASE"),),
        ("readers cut off",),
    ),
    Mutant(
        "no-hold",
        "a view waits until those it leaves out may read no more",
        (Edit(change, "plan_view", "cut_pairs, hold, promises)", "cut_pairs, 0)"),),
        ("readers cut off", "sleepers", "certificates"),
    ),
    Mutant(
        "inherited-hold-forgotten",
        "what a view owes to those it leaves out is owed by the views after it",
        (
            Edit(Core, "observe", "for peer, incarnation, left in view.owed:",
                 "self.leases._owed.clear()\n    for peer, incarnation, left in view.owed:"),
            Edit(Leases, "promises", "ends = dict(self._owed)", "ends = {}"),
        ),
        ("amnesia", "readers cut off"),
    ),
    Mutant(
        "restart-without-hold",
        "a restarted member does not know whom it promised what, and holds a full lease time",
        (Edit(Core, "_owe_for_earlier_life", "UNKNOWN, now + limits.LEASE, now)", "UNKNOWN, now, now)"),),
        ("amnesia",),
    ),
    Mutant(
        "grant-while-sealed",
        "a sealed member grants no lease",
        (Edit(Machine, "_on_heartbeat", "order = core.active", "order = core.order"),),
        ("late grants",),
    ),
    Mutant(
        "certificate-of-another-life",
        "a certificate of death is about one incarnation",
        (
            Edit(Leases, "bound", "if incarnation <= dead", "if dead >= 0"),
            Edit(change, "plan_view", "if incarnation <= certified", "if certified >= 0"),
        ),
        ("certificates",),
    ),
    # The seal.
    Mutant(
        "seal-not-durable",
        "the seal survives a restart [7/4602]",
        (Edit(Machine, "_on_seal", "core.out.records.append(Sealed(m.epoch))", "pass"),),
        ("seals",),
    ),
    Mutant(
        "seal-reported-early",
        "the seal is durable before it is reported",
        (Edit(Machine, "_on_seal", "core.after(peer, self._report(m.epoch, now))",
              "core.send(peer, self._report(m.epoch, now))"),),
        ("seals",),
    ),
    Mutant(
        "seal-ignored",
        "a sealed member multicasts, acknowledges and reads no more",
        (Edit(Machine, "_on_seal", "core.seal(m.epoch, now)", "pass"),),
    ),
    Mutant(
        "flush-while-sealed",
        "a sealed member flushes and activates nothing below its seal [382/4817]",
        (
            Edit(Flush, "tick", " or core.sealed > view.epoch", ""),
            Edit(Flush, "waits_until", " or core.sealed > view.epoch", ""),
            Edit(Flush, "on_durable", "if core.sealed <= core.newest.epoch:", "if True:"),
        ),
    ),
    Mutant(
        "epoch-reused",
        "a restarted process never resumes an epoch",
        (
            Edit(Core, "__init__", "max(durable.sealed, max(self.flushed, default=-1) + 1,", "max(durable.sealed,"),
            Edit(Flush, "__init__", "self.flushed_by: set[int] = set()",
                 "self.flushed_by: set[int] = {core.me} if core.newest.epoch in core.flushed else set()"),
        ),
    ),
    # Base, members, decision.
    Mutant(
        "absent-counts-as-not-flushed",
        "a member that does not answer is not one that has not flushed [153/4964]",
        (Edit(change, "plan_view", "if not sealed:\n", "if not sealed and base == 0:\n"),),
    ),
    Mutant(
        "base-never-flushed",
        "a base is a view that somebody who answered has flushed",
        (Edit(change, "plan_view", "flushed = [r for r in sealed if base in reports[r].flushed]", "flushed = sealed"),),
        ("bases",),
    ),
    Mutant(
        "accepted-value-not-adopted",
        "a proposer adopts what may have been decided",
        (Edit(Proposer, "on_promise", "if accepted:", "if False:"),),
        ("proposers",),
    ),
    Mutant(
        "promise-broken",
        "a voter accepts nothing below its promise",
        (Edit(Acceptor, "on_accept", "if state.promised is not None and m.ballot < state.promised:", "if False:"),),
        ("crossings",),
    ),
    Mutant(
        "refusal-not-learned",
        "a refused proposer learns the higher ballot",
        (Edit(Change, "on_promise", "self._round = max(self._round, m.ballot[0])", "pass"),),
        ("old hands",),
    ),
    Mutant(
        "ballot-reused",
        "ballots are never used again after a restart",
        (
            Edit(Change, "_ballot", "(self._round, core.me, core.incarnation)", "(self._round, core.me, 0)"),
            Edit(Acceptor, "on_prepare", "m.ballot <= state.promised", "m.ballot < state.promised"),
        ),
        ("ballots", "proposers"),
    ),
    Mutant(
        "learner-votes",
        "a learner is no voter",
        (Edit(Change, "_ballot", "core.incarnation), core.newest.voters, view)",
              "core.incarnation), tuple(sorted({*core.newest.voters, *core.others, core.me})), view)"),),
        ("administrators",),
    ),
    Mutant(
        "half-is-a-majority",
        "half of an even number of voters decides nothing",
        (Edit(Proposer, "_majority", "len(self.voters) // 2 + 1", "(len(self.voters) + 1) // 2"),),
    ),
    Mutant(
        "two-voters-at-once",
        "at most one voter changes in a view",
        (Edit(membership, "next_voters", "[{*now, v} for v in sorted(set(wanted) - set(now)) if v in ready]",
              "[{v for v in wanted if v in ready or v in now}]"),),
        ("administrators",),
    ),
    Mutant(
        "another-disk-unnoticed",
        "a voter with another disk is another voter",
        (Edit(Acquaintances, "judge", "if known is not None and known != uuid:", "if False:"),),
        ("disks",),
    ),
    # Flush and activation.
    Mutant(
        "beyond-the-cut",
        "a decided view drops what lies beyond its cut, and all epochs in between [71/4783]",
        (Edit(History, "learn", "while queue and cut_off(view, epoch, sender, queue[-1].seq):", "while False:"),),
    ),
    Mutant(
        "no-flush-barrier",
        "a view is active when every member has flushed it",
        (Edit(Flush, "waits_until", "not self.flushed_by.issuperset(view.members)", "core.me not in self.flushed_by"),),
    ),
    Mutant(
        "views-without-event",
        "the events of views that were flushed and never active here are history, too [97/4859]",
        (Edit(History, "finish", "for v in self.chain(view):", "for v in self.chain(view)[-1:]:"),),
    ),
    Mutant(
        "rest-after-the-event",
        "the rest of the old view comes before the event of the new one",
        (
            Edit(History, "finish", "for v in self.chain(view):",
                 "for v in self.chain(view):\n        n = len(out.history)"),
            Edit(History, "finish", "self.deliver_view(v, out)",
                 "self.deliver_view(v, out)\n        late = out.history[n:]\n"
                 "        out.history[n:] = [ViewEvent(late[0].index, v)] + [Delivered(d.index + 1, d.entry)"
                 " for d in late[:-1]]"),
        ),
    ),
    # What clients keep.
    Mutant(
        "execute-before-clear",
        "what a member holds is executed nowhere",
        (Edit(Order, "deliver", "if self.holds.any else _NOTHING", "if False else _NOTHING"),),
        holding=True,
    ),
    Mutant(
        "own-holds-only",
        "what another member holds is not clear",
        (
            Edit(Holds, "delivered", "(*self.held, *self.unclear)", "(self.held[self._mine],)"),
            Edit(Holds, "_clear", "and part not in held for", "for"),
        ),
        holding=True,
    ),
    Mutant(
        "holds-of-the-delivered-forgotten",
        "whoever learns of a delivery from another member learns what of it is not clear",
        (Edit(Holds, "_clear", "and part not in self.unclear[k]", ""),),
        holding=True,
    ),
    Mutant(
        "overtaken-word",
        "what a member says it holds does not fall behind what it has said before",
        (Edit(Order, "_learn", "if any(map(lt, durable, row)) or", "if False and"),),
        holding=True,
    ),
    Mutant(
        "flushed-while-holding",
        "who holds something has not flushed the view to come",
        (
            Edit(Machine, "_durable", "if not core.holding:", "if True:"),
            Edit(Machine, "_hold", "core.holding = bool(parts)", "core.holding = False"),
        ),
        holding=True,
    ),
    Mutant(
        "lent-by-those-left-out",
        "a view waits for the clients of those it leaves out",
        (Edit(change, "plan_view", "max(m.hold_ms, m.lent_ms)", "m.hold_ms"),),
        ("administrators",),
        holding=True,
    ),
    Mutant(
        "lent-by-the-dead",
        "a certificate of death is no word of what the dead has lent",
        (Edit(Leases, "died", "now + self.lent", "now"),),
        ("certificates",),
        holding=True,
    ),
    Mutant(
        "lent-by-members",
        "what a member has lent is owed by the view after that which leaves it out without having been active",
        (Edit(change, "plan_view", "if reports[r].lent_ms:", "if False:"),),
        ("late grants", "amnesia", "readers cut off"),
        holding=True,
    ),
    Mutant(
        "lent-by-an-earlier-life",
        "a member that was started again has not flushed before what its earlier life lent has run out",
        (Edit(Core, "heartbeat", "if now >= self.lent_before_until else -1", ""),),
        ("learners",),
        holding=True,
    ),
    Mutant(
        "unnamed-ends-with-the-view",
        "what is owed to a member without a name ends with the first promise to it by name, not with the view",
        (Edit(Leases, "activate", "self.held.clear()",
              "self.held.clear()\n    self._owed = {k: v for k, v in self._owed.items() if k[1] != UNKNOWN}"),),
        ("loans",),
        holding=True,
    ),
    # What is forgotten.
    Mutant(
        "chain-forgotten",
        "the views that lead from the state to the log are kept, however many they are",
        (Edit(Core, "forget_views", "self.history.forget(tips)", "self.history.forget([])"),),
    ),
    # State transfer.
    Mutant(
        "reply-table-not-in-snapshot",
        "a snapshot carries the reply table",
        (Edit(Replica, "_snapshot_came", "self.state = state.copy()",
              "self.state = state.copy()\n    self.state.replies.clear()"),),
        ("learners", "administrators"),
    ),
    Mutant(
        "learner-starts-over",
        "a learner that asks again goes on with its stay",
        (Edit(Transfer, "on_join", "known.since if known is not None else now", "now"),),
    ),
)  # fmt: skip

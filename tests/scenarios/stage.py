"""A few production machines on a stage where nothing happens by chance: every message takes a millisecond, every flush
another, and what is to go wrong is said in the dialogue.

A dialogue is a text of blocks: a command, a line ``----``, what followed, an empty line.  Lines that begin with ``#``
are the story.  Commands:

    replicas 1 2 3 witnesses 101     a new cluster, waiting for its first active view
    put 1 apple                      a client asks replica 1 to put "apple"
    get 3                            a client asks replica 3 for what was put last
    change 1                         replica 1 starts a view change, because an administrator said so
    run 50                           50 ms go by
    until active 1 2                 time goes by until a view of exactly these is active at all of them
    until sealed 2                   ... until replica 2 is sealed below a view it does not know
    until knows 2 3                  ... until replica 2 knows the view of epoch 3
    cut 1 2, lose 1 2, heal          a cut between two; what is under way between them is lost; no cuts any more
    crash 2, start 2, power cut      what was not flushed is lost; start again
    pause 2, wake 2                  a process sleeps with its input queued, and wakes to it
    disk 2 stuck, disk 2 fine        flushes do not come back; they do
    roster 1 2 3 voters 1 2 101      the ordered state has another roster, and all that run have applied it
    leave 2, died 2, force 1         a planned stop; the watchdog's certificate of death; the last resort
    status                           where everybody is
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import combinations
from random import Random
from typing import Any, Final

from vsync import effects as ev
from vsync.effects import Delivered, Effects, Event, ViewEvent
from vsync.machine import Machine
from vsync.records import Decided, Durable, Flushed, Record, Started
from vsync.view import START, Position, describe_epoch, genesis
from vsync.voter import Witness
from wire.group import (
    Accept,
    Accepted,
    Ack,
    Content,
    Data,
    Feed,
    FeedAck,
    Fetch,
    Grant,
    Heartbeat,
    Join,
    Prepare,
    Promise,
    Seal,
    SealReport,
    Stored,
    View,
    Views,
)

MS: Final = 1000
UNTIL_MS: Final = 20_000


class Actor:
    """One process and its disk."""

    def __init__(self, me: int, first: list[Record]) -> None:
        self.me = me
        self.disk = list(first)
        self.unwritten: list[tuple[int, list[Record], list[tuple[int, Any]]]] = []
        self.stuck = False
        self.machine: Machine | None = None
        self.witness: Witness | None = None
        self.incarnation = 0
        self.paused = False
        self.inbox: deque[Callable[[], None]] = deque()
        self.put: str | None = None
        self.waiting: list[bytes] = []
        self.committed: tuple[Position, str | None] = (START, None)

    @property
    def runs(self) -> bool:
        return self.machine is not None or self.witness is not None


class Stage:
    """Runs a dialogue."""

    def __init__(self) -> None:
        self.now = 0
        self._said: list[str] = []
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._planned = 0
        self._actors: dict[int, Actor] = {}
        self._cuts: set[frozenset[int]] = set()
        self._links: dict[frozenset[int], int] = {}
        """Standing connections, with a number that changes when one breaks."""
        self._connections = 0
        self._questions: list[tuple[int, int]] = []
        self._roster: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
        self._items: dict[int, str] = {}
        """What history has, by index: one history."""

    def perform(self, command: str) -> str:
        """Carry out one command; returns what followed."""
        self._said = []
        words = command.split()
        getattr(self, f"_do_{words[0]}")(*words[1:])
        return "\n".join(self._said) or "(nothing)"

    # -- commands

    def _do_replicas(self, *words: str) -> None:
        at = words.index("witnesses") if "witnesses" in words else len(words)
        replicas = tuple(map(int, words[:at]))
        witnesses = tuple(map(int, words[at + 1 :]))
        first = genesis(replicas, witnesses)
        self._roster = (first.members, first.voters)
        for replica in replicas:
            self._actors[replica] = Actor(replica, [Decided(first), Flushed(0)])
        for witness in witnesses:
            self._actors[witness] = Actor(witness, [])
        quiet, self._said = self._said, []
        for who in self._actors:
            self._start(who)
        self._until(lambda: self._active(replicas))
        self._said = quiet
        self._do_status()

    def _do_put(self, who: str, what: str) -> None:
        actor = self._actors[int(who)]
        payload = what.encode()
        actor.waiting.append(payload)
        if actor.machine is not None and not actor.paused and actor.machine.may_submit:
            self._say(f"{who} multicasts {what}")
            self._step(actor, ev.Submit(payload))
        else:
            self._say(f"{who} cannot take it now")

    def _do_get(self, who: str) -> None:
        self._ask(self._actors[int(who)])

    def _do_change(self, who: str) -> None:
        self._step(self._actors[int(who)], ev.ChangeView("an administrator says so"))

    def _do_run(self, ms: str) -> None:
        self._run(self.now + int(ms) * MS)

    def _do_until(self, what: str, *words: str) -> None:
        ids = tuple(map(int, words))
        match what:
            case "active":
                self._until(lambda: self._active(ids))
            case "sealed":
                core = self._core(ids[0])
                self._until(lambda: core.sealed > core.newest.epoch)
            case "knows":
                core = self._core(ids[0])
                self._until(lambda: core.newest.epoch >= ids[1])
            case _:
                raise AssertionError(f"until {what}")

    def _do_cut(self, a: str, b: str) -> None:
        self._cuts.add(frozenset((int(a), int(b))))
        self._break(int(a), int(b))

    def _do_lose(self, a: str, b: str) -> None:
        pair = frozenset((int(a), int(b)))
        if pair in self._links:
            self._connections += 1
            self._links[pair] = self._connections

    def _do_heal(self) -> None:
        self._cuts.clear()
        for who in self._actors:
            self._connect(who)

    def _do_crash(self, who: str) -> None:
        self._crash(self._actors[int(who)])

    def _do_start(self, *who: str) -> None:
        for each in who:
            self._actors.setdefault(int(each), Actor(int(each), []))
            self._start(int(each))

    def _do_power(self, _: str) -> None:
        for actor in self._actors.values():
            if actor.runs:
                self._crash(actor, told=False)
        self._links.clear()

    def _do_pause(self, who: str) -> None:
        self._actors[int(who)].paused = True

    def _do_wake(self, who: str) -> None:
        actor = self._actors[int(who)]
        actor.paused = False
        while actor.inbox:
            actor.inbox.popleft()()
        self._step(actor, ev.Tick())

    def _do_disk(self, who: str, how: str) -> None:
        actor = self._actors[int(who)]
        actor.stuck = how == "stuck"
        if not actor.stuck and actor.unwritten:
            self._plan(MS, lambda: self._flush(actor))

    def _do_roster(self, *words: str) -> None:
        at = words.index("voters")
        self._roster = (tuple(map(int, words[:at])), tuple(map(int, words[at + 1 :])))
        for actor in self._actors.values():
            if actor.machine is not None:
                self._step(actor, ev.Roster(*self._roster))

    def _do_leave(self, who: str) -> None:
        self._step(self._actors[int(who)], ev.Leave())

    def _do_died(self, who: str) -> None:
        incarnation = self._actors[int(who)].incarnation
        for actor in self._actors.values():
            if actor.machine is not None and actor.me != int(who):
                self._step(actor, ev.Died(int(who), incarnation))

    def _do_force(self, who: str) -> None:
        self._items.clear()  # another history, from some item on: that is what it is for
        self._step(self._actors[int(who)], ev.ForceView())

    def _do_status(self) -> None:
        for actor in self._actors.values():
            if actor.machine is not None:
                core = actor.machine.core
                doing = f"sealed below {describe_epoch(core.sealed)}"
                if actor.machine.active_view is not None:
                    doing = f"active in {describe_epoch(core.newest.epoch)}"
                view = core.newest
                place = "outside" if core.outside else "member"
                self._say(
                    f"{actor.me}: {doing}, knows view {describe_epoch(view.epoch)} of {list(view.members)} ({place}), "
                    f"index {core.history.index}, has {actor.put or 'nothing'}{', paused' if actor.paused else ''}"
                )
            elif actor.witness is None:
                self._say(f"{actor.me}: down")

    # -- clients

    def _ask(self, actor: Actor) -> None:
        def ask() -> None:
            machine = actor.machine
            if machine is None:
                self._say(f"{actor.me} is down and says nothing")
            elif not machine.may_read(self.now):
                why = "lease" if machine.active_view is not None else "view change"
                self._say(f"{actor.me} does not answer: {why if not machine.core.outside else 'left out'}")
            elif machine.core.history.undelivered():
                self._say(f"{actor.me} does not answer yet: {len(machine.core.history.undelivered())} in the log")
            else:
                self._say(f"{actor.me} answers: {actor.put or 'nothing'}")

        self._input(actor, ask)

    # -- the world

    def _say(self, text: str) -> None:
        self._said.append(f"{self.now / MS:8.1f}  {text}")

    def _plan(self, delay: int, what: Callable[[], None]) -> None:
        self._planned += 1
        self._events.append((self.now + delay, self._planned, what))
        self._events.sort(key=lambda e: e[:2])

    def _run(self, end: int) -> None:
        while True:
            actors = [a for a in self._actors.values() if a.machine is not None and not a.paused]
            tick = min(((a.machine.next_deadline(), a.me) for a in actors if a.machine is not None), default=(end, 0))
            tick = (max(tick[0], self.now), tick[1])
            if self._events and self._events[0][0] <= tick[0]:
                if self._events[0][0] > end:
                    break
                self.now, _, what = self._events.pop(0)
                what()
            elif tick[0] < end:
                self.now = tick[0]
                self._step(self._actors[tick[1]], ev.Tick())
                machine = self._actors[tick[1]].machine
                if machine is not None and machine.next_deadline() <= self.now:
                    self.now += 200
            else:
                break
        self.now = max(self.now, end)

    def _until(self, reached: Callable[[], bool]) -> None:
        end = self.now + UNTIL_MS * MS
        while not reached():
            assert self.now < end, "it never happened:\n" + "\n".join(self._said)
            self._run(self.now + MS)

    def _core(self, who: int) -> Any:
        machine = self._actors[who].machine
        assert machine is not None, f"{who} is down"
        return machine.core

    def _active(self, ids: tuple[int, ...]) -> bool:
        machines = [self._actors[i].machine for i in ids]
        views = {m.active_view for m in machines if m is not None and m.core.newest.members == tuple(sorted(ids))}
        return len(views) == 1 and None not in views and None not in machines and all(
            m is not None and m.active_view in views for m in machines
        )

    def _connect(self, who: int) -> None:
        for a, b in combinations(sorted(self._actors), 2):
            pair = frozenset((a, b))
            x, y = self._actors[a], self._actors[b]
            both = x.runs and y.runs and (x.machine is not None or y.machine is not None)
            if who in pair and both and pair not in self._links and pair not in self._cuts:
                self._connections += 1
                self._links[pair] = self._connections
                for end, peer in ((a, b), (b, a)):
                    self._tell(end, ev.LinkUp(peer))

    def _break(self, a: int, b: int) -> None:
        if self._links.pop(frozenset((a, b)), None) is not None:
            for end, peer in ((a, b), (b, a)):
                self._tell(end, ev.LinkDown(peer))

    def _tell(self, who: int, event: Event) -> None:
        actor = self._actors[who]
        if actor.machine is not None:
            self._input(actor, lambda: self._step(actor, event))

    def _input(self, actor: Actor, what: Callable[[], None]) -> None:
        if actor.paused:
            actor.inbox.append(what)
        else:
            what()

    def _send(self, sender: int, peer: int, message: Any) -> None:
        pair = frozenset((sender, peer))
        number = self._links.get(pair)
        shown = show(message)
        if number is None:
            return
        if shown is not None:
            self._say(f"{sender} -> {peer}  {shown}")

        def arrive() -> None:
            if self._links.get(pair) == number:
                actor = self._actors[peer]
                if actor.machine is not None:
                    self._input(actor, lambda: self._step(actor, ev.Received(sender, message)))
                elif actor.witness is not None:
                    self._carry_out(actor, actor.witness.step(sender, message))

        self._plan(MS, arrive)

    def _start(self, who: int) -> None:
        actor = self._actors[who]
        actor.incarnation += 1
        actor.disk.append(Started(actor.incarnation))
        durable = Durable()
        for record in actor.disk:
            durable.apply(record)
        if who > 100:
            actor.witness = Witness(durable)
        else:
            known = tuple(sorted({*self._roster[0], who}))
            actor.put = actor.committed[1]
            actor.machine = Machine(who, known, durable, actor.committed[0], rng=Random(who), now=self.now)
            self._step(actor, ev.Roster(*self._roster))
        self._connect(who)

    def _crash(self, actor: Actor, told: bool = True) -> None:
        self._say(f"{actor.me} crashes, {sum(len(r) for _, r, _ in actor.unwritten)} records were not on disk")
        actor.machine = actor.witness = None
        actor.paused = False
        actor.inbox.clear()
        actor.unwritten.clear()
        actor.waiting.clear()
        for other in self._actors:
            if told and other != actor.me:
                self._break(actor.me, other)

    def _step(self, actor: Actor, event: Event) -> None:
        if actor.machine is None or (actor.paused and not isinstance(event, ev.Tick)):
            return
        out = actor.machine.step(event, self.now)
        actor.machine.validate()
        self._carry_out(actor, out)

    def _carry_out(self, actor: Actor, out: Effects) -> None:
        for note in out.notes:
            self._say(f"{actor.me}: {note}")
        if out.records or out.after:
            actor.unwritten.append((out.ticket, out.records, out.after))
            if len(actor.unwritten) == 1 and not actor.stuck:
                self._plan(MS, lambda: self._flush(actor))
        for peer, message in out.send:
            self._send(actor.me, peer, message)
        for item in out.history:
            self._deliver(actor, item)
        for entry in out.dropped:
            self._say(f"{actor.me} drops {entry.payload.decode()}, beyond the cut")
        for peer in out.snapshot_for:
            self._snapshot(actor, peer)

    def _deliver(self, actor: Actor, item: Delivered | ViewEvent) -> None:
        if isinstance(item, ViewEvent):
            what = f"view {describe_epoch(item.view.epoch)} of {list(item.view.members)}"
        else:
            what = item.entry.payload.decode()
            actor.put = what
        assert self._items.setdefault(item.index, what) == what, f"two histories at {item.index}"
        told = ""
        if isinstance(item, Delivered) and item.entry.payload in actor.waiting:
            actor.waiting.remove(item.entry.payload)
            told = ", and answers its client"
        self._say(f"{actor.me} delivers {item.index}: {what}{told}")

    def _flush(self, actor: Actor) -> None:
        if actor.stuck or not actor.unwritten or not actor.runs:
            return
        done, actor.unwritten = actor.unwritten, []
        for ticket, records, after in done:
            actor.disk.extend(records)
            for peer, message in after:
                if peer == actor.me:
                    self._step(actor, ev.Received(peer, message))
                else:
                    self._send(actor.me, peer, message)
            if actor.machine is not None:
                self._input(actor, lambda t=ticket: self._step(actor, ev.DurableUpTo(t)))  # type: ignore[misc]

    def _snapshot(self, feeder: Actor, peer: int) -> None:
        assert feeder.machine is not None
        position, put = feeder.machine.position(), feeder.put
        views = feeder.machine.transfer.views_for_snapshot()

        def arrive() -> None:
            actor = self._actors[peer]
            if actor.machine is not None and actor.machine.may_install(position.pack()):
                self._say(f"{peer} installs a snapshot: index {position.index}, {put or 'nothing'}")
                actor.put, actor.committed = put, (position, put)
                self._step(actor, ev.SnapshotInstalled(position.pack(), views))

        self._plan(20 * MS, arrive)
        self._plan(20 * MS, lambda: self._step(feeder, ev.SnapshotSent(peer)))


def show(m: Any) -> str | None:
    """A message as people read it; None for those that say nothing new."""
    match m:
        case Heartbeat() | Grant() | Ack() | FeedAck() | Stored():
            return None
        case Data():
            return f"Data {describe_epoch(m.epoch)}.{m.seq} clock {m.clock}: {m.payload.decode()}"
        case Seal():
            return f"Seal {describe_epoch(m.epoch)}"
        case SealReport():
            received = {describe_epoch(e): dict(tops) for e, tops in m.received if tops}
            owed = "".join(f", {p} may read {ms} ms" for p, _, ms in m.promises)
            return f"SealReport {describe_epoch(m.epoch)}: flushed {list(m.flushed)}, has {received}{owed}"
        case Prepare():
            return f"Prepare {describe_epoch(m.epoch)}, ballot {m.ballot}"
        case Promise():
            accepted = ", has accepted a view" if m.accepted else ""
            return f"Promise {describe_epoch(m.epoch)}, ballot {m.ballot}{accepted}"
        case Accept():
            return f"Accept {describe_epoch(m.epoch)}, ballot {m.ballot}: {show_view(m.value)}"
        case Accepted():
            return f"Accepted {describe_epoch(m.epoch)}, ballot {m.ballot}"
        case Views():
            return f"Views {[describe_epoch(v[1]) for v in m.views]}"
        case Fetch():
            return "Fetch " + ", ".join(f"{describe_epoch(e)}.{a}-{b} of {s}" for e, s, a, b in m.wants)
        case Content():
            return f"Content: {len(m.entries)} entries"
        case Join():
            return f"Join from index {m.index}{', without a state' if m.empty else ''}"
        case Feed():
            return f"Feed from index {m.index}: {len(m.items)} items"
    return str(m)


def show_view(v: View) -> str:
    cut = f", cut {dict(v.cut)}" if v.cut else ""
    owed = "".join(f", {p} may read {ms} ms" for p, _, ms in v.owed)
    return f"members {list(v.members)}, base {describe_epoch(max(v.base, 0))}{cut}{owed}"


def dialogue(text: str) -> str:
    """The dialogue *text* with what follows each command as it is now."""
    stage = Stage()
    out: list[str] = []
    lines = text.splitlines()
    at = 0
    while at < len(lines):
        line = lines[at]
        at += 1
        if not line.strip() or line.startswith("#"):
            out.append(line)
            continue
        out += [line, "----", stage.perform(line)]
        if at < len(lines) and lines[at] == "----":
            at += 1
            while at < len(lines) and lines[at].strip():
                at += 1
    return "\n".join(out) + "\n"

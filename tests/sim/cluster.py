"""One run: a cluster as its setup says, clients, a safety phase with faults, then a liveness phase without."""

from __future__ import annotations

from collections import deque
from random import Random
from typing import Any, Final

from daemon.acquaintances import Acquaintances
from tests.sim.checkers import Checkers, Violation
from tests.sim.clients import Administrator, Client, Lines, Reader
from tests.sim.clock import MS, SECOND, Scheduler, SkewedClock
from tests.sim.faults import Faults
from tests.sim.holding import Part
from tests.sim.network import Network, pairs_of
from tests.sim.processes import Process, Snapshot, WitnessProcess
from tests.sim.replica import Replica
from tests.sim.setup import Setup, setup_of
from tests.sim.state import Roster
from vsync import limits
from vsync.effects import Died, Effects, ForceView, Leave
from vsync.records import AcceptedValue, Decided, Flushed
from vsync.view import describe_epoch, generation_of, genesis

CONVERGE_WITHIN: Final = 60 * SECOND
"""A healed cluster is one view of all replicas again after this at the latest: a learner whose stays have failed
waits up to 30 s before it is taken in, and the waits between attempts double up to 4 s."""
PROGRESS_WITHIN: Final = 30 * SECOND
"""A majority that is reachable goes on without the others after this at the latest."""
ANSWER_WITHIN: Final = 5 * SECOND
STEPS_MAX: Final = 400_000
TRACE_TAIL: Final = 150
WITNESSES: Final = 100
"""Witnesses have numbers above."""
BOUNDS_EVERY: Final = 50 * MS


class _Journal:
    """A simulated disk, as daemon.acquaintances looks at a journal."""

    def __init__(self, process: Process) -> None:
        self.durable = self
        self.met = {peer: uuid for peer in range(200) if (uuid := process.disk.met(peer)) is not None}
        self._disk = process.disk

    def append(self, ticket: int, records: list[Any]) -> None:
        for record in records:
            self._disk.introduce(record.peer, record.uuid)


class Cluster:
    """Everything of one run. ``run()`` returns normally or raises: Violation, or an AssertionError of the core."""

    def __init__(self, setup: Setup | int, trace: bool = False) -> None:
        if isinstance(setup, int):
            setup = setup_of(setup)
        self.setup = setup
        self.seed = setup.seed
        self.clock = Scheduler()
        self._tracing = trace
        self.tail: deque[str] = deque(maxlen=None if trace else TRACE_TAIL)
        self.replica_ids = setup.replicas + tuple(s for s in setup.spares if s < WITNESSES)
        witness_ids = setup.witnesses + tuple(s for s in setup.spares if s > WITNESSES)
        first = genesis(setup.replicas, setup.witnesses)
        self.roster: Roster = (first.members, first.voters)
        """Who takes part, by the last order that anybody applied."""
        self._roster_at = 0
        self.checkers = Checkers(lambda r: self.replicas[r])
        self.checkers.views[first.epoch] = first
        founding = [Decided(first), Flushed(first.epoch)]
        self.replicas: dict[int, Replica] = {}
        for r in self.replica_ids:
            clock = SkewedClock(self._rng(f"clock {r}"), setup.drift_ppm)
            known = tuple(sorted({*setup.replicas, r}))
            self.replicas[r] = Replica(
                r, self, self._rng(f"process {r}"), clock, self.roster, known,
                founding if r in setup.replicas else [], setup.inline, setup.holding, self._rng(f"holding {r}"),
            )  # fmt: skip
        self.processes: dict[int, Process] = {**self.replicas}
        self.processes.update({w: WitnessProcess(w, self, self._rng(f"process {w}"), []) for w in witness_ids})
        pairs = pairs_of(self.replica_ids, witness_ids)
        self.network = Network(self.clock, self._rng("network"), pairs, self._ready, self._agree, self._input)
        self.network.delay = setup.delay
        self.lines = Lines(self, self._rng("lines"))
        self.clients = [
            Client(c, self, self.lines, self._rng(f"client {c}"), setup.keys, setup.client_pace)
            for c in range(1, setup.clients + 1)
        ]
        self.readers = [
            Reader(1000 + r, self, self.lines, self._rng(f"reader {r}"), setup.keys, setup.reader_pace, r)
            for r in self.replica_ids
        ]
        self._administrator = Administrator(999, self, self.lines, self._rng("administrator"), self._ordered)
        self._order: Roster = self.roster
        """What the administrator has asked for last."""
        self._launched = {*setup.replicas, *setup.witnesses}
        self._retired: set[int] = set()
        self._acquaintances: dict[int, Acquaintances] = {}
        self._rng_choices = self._rng("choices")
        self._rng_returning = self._rng("returning")
        self._kept_down: set[int] = set()
        self._lost: set[int] = set()
        """Whose disk is gone: they never come back under their number."""
        self._faults: Faults | None = None
        self._last = 0
        self.live = True
        """The liveness phase was run: what promise 7 asks for was there."""

    def _rng(self, what: str) -> Random:
        return Random(f"{self.seed} {what}")

    # -- what processes, clients and faults ask of the world

    def trace(self, who: int, *what: object) -> None:
        self.tail.append(f"{self.clock.now / 1000:10.1f} ms  {who or '-':>3}  " + "; ".join(map(str, what)))

    @property
    def serving_ids(self) -> tuple[int, ...]:
        """The replicas that clients know of: they are told the members with each view, where a replica that is removed
        may be one still (mds.replica: ViewChanged), and the roster."""
        return tuple(sorted({*self.roster[0], *self.checkers.views[self.checkers.last_active].members}))

    @property
    def working(self) -> tuple[int, ...]:
        """Replicas of the roster with their disks."""
        return tuple(r for r in self.roster[0] if r not in self._lost)

    @property
    def _there(self) -> set[int]:
        """Processes that run, or will again."""
        return self._launched - self._lost - self._retired

    def _ready(self, who: int) -> bool:
        return self.processes[who].running and not self.processes[who].paused

    def _agree(self, a: int, b: int) -> bool:
        """Both ends take each other for who they say they are (mds.links, daemon.acquaintances)."""
        ends = ((a, b), (b, a))
        disks = {who: self.processes[who].disk for who in (a, b)}
        for end, peer in ends:
            if self._acquaintances[end].judge(peer, disks[peer].uuid, disks[peer].incarnation) is not None:
                return False
        for end, peer in ends:
            self._acquaintances[end].introduce(peer, disks[peer].uuid, disks[peer].incarnation)
        return True

    def _input(self, who: int, peer: int, what: Any) -> None:
        if self._tracing:
            self.trace(who, f"<- {peer}: {what}")
        self.processes[who].take("input", peer, what)

    def send(self, sender: int, peer: int, message: Any) -> None:
        self.network.send(sender, peer, message)

    def connection(self, a: int, b: int) -> int:
        return self.network.number(a, b)

    def install(self, feeder: int, peer: int, connection: int, snapshot: Snapshot) -> None:
        """A snapshot has been sent: it arrives if the connection has lasted."""
        if connection and self.network.number(feeder, peer) == connection:
            self.processes[peer].take("snapshot", *snapshot)

    def answer(self, replica: int, client: int, connection: int, number: int, reply: Any) -> None:
        self.lines.answer(replica, client, connection, number, reply)

    def stepped(self, replica: Replica, out: Effects) -> None:
        if self._faults is not None:
            self._faults.stepped(replica, out)

    def roster_changed(self, index: int, roster: Roster) -> None:
        """A replica has applied a change of the roster."""
        if index > self._roster_at:
            self._roster_at, self.roster = index, roster
            self.trace(0, f"roster: replicas {roster[0]}, voters {roster[1]}")

    def restart(self, who: int) -> None:
        process = self.processes[who]
        if process.running or who in self._kept_down or process.disk.poisoned or who not in self._launched:
            return
        if who in self._retired:
            return
        self.trace(who, "starts")
        self._acquaintances[who] = Acquaintances(_Journal(process))  # type: ignore[arg-type]
        if isinstance(process, Replica):
            self.checkers.snapshot(process)
        process.start()

    def crash(self, who: int, certified: bool = False) -> None:
        self.trace(who, "crashes")
        process = self.processes[who]
        in_use = self.checkers.in_use(who)
        process.crash()
        self.network.process_died(who)
        if certified and isinstance(process, Replica):
            if self._rng_returning.random() < self.setup.returning:
                after = self._rng_returning.randrange(60 * MS)
                dead = who, process.disk.incarnation
                self.clock.after(after, self._let_go, dead, in_use, self.clock.now)
            rng = self._rng_choices
            for peer in self.replica_ids:
                late = rng.randrange(600 * MS) if rng.random() < 0.2 else rng.randrange(20 * MS)
                self.clock.after(late, self._certify, peer, who, process.disk.incarnation)

    def _let_go(self, dead: tuple[int, int], in_use: tuple[Part, ...], died: int) -> None:
        """The clients of the dead replica have let go of all that it lent; the others hear of that, or do not."""
        self.checkers.returned(dead[0], in_use, died, self.clock.now)
        for peer in self.replica_ids:
            if self._rng_returning.random() < 0.8:
                self.clock.after(self._rng_returning.randrange(20 * MS), self._tell_returned, peer, dead)

    def _tell_returned(self, peer: int, dead: tuple[int, int]) -> None:
        if self.processes[peer].running:
            self.processes[peer].take("returned", dead)

    def _certify(self, peer: int, who: int, incarnation: int) -> None:
        """The watchdog's certificate has come, over a connection of its own."""
        if peer != who and (who, peer) not in self.network.cuts:
            self.processes[peer].take("event", Died(who, incarnation))

    def stopped(self, who: int, reason: str) -> None:
        """A process stopped itself."""
        self.trace(who, f"stops: {reason}")
        self.crash(who)
        if self.processes[who].disk.poisoned:
            self._lost.add(who)
        else:
            self.clock.after(self._rng_choices.randrange(10 * MS, 500 * MS), self.restart, who)

    def may_lose(self, who: int) -> bool:
        """Losing the disk, or the state, of *who* leaves what promise 7 asks for."""
        return who in self._there and self._enough(self._there - {who})

    def lose_disk(self, who: int) -> None:
        """Another disk, an empty one, under the old number."""
        if self.processes[who].running:
            self.crash(who)
        self._lost.add(who)
        self.processes[who].replace_disk()
        self.clock.after(self._rng_choices.randrange(10 * MS, 500 * MS), self.restart, who)

    def administer(self, what: str, rng: Random) -> None:
        """An administrator changes who takes part, as far as that leaves enough of those who are there."""
        replicas, voters = self._order
        spare = next((s for s in self.setup.spares if s < WITNESSES and s not in self._launched), None)
        witness = next((s for s in self.setup.spares if s > WITNESSES and s not in self._launched), None)
        gone: set[int] = set()
        new: set[int] = set()
        if what in ("add", "replace") and spare is not None:
            new = {spare}
        if what == "remove" or (what == "replace" and new):
            gone = {rng.choice(sorted(self._lost & set(replicas)) or list(replicas))}
        if what == "witness":
            witnesses = [v for v in voters if v > WITNESSES]
            if witness is not None:
                new = {witness}
            elif witnesses:
                gone = {rng.choice(witnesses)}
        order = tuple(tuple(sorted({*ids, *new} - gone)) for ids in ((*replicas, *(s for s in new if s < WITNESSES)),
                                                                   voters))  # fmt: skip
        order = (tuple(r for r in order[0] if r < WITNESSES), order[1])
        there = (self._there | new) - gone
        if order == self._order or not there & set(order[0]) or 2 * len(there & set(order[1])) <= len(order[1]):
            return
        if self._administrator.idle:
            self._order = order
            self._administrator.order(order)
            self.trace(0, f"ordered: {order}")
            for each in sorted(new):
                self._launched.add(each)
                self.clock.after(rng.randrange(300 * MS), self.restart, each)

    def _ordered(self, reply: Any) -> None:
        self.clock.after(20 * MS, self._retire, self._order)

    def _retire(self, order: Roster) -> None:
        """Whoever is removed is stopped, and its register thrown away, when the machine says that it is done."""
        if order != self._order:
            return  # the order after it says who is retired: somebody may be there for its sake
        for r in self.working:
            replica = self.replicas[r]
            if replica.running and not replica.paused and replica.state.roster == order:
                standing = replica.machine.standing()
                if standing.settled and standing.wanted == order[1]:
                    for who in sorted(self._launched - set(order[0]) - set(order[1]) - self._retired):
                        self.trace(who, "retired")
                        if self.processes[who].running:
                            self.crash(who)
                        self._retired.add(who)
                    return
        self.clock.after(20 * MS, self._retire, order)

    def leave(self, who: int, down: int) -> None:
        """A planned stop: it asks to be left out, and stops when it may, or after a while anyway."""
        replica = self.replicas[who]
        if replica.running and not replica.paused:
            replica.take("event", Leave())
            self._stop_when_left(who, replica.machine, self.clock.now + 1 * SECOND, down)

    def _stop_when_left(self, who: int, machine: Any, until: int, down: int) -> None:
        replica = self.replicas[who]
        if not replica.running or replica.machine is not machine:
            return  # it crashed meanwhile
        if self.clock.now >= until or (not replica.paused and machine.may_stop):
            self.crash(who, certified=self._rng_choices.random() < 0.5)
            self.clock.after(down, self.restart, who)
        else:
            self.clock.after(2 * MS, self._stop_when_left, who, machine, until, down)

    def _commit_some(self) -> None:
        rng, pace = self._rng_choices, self.setup.commit_pace
        self.clock.after(rng.randrange(pace // 4, 2 * pace), self._commit_some)
        replica = self.replicas[rng.choice(self.replica_ids)]
        if replica.running and not replica.paused:
            replica.commit()

    def _look_at_bounds(self) -> None:
        self.clock.after(BOUNDS_EVERY, self._look_at_bounds)
        for process in self.processes.values():
            if process.running:
                process.bounded()

    # -- phases

    def run(self) -> None:
        """Both phases, and what must hold at the end."""
        usual = {name: getattr(limits, name) for name, _ in self.setup.bounds}
        try:
            for name, bound in self.setup.bounds:
                setattr(limits, name, bound)
            self._run()
        finally:
            for name, bound in usual.items():
                setattr(limits, name, bound)

    def _run(self) -> None:
        for who in self.processes:
            self.restart(who)
        self.network.connect_all()
        for asker in (*self.clients, *self.readers):
            asker.start()
        self._commit_some()
        self._look_at_bounds()
        self._faults = Faults(self, self.setup.schedule)
        while self.clock.now < self.setup.safety:
            if self.clock.happened > STEPS_MAX:
                raise Violation(f"{STEPS_MAX} steps, and no end")
            self.clock.run_one()
        self._faults.stop()
        self._faults = None
        for asker in (*self.clients, *self.readers):
            asker.stopped = True
        # 1. All but one are removed, and that one loses its disk before it has been taken in. 2. Those removed go on,
        # as they should; nobody of the roster is left who could converge.
        self.live = bool(self.working) and self._enough(self._there)
        if self.live:
            self._converge()
            if self.setup.forced:
                self._force()
        for client in self.clients:
            if not client.idle:
                client.die()  # the run ends without a healed cluster: what is under way may have happened or not
        self.checkers.finish()

    def _converge(self) -> None:
        down = self._choose_down()
        self._heal(down)
        if down:
            without = f"without {sorted(down)}"
            self._until(lambda: self._goes_on(down), PROGRESS_WITHIN, f"goes on {without}")
            self._until(lambda: all(c.idle for c in self.clients), ANSWER_WITHIN, f"answers clients {without}")
            self._heal(set())
        self._until(lambda: self._converged(set(self.working)), CONVERGE_WITHIN, "converges")
        askers = [*self.clients, self._administrator]
        self._until(lambda: all(c.idle for c in askers), ANSWER_WITHIN, "answers every client")
        self._until(lambda: self._converged(set(self.working)), CONVERGE_WITHIN, "converges to what was ordered")
        self._last_requests()

    def _force(self) -> None:
        """The last resort: one replica that has everything begins a new generation, alone; the others come back."""
        survivor = self._rng_choices.choice(self.working)
        self.trace(survivor, "is to go on alone")
        self._kept_down = self._there - {survivor}
        for who in sorted(self._kept_down):
            if self.processes[who].running:
                self.crash(who)
        self.replicas[survivor].take("event", ForceView())
        self._until(lambda: self._alone(survivor), PROGRESS_WITHIN, "goes on alone when it is forced to")
        self._heal(set())
        self._until(lambda: self._converged(set(self.working)), CONVERGE_WITHIN, "converges in a new generation")
        self._last_requests()

    def _alone(self, survivor: int) -> bool:
        view = self.replicas[survivor].machine.active_view
        return view is not None and generation_of(view) > 0 and self.checkers.views[view].members == (survivor,)

    def _last_requests(self) -> None:
        self._last += 1
        for replica in self.working:
            me = 100 * self._last + replica
            client = Client(2000 + me, self, self.lines, self._rng(f"last client {me}"), 1, SECOND)
            client.stopped = True
            client.write(0)
            self._until(lambda client=client: client.idle, ANSWER_WITHIN, "answers a last request")
            reader = Reader(4000 + me, self, self.lines, self._rng("last reader"), 1, SECOND, replica)
            reader.ask(0)
            reads = self.checkers.reads
            self._until(lambda n=reads: self.checkers.reads > n, ANSWER_WITHIN, f"answers a question at {replica}")
        self._until(self._equal, 2 * SECOND, "delivers alike")

    def _heal(self, down: set[int]) -> None:
        self.trace(0, f"healing, these stay down: {sorted(down)}")
        self._kept_down = down
        self.network.hiccup = 0.0
        self.network.delay = min(self.network.delay, 1000)
        self.network.heal(set(self.network.cuts))
        self.lines.cut.clear()
        for who, process in self.processes.items():
            process.disk.slow = process.disk.hangs_until = 0
            process.disk.fails = False
            if who in down:
                if process.running:
                    self.crash(who)
            elif not process.running:
                self.restart(who)  # unless it was never launched, or is gone for good
            elif process.paused:
                process.wake()
            if isinstance(process, Replica) and process.running and process.machine.core.leaving:
                self.crash(who)  # it was asked to stop by a story that is over
                self.restart(who)

    def _until(self, reached: Any, within: int, what: str) -> None:
        """Run until *reached*, looked at every few milliseconds."""
        end = self.clock.now + within
        look = self.clock.now
        while True:
            if self.clock.now >= look:
                if reached():
                    return
                look = self.clock.now + 20 * MS
            if self.clock.now > end or self.clock.happened > STEPS_MAX:
                raise Violation(f"no progress: the healed cluster never {what}; {self._describe()}")
            self.clock.run_one()

    def _enough(self, up: set[int]) -> bool:
        """Whether what promise 7 asks for is among *up*: a majority of the voters, and one that flushed the last view
        that may be active. What a view that was never active needs is one of its members that did not flush it:
        sealed, it proves that."""
        views = self.checkers.views
        epoch = max(views)
        for voters in (views[epoch].voters, self.roster[1], self._order[1]):
            if 2 * len(up & set(voters)) <= len(voters):
                return False
        records = [record for process in self.processes.values() for record in process.disk.records]
        accepted = [r.view for r in records if isinstance(r, AcceptedValue) and r.epoch > epoch]
        if not all(any(not self.replicas[r].bereft for r in up & set(view.members)) for view in accepted):
            return False  # one of them may become the next view yet
        while True:
            members = {r for r in up & set(views[epoch].members) if not self.replicas[r].bereft}
            if not members:
                return False
            if any(self.replicas[r].has_flushed(epoch) for r in members):
                return True
            epoch = views[epoch].base
            if epoch not in views:
                return False

    def _choose_down(self) -> set[int]:
        """A minority that stays down for a while, such that promise 7 says the others go on; often nobody."""
        rng = self._rng_choices
        everyone = sorted(self._there)
        if rng.random() < 0.5 or len(everyone) < 3:
            return set()
        down = set(rng.sample(everyone, rng.randrange(1, (len(everyone) - 1) // 2 + 1)))
        return down if self._enough(set(everyone) - down) and set(self.working) - down else set()

    def _goes_on(self, down: set[int]) -> bool:
        """Those of the roster that are up are the view; or, when none is, whoever else holds the history.

        1. The only replica is replaced by another. 2. The new one goes down before it has a state. 3. The old one is
        not of the roster any more, and a member still: with its view, the service goes on until the new one is back.
        """
        up = set(self.working) - down
        if up:
            return self._converged(up)
        members = set(self.checkers.views[max(self.checkers.views)].members)
        return not members & down and self._converged(members)

    def _converged(self, replicas: set[int]) -> bool:
        """All of *replicas* are active in one view of just them, and have delivered the same."""
        if not replicas or not self.replicas[min(replicas)].running:
            return False
        first = self.replicas[min(replicas)]
        view = first.machine.active_view
        if view is None or set(self.checkers.views[view].members) != replicas:
            return False
        voters = set(self.checkers.views[view].voters) ^ set(self.roster[1])
        if not self._kept_down and voters - self._lost:
            return False
        return all(
            self.replicas[r].machine.active_view == view and self.replicas[r].index == first.index for r in replicas
        )

    def _equal(self) -> bool:
        replicas = [self.replicas[r] for r in self.working]
        if any(r.state.waiting for r in replicas):
            return False  # what is held by clients is let go of at last
        return len({(r.machine.position(), tuple(sorted(r.state.values.items()))) for r in replicas}) == 1

    def _describe(self) -> str:
        def one(r: Replica) -> str:
            if not r.running:
                return f"{r.me} is down"
            core, active = r.machine.core, r.machine.active_view
            doing = f"sealed below {describe_epoch(core.sealed)}"
            if active is not None:
                doing = f"active in {describe_epoch(active)}"
            return f"{r.me} {doing}, knows view {describe_epoch(core.newest.epoch)}, index {r.index}"

        return "; ".join(one(r) for r in self.replicas.values())

"""One run: a cluster drawn from a seed, clients, a safety phase with faults, then a liveness phase without."""

from __future__ import annotations

from collections import deque
from random import Random
from typing import Any, Final

from tests.sim.checkers import Checkers, Violation
from tests.sim.clock import MS, SECOND, Scheduler, SkewedClock
from tests.sim.faults import Faults
from tests.sim.network import Network, pairs_of
from tests.sim.processes import Process, Replica, WitnessProcess
from vsync import limits
from vsync.records import AcceptedValue
from vsync.view import Position, describe_epoch, genesis

CONVERGE_WITHIN: Final = 60 * SECOND
"""A healed cluster is one view of all replicas again after this at the latest: a learner whose stays have failed
waits up to 30 s before it is taken in, and the waits between attempts double up to 4 s."""
PROGRESS_WITHIN: Final = 30 * SECOND
"""A majority that is reachable goes on without the others after this at the latest."""
STEPS_MAX: Final = 200_000
TRACE_TAIL: Final = 120
SMALL: Final = {"JOIN_CLOSE": 4, "FEED_WINDOW": 8, "FEED_ITEMS": 3, "RECENT_ITEMS": 12, "VIEWS_KEPT": 3}
"""Bounds of vsync.limits in runs that are to reach them often: feeds that are cut, snapshots, views forgotten."""
QUICK: Final = {
    "SEAL_WAIT": 60 * MS,
    "DECIDE_WAIT": 120 * MS,
    "PROGRESS_WAIT": 120 * MS,
    "PROGRESS_WAIT_MAX": 1000 * MS,
    "RANK_STEP": 30 * MS,
    "FETCH_RETRY": 30 * MS,
    "JOIN_RETRY": 100 * MS,
    "JOIN_STAY_MIN": 60 * MS,
}
"""Times of vsync.limits in runs that are to see many views: no promise rests on any of these."""


class Cluster:
    """Everything of one run. ``run()`` returns normally or raises: Violation, or an AssertionError of the core."""

    def __init__(self, seed: int, trace: bool = False) -> None:
        self.seed = seed
        rng = self.rng = Random(seed)
        self.clock = Scheduler()
        self._tracing = trace
        self.tail: deque[str] = deque(maxlen=None if trace else TRACE_TAIL)
        self.replica_ids = tuple(range(1, rng.choice((1, 2, 2, 3, 3, 3, 3, 4, 5)) + 1))
        self.witness_ids = tuple(range(101, 101 + rng.choice((0, 0, 1, 1, 2, 3))))
        first = genesis(self.replica_ids, self.witness_ids)
        self.checkers = Checkers(lambda r: self.replicas[r])
        self.checkers.views[first.epoch] = first
        skewed = rng.random() < 0.6
        self.replicas = {
            r: Replica(r, self, self.replica_ids, SkewedClock(rng, skewed), first) for r in self.replica_ids
        }
        self.processes: dict[int, Process] = {**self.replicas}
        self.processes.update({w: WitnessProcess(w, self, []) for w in self.witness_ids})
        pairs = pairs_of(self.replica_ids, self.witness_ids)
        self.network = Network(self.clock, rng, pairs, self._ready, self._input)
        self.network.delay = rng.choice((200, 1000, 8000))
        self._keys = rng.choice((1, 1, 3))
        self._submit_pace = rng.choice((4, 15, 60)) * MS
        self._read_pace = rng.choice((10, 40)) * MS
        self._commit_pace = rng.choice((20, 200, 2000)) * MS
        self._submitted = 0
        self._clients_stopped = False
        self._kept_down: set[int] = set()
        self._bounds = {**(SMALL if rng.random() < 0.4 else {}), **(QUICK if rng.random() < 0.6 else {})}
        self.safety_for = rng.choice((3, 5, 8)) * SECOND

    # -- what processes and faults ask of the world

    def trace(self, who: int, *what: object) -> None:
        self.tail.append(f"{self.clock.now / 1000:10.1f} ms  {who or '-':>3}  " + "; ".join(map(str, what)))

    def _ready(self, who: int) -> bool:
        return self.processes[who].running and not self.processes[who].paused

    def _input(self, who: int, peer: int, what: Any) -> None:
        if self._tracing:
            self.trace(who, f"<- {peer}: {what}")
        self.processes[who].take("input", peer, what)

    def send(self, sender: int, peer: int, message: Any) -> None:
        self.network.send(sender, peer, message)

    def connection(self, a: int, b: int) -> int:
        return self.network.number(a, b)

    def install(self, feeder: int, peer: int, connection: int, snapshot: tuple[Position, tuple[Any, ...]]) -> None:
        """A snapshot has been sent: it arrives if the connection has lasted."""
        if connection and self.network.number(feeder, peer) == connection:
            self.processes[peer].take("snapshot", *snapshot)

    def restart(self, who: int) -> None:
        process = self.processes[who]
        if process.running or who in self._kept_down:
            return
        self.trace(who, "starts")
        assert isinstance(process, Replica | WitnessProcess)
        process.start()

    def crash(self, who: int) -> None:
        self.trace(who, "crashes")
        self.processes[who].crash()
        self.network.process_died(who)

    # -- clients

    def _submit_some(self) -> None:
        if self._clients_stopped:
            return
        rng = self.rng
        self.clock.after(rng.randrange(self._submit_pace // 4, 2 * self._submit_pace), self._submit_some)
        self._submit_at(rng.choice(self.replica_ids))

    def _submit_at(self, replica: int) -> bytes | None:
        payload = b"%d %c" % (self._submitted, 65 + self.rng.randrange(self._keys))
        if not self.replicas[replica].submit(payload):
            return None
        self._submitted += 1
        return payload

    def _read_some(self) -> None:
        if self._clients_stopped:
            return
        rng = self.rng
        self.clock.after(rng.randrange(self._read_pace // 4, 2 * self._read_pace), self._read_some)
        for replica in self.replicas.values():
            key = 65 + rng.randrange(self._keys) if rng.random() < 0.5 else None
            if replica.readable(key):
                self.checkers.read(replica.me, key, self.checkers.newest_answer(key), replica.index)

    def _commit_some(self) -> None:
        rng = self.rng
        self.clock.after(rng.randrange(self._commit_pace // 4, 2 * self._commit_pace), self._commit_some)
        replica = self.replicas[rng.choice(self.replica_ids)]
        if replica.running and not replica.paused:
            replica.commit()

    # -- phases

    def run(self) -> None:
        """Both phases, and what must hold at the end."""
        usual = {name: getattr(limits, name) for name in self._bounds}
        try:
            for name, bound in self._bounds.items():
                setattr(limits, name, bound)
            self._run()
        finally:
            for name, bound in usual.items():
                setattr(limits, name, bound)

    def _run(self) -> None:
        for process in self.processes.values():
            assert isinstance(process, Replica | WitnessProcess)
            process.start()
        self.network.connect_all()
        self._submit_some()
        self._read_some()
        self._commit_some()
        faults = Faults(self)
        while self.clock.now < self.safety_for:
            self.clock.run_one()
        faults.stop()
        self._clients_stopped = True
        down = self._choose_down()
        self._heal(down)
        if down:
            left = set(self.replica_ids) - down
            self._until(lambda: self._converged(left), PROGRESS_WITHIN, f"goes on without {down}")
            self._heal(set())
        self._until(lambda: self._converged(set(self.replica_ids)), CONVERGE_WITHIN, "converges")
        for replica in self.replica_ids:
            # may_submit can be false for a moment only: another view change is about to end.
            asked: list[bytes | None] = [None]

            def answered(replica: int = replica, asked: list[bytes | None] = asked) -> bool:
                asked[0] = asked[0] or self._submit_at(replica)
                return asked[0] is not None and self.checkers.is_answered(asked[0])

            self._until(answered, 2 * SECOND, f"answers a request at replica {replica}")
            self._until(self._equal, 2 * SECOND, "delivers alike")
        self.checkers.finish()

    def _heal(self, down: set[int]) -> None:
        self.trace(0, f"healing, these stay down: {sorted(down)}")
        self._kept_down = down
        self.network.hiccup = 0.0
        self.network.delay = min(self.network.delay, 1000)
        self.network.heal(set(self.network.cuts))
        for who, process in self.processes.items():
            process.disk.slow = 0
            if who in down:
                if process.running:
                    self.crash(who)
            elif not process.running:
                self.restart(who)
            elif process.paused:
                process.wake()

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

    def _choose_down(self) -> set[int]:
        """A minority that stays down for a while, such that promise 7 says the others go on; often nobody."""
        everyone = sorted(self.processes)
        if self.rng.random() < 0.5 or len(everyone) < 3:
            return set()
        down = set(self.rng.sample(everyone, self.rng.randrange(1, (len(everyone) - 1) // 2 + 1)))
        up = [r for r in self.replica_ids if r not in down]
        # One of those that flushed the last view that may be active has to be there. What a view that was never
        # active needs is one of its members that did not flush it: sealed, it proves that.
        views = self.checkers.views
        epoch = max(views)
        records = [record for process in self.processes.values() for record in process.disk.records]
        accepted = [r.view for r in records if isinstance(r, AcceptedValue) and r.epoch > epoch]
        if not all(set(up) & set(view.members) for view in accepted):
            return set()  # one of them may become the next view yet
        while up:
            members = [r for r in up if r in views[epoch].members]
            if not members:
                return set()
            if any(self.replicas[r].has_flushed(epoch) for r in members):
                return down
            epoch = views[epoch].base
        return set()

    def _converged(self, replicas: set[int]) -> bool:
        """All of *replicas* are active in one view of just them, and have delivered the same."""
        first = self.replicas[min(replicas)]
        view = first.machine.active_view
        if view is None or set(self.checkers.views[view].members) != replicas:
            return False
        return all(
            self.replicas[r].machine.active_view == view and self.replicas[r].index == first.index for r in replicas
        )

    def _equal(self) -> bool:
        positions = {r.machine.position() for r in self.replicas.values()}
        return len(positions) == 1

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

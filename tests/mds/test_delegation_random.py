"""Clients that make files by themselves, others that look, and things that go wrong: what everybody was told is one
file system, with each file there from the moment at which its client said so.

    python -m tests.mds.test_delegation_random [FIRST [COUNT]]              so many more seeds
    python -m tests.mds.test_delegation_random mutants [FIRST [COUNT]]      which of so many seeds find what is wrong
"""

from __future__ import annotations

import errno
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from mds import limits, locksets, machine
from mds.delegating import Delegating
from mds.namespace import delegations, quota
from tests import linearizable
from tests.mds.group import TOP, Node
from tests.mds.harness import ALICE
from tests.mds.holders import RULES, Deed, Holder
from tests.mds.holding import Holding
from tests.sim.clock import MS, SECOND
from vsync import limits as group_limits
from wire import ops
from wire.delegation import Delegate
from wire.errors import OK

NAMES: Final = tuple(b"%d" % k for k in range(12))
BELOW: Final = (b"s0", b"s1")
"""Directories, and never files."""
RUN: Final = 6 * SECOND
AWAY: Final = 3700 * MS
"""So long that what is wanted back from who is away has been taken away."""


class Crowd:
    """What the clients of one run do."""

    def __init__(self, world: Holding, rules: frozenset[str] = RULES) -> None:
        self.world = world
        self.rng = rng = world.rng
        self.stopped = False
        at = [rng.choice(world.replica_ids) for _ in range(5)]
        self.holders = [world.holder(f"h{k}", at[k], delegates=k < 3, rules=rules) for k in range(5)]
        first = world.user("first")
        modes = 0o777, 0o777, 0o755
        self.roots = [world.ask(first, ops.Mkdir(world.cred, TOP, b"d%d" % k, mode))[0] for k, mode in enumerate(modes)]
        self.below: dict[int, tuple[int, bytes]] = {}
        """Directories that were made: inode -> where."""
        self.files: list[int] = []
        self.quotas = world.seed % 5 == 1
        self.pace = rng.choice((60, 150)) * MS
        for holder in self.holders[:3]:
            holder.numbers_used = rng.choice((3, 10, 256))
        for k, holder in enumerate(self.holders):
            self._act(holder, k)

    def _act(self, holder: Holder, k: int) -> None:
        if self.stopped or not holder.alive:
            return
        if not holder.paused and holder.busy < 2:
            self._do(holder, self._somewhere(k))
        self.world.clock.after(self.rng.randrange(self.pace // (3 if k < 3 else 1)), self._act, holder, k)

    def _somewhere(self, k: int = 9) -> int:
        """A directory; for the client that has one of its own mostly that, or one below it."""
        late = list(self.below)[-4:]
        if k >= len(self.roots) or self.rng.random() > 0.85:
            return self.rng.choice(self.roots + late)
        return self.rng.choice([self.roots[k]] * 2 + [ino for ino in late if self.below[ino][0] == self.roots[k]])

    def _somebody(self) -> ops.Cred:
        return ALICE if self.rng.random() < 0.2 else self.world.cred

    def _do(self, holder: Holder, above: int) -> None:
        rng, cred = self.rng, self.world.cred
        name, other = rng.sample(NAMES, 2)
        x = rng.random()
        if x < 0.04:
            holder.ask(ops.ReadDir(cred, above, 0, 4096))
            holder.ask(ops.Create(cred, above, name, 0o644))
            holder.ask(ops.Unlink(cred, above, other))
        elif x < 0.08:
            holder.ask(ops.Lookup(cred, above, name), lambda deed: self._make(holder, above, [name]))
            holder.ask(ops.Lookup(cred, above, name))
        elif x < 0.10:
            self._race(holder, above, name)
        elif x < 0.16 and above in self.below:
            self._end(holder, above)
        elif x < 0.13:
            self._one_by_one(holder, [ops.Create(cred, above, one, 0o644) for one in rng.sample(NAMES, 3)])
        elif x < 0.45:
            self._make(holder, above, rng.sample(NAMES, rng.randrange(1, 10)))
        elif x < 0.55:
            holder.ask(ops.Lookup(cred, above, name), self._seen)
        elif x < 0.63:
            holder.ask(ops.ReadDir(cred, above, 0, 4096))
        elif x < 0.69:
            holder.ask(ops.GetAttr(above))
        elif x < 0.80:
            self._one_by_one(holder, [ops.Unlink(cred, above, one) for one in rng.sample(NAMES, 4)])
        elif x < 0.85:
            to = rng.choice((above, self._somewhere()))
            if to != above and rng.random() < 0.2:
                name, other = rng.choice(BELOW), rng.choice(BELOW)
                above, to = rng.sample(self.roots, 2)
            holder.ask(ops.Rename(cred, above, name, to, other, 0))
        elif x < 0.88:
            holder.ask(ops.Mkdir(cred, rng.choice(self.roots), rng.choice(BELOW), 0o777), self._made_directory)
        elif x < 0.91:
            holder.ask(ops.Rmdir(cred, rng.choice(self.roots), rng.choice(BELOW)))
        elif x < 0.96 and self.files:
            holder.ask(ops.Open(cred, rng.choice(self.files[-20:]), 0))
        elif x < 0.98:
            mode = rng.choice((0o755, 0o777))
            holder.ask(ops.SetAttr(cred, above, ops.SET_MODE, mode, 0, 0, 0, 0, 0, False))
        elif x < 0.99 and self.quotas:
            where = rng.choice(self.roots)
            limits_ = b"inodes_hard=100000"
            ends = rng.random() < 0.7
            holder.ask(
                ops.RemoveXattr(cred, where, quota.ATTRIBUTE)
                if ends
                else ops.SetXattr(cred, where, quota.ATTRIBUTE, limits_, 0)
            )
        elif holder.held:
            holder.give_back(rng.choice(sorted(holder.held)))

    def _one_by_one(self, holder: Holder, left: list[Any]) -> None:
        if left and not self.stopped and holder.alive:
            holder.ask(left[0], lambda deed: self._one_by_one(holder, left[1:]))

    def _race(self, holder: Holder, above: int, name: bytes) -> None:
        """Somebody makes a file as soon as the directory is delegated to it, and somebody else earlier."""
        create = ops.Create(self.world.cred, above, name, 0o644)
        other = self.rng.choice([one for one in self.holders if one is not holder])

        def looked(deed: Deed) -> None:
            holder.want(above, lambda: holder.ask(create, self._seen) if not self.stopped else None)
            self.world.clock.after(self.rng.randrange(3 * MS), also)

        def also() -> None:
            if other.alive and not other.paused and not self.stopped:
                other.ask(create, self._seen)

        holder.ask(ops.Lookup(self.world.cred, above, name), looked)

    def _end(self, holder: Holder, above: int) -> None:
        """Remove a directory with everything in it, while somebody else on that mount makes a file there."""
        cred = self.world.cred
        left = list(NAMES)

        def remove(deed: Deed | None) -> None:
            if self.stopped or not holder.alive:
                return
            if left:
                holder.ask(ops.Unlink(cred, above, left.pop()), remove)
            else:
                holder.ask(ops.Lookup(cred, above, NAMES[0]), end)

        def end(deed: Deed) -> None:
            if holder.alive:
                holder.ask(ops.Rmdir(cred, *self.below[above]))
                holder.ask(ops.Create(cred, above, NAMES[0], 0o644), self._seen)

        remove(None)

    def _make(self, holder: Holder, above: int, names: list[bytes]) -> None:
        """As an application makes files, one after the other: the kernel looks each up first."""
        if not names or self.stopped or not holder.alive:
            return
        name, rest = names[0], names[1:]

        def looked(deed: Deed) -> None:
            if deed.status == errno.ENOENT and holder.alive:
                data = self.rng.randbytes(self.rng.randrange(1, 9)) if self.rng.random() < 0.6 else b""
                holder.ask(ops.Create(self._somebody(), above, name, 0o644), made, data)
            else:
                self._seen(deed)
                self._make(holder, above, rest)

        def made(deed: Deed) -> None:
            self._seen(deed)
            if not deed.itself:
                holder.want(above)
            self.world.clock.after(self.rng.randrange(2 * MS), self._make, holder, above, rest)

        holder.ask(ops.Lookup(self.world.cred, above, name), looked)

    def _seen(self, deed: Deed) -> None:
        if deed.status == OK:
            self.files.append(deed.body[0])

    def _made_directory(self, deed: Deed) -> None:
        if deed.status == OK:
            self.below[deed.body[0]] = deed.what.parent, deed.what.name

    # -- what goes wrong

    def fault_of_a_client(self) -> None:
        rng = self.rng
        alive = [holder for holder in self.holders if holder.alive]
        holder = rng.choice(alive)
        match rng.choice(("pause", "pause", "forget", "stall", "stall", "leave", "die")):
            case "pause":
                self._pause(holder, rng.choice((50 * MS, 400 * MS, 2 * SECOND, AWAY)))
            case "forget":
                # It is gone, for longer than it takes to revoke, just after it has asked for a directory.
                holder.asked = lambda: self.world.clock.after(rng.randrange(3 * MS), self._pause, holder, AWAY)
            case "stall" if holder.line is not None:
                holder.line.stalled = True  # what is on its way to the client is lost, answers and recalls too
            case "leave" if not holder.paused:
                holder.leave(noticed_after=rng.randrange(SECOND))
            case "die" if len(alive) > 3:
                holder.die()

    def _pause(self, holder: Holder, time: int) -> None:
        if holder.alive and not holder.paused:
            holder.pause()
            if self.rng.random() < 0.6 and holder.line is not None:
                holder.line.cut(noticed_after=self.rng.randrange(SECOND))
            self.world.clock.after(time, self._wake, holder)

    def _wake(self, holder: Holder) -> None:
        if holder.paused:
            holder.wake()
            for directory in list(holder.held):
                for name in NAMES[:4] if not self.stopped else ():
                    holder.ask(ops.Create(self.world.cred, directory, name, 0o644), self._seen)

    def fault_of_a_replica(self) -> None:
        world, rng = self.world, self.rng
        up = [node for node in world.nodes.values() if node.running]
        down = [node for node in world.nodes.values() if not node.running]
        kinds = ("kill", "kill", "restart", "restart", "cut", "isolate", "heal", "heal", "pause", "slow", "power cut")
        match rng.choice(kinds):
            case "power cut":
                for node in up:
                    node.kill()
                    world.clock.after(rng.randrange(SECOND), world.restart, node.me)
            case "kill" if len(up) > 1:
                victim = rng.choice(up)
                victim.kill()
                if rng.random() < 0.7:
                    world.clock.after(rng.randrange(100 * MS), self._certify, victim, victim.life)
            case "restart" if down:
                rng.choice(down).start()
            case "cut":
                world.network.cut(*rng.sample(world.replica_ids, 2))
            case "isolate" if not world.network.cuts:
                world.isolate(rng.choice(world.replica_ids))
            case "heal":
                world.heal()
            case "pause" if up:
                node = rng.choice(up)
                node.pause()
                world.clock.after(rng.choice((50 * MS, 700 * MS, 2 * SECOND)), node.wake)
            case "slow" if up:
                rng.choice(up).disk.slow = rng.choice((0, 1))

    def _certify(self, victim: Node, life: int) -> None:
        if not victim.running and victim.life == life:
            self.world.certify(victim.me)


def play(
    path: Path, seed: int, monkeypatch: pytest.MonkeyPatch, rules: frozenset[str] = RULES, time: int = RUN
) -> dict[str, Any]:
    """One run, for *time* and until everything is over. Returns what happened in it.

    A quarter of the seeds has no faults, a quarter those of clients alone, a quarter those of replicas alone.
    """
    monkeypatch.setattr(limits, "SESSION_TIMEOUT_US", (3 if seed % 5 == 4 else 60) * SECOND)
    if seed % 3 == 0:
        monkeypatch.setattr(group_limits, "RECENT_ITEMS", 24)
        monkeypatch.setattr(group_limits, "JOIN_CLOSE", 4)
    world = Holding(path, seed, witnesses=seed % 2, inline=4096)
    try:
        crowd = Crowd(world, rules)
        world.notice = world.rng.choice((0, 50 * MS, SECOND))
        end = world.clock.now + time
        while world.clock.now < end:
            world.run(world.rng.randrange(100 * MS, 800 * MS))
            if seed % 4 in (1, 3):
                crowd.fault_of_a_client()
            if seed % 4 in (2, 3):
                crowd.fault_of_a_replica()
        world.settle()
        world.run(300 * MS)
        crowd.stopped = True
        world.settle()
        world.patiently(lambda: not any(h.busy or h.unborn for h in crowd.holders if h.alive))
        last = world.holder("last", 1, delegates=False)
        found: list[int] = []
        todo = list(crowd.roots)
        while todo:
            listing = last.ask(ops.ReadDir(world.cred, todo.pop(), 0, 4096))
            world.until(lambda: not last.busy)
            for name, _, attr in listing.body[0]:
                (todo if name in BELOW else found).append(attr[0])
        for ino in found:
            last.ask(ops.Open(world.cred, ino, 0))
        world.until(lambda: not last.busy)
        world.finish()
        world.judge(crowd.roots)
        waits = [d.ended - d.began for d in world.deeds if d.ended is not None]
        if seed % 4 == 0:
            assert not world.revoked and max(waits) < SECOND, f"{world.revoked}, longest wait {max(waits)}"
        return {
            "deeds": len(world.deeds),
            "by itself": len(world.made),
            "revoked": len(world.revoked),
            "longest": max(waits),
            "views": world.nodes[1].replica.group.core.newest.epoch,
        }
    finally:
        world.close()


def away(path: Path, cut: bool, rules: frozenset[str] = RULES) -> None:
    """A holder is stopped for longer than it takes to revoke; *cut*: its connection breaks, too. Meanwhile somebody
    else makes a file; then it goes on."""
    world = Holding(path, 1, inline=4096)
    try:
        above = world.ask(world.user("first"), ops.Mkdir(world.cred, TOP, b"d", 0o777))[0]
        holder, other = world.holder("holder", 1, rules=rules), world.holder("other", 2, delegates=False)

        def ask(who: Holder, what: Any) -> None:
            who.ask(what)
            world.until(lambda: not who.busy and not who.unborn)

        ask(holder, ops.Lookup(world.cred, above, b"x"))
        holder.want(above)
        world.until(lambda: above in holder.held)
        holder.pause()
        if cut:
            assert holder.line is not None
            holder.line.cut()
        ask(other, ops.Create(world.cred, above, b"x", 0o644))
        assert world.revoked
        holder.wake()
        if cut:
            world.until(lambda: holder.attached and holder.until > world.clock.now)
        else:
            ask(holder, ops.Create(world.cred, above, b"x", 0o644))
        for name in NAMES:
            ask(holder, ops.Lookup(world.cred, above, name))
            made = holder.ask(ops.Create(world.cred, above, name, 0o644))
            if made.ended is not None:
                world.run(1)
                other.ask(ops.Lookup(world.cred, above, name))
            world.until(lambda: not (holder.busy or holder.unborn or other.busy))
        world.finish()
        world.judge([above])
    finally:
        world.close()


@pytest.mark.parametrize("cut", [False, True])
def test_a_client_that_was_away_uses_nothing_that_was_taken_from_it(tmp_path: Path, cut: bool) -> None:
    away(tmp_path, cut)


@pytest.mark.parametrize("seed", range(4))
def test_what_clients_answer_by_themselves_is_true_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    assert play(tmp_path, seed, monkeypatch, time=3 * SECOND)["by itself"] > 10


def _no_recall_for_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Delegating, "keep_from", lambda self, session, read: {})


def _not_looked_at_when_executed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "in_the_way", lambda *of: [])


def _absent_names_depend_on_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    depends = locksets.depends
    removals = ops.Unlink | ops.Rmdir | ops.Rename
    monkeypatch.setattr(
        locksets, "depends", lambda op, seen: (locksets.touched if isinstance(op, removals) else depends)(op, seen)
    )


def _not_told_of_recalls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Delegating, "tell", lambda self, clients, op: None)


def _told_nothing_on_attach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Delegating, "attached", lambda self, client: None)


def _not_told_on_attach_what_was_revoked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delegations.Holder, "revoked", property(lambda self: ()), raising=False)


def _revoked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "DELEGATION_REVOKE_US", 0)


def _others_keep_what_they_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(locksets._TOUCHES, Delegate, locksets._nothing)


def _what_is_delegated_outlives_its_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delegations, "end_all", lambda scope, session: None)


MUTANTS: Final[dict[str, Callable[[pytest.MonkeyPatch], None]]] = {
    made.__name__.strip("_").replace("_", " "): made
    for made in (
        _no_recall_for_queries,
        _not_looked_at_when_executed,
        _absent_names_depend_on_nothing,
        _not_told_of_recalls,
        _told_nothing_on_attach,
        _not_told_on_attach_what_was_revoked,
        _revoked_at_once,
        _others_keep_what_they_know,
        _what_is_delegated_outlives_its_session,
    )
}
"""The service with a rule switched off."""
AWAY_WITHOUT: Final = {"lease": False, "not told on attach what was revoked": True}
"""Rules that random runs seldom need -> how somebody is :func:`away` then."""


def finds(mutant: str, path: Path, seed: int, time: int = RUN) -> str:
    """What is found wrong in a run with one rule switched off, of the service or of clients; empty: nothing."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(linearizable, "CONFIGURATIONS_MAX", 5000)  # what is wrong early makes the search a long one
        rules = RULES - {mutant}
        if mutant in MUTANTS:
            MUTANTS[mutant](monkeypatch)
        try:
            if mutant in AWAY_WITHOUT:
                away(path, AWAY_WITHOUT[mutant], rules)
            else:
                play(path, seed, monkeypatch, rules, time)
        except AssertionError as exc:
            where = traceback.extract_tb(exc.__traceback__)[-1]
            return f"{where.name}: {exc}"
        except linearizable.SearchTooBig:
            return ""  # that shows nothing
    return ""


@pytest.mark.parametrize(
    ("mutant", "first"),
    [
        ("absent", 0),
        ("births", 1),
        ("lease", 0),
        ("no recall for queries", 0),
        ("not looked at when executed", 0),
        ("not told on attach what was revoked", 0),
        ("others keep what they know", 0),
    ],
)
def test_a_rule_that_is_not_kept_is_found(tmp_path: Path, mutant: str, first: int) -> None:
    """The rest take longer: ``python -m tests.mds.test_delegation_random mutants``."""
    for seed in range(first, first + 8):
        path = tmp_path / str(seed)
        path.mkdir()
        if finds(mutant, path, seed, 2 * SECOND):
            return
    pytest.fail(f"nothing is found without {mutant!r}")


def mutants(seeds: range) -> None:
    for mutant in sorted(RULES) + sorted(MUTANTS):
        found = {}
        for seed in seeds:
            with tempfile.TemporaryDirectory() as path:
                if what := finds(mutant, Path(path), seed):
                    found[seed] = what
        print(f"{mutant}: {sorted(found)}")
        for seed, what in list(found.items())[:2]:
            print(f"    {seed}: {what}"[:300].replace("\n", " "), flush=True)


def main() -> None:
    if sys.argv[1:2] == ["mutants"]:
        first, count = (int(sys.argv[2]), int(sys.argv[3])) if len(sys.argv) > 3 else (0, 8)
        mutants(range(first, first + count))
        return
    first = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 100
    failed = []
    for seed in range(first, first + count):
        with pytest.MonkeyPatch.context() as monkeypatch, tempfile.TemporaryDirectory() as path:
            try:
                print(seed, play(Path(path), seed, monkeypatch), flush=True)
            except AssertionError as exc:
                failed.append(seed)
                where = traceback.extract_tb(exc.__traceback__)[-1]
                print(f"{seed} FAILED in {where.name}: {exc}"[:4000], flush=True)
    print(f"{len(failed)} of {count} failed: {failed}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()

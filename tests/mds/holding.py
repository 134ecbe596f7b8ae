"""A metadata service whose clients hold delegations, and a judge of all that they were told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from client.attributes import Attr
from mds.machine import Outcome
from tests.linearizable import Operation, check
from tests.mds.group import Group
from tests.mds.holders import RULES, Deed, Holder, directories
from tests.mds.tree import Tree, essence
from tests.sim.clock import MS
from wire import ops
from wire.codec import unpack_untrusted
from wire.delegation import CreateDelegated, Delegate, RecallDelegations, RevokeDelegations, Undelegate
from wire.errors import OK

REVOKED_AFTER: Final = 2900 * MS
WELL: Final = 2500 * MS
"""A client whose lease has run for so long has been told that a directory is wanted back, and had time for it."""


@dataclass
class Executed:
    """What came of a request."""

    at: int
    """When the first replica executed it: from then on everybody sees it, and before nobody."""
    status: int
    body: Any


class Holding(Group):
    """A service whose clients hold delegations. Everything that they are told is kept, and judged at the end."""

    def __init__(self, *args: Any, **more: Any) -> None:
        self.cred = ops.Cred(0, 0, (0,))
        self.deeds: list[Deed] = []
        self.made: dict[int, Deed] = {}
        """Files that clients have made by themselves."""
        self.outcomes: dict[tuple[int, int, int], Executed] = {}
        self.born: dict[int, int] = {}
        """When they were first executed anywhere."""
        self.revoked: list[tuple[int, int, int]] = []
        """(when, directory, session)"""
        self.ended: dict[int, int] = {}
        """Session -> when it was closed or has expired."""
        self._recalled: dict[tuple[int, int], int] = {}
        """(directory, session) -> when it was called back."""
        self._delegated: dict[int, int] = {}
        """Directory -> session, by what was executed anywhere."""
        super().__init__(*args, **more)
        self.validate_every = 16
        self.same_time = self.seed % 7 != 6
        """What a client foretells is exact if no replica's clock is behind."""
        for node in self.nodes.values():
            node.skew = 0 if self.same_time else self.rng.randrange(100 * MS)
        self.network.delay = self.rng.choice((200, 400, 2000))

    def holder(self, name: str, at: int, delegates: bool = True, rules: frozenset[str] = RULES) -> Holder:
        """A client that is attached to replica *at*, with its cache lease running."""
        made = Holder(self, name, delegates, rules)
        self.users.append(made)
        made.connect(at)
        self.until(lambda: made.attached)
        made.caches()
        self.until(lambda: made.until > self.clock.now)
        return made

    @property
    def holders(self) -> list[Holder]:
        return [user for user in self.users if isinstance(user, Holder)]

    # -- what happens

    def applied(self, index: int, outcomes: list[Outcome], operations: list[Any]) -> None:
        super().applied(index, outcomes, operations)
        now = self.clock.now
        for outcome, op in zip(outcomes, operations, strict=True):
            request = outcome.session, outcome.slot, outcome.number
            if request in self.outcomes or (outcome.session and not outcome.store_reply):
                continue
            body = unpack_untrusted(outcome.body) if outcome.status == OK else None
            self.outcomes[request] = Executed(now, outcome.status, body)
            if outcome.session_gone:
                self.ended.setdefault(outcome.session_gone, now)
                self._delegated = {d: s for d, s in self._delegated.items() if s != outcome.session_gone}
            if outcome.status != OK:
                continue
            match op:
                case CreateDelegated():
                    self.born[op.ino] = now
                case Delegate() if body is not None:
                    if self._delegated.get(op.parent) != outcome.session:
                        self._recalled.pop((op.parent, outcome.session), None)
                    self._delegated[op.parent] = outcome.session
                case Undelegate(parents):
                    for directory in parents:
                        if self._delegated.get(directory) == outcome.session:
                            del self._delegated[directory]
                case RecallDelegations(parents):
                    for directory in parents:
                        self._recalled.setdefault((directory, self._delegated.get(directory, 0)), now)
                case RevokeDelegations(delegations):
                    for directory, session in delegations:
                        if self._delegated.get(directory) == session:
                            del self._delegated[directory]
                            self._was_revoked(directory, session)

    def _was_revoked(self, directory: int, session: int) -> None:
        now = self.clock.now
        self.revoked.append((now, directory, session))
        holder = next(user for user in self.holders if user.session == session)
        assert now - self._recalled[directory, session] >= REVOKED_AFTER, f"too early ({self.describe()})"
        well = holder.well_since if holder.alive and not holder.paused and now < holder.until else None
        assert well is None or now - well < WELL, (
            f"{directory} is revoked although {holder.name} has been well for {(now - well) / MS} ms "
            f"({self.describe()})"
        )

    def refused(self, user: Holder, request: CreateDelegated, status: int) -> None:
        """A file that its client had answered for could not be ordered: only because the delegation was revoked."""
        deed = self.made[request.ino]
        assert self.excused(deed) is not None, (
            f"{user.name} has made {request.name!r} in {request.parent} and is told {status} ({self.describe()})"
        )

    def foretold(self, attr: Attr, born: Attr) -> None:
        """A file is what its client has said that it would be."""
        if not self.same_time:
            attr = attr._replace(atime_ns=born.atime_ns, mtime_ns=born.mtime_ns, ctime_ns=born.ctime_ns)
        assert attr == born._replace(layout=None), f"foretold {attr}, born as {born} ({self.describe()})"

    # -- the judge

    def excused(self, deed: Deed) -> int | None:
        """The client has died, or was not heard and its delegation revoked, or its session has expired, before the
        file was ordered: when that was."""
        request, user = deed.what, deed.user
        whens = [
            when for when, directory, session in self.revoked if (directory, session) == (request.parent, user.session)
        ]
        whens += [when for when in (user.died, self.ended.get(user.session)) if when is not None]
        born = self.born.get(deed.body[0])
        assert deed.ended is not None
        return min((when for when in whens if deed.ended <= when and (born is None or when < born)), default=None)

    def judge(self, roots: list[int]) -> None:
        """Everything that anyone was told can be explained, with files made where and when their client said so."""
        told = [operation for deed in self.deeds if (operation := self._operation(deed)) is not None]
        verdict = check(Tree(roots), told)
        if not verdict:
            culprit = verdict.impossible
            assert culprit is not None
            about = directories(culprit.what)
            assert culprit.ended is not None
            near = [
                deed
                for deed in self.deeds
                if directories(deed.what) & about
                and deed.began <= culprit.ended
                and (deed.ended or culprit.ended) > culprit.began - 500 * MS
            ]
            raise AssertionError(
                f"{self.describe()}: no order explains {culprit}\nbefore it: {verdict.before[:1]}\n"
                + "\n".join(map(str, near))
            )
        self._judge_contents()
        if self.same_time:
            self._judge_times()

    def _operation(self, deed: Deed) -> Operation | None:
        """The deed as the checker takes it; None: it says nothing."""
        if isinstance(deed.what, ops.Open | ops.SetAttr | ops.SetXattr | ops.RemoveXattr):
            return None
        name = deed.user.name
        if deed.itself and (excuse := self.excused(deed)) is None:
            assert deed.body[0] in self.born, f"{deed} is lost ({self.describe()})"
        if deed.ended is not None and not (deed.itself and excuse is not None):
            return Operation(name, deed.what, deed.began, deed.ended, deed.answer)
        if deed.itself:
            born = self.born.get(deed.body[0])
            return None if born is None else Operation(name, deed.what, deed.began, born, deed.answer)
        if deed.call is None or deed.call.slot < 0:
            return None
        came = self.outcomes.get((deed.user.session, deed.call.slot, deed.call.number))
        if came is None:
            return None
        return Operation(name, deed.what, deed.began, came.at, essence(deed.what, came.status, came.body))

    def _judge_contents(self) -> None:
        for deed in self.deeds:
            if isinstance(deed.what, ops.Open) and deed.status == OK:
                made = self.made.get(deed.what.ino)
                data = made.data if made is not None else b""
                assert deed.body[1][1] == data, f"{deed}, it was made with {data!r} ({self.describe()})"

    def _judge_times(self) -> None:
        """A directory's time of change never goes back, and covers what was answered before it was asked for."""
        stats = [deed for deed in self.deeds if isinstance(deed.what, ops.GetAttr) and deed.status == OK]
        stats.sort(key=lambda deed: deed.began)
        changes = [
            (d.ended, d.what.parent, d.body[7])  # atime: when it was made
            for d in self.deeds
            if isinstance(d.what, ops.Create) and d.status == OK and not (d.itself and self.excused(d) is not None)
        ]
        changes += [(d.ended, d.what.ino, d.body[9]) for d in stats]
        changes.sort(key=lambda change: change[0])
        latest: dict[int, int] = {}
        k = 0
        for deed in stats:
            while k < len(changes) and changes[k][0] < deed.began:
                latest[changes[k][1]] = max(latest.get(changes[k][1], 0), changes[k][2])
                k += 1
            assert deed.body[9] >= latest.get(deed.what.ino, 0), f"{deed}: its time went back ({self.describe()})"

    def patiently(self, reached: Callable[[], Any]) -> None:
        """As :meth:`until`, and says who waits for what."""
        try:
            self.until(reached)
        except AssertionError as exc:
            waiting = [f"{h.name} at {h.at}: {call.op}, {call.refusals}" for h in self.holders for call in h.calls]
            waiting += [f"{h.name}: {deed}" for h in self.holders for deed in h.waiting]
            waiting += [f"{n.me}: {n.replica.state.delegated}" for n in self.nodes.values()]
            raise AssertionError("\n".join((str(exc), *waiting))) from None

    def settle(self) -> None:
        for holder in self.holders:
            holder.wake()
        super().settle()

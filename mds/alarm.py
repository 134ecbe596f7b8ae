"""Pure. Whether the replicas' states are alike: compared always, at an equal index, between the members of a view.

Two *marks* are compared. The *digest* sums up what every request applied has written, so a replica that executes one
otherwise than the others, because of a wrong record or of a program that is not deterministic, is found with that
request. The *sum of records* (:mod:`mds.seal`) is what the state on disk comes to, whether anybody has touched it
since or not; it is known at the index of a commit, so it is compared whenever two replicas have committed at the same
one: always when nothing is asked of the service for a second, else now and then.

A digest once different stays different, so it does not matter at which of the later indexes it is compared. Each
member tells the others its latest marks, up to where it has found each of them alike, and from where unlike. From that:

- More than half of the members were alike at or after the index at which anything was unlike: they are right.
- A member that more than half of the members, alike among themselves, differ from is the one that is wrong.
- Else nobody is known to be right. A difference is *doubt* first, until all have said what they know; when that does
  not settle it, it is a *tie*, which outlasts views and restarts. It ends when a majority is found after all (a replica
  that was away comes back, executes what it missed, and agrees), or when an administrator decides; never by time.

Members alone are counted, each as one: with one of three replicas down a difference between the other two is a tie.
Only within one view are marks compared, because there histories are the same by the order's promise; and a replica
that is merely behind says nothing that contradicts anybody. Nor does one that is ahead of something that waits: a
digest is of everything up to its index and nothing beyond (:mod:`mds.digest`), a sum of records of a state in which
nothing waits.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from enum import Enum
from typing import Final

from wire.group import Digests, Mark

DIGESTS_KEPT: Final = 4096
"""Indexes of which the digest is remembered: at a thousand messages a second those of some seconds."""
RECORDS_KEPT: Final = 64
"""Commits of which the sum of records is remembered: those of half a minute."""
AHEAD: Final = 64
"""Marks of one member kept until this replica is as far. The first ones: it comes to them whatever follows."""
TIE_AFTER_US: Final = 3_000_000
"""Doubt that lasts so long is a tie: nothing is applied meanwhile, so all have committed at one index by then."""
SAY_EVERY_US: Final = 200_000
"""How often a member tells the others its marks."""

_NEVER: Final = 1 << 62


class Standing(Enum):
    """What the comparison says of this replica."""

    ALIKE = "alike"
    """Nothing speaks against its state: it serves."""
    DOUBT = "doubt"
    """Replicas differ, and it is not known yet which are right: what is asked waits."""
    TIE = "tie"
    """Nobody is known to be right: nothing is answered or changed."""
    MINORITY = "minority"
    """Most others agree on another state: this one is to be given up."""


class Comparison:
    """Of one kind of mark, at one replica."""

    def __init__(self, me: int, kept: int) -> None:
        self.me = me
        self.latest: tuple[int, int] = (-1, 0)
        """(index, mark) of our own."""
        self.alike: dict[int, int] = {}
        """Member -> highest index at which it is known to be like us."""
        self.unlike: dict[int, int] = {}
        """Member -> the index at which it was first found to differ, in this view."""
        self._kept = kept
        self._mine = [self.latest] * kept
        """(index, mark) of our own, each in its place by its index: an older one makes room for it."""
        self._told: dict[int, dict[int, int]] = {}
        """Member -> its marks at indexes above :attr:`latest`."""
        self._next = _NEVER
        """The lowest index in there."""
        self._others: dict[int, tuple[dict[int, int], dict[int, int]]] = {}
        """Member -> (whom it found alike, unlike), as above."""

    def new_view(self) -> None:
        """Whom others were like or unlike counts no more."""
        self.alike.clear()
        self.unlike.clear()
        self._told.clear()
        self._others.clear()
        self._next = _NEVER

    def note(self, index: int, mark: int) -> bool:
        """Our own mark at *index*. True: by it a member is found to differ."""
        self.latest = index, mark
        self._mine[index % self._kept] = self.latest
        return self._next <= index and self._catch_up(index)

    def _catch_up(self, index: int) -> bool:
        news = False
        self._next = _NEVER
        for peer, marks in self._told.items():
            for at in sorted(marks):
                if at > index:
                    self._next = min(self._next, at)
                    break
                mark = marks.pop(at)
                news |= self._compare(peer, at, mark)
        return news

    def take(self, peer: int, said: Mark) -> None:
        """*peer* has said this."""
        index, mark, alike, unlike = said
        self._others[peer] = dict(alike), dict(unlike)
        if index <= self.latest[0]:
            self._compare(peer, index, mark)
        else:
            told = self._told.setdefault(peer, {})
            if len(told) < AHEAD:
                told[index] = mark
                self._next = min(self._next, index)

    def _compare(self, peer: int, index: int, mark: int) -> bool:
        """*peer* has this mark at *index*. True: it is found to differ, for the first time."""
        at, mine = self._mine[index % self._kept]
        if index < 0 or at != index:
            return False  # not known (any more)
        if mine == mark:
            self.alike[peer] = max(index, self.alike.get(peer, index))
            return False
        return self.unlike.setdefault(peer, index) == index

    def mark(self) -> Mark:
        """What we have to say."""
        return (*self.latest, tuple(sorted(self.alike.items())), tuple(sorted(self.unlike.items())))

    def _like_us(self, peer: int) -> int:
        """The highest index at which *peer* is known to be like us, by it or by us; -1: none."""
        return max(self.alike.get(peer, -1), self._others.get(peer, ({}, {}))[0].get(self.me, -1))

    def differing(self, members: Collection[int]) -> int:
        """The highest index at which one of *members* was first found to differ from another; -1: none was."""
        found = [at for peer, at in self.unlike.items() if peer in members]
        for peer, (_, unlike) in self._others.items():
            found += [at for other, at in unlike.items() if peer in members and other in members]
        return max(found, default=-1)

    def with_us(self, members: Collection[int]) -> int:
        """How many of *members*, we included, are known to be like us since the last that differed."""
        since = max(self.differing(members), 0)
        return 1 + sum(1 for peer in members if peer != self.me and self._like_us(peer) >= since)

    def standing(self, members: Collection[int]) -> Standing:
        """What this kind of mark says of us: not TIE, which is a matter of time."""
        if self.differing(members) < 0 or 2 * self.with_us(members) > len(members):
            return Standing.ALIKE
        for peer in members:
            alike, unlike = self._others.get(peer, ({}, {}))
            known = [at for at in (self.unlike.get(peer), unlike.get(self.me)) if at is not None]
            if known:
                group = 1 + sum(1 for p, at in alike.items() if p in members and p != self.me and at >= min(known))
                if 2 * group > len(members):
                    return Standing.MINORITY
        return Standing.DOUBT


class Alarm:
    """See the module. *me* is this replica; *tie*: what was found before its last start, if that was a tie."""

    def __init__(self, me: int, tie: str = "") -> None:
        self.me = me
        self.epoch = -1
        self.members: tuple[int, ...] = ()
        self.digests = Comparison(me, DIGESTS_KEPT)
        self.records = Comparison(me, RECORDS_KEPT)
        self.tie = tie
        """What differs, while nobody is known to be right."""
        self._since: int | None = None
        """Since when there is doubt."""

    def new_view(self, epoch: int, members: Iterable[int]) -> None:
        """This replica is an active member of the view of *epoch* now."""
        self.epoch = epoch
        self.members = tuple(members)
        self._since = None
        for comparison in (self.digests, self.records):
            comparison.new_view()

    def replaced(self) -> None:
        """Another state has taken the place of ours: nothing that was found is about that one."""
        self.digests = Comparison(self.me, DIGESTS_KEPT)
        self.records = Comparison(self.me, RECORDS_KEPT)
        self.trust()

    def trust(self) -> None:
        """An administrator has decided: compare anew."""
        self.tie = ""
        self.new_view(-1, ())

    def take(self, peer: int, said: Digests) -> bool:
        """*peer* has said this. False: not as a member of our view; its next one comes soon."""
        if said.epoch != self.epoch or peer == self.me or peer not in self.members:
            return False
        self.digests.take(peer, said.applied)
        self.records.take(peer, said.written)
        return True

    def message(self, ask: bool) -> Digests:
        """What we have to say. *ask*: each is to answer with its own at once."""
        return Digests(self.epoch, ask, self.digests.mark(), self.records.mark())

    def judge(self, now: int) -> Standing:
        """Where we stand at *now* (us)."""
        standings = [kind.standing(self.members) for kind in (self.digests, self.records)]
        if Standing.MINORITY in standings:
            return Standing.MINORITY
        if Standing.DOUBT not in standings:
            self._since = None
            if self.tie and self._agreed():
                self.tie = ""
            return Standing.TIE if self.tie else Standing.ALIKE
        if self._since is None:
            self._since = now
        if len(self.members) == 2 or now - self._since >= TIE_AFTER_US:
            self.tie = self.tie or self.describe()
        return Standing.TIE if self.tie else Standing.DOUBT

    def _agreed(self) -> bool:
        """A majority, and not of one alone, is alike in everything."""
        counts = [kind.with_us(self.members) for kind in (self.digests, self.records)]
        return all(count > 1 and 2 * count > len(self.members) for count in counts)

    def describe(self) -> str:
        """Who differs, in words; "" for nobody."""
        found = [
            f"replica {peer} {what} from replica {self.me} at index {index}"
            for kind, what in ((self.digests, "differs"), (self.records, "differs in its records"))
            for peer, index in sorted(kind.unlike.items())
        ]
        return ", ".join(found) or ("other replicas differ" if self._others_differ() else "")

    def _others_differ(self) -> bool:
        return any(kind.differing(self.members) >= 0 for kind in (self.digests, self.records))

    def validate(self) -> None:
        """For tests: what is kept is bounded."""
        for kind, kept in ((self.digests, DIGESTS_KEPT), (self.records, RECORDS_KEPT)):
            assert len(kind._mine) == kept
            assert all(len(marks) <= AHEAD for marks in kind._told.values())
            assert {*kind.alike, *kind.unlike, *kind._told, *kind._others} <= set(self.members) - {self.me}

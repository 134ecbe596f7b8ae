"""Pure. Which directories this session is delegated (wire.delegation), what it may use there, and when it asks.

A directory is asked for when files are being made in it one after the other. While it is delegated nobody else makes or
removes names there or changes the directory, so what is known of it stays true but for what we do ourselves. It is
given back when it is recalled, when it has not been of use for a while, and before we change its mode or owner.

Times are seconds of one clock, whichever the caller has.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, Final

from client import limits
from client.attributes import Attr, attr_untrusted
from wire.errors import WireError
from wire.ops import Cred

W: Final = 2
X: Final = 1
_REGULAR: Final = 0o100000
_SET_GID: Final = 0o2000
_SET_GID_EXECUTABLE: Final = 0o2010


class Clock:
    """What time it is at the service, never ahead of it as long as its clock is not set back."""

    def __init__(self) -> None:
        self._ahead_ns: int | None = None
        """The service's time since the epoch, less our clock; None: not known."""
        self._last_ns = 0

    def told(self, time_ns: int, now_ns: int) -> None:
        """The service said that it was *time_ns*, a moment before our clock showed *now_ns*."""
        self._ahead_ns = time_ns - now_ns

    def was(self, time_ns: int, now_ns: int) -> None:
        """Something at the service was at *time_ns*, and our clock shows *now_ns* after it: it is later there."""
        if self._ahead_ns is not None:
            self._ahead_ns = max(self._ahead_ns, time_ns - now_ns)

    def too_late(self, by_ns: int) -> None:
        """What :meth:`now` said was ahead of the service by so much."""
        if self._ahead_ns is not None:
            self._ahead_ns -= by_ns
        self._last_ns = 0

    def now(self, now_ns: int, not_before_ns: int) -> int:
        """The time of what is done now; it never goes back from one to the next, nor before *not_before_ns*."""
        assert self._ahead_ns is not None, "it comes with the first delegation"
        self._last_ns = max(now_ns + self._ahead_ns, self._last_ns, not_before_ns)
        return self._last_ns


class Numbers:
    """Inode numbers that the service has given this session. It remembers the last few blocks only."""

    def __init__(self) -> None:
        self._blocks: deque[tuple[int, int, int]] = deque()
        """(which block, next number, one past its last), oldest first."""
        self._given = 0
        self.left = 0

    def add(self, first: int, count: int) -> None:
        """A block came. What is left of older ones is dropped in time, before the service does so."""
        self._given += 1
        self._blocks.append((self._given, first, first + count))
        self.left += count
        self._drop()

    def _drop(self) -> None:
        while self._blocks and self._given - self._blocks[0][0] >= limits.NUMBER_BLOCKS:
            _, number, stop = self._blocks.popleft()
            self.left -= stop - number

    def missed(self) -> None:
        """A block may have been given that we were not told of, and counts at the service."""
        self._given += 1
        self._drop()

    def take(self) -> tuple[int, int]:
        """(a number, the block it is of). There has to be one left."""
        block, number, stop = self._blocks[0]
        self.left -= 1
        if number + 1 == stop:
            self._blocks.popleft()
        else:
            self._blocks[0] = (block, number + 1, stop)
        return number, block

    def may_grow(self, oldest: int) -> bool:
        """Whether another block may be asked for while a number of block *oldest* (0: none) is yet to be ordered."""
        return not oldest or self._given - oldest < limits.NUMBER_BLOCKS_USED

    def clear(self) -> None:
        """The session is lost."""
        self._blocks.clear()
        self.left = 0


@dataclass(slots=True)
class Delegated:
    """One directory."""

    attr: Attr
    """Its mode, owner and group hold as long as it is delegated; its times have moved since."""
    inline: int
    """The limit of new files."""
    used: float
    listed: float
    """When it was listed last."""


@dataclass(slots=True)
class _Refused:
    until: float
    pause: float


class Delegations:
    """See the module."""

    def __init__(self) -> None:
        self.held: dict[int, Delegated] = {}
        """Those in which files are made here, the one used last at the end."""
        self.returning: set[int] = set()
        """Those being given back: not to be asked for before that is done, or it would take the new one."""
        self.asking: dict[int, bool] = {}
        """Those that Delegate is under way for; True: what it brings is to be given back."""
        self.numbers = Numbers()
        self.clock = Clock()
        self._bursts: dict[int, tuple[float, int]] = {}
        """Directory -> (since when, creates that the service answered since)."""
        self._refused: dict[int, _Refused] = {}

    # -- asking

    def created(self, parent: int, now: float) -> bool:
        """The service has made a file in *parent* for us; whether to ask for the directory."""
        since, count = self._bursts.pop(parent, (now, 0))
        if now - since > limits.BURST_S:
            since, count = now, 0
        self._bursts[parent] = (since, count + 1)
        if len(self._bursts) > limits.BURSTS_MAX:
            del self._bursts[next(iter(self._bursts))]
        return count + 1 >= limits.BURST_CREATES and self.may_ask(parent, now)

    def may_ask(self, parent: int, now: float) -> bool:
        """Whether *parent* may be asked for, as far as it is known here."""
        if parent in self.asking or parent in self.returning:
            return False
        refused = self._refused.get(parent)
        return refused is None or now >= refused.until

    def needs_numbers(self, parent: int, now: float) -> bool:
        """Whether to ask for the delegated *parent* again, for the numbers that come with it."""
        return self.numbers.left < limits.NUMBERS_LOW and not self.asking and self.may_ask(parent, now)

    def answered(self, parent: int, result: Any, time: float, time_ns: int) -> bool:
        """Delegate of *parent* was answered, at *time* (of the service's clock's counterpart here: *time_ns*).
        *result*: as in wire.delegation. False: there is something to give back.

        Raises :class:`wire.errors.WireError` for what is no such result.
        """
        if result is None:
            return self.failed(parent, time)
        values, first, count, inline, told_ns = _result_untrusted(result)
        attr = attr_untrusted(values)
        spoilt = self.asking.pop(parent)
        self.numbers.add(first, count)
        self.clock.told(told_ns, time_ns)
        there = self.held.pop(parent, None)
        # mtime in the future: making a file would end that, and here it only ever moves it forward.
        if spoilt or attr.mtime_ns > attr.ctime_ns or attr.acl or attr.quota or inline <= 0:
            if not spoilt:
                self.refused(parent, time)
            return False
        used, listed = (time, time) if there is None else (there.used, there.listed)
        self.held[parent] = Delegated(attr, inline, used, listed)
        return True

    def failed(self, parent: int, now: float) -> bool:
        """Delegate of *parent* brought nothing. False: there is something to give back all the same."""
        self.refused(parent, now)
        return not self.asking.pop(parent)

    def refused(self, parent: int, now: float) -> None:
        """It was refused, or recalled: not to be asked for again too soon."""
        before = self._refused.pop(parent, None)
        pause = limits.REFUSED_FIRST_S
        if before is not None:
            if now < before.until:
                pause = before.pause  # one more of the same
            elif now < before.until + before.pause:
                pause = min(2 * before.pause, limits.REFUSED_MAX_S)
        self._refused[parent] = _Refused(now + pause, pause)
        if len(self._refused) > limits.BURSTS_MAX:
            del self._refused[next(iter(self._refused))]

    # -- using

    def of(self, cred: Cred, parent: int) -> Delegated | None:
        """The delegated directory *parent*, if *cred* may make files there and a number is left for one."""
        found = self.held.get(parent)
        if found is None or not self.numbers.left or not may(found.attr, cred, W | X):
            return None
        return found

    def made(self, parent: int, now: float) -> None:
        """A file was made in *parent* here."""
        found = self.held.pop(parent)
        found.used = now
        self.held[parent] = found

    def may_list(self, parent: int, now: float) -> bool:
        """Whether the delegated *parent* may be listed again, all names of which are not known any more."""
        found = self.held[parent]
        if now - found.listed < limits.LIST_PAUSE_S:
            return False
        found.listed = now
        return True

    # -- giving back

    def take_back(self, parents: tuple[int, ...]) -> tuple[int, ...]:
        """No file is made here in *parents* any more; those to give back now, others when their answer is there."""
        for parent in parents:
            self.held.pop(parent, None)
            if parent in self.asking:
                # Which of the two the service gets first is not known.
                self.asking[parent] = True
        now = tuple(parent for parent in parents if parent not in self.returning and parent not in self.asking)
        self.returning.update(now)
        return now

    def returned(self, parents: tuple[int, ...]) -> None:
        """They are given back."""
        self.returning.difference_update(parents)

    def unused(self, now: float) -> tuple[int, ...]:
        """Those to give back because they are of no use."""
        return tuple(parent for parent, one in self.held.items() if now - one.used > limits.DELEGATED_IDLE_S)

    def too_many(self) -> tuple[int, ...]:
        """Those to give back before another one is asked for: used longest ago."""
        if len(self.held) + len(self.asking) + len(self.returning) < limits.DELEGATED_MAX:
            return ()
        return tuple(self.held)[: limits.DELEGATED_TOGETHER]

    def lost(self) -> None:
        """The session is lost, and with it everything that was its own."""
        self.held.clear()
        self.numbers.clear()

    def validate(self) -> None:
        """What holds after every call."""
        assert self.held.keys().isdisjoint(self.returning)
        assert not any(self.asking[parent] for parent in self.held if parent in self.asking)
        assert len(self._bursts) <= limits.BURSTS_MAX and len(self._refused) <= limits.BURSTS_MAX
        assert self.numbers.left == sum(stop - number for _, number, stop in self.numbers._blocks)
        assert len(self.numbers._blocks) <= limits.NUMBER_BLOCKS


def _result_untrusted(result: Any) -> tuple[Any, int, int, int, int]:
    if type(result) is not tuple or len(result) != 5 or not all(type(n) is int and n >= 0 for n in result[1:]):
        raise WireError(f"a delegation is {result!r:.80}")
    values, first, count, inline, time_ns = result
    return values, first, count, inline, time_ns


def may(attr: Attr, cred: Cred, wanted: int) -> bool:
    """Whether *cred* has the rights *wanted* for *attr*, by its mode alone."""
    if cred.uid == 0:
        return True
    if cred.uid == attr.uid:
        rights = attr.mode >> 6
    elif cred.gid == attr.gid or attr.gid in cred.groups:
        rights = attr.mode >> 3
    else:
        rights = attr.mode
    return rights & wanted == wanted


def new_file(above: Attr, cred: Cred, mode: int, ino: int, inline: int, time_ns: int) -> Attr:
    """What the service will say of a new file: owner, group and set-gid bit by mds.namespace.entries.make."""
    mode = _REGULAR | mode & 0o7777
    gid = cred.gid
    if above.mode & _SET_GID:
        gid = above.gid
        if mode & _SET_GID_EXECUTABLE == _SET_GID_EXECUTABLE and cred.uid and gid not in (cred.gid, *cred.groups):
            mode &= ~_SET_GID
    return Attr(ino, mode, 1, cred.uid, gid, 0, 0, time_ns, time_ns, time_ns, None, (), inline, ino)

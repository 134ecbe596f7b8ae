"""Clients that are delegated directories: they make files by themselves, and have them ordered a moment later.

What client.delegations and the mount around it do, as little of it as stories need, and written from the protocol
alone (wire.delegation). Each rule that a client must keep has a name and can be switched off (:data:`RULES`).
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from client.attributes import Attr, attr_untrusted
from client.delegations import W, X, may
from client.namecache import ABSENT, NameCache, Stamp, Touched
from mds.namespace.inode import S_IFREG
from tests.mds.group import PING, Call, Line, User
from tests.mds.tree import READS, essence
from tests.sim.clock import MS, SECOND
from wire import messages as msg
from wire import ops
from wire.delegation import CreateDelegated, Delegate, DelegationRecall, Undelegate
from wire.errors import OK

if TYPE_CHECKING:
    from tests.mds.holding import Holding

RULES: Final = frozenset(
    {
        "absent",  # a file is made only where its name is known to be absent
        "lease",  # and while the cache lease runs
        "recalled",  # and not after the delegation was called back
        "births",  # a delegation is given back when everything made by itself is ordered
        "names",  # who asks about a name that is not ordered waits until it is
        "listing",  # who asks about a directory with files that are not ordered waits until they are
        "removal",  # no file is made by oneself while one takes directories away
        "blocks",  # numbers are used, and files ordered, before their session has been given many more
        "rights",  # a file is made only by who may
        "late",  # an answer about a name from before a file was made there is not kept
    }
)
UNBORN_MAX: Final = 24
BLOCKS_USED: Final = 12
"""The service knows the last 16 blocks of numbers of a session, and requests for them may be executed in another order
than they were sent."""
BIRTH_WITHIN: Final = 10 * MS


@dataclass(eq=False)
class Deed:
    """What an application asked of its mount, and was told."""

    user: Holder
    what: Any
    began: int
    data: bytes = b""
    """Written and closed at once (a Create that the mount answers by itself)."""
    ended: int | None = None
    status: int = -1
    body: Any = None
    call: Call | None = None
    itself: bool = False
    """The mount has answered by itself: a file that was not ordered yet."""
    made: int = 0
    """Files made by itself so far, when it was asked."""
    touched: Touched | None = None
    then: Callable[[Deed], None] = lambda deed: None

    @property
    def answer(self) -> tuple[int, Any]:
        return essence(self.what, self.status, self.body)

    def __str__(self) -> str:
        how = "by itself" if self.itself else ""
        return f"{self.began:9} {self.ended!s:>9} {self.user.name} {self.what} -> {self.status} {self.body} {how}"


@dataclass(eq=False)
class Held:
    """A directory that is delegated to us."""

    attr: Attr
    """What GetAttr would answer."""
    inline: int
    ahead_ns: int
    """Service time, less our own clock."""
    recalled: bool = False
    sure: bool = True
    """Nothing but files made by ourselves has changed the directory."""


@dataclass(eq=False)
class Unborn:
    """A file that is not ordered yet."""

    request: CreateDelegated
    attr: Attr
    """As it will be."""
    block: int
    call: Call | None = None


@dataclass
class Block:
    """Inode numbers that came with one Delegate."""

    number: int
    first: int
    end: int


class Holder(User):
    """See the module. *rules*: those that it keeps."""

    world: Holding

    def __init__(self, world: Holding, name: str, delegates: bool, rules: frozenset[str] = RULES) -> None:
        super().__init__(world, name)
        self.delegates = delegates
        self.rules = rules
        self.cache = NameCache()
        self.held: dict[int, Held] = {}
        self.unborn: dict[int, Unborn] = {}
        self.blocks: list[Block] = []
        self.numbers_used = 256
        """It takes so few of each block."""
        self.made = 0
        """Files made by itself."""
        self.paused = False
        self._reads_again = False
        self.died: int | None = None
        self.well_since: int | None = None
        """Its cache lease has run since then without a break."""
        self._runs_until = 0
        self._asking: dict[int, int] = {}
        """Directory -> number of the Delegate under way."""
        self._then: dict[int, Callable[[], Any]] = {}
        self.asked: Callable[[], Any] = lambda: None
        """Called when it asks for a directory next."""
        self._early: set[int] = set()
        """Those of them that were called back meanwhile."""
        self._giving: set[int] = set()
        """To be given back when all is ordered."""
        self._given: dict[int, Call] = {}
        """Undelegate is under way."""
        self._delegates_sent = 0
        self._deeds: dict[Call, Deed] = {}
        self.waiting: list[Deed] = []
        self._removals = 0
        self._inbox: list[Callable[[], None]] = []

    # -- life

    def pause(self) -> None:
        """SIGSTOP."""
        self.paused = True

    def wake(self) -> None:
        """SIGCONT. Applications may ask something before it has read what has come in."""
        if self.paused:
            self.paused = False
            self._reads_again = True
            self.world.clock.after(self.world.rng.randrange(3 * MS), self._read)

    def _read(self) -> None:
        if not self.paused:
            self._reads_again = False
            inbox, self._inbox = self._inbox, []
            for happen in inbox:
                self._take(happen)

    def die(self) -> None:
        """SIGKILL."""
        self.died = self.world.clock.now
        self.follows = False
        self._inbox.clear()
        self.leave()
        self.calls.clear()

    @property
    def alive(self) -> bool:
        return self.died is None and not self.expired

    def _take(self, happen: Callable[[], None]) -> None:
        if self.paused or self._reads_again:
            self._inbox.append(happen)
        else:
            happen()

    def receive(self, message: Any) -> None:
        line = self.line
        self._take(lambda: self._receive(line, message))

    def _receive(self, line: Line | None, message: Any) -> None:
        if self.died is not None or self.line is not line:
            return
        before = self._runs_until
        super().receive(message)
        now = self.world.clock.now
        match message:
            case msg.CacheLease(number, epoch, lease_us):
                until = self._kept_at[number] + lease_us
                self.cache.renewed(epoch, until / SECOND if lease_us else 0.0)
                if not lease_us:
                    return
                if now >= before:
                    self.well_since = now
                self._runs_until = max(before, until)
            case msg.Recall(_, inodes, names):
                self.cache.recall(inodes, names, now / SECOND)
            case DelegationRecall(parents):
                for directory in parents:
                    if directory not in self._given:
                        self.give_back(directory)

    def leave(self, again: bool = False, noticed_after: int = 0) -> None:
        self.cache.lost()
        self.well_since = None
        super().leave(again, noticed_after)

    def lost(self, line: Line) -> None:
        self._take(lambda: User.lost(self, line))

    def connect(self, replica: int) -> User:
        self._take(lambda: None if self.died is not None or self.line is not None else self._connect(replica))
        return self

    def _connect(self, replica: int) -> None:
        super().connect(replica)

    def _ping(self, line: Line) -> None:
        if self.paused:
            self.world.clock.after(PING, self._ping, line)
        else:
            super()._ping(line)

    def _keep(self, number: int) -> None:
        if self.paused:
            self.world.clock.after(20 * MS, self._keep, number)
        else:
            super()._keep(number)

    # -- what applications ask

    def ask(self, what: Any, then: Callable[[Deed], None] = lambda deed: None, data: bytes = b"") -> Deed:
        """An application asks *what*; *then* gets the deed when it is answered."""
        deed = Deed(self, what, self.world.clock.now, data, then=then)
        self.world.deeds.append(deed)
        if isinstance(what, ops.Rmdir | ops.Rename):
            self._removals += 1
        self._begin(deed)
        return deed

    @property
    def busy(self) -> int:
        return len(self._deeds) + len(self.waiting)

    def _begin(self, deed: Deed) -> None:
        if self._known(deed) or (isinstance(deed.what, ops.Create) and self._make(deed)):
            deed.then(deed)
        elif self._must_wait(deed.what):
            self.waiting.append(deed)
        else:
            self._order(deed)

    def _order(self, deed: Deed) -> None:
        deed.made = self.made
        what = deed.what
        if isinstance(what, (*READS, ops.Open)):
            deed.call = self.query(what)
        else:
            deed.touched = self.cache.begin(what)
            for directory in directories(what) & self.held.keys():
                self.held[directory].sure = False
            deed.call = self.request(what)
        self._deeds[deed.call] = deed

    def _known(self, deed: Deed) -> bool:
        """Answer from what is known here."""
        now, what = self.world.clock.now, deed.what
        if isinstance(what, ops.Lookup):
            found = self.cache.lookup(what.cred, what.parent, what.name, now / SECOND)
            if found is None:
                return False
            self._told(deed, errno.ENOENT if found == ABSENT else OK, found)
        elif isinstance(what, ops.GetAttr):
            held = self.held.get(what.ino)
            if held is None or held.recalled or not held.sure or now / SECOND >= self.cache.until:
                return False
            self._told(deed, OK, held.attr)
        else:
            return False
        return True

    def _told(self, deed: Deed, status: int, body: Any) -> None:
        deed.ended, deed.status, deed.body = self.world.clock.now, status, body

    def _must_wait(self, what: Any) -> bool:
        """Something that is not ordered yet must be, before this is asked; it is hurried."""
        wanted = [one for ino, one in self.unborn.items() if self._concerns(what, ino, one)]
        for one in wanted:
            self._bear(one)
        if isinstance(what, ops.SetAttr) and any(what.ino in ours for ours in (self.held, self._giving, self._asking)):
            self.give_back(what.ino)
            return True
        return bool(wanted)

    def _concerns(self, what: Any, ino: int, one: Unborn) -> bool:
        if isinstance(what, ops.Rename | ops.Rmdir):
            return "names" in self.rules
        if "listing" in self.rules and getattr(what, "ino", 0) == one.request.parent:
            return True
        named = (getattr(what, "parent", 0), getattr(what, "name", b"")) == (one.request.parent, one.request.name)
        return "names" in self.rules and (named or getattr(what, "ino", 0) == ino)

    def _go_on(self) -> None:
        """Something was ordered: who waits for it may go on."""
        waiting, self.waiting = self.waiting, []
        for deed in waiting:
            if self._must_wait(deed.what):
                self.waiting.append(deed)
            else:
                self._order(deed)
        for directory in sorted(self._giving):
            ordered = "births" not in self.rules or not self._of(directory)
            if ordered and directory not in self._asking and directory not in self._given:
                self._giving.remove(directory)
                self._given[directory] = self.request(Undelegate((directory,)))

    # -- files made by itself

    def _make(self, deed: Deed) -> bool:
        """Answer a Create by ourselves."""
        what, now = deed.what, self.world.clock.now
        held = self.held.get(what.parent)
        if held is None or len(self.unborn) >= UNBORN_MAX or (self._removals and "removal" in self.rules):
            return False
        if "recalled" in self.rules and held.recalled:
            return False
        if self._made_here(what.parent, what.name) or ("rights" in self.rules and not may(held.attr, what.cred, W | X)):
            return False
        asked_at = now / SECOND if "lease" in self.rules else -1.0
        found = self.cache.lookup(self.world.cred, what.parent, what.name, asked_at)
        if found not in ((ABSENT, None) if "absent" not in self.rules else (ABSENT,)):
            return False
        if (numbered := self._number()) is None:
            return False
        ino, block = numbered
        t = max(held.ahead_ns + 1000 * now, held.attr.ctime_ns)
        written = t + 1000
        pieces = ((0, deed.data),) if deed.data else ()
        request = CreateDelegated(
            what.cred, what.parent, what.name, what.mode, ino, t, pieces, written if pieces else 0
        )
        attr = Attr(
            ino, S_IFREG | what.mode, 1, what.cred.uid, what.cred.gid, 0, len(deed.data), t,
            written if pieces else t, written if pieces else t, None, (), held.inline, ino,
        )  # fmt: skip
        held.attr = held.attr._replace(mtime_ns=t, ctime_ns=t)
        self.unborn[ino] = one = Unborn(request, attr, block)
        self.made += 1
        self.cache.learn(what.parent, what.name, attr, self.cache.stamp)
        deed.itself = True
        self._told(deed, OK, attr)
        self.world.made[ino] = deed
        self.world.clock.after(self.world.rng.randrange(BIRTH_WITHIN), self._later, one)
        return True

    def _made_here(self, parent: int, name: bytes) -> bool:
        return any((one.request.parent, one.request.name) == (parent, name) for one in self.unborn.values())

    def _of(self, directory: int) -> list[Unborn]:
        return [one for one in self.unborn.values() if one.request.parent == directory]

    def _number(self) -> tuple[int, int] | None:
        """(a number for a file, its block), the newest blocks first."""
        for block in reversed(self.blocks) if "blocks" in self.rules else self.blocks:
            if block.first < block.end and self._stays(block.number, 0):
                block.first += 1
                return block.first - 1, block.number
        return None

    def _stays(self, block: int, more: int) -> bool:
        """The service will know that block still when *more* than those asked for so far have been given."""
        return "blocks" not in self.rules or self._delegates_sent + more - block < BLOCKS_USED

    def _later(self, one: Unborn) -> None:
        self._take(lambda: self._bear(one))

    def _bear(self, one: Unborn) -> None:
        """Have it ordered."""
        if one.call is None and self.alive:
            one.call = self.request(one.request)

    def _born(self, one: Unborn, call: Call, stamp: Stamp | None) -> None:
        request = one.request
        del self.unborn[request.ino]
        if not call.ok:
            self.world.refused(self, request, call.status)
            return
        attr = attr_untrusted(call.body)
        self.world.foretold(one.attr, attr)
        if stamp is not None and stamp == self.cache.stamp:
            self.cache.learn_attr(attr, stamp)  # the name is kept if the directory's lease has lasted
        else:
            self.cache.recall((request.ino,), (), self.world.clock.now / SECOND)
        self.close(request.ino)

    # -- delegations

    def want(self, directory: int, then: Callable[[], Any] = lambda: None) -> None:
        """Ask for a directory, or for more numbers; *then*: when they have come."""
        busy = directory in self._asking or directory in self._giving or directory in self._given
        # Its mode is what the answer says only if we are not changing it.
        busy = busy or any(
            isinstance(deed.what, ops.SetAttr) and deed.what.ino == directory for deed in self._deeds.values()
        )
        if not self.delegates or busy or not all(self._stays(one.block, 1) for one in self.unborn.values()):
            return
        asked, self.asked = self.asked, lambda: None
        asked()
        self._then[directory] = then
        self._delegates_sent += 1
        self._asking[directory] = self._delegates_sent
        self.request(Delegate(self.world.cred, directory))

    def give_back(self, directory: int) -> None:
        """As soon as all is ordered."""
        if directory in self.held:
            self.held[directory].recalled = True
        elif directory in self._asking:
            self._early.add(directory)
        self._giving.add(directory)
        for one in self._of(directory) if "births" in self.rules else ():
            self._bear(one)
        self._go_on()

    def _delegated(self, call: Call) -> None:
        directory = call.op.parent
        number = self._asking.pop(directory)
        then = self._then.pop(directory)
        early = directory in self._early
        self._early.discard(directory)
        if not call.ok or call.body is None:
            return
        attr, first, count, inline, time_ns = call.body
        self.blocks.append(Block(number, first, first + min(count, self.numbers_used)))
        if early:
            self.give_back(directory)
        elif directory not in self.held:
            self._giving.discard(directory)
            ahead = time_ns - 1000 * self.world.clock.now
            # What is under way may come before or after.
            sure = not any(directory in directories(deed.what) for deed in self._deeds.values())
            self.held[directory] = Held(attr_untrusted(attr), inline, ahead, sure=sure)
            then()

    # -- what comes back

    def _answer(self, answer: msg.Answer) -> None:
        call = self.pending.get(answer.call)
        stamp = self.cache.stamp if answer.lease else None
        super()._answer(answer)
        if call is None or not call.done:
            return
        if isinstance(call.op, CreateDelegated):
            self._born(self.unborn[call.op.ino], call, stamp)
        elif isinstance(call.op, Delegate):
            self._delegated(call)
        elif isinstance(call.op, Undelegate):
            for directory in call.op.parents:
                del self._given[directory]
                self.held.pop(directory, None)
        else:
            self._done(self._deeds.pop(call), call, stamp)
        if self.alive:
            self._go_on()

    def _done(self, deed: Deed, call: Call, stamp: Stamp | None) -> None:
        what = deed.what
        if isinstance(what, ops.Lookup):
            made_since = "late" in self.rules and self._made_here(what.parent, what.name)
            if stamp is not None and call.status in (OK, errno.ENOENT) and not made_since:
                self.cache.learn(what.parent, what.name, attr_untrusted(call.body) if call.ok else None, stamp)
        elif isinstance(what, ops.ReadDir | ops.GetAttr):
            if self.made != deed.made:  # since it was asked: what came may lack them
                self._begin(deed)
                return
        elif isinstance(what, ops.Open):
            if call.ok:
                self.close(what.ino)
        else:
            assert deed.touched is not None
            makes = isinstance(what, ops.Create | ops.Mkdir)
            made = attr_untrusted(call.body) if makes and call.ok else None
            self.cache.end(what, deed.touched, call.ok, made, stamp)
            if isinstance(what, ops.Create) and call.ok:
                self.close(call.body[0])
            self._removals -= isinstance(what, ops.Rmdir | ops.Rename)
            if isinstance(what, ops.Rmdir | ops.Rename) and call.ok:
                self.held.pop(call.body if isinstance(what, ops.Rmdir) else call.body[1], None)
        self._told(deed, call.status, call.body)
        deed.then(deed)


def directories(what: Any) -> set[int]:
    """Inodes that an operation names."""
    return {getattr(what, "parent", 0), getattr(what, "new_parent", 0), getattr(what, "ino", 0)} - {0}

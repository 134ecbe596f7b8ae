"""Pure. What this mount knows of names and attributes under the replica's cache lease (see mds.caches).

Everything here may be used while the lease runs; the replica recalls what a request is about to change before the
request is answered anywhere.  Our own requests are not recalled: :meth:`NameCache.begin` and :meth:`NameCache.end`
drop what they touch.  Times are seconds of a clock that goes on during suspend.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any, Final, NamedTuple

from client.attributes import Attr
from wire import ids, ops

INODES_MAX: Final = 50_000
"""Inodes kept; a mount that meets more begins anew (a replica grants leases on some more than that)."""
NAMES_MAX: Final = 100_000
"""Names learned, absent ones too, before the cache begins anew: absent names come with no inode to count. Some 40 MB if
each is in a directory of its own; one of more than LONG bytes counts as several."""
LONG: Final = 64
KERNEL_S: Final = 0.1
"""How long the kernel may take a directory's name for granted without asking us. What a rename or removal of that
directory by another mount is delayed by, at most."""
KERNEL_MARGIN_S: Final = 0.03
"""Of that the kernel is told so much less: it counts from when its caller takes the answer up, in whole ticks."""

Stamp = tuple[int, int]
"""(recalls, own requests ended) so far."""

ABSENT: Final = 0
"""Stands for an inode: the name is known to be absent."""

_DIRECTORY_X: Final = 0o111
_DOTS: Final = (b".", b"..")


class Touched(NamedTuple):
    """What an own request under way makes uncertain; :meth:`NameCache.begin` gives it, ``end`` takes it."""

    inodes: tuple[int, ...]
    names: tuple[tuple[int, bytes], ...]
    blind: bool
    """It takes a name away, and which inode that stands for is not known here."""
    moved: int = 0
    """The inode that a Rename gives another name; 0: not known."""
    recalls: int = 0
    """So far when it went out."""


class NameCache:
    """Attributes by inode, inode by (parent, name), and directories of which every name is known."""

    def __init__(self) -> None:
        self.until = 0.0
        """The lease runs until then."""
        self.ran_until = 0.0
        """The leases of earlier connections ran until then."""
        self.used = 0.0
        """When the cache was last of use: the lease is kept up for a while after."""
        self._recalls = 0
        self._ends = 0
        self.hits = 0
        self._epoch = 0
        self._attrs: dict[int, Attr] = {}
        self._names: dict[int, dict[bytes, int]] = {}
        self._learned = 0
        """Names learned since the cache was empty."""
        self._complete: set[int] = set()
        self._busy: Counter[int] = Counter()
        """Inodes that own requests under way touch: nothing is learned of their attributes."""
        self._blind = 0
        """Own requests under way that touch an inode not known here: no attributes are learned at all."""
        self._unsure: Counter[tuple[int, bytes]] = Counter()
        """Names that own requests under way may change."""
        self._listing: dict[int, bool] = {}
        """Directories, delegated to us, that are being listed; False: in vain, names may have changed meanwhile."""
        self._changing: Counter[int] = Counter()
        """Inodes that own requests under way touch which do more than make a name."""
        self._listed: set[int] = set()
        """Those that are complete by that: as long as they are delegated, whether we have a lease on them or not."""
        self._barred: Counter[int] = Counter()
        """Directories that own requests under way may change otherwise than by what is made in them; 0: any."""
        self._unborn: set[tuple[int, bytes]] = set()
        """Names made here that the service does not know yet: what it says of them, or of the times of..."""
        self._unborn_in: Counter[int] = Counter()
        """...these directories, is not learned."""
        self._kernel: dict[int, float] = {}
        """Directories, and parents of directories, whose entry the kernel may use until then."""

    @property
    def stamp(self) -> Stamp:
        """Taken when an answer under a lease comes in: it is kept only if nothing has happened since."""
        return self._recalls, self._ends

    # -- the lease

    def renewed(self, epoch: int, until: float) -> None:
        """The replica extended the lease. Another epoch than before: all that is kept is void."""
        if epoch != self._epoch:
            self.clear()
            self._epoch = epoch
        self.until = max(self.until, until)

    def lost(self) -> None:
        """The connection is gone: another replica knows nothing of our leases."""
        self.clear()
        self._epoch = 0
        self.ran_until = max(self.ran_until, self.until)
        self.until = 0.0

    def kernel_ms(self, now: float) -> int:
        """For so many milliseconds the kernel may use entries that it was given."""
        return max(0, math.ceil((max(self._kernel.values(), default=0.0) - now) * 1000))

    def clear(self) -> None:
        self._recalls += 1
        self._learned = 0
        self._attrs.clear()
        self._names.clear()
        self._complete.clear()
        self._listed.clear()
        self._listing = dict.fromkeys(self._listing, False)

    def recall(self, inodes: tuple[int, ...], names: tuple[int, ...], now: float) -> float:
        """Let go of *inodes* (none: all). Returns the time from which the kernel knows nothing of them either:

        it may still use entries of the directories in *names* until then.
        """
        if not inodes:
            self.clear()
            return max([now, *self._kernel.values()])
        self._recalls += 1
        for ino in inodes:
            self._drop(ino)
        return max([now, *(self._kernel.get(ino, now) for ino in names)])

    def _drop(self, ino: int) -> None:
        self._attrs.pop(ino, None)
        self._names.pop(ino, None)
        self._complete.discard(ino)
        self._listed.discard(ino)
        if ino in self._listing:
            self._listing[ino] = False

    # -- asking

    def lookup(self, cred: ops.Cred, parent: int, name: bytes, now: float) -> Attr | int | None:
        """The attributes of *name* in *parent*, ABSENT, or None: ask the service."""
        if now >= self.until or (parent, name) in self._unsure:
            return None
        names = self._names.get(parent)
        if names is None:
            return None
        ino = names.get(name)
        if ino is None:
            if parent not in self._complete or name in _DOTS or len(name) > ids.NAME_MAX:
                return None  # for what is no entry the service has other answers than "absent"
            ino = ABSENT
        if cred.uid != 0 and not self._may_search(cred, parent):
            return None  # the service says no, or says why not
        self.used = now
        if ino == ABSENT:
            self.hits += 1
            return ABSENT
        attr = self._attrs.get(ino)
        if attr is not None:
            self.hits += 1
        return attr

    def getattr(self, ino: int, now: float) -> Attr | None:
        """The attributes of *ino*, or None: ask the service."""
        if now >= self.until:
            return None
        self.used = now
        attr = self._attrs.get(ino)
        if attr is not None:
            self.hits += 1
        return attr

    def _may_search(self, cred: ops.Cred, parent: int) -> bool:
        attr = self._attrs.get(parent)
        if attr is None:
            return False
        if attr.acl and cred.uid != attr.uid:
            return False  # the mode does not say it
        if cred.uid == attr.uid:
            return bool(attr.mode & 0o100)
        if cred.gid == attr.gid or attr.gid in cred.groups:
            return bool(attr.mode & 0o010)
        return bool(attr.mode & 0o001)

    def kernel_s(self, parent: int, name: bytes, attr: Attr, now: float) -> float:
        """For how many seconds the kernel may keep the entry *name* of *attr* in *parent*: directories only, and only
        below a directory that anyone may search (the kernel would not ask us whether this caller may)."""
        if not attr.is_directory or now >= self.until or attr.ino not in self._attrs or self._busy[attr.ino]:
            return 0.0
        if self._names.get(parent, {}).get(name) != attr.ino:
            return 0.0  # called back, or never under the lease: it may be another directory's by now
        above = self._attrs.get(parent)
        if above is None or above.acl or above.mode & _DIRECTORY_X != _DIRECTORY_X:
            return 0.0
        until = min(now + KERNEL_S, self.until)
        if len(self._kernel) > INODES_MAX:
            self._kernel = {ino: at for ino, at in self._kernel.items() if at > now}
        for ino in (parent, attr.ino):
            self._kernel[ino] = max(until, self._kernel.get(ino, 0.0))
        return max(0.0, until - now - KERNEL_MARGIN_S)

    def knows(self, ino: int) -> bool:
        """Whether the attributes of *ino* are kept."""
        return ino in self._attrs

    def kernel_until(self, ino: int) -> float:
        """Until when the kernel may use an entry of directory *ino*, or one below it, without asking (0.0: never)."""
        return self._kernel.get(ino, 0.0)

    # -- learning

    def learn(self, parent: int, name: bytes, attr: Attr | None, stamp: Stamp) -> None:
        """The service said, under a lease, what *name* is (None: absent). *stamp*: ours when the answer came in."""
        if stamp != self.stamp or (parent, name) in self._unsure or (parent, name) in self._unborn:
            return
        if self._learned >= NAMES_MAX:
            self.clear()
            return
        self._learned += 1 + len(name) // LONG
        self._names.setdefault(parent, {})[name] = attr.ino if attr is not None else ABSENT
        if attr is not None:
            self.learn_attr(attr, stamp)

    def learn_attr(self, attr: Attr, stamp: Stamp) -> None:
        """The service said, under a lease, what the attributes are."""
        if stamp != self.stamp or attr.ino in self._busy or self._blind or attr.ino in self._unborn_in:
            return
        if len(self._attrs) >= INODES_MAX:
            self.clear()
        self._attrs[attr.ino] = attr

    # -- own requests

    def begin(self, op: Any) -> Touched:
        """Our own request *op* goes out."""
        inodes, names = _touches(op)
        moved = self._moved(op) if isinstance(op, ops.Rename) else 0
        blind = False
        for parent, name in names:
            self._unsure[parent, name] += 1
            child = self._names.get(parent, {}).pop(name, None)
            if child:
                # Its link count and times change, and it may be looked at by another name meanwhile.
                inodes += (child,)
            elif not isinstance(op, _MAKES):
                blind = True
        for ino in inodes:
            self._busy[ino] += 1
            self._attrs.pop(ino, None)
            if not isinstance(op, _MAKES):
                self._changing[ino] += 1
                if ino in self._listing:
                    self._listing[ino] = False
        if (bar := _bars(op)) is not None:
            self._barred[bar] += 1
        if blind:
            self._blind += 1
            self._attrs.clear()
        return Touched(inodes, names, blind, moved, self._recalls)

    def _moved(self, op: ops.Rename) -> int:
        """The inode that *op*, about to go out, gives another name in place of its old one; 0: that is not certain."""
        ino = self._names.get(op.parent, {}).get(op.name, ABSENT)
        absent = ABSENT if op.new_parent in self._complete else None
        replaced = self._names.get(op.new_parent, {}).get(op.new_name, absent)
        # Two names of one file both stay (POSIX rename).
        return ino if op.flags != ops.RENAME_EXCHANGE and replaced is not None and replaced != ino else 0

    def end(self, op: Any, touched: Touched, done: bool, made: Attr | None, stamp: Stamp | None) -> None:
        """It ended. *touched*: what :meth:`begin` gave. *done*: with success. *made*: what it made. *stamp*: ours when
        it was answered under a lease."""
        inodes, names, blind, moved, recalls = touched
        # A recall may have been about ours. Other own requests may have ended meanwhile: to what is new they do
        # nothing, but a file that gets one more name may be touched by any of them.
        certain = stamp is not None and stamp[0] == self._recalls
        if isinstance(op, ops.Link):
            certain = certain and stamp == self.stamp
        self._ends += 1
        self._blind -= blind
        if (bar := _bars(op)) is not None:
            self._barred[bar] -= 1
            if not self._barred[bar]:
                del self._barred[bar]
        for key in names:
            self._unsure[key] -= 1
            if not self._unsure[key]:
                del self._unsure[key]
        for ino in inodes:
            self._busy[ino] -= 1
            if not self._busy[ino]:
                del self._busy[ino]
            self._attrs.pop(ino, None)
            if not isinstance(op, _MAKES):
                self._changing[ino] -= 1
                if not self._changing[ino]:
                    del self._changing[ino]
        if not isinstance(op, _MAKES):
            if done and moved and recalls == self._recalls:
                # What is called back later is dropped then.
                if (there := self._names.get(op.new_parent)) is not None:
                    there[op.new_name] = moved
                    self._learned += 1 + len(op.new_name) // LONG
            elif not done or isinstance(op, ops.Rename):
                self._complete.difference_update(parent for parent, _ in names)
        elif done and made is not None and certain:
            self.learn(op.parent, op.name, made, self.stamp)
            if isinstance(op, ops.Mkdir) and made.ino in self._attrs:
                self._names[made.ino] = {}
                self._complete.add(made.ino)  # new, and ours alone until its lease is recalled
        else:
            self._complete.discard(op.parent)
            if op.parent in self._listing:
                self._listing[op.parent] = False

    # -- files made here, in directories delegated to us (client.births)

    def is_barred(self, parent: int) -> bool:
        """Whether an own request under way may change who may make files in *parent*, or take it away."""
        return bool(self._barred) and (parent in self._barred or 0 in self._barred)

    def bar(self) -> None:
        """A directory is about to be removed: nothing is made here that the request might overtake."""
        self._barred[0] += 1

    def unbar(self) -> None:
        """It has gone out, and bars by itself, or never will."""
        self._barred[0] -= 1
        if not self._barred[0]:
            del self._barred[0]

    def made_here(self, parent: int, name: bytes, attr: Attr) -> None:
        """*name*, which was absent just now, was made here; the service will hear of it."""
        self._ends += 1
        self._unborn.add((parent, name))
        self._unborn_in[parent] += 1
        if self._learned >= NAMES_MAX or len(self._attrs) >= INODES_MAX:
            self.clear()
            return
        self._learned += 1 + len(name) // LONG
        self._names[parent][name] = attr.ino
        self._attrs[attr.ino] = attr
        above = self._attrs.get(parent)
        if above is not None:
            self._attrs[parent] = above._replace(
                mtime_ns=max(above.mtime_ns, attr.mtime_ns), ctime_ns=max(above.ctime_ns, attr.ctime_ns)
            )

    def begin_listing(self, directory: int) -> bool:
        """*directory*, delegated to us, is about to be listed, to know all of its names. False: no use, now."""
        if directory in self._complete or directory in self._listing or directory in self._changing:
            return False  # (names that are being made are known, whether they are in the listing or not)
        names = self._names.get(directory, {})
        ours = (name for above, name in self._unborn if above == directory)
        if directory in self._unborn_in and not all(name in names for name in ours):
            return False  # forgotten with all the rest, and the service may list it without them
        self._listing[directory] = True
        return True

    def end_listing(self, directory: int, found: list[tuple[bytes, int]] | None) -> None:
        """*found*: all of its names that the service knows, as far as they are not ours only; None: it was in vain."""
        untouched = self._listing.pop(directory)
        if not untouched or found is None or self._learned + len(found) > NAMES_MAX:
            return
        names = self._names.setdefault(directory, {})
        for name, ino in found:
            names.setdefault(name, ino)
        self._learned += len(found)
        self._complete.add(directory)
        self._listed.add(directory)

    def is_complete(self, directory: int) -> bool:
        """Whether all names in *directory* are known."""
        return directory in self._complete

    def given_back(self, directory: int) -> None:
        """*directory* is not delegated to us any more."""
        if directory in self._listed or directory in self._listing:
            self._drop(directory)

    def changed_ns(self, ino: int) -> int:
        """When inode *ino* changed last, as far as is known."""
        attr = self._attrs.get(ino)
        return 0 if attr is None else attr.ctime_ns

    def born(self, parent: int, name: bytes, attr: Attr, stamp: Stamp | None, as_told: bool) -> None:
        """The service has made it as well; *stamp* as in :meth:`end`. *as_told*: with the times that it had here."""
        self._no_longer_unborn(parent, name)
        if stamp is not None and stamp[0] == self._recalls and attr.ino not in self._busy and not self._blind:
            if attr.ino in self._attrs:
                self._attrs[attr.ino] = attr
        else:
            self._attrs.pop(attr.ino, None)  # from now on others may change it, and we would not be told
        if not as_told:
            self._attrs.pop(parent, None)

    def never_born(self, parent: int, name: bytes, ino: int) -> None:
        """The service has not made it."""
        self._no_longer_unborn(parent, name)
        self._drop(parent)
        self._attrs.pop(ino, None)

    def _no_longer_unborn(self, parent: int, name: bytes) -> None:
        self._ends += 1
        self._unborn.remove((parent, name))
        self._unborn_in[parent] -= 1
        if not self._unborn_in[parent]:
            del self._unborn_in[parent]

    def __len__(self) -> int:
        return len(self._attrs)


_MAKES: Final = (ops.Create, ops.Mkdir, ops.Mknod, ops.Symlink, ops.Link)


def _touches(op: Any) -> tuple[tuple[int, ...], tuple[tuple[int, bytes], ...]]:
    """(inodes, names) whose answers our own request makes untrue."""
    if isinstance(op, ops.Link):
        return (op.parent, op.ino), ((op.parent, op.name),)
    if isinstance(op, (*_MAKES, ops.Unlink, ops.Rmdir)):
        return (op.parent,), ((op.parent, op.name),)
    if isinstance(op, ops.Rename):
        parents = (op.parent,) if op.parent == op.new_parent else (op.parent, op.new_parent)
        return parents, ((op.parent, op.name), (op.new_parent, op.new_name))
    if isinstance(op, ops.Accessed):
        return tuple(ino for ino, _time in op.files), ()
    return (op.ino,), ()


def _bars(op: Any) -> int | None:
    """Of which directory an own request may change mode or owner, or that it is there: 0, of some that is not known."""
    if isinstance(op, ops.SetAttr | ops.SetXattr | ops.RemoveXattr):
        return op.ino
    return 0 if isinstance(op, ops.Rmdir | ops.Rename) else None

"""Pure. What storage targets are told by the keeper, and what they say to each other. See :mod:`wire.chains`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from wire.capability import bad_keys
from wire.codec import message
from wire.messages import ObjectKey, bad_truncations

LEASE_US: Final = 300_000
"""For so long after it said so last, a target may take it that it still serves the chains it was told of. The keeper
marks nobody offline before that time is over."""
LIST_DIRECTORIES: Final = 64
"""Directories of objects that one ObjectList covers at most."""


@message(110)
class Beat:
    """The keeper (the lowest replica of the view) to each target, several times a second and when the map changes.

    ``echo_us`` is the target's own clock as its last BeatSaid told it (0: it has said nothing yet on this connection):
    until LEASE_US after that time the target may answer reads. ``map``, when not empty, is the storage map as msgpack,
    of version *version*, and the target goes by it from now on. ``keys``, when not empty, are the keys that
    capabilities may be signed with from now on, newest first (wire.capability). ``weigh``, when not 0: how much there
    is of each chain is to be found out, once for each such number.
    """

    number: int
    echo_us: int
    version: int
    map: bytes
    keys: tuple[bytes, ...] = ()
    weigh: int = 0

    def invalid(self) -> str | None:
        good = min(self.number, self.echo_us, self.version, self.weigh) >= 0
        return bad_keys(self.keys) if good else "a negative number"


@message(111)
class BeatSaid:
    """A target's answer to Beat: its clock, the map it knows, the run of its process, its space.

    ``synced``: ((chain, version, target), ...): it has given *target*, the next in the chain, everything.
    ``missed``: targets it has sent changes to in vain for a while although it was told that they are there.
    ``keys``: the fingerprint of the signing keys it knows.
    ``weights``: ((chain, bytes), ...) of the chains of one copy that are here, as they were found when number
    ``weighed`` was asked for (0: nothing was found out yet).
    ``failed``: its disk has, and it takes no changes of what others have, too, until it is started again.
    """

    number: int
    clock_us: int
    version: int
    run: int
    total: int
    free: int
    synced: tuple[tuple[int, int, int], ...]
    missed: tuple[int, ...]
    keys: bytes = b""
    weighed: int = 0
    weights: tuple[tuple[int, int], ...] = ()
    failed: bool = False

    def invalid(self) -> str | None:
        for pair in self.weights:
            if type(pair) is not tuple or len(pair) != 2 or not all(type(x) is int and x >= 0 for x in pair):
                return "an entry that is not (chain, bytes)"
        for item in self.synced:
            if type(item) is not tuple or len(item) != 3 or not all(type(x) is int and 0 < x < 2**32 for x in item):
                return "an entry that is not (chain, version, target)"
        if not all(type(target) is int for target in self.missed):
            return "a target that is no number"
        numbers = (self.number, self.clock_us, self.version, self.total, self.free, self.weighed)
        return None if min(numbers) >= 0 and 0 < self.run < 2**63 else "a number out of its range"


@message(112)
class ObjectChange:
    """From a member of a chain to the next: write the frame's bulk data at *offset*, or, without any, only trim.

    The object must have the stamp (*before_version*, *before*), and has (*after_version*, *after*) then; one that has
    that already is done, any other is OUT_OF_STEP. *client* is who is told if the disk loses the data.
    Answer: OK when this target and all after it have done it.
    """

    call: int
    key: ObjectKey
    chain: int
    chain_version: int
    truncations: tuple[tuple[int, int], ...]
    offset: int
    client: str
    before_version: int
    before: int
    after_version: int
    after: int

    def invalid(self) -> str | None:
        if not 0 <= self.offset < 2**63 or len(self.client) > 600:
            return "offset or client"
        for version, number in ((self.before_version, self.before), (self.after_version, self.after)):
            if not 0 <= version < 2**32 or not 0 <= number < 2**63:
                return "a stamp out of its range"
        return bad_truncations(self.truncations)


@message(113)
class ObjectFlush:
    """From a member of a chain to the next: as ObjectSync, for *client*."""

    call: int
    key: ObjectKey
    chain: int
    chain_version: int
    client: str

    def invalid(self) -> str | None:
        return None if len(self.client) <= 600 else "client"


@message(114)
class ObjectList:
    """What objects of *chain* have you got in directories [*first*, *first* + *count*)?

    Answer body: ``((inode, column, stamp version, stamp number), ...)``; (0, 0) for a stamp that means nothing.

    The admin tool asks of all chains (*chain* is 0). The answer's bulk data: ``((inode, column, chain), ...)``, chain 0
    where it is not known.
    """

    call: int
    chain: int
    first: int
    count: int

    def invalid(self) -> str | None:
        good = 0 <= self.first < 65536 and 0 < self.count <= LIST_DIRECTORIES
        return None if good else "directories"


@message(115)
class ObjectSums:
    """The checksums of an object, *count* blocks from *first*.

    Answer body: ``(length, number of the last truncation, entries, stamp version, stamp number)``, length -1 when there
    is no such object. The entries are those of the ledger (ossd.ledger).
    """

    call: int
    key: ObjectKey
    first: int
    count: int

    def invalid(self) -> str | None:
        return None if 0 <= self.first < 2**40 and 0 < self.count <= 1 << 16 else "blocks"


@message(116)
class ObjectPatch:
    """From a member of a chain to the next: the block at *offset* is the frame's bulk data, then zeros.

    Brings a copy in step; no reader is told of it, because its stamp means nothing until ObjectAdopt.
    """

    call: int
    key: ObjectKey
    chain: int
    chain_version: int
    offset: int

    def invalid(self) -> str | None:
        return None if 0 <= self.offset < 2**63 else "offset"


@message(117)
class ObjectAdopt:
    """From a member of a chain to the next: the object is *length* bytes long, its last truncation is number *trim*,
    and what it holds has this stamp.
    """

    call: int
    key: ObjectKey
    chain: int
    chain_version: int
    length: int
    trim: int
    stamp_version: int
    stamp: int

    def invalid(self) -> str | None:
        if not 0 <= self.length < 2**63 or not 0 <= self.trim < 2**64:
            return "length or trim"
        return None if 0 <= self.stamp_version < 2**32 and 0 <= self.stamp < 2**63 else "stamp"


@message(118)
class BlockFetch:
    """Another copy of this block is wanted, whose checksum does not match here. Answer: its bytes as bulk data, if they
    match the checksum there and the stamp is the one asked for; CORRUPT or OUT_OF_STEP if not.
    """

    call: int
    key: ObjectKey
    block: int
    stamp_version: int
    stamp: int

    def invalid(self) -> str | None:
        return None if 0 <= self.block < 2**47 else "block"


@message(119)
class TargetFlush:
    """From a member of a chain to the next, when it has been given everything: have all of it on disk. Answer: OK."""

    call: int

    def invalid(self) -> str | None:
        return None if self.call >= 0 else "call"


@message(120)
class TargetScrub:
    """The admin tool has a target read its objects in directories [*first*, *first* + *count*) and check them, at
    *rate* bytes per second at most. Bad blocks are mended from other copies. With *verify*, a target that heads a chain
    compares its copies with those of the other members.

    Answer body: see :class:`Scrubbed`.
    """

    call: int
    first: int
    count: int
    rate: int
    verify: bool

    def invalid(self) -> str | None:
        good = 0 <= self.first < 65536 and 0 < self.count <= LIST_DIRECTORIES and 0 < self.rate < 2**50
        return None if good else "directories or rate"


@dataclass(slots=True)
class Scrubbed:
    """What a scrub, or a part of one, has found. In the answer to TargetScrub: a tuple of the fields in this order."""

    objects: int = 0
    bytes: int = 0
    bad: int = 0
    """Blocks that do not match their checksum..."""
    mended: int = 0
    """... and how many of them were replaced from another copy."""
    wrong: list[str] = field(default_factory=list)
    """Sentences about what is wrong and was not mended."""

    def packed(self) -> tuple[int, int, int, int, tuple[str, ...]]:
        return self.objects, self.bytes, self.bad, self.mended, tuple(self.wrong)

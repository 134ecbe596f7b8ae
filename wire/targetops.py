"""Pure. Requests about storage targets and chains: what the keeper and administrators have ordered. See wire.ops."""

from __future__ import annotations

from typing import Final

from wire import ids
from wire.capability import KEY_BYTES
from wire.codec import message

SHARE_MAX: Final = 16


@message(52)
class TargetUp:
    """By the keeper: target *target* answers; ``run`` tells this run of its process from any other.

    Where others serve a chain it has to be synced first, unless nothing was missed. Result: storage map version.
    """

    target: int
    run: int

    def invalid(self) -> str | None:
        return _bad_target(self.target) or (None if 0 < self.run < 2**63 else "run")


@message(53)
class TargetDown:
    """By the keeper: run *run* of *target* does not answer, and has no lease to read by any more.

    Others go on without it; where it is the last to serve a chain it stays that. Void for another run. Result: storage
    map version.
    """

    target: int
    run: int

    def invalid(self) -> str | None:
        return _bad_target(self.target) or (None if 0 <= self.run < 2**63 else "run")


@message(54)
class ChainSynced:
    """By the keeper: *target* has everything that chain *chain* holds, and serves from now on. Void unless the chain's
    version is *version*. Result: storage map version.
    """

    chain: int
    version: int
    target: int

    def invalid(self) -> str | None:
        return _bad_target(self.target) or _bad_chain(self.chain, self.version)


@message(55)
class ChainMove:
    """By the keeper: *target* is to take the place of *instead_of* in chain *chain*, which leaves when the new one is
    synced. With 0 it takes nobody's: the chain has fewer members than copies. Void unless the chain's version is
    *version*. Result: storage map version.
    """

    chain: int
    version: int
    target: int
    instead_of: int

    def invalid(self) -> str | None:
        place = _bad_target(self.instead_of) if self.instead_of else None
        return _bad_target(self.target) or place or _bad_chain(self.chain, self.version)


@message(56)
class TargetDrain:
    """By the administrator: everything on *target* is to be moved elsewhere (or, *drain* false, no longer).

    Result: storage map version. Idempotent.
    """

    target: int
    drain: bool

    def invalid(self) -> str | None:
        return _bad_target(self.target)


@message(57)
class TargetRemove:
    """By the administrator: *target* is no part of the cluster any more. EBUSY while a chain needs it.

    ``lost``: its disk will never come back. It leaves its chains at once; those that it alone served have lost their
    data. Result: storage map version. Idempotent.
    """

    target: int
    lost: bool

    def invalid(self) -> str | None:
        return _bad_target(self.target)


@message(58)
class TargetReplace:
    """By the administrator: *target* has another disk, *uuid*, with nothing on it.

    EBUSY where it alone serves a chain, unless *lost*: then what files have there is gone, and is a hole from now on.
    Result: storage map version. Idempotent.
    """

    target: int
    uuid: bytes
    lost: bool

    def invalid(self) -> str | None:
        return _bad_target(self.target) or (None if len(self.uuid) == 16 else "target uuid is not 16 bytes")


@message(59)
class ChainLeave:
    """By the keeper: *target*, which is draining and knows that it answers no reads, leaves chain *chain*. Where more
    serve than there should be copies, one that does is to drain from now on, and leaves with the next such request.

    Void unless the chain's version is *version*. Result: storage map version.
    """

    chain: int
    version: int
    target: int

    def invalid(self) -> str | None:
        return _bad_target(self.target) or _bad_chain(self.chain, self.version)


@message(70)
class KeyRotate:
    """By the keeper or the administrator: *key*, random bytes, is to be the next that capabilities are signed with.

    Void unless keys were rotated *count* times before. Result: how often they have been.
    """

    count: int
    key: bytes

    def invalid(self) -> str | None:
        return None if self.count >= 0 and len(self.key) == KEY_BYTES else "count or key"


@message(73)
class TargetSpace:
    """By the keeper: how full targets are, ``((target, share), ...)`` ascending, for the placement of new files (see
    mds.placement). Result: None.
    """

    shares: tuple[tuple[int, int], ...]

    def invalid(self) -> str | None:
        before = 0
        for item in self.shares:
            if type(item) is not tuple or len(item) != 2 or not all(type(x) is int for x in item):
                return "an entry that is not (target, share)"
            if item[0] <= before or not 0 <= item[1] <= SHARE_MAX:
                return f"target {item[0]} share {item[1]}"
            before = item[0]
        return _bad_target(before) if self.shares else "no target"


AdminRequest = KeyRotate | TargetDrain | TargetRemove | TargetReplace
TargetRequest = TargetUp | TargetDown | ChainSynced | ChainMove | ChainLeave | TargetSpace | AdminRequest


def _bad_target(target: int) -> str | None:
    return None if 0 < target <= ids.TARGET_ID_MAX else f"target {target}"


def _bad_chain(chain: int, version: int) -> str | None:
    return None if 0 < chain < 2**32 and 0 < version < 2**32 else f"chain {chain} version {version}"

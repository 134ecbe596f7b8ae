"""Pure. The storage map's changes: which targets there are and which of them hold what.

TargetSet: a target and where it is reached. A new one heads new chains, with others for copies (mds.namespace.chains);
one that moved keeps everything. Another disk under a known number is refused (EEXIST): it would answer for objects
that it does not hold; TargetReplace says that this is meant.

TargetUp, TargetDown, ChainSynced, ChainMove come from the keeper (:mod:`mds.keeper`), the others from administrators.
Those that name a run or a chain's version are void when it has moved on meanwhile: the keeper looks again.
"""

from __future__ import annotations

import errno
from typing import Any

from mds import schema
from mds.namespace import chains, layout
from mds.namespace.layout import Target
from mds.namespace.scope import Scope
from wire import ops, targetops
from wire.chains import DRAINING, OFFLINE, SERVING, SYNCING, Members, copies_of, holders
from wire.codec import pack, unpack_untrusted
from wire.errors import FileSystemError


def set_(scope: Scope, op: ops.TargetSet) -> Any:
    old = _find(scope, op.target)
    if old is not None:
        if old.uuid != op.uuid:
            raise FileSystemError(errno.EEXIST)
        if old.address == op.address:
            return _version(scope)
        _put(scope, op.target, old._replace(address=op.address))
        return _moved(scope)
    _put(scope, op.target, Target(op.address, SERVING, op.uuid, 0, False))
    _complete(scope)
    return _moved(scope)


def up(scope: Scope, op: targetops.TargetUp) -> Any:
    old = _get(scope, op.target)
    restarted = old.run not in (0, op.run)
    state = DRAINING if old.draining else SERVING
    if old.run == op.run and old.state == state:
        return _version(scope)
    _put(scope, op.target, old._replace(run=op.run, state=state, incarnation=op.incarnation))
    forgot = restarted and old.incarnation != op.incarnation
    for number, version, members in _all_chains(scope):
        made = chains.up(members, op.target, restarted)
        # 1. It alone serves, and has given other members some writes before it went down. 2. It is started again and
        # numbers its changes from 1, as in the run before. So the chain's version, which goes before that number,
        # has to move with each run of a member even where nothing else changes.
        if made != members or (restarted and any(t == op.target for t, _ in members)):
            _put_chain(scope, number, version + 1, made, lost=forgot and chains.loses(members, op.target))
    return _moved(scope)


def down(scope: Scope, op: targetops.TargetDown) -> Any:
    old = _get(scope, op.target)
    if old.run != op.run:
        return _version(scope)
    # One that is offline already may have held a chain alone then, and have given it to somebody since: without what
    # its failed disk had lost by then.
    left = _change_chains(scope, lambda number, members: chains.down(members, op.target), lost=old.state == OFFLINE)
    if old.state == OFFLINE and not left:
        return _version(scope)
    _put(scope, op.target, old._replace(state=OFFLINE))
    return _moved(scope)


def synced(scope: Scope, op: targetops.ChainSynced) -> Any:
    version, members = _chain(scope, op.chain)
    if version != op.version or (op.target, SYNCING) not in members:
        return _version(scope)
    made = chains.put(members, op.target, SERVING)
    if sum(state == SERVING for _, state in members) >= copies_of(op.chain):
        # 1. Somebody was synced in the place of one that drains. 2. That one was started again before it had left, or
        # is not to leave any more. One copy too many would stay for ever.
        made = chains.without(members, op.target)
    _put_chain(scope, op.chain, version + 1, made)
    return _moved(scope)


def leave(scope: Scope, op: targetops.ChainLeave) -> Any:
    version, members = _chain(scope, op.chain)
    if version != op.version:
        return _version(scope)
    if op.target in chains.surplus(op.chain, members):
        made = chains.put(members, op.target, DRAINING)  # first it must know that it answers no reads any more
    elif chains.leaving(op.chain, members) == op.target:
        made = chains.without(members, op.target)
    else:
        return _version(scope)
    _put_chain(scope, op.chain, version + 1, made)
    return _moved(scope)


def move(scope: Scope, op: targetops.ChainMove) -> Any:
    version, members = _chain(scope, op.chain)
    to = _find(scope, op.target)
    if version != op.version or to is None or to.state == OFFLINE:
        return _version(scope)
    made = chains.move(op.chain, members, op.target, op.instead_of)
    if made == members:
        return _version(scope)
    _put_chain(scope, op.chain, version + 1, made)
    return _moved(scope)


def drain(scope: Scope, op: targetops.TargetDrain) -> Any:
    old = _get(scope, op.target)
    if old.draining == op.drain:
        return _version(scope)
    state = old.state if old.state == OFFLINE else DRAINING if op.drain else SERVING
    _put(scope, op.target, old._replace(draining=op.drain, state=state))

    def marked(number: int, members: Members) -> Members:
        if op.drain or (op.target, DRAINING) not in members:
            return members  # a move marks it in each chain when there is somebody to take its place
        if chains.leaving(number, members) == op.target:
            return members  # its place is taken
        return chains.put(members, op.target, SERVING)

    _change_chains(scope, marked)
    return _moved(scope)


def remove(scope: Scope, op: targetops.TargetRemove) -> Any:
    old = _find(scope, op.target)
    if old is None:
        return _version(scope)
    needed = [members for _, _, members in _all_chains(scope) if any(t == op.target for t, _ in members)]
    rest = {int.from_bytes(key, "big") for key, _ in scope.store.scan(schema.TARGETS, b"", None)} - {op.target}
    if needed and not rest:
        raise FileSystemError(errno.EBUSY)  # nobody is left who could be named in its place
    # 1. There are three targets, and chains of three copies. 2. One is drained. 3. These chains cannot be moved: all
    # others are in them already. They keep what they have, and get another member when there is one.
    stuck = old.draining and all(
        any(t != op.target for t in holders(members)) and rest <= {t for t, _ in members} for members in needed
    )
    if needed and not op.lost and not stuck:
        raise FileSystemError(errno.EBUSY)

    def without(number: int, members: Members) -> Members:
        made = chains.without(members, op.target)
        if made and not holders(made):
            # What it alone had is lost, as the administrator says; whoever was being synced has the most there is.
            made = chains.put(made, made[0][0], SERVING)
        if len(made) <= copies_of(number):
            # Who was about to leave stays: nobody takes its place any more, and the keeper looks for somebody anew.
            made = tuple((target, SERVING if state == DRAINING else state) for target, state in made)
        return made

    _change_chains(scope, without, gone=op.target)
    scope.store.delete(schema.TARGETS, schema.target_key(op.target))
    _fill_empty(scope)
    return _moved(scope)


def replace(scope: Scope, op: targetops.TargetReplace) -> Any:
    old = _get(scope, op.target)
    if old.uuid == op.uuid:
        return _version(scope)
    mine = [chain for chain in _all_chains(scope) if any(t == op.target for t, _ in chain[2])]
    if not op.lost and any(holders(members) == (op.target,) for _, _, members in mine):
        raise FileSystemError(errno.EBUSY)
    _put(scope, op.target, old._replace(uuid=op.uuid, run=0, state=OFFLINE, incarnation=0))
    for number, version, members in mine:
        lost = chains.loses(members, op.target)
        _put_chain(scope, number, version + 1, chains.down(members, op.target), lost)
    return _moved(scope)


def space(scope: Scope, op: targetops.TargetSpace) -> Any:
    """No change of the storage map: nobody but new files goes by it."""
    for target, share in op.shares:
        old = _find(scope, target)
        if old is not None and old.share != share:
            _put(scope, target, old._replace(share=share))
            scope.storage_changed = True


# --- records --------------------------------------------------------------------------------------


def _find(scope: Scope, target: int) -> Target | None:
    raw = scope.store.get(schema.TARGETS, schema.target_key(target))
    return None if raw is None else Target.unpack(raw)


def _get(scope: Scope, target: int) -> Target:
    found = _find(scope, target)
    if found is None:
        raise FileSystemError(errno.ENOENT)
    return found


def _put(scope: Scope, target: int, record: Target) -> None:
    scope.store.put(schema.TARGETS, schema.target_key(target), record.encode())


def _chain(scope: Scope, number: int) -> tuple[int, Members]:
    raw = scope.store.get(schema.CHAINS, schema.chain_key(number))
    if raw is None:
        raise FileSystemError(errno.ENOENT)
    version, members, _lost = unpack_untrusted(raw)
    return version, members


def _all_chains(scope: Scope) -> list[tuple[int, int, Members]]:
    scan = scope.store.scan(schema.CHAINS, b"", None)
    return [(int.from_bytes(key, "big"), *unpack_untrusted(value)[:2]) for key, value in scan]


def _put_chain(scope: Scope, number: int, version: int, members: Members, lost: bool = False) -> None:
    """*lost*: what was acknowledged under earlier versions, and synced under none of them, may be gone."""
    key = schema.chain_key(number)
    before = scope.store.get(schema.CHAINS, key)
    since = version if lost else unpack_untrusted(before)[2] if before is not None else 0
    scope.store.put(schema.CHAINS, key, pack((version, members, since)))


def _change_chains(scope: Scope, change: Any, gone: int = 0, lost: bool = False) -> bool:
    """Whether any has changed. *gone*: the target that takes with it what it alone has. *lost*: as of
    :func:`_put_chain`."""
    changed = False
    for number, version, members in _all_chains(scope):
        made = change(number, members)
        if made != members:
            _put_chain(scope, number, version + 1, made, lost or chains.loses(members, gone))
            changed = True
    return changed


def _complete(scope: Scope) -> None:
    """Make the chains that are missing."""
    targets = tuple(
        int.from_bytes(key, "big")
        for key, value in scope.store.scan(schema.TARGETS, b"", None)
        if not Target.unpack(value).draining
    )
    have = {number: members for number, _, members in _all_chains(scope)}
    for number, members in chains.missing(targets, have):
        _put_chain(scope, number, 1, members)


def _fill_empty(scope: Scope) -> None:
    """A chain without any member gets one: its data is lost, but files that name it must not be unusable for ever."""
    targets = [int.from_bytes(key, "big") for key, _ in scope.store.scan(schema.TARGETS, b"", None)]
    for number, version, members in _all_chains(scope):
        if not members:
            _put_chain(scope, number, version + 1, ((targets[number % len(targets)], SERVING),))


def _version(scope: Scope) -> int:
    return layout.meta(scope.store)[0]


def _moved(scope: Scope) -> int:
    """The storage map has changed."""
    version, *rest = layout.meta(scope.store)
    scope.store.put(schema.META, schema.META_STORAGE, pack((version + 1, *rest)))
    scope.storage_changed = True
    return version + 1

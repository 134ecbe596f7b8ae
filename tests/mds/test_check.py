"""The check finds each kind of damage."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mds import schema
from mds.check import check
from mds.namespace.inode import decode
from mds.store import Store
from tests.mds.harness import ROOT, TOP, World
from wire import ops
from wire.codec import pack


def _edit(store: Store, ino: int, **fields: int) -> None:
    raw = store.get(schema.INODES, schema.u64(ino))
    assert raw is not None
    inode = decode(raw)
    for name, value in fields.items():
        setattr(inode, name, value)
    store.put(schema.INODES, schema.u64(ino), inode.encode())


Damage = Callable[[Store, dict[str, int]], None]
DAMAGES: dict[str, tuple[Damage, str]] = {
    "entry without inode": (lambda s, i: s.delete(schema.INODES, schema.u64(i["file"])), "which is not there"),
    "inode without entry": (lambda s, i: s.delete(schema.DIRENTS, schema.dirent_key(TOP, b"file")), "0 names"),
    "cookie lost": (lambda s, i: s.delete(schema.COOKIES, schema.cookie_key(TOP, i["file"])), "not listed"),
    "cookie too many": (
        lambda s, i: s.put(schema.COOKIES, schema.cookie_key(TOP, 5), b"\0" * 8 + b"x"),
        "no such entry",
    ),
    "link count": (lambda s, i: _edit(s, i["file"], nlink=2), "link count 2 and 1 names"),
    "directory links": (lambda s, i: _edit(s, TOP, nlink=7), "link count 7"),
    "entry count": (lambda s, i: _edit(s, TOP, entries=7), "counts 7 entries"),
    "parent": (lambda s, i: _edit(s, i["dir"], parent=i["dir"]), "its parent is"),
    "orphan lost": (lambda s, i: s.delete(schema.ORPHANS, schema.u64(i["orphan"])), "not an orphan"),
    "owed lost": (lambda s, i: s.delete(schema.OWED, schema.owed_key(2, i["orphan"])), "not told"),
    "owed too many": (lambda s, i: s.put(schema.OWED, schema.owed_key(2, i["file"]), b""), "does not wait"),
    "xattr count": (lambda s, i: _edit(s, i["file"], xattrs=3), "counts 3"),
    "xattr alone": (lambda s, i: s.put(schema.XATTRS, schema.xattr_key(999, b"user.a"), b""), "999 is not there"),
    "link target": (lambda s, i: s.delete(schema.SYMLINKS, schema.u64(i["link"])), "has no target"),
    "reclaim": (lambda s, i: s.put(schema.RECLAIM, schema.u64(i["file"]), pack((1, (1,)))), "queued for deletion"),
    "reply": (lambda s, i: s.put(schema.REPLIES, schema.reply_key(999, 1), b""), "999 is not there"),
    "session key": (lambda s, i: s.delete(schema.SESSION_KEYS, b"k" * 16), "not found by its key"),
    "chain": (lambda s, i: s.delete(schema.TARGETS, schema.target_key(2)), "names target 2"),
    "delegated file": (
        lambda s, i: s.put(schema.DELEGATIONS, schema.u64(i["file"]), pack((8194, 0))),
        "is delegated and is no directory",
    ),
    "delegated to nobody": (
        lambda s, i: s.put(schema.DELEGATIONS, schema.u64(i["dir"]), pack((999, 1))),
        "to session 999, which is not there",
    ),
    "holder": (lambda s, i: s.put(schema.HOLDERS, schema.u64(999), pack(((), ()))), "may have delegations"),
    "blocks": (
        lambda s, i: s.put(schema.HOLDERS, next(iter(s.scan(schema.SESSIONS, b"", None)))[0], pack(((5,) * 17, ()))),
        "has 17 blocks of numbers",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found(world: World, name: str) -> None:
    inos = {"file": world.create(b"file"), "dir": world.mkdir(b"dir"), "orphan": world.create(b"gone")}
    inos["link"] = world.ok(ops.Symlink(ROOT, TOP, b"link", b"x"))[0]
    world.ok(ops.Unlink(ROOT, TOP, b"gone"))
    assert check(world.store) == []
    damage, text = DAMAGES[name]
    world.store.begin()
    damage(world.store, inos)
    found = check(world.store)
    assert any(text in problem for problem in found), found
    world.store.rollback()
    assert check(world.store) == []

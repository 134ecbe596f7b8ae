"""Pure. POSIX access control lists (acl(5), POSIX.1e draft 17): the attributes ``system.posix_acl_access`` and
``system.posix_acl_default``, inheritance, and what they make of the mode.

An inode's access ACL is split: the mode holds the owner's and others' permissions and, as its group bits, the mask;
``Inode.acl`` holds the rest (named users and groups, and the owning group's own entry). So chmod changes the mask, as
it must, and an inode without an extended ACL costs nothing. A directory's default ACL is an extended attribute.
Who may do what is decided in :mod:`mds.namespace.perm`. Where the mask allows nothing, named users get nothing, as the
standard says (Linux lets them have what all others have).
"""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, Final

from mds import schema
from mds.namespace.inode import S_IFLNK, S_IFMT, Acl, Inode
from wire.errors import FileSystemError

if TYPE_CHECKING:
    from mds.namespace.scope import Scope
    from mds.store import Store

ACCESS: Final = b"system.posix_acl_access"
DEFAULT: Final = b"system.posix_acl_default"
NAMES: Final = (ACCESS, DEFAULT)

VERSION: Final = 2
"""POSIX_ACL_XATTR_VERSION."""
USER_OBJ: Final = 0x01
USER: Final = 0x02
GROUP_OBJ: Final = 0x04
GROUP: Final = 0x08
MASK: Final = 0x10
OTHER: Final = 0x20
NO_ID: Final = 0xFFFFFFFF
ENTRIES_MAX: Final = 64
"""Entries of one ACL (ENOSPC beyond): they are part of the inode's record, which every stat reads."""

_HEADER: Final = struct.Struct("<I")
_ENTRY: Final = struct.Struct("<HHI")


def decoded_untrusted(value: bytes) -> Acl:
    """The entries in *value*, in canonical order; () for an ACL without any. EINVAL for what is none, ENOSPC.

    One entry each for owner, owning group and others; a mask if anybody is named, and nobody twice.
    """
    if len(value) < 4 or (len(value) - 4) % _ENTRY.size:
        raise FileSystemError(errno.EINVAL)
    if _HEADER.unpack_from(value)[0] != VERSION:
        raise FileSystemError(errno.EOPNOTSUPP)
    if (len(value) - 4) // _ENTRY.size > ENTRIES_MAX:
        raise FileSystemError(errno.ENOSPC)
    found: list[tuple[int, int, int]] = []
    for tag, perm, who in _ENTRY.iter_unpack(value[4:]):
        named = tag in (USER, GROUP)
        if tag not in (USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER) or perm > 7 or (named and who == NO_ID):
            raise FileSystemError(errno.EINVAL)
        found.append((tag, perm, who if named else NO_ID))
    if not found:
        return ()
    tags = [tag for tag, _perm, _who in found]
    once = all(tags.count(tag) == 1 for tag in (USER_OBJ, GROUP_OBJ, OTHER)) and tags.count(MASK) <= 1
    if not once or (MASK not in tags and (USER in tags or GROUP in tags)):
        raise FileSystemError(errno.EINVAL)
    if len({(tag, who) for tag, _perm, who in found}) != len(found):
        raise FileSystemError(errno.EINVAL)
    return tuple(sorted(found, key=lambda entry: (entry[0], entry[2])))


def encoded(acl: Acl) -> bytes:
    return _HEADER.pack(VERSION) + b"".join(_ENTRY.pack(tag, perm, who) for tag, perm, who in acl)


def of(inode: Inode) -> Acl:
    """The whole access ACL of an inode that has an extended one."""
    mode = inode.mode
    whole = (
        (USER_OBJ, mode >> 6 & 7, NO_ID),
        *inode.acl,
        (MASK, mode >> 3 & 7, NO_ID),
        (OTHER, mode & 7, NO_ID),
    )
    return tuple(sorted(whole, key=lambda entry: (entry[0], entry[2])))


def put_into(inode: Inode, acl: Acl) -> None:
    """Make *acl*, which is not empty, the access ACL of *inode*: its mode and the rest."""
    perms = {tag: perm for tag, perm, _who in acl if tag not in (USER, GROUP)}
    extended = MASK in perms
    group = perms[MASK] if extended else perms[GROUP_OBJ]
    inode.mode = inode.mode & ~0o777 | perms[USER_OBJ] << 6 | group << 3 | perms[OTHER]
    inode.acl = tuple(entry for entry in acl if entry[0] in (USER, GROUP_OBJ, GROUP)) if extended else ()


def shown(store: Store, ino: int, inode: Inode, name: bytes) -> bytes:
    """The value of attribute *name* (of NAMES). ENODATA where there is no such list."""
    if name == ACCESS:
        if inode.acl:
            return encoded(of(inode))
    elif inode.xattrs:
        value = store.get(schema.XATTRS, schema.xattr_key(ino, DEFAULT))
        if value is not None:
            return value
    raise FileSystemError(errno.ENODATA)


def set_(scope: Scope, ino: int, inode: Inode, name: bytes, value: bytes | None) -> None:
    """Set the list *name* (of NAMES); None, or a list without entries, takes it away. The caller puts *inode*.

    Without an access ACL the mode stays as it is. EOPNOTSUPP for symbolic links, EACCES for a default ACL of what is no
    directory.
    """
    if inode.mode & S_IFMT == S_IFLNK:
        raise FileSystemError(errno.EOPNOTSUPP)
    acl = () if value is None else decoded_untrusted(value)
    if name == ACCESS:
        if acl:
            put_into(inode, acl)
        else:
            inode.acl = ()
        return
    if not inode.is_dir:
        if acl:
            raise FileSystemError(errno.EACCES)
        return
    _put_default(scope, ino, inode, encoded(acl) if acl else None)


def _put_default(scope: Scope, ino: int, inode: Inode, value: bytes | None) -> None:
    key = schema.xattr_key(ino, DEFAULT)
    old = scope.store.get(schema.XATTRS, key)
    if value is not None:
        scope.store.put(schema.XATTRS, key, value)
        inode.xattrs += old is None
    elif old is not None:
        scope.store.delete(schema.XATTRS, key)
        inode.xattrs -= 1


def inherit(scope: Scope, parent: int, ino: int, inode: Inode) -> None:
    """New *inode* is made in directory *parent*: if that has a default ACL, it says who may do what, within what the
    mode asked for allows; a subdirectory inherits the default ACL itself as well. The caller puts *inode*.
    """
    value = scope.store.get(schema.XATTRS, schema.xattr_key(parent, DEFAULT))
    if value is None or inode.mode & S_IFMT == S_IFLNK:
        return
    acl = decoded_untrusted(value)
    group_class = MASK if any(tag == MASK for tag, _perm, _who in acl) else GROUP_OBJ
    asked = {USER_OBJ: inode.mode >> 6 & 7, group_class: inode.mode >> 3 & 7, OTHER: inode.mode & 7}
    put_into(inode, tuple((tag, perm & asked.get(tag, 7), who) for tag, perm, who in acl))
    if inode.is_dir:
        _put_default(scope, ino, inode, value)

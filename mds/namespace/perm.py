"""Pure. Permission as Linux decides it: mode bits, supplementary groups, and what root may.

The service decides, not the client: uid 0 has the capabilities a local root has (DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER,
FSETID, CHOWN, MKNOD, SYS_ADMIN for trusted attributes), every other uid none.
"""

from __future__ import annotations

import errno
import stat
from typing import Final

from mds.namespace.inode import S_IFDIR, S_IFMT, Inode
from wire.errors import FileSystemError
from wire.ops import Cred

R: Final = 4
W: Final = 2
X: Final = 1
ACL_USER: Final = 0x02
ACL_GROUP_OBJ: Final = 0x04
"""Tags in Inode.acl (mds.namespace.acl); the third is a named group."""


def allowed(inode: Inode, cred: Cred, want: int) -> bool:
    """Whether *cred* has all of the bits *want* (R, W, X) on *inode*."""
    mode = inode.mode
    if cred.uid == 0:
        # CAP_DAC_OVERRIDE gives everything but execution of a file that nobody may execute.
        return not want & X or mode & S_IFMT == S_IFDIR or mode & 0o111 != 0
    if cred.uid == inode.uid:
        mode >>= 6
    elif inode.acl:
        mode = _by_acl(inode, cred, want)
    elif in_group(cred, inode.gid):
        mode >>= 3
    return mode & want == want


def _by_acl(inode: Inode, cred: Cred, want: int) -> int:
    """The permissions of *cred*, who is not the owner, by the inode's access control list: those of the user if he is
    named, else of any of his groups that allows what he wants, and of others only if none of his groups is named."""
    mask = inode.mode >> 3 & 7
    named = False
    for tag, perm, who in inode.acl:
        if tag == ACL_USER:
            if who == cred.uid:
                return perm & mask
        elif in_group(cred, inode.gid if tag == ACL_GROUP_OBJ else who):
            named = True
            if perm & want == want:
                return perm & mask
    return 0 if named else inode.mode & 7


def need(inode: Inode, cred: Cred, want: int) -> None:
    """Raise EACCES unless *cred* has the bits *want* on *inode*."""
    if not allowed(inode, cred, want):
        raise FileSystemError(errno.EACCES)


def in_group(cred: Cred, gid: int) -> bool:
    return gid == cred.gid or gid in cred.groups


def owns(inode: Inode, cred: Cred) -> bool:
    """Owner or CAP_FOWNER."""
    return cred.uid == 0 or cred.uid == inode.uid


def need_removal(directory: Inode, inode: Inode, cred: Cred) -> None:
    """Raise unless *cred* may take the name of *inode* out of *directory*: EACCES by mode, EPERM by the sticky bit."""
    need(directory, cred, W | X)
    if directory.mode & stat.S_ISVTX and cred.uid not in (0, inode.uid, directory.uid):
        raise FileSystemError(errno.EPERM)


def without_set_id(mode: int, member: bool = True) -> int:
    """*mode* after someone wrote to the file or changed its owner: S_ISUID goes, S_ISGID where it means set-id.

    *member*: whoever did may set it, as a member of the file's group; for others it goes in any case (Linux 6.2).
    """
    mode &= ~stat.S_ISUID
    if mode & stat.S_IXGRP or not member:
        mode &= ~stat.S_ISGID
    return mode

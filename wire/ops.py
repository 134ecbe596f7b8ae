"""Pure. The operations of the metadata service as messages: what a client asks, what a replica applies.

Requests change state and are totally ordered; queries change nothing and are answered by one replica.
A name is bytes (POSIX names need not be text).  Times are nanoseconds since the epoch.  Results are
described with each class as the msgpack value in the answer's body; ``attr`` stands for the tuple
described at :data:`ATTR_FIELDS`.
"""

from __future__ import annotations

import stat
from typing import Final

from wire import ids
from wire.codec import message

ATTR_FIELDS: Final = (
    "ino", "mode", "nlink", "uid", "gid", "rdev", "size",
    "atime_ns", "mtime_ns", "ctime_ns", "layout", "truncations", "inline", "objects", "quota", "acl",
)  # fmt: skip
"""An inode's attributes, a tuple in this order.  ``mode`` holds type and permission bits.  ``layout`` is
None or ``(stripe_size, (chain, ...))``, one chain per column.  ``truncations`` is ``((seq, size), ...)``,
oldest first: truncations that storage targets may not have carried out yet (30-data: lazy trimming).
``inline``: above 0 while the bytes of a file are in the metadata, up to so many (wire.inline); else they are in the
objects of the number ``objects``.
``quota`` is the directory whose quota the inode is counted in, or 0; ``acl`` is true where an access control list
says more than the mode."""

SET_MODE: Final = 1
SET_UID: Final = 2
SET_GID: Final = 4
SET_SIZE: Final = 8
SET_ATIME: Final = 16
SET_MTIME: Final = 32
SET_ATIME_NOW: Final = 64
SET_MTIME_NOW: Final = 128
SET_ALL: Final = 255

RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2

XATTR_CREATE: Final = 1
XATTR_REPLACE: Final = 2

ACCESSED_MAX: Final = 1024
"""Files in one Accessed."""

TIME_NS_MAX: Final = 2**63 - 1
TIME_NS_MIN: Final = -(2**63)


def bad_name(name: bytes) -> str | None:
    """Why *name* cannot be a directory entry on the wire (over-long names are the operation's ENAMETOOLONG)."""
    if len(name) > 4096:
        return f"name of {len(name)} bytes"
    if not name or b"/" in name or b"\0" in name:
        return f"name {name!r} is empty or holds '/' or NUL"
    return None


def bad_ino(ino: int) -> str | None:
    return None if 0 < ino < 2**63 else f"inode number {ino}"


def bad_mode(mode: int) -> str | None:
    return None if 0 <= mode <= 0xFFFF else f"mode {mode:#o}"


def _bad_dirop(parent: int, name: bytes) -> str | None:
    return bad_ino(parent) or bad_name(name)


@message(20)
class Cred:
    """Who asks: effective ids and supplementary groups, as the client's kernel gave them."""

    uid: int
    gid: int
    groups: tuple[int, ...]

    def invalid(self) -> str | None:
        if not 0 <= self.uid < 2**32 or not 0 <= self.gid < 2**32:
            return f"uid {self.uid} gid {self.gid}"
        if len(self.groups) > ids.NGROUPS_MAX:
            return f"{len(self.groups)} groups"
        if not all(type(g) is int and 0 <= g < 2**32 for g in self.groups):
            return "a group that is no gid"
        return None


# --- requests -------------------------------------------------------------------------------------


@message(32)
class Create:
    """Make a regular file. Result: attr. EEXIST if the name is there (the client then opens it)."""

    cred: Cred
    parent: int
    name: bytes
    mode: int

    def invalid(self) -> str | None:
        return _bad_dirop(self.parent, self.name) or bad_mode(self.mode)


@message(33)
class Mkdir:
    """Make a directory. Result: attr."""

    cred: Cred
    parent: int
    name: bytes
    mode: int

    def invalid(self) -> str | None:
        return _bad_dirop(self.parent, self.name) or bad_mode(self.mode)


@message(34)
class Mknod:
    """Make a FIFO, socket, device or (without opening it) a regular file. Result: attr."""

    cred: Cred
    parent: int
    name: bytes
    mode: int
    rdev: int

    def invalid(self) -> str | None:
        if (reason := bad_mode(self.mode)) is not None:  # first: S_IFMT raises for a mode of more than 32 bits
            return reason
        if stat.S_IFMT(self.mode) not in (stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFREG):
            return f"mknod of type {stat.S_IFMT(self.mode):#o}"
        return _bad_dirop(self.parent, self.name) or (None if 0 <= self.rdev < 2**32 else "rdev")


@message(35)
class Symlink:
    """Make a symbolic link that holds *target*. Result: attr."""

    cred: Cred
    parent: int
    name: bytes
    target: bytes

    def invalid(self) -> str | None:
        if len(self.target) > 65536 or b"\0" in self.target:
            return "symlink target holds NUL or is beyond any limit"
        return _bad_dirop(self.parent, self.name)


@message(36)
class Link:
    """Give inode *ino* one more name. Result: attr."""

    cred: Cred
    ino: int
    parent: int
    name: bytes

    def invalid(self) -> str | None:
        return bad_ino(self.ino) or _bad_dirop(self.parent, self.name)


@message(37)
class Unlink:
    """Remove a name that is not a directory. Result: the inode number it named."""

    cred: Cred
    parent: int
    name: bytes

    def invalid(self) -> str | None:
        return _bad_dirop(self.parent, self.name)


@message(38)
class Rmdir:
    """Remove an empty directory. Result: its inode number."""

    cred: Cred
    parent: int
    name: bytes

    def invalid(self) -> str | None:
        return _bad_dirop(self.parent, self.name)


@message(39)
class Rename:
    """renameat2: flags 0, NOREPLACE or EXCHANGE. Result: (moved inode, replaced or exchanged inode or 0)."""

    cred: Cred
    parent: int
    name: bytes
    new_parent: int
    new_name: bytes
    flags: int

    def invalid(self) -> str | None:
        if self.flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
            return f"rename flags {self.flags}"
        return _bad_dirop(self.parent, self.name) or _bad_dirop(self.new_parent, self.new_name)


@message(40)
class SetAttr:
    """Change what *valid* (SET_ bits) names, and ctime; times with SET_xTIME_NOW are the message's stamp. Result: attr.

    ``handle`` is true for a change through an open descriptor (ftruncate): write permission was checked
    when it was opened.
    """

    cred: Cred
    ino: int
    valid: int
    mode: int
    uid: int
    gid: int
    size: int
    atime_ns: int
    mtime_ns: int
    handle: bool

    def invalid(self) -> str | None:
        if not 0 <= self.valid <= SET_ALL:
            return f"setattr of {self.valid:#x}"
        if not 0 <= self.size <= ids.FILE_SIZE_MAX:
            return f"size {self.size}"
        if not 0 <= self.uid < 2**32 or not 0 <= self.gid < 2**32:
            return f"uid {self.uid} gid {self.gid}"
        if not (TIME_NS_MIN <= self.atime_ns <= TIME_NS_MAX and TIME_NS_MIN <= self.mtime_ns <= TIME_NS_MAX):
            return "a time beyond 64 bits"
        return bad_ino(self.ino) or bad_mode(self.mode)


@message(41)
class SetXattr:
    """Set an extended attribute; *flags* 0, XATTR_CREATE or XATTR_REPLACE. Result: None."""

    cred: Cred
    ino: int
    name: bytes
    value: bytes
    flags: int

    def invalid(self) -> str | None:
        if self.flags not in (0, XATTR_CREATE, XATTR_REPLACE):
            return f"setxattr flags {self.flags}"
        if not self.name or len(self.name) > 4096 or b"\0" in self.name:
            return f"attribute name {self.name[:64]!r}"
        if len(self.value) > 4 * ids.XATTR_SIZE_MAX:
            return "attribute value beyond any limit"
        return bad_ino(self.ino)


@message(42)
class RemoveXattr:
    """Remove an extended attribute (ENODATA if it is not there). Result: None."""

    cred: Cred
    ino: int
    name: bytes

    def invalid(self) -> str | None:
        if not self.name or len(self.name) > 4096 or b"\0" in self.name:
            return f"attribute name {self.name[:64]!r}"
        return bad_ino(self.ino)


@message(43)
class Commit:
    """After writes: size becomes max(size, end), mtime and ctime move on, set-id bits are cleared. Result: attr.

    ``end`` is one past the last byte written, 0 when only times change. ``privileged``: all that was written was
    written by root, whose writes leave set-id bits alone.
    """

    ino: int
    end: int
    mtime_ns: int
    privileged: bool = False

    def invalid(self) -> str | None:
        if not 0 <= self.end <= ids.FILE_SIZE_MAX:
            return f"end {self.end}"
        if not 0 <= self.mtime_ns <= TIME_NS_MAX:
            return "a time beyond 64 bits"
        return bad_ino(self.ino)


@message(44)
class Settle:
    """Every storage target has carried out the truncations of *ino* up to *seq*: forget them. Result: None."""

    ino: int
    seq: int

    def invalid(self) -> str | None:
        return bad_ino(self.ino) or (None if 0 <= self.seq <= ids.U64_MAX else "seq")


@message(72)
class Accessed:
    """A mount has read from *files*, ``((inode, time), ...)`` ascending by inode: their atime moves on. Result: None.

    Sent some time after the reads, many in one. A file that is gone, or has changed since, is passed over.
    """

    files: tuple[tuple[int, int], ...]

    def invalid(self) -> str | None:
        if not 0 < len(self.files) <= ACCESSED_MAX:
            return f"{len(self.files)} files"
        before = 0
        for item in self.files:
            if type(item) is not tuple or len(item) != 2 or type(item[0]) is not int or type(item[1]) is not int:
                return "an entry that is no inode and time"
            if item[0] <= before:
                return "inodes do not ascend"
            before = item[0]
            if not 0 <= item[1] <= TIME_NS_MAX:
                return "a time beyond 64 bits"
        return bad_ino(before)


@message(45)
class SessionOpen:
    """A client's new session: reply slots and a secret key. Result: session number.

    ``replica`` is the replica it is attached to from now on, by the client's ``attempt`` (see SessionAttach).  Not sent
    in a slot (there is none yet): the client's random ``key`` makes it idempotent.
    """

    key: bytes
    client: str
    slots: int
    replica: int
    attempt: int

    def invalid(self) -> str | None:
        if len(self.key) != 16:
            return "session key is not 16 bytes"
        if not 1 <= self.slots <= 1024:
            return f"{self.slots} slots"
        if len(self.client) > 255:
            return "client name over 255 characters"
        if not 0 < self.attempt < 2**63:
            return f"attempt {self.attempt}"
        return None if 0 < self.replica <= ids.REPLICA_ID_MAX else "replica"


@message(46)
class SessionAttach:
    """The session goes on at *replica*, by the client's *attempt*, which rises with each of its connections.

    Result: None. NOT_ATTACHED when a later attempt was ordered before; SESSION_UNKNOWN when the session has expired.
    """

    session: int
    key: bytes
    replica: int
    attempt: int

    def invalid(self) -> str | None:
        if len(self.key) != 16:
            return "session key is not 16 bytes"
        if not 0 < self.session < 2**63:
            return f"session {self.session}"
        if not 0 < self.attempt < 2**63:
            return f"attempt {self.attempt}"
        return None if 0 < self.replica <= ids.REPLICA_ID_MAX else "replica"


@message(47)
class SessionClose:
    """The client is done (unmounted). Result: None, also when there is no such session."""

    session: int
    key: bytes

    def invalid(self) -> str | None:
        if len(self.key) != 16:
            return "session key is not 16 bytes"
        return None if 0 < self.session < 2**63 else f"session {self.session}"


@message(48)
class SessionExpire:
    """By a replica: nothing heard of *session* for the session timeout since attachment *attempt*. Result: None.

    Void if the session was attached again since.
    """

    session: int
    attempt: int

    def invalid(self) -> str | None:
        return None if 0 < self.session < 2**63 and self.attempt >= 0 else "session or attempt"


@message(49)
class OrphanAnswer:
    """By a replica *replica*: of these unlinked inodes no (more) open handle of my clients is left (released),
    or there is one after all (pinned).  An orphan that no replica pins any more is reclaimed. Result: None.

    A replica may answer for one that has left (``replica`` is then the one that left).
    """

    replica: int
    released: tuple[int, ...]
    pinned: tuple[int, ...]

    def invalid(self) -> str | None:
        if not 0 < self.replica <= ids.REPLICA_ID_MAX:
            return f"replica {self.replica}"
        if not all(type(i) is int and 0 < i < 2**63 for i in self.released + self.pinned):
            return "an entry that is no inode number"
        return None


@message(50)
class TargetSet:
    """Storage map change: target *target*, with the disk *uuid*, is reached at *address*.

    A new target heads new chains and serves from its first TargetUp on. Result: storage map version. Idempotent.
    """

    target: int
    address: str
    uuid: bytes

    def invalid(self) -> str | None:
        if not 0 < self.target <= ids.TARGET_ID_MAX:
            return f"target {self.target}"
        if len(self.uuid) != 16:
            return "target uuid is not 16 bytes"
        return ids.bad_address(self.address)


@message(51)
class ReclaimDone:
    """By the replica that owes it: the objects of these removed inodes are deleted everywhere. Result: None."""

    inos: tuple[int, ...]

    def invalid(self) -> str | None:
        return None if all(type(i) is int and 0 < i < 2**63 for i in self.inos) else "an entry that is no inode number"


Request = (
    Create | Mkdir | Mknod | Symlink | Link | Unlink | Rmdir | Rename | SetAttr | SetXattr | RemoveXattr | Commit
    | Settle | Accessed | SessionOpen | SessionAttach | SessionClose | SessionExpire | OrphanAnswer | TargetSet
    | ReclaimDone
)  # fmt: skip


# --- queries --------------------------------------------------------------------------------------


@message(80)
class Lookup:
    """The inode *name* stands for in directory *parent*. Result: attr."""

    cred: Cred
    parent: int
    name: bytes

    def invalid(self) -> str | None:
        return _bad_dirop(self.parent, self.name)


@message(81)
class GetAttr:
    """Result: attr; ESTALE when there is no such inode."""

    ino: int

    def invalid(self) -> str | None:
        return bad_ino(self.ino)


@message(82)
class ReadDir:
    """Entries of directory *ino* after *cookie* (0: from the start), at most *limit*.

    Result: ``(((name, cookie, attr), ...), end)``; *end* is true when the directory has no more.  ``.`` and
    ``..`` are not among them.  A cookie is the entry's own and stays valid across failover.  EACCES unless *cred* may
    read the directory, or the capability is shown that came with another page: who has begun a listing may end it.
    """

    cred: Cred
    ino: int
    cookie: int
    limit: int

    def invalid(self) -> str | None:
        if not 0 <= self.cookie < 2**63:
            return f"cookie {self.cookie}"
        if not 1 <= self.limit <= 4096:
            return f"limit {self.limit}"
        return bad_ino(self.ino)


@message(83)
class ReadLink:
    """Result: the target of symbolic link *ino* (bytes)."""

    ino: int

    def invalid(self) -> str | None:
        return bad_ino(self.ino)


@message(84)
class GetXattr:
    """Result: the value (bytes); ENODATA when there is none."""

    cred: Cred
    ino: int
    name: bytes

    def invalid(self) -> str | None:
        return bad_ino(self.ino)


@message(85)
class ListXattr:
    """Result: the names, a tuple of bytes."""

    ino: int

    def invalid(self) -> str | None:
        return bad_ino(self.ino)


@message(86)
class Open:
    """Open an existing inode: permission for *flags* (O_ACCMODE, O_TRUNC) is checked, the handle recorded.

    Result: ``(attr, contents)``; contents is wire.inline.ReadInline's for who will read, and does not truncate.
    The replica counts the handle before it answers, so that an unlink cannot reclaim it.
    """

    cred: Cred
    ino: int
    flags: int

    def invalid(self) -> str | None:
        return bad_ino(self.ino)


@message(87)
class Access:
    """access(2) of *ino* for the bits R_OK 4, W_OK 2, X_OK 1. Result: None; EACCES."""

    cred: Cred
    ino: int
    mask: int

    def invalid(self) -> str | None:
        return bad_ino(self.ino) or (None if 0 <= self.mask <= 7 else f"mask {self.mask}")


@message(88)
class StatFs:
    """Result: ``(inodes used, ...)`` see mds.namespace.queries; not linearizable."""

    def invalid(self) -> str | None:
        return None


@message(89)
class StorageMap:
    """Result: ``(map, losses)``, wire.chains.StorageMap and Losses.

    A chain's members stand in the order in which writes pass through them.
    """

    def invalid(self) -> str | None:
        return None


Query = Lookup | GetAttr | ReadDir | ReadLink | GetXattr | ListXattr | Open | Access | StatFs | StorageMap

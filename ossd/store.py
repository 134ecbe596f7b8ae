"""Objects on a local file system: one file each, with the order in which things reach the disk.

``objects/<hash of the inode>/<inode>.<column>`` holds an object's bytes, nothing else; the number of the last
truncation carried out is the extended attribute TRIM_ATTR of the file (none: 0), so that it lives and dies with
the file and costs nothing to objects that are never truncated; the chain it belongs to is CHAIN_ATTR. Checksums and
the stamp of the last change are in the object's ledger (:mod:`ossd.ledger`).

What must survive a crash, and how the order sees to it:

- *A trim is never forgotten.* The number is written only after the shortened file is on disk (``ftruncate``,
  ``fsync``, ``setxattr``), so whatever a crash leaves, a number on disk means that its trim is.
- *A trim is never applied again to newer data.* The number is set before the write that comes after the trim, and
  a sync of the object makes both durable (``fsync`` instead of ``fdatasync`` while the attribute is not). A crash
  may lose the number together with the newer data, which nobody was promised; a crash of the daemon alone
  loses neither, as both are in the page cache.
- *An answered ObjectTruncate is durable*, number and all, since its sender has the metadata forget it. That is
  also why it makes an empty object where there is none: a client that knows the inode only from before the
  truncation was settled would otherwise trim what others have written since.
- *An answered ObjectSync* covers the directory entry of a new object; an answered ObjectDelete the lack of it.

Everything here blocks.  Calls for one object are ordered by the caller (ossd.objects.Order); calls for different
objects, and :meth:`Store.sync` beside anything, may run in threads at the same time.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, Self

from ossd import identity, losses
from ossd.disk import Disk
from ossd.ledger import BLOCK, NO_STAMP, BadBlock, Damaged, Ledger, Stamp, whole_blocks
from ossd.objectfile import CHAIN, CHAIN_ATTR, Key, ObjectFile, chain_of, fanout_of, file_name
from ossd.objects import OFFSET_MAX, Truncations, pending, readable, visible_size

log = logging.getLogger(__name__)

Buffer = bytes | bytearray | memoryview

TRIM_ATTR: Final = "user.lockstep.trim"
TRIM: Final = struct.Struct("!Q")

OPEN_MAX: Final = 8192
"""Objects kept open at most; serve.py lowers it to a quarter of the descriptors that there may be (two each)."""
OWING_MAX: Final = 256
"""Idle objects with lost writes that somebody must still be told of; beyond that the oldest are forgotten (and the
incarnation moves on at the next start)."""
RESERVE_MAX: Final = 1 << 30
"""Bytes kept free at most (else 1/64 of the disk): for directories, the witness and attributes, so that a full
target can still trim, delete and vote."""
ALLOWANCE_MAX: Final = 64 << 20
"""Bytes that objects may grow by before the file system is asked again how much is free."""


class Store:
    """The objects of one target. Made by :meth:`open`; closed once, by :meth:`close`."""

    def __init__(
        self, path: Path, who: identity.Identity, incarnation: int, boot: str, lock_fd: int, disk: Disk,
        open_max: int, reserve: int | None,
    ) -> None:  # fmt: skip
        self.path = path
        self.identity = who
        self.incarnation = incarnation
        self.disk_errors = 0
        """Operations that ended in an error of the disk since the start."""
        self.bad_blocks = 0
        """Times that data did not match its checksum since the start."""
        self.torn_blocks = 0
        """Blocks accepted after a power cut although they did not match."""
        self.objects = 0
        """Objects there are, as far as :meth:`count_objects` has got."""
        self.losses = losses.Losses(path, who.uuid, incarnation, boot)
        self._disk = disk
        self._lock_fd = lock_fd
        self._open_max = open_max
        self._directories = [str(path / identity.OBJECTS_NAME / name) for name in identity.fanout_names()]
        self._ledgers = [str(path / identity.LEDGERS_NAME / name) for name in identity.fanout_names()]
        self._directory_locks = [threading.Lock() for _ in self._directories]
        self._counted = [False] * len(self._directories)
        self._lock = threading.Lock()
        """Guards the table, ``users`` and ``gone`` of its files, the counts and the allowance."""
        self._table: OrderedDict[Key, ObjectFile] = OrderedDict()
        self._stop_counting = False
        total = disk.statvfs(path)
        self._reserve = min(total.f_blocks * total.f_frsize // 64, RESERVE_MAX) if reserve is None else reserve
        self._allowance = 0
        self._full = False

    @classmethod
    def open(
        cls,
        path: Path,
        cluster: bytes,
        target: int,
        *,
        disk: Disk | None = None,
        open_max: int = OPEN_MAX,
        reserve: int | None = None,
        boot: str | None = None,
    ) -> Self:
        """Serve *path*; a missing or empty directory is formatted first. Raises StoreRefused, OSError."""
        disk = disk or Disk()
        try:
            who = identity.read_identity(path, cluster, target)
        except FileNotFoundError:
            who = identity.format_directory(path, cluster, target)
            log.info("target %d: %s is a new, empty disk (uuid %s)", target, path, who.uuid.hex())
        lock_fd = identity.lock_directory(path)
        try:
            identity.refuse_without_attributes(path)
            boot = identity.boot_id() if boot is None else boot
            lost = losses.is_marked(who.uuid)
            try:
                # What a daemon that died before us left in the page cache: from here on, what is not in our
                # table is on disk.
                disk.sync_file_system(path)
            except OSError as exc:
                log.error("target %d: %s: writes from before this start are lost: %s", target, path, exc.strerror)
                lost = True
            incarnation = identity.begin_incarnation(path, boot, lost)
            losses.unmark(who.uuid)
            return cls(path, who, incarnation, boot, lock_fd, disk, open_max, reserve)
        except BaseException:
            os.close(lock_fd)
            raise

    # -- the table of open objects

    def cached(self, key: Key) -> ObjectFile | None:
        """The object if it is open already (to be given back by :meth:`release`). Does not block."""
        with self._lock:
            file = self._table.get(key)
            if file is not None:
                self._table.move_to_end(key)
                file.users += 1
            return file

    def fetch(self, key: Key, *, create: bool, chain: int = 0) -> ObjectFile | None:
        """The object, to be given back by :meth:`release`, or None; with *create* one of *chain* is made."""
        file = self.cached(key)
        if file is not None:
            return file
        self._make_room()
        where = fanout_of(key[0])
        path = f"{self._directories[where]}/{file_name(key)}"
        try:
            file = self._open_file(key, path, where, create, chain)
        except FileNotFoundError:
            return None
        except Damaged as exc:
            log.error("%s", exc)
            raise
        except OSError as exc:
            raise self._failed(f"open of {path}", exc) from exc
        with self._lock:
            other = self._table.get(key)
            if other is None:
                self._table[key] = file
                return file
            other.users += 1
        self._close(file)  # a reader beside us was faster; nothing was noted in ours yet
        return other

    def _open_file(self, key: Key, path: str, where: int, create: bool, chain: int) -> ObjectFile:
        flags = os.O_RDWR | os.O_CLOEXEC
        new = False
        try:
            fd = self._disk.open(path, flags)
        except FileNotFoundError:
            if not create:
                raise
            with self._directory_locks[where]:
                fd = self._disk.open(path, flags | os.O_CREAT, 0o600)
                new = True
                if self._counted[where]:
                    with self._lock:
                        self.objects += 1
        try:
            size = 0 if new else os.fstat(fd).st_size
            last = 0 if new else self._last_trim(fd, path)
            if new and chain:  # the ledger may be lost, the object must not be
                os.setxattr(fd, CHAIN_ATTR, CHAIN.pack(chain))
            ledger = Ledger.open(f"{self._ledgers[where]}/{file_name(key)}", self.incarnation, fd, new)
            ledger.chain = ledger.chain or (chain if new else chain_of(fd))
            return ObjectFile(key, path, fd, size, last, new, ledger)
        except BaseException:
            self._disk.close(fd)
            raise

    def _last_trim(self, fd: int, path: str) -> int:
        try:
            value = self._disk.getxattr(fd, TRIM_ATTR)
        except OSError as exc:
            if exc.errno == errno.ENODATA:
                return 0
            raise
        if len(value) != TRIM.size:
            raise Damaged(errno.EIO, f"attribute {TRIM_ATTR} is {len(value)} bytes long, not {TRIM.size}", path)
        return int(TRIM.unpack(value)[0])

    @property
    def has_room(self) -> bool:
        """Can one more object be opened without closing another?"""
        return len(self._table) < self._open_max

    def release(self, file: ObjectFile) -> None:
        """Give back what :meth:`cached` or :meth:`fetch` gave."""
        with self._lock:
            file.users -= 1
            assert file.users >= 0
            close = file.gone and not file.users
        if close:
            self._close(file)

    def _close(self, file: ObjectFile) -> None:
        self._disk.close(file.fd)
        file.ledger.close()

    def _make_room(self) -> None:
        """Close the objects not used for longest, synced first: a descriptor closed early would take the news
        of a lost write with it. So when thousands of objects are written and never synced, the one who opens
        the next pays for one of them."""
        for _ in range(2):  # one for ours and one more, so that a table over its bound gets smaller
            with self._lock:
                file = self._oldest_idle() if len(self._table) >= self._open_max else None
                if file is None:
                    return  # there is room; or all are in use, which the bound on operations bounds
                if self._close_idle(file):
                    continue
                file.users += 1
            try:
                with contextlib.suppress(OSError):  # it is logged, and in the book: the object then stays open
                    self._flush(file)
            finally:
                self.release(file)
            with self._lock:
                self._close_idle(file)

    def _oldest_idle(self) -> ObjectFile | None:
        """The object not used for longest among those that owe nobody news of lost writes. The lock is held."""
        owing: list[ObjectFile] = []
        found = None
        for file in self._table.values():
            if file.users:
                continue
            if not file.book.owes:
                found = file
                break
            owing.append(file)
        if len(owing) > OWING_MAX:
            log.error("%s: lost writes that somebody was not told of are forgotten: there are too many", owing[0].path)
            self.losses.note()
            self._forget(owing[0])
        return found

    def _close_idle(self, file: ObjectFile) -> bool:
        """Close *file* if nobody holds it and nothing about it is left to do. The lock is held."""
        if file.gone or file.users or file.book.owes or not file.clean:
            return False
        self._forget(file)
        return True

    def _forget(self, file: ObjectFile) -> None:
        """Take an idle *file* out of the table and close it. The lock is held."""
        assert not file.users
        del self._table[file.key]
        file.gone = True
        self._close(file)

    # -- data

    def read(self, file: ObjectFile, offset: int, length: int, truncations: Truncations) -> Buffer:
        """What there is of the range; shorter where the object ends. Raises OSError, :class:`BadBlock`."""
        count = readable(visible_size(file.size, file.last, truncations), offset, length)
        if not count:
            return b""
        start, stop = whole_blocks(offset, count, file.size)
        try:
            data = self._disk.pread(file.fd, stop - start, start)
            while len(data) < stop - start:  # interrupted, or a file shorter than we know (somebody tampers with it)
                more = self._disk.pread(file.fd, stop - start - len(data), start + len(data))
                if not more:
                    break
                data += more
        except OSError as exc:
            raise self._failed(f"read of {file.path}", exc) from exc
        while (bad := file.ledger.verify(start // BLOCK, data)) is not None:
            self._mismatch(file, bad)
        return data if len(data) == count else memoryview(data)[offset - start : offset - start + count]

    def _mismatch(self, file: ObjectFile, block: int) -> None:
        """*block* does not match its sum: torn by a power cut, it gets another sum; else raises :class:`BadBlock`."""
        if file.ledger.incarnation < self.incarnation:
            self.torn_blocks += 1
            log.warning("%s: block %d was torn by a power cut: accepted as it is", file.path, block)
            file.ledger.rebuild(file.fd, block * BLOCK, (block + 1) * BLOCK)
            return
        self.bad_blocks += 1
        log.error("%s: block %d does not match its checksum", file.path, block)
        raise BadBlock(file.path, block)

    def read_at_once(self, file: ObjectFile, offset: int, length: int, truncations: Truncations) -> Buffer | None:
        """As :meth:`read` without waiting for the disk: None when the page cache does not hold it all."""
        count = readable(visible_size(file.size, file.last, truncations), offset, length)
        if not count:
            return b""
        start, stop = whole_blocks(offset, count, file.size)
        data = bytearray(stop - start)
        try:
            # Some file systems refuse RWF_NOWAIT and a bad block is EIO here, too: read() then says it properly.
            got = self._disk.preadv(file.fd, [data], start, os.RWF_NOWAIT)
        except OSError:
            return None
        if got != len(data) or file.ledger.verify(start // BLOCK, data) is not None:
            return None  # read() says what is wrong
        return data if got == count else memoryview(data)[offset - start : offset - start + count]

    def write(
        self,
        file: ObjectFile,
        offset: int,
        data: Buffer,
        truncations: Truncations,
        client: str,
        stamp: Stamp = NO_STAMP,
        chain: int = 0,
    ) -> None:
        """Write all of *data*, into the page cache, after the truncations that are still to be carried out.

        *stamp* becomes the object's. Raises OSError: ENOSPC and EFBIG leave the object as it was, but for bytes it had
        within the range; BadBlock before anything is written.
        """
        end = offset + len(data)
        if end > OFFSET_MAX:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), file.path)
        if truncations:
            self._carry_out(file, truncations, client)
        before = file.size
        if end > before:
            self._admit(len(data))
        if not len(data):
            return
        ledger = file.ledger
        first = offset // BLOCK
        self.make_sure(file)
        entries = self._entries(file, offset, data)
        ledger.begin(first, (end - 1) // BLOCK + 1 - first)
        with file.lock:
            file.book.wrote(client)
        try:
            done = self._disk.pwrite(file.fd, data, offset)
            while done < len(data):
                done += self._disk.pwrite(file.fd, memoryview(data)[done:], offset + done)
        except OSError as exc:
            self._undo_growth(file, before)
            ledger.stamp = NO_STAMP  # half of the range may be new: equal to nobody's copy
            ledger.rebuild(file.fd, first * BLOCK, end)
            raise self._failed(f"write to {file.path}", exc) from exc
        file.filled(offset, end)
        ledger.commit(first, entries, stamp, chain, self.incarnation)

    def make_sure(self, file: ObjectFile) -> int:
        """Before anything is changed after a power cut: look at all of the object, once; blocks found torn.

        The ledger says for the object as a whole whether it can be relied on.
        """
        ledger = file.ledger
        if ledger.incarnation >= self.incarnation:
            return 0
        torn = ledger.accept_torn(file.fd)
        if torn:
            self.torn_blocks += torn
            log.warning("%s: %d blocks were torn by a power cut: accepted as they are", file.path, torn)
        # Void: the stamp may have reached the disk before the data that it is about, or the data alone.
        ledger.set_stamp(NO_STAMP, ledger.chain, self.incarnation)
        return torn

    def _entries(self, file: ObjectFile, offset: int, data: Buffer) -> bytes:
        """What the ledger will say of the blocks that the write touches."""
        while True:
            try:
                return file.ledger.entries_for(file.fd, offset, data)
            except BadBlock as exc:
                self._mismatch(file, exc.block)
            except OSError as exc:
                raise self._failed(f"read of {file.path}", exc) from exc

    def _undo_growth(self, file: ObjectFile, size: int) -> None:
        """A write failed half way: what it appended goes, so that the object ends where it ended before."""
        try:
            if os.fstat(file.fd).st_size > size:
                self._disk.ftruncate(file.fd, size)
        except OSError as exc:
            file.size = max(size, os.fstat(file.fd).st_size)
            self._failed(f"undoing a write to {file.path}", exc)

    def _carry_out(self, file: ObjectFile, truncations: Truncations, client: str) -> None:
        """Trim by what is news in *truncations*. In the page cache on return, in the order told at the top."""
        length, number = pending(file.last, truncations)
        if length is None:
            return
        with file.lock:
            file.book.wrote(client)
            # POSIX does not say that fdatasync covers a smaller size, so the trim counts with its number.
            file.attr_dirty = True
        try:
            if length < file.size:
                self.make_sure(file)
                file.ledger.begin(length // BLOCK, 1)
                self._disk.ftruncate(file.fd, length)
                file.size = length
                file.ledger.cut(file.fd, length)
                file.ledger.begin(0, 0)
                self._flush(file)
            self._disk.setxattr(file.fd, TRIM_ATTR, TRIM.pack(number))
        except OSError as exc:
            raise self._failed(f"trim of {file.path}", exc) from exc
        with file.lock:
            file.attr_dirty = True
        file.last = number

    def truncate(
        self, file: ObjectFile, truncations: Truncations, client: str, stamp: Stamp = NO_STAMP, chain: int = 0
    ) -> None:
        """Carry out *truncations*, durably, as well as any that were carried out before and are not durable."""
        if pending(file.last, truncations)[0] is not None:
            self.make_sure(file)
            self._carry_out(file, truncations, client)
            file.ledger.set_stamp(stamp, chain, self.incarnation)
        if file.attr_dirty or file.entry_dirty:
            self._flush(file)

    def sync(self, file: ObjectFile, upto: int, client: str) -> int:
        """Make the first *upto* changes durable; 0, or the errno of writes lost that *client* was not told of."""
        failed = 0
        if not file.clean:
            try:
                self._flush(file, upto)
            except OSError as exc:
                failed = exc.errno or errno.EIO
        with file.lock:
            return file.book.told(client) or failed

    def _flush(self, file: ObjectFile, upto: int | None = None) -> None:
        """Make *file* durable (its first *upto* changes at least). A failure is noted for all who wrote, and raised."""
        with file.syncing:
            if upto is not None and file.book.synced >= upto and not file.attr_dirty and not file.entry_dirty:
                return  # the sync that we waited for has covered ours
            with file.lock:
                begun = file.book.writes
                attr, file.attr_dirty = file.attr_dirty, False
            entry = file.entry_dirty
            try:
                (self._disk.fsync if attr else self._disk.fdatasync)(file.fd)
                if entry and not file.gone:
                    self._disk.sync_directory(Path(file.path).parent)
            except OSError as exc:
                self.losses.note()  # whoever is told of it: the stamps may be on disk, and the data never
                with file.lock:
                    file.attr_dirty = file.attr_dirty or attr
                    file.book.failed(begun, exc.errno or errno.EIO)
                raise self._failed(f"sync of {file.path}", exc) from exc
            file.entry_dirty = False
            with file.lock:
                file.book.done(begun)

    def delete(self, keys: Iterable[Key]) -> None:
        """Delete objects, durably; those that are not there are done already."""
        touched: dict[int, None] = {}
        for key in keys:
            where = fanout_of(key[0])
            touched[where] = None
            with self._lock:
                file = self._table.pop(key, None)
                close = False
                if file is not None:
                    file.gone = True
                    close = not file.users
            if file is not None and close:
                self._close(file)
            path = f"{self._directories[where]}/{file_name(key)}"
            with contextlib.suppress(FileNotFoundError):  # one left behind is emptied when the object is made again
                os.unlink(f"{self._ledgers[where]}/{file_name(key)}")
            with self._directory_locks[where]:
                try:
                    self._disk.unlink(path)
                except FileNotFoundError:
                    continue
                except OSError as exc:
                    raise self._failed(f"delete of {path}", exc) from exc
                if self._counted[where]:
                    with self._lock:
                        self.objects -= 1
        for where in touched:
            # Also where nothing was left to delete: an earlier attempt may have got no further than unlink.
            try:
                self._disk.sync_directory(Path(self._directories[where]))
            except OSError as exc:
                raise self._failed(f"sync of {self._directories[where]}", exc) from exc

    def sync_all(self) -> None:
        """Have everything on disk. Raises OSError."""
        try:
            self._disk.sync_file_system(self.path)
        except OSError as exc:
            raise self._failed(f"sync of {self.path}", exc) from exc

    def expect(self, file: ObjectFile, end: int) -> None:
        """Raise ENOSPC when the object cannot grow to *end*."""
        if end > OFFSET_MAX:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), file.path)
        if end > file.size:
            self._admit(0, at_least=end - file.size)

    # -- space and errors

    def space(self) -> tuple[int, int]:
        """(bytes in all, bytes that objects may still take)."""
        now = self._disk.statvfs(self.path)
        return now.f_blocks * now.f_frsize, max(0, now.f_bavail * now.f_frsize - self._reserve)

    def _admit(self, size: int, at_least: int = 0) -> None:
        """Raise ENOSPC when *size* more bytes would touch the reserve. A write that does not grow its object
        is let through: most need no space, and for the others the file system has the reserve. *at_least*: so many
        bytes must be free, but are not taken."""
        with self._lock:
            if max(size, at_least) <= self._allowance:
                self._allowance -= size
                return
        size = max(size, at_least)
        free = self.space()[1]
        with self._lock:
            if free < size:
                self._allowance = 0
                full, self._full = self._full, True
            else:
                self._allowance = min((free - size) // 2, ALLOWANCE_MAX)
                full, self._full = self._full, False
        if free < size:
            if not full:
                log.error("%s is full: %d bytes free above the reserve of %d", self.path, free, self._reserve)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        if full:
            log.info("%s has room again: %d bytes free above the reserve", self.path, free)

    def _failed(self, what: str, exc: OSError) -> OSError:
        """Log and count an error of the disk; the error for the caller to raise."""
        if getattr(exc, "counted", False) or exc.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return exc
        self.disk_errors += 1
        log.error("%s failed: %s", what, exc.strerror or exc)
        counted: Any = OSError(exc.errno or errno.EIO, exc.strerror or str(exc), what)
        counted.counted = True
        return counted  # type: ignore[no-any-return]

    # -- counting and closing

    def count_objects(self, counted: Callable[[int], None] | None = None) -> None:
        """Count the objects there are, directory by directory; what changes meanwhile is counted right."""
        for where, path in enumerate(self._directories):
            if self._stop_counting:
                return
            with self._directory_locks[where]:
                number = len(os.listdir(path))
                self._counted[where] = True
                with self._lock:
                    self.objects += number
            if counted is not None:
                counted(where)

    def stop_counting(self) -> None:
        """Have :meth:`count_objects` return soon."""
        self._stop_counting = True

    def close(self) -> None:
        """Sync everything and close it. No operation may be running."""
        for file in self._table.values():
            assert not file.users, f"{file.path} is in use at the end"
            if not file.clean:
                with contextlib.suppress(OSError):  # logged, and seen in the book below
                    self._flush(file)
            if file.book.owes or not file.clean:
                self.losses.note()
            self._close(file)
        self._table.clear()
        try:
            self.losses.close()
        finally:
            os.close(self._lock_fd)

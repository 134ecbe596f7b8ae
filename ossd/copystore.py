"""A store whose objects are copies: what the members of a chain ask of it, to find out what differs and to mend it."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from typing import Final

from ossd import identity
from ossd.checksum import crc32
from ossd.ledger import BLOCK, ENTRY, LOST, NO_STAMP, BadBlock, Damaged, Stamp, header_of
from ossd.objectfile import Key, ObjectFile, chain_of, fanout_of, file_name, key_of
from ossd.store import TRIM, TRIM_ATTR, Buffer, Store

log = logging.getLogger(__name__)

UNREADABLE: Final = (0, NO_STAMP, -1)
"""In place of an object's chain, stamp and incarnation."""


class CopyStore(Store):
    """See the module, and :class:`ossd.store.Store` for the order of calls."""

    def start_writing(self, file: ObjectFile) -> None:
        """Have the disk begin with what was written in a row. Of errors the next sync tells."""
        start, stop = file.fresh
        file.fresh = (stop, stop)
        self._disk.start_writing(file.fd, start, stop - start)

    def fetch_or_begin_anew(self, key: Key, chain: int) -> ObjectFile:
        """As :meth:`fetch`, for what comes from a member that has all of the object: a copy of it that is damaged here
        gives way to an empty one, without a stamp, which is then brought in step."""
        try:
            file = self.fetch(key, create=True, chain=chain)
        except Damaged:
            self.delete((key,))
            file = self.fetch(key, create=True, chain=chain)
        assert file is not None
        return file

    def listing(self, chain: int, first: int, count: int) -> list[tuple[int, int, int, int]]:
        """(inode, column, stamp) of the objects of *chain* in directories [first, first + count)."""
        found: list[tuple[int, int, int, int]] = []
        for where, name, key in self._objects(first, count):
            header = self._header(where, name)
            belongs, stamp, incarnation = header if header is not None else (0, NO_STAMP, 0)
            belongs = belongs or chain_of(f"{self._directories[where]}/{name}")
            if header == UNREADABLE and not belongs:
                belongs = chain  # whoever tries to open it is told what is the matter; to pass it over would lose it
            # 1. An object is being made, its ledger says nothing yet. 2. Taken for one of this chain it is brought
            # to this chain's next member, which may have a newer copy as a member of its true chain.
            if belongs == chain:
                sure = incarnation >= self.incarnation
                found.append((*key, *(stamp if sure else NO_STAMP)))
        return found

    def belongings(self, first: int, count: int) -> list[tuple[int, int, int]]:
        """(inode, column, chain) of all objects in directories [first, first + count); chain 0: not known."""
        found: list[tuple[int, int, int]] = []
        for where, name, key in self._objects(first, count):
            header = self._header(where, name)
            chain = (header[0] if header is not None else 0) or chain_of(f"{self._directories[where]}/{name}")
            found.append((*key, chain or 0))
        return found

    def sizes(self, first: int, count: int) -> list[tuple[int, int]]:
        """(chain, bytes on disk) of all objects in directories [first, first + count)."""
        found: list[tuple[int, int]] = []
        for where, name, _ in self._objects(first, count):
            try:
                size = os.stat(f"{self._directories[where]}/{name}").st_blocks * 512
            except FileNotFoundError:
                continue  # deleted meanwhile
            header = self._header(where, name)
            chain = (header[0] if header is not None else 0) or chain_of(f"{self._directories[where]}/{name}")
            found.append((chain or 0, size))
        return found

    def _header(self, where: int, name: str) -> tuple[int, Stamp, int] | None:
        """As ossd.ledger.header_of; UNREADABLE where the disk ends that in an error."""
        try:
            return header_of(f"{self._ledgers[where]}/{name}")
        except OSError as exc:
            log.error("ledger of %s: %s", name, exc.strerror)
            return UNREADABLE

    def every(self, first: int, count: int) -> list[Key]:
        """All objects in directories [first, first + count)."""
        return [key for _, _, key in self._objects(first, count)]

    def _objects(self, first: int, count: int) -> Iterator[tuple[int, str, Key]]:
        """(directory, file name, object) of all in directories [first, first + count)."""
        for where in range(first, min(first + count, identity.FANOUT)):
            for name in os.listdir(self._directories[where]):
                key = key_of(name)
                if key is not None:  # else somebody else has put it there
                    yield where, name, key

    def sums(self, file: ObjectFile, first: int, count: int) -> tuple[int, int, bytes, int, int]:
        """(length, number of the last truncation, entries of the blocks, stamp)."""
        self.make_sure(file)
        return file.size, file.last, file.ledger.raw_entries(first, count), *file.ledger.stamp

    def read_block(self, file: ObjectFile, block: int) -> bytes:
        """One block as far as it was written. Raises OSError, :class:`BadBlock`."""
        length, crc = file.ledger.entry(block)
        if file.ledger.lost(block):
            raise BadBlock(file.path, block, "was given up")
        try:
            data = self._disk.pread(file.fd, length, block * BLOCK) if length else b""
        except OSError as exc:
            if exc.errno != errno.EIO:
                raise
            self.bad_blocks += 1  # as good as any other content that is not what was written
            log.error("%s: block %d cannot be read: %s", file.path, block, exc.strerror)
            raise BadBlock(file.path, block, "cannot be read") from exc
        if length and crc32(data) != crc:
            self._mismatch(file, block)
            return self.read_block(file, block)
        return data

    def patch(self, file: ObjectFile, offset: int, data: Buffer, chain: int) -> None:
        """The block at *offset* is *data* and then zeros; the object's stamp is void from now on."""
        self.make_sure(file)
        self._admit(len(data))
        ledger = file.ledger
        block = offset // BLOCK
        ledger.set_stamp(NO_STAMP, chain, self.incarnation)
        with file.lock:
            file.book.wrote("copies")
        rest = min(BLOCK, file.size - offset) - len(data)
        whole = bytes(data) + bytes(max(0, rest))
        ledger.begin(block, 1)
        done = 0
        while done < len(whole):
            done += self._disk.pwrite(file.fd, memoryview(whole)[done:], offset + done)
        file.size = max(file.size, offset + len(whole))
        ledger.commit(block, ledger.made_entry(bytes(data)), NO_STAMP, chain, self.incarnation)

    def lose(self, file: ObjectFile, block: int, length: int, crc: int, chain: int) -> None:
        """*block*, of which *length* bytes with sum *crc* were written, was given up; the object's stamp is void."""
        self.make_sure(file)
        ledger = file.ledger
        ledger.set_stamp(NO_STAMP, chain, self.incarnation)
        with file.lock:
            file.book.wrote("copies")
            file.attr_dirty = True
        end = block * BLOCK + length
        if file.size < end:
            self._disk.ftruncate(file.fd, end)  # a ledger that says more than there is would be cut when it is opened
            file.size = end
        ledger.put(block, ENTRY.pack(length | LOST, crc))

    def lose_all(self, key: Key, chain: int) -> None:
        """All of the object was given up: whoever opens it from now on is told so."""
        where = fanout_of(key[0])
        header = self._header(where, file_name(key))
        if header is not None and header[0] not in (0, chain):
            return  # what could not be read there was a copy that is no chain's any more: this one is another chain's
        self.delete((key,))
        file = self.fetch(key, create=True, chain=chain)
        assert file is not None
        try:
            file.ledger.give_up(chain, self.incarnation)
            self._flush(file)
        finally:
            self.release(file)
        with self._lock:
            closed = self._close_idle(file)
        assert closed, "its turn is held, and it has just been synced"

    def adopt(self, file: ObjectFile, length: int, trim: int, stamp: Stamp, chain: int) -> None:
        """The object is *length* bytes long, has carried out truncation *trim*, and has *stamp*."""
        self.make_sure(file)
        with file.lock:
            file.book.wrote("copies")
            file.attr_dirty = True
        if length != file.size:
            self._disk.ftruncate(file.fd, length)
            file.size = length
            file.ledger.cut(file.fd, length)
        if trim != file.last:
            self._disk.setxattr(file.fd, TRIM_ATTR, TRIM.pack(trim))
            file.last = trim
        file.ledger.set_stamp(stamp, chain, self.incarnation)

    def replace_block(self, file: ObjectFile, block: int, data: Buffer) -> bool:
        """Write *data* over a bad block if it is what the ledger says of it."""
        length, crc = file.ledger.entry(block)
        if len(data) != length or crc32(data) != crc:
            return False
        with file.lock:
            file.book.wrote("copies")
        self._disk.pwrite(file.fd, data, block * BLOCK)
        if file.ledger.lost(block):
            file.ledger.put(block, file.ledger.made_entry(bytes(data)))
        return True

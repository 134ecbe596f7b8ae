"""A store whose objects are copies: what the members of a chain ask of it, to find out what differs and to mend it."""

from __future__ import annotations

import os
from collections.abc import Iterator

from ossd import identity
from ossd.checksum import crc32
from ossd.ledger import BLOCK, NO_STAMP, Damaged, Stamp, header_of
from ossd.objectfile import Key, ObjectFile, chain_of, key_of
from ossd.store import TRIM, TRIM_ATTR, Buffer, Store


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
            header = header_of(f"{self._ledgers[where]}/{name}")
            belongs, stamp, incarnation = header if header is not None else (0, NO_STAMP, 0)
            # 1. An object is being made, its ledger says nothing yet. 2. Taken for one of this chain it is brought
            # to this chain's next member, which may have a newer copy as a member of its true chain.
            if (belongs or chain_of(f"{self._directories[where]}/{name}")) == chain:
                sure = incarnation >= self.incarnation
                found.append((*key, *(stamp if sure else NO_STAMP)))
        return found

    def belongings(self, first: int, count: int) -> list[tuple[int, int, int]]:
        """(inode, column, chain) of all objects in directories [first, first + count); chain 0: not known."""
        found: list[tuple[int, int, int]] = []
        for where, name, key in self._objects(first, count):
            header = header_of(f"{self._ledgers[where]}/{name}")
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
            header = header_of(f"{self._ledgers[where]}/{name}")
            chain = (header[0] if header is not None else 0) or chain_of(f"{self._directories[where]}/{name}")
            found.append((chain or 0, size))
        return found

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
        data = self._disk.pread(file.fd, length, block * BLOCK) if length else b""
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
        return True

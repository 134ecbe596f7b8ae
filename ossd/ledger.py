"""The ledger of one object: the stamp of its last change, and a checksum for each block of its data.

``ledgers/<hash of the inode>/<inode>.<column>`` stands beside the object's file: a header of HEADER_SIZE bytes, then an
entry for each block of BLOCK bytes. An entry is (length, CRC-32): the first *length* bytes of the block were written
and have that sum; what follows them up to the object's end are zeros. (0, 0) is a block nobody has written.

*Stamp*: (version of the chain, number), given by the head of the chain to each change, never twice for one object.
Copies with equal stamps are equal; that is how a target that was away finds out what it missed.

*Order*: the header first names the blocks that are about to change, then their data is written, then their entries,
and the header again with the new stamp. A daemon that is killed in between leaves the names: at the next opening these
blocks are summed anew from what is there (nobody was answered for them), and the stamp is void. The page cache outlives
the daemon, so for this nothing has to be on disk.

*Power cuts*: a ledger is not synced with its object, which would double the price of fsync. So after a start that may
have lost writes (ossd.identity: another incarnation), a ledger of an earlier incarnation is *unsure*: copies are
compared by sums made from the data, and a block that does not match its sum counts as torn and is accepted as it is:
nobody was promised what was not synced, and what was synced is there.
"""

from __future__ import annotations

import os
import struct
from typing import Final

from ossd.checksum import crc32

BLOCK: Final = 64 << 10
"""Bytes per checksum: little is read for a small request, and a large one needs few sums."""
HEADER_SIZE: Final = 64
_HEADER: Final = struct.Struct("!4sIIQIIIB")
_MAGIC: Final = b"LLg2"
_ENTRY: Final = struct.Struct("!II")
ENTRY_SIZE: Final = _ENTRY.size
_NO_ENTRY: Final = bytes(ENTRY_SIZE)
assert _HEADER.size <= HEADER_SIZE

Stamp = tuple[int, int]
"""(chain version, number)"""
NO_STAMP: Final[Stamp] = (0, 0)

Buffer = bytes | bytearray | memoryview


class Damaged(OSError):
    """What is on disk of one object is not what was written: no failure of the disk as a whole."""


class BadBlock(Damaged):
    """Data does not match its checksum: *block* of the object."""

    def __init__(self, path: str, block: int) -> None:
        super().__init__(5, f"block {block} does not match its checksum", path)
        self.block = block


class Ledger:
    """See the module. Calls for one object are ordered by the caller, as for its data."""

    __slots__ = ("chain", "fd", "incarnation", "path", "stamp", "table")

    def __init__(self, path: str, fd: int, incarnation: int) -> None:
        self.path = path
        self.fd = fd
        self.chain = 0
        self.stamp = NO_STAMP
        self.incarnation = incarnation
        """In which it was last written; 0: its data was never summed."""
        self.table = bytearray()

    @classmethod
    def open(cls, path: str, incarnation: int, data_fd: int, new: bool) -> Ledger:
        """The ledger of the object open at *data_fd*; *new*: the object has just been made, what is there is old."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | (os.O_TRUNC if new else 0), 0o600)
        made = cls(path, fd, incarnation)
        if new:
            return made
        try:
            raw = os.pread(fd, HEADER_SIZE, 0)
            if len(raw) == HEADER_SIZE and raw[:4] == _MAGIC:
                made._load(raw, data_fd)
            else:
                made.incarnation = 0  # lost in a power cut, or never written
                made.rebuild(data_fd, 0, os.fstat(data_fd).st_size)
        except BaseException:
            os.close(fd)
            raise
        return made

    def _load(self, raw: bytes, data_fd: int) -> None:
        _, self.chain, version, number, first, count, self.incarnation, _ = _HEADER.unpack_from(raw)
        self.stamp = (version, number)
        size = max(0, os.fstat(self.fd).st_size - HEADER_SIZE)
        self.table = bytearray(os.pread(self.fd, size, HEADER_SIZE)) if size else bytearray()
        data_size = os.fstat(data_fd).st_size
        del self.table[(data_size + BLOCK - 1) // BLOCK * ENTRY_SIZE :]
        if count:
            self.stamp = NO_STAMP
            self.rebuild(data_fd, first * BLOCK, (first + count) * BLOCK)

    def close(self) -> None:
        os.close(self.fd)

    # -- sums

    def entry(self, block: int) -> tuple[int, int]:
        """(length, sum) of *block*."""
        at = block * ENTRY_SIZE
        if at >= len(self.table):
            return 0, 0
        length, crc = _ENTRY.unpack_from(self.table, at)
        return length, crc

    def raw_entry(self, block: int) -> bytes:
        """The entry of *block* as it is stored and sent."""
        return bytes(self.table[block * ENTRY_SIZE : (block + 1) * ENTRY_SIZE]).ljust(ENTRY_SIZE, b"\0")

    def raw_entries(self, first: int, count: int) -> bytes:
        return bytes(self.table[first * ENTRY_SIZE : (first + count) * ENTRY_SIZE])

    @staticmethod
    def made_entry(data: bytes) -> bytes:
        """The entry of a block that holds *data* and then zeros."""
        return _ENTRY.pack(len(data), crc32(data)) if data else _NO_ENTRY

    @property
    def blocks(self) -> int:
        return len(self.table) // ENTRY_SIZE

    def verify(self, first: int, data: Buffer) -> int | None:
        """The first block that does not match, of *data*, which begins with block *first* and ends where the object
        does, or with a block; None when all do."""
        view = memoryview(data)
        for k in range((len(data) + BLOCK - 1) // BLOCK):
            length, crc = self.entry(first + k)
            if length and crc32(view[k * BLOCK : k * BLOCK + length]) != crc:
                return first + k
        return None

    def entries_for(self, data_fd: int, offset: int, data: Buffer) -> bytes:
        """The entries of the blocks that a write of *data* at *offset* touches, as they are after it.

        What the write leaves of a block is read and checked before. Raises :class:`BadBlock`.
        """
        end = offset + len(data)
        view = memoryview(data)
        made = bytearray()
        for block in range(offset // BLOCK, (end - 1) // BLOCK + 1):
            start = block * BLOCK
            low, high = max(offset, start) - start, min(end, start + BLOCK) - start
            length, crc = self.entry(block)
            piece = view[start + low - offset : start + high - offset]
            if low == 0 and high >= length:
                crc = crc32(piece)
            elif low == length:
                crc = crc32(piece, crc)  # it goes on where the block ended
            else:
                old = os.pread(data_fd, length, start) if length else b""
                if length and crc32(old) != crc:
                    raise BadBlock(self.path, block)
                whole = bytearray(max(length, high))
                whole[: len(old)] = old
                whole[low:high] = piece
                crc = crc32(whole)
            made += _ENTRY.pack(max(length, high), crc)
        return bytes(made)

    def kept(self, offset: int, end: int) -> list[int]:
        """The blocks that :meth:`entries_for` reads for a write of [offset, end): something of them stays."""
        found = []
        for block in sorted({offset // BLOCK, (end - 1) // BLOCK}):
            low, high = max(0, offset - block * BLOCK), min(BLOCK, end - block * BLOCK)
            length = self.entry(block)[0]
            if length and low != length and (low or high < length):
                found.append(block)
        return found

    def rebuild(self, data_fd: int, start: int, stop: int) -> None:
        """Sum the blocks within [start, stop) anew from the data as it is."""
        size = os.fstat(data_fd).st_size
        for block in range(start // BLOCK, (min(stop, size) + BLOCK - 1) // BLOCK):
            data = os.pread(data_fd, min(BLOCK, size - block * BLOCK), block * BLOCK)
            self._put(block, _ENTRY.pack(len(data), crc32(data)))
        self._write_table(start // BLOCK)
        self._write_header(0, 0)

    def accept_torn(self, data_fd: int) -> int:
        """Sum those blocks anew that do not match; how many."""
        size = os.fstat(data_fd).st_size
        torn = 0
        for block in range((size + BLOCK - 1) // BLOCK):
            data = os.pread(data_fd, min(BLOCK, size - block * BLOCK), block * BLOCK)
            length, crc = self.entry(block)
            if crc32(data[:length]) != crc or any(data[length:]):
                torn += 1
                self._put(block, _ENTRY.pack(len(data), crc32(data)))
        self._write_table(0)
        return torn

    def _put(self, block: int, entries: bytes) -> None:
        at = block * ENTRY_SIZE
        if len(self.table) < at:
            self.table += bytes(at - len(self.table))
        self.table[at : at + len(entries)] = entries

    # -- changes

    def begin(self, first: int, count: int) -> None:
        """*count* blocks from *first* are about to change."""
        self._write_header(first, count)

    def commit(self, first: int, entries: bytes, stamp: Stamp, chain: int, incarnation: int) -> None:
        """They have changed, and this is the object's stamp now."""
        before = len(self.table)
        self._put(first, entries)
        at = min(before, first * ENTRY_SIZE)
        os.pwrite(self.fd, memoryview(self.table)[at : first * ENTRY_SIZE + len(entries)], HEADER_SIZE + at)
        self.stamp, self.chain, self.incarnation = stamp, chain, incarnation
        self._write_header(0, 0)

    def set_stamp(self, stamp: Stamp, chain: int, incarnation: int) -> None:
        """It has *stamp*, with the data it has."""
        self.stamp, self.chain, self.incarnation = stamp, chain, incarnation
        self._write_header(0, 0)

    def cut(self, data_fd: int, length: int) -> None:
        """The object has been cut to *length* bytes."""
        blocks = (length + BLOCK - 1) // BLOCK
        if self.blocks >= blocks:
            del self.table[blocks * ENTRY_SIZE :]
            os.ftruncate(self.fd, HEADER_SIZE + len(self.table))
        if length % BLOCK and self.blocks == blocks:
            start = (blocks - 1) * BLOCK
            kept = min(self.entry(blocks - 1)[0], length - start)
            data = os.pread(data_fd, kept, start) if kept else b""
            self._put(blocks - 1, _ENTRY.pack(kept, crc32(data)) if kept else _NO_ENTRY)
            self._write_table(blocks - 1)

    def _write_table(self, first: int) -> None:
        at = first * ENTRY_SIZE
        if at < len(self.table):
            os.pwrite(self.fd, memoryview(self.table)[at:], HEADER_SIZE + at)

    def _write_header(self, first: int, count: int) -> None:
        raw = _HEADER.pack(_MAGIC, self.chain, *self.stamp, first, count, self.incarnation, 0)
        os.pwrite(self.fd, raw.ljust(HEADER_SIZE, b"\0"), 0)


def header_of(path: str) -> tuple[int, Stamp, int] | None:
    """(chain, stamp, incarnation) of the ledger at *path*; None when there is none that can be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        raw = os.pread(fd, HEADER_SIZE, 0)
    finally:
        os.close(fd)
    if len(raw) < HEADER_SIZE or raw[:4] != _MAGIC:
        return None
    _, chain, version, number, _, count, incarnation, _ = _HEADER.unpack_from(raw)
    return chain, NO_STAMP if count else (version, number), incarnation


def whole_blocks(offset: int, count: int, size: int) -> tuple[int, int]:
    """[start, stop) of the blocks, within an object of *size* bytes, that hold *count* bytes at *offset*."""
    return offset // BLOCK * BLOCK, min((offset + count + BLOCK - 1) // BLOCK * BLOCK, size)

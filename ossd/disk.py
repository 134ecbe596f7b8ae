"""The system calls that touch objects, in one place, so that tests can put faults and crashes in their place."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from ossd import identity

_SYNC_FILE_RANGE_WRITE = 2


class Disk:
    """The system calls that touch objects; tests put faults and crashes in their place."""

    open = staticmethod(os.open)
    close = staticmethod(os.close)
    pread = staticmethod(os.pread)
    preadv = staticmethod(os.preadv)
    pwrite = staticmethod(os.pwrite)
    ftruncate = staticmethod(os.ftruncate)
    fsync = staticmethod(os.fsync)
    fdatasync = staticmethod(os.fdatasync)
    setxattr = staticmethod(os.setxattr)
    getxattr = staticmethod(os.getxattr)
    unlink = staticmethod(os.unlink)
    statvfs = staticmethod(os.statvfs)
    sync_directory = staticmethod(identity.sync_directory)

    @staticmethod
    def sync_file_system(path: Path) -> None:
        """syncfs(2), which Python does not have."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if ctypes.CDLL(None, use_errno=True).syncfs(fd) != 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number), str(path))
        finally:
            os.close(fd)

    @staticmethod
    def start_writing(fd: int, offset: int, length: int) -> None:
        """sync_file_range(2) with SYNC_FILE_RANGE_WRITE: what is dirty in the range is handed to the disk, nothing is
        waited for but room in its queue. An error is kept by the kernel for the next fsync, so none is told here."""
        ctypes.CDLL(None).sync_file_range(
            ctypes.c_int(fd), ctypes.c_int64(offset), ctypes.c_int64(length), ctypes.c_uint(_SYNC_FILE_RANGE_WRITE)
        )

"""The system calls that touch objects, in one place, so that tests can put faults and crashes in their place."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from ossd import identity


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

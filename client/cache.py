"""What the kernel may keep of our answers because the mount's options ask for it.

The default is nothing, so that after a metadata operation has returned on one node every node sees it: every path
walk and every stat comes to us. Whether we then ask the service is client.namecache's to decide, under a lease that the
service recalls; under it alone does the kernel get names of directories for a moment (NameCache.kernel_s).
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from client.attributes import Attr


@dataclass(frozen=True, slots=True)
class CachePolicy:
    """Times in seconds; anything above 0 was asked for by the mount's options, who asked accepts stale answers."""

    entry_s: float = 0.0
    attr_s: float = 0.0
    direct_io: bool = False
    """Bypass the kernel's page cache for all files."""

    def entry_timeout(self, attr: Attr) -> float:
        """How long the kernel may take the name it looked up for granted."""
        return self.entry_s

    def attr_timeout(self, attr: Attr) -> float:
        """How long the kernel may answer stat from these attributes."""
        return self.attr_s

    @property
    def default_permissions(self) -> bool:
        """Whether the kernel checks permissions, too.

        The service checks every operation: sticky bits, groups and ACLs in one place, against the state of that
        moment.  With no names cached that is complete: each step of a path walk is a Lookup, which asks for
        search permission.  With cached names the kernel walks without us, so it must check; what it checks is as
        old as the cached attributes, as with any such mount.
        """
        return self.entry_s > 0

    def bypass_pages(self, flags: int) -> bool:
        """Whether a file opened with *flags* is read and written without the kernel's page cache.

        O_APPEND: the offset is decided here, by the size the file really has; the kernel would put the bytes in
        its cache where it believes the end to be.  O_DIRECT asks for it (and sees other mounts' writes at once).
        """
        return self.direct_io or bool(flags & (os.O_APPEND | os.O_DIRECT))

    def keep_pages(self, flags: int) -> bool:
        """Whether pages cached at an earlier open may be used: never, another mount may have written (close-to-open).

        While a file is open the kernel asks for its attributes before it reads from its cache and drops the pages
        when size or mtime have moved (FUSE_AUTO_INVAL_DATA, which libfuse turns on by itself).
        """
        return False

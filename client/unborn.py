"""Pure. Files that were made here and that the service has not answered for yet: they are *unborn*.

Processes on this mount take them for granted. So whatever is asked of the service has to wait until those of them are
born that it may be about; what is not known to be about something else waits for all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, Generic, Protocol, TypeVar

from wire import fileops, inline, ops

_OF_A_NAME: Final = frozenset((ops.Lookup, ops.Create, ops.Mkdir, ops.Mknod, ops.Symlink, ops.Unlink, ops.Link))
"""About (parent, name), and an inode if they say so. Unlink: an unborn file has one name only. What Lookup says of a
directory in which files are unborn is asked again (client.volume)."""
_OF_AN_INODE: Final = frozenset((
    ops.GetAttr, ops.Open, ops.SetAttr, ops.SetXattr, ops.RemoveXattr, ops.GetXattr, ops.ListXattr, ops.Access,
    ops.ReadLink, ops.Commit, ops.Settle, fileops.Reserve, fileops.Renew,
    inline.WriteInline, inline.GrowOut, inline.GrownOut, inline.ReadInline,
))  # fmt: skip
"""About one inode; a directory's times depend on what is made in it."""
_OF_NONE: Final = frozenset((ops.StorageMap,))


class File(Protocol):
    """An unborn file, as far as it matters here."""

    @property
    def ino(self) -> int:
        """The number it will have."""
        ...

    @property
    def parent(self) -> int: ...

    @property
    def name(self) -> bytes: ...


F = TypeVar("F", bound=File)


class Unborn(Generic[F]):
    """See the module."""

    def __init__(self) -> None:
        self._files: dict[int, F] = {}
        """By inode, oldest first."""
        self._names: dict[tuple[int, bytes], F] = {}
        self._parents: dict[int, dict[int, F]] = {}

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Iterator[F]:
        return iter(self._files.values())

    def add(self, file: F) -> None:
        """*file* was made."""
        assert file.ino not in self._files and (file.parent, file.name) not in self._names
        self._files[file.ino] = file
        self._names[file.parent, file.name] = file
        self._parents.setdefault(file.parent, {})[file.ino] = file

    def remove(self, file: F) -> None:
        """*file* is born, or never will be."""
        del self._files[file.ino]
        del self._names[file.parent, file.name]
        siblings = self._parents[file.parent]
        del siblings[file.ino]
        if not siblings:
            del self._parents[file.parent]

    def get(self, ino: int) -> F | None:
        return self._files.get(ino)

    def within(self, parent: int) -> list[F]:
        """Those in directory *parent*, oldest first."""
        found = self._parents.get(parent)
        return list(found.values()) if found is not None else []

    def before(self, op: Any) -> list[F]:
        """Those that have to be born before *op* is sent; what is made after it was asked may come after it."""
        if not self._files:
            return []
        kind = type(op)
        if kind in _OF_NONE:
            return []
        if kind in _OF_A_NAME:
            named = self.named(op)
            return [named] if named is not None else []
        if kind in _OF_AN_INODE:
            named = self._files.get(op.ino)
            return [named] if named is not None else self.within(op.ino)
        if kind is ops.Accessed:
            return [file for ino, _ in op.files if (file := self._files.get(ino)) is not None]
        return list(self)

    def named(self, op: Any) -> F | None:
        """One that *op* itself names, by its inode or its name: that must not be made meanwhile either."""
        found = self._files.get(getattr(op, "ino", 0))
        if found is None and (parent := getattr(op, "parent", 0)):
            found = self._names.get((parent, getattr(op, "name", b""))) or self._files.get(parent)
        if found is None and isinstance(op, ops.Rename):
            found = self._names.get((op.new_parent, op.new_name))
        return found

    def validate(self) -> None:
        """What holds after every call."""
        assert len(self._files) == len(self._names) == sum(map(len, self._parents.values()))
        for ino, file in self._files.items():
            assert file.ino == ino and self._names[file.parent, file.name] is file
            assert self._parents[file.parent][ino] is file

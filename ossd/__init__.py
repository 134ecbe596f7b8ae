"""The storage target: objects on a local disk, written and read by clients directly.

:mod:`ossd.objects` is pure (the rules of one object), :mod:`ossd.identity` and :mod:`ossd.store` keep
objects on a local file system, :mod:`ossd.serve` is the room's trio shell.
"""

"""Who asks: the caller's ids as the kernel gives them, and its supplementary groups from /proc."""

from __future__ import annotations

import logging
import time
from typing import Protocol

from client import limits
from wire.ops import Cred

log = logging.getLogger(__name__)


class Context(Protocol):
    """What pyfuse3's RequestContext has."""

    @property
    def uid(self) -> int: ...
    @property
    def gid(self) -> int: ...
    @property
    def pid(self) -> int: ...


ROOT = Cred(0, 0, ())


class Credentials:
    """Makes a Cred of a request's context; groups of a process are read at most every GROUPS_CACHE_S.

    Reading /proc/PID/status costs about 20 us. Root needs no groups: nothing is asked of them.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[int, int, int], tuple[float, Cred]] = {}
        self._root: dict[int, Cred] = {0: ROOT}

    def of(self, ctx: Context) -> Cred:
        uid = ctx.uid
        if uid == 0:
            gid = ctx.gid
            cred = self._root.get(gid)
            if cred is None:
                if len(self._root) >= limits.GROUPS_CACHE_MAX:
                    self._root.clear()
                cred = self._root[gid] = Cred(0, gid, ())
            return cred
        who = (ctx.pid, uid, ctx.gid)
        now = time.monotonic()
        known = self._known.get(who)
        if known is not None and now - known[0] < limits.GROUPS_CACHE_S:
            return known[1]
        cred = Cred(uid, ctx.gid, supplementary_groups(ctx.pid))
        if len(self._known) >= limits.GROUPS_CACHE_MAX:
            self._known.clear()
        self._known[who] = (now, cred)
        return cred


def supplementary_groups(pid: int) -> tuple[int, ...]:
    """The groups of process *pid*; () when it is in a pid namespace that we do not see, or gone."""
    if pid == 0:
        return ()
    try:
        with open(f"/proc/{pid}/status", "rb") as status:
            for line in status:
                if line.startswith(b"Groups:"):
                    return tuple(int(gid) for gid in line.split()[1:])
    except OSError as exc:
        log.debug("groups of process %d: %s", pid, exc)
    return ()

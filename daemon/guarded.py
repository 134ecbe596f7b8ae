"""The guarded side of :mod:`daemon.watchdog`: a replica tells its parent who it is, and that its loop goes round."""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
from typing import Final

import trio

from daemon.exits import EXIT_FAILED
from daemon.pulse import BEAT_S

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG: Final = 1
"""prctl(2): the signal this process gets when its parent dies."""
_LINE_MAX: Final = 4096
"""A write of so many bytes to a pipe is done whole or not at all (PIPE_BUF)."""


def end_with_parent() -> None:
    """This process is killed when its parent ends (not if that has ended already)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")


class Guard:
    """The pipe to the watchdog."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        os.set_inheritable(fd, False)
        self._fd = fd
        self._untold: list[bytes] = []
        self._peers: dict[int, str] = {}
        # An orphan must not go on: nobody would certify its death or notice that it hangs. If the parent is gone
        # already, the first write finds that out.
        end_with_parent()

    def tell_identity(self, incarnation: int, uuid: bytes) -> None:
        """Before anybody can have promised this incarnation anything."""
        self._tell({"incarnation": incarnation, "uuid": uuid.hex()})

    def tell_peers(self, addresses: dict[int, str]) -> None:
        """Whom to tell of our death: the other replicas."""
        for peer in sorted(self._peers.keys() | addresses.keys()):
            address = addresses.get(peer)
            if address != self._peers.get(peer):
                self._tell({"peer": peer, "address": address})
        self._peers = dict(addresses)

    def _tell(self, what: dict[str, object]) -> None:
        line = json.dumps(what).encode() + b"\n"
        assert len(line) <= _LINE_MAX, "written whole or not at all"
        self._untold.append(line)
        self._write()

    def _write(self) -> None:
        try:
            while self._untold:
                os.write(self._fd, self._untold[0])
                del self._untold[0]
        except BlockingIOError:
            log.debug("the watchdog does not read: told again with the next beat")
        except BrokenPipeError:
            log.critical("the watchdog is gone, and nobody would tell of this replica's death: stopping")
            os._exit(EXIT_FAILED)

    async def beat(self) -> None:
        """For ever."""
        while True:
            if not self._untold:
                self._untold.append(b"\n")
            self._write()
            await trio.sleep(BEAT_S)

"""The small process that every metadata replica runs under: it restarts it, kills it when it hangs, certifies its
death.

Run as ``python -m daemon.watchdog --config FILE --id 1 --cluster HEX -- ARGV``; ARGV is the replica, which
gets the writing end of a pipe as ``--guarded FD`` and tells over it who it is, who its peers are, and that its event
loop goes round (:mod:`daemon.guarded`).  It imports little and waits for nothing but the kernel, so that it is still
there when the replica is not.

When the replica has exited (``waitpid`` says so: none of its threads runs any more), the watchdog tells every other
replica on a connection of its own: *incarnation x is dead* (wire.group.Obituary).  A dead process answers no query,
so what the others promised it need not be waited out.  It is who it says it is by what only the replica's own host
knows: the cluster's id and the uuid of the replica's journal.  A peer is told again and again until it has
acknowledged, or until it cannot matter any more.  A watchdog that dies takes its replica with it (PR_SET_PDEATHSIG):
nobody certifies that, and the others wait as long as they promised.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass, field
from types import FrameType
from typing import Final

from daemon import logs
from daemon.exits import DAMAGE, DIED_AT, DIED_OF, EXIT_FAILED, EXIT_OK, EXIT_RESTART, FINAL
from daemon.pulse import BEAT_S, LOOK_S, Pulse, Restarts
from wire.codec import decode, encode
from wire.errors import OK, WireError
from wire.framing import HEADER, Limits, header, parse_header_untrusted
from wire.group import Obituary
from wire.ids import PROTOCOL_VERSION
from wire.messages import Answer, Hello, Refused, Role, Welcome

log = logging.getLogger("watchdog")

STOP_S: Final = 15.0
"""After SIGTERM the replica leaves the view and writes its state; then it is killed."""
CERTIFY_S: Final = 5.0
"""So long a death is told to who does not acknowledge it. What was promised to the dead has run out by itself long
before (vsync.limits.LEASE, a third of a second); the rest is for a network that comes back."""
CERTIFY_TRY_S: Final = 1.0
CERTIFY_PAUSE_S: Final = 0.05
CERTIFY_END_S: Final = 1.0
"""A watchdog that ends itself waits so long for the acknowledgements."""
IDLE_S: Final = 0.3
"""Longest wait for the next beat or signal before a look."""
PIPE_READ: Final = 65_536


@dataclass(slots=True)
class Known:
    """What the replica has told of itself in its present life."""

    incarnation: int = 0
    """0: it has not told yet, so nobody can have promised it anything."""
    uuid: bytes = bytes(16)
    peers: dict[int, str] = field(default_factory=dict)
    """The other replicas' addresses."""

    def take(self, line: bytes) -> None:
        """One line of the pipe that is no beat."""
        said = json.loads(line)
        if "incarnation" in said:
            self.incarnation, self.uuid = int(said["incarnation"]), bytes.fromhex(said["uuid"])
        elif "peer" in said:
            if said["address"]:
                self.peers[int(said["peer"])] = str(said["address"])
            else:
                self.peers.pop(int(said["peer"]), None)


# --- certificates ---------------------------------------------------------------------------------


def certify(address: str, hello: Hello, obituary: Obituary) -> None:
    """Tell the replica at *address*; returns when it has acknowledged. Raises OSError or WireError when it has not."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), CERTIFY_TRY_S) as sock:
        sock.settimeout(CERTIFY_TRY_S)
        # Both at once: the certificate is worth a view change, and every round trip counts.
        frames = [encode(hello), encode(obituary)]
        sock.sendall(b"".join(header(len(meta), 0) + meta for meta in frames))
        with sock.makefile("rb") as stream:
            for wanted in (Welcome, Answer):
                head = stream.read(HEADER.size)
                if len(head) < HEADER.size:
                    raise ConnectionResetError("closed before the acknowledgement")
                size, _ = parse_header_untrusted(head, Limits())
                said = decode(stream.read(size))
                if isinstance(said, Refused):
                    raise WireError(f"refused: {said.reason}")
                if not isinstance(said, wanted):
                    raise WireError(f"a {type(said).__name__} instead of a {wanted.__name__}")
                if isinstance(said, Answer) and said.status != OK:
                    raise WireError(f"not accepted: status {said.status}")


class Obituaries:
    """The certificates of one death, one thread per peer: none waits for another."""

    def __init__(self, cluster: bytes, replica: int, known: Known) -> None:
        self._hello = Hello(
            PROTOCOL_VERSION, cluster, Role.WATCHDOG, str(replica), known.uuid, known.incarnation, "main"
        )
        self._obituary = Obituary(replica, known.incarnation)
        self._until = time.monotonic() + CERTIFY_S
        self._threads = [
            threading.Thread(target=self._tell, args=item, name=f"certify-{item[0]}", daemon=True)
            for item in sorted(known.peers.items())
        ]
        for thread in self._threads:
            thread.start()

    def _tell(self, peer: int, address: str) -> None:
        began = time.monotonic()
        while True:
            try:
                certify(address, self._hello, self._obituary)
            except (OSError, WireError) as exc:
                if time.monotonic() + CERTIFY_PAUSE_S > self._until:
                    log.warning("replica %d was not told of the death: %s", peer, exc)
                    return
                time.sleep(CERTIFY_PAUSE_S)
                continue
            log.info("replica %d knows of the death after %.1f ms", peer, (time.monotonic() - began) * 1e3)
            return

    def join(self, timeout_s: float) -> None:
        until = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))


# --- the guarded process --------------------------------------------------------------------------


def waited_s(pid: int) -> float | None:
    """Seconds that the process's main thread was ready to run and had no CPU; None where the kernel does not tell."""
    try:
        with open(f"/proc/{pid}/schedstat", "rb") as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return None


class Child:
    """One life of the replica."""

    def __init__(self, argv: list[str]) -> None:
        self.pipe, theirs = os.pipe()
        os.set_blocking(self.pipe, False)
        os.set_inheritable(theirs, True)
        try:
            # SIGINT may be ignored here (a shell's background job): the replica stops by it.
            self.pid = os.posix_spawn(
                argv[0], [*argv, "--guarded", str(theirs)], os.environ, setsigdef=[signal.SIGINT, signal.SIGTERM]
            )
        finally:
            os.close(theirs)
        self.started = time.monotonic()
        self.known = Known()
        self.pulse = Pulse()
        self.stopped = False
        self.status: int | None = None
        """waitpid's, when it has exited."""
        self._rest = b""
        self._looked = time.monotonic()
        self._waited = waited_s(self.pid)

    @property
    def lived_s(self) -> float:
        return time.monotonic() - self.started

    @property
    def troubled(self) -> bool:
        """To be looked at closely."""
        return self.stopped or self.pulse.silent_s > BEAT_S

    def read(self) -> None:
        """Take in what it has told."""
        while True:
            try:
                data = os.read(self.pipe, PIPE_READ)
            except BlockingIOError:
                return
            if not data:
                return
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                if line:
                    self.known.take(line)
                else:
                    self.pulse.beat()

    def wait(self) -> bool:
        """Take in what the kernel tells of it; whether it has exited."""
        while self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
            if pid == 0:
                return False
            if os.WIFSTOPPED(status):
                self.stopped = True
            elif os.WIFCONTINUED(status):
                self.stopped = False
            else:
                self.status = status
        return True

    def look(self) -> str | None:
        """Why it is to be killed now, or None."""
        now, waited = time.monotonic(), waited_s(self.pid)
        waiting = waited - self._waited if waited is not None and self._waited is not None else 0.0
        passed, self._looked, self._waited = now - self._looked, now, waited
        return self.pulse.look(passed, waiting, self.stopped)

    def send(self, number: int) -> None:
        """A signal; it is our child and not waited for yet, so its number is its own."""
        if self.status is None:
            os.kill(self.pid, number)

    def close(self) -> None:
        os.close(self.pipe)

    def describe(self) -> str:
        """How it ended."""
        assert self.status is not None
        code = os.waitstatus_to_exitcode(self.status)
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


class Watchdog:
    """Starts the replica again and again, until it is asked to stop or another start is of no use."""

    def __init__(self, argv: list[str], cluster: bytes, replica: int) -> None:
        self._argv = argv
        self._cluster = cluster
        self._replica = replica
        self._restarts = Restarts()
        self._asked: int = 0
        """The signal that asked to stop."""
        self._been_up = False
        self._obituaries: Obituaries | None = None
        self._wake, wakes = os.pipe()
        for fd in (self._wake, wakes):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)  # only to be woken

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._asked = number

    def _sleep(self, timeout_s: float, *more: int) -> None:
        """Until a signal comes, one of the descriptors *more* is readable, or the time is over."""
        poll = select.poll()
        for fd in (self._wake, *more):
            poll.register(fd, select.POLLIN)
        for fd, _ in poll.poll(max(0, int(timeout_s * 1000))):
            if fd == self._wake:
                os.read(self._wake, PIPE_READ)

    def run(self) -> int:
        """Until the end; the exit code."""
        while True:
            child = Child(self._argv)
            log.info("replica %d started as process %d", self._replica, child.pid)
            self._guard(child)
            code = self._bury(child)
            if code is not None:
                if self._obituaries is not None:
                    self._obituaries.join(CERTIFY_END_S)
                return code
            if self._asked:
                return EXIT_OK

    def _guard(self, child: Child) -> None:
        """Until it has exited."""
        told = 0
        kill_at = float("inf")
        while True:
            child.read()
            if child.wait():
                child.read()
                return
            if self._asked and not told:
                told = self._asked
                kill_at = time.monotonic() + STOP_S
                child.send(told)
                child.send(signal.SIGCONT)  # a stopped one would keep it pending
            why = child.look()
            if why is None and time.monotonic() >= kill_at:
                why = f"not stopped {STOP_S:g} s after {signal.Signals(told).name}"
            if why is not None:
                log.error("replica %d (process %d) is killed: %s", self._replica, child.pid, why)
                child.send(signal.SIGKILL)
            self._sleep(LOOK_S if child.troubled or told else IDLE_S, child.pipe)

    def _bury(self, child: Child) -> int | None:
        """After its exit: certify, wait before the next start. The code to end with, or None: start it again."""
        status = child.status
        assert status is not None, "it has exited"
        known, up = child.known, child.pulse.armed
        if known.incarnation:
            self._obituaries = Obituaries(self._cluster, self._replica, known)
        child.close()
        self._been_up = self._been_up or up
        code = os.waitstatus_to_exitcode(status)
        os.environ.pop(DIED_OF, None)
        os.environ[DIED_AT] = str(time.time_ns())
        if code < 0 and (name := signal.Signals(-code).name) in DAMAGE:
            os.environ[DIED_OF] = name
        log.log(
            logging.INFO if code == EXIT_OK else logging.WARNING,
            "replica %d (process %d, incarnation %d) %s after %.1f s",
            self._replica, child.pid, known.incarnation, child.describe(), child.lived_s,
        )  # fmt: skip
        if self._asked:
            return EXIT_OK if code in (EXIT_OK, EXIT_RESTART) else max(code, EXIT_FAILED)
        if code in FINAL:
            return code
        if code > 0 and code != EXIT_RESTART and not self._been_up:
            return code  # it has never run: whoever started us had better know at once
        pause = 0.0 if code == EXIT_RESTART else self._restarts.pause(child.lived_s)
        until = time.monotonic() + pause
        while not self._asked and (left := until - time.monotonic()) > 0:
            self._sleep(left)
        return None if not self._asked else EXIT_OK


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m daemon.watchdog", description="Guards one metadata replica.")
    parser.add_argument("--config", required=True, help="for people who look at the process list")
    parser.add_argument("--id", type=int, required=True, help="the replica's number")
    parser.add_argument("--cluster", required=True, help="the cluster's id, 32 hexadecimal digits")
    parser.add_argument("--log-level", default="info", choices=logs.LEVELS)
    parser.add_argument("argv", nargs="+", help="the replica's command line, after --")
    asked = parser.parse_args()
    logs.setup(f"mds-{asked.id}", asked.log_level)
    return Watchdog(asked.argv, bytes.fromhex(asked.cluster), asked.id).run()


if __name__ == "__main__":
    sys.exit(main())

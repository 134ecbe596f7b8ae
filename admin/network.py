"""A network of our own for a cluster on one host: a namespace per process, and cables that can be cut in one direction.

Every namespace has one end of a veth pair, the other is a port of a bridge in a namespace of its own (the *hub*); the
host's own network is not touched. Who has which address is written into every namespace's neighbour table, and a cable
is cut by writing a wrong one there: what is sent leaves and nobody takes it, neither side is told. That needs nothing
but iproute2, works in one direction, and for connections that exist as well.

Names begin with PREFIX and name their owner, so that what a killed run left is found by the next one.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from admin import processes

PREFIX: Final = "lsfs"
HUB: Final = "hub"
NAMESPACES: Final = Path("/run/netns")
_NAME: Final = re.compile(PREFIX + r"-(\d+)-(\d+)-[a-z0-9-]+")
CLONE_NEWNET: Final = 0x40000000
NOBODY: Final = "02:4c:53:00:ff:ff"


class NetworkError(Exception):
    """The kernel or iproute2 refused something; the text says what."""


def refusal() -> str | None:
    """Why no namespaces can be made here, or None."""
    if os.geteuid() != 0:
        return "only root may make network namespaces"
    for tool in ("ip", "nsenter"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed (package {'iproute2' if tool == 'ip' else 'util-linux'})"
    return None


def _ip(*args: str, batch: Iterable[str] | None = None) -> None:
    given = None if batch is None else "\n".join(batch).encode()
    argv = ["ip", *args] + ([] if batch is None else ["-batch", "-"])
    done = subprocess.run(argv, input=given, capture_output=True, timeout=30, check=False)
    if done.returncode != 0:
        raise NetworkError(f"{' '.join(argv)}: {done.stderr.decode(errors='replace').strip()}")


def clear_abandoned() -> list[str]:
    """Remove the namespaces of runs whose owners are dead; their names."""
    cleared = []
    for path in sorted(NAMESPACES.glob(f"{PREFIX}-*")) if NAMESPACES.is_dir() else []:
        match = _NAME.fullmatch(path.name)
        if match is None:
            continue
        owner = processes.identify(int(match[1]))
        if owner is None or owner.start_ticks != int(match[2]):
            _ip("netns", "del", path.name)
            cleared.append(path.name)
    return cleared


class Network:
    """See the module. *hosts*: a name each; the hub is one more, with cables that are never cut."""

    def __init__(self, hosts: Iterable[str]) -> None:
        me = processes.identify(os.getpid())
        assert me is not None, "this process runs"
        self._prefix = f"{PREFIX}-{me.pid}-{me.start_ticks}"
        self._numbers = {HUB: 1, **{host: k for k, host in enumerate(hosts, 2)}}
        self._made: list[str] = []
        self.cuts: set[tuple[str, str]] = set()
        """(from, to): what is sent there is lost."""

    @property
    def hosts(self) -> list[str]:
        """All of them, the hub included."""
        return list(self._numbers)

    def namespace(self, host: str) -> str:
        return f"{self._prefix}-{host}"

    def address(self, host: str) -> str:
        return f"10.76.83.{self._numbers[host]}"

    def _hardware(self, host: str) -> str:
        return f"02:4c:53:00:00:{self._numbers[host]:02x}"

    def make(self) -> None:
        """Build it. Raises :class:`NetworkError`; :meth:`remove` clears whatever was made."""
        for host in self._numbers:
            self._made.append(host)
            _ip("netns", "add", self.namespace(host))
        hub = self.namespace(HUB)
        _ip("-n", hub, "link", "add", "br0", "address", self._hardware(HUB), "type", "bridge")
        for host, number in self._numbers.items():
            if host != HUB:
                _ip(
                    "-n", hub, "link", "add", f"port{number}", "type", "veth",
                    "peer", "name", "eth0", "address", self._hardware(host), "netns", self.namespace(host),
                )  # fmt: skip
        for host, number in self._numbers.items():
            device = "br0" if host == HUB else "eth0"
            lines = [f"addr add {self.address(host)}/24 dev {device}", f"link set {device} up", "link set lo up"]
            _ip("-n", self.namespace(host), batch=lines)
            if host != HUB:
                _ip("-n", hub, batch=[f"link set port{number} master br0", f"link set port{number} up"])
        for host in self._numbers:
            others = [other for other in self._numbers if other != host]
            _ip("-n", self.namespace(host), batch=[self._neighbour(host, other, True) for other in others])

    def _neighbour(self, host: str, other: str, reachable: bool) -> str:
        device = "br0" if host == HUB else "eth0"
        hardware = self._hardware(other) if reachable else NOBODY
        return f"neigh replace {self.address(other)} lladdr {hardware} dev {device} nud permanent"

    def remove(self) -> list[str]:
        """Remove everything; what could not be."""
        left = []
        while self._made:
            name = self.namespace(self._made.pop())
            if (NAMESPACES / name).exists():
                try:
                    _ip("netns", "del", name)
                except NetworkError as exc:
                    left.append(str(exc))
        return left

    # -- cables

    def cut(self, pairs: Iterable[tuple[str, str]]) -> None:
        """What the first of each pair sends to the second is lost from now on."""
        self._set(set(pairs) - self.cuts, False)

    def heal(self, pairs: Iterable[tuple[str, str]] | None = None) -> None:
        """Undo :meth:`cut`, of all pairs if none are named."""
        self._set(self.cuts & set(self.cuts if pairs is None else pairs), True)

    def _set(self, pairs: set[tuple[str, str]], reachable: bool) -> None:
        for host in sorted({one for one, _ in pairs}):
            mine = sorted(other for one, other in pairs if one == host)
            _ip("-n", self.namespace(host), batch=[self._neighbour(host, other, reachable) for other in mine])
        self.cuts = self.cuts - pairs if reachable else self.cuts | pairs

    # -- processes

    def command(self, host: str, argv: Iterable[str]) -> list[str]:
        """*argv*, to be run on *host*. It replaces itself by the program: the process id stays."""
        return ["nsenter", f"--net={NAMESPACES / self.namespace(host)}", *argv]

    @contextlib.contextmanager
    def at_hub(self) -> Iterator[None]:
        """This thread is in the hub meanwhile: it reaches everyone, whatever is cut."""
        with self.at(HUB):
            yield

    @contextlib.contextmanager
    def at(self, host: str) -> Iterator[None]:
        """This thread, and whatever it starts, is on *host* meanwhile."""
        here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            there = os.open(NAMESPACES / self.namespace(host), os.O_RDONLY | os.O_CLOEXEC)
            try:
                _enter(there)
            finally:
                os.close(there)
            try:
                yield
            finally:
                _enter(here)
        finally:
            os.close(here)


def _enter(fd: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, CLONE_NEWNET) != 0:
        raise NetworkError(f"setns: {os.strerror(ctypes.get_errno())}")

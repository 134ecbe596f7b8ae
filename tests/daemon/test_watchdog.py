"""The watchdog as a process, with a stand-in for the replica it guards and for the replicas it tells."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from admin import processes
from admin.local import child_environment
from daemon.exits import EXIT_REMOVED, EXIT_RESTART, EXIT_UNUSABLE
from wire.codec import decode, encode
from wire.framing import HEADER, header
from wire.group import Obituary
from wire.ids import PROTOCOL_VERSION
from wire.messages import Answer, Hello, Refused, Role, Welcome

CLUSTER = bytes(range(16))
UUID = bytes(reversed(range(16)))
LIMIT_S = 30.0

CHILD = """
import os, signal, sys, time
from pathlib import Path
import trio
from daemon.guarded import Guard
from daemon import logs, process
how, life, fd, peers = sys.argv[1], Path(sys.argv[2]), int(sys.argv[-1]), dict(p.split("=") for p in sys.argv[3:-2])
lives = len(life.read_text().split()) if life.exists() else 0
with life.open("a") as file: file.write(f"{os.getpid()}\\n")
logs.setup("child", "info")
guard = Guard(fd)
if how == "never": sys.exit(1)
if how.startswith("once "):
    if lives: how = "serve"
    else: code = int(how.split()[1])
guard.tell_identity(lives + 1, bytes(reversed(range(16))))
guard.tell_peers({int(k): v for k, v in peers.items()})
async def serve():
    async with trio.open_nursery() as nursery:
        nursery.start_soon(guard.beat)
        await trio.sleep(0)
        print("up", os.getpid(), flush=True)
        if how.startswith(("once ", "end ")):
            await trio.sleep(0.05)
            os._exit(int(how.split()[1]))
        await trio.sleep_forever()
async def leave():
    print("leaving", flush=True)
sys.exit(process.run(serve, leave))
"""


class Peer:
    """A replica that hears obituaries; the first *deaf* connections it breaks off."""

    def __init__(self, deaf: int = 0, refuse: str = "") -> None:
        self._sock = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._sock.getsockname()[1]}"
        self.heard: list[tuple[Hello, Obituary]] = []
        self.tries = 0
        self._deaf = deaf
        self._refuse = refuse
        self._news = threading.Condition()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                conn, _ = self._sock.accept()
            except OSError:
                return  # closed: the test is over
            with conn, conn.makefile("rb") as stream, self._news:
                self.tries += 1
                if self.tries > self._deaf:
                    self._answer(conn, stream)
                self._news.notify_all()

    def _answer(self, conn: socket.socket, stream: Any) -> None:
        def receive() -> Any:
            size, _ = HEADER.unpack(stream.read(HEADER.size))
            return decode(stream.read(size))

        def send(message: Any) -> None:
            meta = encode(message)
            conn.sendall(header(len(meta), 0) + meta)

        hello = receive()
        if self._refuse:
            send(Refused(self._refuse))
            return
        send(Welcome(PROTOCOL_VERSION, Role.REPLICA, "2", bytes(16), 1))
        self.heard.append((hello, receive()))
        send(Answer(0, 0, b""))

    def wait(self, count: int) -> None:
        with self._news:
            assert self._news.wait_for(lambda: len(self.heard) >= count, LIMIT_S), f"{len(self.heard)} obituaries"

    def close(self) -> None:
        self._sock.close()


class Guarded:
    """A watchdog with its child."""

    def __init__(self, path: Path, how: str, peers: dict[int, Peer] | None = None) -> None:
        self.lives = path / "lives"
        child = [sys.executable, "-c", CHILD, how, str(self.lives)]
        child += [f"{k}={peer.address}" for k, peer in (peers or {}).items()]
        argv = [sys.executable, "-P", "-m", "daemon.watchdog", "--config", str(path / "f"), "--id", "1"]
        argv += ["--cluster", CLUSTER.hex(), "--", *child]
        self.process = subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=child_environment()
        )
        self.log = ""

    def line(self) -> list[str]:
        assert self.process.stdout is not None
        said = self.process.stdout.readline().split()
        assert said, f"it has ended: {self.end()}\n{self.log}"
        return said

    def up(self) -> int:
        """The next life's process."""
        word, pid = self.line()
        assert word == "up"
        return int(pid)

    def end(self, number: int = 0) -> int:
        """Its exit code, after signal *number* if one is given."""
        if number:
            self.process.send_signal(number)
        _, self.log = self.process.communicate(timeout=LIMIT_S)
        return self.process.returncode


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Any]:
    made: list[Guarded] = []

    def start(how: str, peers: dict[int, Peer] | None = None) -> Guarded:
        made.append(Guarded(tmp_path, how, peers))
        return made[-1]

    yield start
    for one in made:
        if one.process.poll() is None:
            one.process.kill()
        one.process.communicate(timeout=LIMIT_S)


@pytest.fixture
def peers() -> Iterator[Any]:
    made: list[Peer] = []

    def make(**kwargs: Any) -> Peer:
        made.append(Peer(**kwargs))
        return made[-1]

    yield make
    for one in made:
        one.close()


def wait_gone(pid: int) -> None:
    until = time.monotonic() + LIMIT_S
    while processes.identify(pid) is not None:
        assert time.monotonic() < until, f"process {pid} is still there"
        time.sleep(0.01)  # polling


def test_a_killed_replica_is_certified_to_every_peer_and_started_again(guarded: Any, peers: Any) -> None:
    """One peer is there, the other breaks off the first two connections."""
    one, two = peers(), peers(deaf=2)
    watchdog = guarded("serve", {2: one, 3: two})
    os.kill(watchdog.up(), signal.SIGKILL)
    one.wait(1)
    two.wait(1)
    for peer in (one, two):
        hello, obituary = peer.heard[0]
        assert obituary == Obituary(1, 1)
        assert (hello.role, hello.name, hello.cluster, hello.uuid) == (Role.WATCHDOG, "1", CLUSTER, UUID)
    os.kill(watchdog.up(), signal.SIGKILL)
    one.wait(2)
    assert one.heard[1][1] == Obituary(1, 2), "the next life is another incarnation"
    watchdog.up()
    assert watchdog.end(signal.SIGTERM) == 0


def test_a_stopped_replica_is_killed_and_certified(guarded: Any, peers: Any) -> None:
    peer = peers()
    watchdog = guarded("serve", {2: peer})
    os.kill(watchdog.up(), signal.SIGSTOP)
    peer.wait(1)
    watchdog.up()
    assert watchdog.end(signal.SIGTERM) == 0
    assert "is killed: stopped for" in watchdog.log


def test_both_stopped_and_continued_is_no_reason_to_kill(guarded: Any, peers: Any) -> None:
    """A host that is frozen: the watchdog finds the replica running again, or stopped for no time that it has seen."""
    peer = peers()
    watchdog = guarded("serve", {2: peer})
    child = watchdog.up()
    for pid in (watchdog.process.pid, child):
        os.kill(pid, signal.SIGSTOP)
    for pid in (child, watchdog.process.pid):
        os.kill(pid, signal.SIGCONT)
    assert watchdog.line() == ["leaving"] if watchdog.process.send_signal(signal.SIGTERM) is None else False
    assert watchdog.end() == 0
    assert "is killed" not in watchdog.log


def test_a_replica_does_not_outlive_its_watchdog(guarded: Any) -> None:
    watchdog = guarded("serve")
    child = watchdog.up()
    watchdog.process.kill()
    wait_gone(child)


def test_sigterm_is_a_planned_stop_and_sigint_one_at_once(guarded: Any) -> None:
    watchdog = guarded("serve")
    watchdog.up()
    watchdog.process.send_signal(signal.SIGTERM)
    assert watchdog.line() == ["leaving"]
    assert watchdog.end() == 0
    watchdog = guarded("serve")
    watchdog.up()
    watchdog.process.send_signal(signal.SIGINT)
    assert watchdog.process.stdout.read() == "", "it does not leave first"
    assert watchdog.end() == 0


@pytest.mark.parametrize("code", [EXIT_UNUSABLE, EXIT_REMOVED])
def test_what_another_start_cannot_mend_ends_the_watchdog_with_the_same_code(guarded: Any, code: int) -> None:
    watchdog = guarded(f"end {code}")
    watchdog.up()
    assert watchdog.end() == code
    assert len(watchdog.lives.read_text().split()) == 1


def test_a_replica_that_never_came_up_is_not_started_again_and_again(guarded: Any) -> None:
    watchdog = guarded("never")
    assert watchdog.end() == 1
    assert len(watchdog.lives.read_text().split()) == 1


@pytest.mark.parametrize("code", [1, EXIT_RESTART])
def test_one_that_ran_and_failed_or_asked_for_it_is_started_again(guarded: Any, code: int) -> None:
    watchdog = guarded(f"once {code}")
    first = watchdog.up()
    assert watchdog.up() != first
    assert watchdog.end(signal.SIGTERM) == 0


def test_a_peer_that_refuses_is_given_up(guarded: Any, peers: Any) -> None:
    peer = peers(refuse="it was removed")
    watchdog = guarded(f"end {EXIT_REMOVED}", {2: peer})
    watchdog.up()
    assert watchdog.end() == EXIT_REMOVED, "it does not wait for ever for who does not want to know"
    assert peer.tries >= 1 and peer.heard == []

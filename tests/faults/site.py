"""A cluster of real processes that is hurt, the clients that use it meanwhile, and the judgement of what they saw.

As root each process has a network namespace of its own (admin.network) and the last replica a small disk of its
own; for others all is on loopback, and what needs those is left out. Nothing of it outlives :func:`site`; what a run
that was killed has left is cleared by the next one.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Final

import trio

from admin import ask, mounts, network, processes, runs
from admin.local import ClusterError, LocalCluster, child_environment, python_module
from admin.network import Network
from admin.status import SERVING, ClusterStatus
from mds.check import check
from mds.schema import META, META_APPLIED, TABLES
from mds.store import Store
from tests.faults.history import History, Source
from tests.faults.networked import names, networked

CLIENTS: Final = "clients"
"""The host of all workers."""
SESSIONS: Final = 3
"""Of one worker."""
DISK_BYTES: Final = 128 << 20
"""The last replica's own disk: some journal segments of 16 MiB, the state, and a snapshot."""
POLL_S: Final = 0.03
PROGRESS_S: Final = 30.0
"""When everything is healed, each session is answered within this time, or the service hangs."""
WHOLE_S: Final = 90.0
"""And all replicas are members again within this: a learner that was thrown out often waits up to 30 s."""
READY_S: Final = 60.0
STOPS_MAX: Final = 4
WITHOUT_S: Final = 3.0
ASK_S: Final = 0.3


class Broken(AssertionError):
    """A promise was broken; the text says which."""


class Worker:
    """One process of clients (tests.faults.worker)."""

    def __init__(self, child: subprocess.Popen[bytes], source: Source, first: int) -> None:
        self.child = child
        self.source = source
        self.sessions = [f"session {number}" for number in range(first, first + SESSIONS)]

    def tell(self, line: str) -> None:
        assert self.child.stdin is not None, "a pipe"
        self.child.stdin.write(line.encode() + b"\n")

    def expect(self, word: str, timeout_s: float) -> None:
        assert self.child.stdout is not None, "a pipe"
        ready, _, _ = select.select([self.child.stdout], [], [], timeout_s)
        said = self.child.stdout.readline().decode().strip() if ready else "nothing"
        if said != word:
            raise Broken(f"a worker said {said!r} instead of {word!r} within {timeout_s:g} s")

    def end(self) -> None:
        for pipe in (self.child.stdin, self.child.stdout):
            if pipe is not None:
                pipe.close()
        if self.child.poll() is None:
            self.child.kill()
        self.child.wait()


class Site:
    """See the module. Made by :func:`site`."""

    def __init__(self, run: runs.Run, net: Network | None, replicas: int, witnesses: int, out: IO[str]) -> None:
        self.directory = run.directory
        self.net = net
        self.history = History()
        self.workers: list[Worker] = []
        self.round = 0
        self.suspicious: set[str] = set()
        """Replicas that run with a disk that was damaged: they may still find that out."""
        self.counts: dict[str, int] = {}
        """What happened that no fault or check is named after, for the end of the run."""
        self._out = out
        self._sessions = 1
        self._began = time.monotonic()
        self.replicas, self.targets = names(replicas, max(1, witnesses))
        self.own_disk: str | None = self.replicas[-1] if net is not None else None
        """The replica with a small disk of its own."""
        self.cluster = self._cluster(run.cluster, witnesses)

    def _cluster(self, directory: Path, witnesses: int) -> LocalCluster:
        if self.net is None:
            return LocalCluster.create(directory, len(self.replicas), len(self.targets))
        return networked(directory, self.net, len(self.replicas), len(self.targets), witnesses)

    # -- telling

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self._began:8.2f} s  {text}", file=self._out, flush=True)

    def count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    # -- the cluster

    def up(self) -> None:
        if self.own_disk is not None:
            path = self.data(self.own_disk)
            path.mkdir(parents=True)
            _run("mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=700", "lockstep-faults", str(path))
        self.cluster.up()

    def data(self, name: str) -> Path:
        """The data directory of a daemon."""
        return self.directory / "cluster" / "data" / name

    def kill(self, *names: str) -> None:
        """kill -9; one that has ended by itself meanwhile is as dead."""
        for name in names:
            if self.cluster.running(name):
                self.cluster.kill(name)

    def start(self, *names: str) -> None:
        for name in names:
            self.cluster.start(name)

    def status(self) -> ClusterStatus:
        return self.cluster.status()

    def active(self, name: str) -> bool:
        """Whether replica *name* says that it is active in a view."""
        return any(r.name == name and r.serving for r in self.status().replicas)

    def without(self, name: str, asked: str) -> None:
        """Wait until replica *asked* is active in a view without *name*. Gives up after a while: both may be slow."""
        address = self.cluster.daemon(asked).address
        number = self.cluster.daemon(name).id
        until = time.monotonic() + WITHOUT_S

        def has_gone_on() -> bool:
            try:
                said = trio.run(ask.status_of, self.cluster.config, address, ASK_S).body
            except ask.AskError:
                said = {}
            gone_on = said.get("state") == SERVING and number not in said["members"]
            return gone_on or time.monotonic() > until

        self.wait(has_gone_on, "the clients", 2 * WITHOUT_S)

    def nobody_ended(self) -> None:
        """Every daemon runs, but those that found their disk damaged: they are helped. Raises :class:`Broken`."""
        for daemon in self.cluster.daemons:
            name = daemon.name
            if self.cluster.running(name):
                continue
            if name not in self.suspicious:
                raise Broken(f"{name} has ended by itself:\n{self.cluster.log_tail(name)}")
            self.say(f"  {name} has ended, its disk was damaged: its state is removed")
            self.count("damaged states found later")
            self.suspicious.discard(name)
            shutil.rmtree(self.data(name) / "state", ignore_errors=True)
            self.start(name)

    # -- clients

    def add_worker(self, seed: int) -> Worker:
        first = self._sessions
        self._sessions += SESSIONS
        log = self.directory / f"history-{first}.jsonl"
        log.touch()
        argv = python_module("tests.faults.worker", str(self.cluster.config.path), str(log), str(seed),
                             str(SESSIONS), str(first))  # fmt: skip
        if self.net is not None:
            argv = self.net.command(CLIENTS, argv)
        with (self.directory / "workers.log").open("ab") as errors:
            child = subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=child_environment(), bufsize=0
            )
        worker = Worker(child, self.history.follow(log), first)
        self.workers.append(worker)
        worker.expect("ready", READY_S)
        if self.round:
            worker.tell(f"round {self.round}")
        return worker

    def remove_worker(self, worker: Worker) -> None:
        """kill -9."""
        worker.end()
        self.history.died(worker.source)
        self.workers.remove(worker)

    def next_round(self) -> None:
        self.round += 1
        for worker in self.workers:
            worker.tell(f"round {self.round}")

    # -- time

    def look(self) -> None:
        """Take in what the clients wrote; they and the log must be well."""
        self.history.take()
        for worker in self.workers:
            code = worker.child.poll()
            if code is not None:
                text = (self.directory / "workers.log").read_text(errors="replace")
                raise Broken(f"a worker ended with code {code}: {text[-2000:]}")

    def wait(self, until: Callable[[], bool], what: str, timeout_s: float) -> None:
        """Look again and again until *until* holds. Raises :class:`Broken` when that takes too long."""
        deadline = time.monotonic() + timeout_s
        while True:
            self.look()
            if until():
                return
            if time.monotonic() > deadline:
                raise Broken(f"{what}: not within {timeout_s:g} s")
            time.sleep(POLL_S)  # polling

    def hold(self, seconds: float) -> None:
        """Let a fault last."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.look()
            time.sleep(min(left, POLL_S))  # polling: nobody tells when a fault has lasted

    def progress(self) -> None:
        """Wait until every session had an operation answered that began after now."""
        now = time.monotonic_ns()

        def all_did() -> bool:
            return all(w.source.last.get(s, 0) > now for w in self.workers for s in w.sessions)

        self.wait(all_did, "not every session is answered although nothing is broken", PROGRESS_S)

    def whole(self) -> None:
        """Wait until every replica serves in one view of all."""
        names = set(range(1, len(self.replicas) + 1))

        def is_whole() -> bool:
            self.nobody_ended()
            status = self.status()
            return all(r.serving for r in status.replicas) and set(status.members) == names

        self.wait(is_whole, "not all replicas are members although nothing is broken", WHOLE_S)

    # -- judging

    def judge_round(self, number: int) -> list[str]:
        """What is wrong with the answers of one round that is over."""
        cells = [c for c in self.history.cells() if c.split(".")[0] == str(number) or c.startswith(f"/r{number}c")]
        waited = [cell for cell in cells if self.history.waited_for(cell)]
        assert not waited, f"{waited} are judged before they are over"
        return [wrong for cell in cells for wrong in self.history.judge(cell)]

    def round_is_over(self, number: int) -> bool:
        mine = (f"{number}.", f"/r{number}c")
        return not any(begun.cell.startswith(mine) for begun in self.history.pending())

    def stop_workers(self) -> None:
        for worker in self.workers:
            assert worker.child.stdin is not None, "a pipe"
            worker.child.stdin.close()
        for worker in self.workers:
            worker.expect("done", PROGRESS_S)
            code = worker.child.wait()
            if code != 0:
                raise Broken(f"a worker ended with code {code}")
            worker.end()
        self.workers.clear()
        self.history.take()

    def read_back(self, seed: int) -> None:
        """Every session of a new worker, one per replica, lists every cell there ever was."""
        self.round = 0
        cells = [c for c in self.history.cells() if not c.startswith("/")]
        self.add_worker(seed)
        for at in range(0, len(cells), 100):
            self.workers[-1].tell("list " + " ".join(cells[at : at + 100]))
        self.stop_workers()

    def replicas_equal(self) -> None:
        """Wait until all are at one index; their digests must be equal then."""
        names = [d.name for d in self.cluster.daemons]
        try:
            self.cluster.wait(lambda s: s.replicas_equal, "the replicas do not come to one index and digest",
                              PROGRESS_S, names)  # fmt: skip
        except ClusterError as exc:
            raise Broken(str(exc)) from exc

    def check_states(self) -> list[str]:
        """Stop everything; what is wrong with what the replicas have on disk, and how they differ.

        The service goes on with work of its own (objects of removed files) until it is stopped, so it may be stopped
        between two requests at different replicas: then it is started once more. Damage stays different.
        """
        for last in range(STOPS_MAX):
            ended = self.cluster.down()
            wrong = [f"{name} {how}" for name, how in ended.items() if how != "stopped"]
            found = {}
            for name in self.replicas:
                store = Store.open(self.data(name) / "state")
                try:
                    wrong += [f"{name}: {problem}" for problem in check(store)]
                    tables = [t for t in TABLES if t is not META]
                    records = {(t.name, key): value for t in tables for key, value in store.scan(t, b"", None)}
                    found[name] = (store.get(META, META_APPLIED), records)
                finally:
                    store.close()
            differ = _differences({name: records for name, (_, records) in found.items()})
            same_index = len({applied for applied, _ in found.values()}) == 1
            if wrong or not differ or same_index or last == STOPS_MAX - 1:
                break
            self.cluster.up()
            self.replicas_equal()
        return wrong + differ

    def alarms(self) -> list[str]:
        """What replicas have said of states that differ (mds.comparing): nothing here makes one wrong and sealed."""
        return [
            f"{name}: {line.strip()}"
            for name in self.replicas
            for line in self.cluster.log_file(name).read_text(encoding="utf-8", errors="replace").splitlines()
            if "the replicas' states are not the same" in line or "the state is given up" in line
        ]

    # -- the end

    def remove(self) -> None:
        """End every process, mount and namespace, whatever state they are in. Raises :class:`Broken` if one stays.

        A second signal (a terminal's, or that of timeout(1) to its group) does not leave half of them.
        """
        with runs.uninterrupted():
            self._remove()

    def _remove(self) -> None:
        for worker in self.workers:
            worker.end()
        for who in processes.of_directory(self.directory):
            processes.kill(who)
        left = unmount_below(self.directory)
        if self.net is not None:
            left += self.net.remove()
        if left:
            raise Broken("not everything could be cleared: " + "; ".join(left))

    def keep_logs(self, where: Path) -> None:
        """Copy the daemons' and workers' logs there, for somebody to look into."""
        where.mkdir(parents=True, exist_ok=True)
        for path in [*self.directory.glob("*.log"), *self.directory.glob("*.jsonl"),
                     *(self.directory / "cluster" / "log").glob("*.log")]:  # fmt: skip
            shutil.copy(path, where)


def _differences(contents: dict[str, dict[tuple[str, bytes], bytes]]) -> list[str]:
    """How the others' records differ from the first one's."""
    wrong = []
    first, *others = contents
    for other in others:
        ours, theirs = contents[first], contents[other]
        differ = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
        if differ:
            shown = [(key, ours.get(key), theirs.get(key)) for key in differ[:5]]
            wrong.append(f"{first} and {other} differ in {len(differ)} records: {shown}")
    return wrong


def _run(*argv: str) -> str:
    """Run a tool of the system; what it complains of, or nothing."""
    done = subprocess.run(argv, capture_output=True, timeout=30, check=False)
    return "" if done.returncode == 0 else f"{' '.join(argv)}: {done.stderr.decode(errors='replace').strip()}"


def unmount_below(directory: Path) -> list[str]:
    """Unmount the small disks in *directory*; what could not be."""
    root = Path(os.path.realpath(directory))
    found = [path for path, kind in mounts.mounted_paths() if kind == "tmpfs" and root in path.parents]
    return [left for path in found if (left := _run("umount", "--lazy", str(path)))]


def clear_abandoned() -> None:
    """Clear what runs that were killed with -9 have left: disks first, for their directories can go then."""
    for path in runs.temporary_root().glob("lockstep-faults-*-*"):
        parts = path.name.split("-")
        owner = processes.identify(int(parts[2])) if parts[2].isdigit() else None
        if owner is None or str(owner.start_ticks) != parts[3]:
            unmount_below(path)
    runs.clear_abandoned()
    if network.refusal() is None:
        network.clear_abandoned()


@contextlib.contextmanager
def site(out: IO[str], replicas: int = 3, witnesses: int = 2) -> Iterator[Site]:
    """A running cluster without clients; removed at the end, whatever happens."""
    clear_abandoned()
    with contextlib.ExitStack() as stack:
        run = stack.enter_context(runs.temporary("faults"))
        net: Network | None = None
        if network.refusal() is None:
            of_replicas, of_targets = names(replicas, witnesses)
            net = Network([*of_replicas, *of_targets, CLIENTS])
            stack.callback(net.remove)
            net.make()
        made = Site(run, net, replicas, witnesses, out)
        stack.callback(made.remove)
        if net is not None:
            stack.enter_context(net.at_hub())
        made.up()
        yield made

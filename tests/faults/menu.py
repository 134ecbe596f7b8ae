"""The faults: what each does to the cluster, and how it is undone.

Each is a context manager that says what it does, does it, and heals when left; how long it lasts is decided by its
caller. What must be true while it lasts beyond the history of the clients is checked here (a replica that lost its disk
does not serve). Random choices come from the run's generator alone.
"""

from __future__ import annotations

import contextlib
import itertools
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from random import Random
from typing import Final

from admin import processes
from tests.faults.site import CLIENTS, Site

Fault = Callable[[Site, Random], AbstractContextManager[None]]
Faulty = Iterator[None]


def _some(site: Site, rng: Random) -> str:
    return rng.choice(site.replicas)


def _everyone(site: Site) -> tuple[str, ...]:
    return (*site.replicas, *site.targets)


# --- processes ------------------------------------------------------------------------------------


@contextlib.contextmanager
def kill_replica(site: Site, rng: Random) -> Faulty:
    name = _some(site, rng)
    site.say(f"kill -9 {name}")
    site.kill(name)
    yield
    site.start(name)


@contextlib.contextmanager
def kill_twice(site: Site, rng: Random) -> Faulty:
    """Killed again in the midst of its start or of joining."""
    name = _some(site, rng)
    again = rng.uniform(0.2, 2.0)
    site.say(f"kill -9 {name}, started at once and killed again after {again:.2f} s")
    site.kill(name)
    site.start(name)
    site.hold(again)
    site.kill(name)
    yield
    site.start(name)


@contextlib.contextmanager
def kill_witness(site: Site, rng: Random) -> Faulty:
    name = rng.choice(site.targets)
    site.say(f"kill -9 {name} (target and witness)")
    site.kill(name)
    yield
    site.start(name)


@contextlib.contextmanager
def kill_two(site: Site, rng: Random) -> Faulty:
    """One replica is left, with the witnesses."""
    names = rng.sample(site.replicas, 2)
    between = rng.choice((0.0, rng.uniform(0.0, 0.6)))
    site.say(f"kill -9 {names[0]} and after {between:.2f} s {names[1]}")
    site.kill(names[0])
    site.hold(between)
    site.kill(names[1])
    yield
    site.start(*rng.sample(names, 2))


@contextlib.contextmanager
def kill_all_replicas(site: Site, rng: Random) -> Faulty:
    site.say("kill -9 all replicas")
    site.kill(*site.replicas)
    yield
    for name in rng.sample(site.replicas, len(site.replicas)):
        site.start(name)
        site.hold(rng.choice((0.0, rng.uniform(0.0, 0.5))))


@contextlib.contextmanager
def kill_everything(site: Site, rng: Random) -> Faulty:
    site.say("kill -9 all replicas, targets and witnesses")
    site.kill(*_everyone(site))
    yield
    site.start(*rng.sample(_everyone(site), len(_everyone(site))))


@contextlib.contextmanager
def stop_and_start(site: Site, rng: Random) -> Faulty:
    name = _some(site, rng)
    site.say(f"SIGTERM to {name}")
    site.cluster.stop(name)
    yield
    site.start(name)


@contextlib.contextmanager
def pause_replica(site: Site, rng: Random) -> Faulty:
    name = _some(site, rng)
    site.say(f"SIGSTOP to {name}")
    with _paused(site, name):
        yield


@contextlib.contextmanager
def pause_two(site: Site, rng: Random) -> Faulty:
    names = rng.sample(site.replicas, 2)
    site.say(f"SIGSTOP to {' and '.join(names)}")
    with _paused(site, *names):
        yield


@contextlib.contextmanager
def pause_all_replicas(site: Site, rng: Random) -> Faulty:
    """Leases run out in their sleep; who wakes first must not answer from what it believed."""
    names = rng.sample(site.replicas, len(site.replicas))
    site.say("SIGSTOP to all replicas")
    with _paused(site, *names):
        yield


@contextlib.contextmanager
def pause_until_replaced(site: Site, rng: Random) -> Faulty:
    """It wakes when the others have just gone on without it, with questions in its sockets and nothing to tell it that
    what it knows is old but its own clock.
    """
    name, witness = rng.sample(site.replicas, 2)
    more = rng.uniform(0.05, 0.4)
    site.say(f"SIGSTOP to {name} until {more:.2f} s after the others have gone on")
    with _paused(site, name):
        site.without(name, asked=witness)
        site.hold(more)
    yield


@contextlib.contextmanager
def pause_often(site: Site, rng: Random) -> Faulty:
    """Pauses around the length of a lease, one after the other."""
    name = _some(site, rng)
    lengths = [rng.uniform(0.05, 0.6) for _ in range(5)]
    site.say(f"SIGSTOP to {name} for " + ", ".join(f"{s:.2f}" for s in lengths) + " s")
    for length in lengths:
        with _paused(site, name):
            site.hold(length)
        site.hold(rng.uniform(0.02, 0.3))
    yield


@contextlib.contextmanager
def _paused(site: Site, *names: str) -> Faulty:
    paused = [name for name in names if site.cluster.running(name)]
    for name in paused:
        site.cluster.pause(name)
    try:
        yield
    finally:
        for name in paused:
            if site.cluster.running(name):
                site.cluster.resume(name)


@contextlib.contextmanager
def pause_and_kill_another(site: Site, rng: Random) -> Faulty:
    sleeper, victim = rng.sample(site.replicas, 2)
    site.say(f"SIGSTOP to {sleeper}, kill -9 {victim} meanwhile")
    with _paused(site, sleeper):
        site.hold(rng.uniform(0.0, 0.8))
        site.kill(victim)
        yield
    site.start(victim)


# --- clients --------------------------------------------------------------------------------------


@contextlib.contextmanager
def kill_clients(site: Site, rng: Random) -> Faulty:
    """What its sessions had asked may have happened or not; nobody will ask again."""
    worker = rng.choice(site.workers)
    site.say(f"kill -9 the clients {', '.join(worker.sessions)}")
    site.remove_worker(worker)
    yield
    site.add_worker(rng.getrandbits(32))


@contextlib.contextmanager
def pause_clients(site: Site, rng: Random) -> Faulty:
    """A client that wakes must not use what it was told under a lease that has run out."""
    worker = rng.choice(site.workers)
    site.say(f"SIGSTOP to the clients {', '.join(worker.sessions)}")
    who = processes.identify(worker.child.pid)
    assert who is not None, "it was looked at a moment ago"
    processes.send(who, signal.SIGSTOP)
    try:
        site.hold(rng.uniform(0.3, 1.0))  # a cache lease lasts 0.25 s
        yield
    finally:
        processes.send(who, signal.SIGCONT)


# --- the network ----------------------------------------------------------------------------------

Pairs = set[tuple[str, str]]


def _both(ones: tuple[str, ...] | list[str], others: tuple[str, ...] | list[str]) -> Pairs:
    there = set(itertools.product(ones, others))
    return there | {(b, a) for a, b in there}


@contextlib.contextmanager
def _cut(site: Site, pairs: Pairs, what: str) -> Faulty:
    assert site.net is not None, "faults of the network need one"
    site.say(f"cut {what}")
    site.net.cut(pairs)
    try:
        yield
    finally:
        site.net.heal(pairs)


def _others(site: Site, name: str) -> list[str]:
    return [other for other in _everyone(site) if other != name]


def isolate(site: Site, rng: Random) -> AbstractContextManager[None]:
    name = _some(site, rng)
    return _cut(site, _both([name], [*_others(site, name), CLIENTS]), f"{name} from everyone")


def isolate_from_servers(site: Site, rng: Random) -> AbstractContextManager[None]:
    """Its clients still reach it: what it answers them is what this is about."""
    name = _some(site, rng)
    return _cut(site, _both([name], _others(site, name)), f"{name} from all servers, not from clients")


def isolate_from_replicas(site: Site, rng: Random) -> AbstractContextManager[None]:
    """It reaches the witnesses: two sides with a majority of voters each way."""
    name = _some(site, rng)
    others = [r for r in site.replicas if r != name]
    return _cut(site, _both([name], others), f"{name} from the other replicas, not from witnesses")


def isolate_from_clients(site: Site, rng: Random) -> AbstractContextManager[None]:
    name = _some(site, rng)
    return _cut(site, _both([name], [CLIENTS]), f"{name} from clients only")


def partial(site: Site, rng: Random) -> AbstractContextManager[None]:
    a, b = rng.sample(site.replicas, 2)
    return _cut(site, _both([a], [b]), f"{a} and {b} from each other only")


def partial_one_way(site: Site, rng: Random) -> AbstractContextManager[None]:
    a, b = rng.sample(site.replicas, 2)
    return _cut(site, {(a, b)}, f"what {a} sends to {b}")


def mute(site: Site, rng: Random) -> AbstractContextManager[None]:
    name = _some(site, rng)
    return _cut(site, {(name, other) for other in _others(site, name)}, f"what {name} sends to any server")


def deafen(site: Site, rng: Random) -> AbstractContextManager[None]:
    name = _some(site, rng)
    return _cut(site, {(other, name) for other in _others(site, name)}, f"what any server sends to {name}")


def cut_witnesses(site: Site, rng: Random) -> AbstractContextManager[None]:
    """No majority is missing, but a failure now would need them."""
    return _cut(site, _both(site.replicas, site.targets), "the witnesses from all replicas")


def split_all(site: Site, rng: Random) -> AbstractContextManager[None]:
    """Everyone alone: nothing can go on anywhere, and nothing may."""
    everyone = _everyone(site)
    pairs = {(a, b) for a in everyone for b in everyone if a != b}
    return _cut(site, pairs, "all servers from each other")


def random_cuts(site: Site, rng: Random) -> AbstractContextManager[None]:
    everyone = (*_everyone(site), CLIENTS)
    pairs = {(a, b) for a in everyone for b in everyone if a != b and rng.random() < 0.25}
    return _cut(site, pairs, f"{len(pairs)} directions: " + ", ".join(f"{a}>{b}" for a, b in sorted(pairs)))


@contextlib.contextmanager
def flapping(site: Site, rng: Random) -> Faulty:
    """A cable with a loose contact: cut and whole for moments around the length of a lease and of a view change."""
    name = _some(site, rng)
    pairs = _both([name], _others(site, name))
    times = rng.randrange(3, 8)
    with _cut(site, pairs, f"{name} from all servers {times} times for moments"):
        for _ in range(times):
            site.hold(rng.uniform(0.05, 0.5))
            assert site.net is not None
            site.net.heal(pairs)
            site.hold(rng.uniform(0.05, 0.5))
            site.net.cut(pairs)
        yield


@contextlib.contextmanager
def cut_and_kill(site: Site, rng: Random) -> Faulty:
    """A replica is cut off, and one of those that go on dies: what the first promised must be waited out."""
    name, victim = rng.sample(site.replicas, 2)
    with _cut(site, _both([name], _others(site, name)), f"{name} from all servers, and kill -9 {victim}"):
        site.hold(rng.uniform(0.0, 1.0))
        site.kill(victim)
        yield
    site.start(victim)


PROCESS_FAULTS: Final[tuple[tuple[Fault, int], ...]] = (
    (kill_replica, 6), (kill_twice, 3), (kill_witness, 2), (kill_two, 3), (kill_all_replicas, 3), (kill_everything, 1),
    (stop_and_start, 3), (pause_replica, 5), (pause_two, 2), (pause_all_replicas, 2), (pause_often, 3),
    (pause_until_replaced, 5),
    (pause_and_kill_another, 3), (kill_clients, 1), (pause_clients, 2),
)  # fmt: skip
NETWORK_FAULTS: Final[tuple[tuple[Fault, int], ...]] = (
    (isolate, 3), (isolate_from_servers, 4), (isolate_from_replicas, 4), (isolate_from_clients, 2), (partial, 3),
    (partial_one_way, 3), (mute, 3), (deafen, 3), (cut_witnesses, 1), (split_all, 1), (random_cuts, 3), (flapping, 3),
    (cut_and_kill, 3),
)  # fmt: skip
"""With weights: how often each is chosen."""

"""Faults below a watchdog: the replica's own process dies or hangs, its watchdog certifies that and starts it again; or
the watchdog dies alone. Beside them the restart that an administrator asks for.

With a certificate the others do not wait for what they promised the dead one, so it must really read nothing any more.
"""

from __future__ import annotations

import contextlib
from random import Random
from typing import Final

import trio

from admin import ask, processes, replicas
from admin.local import ClusterError
from tests.faults.menu import Fault, Faulty
from tests.faults.site import Site


def _guarded(site: Site, rng: Random) -> str | None:
    """A replica that its watchdog has started; None when all are between two starts."""
    found = [name for name in site.replicas if site.cluster.running(name) and site.cluster.guarded(name) is not None]
    return rng.choice(found) if found else None


@contextlib.contextmanager
def crash(site: Site, rng: Random) -> Faulty:
    """kill -9, as often as it takes for the watchdog to pause before the next start."""
    name = _guarded(site, rng)
    times = rng.choice((1, 1, 2))
    site.say(f"kill -9 the process of {name}, not its watchdog, {times} times")
    for _ in range(times):
        if name is not None and site.cluster.guarded(name) is not None:
            with contextlib.suppress(ClusterError):  # it ended by itself just now
                site.cluster.crash(name)
        site.hold(rng.uniform(0.0, 0.8))
    yield


@contextlib.contextmanager
def crash_two(site: Site, rng: Random) -> Faulty:
    """Two certificates at once."""
    site.say("kill -9 the processes of two replicas, not their watchdogs")
    for name in rng.sample(site.replicas, 2):
        if site.cluster.guarded(name) is not None:
            site.cluster.crash(name)
    yield


@contextlib.contextmanager
def hang(site: Site, rng: Random) -> Faulty:
    """Its watchdog kills what does not answer, and certifies it."""
    name = _guarded(site, rng)
    site.say(f"SIGSTOP to the process of {name}, not to its watchdog")
    if name is not None:
        site.cluster.hang(name)
    yield


@contextlib.contextmanager
def kill_watchdog(site: Site, rng: Random) -> Faulty:
    """It takes the replica with it, and nobody certifies anything."""
    name = rng.choice(site.replicas)
    site.say(f"kill -9 the watchdog of {name}")
    who, guarded = site.cluster.identity(name), site.cluster.guarded(name)
    if who is not None:
        processes.kill(who)
    if guarded is not None:
        site.wait(lambda: not processes.running(guarded), f"{name} survives its watchdog", 10.0)
    yield
    site.start(name)


@contextlib.contextmanager
def cut_and_crash(site: Site, rng: Random) -> Faulty:
    """The certificate of one that is cut off reaches nobody, or only some."""
    name = _guarded(site, rng) or site.replicas[0]
    others = [other for other in (*site.replicas, *site.targets) if other != name and rng.random() < 0.7]
    site.say(f"cut {name} from {', '.join(others) or 'nobody'} and kill -9 its process, not its watchdog")
    assert site.net is not None, "faults of the network need one"
    pairs = {(name, other) for other in others} | {(other, name) for other in others}
    site.net.cut(pairs)
    try:
        site.hold(rng.uniform(0.0, 0.5))
        if site.cluster.guarded(name) is not None:
            site.cluster.crash(name)
        yield
    finally:
        site.net.heal(pairs)


@contextlib.contextmanager
def restart(site: Site, rng: Random) -> Faulty:
    """`lockstep replica restart`."""
    name = rng.choice(site.replicas)
    site.say(f"restart of {name} by command")
    try:
        trio.run(replicas.control, site.cluster.config, site.cluster.daemon(name).id, "restart")
    except (ask.AskError, replicas.ReplicaError) as exc:
        site.say(f"  not now: {exc}")  # it was just started, or changes its view
    yield


WATCHDOG_FAULTS: Final[tuple[tuple[Fault, int], ...]] = (
    (crash, 6), (crash_two, 2), (hang, 3), (kill_watchdog, 2), (restart, 3),
)  # fmt: skip
CUT_WATCHDOG_FAULTS: Final[tuple[tuple[Fault, int], ...]] = ((cut_and_crash, 3),)

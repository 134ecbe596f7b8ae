"""A short run of real replicas under faults (`make faults` is the long one), and that nothing stays of any run."""

from __future__ import annotations

import io
import signal
import subprocess
from pathlib import Path
from random import Random

import pytest

from admin import mounts, network, processes, runs
from admin.local import child_environment, python_module
from daemon.journal import Journal, JournalCorrupt
from tests.faults import damage, disk_faults, menu
from tests.faults.run import Result, Run, menu_of, schedule
from tests.faults.site import clear_abandoned, site
from vsync.records import Started

pytestmark = pytest.mark.system

SILENCE_S = 60


def left_of(pid: int) -> list[str]:
    """What is left of the run of process *pid*."""
    root = runs.temporary_root()
    directories = list(root.glob(f"lockstep-faults-{pid}-*"))
    below = [path for path, _ in mounts.mounted_paths() if any(d in path.parents for d in directories)]
    running = [who for d in directories for who in processes.of_directory(d)]
    spaces = list(network.NAMESPACES.glob(f"{network.PREFIX}-{pid}-*"))
    return [str(one) for one in (*directories, *below, *running, *spaces)]


def test_a_few_faults_under_load() -> None:
    out = io.StringIO()
    result = Result()
    with site(out) as here:
        faults = [menu.pause_replica, menu.kill_replica, disk_faults.state_fault(damage.noise)]
        if here.net is not None:
            faults.insert(0, menu.isolate_from_servers)
        try:
            Run(here, 11, result).all(faults)
        finally:
            print(out.getvalue())
        assert result.failures == []
        assert result.passed == len(faults) + 1 + 4, "a round before each fault and after the last, and the end"
        assert here.history.operations > 100


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_a_run_that_was_ended(number: signal.Signals) -> None:
    """Ended by SIGTERM it clears up itself; killed, the next run does."""
    argv = python_module("tests.faults", "--faults", "1000", "--seed", "1")
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env=child_environment()) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if b" s  " in line:
                break  # the first fault: everything is there
        assert left_of(child.pid)
        child.send_signal(number)
        child.send_signal(number)  # as from timeout(1), to the process and to its group
        child.stdout.read()
        code = child.wait(SILENCE_S)
    if number == signal.SIGKILL:
        assert code == -signal.SIGKILL
        clear_abandoned()
    else:
        assert code == 128 + signal.SIGTERM
    assert left_of(child.pid) == []


def test_every_fault_comes_in_a_run_that_is_long_enough() -> None:
    choices = menu_of(with_network=True)
    chosen = schedule(choices, Random(3), 200)
    assert len(chosen) == 200
    assert {fault.__name__ for fault in chosen} == {fault.__name__ for fault, _ in choices}
    assert schedule(choices, Random(3), 200) == chosen, "a seed reproduces the order of faults"
    alone = {fault.__name__ for fault, _ in menu_of(with_network=False)}
    assert "isolate" not in alone
    assert "full_disk" not in alone
    assert "kill_replica" in alone


@pytest.mark.parametrize("seed", range(4))
def test_damage_to_a_journal_is_what_it_says(tmp_path: Path, seed: int) -> None:
    """Torn at its end the journal opens again with what it held; damaged in its midst it is refused."""
    def opened() -> Journal:
        return Journal(tmp_path / "journal", bytes(16), 1, [])

    for _ in range(3):
        journal = opened()
        journal.start(lambda ticket: None, lambda error: None)
        for ticket in range(1, 4):
            journal.append(ticket, [Started(journal.durable.incarnation)])
        journal.close()
    before = list(damage.batches(tmp_path / "journal"))
    damage.torn_batch(tmp_path / "journal", Random(seed))
    assert list(damage.batches(tmp_path / "journal"))[: len(before)] == before
    journal = opened()
    assert journal.durable.incarnation == 4
    journal.close()
    (damage.damaged_batch, damage.missing_segment)[seed % 2](tmp_path / "journal", Random(seed))
    with pytest.raises(JournalCorrupt, match="must not take part"):
        opened()

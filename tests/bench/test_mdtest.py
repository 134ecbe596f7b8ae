"""bench.mdtest on a plain directory: every phase does its operations, the figures are computed as stated."""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from bench import mdtest
from bench.mdtest import BenchError, Options


@pytest.mark.parametrize("unique", [False, True])
@pytest.mark.parametrize("processes", [1, 3])
def test_all_phases_run_and_nothing_stays(tmp_path: Path, processes: int, unique: bool) -> None:
    options = Options(str(tmp_path / "x"), 20, processes, unique, write_bytes=100, read_bytes=50, iterations=2)
    found = mdtest.run(options)
    assert list(found["rates"]) == ["tree creation", *mdtest.PHASES, "tree removal"]
    for rate in found["rates"].values():
        assert rate["max"] >= rate["mean"] >= rate["min"] > 0
    assert os.listdir(tmp_path) == []


def test_a_rate_is_all_items_by_the_slowest_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process's phase takes (rank + 1) s by its clock: 2 processes with 10 items give 20 / 2."""
    rank_seen = {"now": 0.0}

    class Clocked(mdtest.Rank):
        def __init__(self, options: Options, base: str, rank: int) -> None:
            super().__init__(options, base, rank)
            rank_seen["step"] = rank + 1.0

    def clock() -> float:
        rank_seen["now"] += rank_seen["step"]
        return rank_seen["now"]

    monkeypatch.setattr(mdtest, "Rank", Clocked)
    monkeypatch.setattr(mdtest.time, "perf_counter", clock)
    rates = mdtest.measure(Options(str(tmp_path), 10, 2))
    assert rates["file creation"] == [10.0]
    assert rates["tree creation"] == [0.5], "a tree is one operation"


def test_a_phase_may_end_with_fsync_of_its_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    for asked in (False, True):
        mdtest.Rank(Options(str(tmp_path), 1, sync_phases=asked), str(tmp_path), int(asked)).phase("file creation")()
    assert synced == [str(tmp_path)], "once, after the files were made, and only when it is asked for"


def test_each_phase_leaves_what_the_next_one_needs(tmp_path: Path) -> None:
    rank = mdtest.Rank(Options(str(tmp_path), 3, write_bytes=7, read_bytes=7), str(tmp_path), 5)
    rank.phase("file creation")()
    assert sorted(os.listdir(tmp_path)) == [f"file.mdtest.5.{k}" for k in range(3)]
    assert all((tmp_path / name).stat().st_size == 7 for name in os.listdir(tmp_path))
    rank.phase("file stat")()
    rank.phase("file read")()
    rank.phase("file rename")()
    rank.phase("file removal")()
    assert os.listdir(tmp_path) == []


def test_a_process_that_fails_ends_the_measurement_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "mdtest.0").mkdir()
    with pytest.raises(BenchError, match=r"process 0: .*File exists"):
        mdtest.measure(Options(str(tmp_path), 5, 3))


def test_a_process_that_is_killed_ends_the_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Dying(mdtest.Rank):
        def file_stat(self) -> None:
            os._exit(9)

    monkeypatch.setattr(mdtest, "Rank", Dying)
    with pytest.raises(BenchError, match="ended without a result"):
        mdtest.measure(Options(str(tmp_path), 5, 2))


def test_a_short_file_is_no_fast_read(tmp_path: Path) -> None:
    rank = mdtest.Rank(Options(str(tmp_path), 1, write_bytes=10, read_bytes=20), str(tmp_path), 0)
    rank.file_creation()
    with pytest.raises(BenchError, match="a file ends 10 bytes before its 20"):
        rank.file_read()


def test_summary_is_that_of_mdtest() -> None:
    assert mdtest.summary([10.0, 20.0, 30.0]) == {
        "max": 30.0,
        "min": 10.0,
        "mean": 20.0,
        "stddev": pytest.approx(8.16496580927726),
    }


def test_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    options, as_json = mdtest.parse(shlex.split("-d x -n 10 -N 4 -u -w 4k -e 1k -i 3 --json"))
    assert options == Options("x", 10, 4, True, 4096, 1024, 3)
    assert as_json
    assert mdtest.parse(["-d", "x", "-n", "10"]) == (Options("x", 10), False)
    assert mdtest.parse(shlex.split("-d x -n 10 -Y"))[0].sync_phases
    for wrong in ("-d x", "-d x -n 0", "-d x -n 5 -w -1", "-d x -n 5 -e 10", "-d x -n 5 -w 1z"):
        with pytest.raises(SystemExit):
            mdtest.parse(wrong.split())
    capsys.readouterr()


def test_json_names_machine_options_and_load(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mdtest.main(["-d", str(tmp_path), "-n", "5", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["options"]["items"] == 5
    assert set(found["machine"]) == {"cpu", "cores", "memory_bytes", "kernel", "python"}
    assert len(found["load_average_before"]) == 3
    assert set(found["rates"]["file creation"]) == {"max", "min", "mean", "stddev"}


def test_the_table_has_a_row_per_phase(tmp_path: Path) -> None:
    found = mdtest.run(replace(Options(str(tmp_path), 5), iterations=2))
    text = mdtest.table(found)
    for phase in ("File creation", "Directory stat", "Tree removal", "Max", "Min", "Mean", "Std Dev"):
        assert phase in text


def test_an_error_is_one_line_and_a_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert mdtest.main(["-d", str(tmp_path / "file" / "x"), "-n", "5"]) == 1
    assert capsys.readouterr().err.startswith("mdtest: ")

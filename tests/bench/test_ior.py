"""bench.ior: the modes write what they say, reading finds what is wrong, the sizes add up."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import pytest

from bench import ior
from bench.ior import Options, pattern, pieces, size_of


def test_sizes() -> None:
    assert [size_of(text) for text in ("4096", "256k", "1M", "2g")] == [4096, 256 << 10, 1 << 20, 2 << 30]
    for bad in ("", "k", "0", "-1", "1x", "1.5m"):
        with pytest.raises(argparse.ArgumentTypeError):
            size_of(bad)


def test_the_pattern_tells_where_it_is() -> None:
    whole = pattern(3, 0, 1000)
    assert pattern(3, 100, 333) == whole[100:433]
    assert pattern(4, 0, 1000) != whole


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("shuffled", [False, True])
def test_every_byte_belongs_to_one_transfer(separate: bool, shuffled: bool) -> None:
    options = Options(".", 10, 30, 4, 3, separate, shuffled)
    ranges = [(rank if separate else 0, at) for rank in range(3) for at in pieces(options, rank)]
    assert len(ranges) == len(set(ranges)) == 3 * 4 * 3
    assert {at for _, at in ranges} == set(range(0, 120 if separate else 360, 10))


@pytest.mark.parametrize("flags", [[], ["-F"], ["-z"], ["-F", "-C", "-e"], ["-C"], ["-s", "3"], ["-i", "2"]])
def test_modes(tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str]) -> None:
    code = ior.main(["-d", str(tmp_path), "-N", "2", "-t", "4k", "-b", "16k", "-R", "--json", *flags])
    found = json.loads(capsys.readouterr().out)
    assert code == 0
    assert set(found["mib_per_s"]) == {"write", "read"}
    assert found["bytes"] == 2 * (16 << 10) * (3 if "-s" in flags else 1)
    assert list(tmp_path.iterdir()) == []


def test_other_bytes_are_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["-d", str(tmp_path), "-t", "4k", "-b", "16k", "-R"]
    assert ior.main([*base, "-w"]) == 0
    with (tmp_path / "ior").open("r+b") as file:
        file.seek(5000)
        file.write(b"!")
    assert ior.main([*base, "-r"]) == 1
    assert "other bytes at 4096" in capsys.readouterr().err
    assert ior.main(["-d", str(tmp_path), "-t", "4k", "-b", "64k", "-r"]) == 1, "the file is shorter"


@pytest.mark.parametrize("separate", [False, True])
def test_the_neighbours_bytes_are_read(tmp_path: Path, separate: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    options = Options(str(tmp_path), 10, 30, 1, 3, separate, verify=True, neighbour=True)
    for rank in range(3):
        ior._write(options, rank, 1)
    read = []
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, at: read.append(at) or real(fd, buffers, at))
    assert ior._read(options, 2, 1) == 30
    assert read == [0, 10, 20], "those of process 0"
    read.clear()
    assert ior._read(options, 0, 1) == 30
    assert read == ([0, 10, 20] if separate else [30, 40, 50])

"""daemon.memory: what was freed is given back to the system."""

from __future__ import annotations

import subprocess
import sys

import pytest

from daemon import memory

PIECE = 2000
HOLES = f"""
import ctypes
from pathlib import Path
from daemon import memory

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]

def used():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) >> 10 for line in lines if line.startswith("RssAnon"))

def filled(size):
    at = libc.malloc(size)
    ctypes.memset(at, 1, size)
    return at

pieces = [filled({PIECE}) for _ in range(40000)]
before = used()
for k, piece in enumerate(pieces):
    if k % 10:
        libc.free(piece)
held = used()
memory.give_back()
print(before, held, used())
"""
"""80 MB in small pieces, of which one in ten is kept: none of the others lies at the end of the heap."""


def test_holes_are_given_back() -> None:
    said = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, check=True).stdout
    before, held, after = map(int, said.split())
    if held < before - 20:
        pytest.skip("this C library gives back by itself")
    assert after < before - 40


def test_another_c_library_is_left_alone() -> None:
    memory._tell("no_such_function_of_libc", 1)


def test_rest_begins_once_after_work() -> None:
    rest = memory.Rest()
    assert [rest.begins(idle) for idle in (True, True, False, False, True, True)] == [
        True, False, False, False, True, False,
    ]  # fmt: skip

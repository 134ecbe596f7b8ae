"""How many bytes per second does a mounted directory carry?

The basic modes of IOR with plain POSIX calls, so that any file system can be measured with the same program::

    python -m bench.ior -d DIR [-N PROCESSES] [-t TRANSFER] [-b BLOCK] [-s SEGMENTS] [-F] [-z] [-e] [-R] [--json]

Every process writes, then reads, SEGMENTS blocks of BLOCK bytes in pieces of TRANSFER bytes. Without -F all share one
file, in which a segment holds one block of each process, one after the other (so with small blocks and many segments
the processes' pieces are strided); with -F each has a file of its own. -z takes the pieces in random order, -e ends the
writing with fsync, -C has each process read what its neighbour wrote, -R compares what was read with what was written,
-w and -r do one of the two alone. A phase's rate is all bytes divided by the time from the common start to the end of
the slowest process, opening and closing included. Reading is done without the page cache where the file system can
(-o), else after the cached pages of the file were given up.

The claim it serves: with two copies, writing with fsync reaches 0.7 of what the disk takes when everything is written
to it twice, and reading 600 MiB/s on two cores.
"""

from __future__ import annotations

import argparse
import json
import mmap
import multiprocessing
import os
import platform
import random
import statistics
import struct
import sys
import threading
import time
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from typing import Any, Final

BARRIER_TIMEOUT_S: Final = 600.0
"""The slowest phase's bound: a process that died must not leave the others waiting for ever."""
_WORD: Final = struct.Struct("!QQ")
_UNITS: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


@dataclass(frozen=True, slots=True)
class Options:
    """What is measured; sizes in bytes."""

    directory: str
    transfer: int = 256 << 10
    block: int = 16 << 20
    segments: int = 1
    processes: int = 1
    file_per_process: bool = False
    shuffled: bool = False
    fsync: bool = False
    verify: bool = False
    neighbour: bool = False
    write: bool = True
    read: bool = True
    direct: bool = False
    repetitions: int = 1
    keep: bool = False


class BenchError(Exception):
    """The measurement failed; the text says where and why."""


def size_of(text: str) -> int:
    """``4096``, ``256k``, ``1m``, ``2g`` as bytes."""
    unit = text[-1:].lower() if text[-1:].isalpha() else ""
    number = text[: len(text) - len(unit)]
    if unit not in _UNITS or not number.isdigit() or int(number) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no size like 4096, 256k or 1m")
    return int(number) * _UNITS[unit]


def pattern(seed: int, offset: int, length: int) -> bytes:
    """The bytes at *offset* of the file that belongs to *seed*: every 16 say where they are."""
    first = offset // _WORD.size
    count = (offset + length + _WORD.size - 1) // _WORD.size - first
    words = b"".join(_WORD.pack(seed, first + k) for k in range(count))
    skip = offset - first * _WORD.size
    return words[skip : skip + length]


def pieces(options: Options, rank: int) -> list[int]:
    """The offsets of *rank*'s transfers, in the order in which they are made."""
    if options.file_per_process:
        starts = [segment * options.block for segment in range(options.segments)]
    else:
        width = options.block * options.processes
        starts = [segment * width + rank * options.block for segment in range(options.segments)]
    found = [start + at for start in starts for at in range(0, options.block, options.transfer)]
    if options.shuffled:
        random.Random(rank).shuffle(found)
    return found


def path_of(options: Options, rank: int) -> str:
    return os.path.join(options.directory, f"ior.{rank:05d}" if options.file_per_process else "ior")


def _buffer(size: int) -> mmap.mmap:
    """Memory as O_DIRECT wants it: on a page."""
    return mmap.mmap(-1, size)


def _write(options: Options, rank: int, seed: int) -> int:
    buffer = _buffer(options.transfer)
    direct = os.O_DIRECT if options.direct else 0
    # Made before the clock runs when it is to be compared: what is measured is the file system.
    made = {at: pattern(seed + rank, at, options.transfer) for at in pieces(options, rank)} if options.verify else None
    buffer[:] = pattern(seed + rank, 0, options.transfer)
    handle = os.open(path_of(options, rank), os.O_WRONLY | os.O_CREAT | direct, 0o644)
    try:
        done = 0
        for at in pieces(options, rank):
            if made is not None:
                buffer[:] = made[at]
            written = os.pwrite(handle, buffer, at)
            if written != options.transfer:
                raise BenchError(f"{path_of(options, rank)}: {written} of {options.transfer} bytes written at {at}")
            done += written
        if options.fsync:
            os.fsync(handle)
    finally:
        os.close(handle)
    return done


def _read(options: Options, rank: int, seed: int) -> int:
    who = (rank + 1) % options.processes if options.neighbour else rank
    buffer = _buffer(options.transfer)
    handle = os.open(path_of(options, who), os.O_RDONLY | (os.O_DIRECT if options.direct else 0))
    try:
        if not options.direct:
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        done = 0
        for at in pieces(options, who):
            got = os.preadv(handle, [buffer], at)
            if got != options.transfer:
                raise BenchError(f"{path_of(options, who)}: {got} of {options.transfer} bytes read at {at}")
            if options.verify and buffer[:] != pattern(seed + who, at, options.transfer):
                raise BenchError(f"{path_of(options, who)}: other bytes at {at} than were written")
            done += got
    finally:
        os.close(handle)
    return done


def _rank(options: Options, rank: int, seed: int, barrier: Barrier, pipe: Connection) -> None:
    """One process: ("write" or "read", start, end, bytes) per phase, or ("error", text)."""
    try:
        for name, wanted, work in (("write", options.write, _write), ("read", options.read, _read)):
            if not wanted:
                continue
            barrier.wait(BARRIER_TIMEOUT_S)
            began = time.monotonic()
            done = work(options, rank, seed)
            pipe.send((name, began, time.monotonic(), done))
    except (OSError, BenchError, threading.BrokenBarrierError) as exc:
        barrier.abort()
        pipe.send(("error", str(exc) or type(exc).__name__))
    finally:
        pipe.close()


def measure(options: Options, seed: int) -> dict[str, float]:
    """MiB/s of each phase, once. Raises :class:`BenchError`."""
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(options.processes)
    pipes: list[Connection] = []
    children = []
    for rank in range(options.processes):
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=_rank, args=(options, rank, seed, barrier, theirs))
        child.start()
        theirs.close()
        pipes.append(ours)
        children.append(child)
    found: dict[str, list[tuple[float, float, int]]] = {}
    errors: list[str] = []
    for pipe in pipes:
        try:
            while True:
                name, *rest = pipe.recv()
                if name == "error":
                    errors.append(rest[0])
                else:
                    found.setdefault(name, []).append((rest[0], rest[1], rest[2]))
        except EOFError:
            pipe.close()
    for child in children:
        child.join()
    if errors:
        raise BenchError(next((e for e in errors if e != "BrokenBarrierError"), errors[0]))
    rates = {}
    for name, times in found.items():
        seconds = max(end for _, end, _ in times) - min(begin for begin, _, _ in times)
        rates[name] = sum(done for _, _, done in times) / seconds / (1 << 20)
    return rates


def run(options: Options) -> dict[str, Any]:
    """All repetitions: what is printed with --json."""
    rates: dict[str, list[float]] = {}
    for repetition in range(options.repetitions):
        for name, rate in measure(options, 1 + repetition * 1000).items():
            rates.setdefault(name, []).append(rate)
        # Each repetition writes new files: to overwrite old ones is another question.
        if not options.keep and (options.write or repetition == options.repetitions - 1):
            for rank in range(options.processes if options.file_per_process else 1):
                os.unlink(path_of(options, rank))
    return {
        "benchmark": "ior",
        "options": asdict(options),
        "bytes": options.block * options.segments * options.processes,
        "mib_per_s": {
            name: {"median": round(statistics.median(all_), 1), "min": round(min(all_), 1), "max": round(max(all_), 1)}
            for name, all_ in rates.items()
        },
        "host": {"cores": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()},
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.ior", description="IOR's modes on a mounted directory.")
    parser.add_argument("-d", dest="directory", default=".", help="where the files go (the working directory)")
    parser.add_argument("-N", dest="processes", type=int, default=1, help="processes (1)")
    parser.add_argument("-t", dest="transfer", type=size_of, default=256 << 10, help="bytes per call (256k)")
    parser.add_argument("-b", dest="block", type=size_of, default=16 << 20, help="contiguous bytes per process (16m)")
    parser.add_argument("-s", dest="segments", type=int, default=1, help="blocks of each process (1)")
    parser.add_argument("-F", dest="file_per_process", action="store_true", help="a file per process")
    parser.add_argument("-z", dest="shuffled", action="store_true", help="random order of the calls")
    parser.add_argument("-e", dest="fsync", action="store_true", help="fsync after writing")
    parser.add_argument("-R", dest="verify", action="store_true", help="compare what is read with what was written")
    parser.add_argument("-C", dest="neighbour", action="store_true", help="read what the next process wrote")
    parser.add_argument("-w", dest="only_write", action="store_true", help="write only (keeps the files)")
    parser.add_argument("-r", dest="only_read", action="store_true", help="read only")
    parser.add_argument("-o", dest="direct", action="store_true", help="O_DIRECT")
    parser.add_argument("-i", dest="repetitions", type=int, default=1, help="repetitions (1)")
    parser.add_argument("-k", dest="keep", action="store_true", help="keep the files")
    parser.add_argument("--json", dest="as_json", action="store_true", help="one JSON object")
    args = parser.parse_args(argv)
    if args.block % args.transfer:
        parser.error("the block size is not a multiple of the transfer size")
    options = Options(
        args.directory, args.transfer, args.block, args.segments, args.processes, args.file_per_process, args.shuffled,
        args.fsync, args.verify, args.neighbour, not args.only_read, not args.only_write,
        args.direct, args.repetitions, args.keep or args.only_write,
    )  # fmt: skip
    try:
        found = run(options)
    except (BenchError, OSError) as exc:
        print(f"ior: {exc}", file=sys.stderr)
        return 1
    if args.as_json:
        print(json.dumps(found))
        return 0
    print(f"{options.processes} processes, {found['bytes'] >> 20} MiB, transfers of {options.transfer} bytes")
    for name, rates in found["mib_per_s"].items():
        print(f"{name:6} {rates['median']:10.1f} MiB/s   min {rates['min']:.1f}  max {rates['max']:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Small files, whose bytes are in the metadata, through two mounts; and how they grow out to objects."""

from __future__ import annotations

import mmap
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuse.conftest import Pair
from tests.live import Live

pytestmark = pytest.mark.system

LIMIT = 4096
LAYOUT = "lockstep.layout"


def limit_of(path: Path) -> int:
    """Up to how many bytes of a file are in the metadata; 0: it is in objects."""
    words = dict(word.split("=") for word in os.getxattr(path, LAYOUT).decode().split())
    return int(words["inline"])


def test_a_small_file_is_in_the_metadata(pair: Pair) -> None:
    (pair.one / "f").write_bytes(b"x" * LIMIT)
    assert limit_of(pair.two / "f") == LIMIT
    assert (pair.two / "f").read_bytes() == b"x" * LIMIT
    (pair.one / "g").write_bytes(b"x" * (LIMIT + 1))
    assert limit_of(pair.two / "g") == 0
    assert (pair.two / "g").read_bytes() == b"x" * (LIMIT + 1)


@pytest.mark.parametrize("how", ["append", "extend", "sparse", "overwrite"])
def test_it_grows_out_by_itself(pair: Pair, how: str) -> None:
    """The mount that reads has the file open all the time, and knew it when it was small."""
    f, g = pair.one / "f", pair.two / "f"
    wanted = bytearray(b"small" * 100)
    f.write_bytes(wanted)
    with g.open("rb") as reader:
        assert reader.read() == wanted
        with f.open("r+b") as file:
            at = {"append": len(wanted), "extend": 4000, "sparse": 3 << 20, "overwrite": 100}[how]
            data = b"y" * 5000
            file.seek(at)
            file.write(data)
        wanted.extend(bytes(max(0, at - len(wanted))))
        wanted[at : at + len(data)] = data
        assert limit_of(g) == 0
        reader.seek(0)
        assert reader.read() == wanted
    assert f.read_bytes() == g.read_bytes() == wanted


def test_one_mount_grows_a_file_under_the_pending_writes_of_the_other(pair: Pair) -> None:
    """What the one holds and has not told goes to the objects: nothing is lost, nobody gets an error."""
    f, g = pair.one / "f", pair.two / "f"
    f.write_bytes(b"." * 100)
    with f.open("r+b", buffering=0) as one, g.open("r+b", buffering=0) as two:
        one.seek(10)
        one.write(b"ONE")
        two.seek(LIMIT)
        two.write(b"TWO")
        os.fsync(two.fileno())
        assert limit_of(f) == 0
        one.seek(20)
        one.write(b"one")
    wanted = bytearray(b"." * 100 + bytes(LIMIT - 100) + b"TWO")
    wanted[10:13] = b"ONE"
    wanted[20:23] = b"one"
    assert f.read_bytes() == g.read_bytes() == wanted


def test_writers_on_two_mounts_keep_their_parts(pair: Pair) -> None:
    """Interleaved writes of disjoint parts at random; some of them let the file grow out."""
    source = random.Random(3)
    for k in range(12):
        f, g = pair.one / f"f{k}", pair.two / f"f{k}"
        size = source.choice((600, 4000, 9000))
        f.touch()
        model = bytearray(size)
        end = 0
        with f.open("r+b", buffering=0) as one, g.open("r+b", buffering=0) as two:
            for _ in range(20):
                side = source.randrange(2)
                at = source.randrange(side * size // 2, side * size // 2 + size // 2 - 50)
                data = source.randbytes(50)
                file = (one, two)[side]
                file.seek(at)
                file.write(data)
                model[at : at + 50] = data
                end = max(end, at + 50)
                if source.randrange(4) == 0:
                    os.fsync(file.fileno())
        assert f.read_bytes() == g.read_bytes() == model[:end], f"file {k}"


def test_truncated_extended_and_appended_to(pair: Pair) -> None:
    """Against a byte array, with steps through both mounts; every step is seen at once through the other."""
    source = random.Random(5)
    for k in range(3):
        f, g = pair.one / f"f{k}", pair.two / f"f{k}"
        f.touch()
        model = bytearray()
        for step in range(40):
            here, there = (f, g) if source.randrange(2) else (g, f)
            kind = source.randrange(4)
            if kind == 0:
                size = source.randrange(3000 + 100 * step * k)
                os.truncate(here, size)
                model = model[:size] + bytes(max(0, size - len(model)))
            elif kind == 1:
                data = source.randbytes(source.randrange(1, 300))
                with here.open("ab") as file:
                    file.write(data)
                model += data
            else:
                data = source.randbytes(source.randrange(1, 500))
                at = source.randrange(3000 + 100 * step * k)
                fd = os.open(here, os.O_WRONLY)
                os.pwrite(fd, data, at)
                os.close(fd)
                model.extend(bytes(max(0, at + len(data) - len(model))))
                model[at : at + len(data)] = data
            assert there.read_bytes() == model, f"file {k} step {step}"
            assert os.stat(there).st_size == len(model)


def test_o_direct_sees_and_shows_at_once(pair: Pair) -> None:
    f, g = pair.one / "f", pair.two / "f"
    f.write_bytes(bytes(512))
    one, two = os.open(f, os.O_RDWR | os.O_DIRECT), os.open(g, os.O_RDONLY | os.O_DIRECT)
    buffer = mmap.mmap(-1, 512)
    try:
        for k in range(1, 6):
            buffer[:] = bytes([k]) * 512
            assert os.pwritev(one, [buffer], 0) == 512
            assert os.preadv(two, [buffer], 0) == 512
            assert buffer[:] == bytes([k]) * 512
    finally:
        os.close(one)
        os.close(two)
        buffer.close()


def test_mapped_and_changed(pair: Pair) -> None:
    (pair.one / "f").write_bytes(b"a" * 1000)
    with open(pair.one / "f", "r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        view[10:13] = b"new"
        view.flush()
    assert (pair.two / "f").read_bytes() == b"a" * 10 + b"new" + b"a" * 987


def test_renamed_linked_and_removed_while_it_is_open(pair: Pair) -> None:
    f = pair.one / "f"
    f.write_bytes(b"contents")
    with f.open("r+b", buffering=0) as file:
        file.write(b"C")
        os.link(f, pair.one / "g")
        os.rename(pair.two / "f", pair.two / "h")
        os.fsync(file.fileno())
        assert (pair.two / "g").read_bytes() == (pair.two / "h").read_bytes() == b"Contents"
        os.unlink(pair.two / "g")
        os.unlink(pair.two / "h")
        file.seek(0, os.SEEK_END)
        file.write(b"!")
        file.seek(0)
        assert file.read() == b"Contents!"
        file.seek(LIMIT)
        file.write(b"grown")
        file.seek(0)
        assert file.read() == b"Contents!" + bytes(LIMIT - 9) + b"grown"


def test_the_limit_of_a_directory(pair: Pair) -> None:
    os.setxattr(pair.one, LAYOUT, b"inline=0")
    (pair.one / "none").write_bytes(b"x")
    assert limit_of(pair.two / "none") == 0
    os.setxattr(pair.two, LAYOUT, b"inline=65536")
    (pair.one / "d").mkdir()
    (pair.one / "d" / "much").write_bytes(b"x" * 65536)
    assert limit_of(pair.two / "d" / "much") == 65536
    assert (pair.two / "d" / "much").read_bytes() == b"x" * 65536
    with (pair.two / "d" / "much").open("ab") as file:
        file.write(b"y")
    assert (pair.one / "d" / "much").read_bytes() == b"x" * 65536 + b"y"
    assert limit_of(pair.one / "d" / "much") == 0
    with pytest.raises(OSError, match="Invalid argument"):
        os.setxattr(pair.one, LAYOUT, b"inline=65537")


WRITER = """
import os, sys
where, count = sys.argv[1], int(sys.argv[2])
for k in range(count):
    path = f"{where}/{k}"
    with open(path, "wb", buffering=0) as file:
        file.write(b"%d " % k * 20)
    if k % 3 == 0:
        with open(path, "ab", buffering=0) as file:
            file.write(b"grown" * 900)
    print(k, flush=True)
"""


def test_a_replica_dies_while_small_files_are_written(cluster: Live, pair: Pair) -> None:
    """Every file whose close was answered is there as it was written, on the other mount, too."""
    count = 120
    replica = cluster.replica_of(cluster.mounts["one"])
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(pair.one), str(count)], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    with writer.stdout as said:
        for line in said:
            if int(line) == count // 3:
                cluster.cluster.kill(f"mds-{replica}")
            if int(line) == 2 * count // 3:
                cluster.cluster.start(f"mds-{replica}")
    assert writer.wait() == 0
    for k in range(count):
        wanted = b"%d " % k * 20 + (b"grown" * 900 if k % 3 == 0 else b"")
        assert (pair.two / str(k)).read_bytes() == wanted, k
        assert (pair.one / str(k)).read_bytes() == wanted, k
    cluster.settled()

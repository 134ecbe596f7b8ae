"""The mount on a real kernel, over one replica and two targets. Each test names what an application relies on."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from client import limits, mount
from tests.client.mounted import Rig, rig

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="/dev/fuse is needed"),
    pytest.mark.skipif(os.geteuid() != 0, reason="other users and device nodes need root"),
]


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with rig(tmp_path_factory.mktemp("mount"), stripe_size=64 << 10) as made:
        made.mount("a", "allow_other")
        made.mount("b")
        yield made
        log = made.log()
        assert "Traceback" not in log, log[-8000:]


@pytest.fixture
def here(system: Rig, request: pytest.FixtureRequest) -> Path:
    path = Path(system.base / "a" / str(request.node.name))
    path.mkdir()
    return path


def there(here: Path) -> Path:
    """The same directory through the other mount."""
    return here.parents[1] / "b" / here.name


def test_type_and_source_of_the_mount(system: Rig) -> None:
    table = Path("/proc/self/mounts").read_text()
    assert f"lockstep:test {system.base}/a fuse.lockstep" in table


def test_the_kernel_reads_far_ahead(system: Rig) -> None:
    """Large files come in requests of a megabyte, not of 128 KiB."""
    device = os.stat(system.base / "a").st_dev
    knob = mount.BDI / f"{os.major(device)}:{os.minor(device)}" / "read_ahead_kb"
    assert int(knob.read_text()) == limits.KERNEL_READ_AHEAD >> 10


def test_a_mount_that_may_not_read_further_ahead_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Mounted by somebody who is not root."""
    caplog.set_level("INFO")
    mount._read_far_ahead(os.makedev(0, 9), tmp_path)
    assert "0:9/read_ahead_kb stays as it is" in caplog.text


def test_attributes_of_a_new_file(here: Path) -> None:
    (here / "f").write_bytes(b"hello")
    found = os.stat(here / "f")
    assert (found.st_size, found.st_nlink, stat.S_ISREG(found.st_mode)) == (5, 1, True)
    assert abs(found.st_mtime - time.time()) < 60
    assert (there(here) / "f").read_bytes() == b"hello"


def test_tree_copied_and_compared(here: Path) -> None:
    source = Path(__file__).parents[2] / "wire"
    subprocess.run(["cp", "-a", str(source), str(here / "copy")], check=True)
    subprocess.run(["diff", "-r", str(source), str(there(here) / "copy")], check=True)
    shutil.rmtree(here / "copy")
    assert os.listdir(here) == []


def test_listing_of_a_large_directory(here: Path) -> None:
    names = {f"file-{number:04}" for number in range(700)}
    for name in names:
        (here / name).touch()
    listed = os.listdir(there(here))
    assert len(listed) == 700 and set(listed) == names
    assert sorted(entry.name for entry in os.scandir(here)) == sorted(names)
    dots = subprocess.run(["ls", "-a", str(here)], capture_output=True, check=True).stdout.split()
    assert b"." in dots and b".." in dots
    assert os.stat(here / "..").st_ino == os.stat(here.parent).st_ino


def test_large_file_with_checksum(here: Path) -> None:
    seed = random.Random(1)
    digest = hashlib.sha256()
    with open(here / "big", "wb") as file:
        for _ in range(24):
            piece = seed.randbytes(seed.choice((100, 5000, 131072, 700_001, 1 << 20)))
            digest.update(piece)
            file.write(piece)
    for where in (here, there(here)):
        assert hashlib.sha256((where / "big").read_bytes()).digest() == digest.digest()


def test_dd_with_and_without_page_cache(here: Path) -> None:
    source = here / "source"
    source.write_bytes(random.Random(2).randbytes(8 << 20))
    for flags in (["bs=1M"], ["bs=4k", "count=300"], ["bs=256k", "oflag=direct"], ["bs=64k", "iflag=direct"],
                  ["bs=1M", "conv=fsync"]):  # fmt: skip
        subprocess.run(["dd", f"if={source}", f"of={here}/copy", "status=none", *flags], check=True)
        size = os.stat(here / "copy").st_size
        assert (there(here) / "copy").read_bytes() == source.read_bytes()[:size], flags
        os.unlink(here / "copy")


def test_random_writes_against_a_local_file(here: Path, tmp_path: Path) -> None:
    seed = random.Random(3)
    ours = os.open(here / "f", os.O_RDWR | os.O_CREAT)
    model = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    for step in range(300):
        at, size = seed.randrange(600_000), seed.choice((1, 10, 4096, 65536, 150_000))
        match seed.randrange(6):
            case 0 | 1 | 2:
                piece = seed.randbytes(size)
                assert os.pwrite(ours, piece, at) == os.pwrite(model, piece, at)
            case 3 | 4:
                assert os.pread(ours, size, at) == os.pread(model, size, at), step
            case 5:
                for fd in (ours, model):
                    os.ftruncate(fd, at)
        assert os.fstat(ours).st_size == os.fstat(model).st_size
    os.close(ours)
    os.close(model)
    assert (there(here) / "f").read_bytes() == (tmp_path / "f").read_bytes()


def test_truncate_and_extend_shows_zeros(here: Path) -> None:
    path = here / "f"
    path.write_bytes(b"x" * 300_000)
    os.truncate(path, 100_001)
    os.truncate(path, 250_000)
    expected = b"x" * 100_001 + bytes(149_999)
    assert path.read_bytes() == expected
    assert (there(here) / "f").read_bytes() == expected
    for length in range(20):  # more truncations than the service keeps unsettled
        os.truncate(path, 200_000 - 9999 * length)
        os.truncate(path, 210_000)
    assert path.read_bytes() == (b"x" * 10_019 + bytes(199_981))


def test_open_with_truncation(here: Path) -> None:
    path = here / "f"
    path.write_bytes(b"old and long")
    path.write_bytes(b"new")
    assert path.read_bytes() == b"new"
    assert (there(here) / "f").read_bytes() == b"new"


def test_appending(here: Path) -> None:
    path = here / "log"
    with open(path, "ab", buffering=0) as one, open(path, "ab", buffering=0) as two:
        for number in range(200):
            (one, two)[number % 2].write(b"%06d\n" % number)
    assert path.read_bytes() == b"".join(b"%06d\n" % number for number in range(200))
    # From the other mount, in turns, each closed before the next begins.
    for number in range(200, 210):
        with open((here, there(here))[number % 2] / "log", "ab") as file:
            file.write(b"%06d\n" % number)
    assert path.read_bytes() == b"".join(b"%06d\n" % number for number in range(210))


def test_two_handles_see_each_other_before_anything_is_flushed(here: Path) -> None:
    writer = os.open(here / "f", os.O_WRONLY | os.O_CREAT)
    reader = os.open(here / "f", os.O_RDONLY)
    for number in range(50):
        os.write(writer, b"%04d" % number)
        assert os.fstat(reader).st_size == 4 * (number + 1) == os.stat(here / "f").st_size
        assert os.read(reader, 100) == b"%04d" % number
    os.close(writer)
    os.close(reader)


def test_close_to_open_between_mounts(here: Path) -> None:
    other = there(here)
    (here / "f").write_bytes(b"0" * 10_000)
    late = os.open(other / "f", os.O_RDONLY)
    assert os.pread(late, 4, 0) == b"0000"
    for number in range(1, 20):
        with open((here, other)[number % 2] / "f", "r+b") as file:
            file.write(b"%04d" % number)
        with open((other, here)[number % 2] / "f", "rb") as file:
            assert file.read(4) == b"%04d" % number
        assert os.pread(late, 4, 0) == b"%04d" % number
    with open(here / "f", "ab") as file:
        file.write(b"end")
    assert os.pread(late, 10, 10_000) == b"end"
    os.close(late)


def test_unlinked_file_lives_on_in_its_handle(here: Path) -> None:
    with open(here / "f", "w+b") as file:
        file.write(b"a" * 200_000)
        file.flush()
        os.unlink(here / "f")
        assert not (there(here) / "f").exists()
        file.write(b"b" * 10)
        file.seek(199_999)
        assert file.read() == b"a" + b"b" * 10
        assert os.fstat(file.fileno()).st_nlink == 0
        os.ftruncate(file.fileno(), 5)
        assert os.fstat(file.fileno()).st_size == 5


def test_mapped_file(here: Path) -> None:
    import mmap

    path = here / "f"
    path.write_bytes(bytes(100_000))
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 100_000) as mapped:
        mapped[50_000:50_005] = b"hello"
        mapped.flush()
    assert (there(here) / "f").read_bytes()[49_999:50_006] == b"\0hello\0"


def test_executable(here: Path) -> None:
    shutil.copy("/bin/true", here / "true")
    subprocess.run([str(here / "true")], check=True)


def test_names_links_and_renames(here: Path) -> None:
    odd = os.fsencode(here) + b"/\xff\xfe not utf-8 \n"
    with open(odd, "wb") as file:
        file.write(b"odd")
    assert os.listdir(os.fsencode(here)) == [b"\xff\xfe not utf-8 \n"]
    os.rename(odd, here / "plain")
    os.link(here / "plain", here / "hard")
    assert os.stat(here / "hard").st_nlink == 2
    os.symlink("hard", here / "soft")
    assert os.readlink(here / "soft") == "hard"
    assert (here / "soft").read_bytes() == b"odd"
    (here / "other").write_bytes(b"other")
    os.replace(here / "other", here / "plain")
    assert (here / "plain").read_bytes() == b"other"
    _renameat2(here / "plain", here / "hard", 2)
    assert (here / "plain").read_bytes() == b"odd"
    with pytest.raises(FileExistsError):
        _renameat2(here / "plain", here / "hard", 1)
    with pytest.raises(OSError) as too_long:
        (here / ("n" * 256)).touch()
    assert too_long.value.errno == errno.ENAMETOOLONG
    with pytest.raises(OSError) as full:
        os.rmdir(here)
    assert full.value.errno == errno.ENOTEMPTY


def _renameat2(old: Path, new: Path, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def test_special_files(here: Path) -> None:
    os.mkfifo(here / "fifo")
    os.mknod(here / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(here / "regular", stat.S_IFREG | 0o600)
    assert stat.S_ISFIFO(os.stat(here / "fifo").st_mode)
    assert os.stat(here / "null").st_rdev == os.makedev(1, 3)
    assert stat.S_ISREG(os.stat(here / "regular").st_mode)


def test_extended_attributes(here: Path) -> None:
    path = here / "f"
    path.touch()
    os.setxattr(path, "user.colour", b"blue")
    os.setxattr(path, "user.empty", b"")
    assert os.getxattr(there(here) / "f", "user.colour") == b"blue"
    assert sorted(os.listxattr(path)) == ["user.colour", "user.empty"]
    with pytest.raises(FileExistsError):
        os.setxattr(path, "user.colour", b"red", os.XATTR_CREATE)
    with pytest.raises(OSError) as missing:
        os.setxattr(path, "user.none", b"red", os.XATTR_REPLACE)
    assert missing.value.errno == errno.ENODATA
    os.removexattr(path, "user.empty")
    assert os.listxattr(path) == ["user.colour"]


def test_times_modes_and_owners(here: Path) -> None:
    path = here / "f"
    path.touch()
    os.utime(path, ns=(1_000_000_007, -5_000_000_001))
    found = os.stat(path)
    assert (found.st_atime_ns, found.st_mtime_ns) == (1_000_000_007, -5_000_000_001)
    os.utime(path)
    assert abs(os.stat(path).st_mtime - time.time()) < 60
    os.chmod(path, 0o4751)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o4751
    os.chown(path, 1234, 2345)
    found = os.stat(path)
    assert (found.st_uid, found.st_gid) == (1234, 2345)
    with open(path, "ab") as file:
        file.write(b"x")
        file.flush()
        os.utime(file.fileno(), ns=(5, 7))
    assert os.stat(path).st_mtime_ns == 7, "the time that was set last stands, not that of the write before it"


def test_another_users_permissions(here: Path) -> None:
    secret, shared = here / "secret", here / "shared"
    secret.write_bytes(b"s")
    secret.chmod(0o600)
    shared.write_bytes(b"s")
    shared.chmod(0o666)
    os.chmod(here, 0o755)
    script = f"""
import os, sys
os.setgroups([777]); os.setgid(4000); os.setuid(4000)
def refused(call, *args):
    try:
        call(*args)
    except PermissionError:
        return True
    return False
assert refused(open, {str(secret)!r})
assert refused(open, {str(here / 'new')!r}, 'w')
assert open({str(shared)!r}).read() == 's'
os.utime({str(shared)!r})
assert refused(os.utime, {str(shared)!r}, (1, 1))
assert refused(os.chmod, {str(shared)!r}, 0o777)
assert not os.access({str(secret)!r}, os.R_OK) and os.access({str(shared)!r}, os.W_OK)
assert open({str(here / 'group')!r}).read() == 'g'
"""
    (here / "group").write_bytes(b"g")
    os.chown(here / "group", 0, 777)
    os.chmod(here / "group", 0o040)
    for above in here.parents[1:]:
        if above.stat().st_mode & 0o001 == 0 and above.owner() == "root" and str(above).startswith("/tmp"):
            above.chmod(0o755)
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, cwd="/", check=False)
    assert done.returncode == 0, done.stderr.decode()


def test_space(here: Path) -> None:
    found = os.statvfs(here)
    assert found.f_blocks > found.f_bfree > 0 and found.f_namemax == 255


def test_service_restarts_under_a_writer(system: Rig, here: Path) -> None:
    """Nothing is lost, doubled or refused while the only replica and all targets are away; the writer just waits."""
    stop = threading.Event()
    made: list[int] = []
    failed: list[OSError] = []

    def write() -> None:
        number = 0
        try:
            while not stop.is_set():
                with open(here / f"{number}", "xb") as file:
                    file.write(b"%d" % number * 1000)
                made.append(number)
                number += 1
        except OSError as exc:
            failed.append(exc)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(2):
            _until(lambda: len(made) > 20)
            system.stop_service()
            del made[:]
            system.start_service()
            _until(lambda: len(made) > 20)
    finally:
        stop.set()
        writer.join(60)
    assert not failed and not writer.is_alive()
    names = sorted(int(name) for name in os.listdir(here))
    assert names == list(range(len(names)))
    for number in names:
        assert (there(here) / f"{number}").read_bytes() == b"%d" % number * 1000


def _until(condition: object, limit_s: float = 30.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)  # polling, under a limit: what is waited for is in the kernel's hands


def test_waiting_process_can_be_killed_and_unmount_needs_no_server(tmp_path: Path) -> None:
    with rig(tmp_path, targets=1) as made:
        where = made.mount()
        (where / "f").write_bytes(b"x")
        held = os.open(where / "f", os.O_RDWR)
        made.stop_service()
        waiting = subprocess.Popen(["stat", str(where / "f")], stdout=subprocess.DEVNULL)
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(1.0)
        waiting.send_signal(signal.SIGKILL)
        assert waiting.wait(10) == -signal.SIGKILL
        os.close(held)
        again = subprocess.Popen(["stat", str(where / "f")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        subprocess.run(["umount", "-l", str(where)], check=True, timeout=20)
        again.send_signal(signal.SIGKILL)
        again.wait(10)
        assert made.mounts.pop(where).wait(30) == 0, made.log()


def test_soft_mount_gives_up(tmp_path: Path) -> None:
    with rig(tmp_path, targets=1) as made:
        where = made.mount(options="soft,timeo=10")
        (where / "f").write_bytes(b"x")
        made.stop_service()
        with pytest.raises(OSError) as gave_up:
            os.stat(where / "f")
        assert gave_up.value.errno == errno.ETIMEDOUT
        made.start_service()
        _until((where / "f").exists, 30)
        assert made.unmount(where) == 0


def test_mount_refuses_what_cannot_work(system: Rig, tmp_path: Path) -> None:
    from client.mount import main
    from tests.client.one_replica import config_of

    assert main(config_of(system.address), tmp_path / "missing") == 1
    assert main(config_of(system.address), tmp_path, ["frobnicate"]) == 1
    assert main(config_of(system.address), tmp_path, ["subdir=no/such"]) == 1

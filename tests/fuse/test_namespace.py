"""Every namespace operation through a mount, with its effect seen at once through another replica's mount."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuse.conftest import Pair
from tests.live import Live

pytestmark = pytest.mark.system

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
AT_FDCWD = -100

_libc = ctypes.CDLL(None, use_errno=True)


def renameat2(old: Path, new: Path, flags: int) -> None:
    if _libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(old))


def fails(number: int, call: Callable[..., object], *args: object, **named: object) -> None:
    """*call* raises OSError with errno *number* and no other."""
    with pytest.raises(OSError) as caught:
        call(*args, **named)
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[number]


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


# --- making and finding ---------------------------------------------------------------------------


def test_create_gives_a_file_with_the_mode_asked_for_less_the_umask(pair: Pair) -> None:
    before = os.umask(0o027)
    try:
        os.close(os.open(pair.one / "f", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    finally:
        os.umask(before)
    info = os.stat(pair.two / "f")
    assert stat.S_ISREG(info.st_mode)
    assert stat.S_IMODE(info.st_mode) == 0o640
    assert (info.st_nlink, info.st_size, info.st_uid, info.st_gid) == (1, 0, os.geteuid(), os.getegid())
    assert info.st_ino == os.stat(pair.one / "f").st_ino


def test_create_of_a_name_that_is_there(pair: Pair) -> None:
    (pair.one / "f").write_text("x")
    fails(errno.EEXIST, os.open, pair.two / "f", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    os.close(os.open(pair.two / "f", os.O_CREAT | os.O_WRONLY))
    assert (pair.one / "f").read_text() == "x", "opened, not made again"


def test_mkdir_and_rmdir_move_the_parents_link_count_and_times(pair: Pair) -> None:
    before = os.stat(pair.two)
    os.mkdir(pair.one / "d", 0o750)
    info = os.stat(pair.two / "d")
    assert stat.S_ISDIR(info.st_mode)
    assert stat.S_IMODE(info.st_mode) == 0o750
    assert info.st_nlink == 2
    after = os.stat(pair.two)
    assert after.st_nlink == before.st_nlink + 1
    assert after.st_mtime_ns > before.st_mtime_ns
    assert after.st_ctime_ns > before.st_ctime_ns
    os.rmdir(pair.two / "d")
    assert os.stat(pair.one).st_nlink == before.st_nlink
    assert names(pair.one) == []


def test_mkdir_in_a_directory_with_the_set_group_bit_inherits_it(pair: Pair) -> None:
    os.chmod(pair.one, 0o2755)
    os.mkdir(pair.one / "d")
    assert os.stat(pair.two / "d").st_mode & stat.S_ISGID


def test_mkdir_of_a_name_that_is_there(pair: Pair) -> None:
    os.mkdir(pair.one / "d")
    fails(errno.EEXIST, os.mkdir, pair.two / "d")
    (pair.one / "f").touch()
    fails(errno.EEXIST, os.mkdir, pair.two / "f")


def test_rmdir_of_what_is_not_an_empty_directory(pair: Pair) -> None:
    os.mkdir(pair.one / "d")
    (pair.one / "d" / "f").touch()
    fails(errno.ENOTEMPTY, os.rmdir, pair.two / "d")
    fails(errno.ENOTDIR, os.rmdir, pair.two / "d" / "f")
    fails(errno.ENOENT, os.rmdir, pair.two / "none")
    os.unlink(pair.one / "d" / "f")
    os.rmdir(pair.two / "d")


def test_mknod_makes_a_fifo_and_a_socket_survives_as_a_name(pair: Pair) -> None:
    os.mkfifo(pair.one / "p", 0o600)
    assert stat.S_ISFIFO(os.stat(pair.two / "p").st_mode)
    os.mknod(pair.one / "f", 0o600 | stat.S_IFREG)
    assert stat.S_ISREG(os.stat(pair.two / "f").st_mode)


# --- links ----------------------------------------------------------------------------------------


def test_symlink_and_readlink_keep_any_target(pair: Pair) -> None:
    for name, aim in (("a", "../elsewhere"), ("b", "/nowhere"), ("c", "x" * 4000), ("d", "caf\udce9")):
        os.symlink(aim, pair.one / name)
        assert os.readlink(pair.two / name) == aim
        info = os.lstat(pair.two / name)
        assert stat.S_ISLNK(info.st_mode)
        assert info.st_size == len(os.fsencode(aim))
    fails(errno.EEXIST, os.symlink, "x", pair.two / "a")
    fails(errno.EINVAL, os.readlink, pair.two)


def test_a_symlink_is_followed_and_a_loop_is_noticed(pair: Pair) -> None:
    (pair.one / "f").write_text("through")
    os.symlink("f", pair.one / "s")
    assert (pair.two / "s").read_text() == "through"
    os.symlink("loop", pair.one / "loop")
    fails(errno.ELOOP, os.stat, pair.two / "loop")
    fails(errno.ELOOP, os.open, pair.two / "s", os.O_RDONLY | os.O_NOFOLLOW)


def test_link_gives_an_inode_one_more_name(pair: Pair) -> None:
    (pair.one / "a").write_text("x")
    os.link(pair.one / "a", pair.one / "b")
    assert os.stat(pair.two / "a").st_ino == os.stat(pair.two / "b").st_ino
    assert os.stat(pair.two / "a").st_nlink == 2
    os.unlink(pair.two / "a")
    assert os.stat(pair.one / "b").st_nlink == 1
    assert (pair.one / "b").read_text() == "x"
    fails(errno.EEXIST, os.link, pair.one / "b", pair.one / "b")
    os.mkdir(pair.one / "d")
    fails(errno.EPERM, os.link, pair.one / "d", pair.one / "e")


def test_a_symlink_can_be_linked_itself(pair: Pair) -> None:
    os.symlink("nowhere", pair.one / "s")
    os.link(pair.one / "s", pair.one / "t", follow_symlinks=False)
    assert os.readlink(pair.two / "t") == "nowhere"


# --- removing -------------------------------------------------------------------------------------


def test_unlink(pair: Pair) -> None:
    (pair.one / "f").touch()
    os.unlink(pair.two / "f")
    fails(errno.ENOENT, os.stat, pair.one / "f")
    fails(errno.ENOENT, os.unlink, pair.one / "f")
    os.mkdir(pair.one / "d")
    fails(errno.EISDIR, os.unlink, pair.two / "d")


def test_a_file_unlinked_while_open_stays_readable_and_writable_through_its_handle(pair: Pair) -> None:
    fd = os.open(pair.one / "f", os.O_CREAT | os.O_RDWR)
    try:
        os.write(fd, b"first")
        os.fsync(fd)
        os.unlink(pair.two / "f")
        fails(errno.ENOENT, os.stat, pair.one / "f")
        assert os.pread(fd, 100, 0) == b"first"
        os.pwrite(fd, b" and more", 5)
        os.fsync(fd)
        assert os.pread(fd, 100, 0) == b"first and more"
        info = os.fstat(fd)
        assert (info.st_nlink, info.st_size) == (0, 14)
        (pair.one / "f").write_text("another")
        assert os.pread(fd, 100, 0) == b"first and more"
    finally:
        os.close(fd)
    assert (pair.two / "f").read_text() == "another"


# --- renaming -------------------------------------------------------------------------------------


def test_rename_keeps_the_inode_and_moves_between_directories(pair: Pair) -> None:
    (pair.one / "f").write_text("x")
    os.mkdir(pair.one / "d")
    ino = os.stat(pair.one / "f").st_ino
    os.rename(pair.one / "f", pair.one / "d" / "g")
    assert os.stat(pair.two / "d" / "g").st_ino == ino
    assert names(pair.two) == ["d"]
    fails(errno.ENOENT, os.rename, pair.one / "f", pair.one / "h")


def test_rename_over_a_file_replaces_it_at_once(pair: Pair) -> None:
    (pair.one / "old").write_text("old")
    (pair.one / "new").write_text("new")
    with open(pair.two / "old", encoding="ascii") as held:
        os.rename(pair.one / "new", pair.one / "old")
        assert (pair.two / "old").read_text() == "new"
        assert names(pair.two) == ["old"]
        assert held.read() == "old", "who had the replaced file open still has it"


def test_rename_over_another_name_of_the_same_inode_changes_nothing(pair: Pair) -> None:
    """POSIX rename(): existing links to the same file: return successfully and perform no other action."""
    (pair.one / "a").write_text("x")
    os.link(pair.one / "a", pair.one / "b")
    os.rename(pair.one / "a", pair.one / "b")
    assert names(pair.two) == ["a", "b"]


def test_rename_of_directories(pair: Pair) -> None:
    for path in ("a/x", "b", "c"):
        os.makedirs(pair.one / path)
    (pair.one / "c" / "f").touch()
    fails(errno.ENOTEMPTY, os.rename, pair.one / "a", pair.one / "c")
    os.rename(pair.one / "a", pair.one / "b")
    assert names(pair.two) == ["b", "c"]
    assert names(pair.two / "b") == ["x"]
    assert os.stat(pair.two / "b").st_nlink == 3
    fails(errno.EINVAL, os.rename, pair.one / "b", pair.one / "b" / "x" / "inside")
    fails(errno.ENOTDIR, os.rename, pair.one / "b", pair.one / "c" / "f")
    fails(errno.EISDIR, os.rename, pair.one / "c" / "f", pair.one / "b")


def test_a_moved_directory_has_its_new_parent(pair: Pair) -> None:
    os.makedirs(pair.one / "a" / "x")
    os.mkdir(pair.one / "b")
    os.rename(pair.one / "a" / "x", pair.one / "b" / "x")
    assert os.stat(pair.two / "a").st_nlink == 2
    assert os.stat(pair.two / "b").st_nlink == 3
    assert os.path.samefile(pair.two / "b" / "x" / "..", pair.two / "b")


def test_rename_noreplace_and_exchange(pair: Pair) -> None:
    (pair.one / "a").write_text("A")
    (pair.one / "b").write_text("B")
    fails(errno.EEXIST, renameat2, pair.one / "a", pair.one / "b", RENAME_NOREPLACE)
    renameat2(pair.one / "a", pair.one / "b", RENAME_EXCHANGE)
    assert (pair.two / "a").read_text() == "B"
    assert (pair.two / "b").read_text() == "A"
    renameat2(pair.one / "a", pair.one / "c", RENAME_NOREPLACE)
    assert names(pair.two) == ["b", "c"]
    os.mkdir(pair.one / "d")
    renameat2(pair.one / "b", pair.one / "d", RENAME_EXCHANGE)
    assert (pair.two / "d").read_text() == "A"
    assert (pair.two / "b").is_dir()
    fails(errno.ENOENT, renameat2, pair.one / "b", pair.one / "none", RENAME_EXCHANGE)


# --- listing --------------------------------------------------------------------------------------


def test_readdir_lists_a_large_directory_exactly_once(pair: Pair) -> None:
    wanted = {f"file-{k:04d}" for k in range(1200)}
    for name in wanted:
        os.close(os.open(pair.one / name, os.O_CREAT | os.O_WRONLY))
    found = os.listdir(pair.two)
    assert len(found) == len(wanted)
    assert set(found) == wanted
    with os.scandir(pair.two) as scan:
        assert all(entry.is_file(follow_symlinks=False) for entry in scan)


def test_readdir_while_entries_come_and_go_shows_those_that_stay_once(pair: Pair) -> None:
    stay = {f"stay-{k:03d}" for k in range(300)}
    for name in sorted(stay):
        (pair.one / name).touch()
        (pair.one / f"go-{name}").touch()
    seen = []
    with os.scandir(pair.two) as scan:
        for k, entry in enumerate(scan):
            seen.append(entry.name)
            if k % 3 == 0 and k < 900:
                gone = pair.one / f"go-stay-{k // 3:03d}"
                gone.unlink(missing_ok=True)
                (pair.one / f"new-{k}").touch()
    assert len([name for name in seen if name in stay]) == len(stay)
    assert stay <= set(seen)
    assert len(seen) == len(set(seen))


def test_names_need_not_be_text(pair: Pair) -> None:
    name = b"\xff\xfe caf\xe9\n"
    os.close(os.open(os.fsencode(pair.one) + b"/" + name, os.O_CREAT | os.O_WRONLY))
    assert os.listdir(os.fsencode(pair.two)) == [name]


# --- errors of names ------------------------------------------------------------------------------


def test_a_name_of_255_bytes_is_allowed_and_one_of_256_is_not(pair: Pair) -> None:
    (pair.one / ("n" * 255)).touch()
    assert names(pair.two) == ["n" * 255]
    long = pair.one / ("n" * 256)
    (pair.one / "f").touch()
    fails(errno.ENAMETOOLONG, os.open, long, os.O_CREAT | os.O_WRONLY)
    fails(errno.ENAMETOOLONG, os.stat, long)
    fails(errno.ENAMETOOLONG, os.mkdir, long)
    fails(errno.ENAMETOOLONG, os.symlink, "x", long)
    fails(errno.ENAMETOOLONG, os.link, pair.one / "f", long)
    fails(errno.ENAMETOOLONG, os.rename, pair.one / "f", long)
    fails(errno.ENAMETOOLONG, os.unlink, long)
    fails(errno.ENAMETOOLONG, os.rmdir, long)


def test_a_missing_parent_and_a_parent_that_is_a_file(pair: Pair) -> None:
    (pair.one / "f").touch()
    for parent, number in ((pair.two / "none", errno.ENOENT), (pair.two / "f", errno.ENOTDIR)):
        fails(number, os.open, parent / "x", os.O_CREAT | os.O_WRONLY)
        fails(number, os.mkdir, parent / "x")
        fails(number, os.symlink, "y", parent / "x")
        fails(number, os.link, pair.two / "f", parent / "x")
        fails(number, os.rename, pair.two / "f", parent / "x")
        fails(number, os.stat, parent / "x")
        fails(number, os.unlink, parent / "x")
    fails(errno.ENOTDIR, os.listdir, pair.two / "f")
    fails(errno.EISDIR, os.open, pair.two, os.O_WRONLY)


# --- attributes -----------------------------------------------------------------------------------


def test_chmod_chown_and_utime(pair: Pair) -> None:
    (pair.one / "f").touch()
    os.chmod(pair.one / "f", 0o4711)
    assert stat.S_IMODE(os.stat(pair.two / "f").st_mode) == 0o4711
    os.utime(pair.one / "f", ns=(1_234_567_890, 2_000_000_000_123_456_789))
    info = os.stat(pair.two / "f")
    assert (info.st_atime_ns, info.st_mtime_ns) == (1_234_567_890, 2_000_000_000_123_456_789)
    if os.geteuid() == 0:
        os.chown(pair.one / "f", 1234, 5678)
        info = os.stat(pair.two / "f")
        assert (info.st_uid, info.st_gid) == (1234, 5678)
    os.symlink("f", pair.one / "s")
    os.utime(pair.one / "s", ns=(7, 8), follow_symlinks=False)
    assert os.lstat(pair.two / "s").st_mtime_ns == 8


def test_ctime_moves_with_every_change_of_the_inode(pair: Pair) -> None:
    (pair.one / "f").touch()
    last = os.stat(pair.two / "f").st_ctime_ns
    changes: list[Callable[[], object]] = [
        lambda: os.chmod(pair.one / "f", 0o600),
        lambda: os.utime(pair.one / "f"),
        lambda: os.link(pair.one / "f", pair.one / "g"),
        lambda: os.rename(pair.one / "f", pair.one / "h"),
        lambda: os.unlink(pair.one / "g"),
        lambda: os.truncate(pair.one / "h", 5),
        lambda: os.setxattr(pair.one / "h", "user.x", b"1"),
    ]
    for number, change in enumerate(changes):
        change()
        path = pair.two / ("f" if number < 3 else "h")
        now = os.stat(path).st_ctime_ns
        assert now > last, f"change {number} did not move ctime"
        last = now


def test_xattrs(pair: Pair) -> None:
    f, g = pair.one / "f", pair.two / "f"
    f.touch()
    assert os.listxattr(g) == []
    os.setxattr(f, "user.colour", b"blue\0green")
    os.setxattr(f, "user.empty", b"")
    os.setxattr(f, "user.large", bytes(60_000))
    assert sorted(os.listxattr(g)) == ["user.colour", "user.empty", "user.large"]
    assert os.getxattr(g, "user.colour") == b"blue\0green"
    assert os.getxattr(g, "user.empty") == b""
    assert len(os.getxattr(g, "user.large")) == 60_000
    fails(errno.EEXIST, os.setxattr, g, "user.colour", b"x", os.XATTR_CREATE)
    fails(errno.ENODATA, os.setxattr, g, "user.none", b"x", os.XATTR_REPLACE)
    os.setxattr(g, "user.colour", b"red", os.XATTR_REPLACE)
    assert os.getxattr(f, "user.colour") == b"red"
    os.removexattr(g, "user.colour")
    fails(errno.ENODATA, os.getxattr, f, "user.colour")
    fails(errno.ENODATA, os.removexattr, f, "user.colour")


def test_statfs_counts_space_and_names_the_longest_name(cluster: Live, pair: Pair) -> None:
    found = os.statvfs(pair.two)
    assert found.f_namemax == 255
    assert 0 < found.f_bavail <= found.f_blocks


def as_user(uid: int, directory: Path, call: Callable[[], object]) -> None:
    """Run *call* as user *uid* with *directory* as its working directory; an exception there fails the test here."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.chdir(directory)  # before the change of user, who may not be let through the directories above
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            call()
            code = 0
        except BaseException:  # noqa: BLE001 - whatever it is, the parent shows it
            os.write(writer, traceback.format_exc().encode()[-4000:])
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        told = pipe.read().decode()
    _, status = os.waitpid(pid, 0)
    assert status == 0, told


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_permissions_hold_for_another_user(cluster: Live) -> None:
    """Needs a mount that lets others in; what they may do there is decided by each inode's owner and mode."""
    top = cluster.mount("others", 3, ("allow_other",))
    try:
        for name, mode in (("secret", 0o700), ("shared", 0o1777)):
            (top / name).mkdir()
            os.chmod(top / name, mode)
            (top / name / "f").write_text("x")
        os.chmod(top / "shared" / "f", 0o644)

        def try_it() -> None:
            fails(errno.EACCES, os.listdir, "secret")
            fails(errno.EACCES, os.stat, "secret/f")
            fails(errno.EACCES, os.open, "secret/new", os.O_CREAT | os.O_WRONLY)
            fails(errno.EACCES, os.open, "shared/f", os.O_WRONLY)
            fails(errno.EPERM, os.chmod, "shared/f", 0o777)
            fails(errno.EPERM, os.chown, "shared/f", 1234, -1)
            assert Path("shared/f").read_text() == "x"
            assert os.access("shared/f", os.R_OK)
            assert not os.access("shared/f", os.W_OK)
            # The sticky bit: only the owner of the file or of the directory may remove or rename it.
            for call in (os.unlink, lambda path: os.rename(path, f"{path}2")):
                with pytest.raises(PermissionError):
                    call("shared/f")
            Path("shared/mine").write_text("y")
            assert os.stat("shared/mine").st_uid == 1234
            os.unlink("shared/mine")

        as_user(1234, top, try_it)
    finally:
        cluster.unmount("others")

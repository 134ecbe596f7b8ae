"""admin.mounts, admin.mount_helper: what needs no mount; the rest is in tests/fuse and tests/faults."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from admin import mount_helper, mounts
from admin.mount_helper import Arguments, UsageError
from client.options import parse as parse_options
from daemon.config import ClientConfig, ClusterConfig, Config, ReplicaConfig

MOUNTINFO = """\
22 27 0:21 / /proc rw,nosuid shared:12 - proc proc rw
27 1 259:1 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p1 rw
900 27 0:77 / /mnt/with\\040blank\\011tab rw,nosuid shared:400 master:7 - fuse.lockstep lockstep rw,user_id=0
901 27 0:78 / /mnt/plain rw - fuse lockstep rw
"""


def test_mountinfo_is_read_with_its_escapes_and_optional_fields() -> None:
    assert mounts.parse_mountinfo(MOUNTINFO) == [
        (Path("/proc"), "proc"),
        (Path("/"), "ext4"),
        (Path("/mnt/with blank\ttab"), "fuse.lockstep"),
        (Path("/mnt/plain"), "fuse"),
    ]


def test_the_kernels_own_table_is_read() -> None:
    assert (Path("/proc"), "proc") in mounts.mounted_paths()


def test_a_mountpoint_is_resolved_without_being_touched(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert mounts.resolved(tmp_path / "link" / "m") == tmp_path.resolve() / "real" / "m"
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        assert mounts.resolved(Path("m")) == tmp_path.resolve() / "m"
        assert mounts.resolved(Path(".")) == tmp_path.resolve()
    finally:
        os.chdir(before)


def test_what_cannot_be_mounted_at_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name in ("file", "none"):
        assert mounts.refusal(tmp_path / name) == f"{tmp_path / name} is not a directory"
    with pytest.raises(mounts.MountError, match="is not mounted"):
        mounts.unmount(tmp_path)


def config_in(directory: Path) -> Config:
    return Config(
        path=directory / "lockstep.toml",
        cluster=ClusterConfig("x", bytes(range(16))),
        replicas=(ReplicaConfig(1, "127.0.0.1:1", directory / "m"),),
        targets=(),
    )


def test_a_local_clusters_mounts_log_beside_its_daemons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_in(tmp_path)
    (tmp_path / "log").mkdir()
    assert mounts.default_log_file(config, Path("/mnt/a")) == tmp_path / "log" / "mount-mnt-a.log"
    (tmp_path / "log").rmdir()
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert mounts.default_log_file(config, Path("/mnt/a")) == Path("/state/lockstep/mount-mnt-a.log")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert mounts.default_log_file(config, Path("/mnt/a")) == Path("/var/log/lockstep/mount-mnt-a.log")


def test_the_mounts_process_can_be_found_again_by_its_arguments(tmp_path: Path) -> None:
    argv = mounts.foreground_command(config_in(tmp_path), tmp_path / "mnt", ["ro", "soft"], 2, "debug", 9)
    tail = argv[argv.index("-m") :]
    assert tail == [
        "-m", "admin", "mount", "--foreground", "--ready-fd", "9", "--log-level", "debug", "--replica", "2",
        "-o", "ro,soft", str(tmp_path / "lockstep.toml"), str(tmp_path.resolve() / "mnt"),
    ]  # fmt: skip


def test_the_configuration_decides_about_hard_and_soft_unless_the_mount_does(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    assert mounts.options_of(config, ("ro,noatime", "")) == ["ro", "noatime"]
    soft = replace(config, client=ClientConfig(soft=True, timeout_ms=2500))
    assert mounts.options_of(soft, ("ro",)) == ["soft", "timeo=25", "ro"]
    assert parse_options(mounts.options_of(soft, ())).soft_after == 2.5
    assert parse_options(mounts.options_of(soft, ("hard",))).soft_after is None


# --- mount.lockstep -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "asked"),
    [
        (["c.toml", "/mnt"], Arguments(Path("c.toml"), Path("/mnt"))),
        (["c.toml", "/mnt", "-o", "rw"], Arguments(Path("c.toml"), Path("/mnt"), ("rw",))),
        (["c", "/m", "-sn", "-v", "-o", "soft,timeo=50"], Arguments(Path("c"), Path("/m"), ("soft", "timeo=50"))),
        (["c:/a/b/", "/m", "-o", "ro"], Arguments(Path("c"), Path("/m"), ("ro", "subdir=a/b"))),
        (["/:/a", "/m"], Arguments(Path("/"), Path("/m"), ("subdir=a",))),
        (["-o", "ro", "c", "/m", "-t", "lockstep"], Arguments(Path("c"), Path("/m"), ("ro",))),
        (["c", "/m", "-f"], Arguments(Path("c"), Path("/m"), fake=True)),
        (["c", "/m", "-r"], Arguments(Path("c"), Path("/m"), ("ro",))),
    ],
)
def test_arguments_as_mount_gives_them(argv: list[str], asked: Arguments) -> None:
    assert mount_helper.parse(argv) == asked


@pytest.mark.parametrize(
    "argv", [[], ["c"], ["c", "/m", "x"], ["c", "/m", "-o"], ["c", "/m", "-Z"], ["c", "/m", "-o", "remount"],
             ["c", "/m", "-N", "ns"]],
)  # fmt: skip
def test_arguments_that_mount_never_gives(argv: list[str]) -> None:
    with pytest.raises(UsageError):
        mount_helper.parse(argv)

"""Access control lists through the kernel, with the system's own tools."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.fuse.conftest import Pair
from tests.fuse.test_namespace import as_user, fails
from tests.live import Live

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root acts as others"),
    pytest.mark.skipif(shutil.which("setfacl") is None, reason="the package acl is not installed"),
]


def run(*args: str | Path) -> str:
    return subprocess.run(args, capture_output=True, text=True, timeout=60, check=True).stdout


def opens(name: str, flags: int) -> None:
    os.close(os.open(name, flags))


@pytest.mark.parametrize("options", ["allow_other", "allow_other,default_permissions"])
def test_a_named_user_gets_in_and_out_again(cluster: Live, pair: Pair, options: str) -> None:
    """The second time with a kernel that checks as well."""
    (pair.one / "f").write_bytes(b"x")
    os.chmod(pair.one / "f", 0o600)
    os.chmod(cluster.run.directory, 0o711)
    name = f"acl-{len(options)}"
    top = cluster.mount(name, 3, (options,)) / pair.one.name
    try:
        as_user(1234, top, lambda: fails(errno.EACCES, os.open, "f", os.O_RDONLY))
        run("setfacl", "-m", "u:1234:r", pair.one / "f")
        assert "user:1234:r--" in run("getfacl", "-cnp", pair.two / "f").splitlines()
        as_user(1234, top, lambda: opens("f", os.O_RDONLY))
        as_user(1234, top, lambda: fails(errno.EACCES, os.open, "f", os.O_RDWR))
        run("setfacl", "-b", pair.one / "f")
        as_user(1234, top, lambda: fails(errno.EACCES, os.open, "f", os.O_RDONLY))
    finally:
        cluster.unmount(name)


def test_default_acls_are_inherited_and_a_copy_keeps_them(pair: Pair) -> None:
    (pair.one / "d").mkdir()
    run("setfacl", "-d", "-m", "u:1234:rwx,g::rx,o::-", pair.one / "d")
    (pair.two / "d" / "below").mkdir()
    (pair.two / "d" / "below" / "f").write_bytes(b"x")
    found = run("getfacl", "-cnp", pair.one / "d" / "below" / "f").splitlines()
    assert "user:1234:rwx\t#effective:r--" in [line.replace("\t\t", "\t") for line in found], found
    assert "other::---" in found
    run("cp", "-a", pair.one / "d", pair.one / "e")
    for name in ("", "below", "below/f"):
        assert run("getfacl", "-cnp", pair.one / "d" / name) == run("getfacl", "-cnp", pair.two / "e" / name)

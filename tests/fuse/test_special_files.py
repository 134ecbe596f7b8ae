"""FIFOs, sockets and devices: names here, opened by the kernel, which asks the file system nothing when it does."""

from __future__ import annotations

import errno
import os
import socket
import stat

import pytest

from tests.fuse.conftest import Pair
from tests.fuse.test_namespace import as_user, fails
from tests.live import Live

pytestmark = pytest.mark.system
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes devices and acts as others")


@as_root
def test_a_device_keeps_its_number_and_opens_only_with_dev(cluster: Live, pair: Pair) -> None:
    for name, kind, number in (("null", stat.S_IFCHR, (1, 3)), ("disk", stat.S_IFBLK, (4000, 1_000_000))):
        os.mknod(pair.one / name, 0o666 | kind, os.makedev(*number))
        found = os.stat(pair.two / name)
        assert stat.S_IFMT(found.st_mode) == kind
        assert (os.major(found.st_rdev), os.minor(found.st_rdev)) == number
    fails(errno.EACCES, os.open, pair.one / "null", os.O_RDWR)
    top = cluster.mount("dev", 3, ("dev,allow_other",))
    try:
        there = top / pair.one.name / "null"
        with open(there, "r+b", buffering=0) as null:
            assert null.write(b"gone") == 4
            assert null.read(1) == b""
        os.chmod(pair.one / "null", 0o600)
        os.chmod(cluster.run.directory, 0o711)
        as_user(1234, top / pair.one.name, lambda: fails(errno.EACCES, os.open, "null", os.O_RDWR))
    finally:
        cluster.unmount("dev")


@as_root
def test_default_permissions_guards_a_fifo(cluster: Live, pair: Pair) -> None:
    os.mkfifo(pair.one / "p", 0o600)
    top = cluster.mount("checked", 3, ("default_permissions,allow_other",))
    try:
        as_user(1234, top / pair.one.name, lambda: fails(errno.EACCES, os.open, "p", os.O_RDONLY | os.O_NONBLOCK))
        os.chmod(pair.one / "p", 0o644)
        as_user(1234, top / pair.one.name, lambda: os.close(os.open("p", os.O_RDONLY | os.O_NONBLOCK)))
    finally:
        cluster.unmount("checked")


def test_a_fifo_carries_bytes_and_a_socket_connects_on_one_node(pair: Pair) -> None:
    os.mkfifo(pair.one / "p")
    reader = os.open(pair.one / "p", os.O_RDONLY | os.O_NONBLOCK)
    try:
        writer = os.open(pair.one / "p", os.O_WRONLY | os.O_NONBLOCK)
        try:
            assert os.write(writer, b"through") == 7
            assert os.read(reader, 100) == b"through"
        finally:
            os.close(writer)
    finally:
        os.close(reader)
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as caller:
        here = os.open(pair.one, os.O_PATH)  # the path may be longer than an address
        try:
            listener.bind(f"/proc/self/fd/{here}/s")
            listener.listen()
            assert stat.S_ISSOCK(os.stat(pair.two / "s").st_mode)
            caller.connect(f"/proc/self/fd/{here}/s")
        finally:
            os.close(here)
    os.unlink(pair.two / "s")

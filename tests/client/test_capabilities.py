"""Capabilities as a client lives with them: renewed in time, when refused, when the mode has changed meanwhile."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest
import trio
import trio.testing

from client import capabilities, limits
from client.api import FileSystem, open_file_system
from client.capabilities import LIFETIME_S, Held
from client.options import MountOptions
from ossd.capabilities import Keys
from tests.client.one_replica import Cluster, one_replica
from tests.client.test_service import opened
from wire import ops
from wire.capability import DRIFT_US, LIFETIME_US, READ, TRUNCATE, WRITE, parse_untrusted, sign
from wire.codec import unpack_untrusted
from wire.errors import FileSystemError
from wire.fileops import Renew
from wire.inline import GrowOut
from wire.messages import StatusCall

ALICE = ops.Cred(1001, 1001, (1001,))
BOB = ops.Cred(1002, 1002, (1002,))
LONG_AGO_NS = (LIFETIME_US + DRIFT_US + 1_000_000) * 1000


def signs_expired(cluster: Cluster) -> None:
    """From now on the replica gives capabilities that have expired."""
    cluster.replica.signer._clock_ns = lambda: time.time_ns() - LONG_AGO_NS


def signs_well(cluster: Cluster) -> None:
    cluster.replica.signer._clock_ns = time.time_ns


async def refused(fs: FileSystem) -> int:
    """How many requests the targets have refused for their capability."""
    assert fs.volume._targets is not None
    await fs.statfs()  # links to all of them are made
    count = 0
    for link in fs.volume._targets._links.values():
        answer, _ = await link.call(StatusCall)
        count += unpack_untrusted(answer.body)["refused"]
    return count


async def test_an_expired_one_is_renewed_and_nobody_notices(tmp_path: Path) -> None:
    async with opened(tmp_path, inline=0) as (cluster, fs):
        signs_expired(cluster)
        async with await fs.create("/f") as file:
            signs_well(cluster)
            await file.write(b"x" * 300_000)
            await file.fsync()
            assert await refused(fs) > 0
        signs_expired(cluster)
        file = await fs.open("/f")
        signs_well(cluster)
        assert bytes(await file.read(300_000, 0)) == b"x" * 300_000
        await file.close()


async def test_a_truncation_by_name_has_its_own(tmp_path: Path) -> None:
    async with opened(tmp_path, inline=0) as (_, fs):
        await fs.write_file("/f", b"0123456789")
        await fs.truncate("/f", 4)
        await fs.truncate("/f", 8)
        assert await fs.read_file("/f") == b"0123\0\0\0\0"
        assert await refused(fs) == 0


async def test_keys_rotate_under_an_open_file(tmp_path: Path) -> None:
    """More often than targets remember keys: the last rotations find nobody who knows the key of the old one, and
    permission is asked for anew."""
    async with opened(tmp_path, inline=0) as (cluster, fs):
        async with await fs.create("/f") as file:
            for turn in range(8):
                await file.write(b"%d" % turn * 1000, turn * 1000)
                await file.fsync()
                cluster.replica.rotate_keys()
                if turn == 4:
                    for _ in range(4):
                        cluster.replica.rotate_keys()
        assert await fs.read_file("/f") == b"".join(b"%d" % turn * 1000 for turn in range(8))


async def test_an_open_file_keeps_its_rights(tmp_path: Path) -> None:
    """POSIX asks for permission at open(2): a chmod afterwards takes nothing from who has the file open."""
    async with opened(tmp_path, inline=0) as (cluster, fs):
        await fs.chmod("/", 0o777)
        volume = fs.volume
        signs_expired(cluster)
        handle, attr = await volume.create(ALICE, 1, b"f", 0o600, os.O_RDWR)
        await fs.chmod("/f", 0)
        signs_well(cluster)
        assert await volume.write(handle, 0, b"mine") == 4
        await volume.fsync(handle)
        assert bytes(await volume.read(handle, 0, 10)) == b"mine"
        for cred, rights in ((ALICE, READ), (ALICE, WRITE), (BOB, TRUNCATE)):
            with pytest.raises(FileSystemError) as caught:
                await volume.service.query(Renew(cred, attr.ino, rights, b""))
            assert caught.value.status == errno.EACCES, "who has none must have permission now"
        await volume.close_file(handle)


async def test_who_asks_for_what_has_happened_is_given_nothing(tmp_path: Path) -> None:
    """Of a file that is in objects GrowOut gives no capability: what it needs was shown already."""
    async with opened(tmp_path) as (_, fs):
        await fs.write_file("/large", bytes(4097))
        await fs.write_file("/empty", b"")
        for path in ("/large", "/empty"):
            async with await fs.open(path, os.O_WRONLY) as file:
                shown = file._handle.data.held.latest(WRITE)
                (number, _), granted = await fs.volume.service.request_granting(GrowOut(file.ino), shown)
                assert (number, granted) == (0, b""), path


async def test_a_small_file_outlives_the_keys_that_its_rights_were_signed_with(tmp_path: Path) -> None:
    """All keys are forgotten (lockstep target rotate-keys --forget): permission is asked for anew, with each of what is
    asked about the data, and nobody notices."""
    async with opened(tmp_path) as (cluster, fs):

        def forget() -> None:
            for _ in range(4):
                cluster.replica.rotate_keys()

        async with await fs.open("/f", os.O_RDWR | os.O_CREAT) as file:
            await file.write(b"0123456789")
            forget()
            await file.flush()
            assert cluster.replica.rights.refused == 1
            forget()
            assert bytes(await fs.volume.read(file._handle, 0, 10)) == b"0123456789"
            forget()
            await file.truncate(8)
            forget()
            await file.write(b"end", 5000)
            await file.flush()
        async with await fs.open("/f", os.O_WRONLY | os.O_APPEND) as file:
            forget()
            await file.write(b"!")
        assert await fs.read_file("/f") == b"01234567" + bytes(4992) + b"end!"


async def test_a_file_open_for_writing_is_cut_off_whatever_its_mode_is(tmp_path: Path) -> None:
    """ftruncate(2) asks for a descriptor that is open for writing, and for nothing else."""
    async with opened(tmp_path) as (_, fs):
        await fs.chmod("/", 0o777)
        for name, size in ((b"small", 10), (b"large", 9000)):
            handle, attr = await fs.volume.create(ALICE, 1, name, 0o600, os.O_RDWR)
            await fs.volume.write(handle, 0, b"x" * size)
            await fs.volume.flush(handle)
            await fs.chmod("/" + name.decode(), 0)
            cut = ops.SetAttr(ALICE, attr.ino, ops.SET_SIZE, 0, 0, 0, 5, 0, 0, True)
            assert (await fs.volume.setattr(cut)).size == 5
            assert bytes(await fs.volume.read(handle, 0, 10)) == b"xxxxx"
            with pytest.raises(FileSystemError) as caught:
                await fs.volume.service.request(cut)
            assert caught.value.status == errno.EACCES, "who shows nothing may as much as the mode says"
            await fs.volume.close_file(handle)


@pytest.mark.parametrize("inline", [0, 4096])
async def test_who_may_write_no_more_is_no_hindrance_to_reading_and_syncing(tmp_path: Path, inline: int) -> None:
    """Opened to read and write, when its mode gave both; then the keys are forgotten."""
    async with opened(tmp_path, inline=inline) as (cluster, fs):
        await fs.chmod("/", 0o777)
        handle, _ = await fs.volume.create(ALICE, 1, b"f", 0o600, os.O_RDWR)
        await fs.volume.write(handle, 0, b"bytes")
        await fs.volume.flush(handle)
        await fs.chmod("/f", 0o444)
        reading = await fs.volume.open(ALICE, handle.data.ino, os.O_RDONLY)
        for _ in range(8):
            cluster.replica.rotate_keys()
        if inline:
            handle.data._forget()
        assert bytes(await fs.volume.read(reading, 0, 10)) == b"bytes"
        await fs.volume.fsync(reading)
        await fs.volume.close_file(reading)
        await fs.volume.close_file(handle)


async def test_a_descriptor_of_somebody_else_is_cut_off_after_the_keys_are_forgotten(tmp_path: Path) -> None:
    """A daemon opens its log as root and goes on as somebody else."""
    async with opened(tmp_path) as (cluster, fs):
        for name, size in ((b"small", 10), (b"large", 9000)):
            handle, attr = await fs.volume.create(ops.Cred(0, 0, ()), 1, name, 0o600, os.O_RDWR)
            await fs.volume.write(handle, 0, b"x" * size)
            await fs.volume.flush(handle)
            for _ in range(8):
                cluster.replica.rotate_keys()
            cut = ops.SetAttr(BOB, attr.ino, ops.SET_SIZE, 0, 0, 0, 5, 0, 0, True)
            assert (await fs.volume.setattr(cut)).size == 5
            await fs.volume.close_file(handle)


async def test_a_small_file_made_before_there_was_a_target(tmp_path: Path) -> None:
    """It has no layout, and its capability is good for the service alone. When it gets one another is asked for."""
    async with (
        one_replica(tmp_path, 1, start_targets=False) as cluster,
        open_file_system(cluster.config, options=MountOptions()) as fs,
    ):
        async with await fs.open("/f", os.O_RDWR | os.O_CREAT) as file:
            await file.write(b"small")
            await file.flush()
            await cluster.start_target(1)
            await file.write(b"end", 5000)
            await file.fsync()
        assert await fs.read_file("/f") == b"small" + bytes(4995) + b"end"
        assert cluster.replica.rights.refused == 0


async def test_what_is_not_renewed(tmp_path: Path) -> None:
    async with opened(tmp_path, inline=0) as (cluster, fs):
        volume, replica = fs.volume, cluster.replica
        await fs.chmod("/", 0o777)
        handle, attr = await volume.create(ALICE, 1, b"f", 0o600, os.O_RDWR)
        token = handle.data.held.latest(WRITE)
        cap = parse_untrusted(token)
        assert cap is not None
        uuid, session = volume.service.uuid, cap.session
        renewal = Renew(ALICE, attr.ino, WRITE, token)
        assert replica.signer.renewable(uuid, session, renewal, True)
        assert not replica.signer.renewable(uuid, session, renewal, False), "it is not open any more"
        assert not replica.signer.renewable(uuid, session + 1, renewal, True), "another session: that one has expired"
        assert not replica.signer.renewable(bytes(16), session, renewal, True), "another client"
        assert not replica.signer.renewable(uuid, session, Renew(ALICE, attr.ino + 1, WRITE, token), True)
        more = sign(b"x" * 32, uuid, cap.rights, cap.ino, session, cap.expires_us, cap.chains)
        assert not replica.signer.renewable(uuid, session, Renew(ALICE, attr.ino, WRITE, more), True), "forged"
        await volume.close_file(handle)


async def test_a_target_with_another_clock_is_an_error_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(limits, "FRESH_REFUSED_S", 0.2)
    async with opened(tmp_path, inline=0) as (cluster, fs):
        await fs.write_file("/f", b"data")
        signs_expired(cluster)
        file = await fs.open("/f", os.O_RDWR)
        await file.write(b"x", 4)
        with pytest.raises(PermissionError):
            await file.fsync()
        with pytest.raises(PermissionError):
            await file.read(1, 0)
        assert "do the clocks differ?" in caplog.text
        await fs.volume.close_file(file._handle)


async def test_a_new_cluster_has_no_key_yet(tmp_path: Path) -> None:
    async with opened(tmp_path, inline=0) as (cluster, fs):
        machine = cluster.replica.machine
        known, machine.keys = machine.keys, machine.keys._replace(keys=())
        file = await fs.create("/f")
        assert file._handle.data.held.latest(WRITE) == b""
        await file.write(b"x")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(file.fsync)
            await trio.testing.wait_all_tasks_blocked(0.005)
            machine.keys = known
        await file.close()
        assert await fs.read_file("/f") == b"x"


async def test_a_small_file_grows_out_to_a_target_that_is_yet_to_hear_of_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that was just started again. The capability for the new objects cannot be renewed: it is shown again."""
    async with opened(tmp_path) as (cluster, fs):
        await fs.write_file("/f", b"small")
        learn = Keys.learn
        monkeypatch.setattr(Keys, "learn", lambda self, keys: None)
        for _ in range(3):
            cluster.replica.rotate_keys()
        async with await fs.open("/f", os.O_RDWR) as file, trio.open_nursery() as nursery:
            nursery.start_soon(file.write, b"end", 4096)
            while not await refused(fs):
                await trio.testing.wait_all_tasks_blocked(0.001)
            monkeypatch.setattr(Keys, "learn", learn)
        assert await fs.read_file("/f") == b"small" + bytes(4091) + b"end"


async def test_a_small_file_grows_out_anew_when_the_capability_for_that_has_expired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when no target was there for longer than that lives."""
    async with opened(tmp_path) as (cluster, fs):
        await fs.write_file("/f", b"small")
        async with await fs.open("/f", os.O_RDWR) as file:
            before = cluster.replica.executed
            async with trio.open_nursery() as nursery:
                with monkeypatch.context() as patch:
                    patch.setattr(capabilities, "LIFETIME_S", 0.0)
                    nursery.start_soon(file.write, b"end", 4096)
                    while cluster.replica.executed < before + 2:
                        await trio.testing.wait_all_tasks_blocked(0.001)
        assert await fs.read_file("/f") == b"small" + bytes(4091) + b"end"


# --- what a mount holds ---------------------------------------------------------------------------


def test_who_cuts_it_off_by_name_is_asked_for_not_who_has_it_open() -> None:
    held = Held(5)
    held.take(sign(b"k" * 32, bytes(16), READ, 5, 1, 0, (1,)), BOB, 0.0)
    held.truncated_by(ALICE)
    assert (held.cred(READ), held.cred(TRUNCATE)) == (BOB, ALICE)
    held.take(sign(b"k" * 32, bytes(16), TRUNCATE, 5, 1, 0, (1,)), ALICE, 0.0)
    held.truncated_by(BOB)
    assert held.cred(TRUNCATE) == ALICE, "what there is will do"


def test_held() -> None:
    held = Held(5)
    token = sign(b"k" * 32, bytes(16), READ | WRITE | TRUNCATE, 5, 1, 0, (1,))
    only_read = sign(b"k" * 32, bytes(16), READ, 5, 1, 0, (1,))
    assert held.at_hand(READ, 0.0) == b"" and held.due(1e9) == []
    held.take(token, ALICE, 0.0)
    held.take(only_read, BOB, 100.0)
    assert held.at_hand(READ, 100.0) == only_read and held.at_hand(WRITE, 100.0) == token
    assert (held.cred(READ), held.cred(WRITE)) == (BOB, ALICE)
    assert held.at_hand(WRITE, LIFETIME_S) == b"" and held.latest(WRITE) == token
    assert held.due(LIFETIME_S / 2 - 1) == []
    held.take(sign(b"k" * 32, bytes(16), WRITE, 5, 1, 0, (), 5), BOB, 100.0)
    assert held.at_hand(WRITE, 100.0) == b"" and held.latest(WRITE), "no target would take it"
    held.take(token, ALICE, 0.0)
    held.take(only_read, BOB, 100.0)
    assert len(held.due(LIFETIME_S / 2)) == 1 and len(held.due(LIFETIME_S)) == 2, "each once"

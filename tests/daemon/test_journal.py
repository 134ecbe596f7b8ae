"""daemon.journal: what was reported done is there after any crash, and what cannot be trusted is refused."""

from __future__ import annotations

import errno
import os
import queue
import shutil
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest

from daemon import journal as module
from daemon.acquaintances import Acquaintances
from daemon.journal import BATCH, HEADER, POISON, Journal, JournalCorrupt, JournalFailed
from vsync.limits import VIEWS_KEPT
from vsync.records import (
    AcceptedValue,
    Decided,
    Durable,
    Entry,
    Flushed,
    Met,
    Promised,
    Record,
    RegisterState,
    Reset,
    Sealed,
    Started,
)
from vsync.register import REGISTERS_KEPT
from vsync.view import NO_HASH, Position, genesis
from wire.codec import pack, unpack_untrusted
from wire.group import View

CLUSTER = b"c" * 16
FIRST: list[Record] = [Decided(genesis((1, 2, 3), (101,))), Flushed(0)]
SMALL = 4096
ANSWER_S = 30.0
"""A thread that has not answered by then never will."""


def view(epoch: int, base: int, cut: tuple[tuple[int, int], ...] = ()) -> View:
    return View(epoch, (1, 2), (1, 2, 3, 101), base, cut, 120)


def entry(seq: int, epoch: int = 0, sender: int = 1, payload: bytes = b"payload") -> Entry:
    return Entry(epoch, sender, seq, 10 * seq, payload)


EVERY_KIND: list[Record] = [
    entry(1), Sealed(3), Decided(view(1, 0, ((1, 1),))), Flushed(1), Promised(2, (1, 2, 3)),
    AcceptedValue(2, (4, 1, 9), view(2, 1)), Met(2, b"u" * 16), Reset(0), entry(1, epoch=2, payload=b""),
    entry(2, epoch=2, sender=255, payload=bytes(range(256))), Promised(2, (5, 1, 9)), Started(7),
]  # fmt: skip


class Opened:
    """A journal with its thread running; :meth:`write` returns when its records are reported done."""

    def __init__(self, directory: Path, voter: int = 1, first: list[Record] = FIRST, cluster: bytes = CLUSTER) -> None:
        self.journal = Journal(directory, cluster, voter, first)
        self.done: queue.Queue[int | JournalFailed] = queue.Queue()
        self.journal.start(self.done.put, self.done.put)
        self.ticket = 0

    def write(self, *records: Record, now: bool = False) -> None:
        """One batch, through the thread or (*now*, if the journal is willing) without it."""
        self.ticket += 1
        if now and self.journal.append_now(self.ticket, list(records)):
            return
        if not now:
            self.journal.append(self.ticket, list(records))
        assert self.done.get(timeout=ANSWER_S) == self.ticket

    def trim(self, position: Position) -> None:
        """Trim, and wait until it has happened."""
        self.journal.trim(position)
        self.write(Sealed(0))


@contextmanager
def opened(directory: Path, voter: int = 1) -> Iterator[Opened]:
    made = Opened(directory, voter)
    try:
        yield made
    finally:
        made.journal.close()


def found(directory: Path) -> Durable:
    """What a start finds. The journal is closed again."""
    with opened(directory) as again:
        return again.journal.durable


def segments(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.journal"))


def batches(path: Path) -> list[tuple[int, int]]:
    """(first byte, first byte after it) of each batch in a segment."""
    data = path.read_bytes()
    at = HEADER.size
    places = []
    while at + BATCH.size <= len(data) and BATCH.unpack_from(data, at)[0] == module.BATCH_MAGIC:
        end: int = at + BATCH.size + BATCH.unpack_from(data, at)[1]
        places.append((at, end))
        at = end
    return places


def as_applied(*records: Record) -> Durable:
    durable = Durable()
    for record in [*FIRST, *records]:
        durable.apply(record)
    return durable


@pytest.fixture(autouse=True)
def _small_and_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small segments; and nothing here cuts the power, so nothing has to wait for the disk."""
    monkeypatch.setattr(module, "SEGMENT_BYTES", SMALL)
    monkeypatch.setattr(os, "O_DSYNC", 0)
    monkeypatch.setattr(os, "fsync", lambda fd: None)


# -- what goes in comes out


def test_every_kind_of_record_comes_back(tmp_path: Path) -> None:
    for record in EVERY_KIND:
        packed = pack(module._encode(record))
        again = module._decode_untrusted(unpack_untrusted(packed))
        assert again == record and type(again) is type(record)


@pytest.mark.parametrize("together", [True, False])
def test_a_start_finds_what_was_written(tmp_path: Path, together: bool) -> None:
    with opened(tmp_path) as first:
        if together:
            first.write(*EVERY_KIND)
        else:
            for record in EVERY_KIND:
                first.write(record)
    expected = as_applied(*EVERY_KIND)
    got = found(tmp_path)
    expected.incarnation += 1
    assert got == expected
    assert got.registers[2] == RegisterState((5, 1, 9), (4, 1, 9), view(2, 1))


def test_a_new_journal_begins_with_the_first_records_and_an_old_one_does_not(tmp_path: Path) -> None:
    with opened(tmp_path) as new:
        assert new.journal.durable == Durable(1, 0, {0: genesis((1, 2, 3), (101,))}, {0})
        uuid = new.journal.uuid
    again = Opened(tmp_path, first=[Decided(genesis((9,), ())), Flushed(5)])
    again.journal.close()
    assert again.journal.durable == Durable(2, 0, {0: genesis((1, 2, 3), (101,))}, {0})
    assert again.journal.uuid == uuid


def test_a_record_of_no_known_kind_is_corruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A newer version has written here."""
    with opened(tmp_path) as first:
        monkeypatch.setattr(module, "_encode", lambda record: (99, 1))
        first.write(Sealed(1))
    monkeypatch.undo()
    with pytest.raises(JournalCorrupt, match="a record cannot be read"):
        found(tmp_path)


def test_bytes_that_wait_are_written_in_bounded_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records pile up while the disk is busy: they do not become one batch without end, and all are there."""
    monkeypatch.setattr(module, "BATCH_BYTES", 1000)
    journal = Journal(tmp_path, CLUSTER, 1, FIRST)
    done: queue.Queue[int] = queue.Queue()
    records = [entry(seq, payload=b"x" * 300) for seq in range(1, 21)]
    for ticket, record in enumerate(records, 1):
        journal.append(ticket, [record])
    journal.start(done.put, lambda error: done.put(-1))
    reported = []
    while 20 not in reported:
        reported.append(done.get(timeout=ANSWER_S))
    journal.close()
    assert reported == [4, 8, 12, 16, 20]
    assert all(end - start <= 2000 for path in segments(tmp_path) for start, end in batches(path))
    assert found(tmp_path).entries == records


# -- torn tails


@pytest.mark.parametrize("rest", ["cut", "zeros", "garbage"])
def test_a_torn_last_batch_is_ignored_and_never_appended_to(tmp_path: Path, rest: str) -> None:
    """The power went while the last batch was written: any number of its first bytes may be on disk."""
    origin = tmp_path / "origin"
    with opened(origin) as first:
        first.write(entry(1), Sealed(1))
        first.write(entry(2))
        first.write(entry(3), Sealed(2))
    path = segments(origin)[-1]
    data = path.read_bytes()
    start, end = batches(path)[-1]
    for cut in range(start, end):
        place = tmp_path / str(cut)
        shutil.copytree(origin, place)
        torn = place / path.name
        kept = data[:cut]
        if rest == "zeros":
            kept += bytes(SMALL - cut)
        elif rest == "garbage":
            kept += Random(cut).randbytes(end - cut)
        torn.write_bytes(kept)
        with opened(place) as again:
            assert again.journal.durable.entries == [entry(1), entry(2)]
            assert again.journal.durable.sealed == 1
            assert again.journal.durable.incarnation == 2
            again.write(entry(3, payload=b"another"))
        assert torn.read_bytes() == kept, "a torn segment stays as it is"
        assert found(place).entries == [entry(1), entry(2), entry(3, payload=b"another")]
        shutil.rmtree(place)


def test_a_tail_torn_twice_in_a_row(tmp_path: Path) -> None:
    """The first start after a power cut loses power as well, in its very first batch: the checkpoint."""
    with opened(tmp_path) as first:
        first.write(entry(1), Sealed(4))
        first.write(entry(2))
    for path in (segments(tmp_path)[-1], None):
        if path is None:
            found(tmp_path)
            path = segments(tmp_path)[-1]
        start, end = batches(path)[-1]
        os.truncate(path, (start + end) // 2)
    got = found(tmp_path)
    assert (got.entries, got.sealed) == ([entry(1)], 4)


def test_a_segment_that_was_only_just_made_is_made_again(tmp_path: Path) -> None:
    """The power went between making the file and writing its header."""
    with opened(tmp_path) as first:
        first.write(entry(1))
    for content in (b"", bytes(SMALL)):
        (tmp_path / "00000002.journal").write_bytes(content)
        got = found(tmp_path)
        assert got.entries == [entry(1)]
        for path in segments(tmp_path)[1:]:
            path.unlink()


# -- damage


def damaged(origin: Path, place: Path, name: str, at: int) -> Path:
    """A copy of the journal with one byte changed."""
    shutil.copytree(origin, place)
    data = bytearray((place / name).read_bytes())
    data[at] ^= 0x5A
    (place / name).write_bytes(data)
    return place / name


def test_a_damaged_batch_with_good_ones_after_it_is_not_taken_for_a_torn_one(tmp_path: Path) -> None:
    origin = tmp_path / "origin"
    with opened(origin) as first:
        first.write(entry(1))
        first.write(entry(2))
        first.write(entry(3))
    name = segments(origin)[-1].name
    start, end = batches(origin / name)[-2]
    for at in range(start, end):
        path = damaged(origin, tmp_path / str(at), name, at)
        with pytest.raises(JournalCorrupt) as caught:
            found(path.parent)
        assert f"{path}, byte {start}:" in str(caught.value)
        assert "Replace it" in str(caught.value)
        shutil.rmtree(path.parent)


def test_damage_at_the_end_of_a_segment_that_was_full_is_not_taken_for_a_torn_tail(tmp_path: Path) -> None:
    """No good batch follows in the same file, but the next segment's batches say that this one was on disk."""
    with opened(tmp_path) as first:
        for seq in range(1, 15):
            first.write(entry(seq, payload=b"x" * 400))
    name = segments(tmp_path)[0].name
    assert len(segments(tmp_path)) > 1
    start, end = batches(tmp_path / name)[-1]
    path = damaged(tmp_path, tmp_path / "copy", name, (start + end) // 2)
    with pytest.raises(JournalCorrupt) as caught:
        found(path.parent)
    assert f"{path}, byte {start}:" in str(caught.value)


def test_a_segment_that_is_missing_between_others_is_damage(tmp_path: Path) -> None:
    with opened(tmp_path) as first:
        for seq in range(1, 25):
            first.write(entry(seq, payload=b"x" * 400))
    _, second, third, *_ = segments(tmp_path)
    second.unlink()
    with pytest.raises(JournalCorrupt, match=third.name):
        found(tmp_path)


def test_a_damaged_header_is_refused(tmp_path: Path) -> None:
    origin = tmp_path / "origin"
    with opened(origin) as first:
        first.write(entry(1))
    name = segments(origin)[-1].name
    for at in range(HEADER.size):
        path = damaged(origin, tmp_path / str(at), name, at)
        with pytest.raises(JournalCorrupt, match="byte 0: the header is damaged"):
            found(path.parent)
        shutil.rmtree(path.parent)


def test_another_version_is_refused(tmp_path: Path) -> None:
    head = HEADER.pack(b"LSFSJRN9", CLUSTER, 1, b"u" * 16, 1, 0)[:-4]
    (tmp_path / "00000001.journal").write_bytes(head + struct.pack("!I", zlib.crc32(head)) + bytes(64))
    with pytest.raises(JournalCorrupt, match="not a journal of this version"):
        found(tmp_path)


def test_another_cluster_or_voter_is_refused(tmp_path: Path) -> None:
    """A data directory is configured for the wrong daemon."""
    with opened(tmp_path, voter=1) as first:
        first.write(entry(1))
    with pytest.raises(JournalCorrupt, match="belongs to voter 1 of cluster 6363"):
        Opened(tmp_path, voter=2)
    with pytest.raises(JournalCorrupt, match="belongs to voter 1"):
        Opened(tmp_path, cluster=b"d" * 16)
    assert found(tmp_path).entries == [entry(1)]


# -- segments


def test_a_full_segment_is_followed_by_one_that_carries_everything_but_the_entries(tmp_path: Path) -> None:
    known: list[Record] = [r for r in EVERY_KIND if not isinstance(r, Entry | Reset)]
    with opened(tmp_path) as first:
        first.write(*known)
        seq = 0
        while len(segments(tmp_path)) < 3:
            seq += 1
            first.write(entry(seq, epoch=3, payload=b"x" * 500))
        incarnation = first.journal.durable.incarnation
    last = segments(tmp_path)[-1]
    for path in segments(tmp_path)[:-1]:
        path.unlink()
    got = found(tmp_path)
    expected = as_applied(*known)
    expected.incarnation = incarnation + 1
    got.entries.clear()
    assert got == expected
    assert segments(tmp_path)[0] == last


def test_a_checkpoint_forgets_views_and_registers_nobody_can_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster that has seen thousands of views does not carry all of them from segment to segment."""
    monkeypatch.setattr(module, "SEGMENT_BYTES", 20 << 10)
    with opened(tmp_path) as first:
        for epoch in range(1, 400):
            first.write(Decided(view(epoch, epoch - 1)), Flushed(epoch), Promised(epoch, (1, 1, 1)))
    assert len(segments(tmp_path)) > 1
    for path in segments(tmp_path)[:-1]:
        path.unlink()
    got = found(tmp_path)
    assert 2 * VIEWS_KEPT <= len(got.views) < 3 * VIEWS_KEPT, "and those decided since the last segment began"
    assert max(got.views) == max(got.flushed) == max(got.registers) == 399
    assert got.flushed <= set(got.views)
    assert len(got.registers) == 2 * REGISTERS_KEPT


def test_a_checkpoint_keeps_the_views_that_lead_to_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state was last committed in view 20, everything up to view 250 is flushed, and the rest was only heard of:
    what the log holds can be delivered along each view from 20 to 250, and no other way."""
    monkeypatch.setattr(module, "SEGMENT_BYTES", 20 << 10)
    with opened(tmp_path) as first:
        first.journal.state_found(Position(20, (), 5, bytes(16)))
        for some in range(1, 1000, 37):
            first.write(*(r for e in range(some, some + 37) for r in (Decided(view(e, e - 1)), Flushed(min(e, 250)))))
    for path in segments(tmp_path)[:-1]:
        path.unlink()
    again = Journal(tmp_path, CLUSTER, 1, FIRST)  # begins a segment as well, before anybody tells it of the state
    got = set(again.durable.views)
    again.close()
    assert set(range(19, 251)) <= got
    assert max(got) == 999
    assert 18 not in got and not set(range(251, 600)) & got


def test_trim_drops_only_segments_that_the_state_covers(tmp_path: Path) -> None:
    with opened(tmp_path) as first:
        for seq in range(1, 31):
            first.write(entry(seq, payload=b"x" * 500), entry(seq, sender=2))
        made = len(segments(tmp_path))
        first.trim(Position(-1, (), 0, NO_HASH))
        assert len(segments(tmp_path)) >= made > 3
        first.trim(Position(0, ((1, 30),), 30, NO_HASH))  # sender 2 is not delivered
        assert len(segments(tmp_path)) >= made
        first.trim(Position(0, ((1, 20), (2, 20)), 40, NO_HASH))
        assert 1 < len(segments(tmp_path)) < made
        size = sum(path.stat().st_size for path in segments(tmp_path))
        assert size - 1000 <= first.journal.size <= size
    left = found(tmp_path).entries
    beyond = [e for seq in range(21, 31) for e in (entry(seq, payload=b"x" * 500), entry(seq, sender=2))]
    assert [e for e in left if e.seq > 20] == beyond
    with opened(tmp_path) as again:
        again.trim(Position(1, (), 61, NO_HASH))  # a view later: nothing of epoch 0 is needed
        assert len(segments(tmp_path)) == 1
    assert found(tmp_path).entries == []


@pytest.mark.parametrize("seed", range(8))
def test_whatever_is_written_trimmed_and_restarted_nothing_needed_is_lost(tmp_path: Path, seed: int) -> None:
    """Random records, trims and restarts: what a start finds is what was written, but for entries the state has."""
    rng = Random(seed)
    model = as_applied()
    model.incarnation = 1
    epoch, seqs = 0, dict.fromkeys((1, 2, 3), 0)
    position = Position(-1, (), 0, NO_HASH)
    running = Opened(tmp_path)
    try:
        for _ in range(60):
            batch: list[Record] = []
            for _ in range(rng.randrange(1, 4)):
                what = rng.random()
                if what < 0.7:
                    sender = rng.choice((1, 2, 3))
                    seqs[sender] += 1
                    batch.append(entry(seqs[sender], epoch, sender, rng.randbytes(rng.randrange(600))))
                elif what < 0.8:
                    cut = tuple((s, rng.randrange(seq + 1)) for s, seq in seqs.items())
                    batch += [Sealed(epoch + 1), Decided(view(epoch + 1, epoch, cut)), Flushed(epoch + 1)]
                    epoch, seqs = epoch + 1, dict.fromkeys((1, 2, 3), 0)
                elif what < 0.9:
                    batch.append(Promised(epoch + 1, (rng.randrange(9), 1, 1)))
                else:
                    batch.append(Met(rng.randrange(1, 9), rng.randbytes(16)))
            running.write(*batch, now=rng.random() < 0.5)
            for record in batch:
                model.apply(record)
            if rng.random() < 0.2:
                floor = dict(position.delivered) if position.epoch == epoch else {}
                delivered = tuple((s, rng.randrange(floor.get(s, 0), seq + 1)) for s, seq in seqs.items())
                position = Position(epoch, delivered, 0, NO_HASH)
                running.trim(position)
            if rng.random() < 0.1:
                running.journal.close()
                running = Opened(tmp_path)
                model.incarnation += 1
                assert_nothing_needed_is_lost(running.journal.durable, model, position)
    finally:
        running.journal.close()
    model.incarnation += 1
    assert_nothing_needed_is_lost(found(tmp_path), model, position)


def assert_nothing_needed_is_lost(got: Durable, model: Durable, position: Position) -> None:
    delivered = dict(position.delivered)

    def needed(e: Entry) -> bool:
        return e.epoch > position.epoch or (e.epoch == position.epoch and e.seq > delivered.get(e.sender, 0))

    assert [e for e in got.entries if needed(e)] == [e for e in model.entries if needed(e)]
    assert set(got.entries) <= set(model.entries)
    for name in ("incarnation", "sealed", "views", "flushed", "registers", "met"):
        assert getattr(got, name) == getattr(model, name), name


# -- who may open it, and when no more


@pytest.mark.parametrize("now", [True, False])
def test_what_is_appended_after_the_end_is_dropped_and_poisons_nothing(tmp_path: Path, now: bool) -> None:
    """A replica stops while a write is under way, and hears of the end of that after it has closed its journal."""
    told: list[object] = []
    journal = Journal(tmp_path / "j", CLUSTER, 1, FIRST)
    journal.start(told.append, told.append)
    journal.close()
    if now:
        assert not journal.append_now(1, [entry(1)])
    else:
        journal.append(1, [entry(1)])
    journal.trim(Position(0, (), 0, NO_HASH))
    assert told == [] and journal.failed is None
    assert not (tmp_path / "j" / POISON).exists()
    again = Journal(tmp_path / "j", CLUSTER, 1, FIRST)
    again.close()


def test_a_second_opener_is_refused_until_the_first_has_closed(tmp_path: Path) -> None:
    with opened(tmp_path):
        with pytest.raises(JournalCorrupt, match="another process is using this journal"):
            Journal(tmp_path, CLUSTER, 1, FIRST)
    found(tmp_path)


def test_a_refused_start_lets_go_of_the_lock(tmp_path: Path) -> None:
    with opened(tmp_path):
        pass
    with pytest.raises(JournalCorrupt):
        Journal(tmp_path, CLUSTER, 9, FIRST)
    found(tmp_path)


def test_a_disk_that_failed_is_not_used_again(tmp_path: Path) -> None:
    with opened(tmp_path):
        pass
    (tmp_path / POISON).write_text("writing the journal failed: Input/output error\n")
    with pytest.raises(JournalCorrupt, match="Input/output error.*must not be used again"):
        found(tmp_path)


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_after_a_failed_write_nothing_is_reported_done_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    real = os.pwrite
    broken = [False]

    def pwrite(fd: int, data: bytes, at: int) -> int:
        if broken[0]:
            raise OSError(code, os.strerror(code))
        return real(fd, data, at)

    monkeypatch.setattr(os, "pwrite", pwrite)
    failing = Opened(tmp_path)
    failing.write(entry(1))
    broken[0] = True
    failing.journal.append(2, [entry(2)])
    failure = failing.done.get(timeout=ANSWER_S)
    assert isinstance(failure, JournalFailed) and os.strerror(code) in str(failure) and str(tmp_path) in str(failure)
    broken[0] = False  # the disk seems well again: nobody knows what it has lost meanwhile
    failing.journal.append(3, [entry(3)])
    failing.journal.close()
    assert failing.done.empty()
    assert failing.journal.failed is failure
    assert os.strerror(code) in (tmp_path / POISON).read_text()
    with pytest.raises(JournalCorrupt, match="must not be used again"):
        found(tmp_path)
    (tmp_path / POISON).unlink()
    assert found(tmp_path).entries == [entry(1)]


def test_a_write_from_the_loop_is_on_disk_when_it_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a copy of the directory taken at once has it; when the segment is full, the thread makes the next."""
    monkeypatch.setattr(module, "INLINE_FAST_S", 10.0)
    with opened(tmp_path / "1") as first:
        first.write(Sealed(1))
        inline = 0
        for seq in range(1, 41):
            first.ticket += 1
            if first.journal.append_now(first.ticket, [entry(seq, payload=b"x" * 300)]):
                inline += 1
                copy = tmp_path / f"copy-{seq}"
                shutil.copytree(tmp_path / "1", copy)
                assert found(copy).entries == [entry(k, payload=b"x" * 300) for k in range(1, seq + 1)]
                shutil.rmtree(copy)
            else:
                assert first.done.get(timeout=ANSWER_S) == first.ticket
        assert inline > 10
    assert len(found(tmp_path / "1").entries) == 40
    assert len(segments(tmp_path / "1")) > 3


def test_a_slow_disk_is_left_to_the_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop has heartbeats to send: after one slow write it keeps away for much longer than that took."""
    monkeypatch.setattr(module, "INLINE_FAST_S", -1.0)
    monkeypatch.setattr(module, "INLINE_SHARE", 1e9)
    with opened(tmp_path) as first:
        first.write(Sealed(1))
        assert first.journal.append_now(8, [Sealed(2)])
        assert not first.journal.append_now(9, [Sealed(3)])
        assert first.done.get(timeout=ANSWER_S) == 9


def test_after_a_failed_write_from_the_loop_nothing_is_reported_done_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next write would succeed, and being done implies that all before it is."""
    real = os.pwrite
    broken = [False]

    def pwrite(fd: int, data: bytes, at: int) -> int:
        if broken[0]:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(fd, data, at)

    monkeypatch.setattr(os, "pwrite", pwrite)
    failing = Opened(tmp_path)
    failing.write(entry(1))
    broken[0] = True
    assert not failing.journal.append_now(2, [entry(2)])
    assert isinstance(failing.done.get(timeout=ANSWER_S), JournalFailed)
    broken[0] = False
    assert not failing.journal.append_now(3, [entry(3)])
    failing.journal.append(4, [entry(4)])
    failing.journal.close()
    assert failing.done.empty()
    with pytest.raises(JournalCorrupt, match="must not be used again"):
        found(tmp_path)


def test_a_short_write_is_not_taken_for_a_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full: write(2) may put some bytes and say how many, and only the next one fails."""
    real = os.pwrite
    short = [False]

    def pwrite(fd: int, data: bytes, at: int) -> int:
        return real(fd, data[: len(data) // 2] if short[0] else data, at)

    monkeypatch.setattr(os, "pwrite", pwrite)
    failing = Opened(tmp_path)
    failing.write(entry(1))
    short[0] = True
    failing.journal.append(2, [entry(2)])
    assert isinstance(failing.done.get(timeout=ANSWER_S), JournalFailed)
    failing.journal.close()
    assert (tmp_path / POISON).exists()


def test_no_room_for_the_next_segment_is_a_failure_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch that filled the segment is on disk, but not reported: nothing can follow it."""
    failing = Opened(tmp_path)

    def fallocate(fd: int, start: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", fallocate)
    failing.journal.append(1, [entry(1, payload=bytes(SMALL))])
    assert isinstance(failing.done.get(timeout=ANSWER_S), JournalFailed)
    failing.journal.close()
    assert (tmp_path / POISON).exists()


# -- incarnations and acquaintances


def test_the_incarnation_rises_with_each_start_and_is_on_disk_before_anyone_is_told(tmp_path: Path) -> None:
    """Ballots carry it: one that was sent in a life that the disk does not remember could be used twice."""
    place = tmp_path / "1"
    for start in range(1, 5):
        journal = Journal(place, CLUSTER, 1, FIRST)  # its thread never runs: the process dies at once
        assert journal.durable.incarnation == start
        journal.start(lambda ticket: None, lambda error: None)
        copy = tmp_path / f"copy-{start}"
        shutil.copytree(place, copy)
        journal.close()
        assert found(copy).incarnation == start + 1


def test_a_voter_with_another_disk_is_refused_also_after_a_restart(tmp_path: Path) -> None:
    with opened(tmp_path) as first:
        met = Acquaintances(first.journal)
        assert met.judge(2, b"a" * 16, 1) is None
        met.introduce(2, b"a" * 16, 1)
        met.introduce(2, b"a" * 16, 3)
        assert met.judge(2, b"a" * 16, 2) == "incarnation 2 of replica 2 is superseded"
        assert met.judge(2, b"a" * 16, 3) is None
        assert "another disk" in (met.judge(2, b"b" * 16, 4) or "")
        assert met.judge(3, b"b" * 16, 1) is None
        first.write(Sealed(0))  # whatever comes next takes it along
    with opened(tmp_path) as again:
        met = Acquaintances(again.journal)
        reason = met.judge(2, b"b" * 16, 9)
        assert reason is not None and (b"b" * 16).hex() in reason and (b"a" * 16).hex() in reason
        assert met.judge(2, b"a" * 16, 1) is None, "incarnations are those of this life's connections"

"""What a client has to show for what it asks about the data of a file; raw clients show what they should not."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mds.schema import META, REPLIES
from tests.mds.group import Call, Group, User
from tests.mds.harness import ALICE, BOB, ROOT, TOP, contents
from wire import messages as msg
from wire import ops
from wire.capability import LIFETIME_US, READ, TRUNCATE, WRITE, parse_untrusted, sign
from wire.codec import encode
from wire.errors import OK, Status, to_errno
from wire.fileops import Denied, Reserve
from wire.inline import GrownOut, GrowOut, ReadInline, WriteInline
from wire.targetops import KeyRotate

ALL = READ | WRITE | TRUNCATE
O_RDONLY, O_WRONLY = 0, 1


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Group]:
    group = Group(tmp_path)
    try:
        for turn in range(2):
            order(group, KeyRotate(turn, bytes([turn]) * 32))
        order(group, ops.TargetSet(1, "127.0.0.1:1", b"t" * 16))
        yield group
        group.finish()
    finally:
        group.close()


def order(group: Group, op: Any) -> None:
    """By the replica with the highest number: no test kills that."""
    done: list[int] = []
    group.nodes[3].replica.internal(op, lambda outcome: done.append(outcome.status))
    group.until(lambda: done)
    assert done == [OK]


def made(group: Group, user: User, name: bytes, mode: int = 0o644, parent: int = TOP) -> tuple[int, bytes]:
    """A file of ALICE: (inode, capability)."""
    call = group.complete(user.request(ops.Create(ALICE, parent, name, mode)))
    assert call.ok and call.granted
    return call.body[0], call.granted


def truncation(cred: ops.Cred, ino: int, size: int) -> ops.SetAttr:
    return ops.SetAttr(cred, ino, ops.SET_SIZE, 0, 0, 0, size, 0, 0, True)


def changing(ino: int, number: int) -> list[Any]:
    return [
        ops.Commit(ino, 10**6, 1),
        WriteInline(ino, ((0, b"theirs"),), 1),
        Reserve(ino, 100, 0),
        GrowOut(ino),
        GrownOut(ino, number),
        ops.Settle(ino, 1),
        truncation(BOB, ino, 0),
    ]


def asked(group: Group, user: User, op: Any, shown: bytes) -> Call:
    return group.complete((user.query if isinstance(op, ReadInline) else user.request)(op, shown=shown))


def state(group: Group) -> list[Any]:
    """All that is in it, but for positions and replies."""
    aside = (META.number, REPLIES.number)
    return [record for record in contents(group.nodes[1].store) if record[0] not in aside]


def test_who_has_not_opened_a_file_changes_and_reads_nothing(group: Group, caplog: pytest.LogCaptureFixture) -> None:
    owner, other, reader = group.user("owner", 1), group.user("other", 1), group.user("reader", 1)
    ino, token = made(group, owner, b"f")
    assert asked(group, owner, WriteInline(ino, ((0, b"mine"),), 1), token).ok
    number = asked(group, owner, GrowOut(ino), token).body[0]
    assert number, "it is growing out: whoever knew the number could end that"
    foreign = made(group, other, b"g")[1]
    opening = group.complete(reader.query(ops.Open(BOB, ino, O_RDONLY)))
    only_read = opening.granted
    known = parse_untrusted(only_read)
    assert known is not None and known.rights == READ and known.file == ino
    forged = sign(b"?" * 32, other.uuid, ALL, ino, other.session, 2**62, (1,), ino)
    altered = only_read[:4] + bytes([ALL]) + only_read[5:]
    held = {
        "nothing": (other, b""),
        "noise": (other, b"\x07" * len(token)),
        "forged": (other, forged),
        "of another file": (other, foreign),
        "of another client": (other, token),
        "to read": (reader, only_read),
        "altered": (reader, altered),
    }
    before = state(group)
    with caplog.at_level(logging.WARNING, "mds.rights"):
        for what, (user, shown) in held.items():
            group.run(1_100_000)  # each is logged by itself
            caplog.clear()
            for op in changing(ino, number):
                call = asked(group, user, op, shown)
                assert call.status != OK and to_errno(call.status) == errno.EACCES, (what, op, call.status)
                assert call.body is None and not call.granted, (what, op)
            call = asked(group, user, ReadInline(ino), shown)
            if what == "to read":
                assert call.body[1][1] == b"mine"
            else:
                assert to_errno(call.status) == errno.EACCES and call.body is None, what
            told = [record.getMessage() for record in caplog.records]
            assert len(told) == 1 and user.name in told[0] and f"inode {ino}: " in told[0], (what, told)
    assert state(group) == before
    refused = group.nodes[1].replica.reading.rights.refused
    assert refused == len(held) * (len(changing(ino, number)) + 1) - 1


def test_a_descriptor_open_for_writing_does_what_it_may_also_elsewhere(group: Group) -> None:
    """Whatever has become of the mode; and again when its replica is gone."""
    owner = group.user("owner", 1)
    ino, token = made(group, owner, b"f")
    chmod = ops.SetAttr(ALICE, ino, ops.SET_MODE, 0, 0, 0, 0, 0, 0, False)
    assert group.complete(owner.request(chmod)).ok
    for turn in range(2):
        assert asked(group, owner, WriteInline(ino, ((0, b"mine"),), 1), token).ok, turn
        assert asked(group, owner, ReadInline(ino), token).body[1][1] == b"mine"
        assert asked(group, owner, Reserve(ino, 100, 0), token).ok
        assert asked(group, owner, truncation(ALICE, ino, 2), token).body[6] == 2
        assert asked(group, owner, truncation(ALICE, ino, 1), b"").status == errno.EACCES
        if not turn:
            group.kill(1)
            group.until(lambda: owner.attached and owner.at != 1)
    number = asked(group, owner, GrowOut(ino), token).body[0]
    grown = asked(group, owner, GrownOut(ino, number), token)
    assert grown.ok and not grown.granted
    assert asked(group, owner, ops.Commit(ino, 10**6, 1), token).ok, "it is the same file, in other objects"
    opened = group.complete(owner.query(ops.Open(ROOT, ino, O_WRONLY))).granted
    known = parse_untrusted(opened)
    assert known is not None and (known.ino, known.file) == (number, ino)
    assert asked(group, owner, ops.Commit(ino, 10**6, 1), opened).ok
    assert asked(group, owner, truncation(ALICE, ino, 5), token).body[6] == 5
    assert asked(group, owner, ops.Settle(ino, 1), token).ok
    group.restart(1)


def test_who_may_only_write_is_told_the_bytes_to_move_them(group: Group) -> None:
    owner, writer = group.user("owner", 1), group.user("writer", 2)
    ino, token = made(group, owner, b"f", 0o622)
    assert asked(group, owner, WriteInline(ino, ((0, b"mine"),), 1), token).ok
    opening = group.complete(writer.query(ops.Open(BOB, ino, O_WRONLY)))
    assert opening.ok and opening.body[1] is None
    assert asked(group, writer, ReadInline(ino), opening.granted).ok


def test_a_request_sent_again_has_its_answer_whatever_it_shows_by_then(group: Group) -> None:
    """1. Room to append is given, and the answer is lost. 2. The keys are forgotten. 3. The client asks again,
    elsewhere: it must not be told that it may not, for it has been done."""
    owner = group.user("owner", 1)
    ino, token = made(group, owner, b"f")
    line = owner.line
    assert line is not None
    line.stalled = True
    call = owner.request(Reserve(ino, 100, 0), shown=token)
    group.until(lambda: (owner.session, call.slot, call.number) in group.executed)
    for turn in range(2, 6):
        order(group, KeyRotate(turn, bytes([turn]) * 32))
    line.cut()
    group.complete(call)
    assert call.ok and call.body[0] == 0 and call.answers == 1
    assert asked(group, owner, Reserve(ino, 100, 0), token).status == Status.CAPABILITY_EXPIRED
    again = group.complete(owner.query(ops.Open(ALICE, ino, O_WRONLY))).granted
    assert asked(group, owner, Reserve(ino, 100, 0), again).body[0] == 100


def test_it_is_over_with_the_session(group: Group) -> None:
    """As when that has expired: another session of the same client has to open the file anew."""
    owner = group.user("owner", 1)
    ino, token = made(group, owner, b"f")
    second = User(group, "owner")
    group.users.append(second)
    second.connect(1)
    group.until(lambda: second.attached)
    assert second.uuid == owner.uuid
    assert asked(group, second, ops.Commit(ino, 1, 1), token).status == Status.CAPABILITY_EXPIRED


def test_it_does_not_expire_while_the_session_lasts(group: Group) -> None:
    """Whoever writes for longer than it lives at targets, and did not renew it, has opened the file all the same."""
    owner = group.user("owner", 1)
    ino, token = made(group, owner, b"f")
    known = parse_untrusted(token)
    assert known is not None
    signer = group.nodes[1].replica.signer
    before, signer._clock_ns = signer._clock_ns, lambda: (known.expires_us + LIFETIME_US) * 1000
    assert asked(group, owner, ops.Commit(ino, 1, 1), token).ok
    signer._clock_ns = before


def test_a_truncation_shown_with_a_forgotten_key_is_to_be_shown_anew(group: Group) -> None:
    """By name it would be refused, though whoever opened the file may."""
    owner = group.user("owner", 1)
    ino, token = made(group, owner, b"f", 0o600)
    for turn in range(2, 12):
        order(group, KeyRotate(turn, bytes([turn]) * 32))
    call = asked(group, owner, truncation(BOB, ino, 0), token)
    assert call.status == Status.CAPABILITY_EXPIRED


def raw(group: Group, user: User, first: Call, op: Any) -> Call:
    """Ask *op* under the number of *first*, which is answered."""
    assert user.line is not None
    call = Call(op, group.clock.now, first.slot, first.number)
    user._call += 1
    user.calls.append(call)
    user.pending[user._call] = call
    user.line.ask(msg.RequestCall(user._call, user.session, first.slot, first.number, encode(op)))
    return group.complete(call)


def test_an_answer_given_again_to_another_question_gives_no_rights(group: Group) -> None:
    """What a reply is given again for is what the client says: the reply to another request must not become a
    capability for the file that it happens to tell of, nor end the replica."""
    owner, other = group.user("owner", 1), group.user("other", 1)
    ino, _ = made(group, owner, b"f", 0o600)
    linked = group.complete(other.request(ops.Link(BOB, ino, TOP, b"g"), slot=5))
    assert linked.ok and linked.body[0] == ino and not linked.granted
    own, token = made(group, other, b"mine")
    for op in (ops.Create(BOB, TOP, b"h", 0o644), truncation(BOB, ino, 0), GrowOut(own)):
        again = raw(group, other, linked, op)
        assert again.ok and again.body == linked.body and not again.granted, op
    room = group.complete(other.request(Reserve(own, 1, ino), slot=6, shown=token))
    assert room.body[0] == ino
    again = raw(group, other, room, GrowOut(own))
    assert again.ok and not again.granted, "an offset is no number of objects"


def test_a_create_sent_again_has_its_rights_again(group: Group) -> None:
    owner = group.user("owner", 1)
    first = group.complete(owner.request(ops.Create(ALICE, TOP, b"f", 0o400)))
    again = raw(group, owner, first, ops.Create(ALICE, TOP, b"f", 0o400))
    assert again.body == first.body
    assert asked(group, owner, ops.Commit(first.body[0], 1, 1), again.granted).ok


def test_nobody_is_asked_to_deny(group: Group) -> None:
    assert asked(group, group.user("other", 1), Denied(errno.EACCES), b"").status == Status.BAD_MESSAGE
    assert Denied(OK).invalid() is not None and Denied(errno.EACCES).invalid() is None


def pages(group: Group, user: User, ino: int, cookie: int, shown: bytes = b"", cred: ops.Cred = BOB) -> Call:
    return group.complete(user.query(ops.ReadDir(cred, ino, cookie, 2), shown=shown))


def test_a_listing_that_has_begun_goes_on_whatever_becomes_of_the_mode(group: Group) -> None:
    """Also at another replica; and it may be begun again, as by rewinddir(3). Nobody else may read a page of it."""
    reader, other = group.user("reader", 1), group.user("other", 1)
    directory = group.ask(reader, ops.Mkdir(ALICE, TOP, b"d", 0o755))[0]
    for name in (b"a", b"b", b"c", b"d", b"e"):
        made(group, reader, b"x" + name, parent=directory)
    first = pages(group, reader, directory, 0)
    cookie, token = first.body[0][-1][1], first.granted
    known = parse_untrusted(token)
    assert known is not None and known.rights == READ and known.file == directory and known.chains == ()
    open_file = group.complete(other.query(ops.Open(BOB, made(group, other, b"f")[0], O_RDONLY))).granted
    assert group.complete(reader.request(ops.SetAttr(ALICE, directory, ops.SET_MODE, 0o700, 0, 0, 0, 0, 0, False))).ok
    for user, shown in ((reader, b""), (other, b""), (other, token), (other, open_file), (reader, token[:-1] + b"?")):
        for at in (0, cookie, 1):
            refused = pages(group, user, directory, at, shown)
            assert refused.status == errno.EACCES and refused.body is None and not refused.granted, (user.name, at)
    group.kill(1)
    group.until(lambda: reader.attached and reader.at != 1)
    second = pages(group, reader, directory, cookie, token)
    assert [name for name, _, _ in second.body[0]] == [b"xc", b"xd"] and not second.granted
    assert pages(group, reader, directory, second.body[0][-1][1], token).body[1], "that is the end"
    assert pages(group, reader, directory, 0, token).body == first.body
    assert pages(group, reader, directory, cookie, cred=ROOT).ok
    group.restart(1)


def test_a_listing_of_one_page_brings_no_capability_and_root_needs_none(group: Group) -> None:
    reader = group.user("reader", 1)
    made(group, reader, b"a")
    made(group, reader, b"b")
    assert pages(group, reader, TOP, 0).body[1] and not pages(group, reader, TOP, 0).granted
    made(group, reader, b"c")
    assert not pages(group, reader, TOP, 0).body[1] and pages(group, reader, TOP, 0).granted
    assert not pages(group, reader, TOP, 0, cred=ROOT).granted


def test_the_right_to_list_is_none_to_anything_else(group: Group) -> None:
    reader = group.user("reader", 1)
    directory = group.ask(reader, ops.Mkdir(ALICE, TOP, b"d", 0o755))[0]
    for name in (b"a", b"b", b"c"):
        made(group, reader, name, parent=directory)
    token = pages(group, reader, directory, 0).granted
    file = made(group, reader, b"f", 0o600)[0]
    for op in (ReadInline(file), *changing(file, 1), *changing(directory, 1)[:-1]):
        call = asked(group, reader, op, token)
        assert to_errno(call.status) == errno.EACCES and not call.granted, op
    assert pages(group, reader, directory, 0, token, ROOT).ok
    assert group.complete(reader.query(ops.Access(BOB, file, 4), shown=token)).status == errno.EACCES

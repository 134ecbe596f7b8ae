"""What a target may do by the map it was told: who takes writes from whom, who answers reads, until when."""

from __future__ import annotations

from ossd.chains import ChainTable
from wire.chains import DRAINING, OFFLINE, SERVING, SYNCING, Members, StorageMap
from wire.errors import OK, Status

RUN = 77


def found(version: int, members: Members, chain_version: int = 4, run: int = RUN) -> StorageMap:
    targets = tuple((target, f"h:{target}", SERVING, run if target == 2 else 5) for target in (1, 2, 3))
    return version, targets, ((9, chain_version, members),)


def table(*members: tuple[int, str], run: int = RUN) -> ChainTable:
    made = ChainTable(2, RUN)
    made.install(found(1, members, run=run))
    made.validate()
    return made


def test_the_head_takes_clients_the_others_their_predecessor() -> None:
    head = table((2, SERVING), (1, SERVING), (3, SYNCING))
    assert head.judge_client(9, 4) == OK
    assert head.judge_member(9, 4, 1) == Status.STALE_CHAIN
    chain = head.get(9)
    assert chain is not None and (chain.before, chain.next, chain.path) == (None, 1, (2, 1, 3))
    last = table((1, SERVING), (2, SERVING))
    assert last.judge_client(9, 4) == Status.STALE_CHAIN
    assert last.judge_member(9, 4, 1) == OK
    assert last.judge_member(9, 4, 3) == Status.STALE_CHAIN


def test_who_is_synced_comes_last_whatever_his_place() -> None:
    first = table((2, SYNCING), (1, SERVING))
    assert first.judge_client(9, 4) == Status.STALE_CHAIN
    assert first.judge_member(9, 4, 1) == OK
    assert first.judge_read(9, 4, 0) == Status.STALE_CHAIN


def test_another_version_is_refused() -> None:
    """An older one: ask for the map. A newer one: we are told soon."""
    one = table((2, SERVING))
    for judge in (one.judge_client, lambda c, v: one.judge_read(c, v, 0), lambda c, v: one.judge_member(c, v, 1)):
        assert judge(9, 3) == Status.STALE_CHAIN
        assert judge(9, 5) == Status.NOT_SERVING
        assert judge(8, 1) == Status.NOT_SERVING


def test_reads_need_the_keepers_word_where_others_serve() -> None:
    """1. We are cut off from the keeper, not from a client. 2. The others go on without us, and are written to.
    3. The client must not read from us what was before."""
    one = table((2, SERVING), (1, SERVING))
    assert one.judge_read(9, 4, 100) == Status.NOT_SERVING
    one.extend(200)
    one.extend(150)
    assert one.judge_read(9, 4, 199) == OK
    assert one.judge_read(9, 4, 200) == Status.NOT_SERVING
    assert one.judge_client(9, 4) == OK, "a change needs the others and not the keeper"


def test_who_is_alone_needs_no_word() -> None:
    assert table((2, SERVING), (1, OFFLINE)).judge_read(9, 4, 10**12) == OK
    assert table((2, SERVING), (1, SYNCING)).judge_read(9, 4, 10**12) == Status.NOT_SERVING, "soon it is not alone"


def test_who_is_to_leave_reads_only_until_another_can() -> None:
    one = table((2, DRAINING), (1, SYNCING))
    one.extend(10)
    assert one.judge_read(9, 4, 1) == OK
    one.install(found(2, ((2, DRAINING), (1, SERVING)), 5))
    assert one.judge_read(9, 5, 1) == Status.STALE_CHAIN
    assert one.judge_client(9, 5) == OK, "writes pass through it until it has left"


def test_nothing_holds_in_another_run() -> None:
    """Killed and started within a heartbeat: the map still says that it serves."""
    one = table((2, SERVING), (1, SERVING), run=RUN - 1)
    one.extend(100)
    assert one.judge_read(9, 4, 1) == Status.NOT_SERVING
    assert one.judge_client(9, 4) == Status.NOT_SERVING


def test_an_older_map_is_not_taken() -> None:
    one = table((2, SERVING))
    assert not one.install(found(1, ((2, OFFLINE),)))
    assert not one.install(found(0, ((2, OFFLINE),)))
    assert one.judge_client(9, 4) == OK
    assert one.install(found(2, ((1, SERVING),), 5))
    assert one.judge_client(9, 5) == Status.STALE_CHAIN
    assert one.chains() == []

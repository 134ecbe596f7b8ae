"""Learners: fed until they are close, then taken in."""

from __future__ import annotations

from tests.vsync.builders import MS, Driven, entry, heartbeat, messages, view
from tests.vsync.test_machine import active, told
from tests.vsync.town import Town
from vsync import limits
from vsync.effects import Delivered, Effects, Event, Received, SnapshotSent, Tick, ViewEvent
from vsync.records import Decided, Entry
from vsync.transfer import Learner
from vsync.view import NO_HASH
from wire.codec import to_tuple
from wire.group import Data, Feed, FeedAck, Join, Seal, SealReport, Views

SECOND = view(1, (1, 2), 0)
THIRD = view(2, (1, 2), 1, {1: 1})


def join(index: int, hash_there: bytes, empty: bool = False) -> Received:
    return Received(3, Join(0, index, hash_there, empty))


def feeder() -> Driven:
    """Replica 1, active in view 1 of replicas 1 and 2, with a link to 3, which hears all and is heard by all."""
    one = active()
    one.machine.core.detector.link_up(3)
    one.step(Received(3, heartbeat(1, -1, 1, 0)))
    one.step(Received(2, heartbeat(1, 1, 1, 1, received=(0, 0), durable=(0, 0), delivered=(0, 0))))
    return one


def test_a_learner_is_fed_from_where_it_is() -> None:
    one = feeder()
    out = one.step(join(0, NO_HASH))
    [(peer, feed)] = messages(out, Feed)
    assert peer == 3
    assert feed.index == 0
    assert len(feed.items) == 2, "both view events"


def test_a_learner_of_another_history_gets_a_snapshot() -> None:
    one = feeder()
    out = one.step(join(1, b"x" * 16))
    assert out.snapshot_for == [3]
    assert one.step(join(1, b"x" * 16)).snapshot_for == [], "one is on its way"


def test_a_learner_ahead_of_us_is_not_fed() -> None:
    out = feeder().step(join(99, b"x" * 16))
    assert out.snapshot_for == []
    assert not messages(out, Feed)


def test_asking_again_does_not_begin_the_stay_anew() -> None:
    """A learner that is fed nothing, because there is nothing, asks again every 300 ms. After a short stay it has to
    wait 400 ms before it is taken in: it must not ask its way out of that for ever."""
    one = feeder()
    one.machine.transfer._stay[3] = 400 * MS
    one.step(join(0, NO_HASH))
    for _ in range(3):
        position = one.machine.position()
        one.step(Received(3, heartbeat(1, -1, 1, 0)), 50)
        one.step(Received(3, FeedAck(position.index)))
        one.step(Tick(), 50)
        one.step(Received(2, heartbeat(1, 1, 1, 1, received=(0, 0), durable=(0, 0), delivered=(0, 0))))
        out = one.step(join(position.index, position.hash))
    assert not messages(out, Seal)
    one.step(Received(3, FeedAck(position.index)))
    out = one.step(Tick(), 100)
    assert [m.reason for _, m in messages(out, Seal)] == ["learner 3 has caught up"] * 2


def learner() -> Driven:
    """Replica 3, left out of view 1, has asked replica 1 to be fed."""
    three = Driven(3, linked=(1, 2))
    three.step(told(1, SECOND))
    three.step(Received(1, heartbeat(1, 1, 1, 1)))
    out = three.step(Tick(), limits.JOIN_RETRY // MS)
    assert messages(out, Join) == [(1, Join(-1, 0, NO_HASH, False))]
    return three


def test_a_learner_applies_what_it_is_fed() -> None:
    """View events with their views, messages into the log and out of it."""
    three = learner()
    first = three.machine.core.history.views[0]
    fed = entry(1, 1, 1, 1)
    out = three.step(Received(1, Feed(0, (to_tuple(first), to_tuple(SECOND), tuple(fed), to_tuple(THIRD)))))
    assert out.history == [ViewEvent(0, first), ViewEvent(1, SECOND), Delivered(2, fed), ViewEvent(3, THIRD)]
    assert out.records == [fed, Decided(THIRD)]
    assert messages(out, FeedAck) == [(1, FeedAck(4))]


def test_a_gap_in_the_feed_is_not_jumped() -> None:
    three = learner()
    out = three.step(Received(1, Feed(1, (to_tuple(SECOND),))))
    assert out.history == []
    assert messages(out, FeedAck) == [(1, FeedAck(0))]


def test_who_feeds_with_a_gap_is_asked_again() -> None:
    """The first frame was lost with the bulk connection; the others come every 100 ms, so there never is a silence."""
    three = learner()
    first = three.machine.core.history.views[0]
    ask = (1, Join(-1, 0, NO_HASH, False))
    assert messages(three.step(Received(1, Feed(1, (to_tuple(SECOND),))), 100), Join) == [ask]
    fed = [tuple(entry(1, 1, k, k)) for k in (1, 2, 3, 4, 5)]
    for k in (1, 2):
        assert not messages(three.step(Received(1, Feed(k + 1, (fed[k],))), 100), Join), "it knows"
    out = three.step(Received(1, Feed(0, (to_tuple(first), to_tuple(SECOND), fed[0]))), 100)
    assert [item.index for item in out.history] == [0, 1, 2]
    assert not messages(out, Join)
    position = three.machine.position()
    out = three.step(Received(1, Feed(4, (fed[2],))), 100)
    assert messages(out, Join) == [(1, Join(1, 3, position.hash, False))], "and again for another gap"


def test_a_feed_nobody_asked_for_is_ignored() -> None:
    three = learner()
    out = three.step(Received(2, Feed(0, (to_tuple(three.machine.core.history.views[0]),))))
    assert out.history == []


def test_the_view_that_takes_a_learner_in_ends_its_feed() -> None:
    three = learner()
    three.step(Received(1, Views((to_tuple(view(2, (1, 2, 3), 1)),))))
    out = three.step(Received(1, Feed(0, (to_tuple(three.machine.core.history.views[0]),))))
    assert out.history == []
    assert not three.machine.transfer.learning


def test_a_stay_that_was_short_makes_the_next_wait_longer() -> None:
    one = feeder()
    stays = one.machine.transfer
    stays._stay.clear()
    stays.on_view(ViewEvent(9, view(5, (1, 2, 3), 1)), one.now)
    stays.on_view(ViewEvent(10, view(6, (1, 2), 5)), one.now + MS)
    assert stays._stay[3] == 2 * limits.JOIN_STAY_MIN
    stays.on_view(ViewEvent(11, view(7, (1, 2, 3), 6)), one.now)
    stays.on_view(ViewEvent(12, view(8, (1, 2), 7)), one.now + limits.STAY_GOOD)
    assert stays._stay[3] == limits.JOIN_STAY_MIN


def test_what_waits_for_a_slow_learner_is_bounded_in_bytes() -> None:
    """Its connection takes nothing: big messages pile up there, but not all of them."""
    one = feeder()
    one.step(join(0, NO_HASH))
    history = one.machine.core.history
    history.epoch = 1
    for seq in range(1, limits.RECENT_BYTES // (limits.BATCH_BYTES + limits.ITEM_BYTES)):  # as many as are kept
        big = Entry(1, 2, seq, seq, bytes(limits.BATCH_BYTES))
        out = Effects()
        history.append(big, out)
        history.deliver(big, out)
    one.machine.transfer.push(3)
    learner = one.machine.transfer.learners[3]
    assert limits.FEED_WINDOW_BYTES // 2 < learner.waiting_bytes <= limits.FEED_WINDOW_BYTES
    stopped_at = learner.next
    one.machine.transfer.on_feed_ack(3, FeedAck(stopped_at))
    assert learner.next > stopped_at


def test_what_follows_a_snapshot_is_kept_until_the_learner_has_it() -> None:
    """Copying takes a minute, in which more happens than is kept else: it must not end with the next snapshot."""
    one = feeder()
    assert one.step(join(1, b"x" * 16)).snapshot_for == [3]
    history = one.machine.core.history
    taken_at, hash_there, history.epoch = history.index, history.hash, 1

    def deliver(count: int) -> None:
        for _ in range(count):
            seq = history.top(1, 2) + 1
            out = Effects()
            history.append(Entry(1, 2, seq, seq, bytes(limits.BATCH_BYTES)), out)
            history.deliver(history.heads(1)[0], out)

    kept = limits.RECENT_BYTES // limits.BATCH_BYTES
    deliver(2 * kept)
    one.machine.transfer.tick(one.now)
    one.machine.step(SnapshotSent(3), one.now)
    one.machine.transfer.tick(one.now + limits.SNAPSHOT_TAKEN - 1)
    deliver(kept)
    assert history.can_feed(taken_at, hash_there)
    deliver(limits.PINNED * kept)
    assert len(history._items) <= limits.PINNED * kept, "not without bound"
    one.machine.transfer.tick(one.now + limits.SNAPSHOT_TAKEN)
    deliver(1)
    assert len(history._items) <= kept


def test_only_so_many_snapshots_at_a_time() -> None:
    """Each reads the whole state; who gets none now asks again."""
    one = feeder()
    one.machine.transfer.snapshots |= set(range(200, 200 + limits.SNAPSHOTS))
    assert one.step(join(0, NO_HASH, empty=True)).snapshot_for == []
    one.machine.transfer.snapshots.pop()
    assert one.step(join(0, NO_HASH, empty=True)).snapshot_for == [3]


def test_only_so_many_learners_at_a_time() -> None:
    one = feeder()
    one.machine.transfer.learners.update({k: Learner(0, 0, 0) for k in range(200, 200 + limits.LEARNERS)})
    assert not messages(one.step(join(0, NO_HASH)), Feed)
    one.machine.transfer.learners.popitem()
    assert messages(one.step(join(0, NO_HASH)), Feed)


def test_while_a_disk_hangs_hand_overs_count_as_one() -> None:
    """Acknowledged is what the last of them says, when it is on disk."""
    one = active()
    handed = one.machine._handed
    handed.extend((1, 1, [0, 0]) for _ in range(limits.HANDED))
    one.step(Received(2, Data(1, 1, 1, (0, 0), (0, 0), b"x")))
    assert len(handed) == limits.HANDED
    assert handed[-1] == (one.machine.core.ticket, 1, [0, 1])


class SlowDisk(Town):
    """What replica 3 has to write before it may report comes too late."""

    def step(self, replica: int, event: Event) -> Effects:
        out = super().step(replica, event)
        if replica == 3:
            late = [said for said in self._said if said[0] == 3 and isinstance(said[2], SealReport)]
            for said in late:
                self._said.remove(said)
        return out


def test_a_learner_that_cannot_be_taken_in_does_not_keep_the_others_from_their_work() -> None:
    """1. Replica 3 comes back as a learner and is fed. 2. Its disk is slow: it does not report in time. 3. The view is
    changed without it. 4. It is close and heard, as before: it must not be tried again with every tick."""
    town = Town(3)
    town.cut(1, 3)
    town.cut(2, 3)
    town.until(lambda: town.active(1, 2))
    town.__class__ = SlowDisk
    town.heal()
    town.run(1000)
    before = town.view().epoch
    town.run(10_000)
    assert town.active(1, 2) or town.view().members == (1, 2)
    assert 1 <= town.view().epoch - before <= 8, "it is tried, ever more rarely"
    town.__class__ = Town
    town.until(lambda: town.active(1, 2, 3), 40_000)

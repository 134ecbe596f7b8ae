"""The log and its place in history: cuts, chains of bases, what a restart finds, what learners are given."""

from __future__ import annotations

from tests.vsync.builders import entry, view
from vsync import limits
from vsync.effects import Delivered, Effects, ViewEvent
from vsync.history import History
from vsync.records import Decided, Durable, Entry, Flushed, Reset, Sealed
from vsync.view import START
from wire.group import View

FIRST = view(0, (1, 2, 3), -1)


def history_at(*views: View) -> tuple[History, Effects]:
    """A history that has delivered the events of *views*."""
    history = History({FIRST.epoch: FIRST}, [], START)
    out = Effects()
    history.finish(FIRST, out)
    for v in views:
        history.learn(v, out)
        history.finish(v, out)
    return history, Effects()


def names(out: Effects) -> list[tuple[int, ...]]:
    """History items delivered: (epoch, sender, seq) of a message, (epoch,) of a view."""
    return [item.entry[:3] if isinstance(item, Delivered) else (item.view.epoch,) for item in out.history]


def test_a_decided_view_drops_what_lies_beyond_its_cut() -> None:
    """1 got two messages of 2 that the view's members never saw: they are in no history."""
    history, out = history_at()
    for e in (entry(0, 1, 1, 1), entry(0, 2, 1, 2), entry(0, 2, 2, 3), entry(0, 2, 3, 5)):
        assert history.append(e, out)
    second = view(1, (1, 3), 0, {1: 1, 2: 1})
    out = Effects()
    assert history.learn(second, out)
    assert out.records == [Decided(second)]
    assert sorted(out.dropped) == [entry(0, 2, 2, 3), entry(0, 2, 3, 5)]
    assert history.top(0, 2) == 1
    history.validate()
    history.finish(second, out)
    assert names(out) == [(0, 1, 1), (0, 2, 1), (1,)]
    assert not history.learn(second, out), "known"


def test_epochs_between_base_and_view_are_void() -> None:
    """View 1 was never active; what was sent in it (there is nothing, but a log could hold some) is gone."""
    history, out = history_at()
    history.append(entry(0, 1, 1, 1), out)
    history.learn(view(1, (1, 2), 0, {1: 1}), out)
    history.append(entry(1, 1, 1, 1), out)
    out = Effects()
    history.learn(view(2, (1, 2), 0, {1: 1}), out)
    assert out.dropped == [entry(1, 1, 1, 1)]
    assert history.tops() == {0: {1: 1}, 1: {1: 0}}


def test_finish_delivers_events_of_views_that_were_never_active_here() -> None:
    """View 1 was active at others, flushed here, and view 2 follows it: both events are history [97/4859]."""
    history, out = history_at()
    history.append(entry(0, 2, 1, 4), out)
    history.append(entry(0, 1, 1, 4), out)
    history.learn(view(1, (1, 2), 0, {1: 1, 2: 1}), out)
    history.append(entry(1, 2, 1, 1), out)
    third = view(2, (1, 2), 1, {2: 1})
    history.learn(third, out)
    out = Effects()
    assert history.wants(third) == []
    history.finish(third, out)
    assert names(out) == [(0, 1, 1), (0, 2, 1), (1,), (1, 2, 1), (2,)]
    assert [item.index for item in out.history] == [1, 2, 3, 4, 5]


def test_what_a_flush_lacks() -> None:
    history, out = history_at()
    history.append(entry(0, 2, 1, 4), out)
    second = view(1, (1, 2), 0, {1: 2, 2: 1})
    history.learn(second, out)
    assert history.wants(second) == [(0, 1, 1, 2)]
    assert history.chain(second) == [second]


def test_a_chain_with_a_view_missing_leads_nowhere() -> None:
    """We were away when view 1 was decided and hear of view 2, whose base it is."""
    history, out = history_at()
    third = view(2, (1, 2), 1)
    history.learn(third, out)
    assert history.chain(third) == []
    assert history.wants(third) is None
    assert history.known_to == 0, "asked so in heartbeats, the others tell view 1, too"
    history.learn(view(1, (1, 2), 0), out)
    assert history.known_to == 2
    assert history.wants(third) == []


def test_equal_histories_have_equal_hashes() -> None:
    a, out = history_at()
    b, _ = history_at()
    for e in (entry(0, 1, 1, 1), entry(0, 2, 1, 1)):
        a.append(e, out)
        b.deliver_fed(e, Effects())
    a.finish(second := view(1, (1, 2), 0, {1: 1, 2: 1}), out)
    assert a.hash != b.hash
    assert a.can_feed(b.index, b.hash)
    assert a.items(b.index, 10, 1000) == [second]
    b.deliver_view(second, Effects())
    assert a.position() == b.position()
    assert not a.can_feed(b.index - 1, b.hash), "the same index with another history"


def test_the_log_of_a_restart_begins_behind_the_state() -> None:
    """The state was committed at 2 of 4 messages; the journal was not trimmed, and one entry is behind a gap."""
    history, out = history_at()
    sent = [entry(0, 1, seq, seq) for seq in (1, 2, 3, 4)]
    for e in sent[:2]:
        history.deliver_fed(e, out)
    position = history.position()
    again = History(history.views, [*sent, entry(0, 2, 2, 9)], position)
    again.validate()
    assert again.undelivered() == sent[2:]
    assert again.top(0, 1) == 4
    assert again.top(0, 2) == 0
    assert again.position() == position


def test_a_snapshot_replaces_what_was_before() -> None:
    history, out = history_at()
    history.append(entry(0, 2, 1, 1), out)
    ahead, _ = history_at(third := view(2, (1, 2), 0))
    ahead.deliver_fed(entry(2, 1, 1, 1), Effects())
    history.learn(third, out)
    out = Effects()
    history.reset(ahead.position(), out)
    assert history.position() == ahead.position()
    assert history.undelivered() == []
    history.deliver_fed(entry(2, 1, 2, 2), out)
    assert isinstance(out.history[0], Delivered)
    assert out.history[0].index == ahead.index


def test_deliver_fed_takes_what_the_log_holds_already() -> None:
    """A learner restarts from an older state: the feed brings what its journal still holds."""
    history, out = history_at()
    held = entry(0, 1, 1, 1)
    history.append(held, out)
    out = Effects()
    history.deliver_fed(held, out)
    assert out.records == []
    assert history.undelivered() == []
    history.validate()


def journal(*records: Entry | Decided | Flushed | Sealed | Reset) -> Durable:
    durable = Durable()
    for record in records:
        durable.apply(record)
    return durable


def test_a_journal_drops_what_decided_views_cut_off() -> None:
    """In journal order: what is fetched after the decision is within the cut and stays."""
    second = view(1, (1, 2), 0, {1: 2, 2: 1})
    durable = journal(
        Decided(FIRST), Flushed(0), entry(0, 1, 1, 1), entry(0, 2, 1, 1), entry(0, 2, 2, 2), Sealed(1), Decided(second),
        entry(0, 1, 2, 2), Flushed(1),
    )  # fmt: skip
    assert durable.entries == [entry(0, 1, 1, 1), entry(0, 2, 1, 1), entry(0, 1, 2, 2)]
    assert durable.flushed == {0, 1}
    assert durable.sealed == 1
    assert durable.views == {0: FIRST, 1: second}


def test_a_journal_and_a_live_log_agree() -> None:
    """Live execution and replay end in the same log."""
    history, out = history_at()
    records: list[Entry | Decided | Flushed | Sealed | Reset] = [Decided(FIRST)]
    for e in (entry(0, 1, 1, 1), entry(0, 2, 1, 2), entry(0, 3, 1, 3), entry(0, 2, 2, 4)):
        history.append(e, out)
        records.append(e)
    for v in (view(1, (1, 2), 0, {1: 1, 2: 2, 3: 1}), view(2, (1, 2), 0, {1: 1, 2: 1})):
        history.learn(v, out)
        records.append(Decided(v))
    durable = journal(*records)
    assert sorted(durable.entries) == sorted(history.undelivered()) == [entry(0, 1, 1, 1), entry(0, 2, 1, 2)]


def test_a_snapshot_in_the_journal_voids_older_entries() -> None:
    durable = journal(Decided(FIRST), entry(0, 1, 1, 1), entry(3, 1, 1, 1), entry(4, 1, 1, 1), Reset(3))
    assert durable.entries == [entry(4, 1, 1, 1)]


def test_view_events_carry_their_index() -> None:
    history, out = history_at()
    history.learn(second := view(1, (1,), 0), out)
    history.finish(second, out)
    assert out.history == [ViewEvent(1, second)]


# -- what is forgotten

MANY = 3 * limits.VIEWS_KEPT


def outside_at_one(*views: View, flushed: int = 0) -> History:
    """In view 0, told of *views* one after the other, never fed; what is needed no more is forgotten each time."""
    history, out = history_at()
    for v in views:
        history.learn(v, out)
        if history.overfull:
            history.forget([flushed])
    return history


def test_who_is_left_out_and_not_fed_does_not_keep_every_view_it_is_told() -> None:
    """Its own and the newest: it comes to the others by a feed. It does not ask for those in between again."""
    history = outside_at_one(*(view(e, (2, 3), e - 1) for e in range(1, MANY + 1)))
    assert sorted(history.views) == [0, *range(MANY - limits.VIEWS_KEPT + 1, MANY + 1)]
    assert history.known_to == MANY
    assert history.wants(history.newest) is None
    history.validate()


def test_the_base_of_views_that_were_never_active_is_kept() -> None:
    """View 1 is the last that anybody flushed; many were decided upon it in vain. Whoever coordinates needs it, and
    who was a member of its base may be one of the next."""
    vain = [view(e, (2, 3), 1) for e in range(2, MANY)]
    history = outside_at_one(view(1, (2, 3), 0), *vain)
    assert sorted(history.views) == [0, 1, *range(MANY - limits.VIEWS_KEPT, MANY)]
    assert [v.epoch for v in history.chain(history.newest)] == [1, MANY - 1]
    assert history.known_to == MANY - 1


def test_what_is_flushed_can_be_delivered_however_many_views_that_takes() -> None:
    """A restart: the state was committed in view 0, the log goes up to view MANY - 2, which is flushed."""
    views = {v.epoch: v for v in (FIRST, *(view(e, (1, 2), e - 1) for e in range(1, MANY)))}
    history = History(views, [], history_at()[0].position())
    assert history.overfull
    history.forget([MANY - 2])
    assert not history.overfull
    assert history.wants(history.newest) == []
    history.finish(history.newest, Effects())
    history.forget([MANY - 1])
    assert sorted(history.views) == list(range(MANY - limits.VIEWS_KEPT, MANY))


def test_a_view_that_was_forgotten_is_learned_again_from_the_feed() -> None:
    history = outside_at_one(*(view(e, (2, 3), e - 1) for e in range(1, MANY)))
    assert 1 not in history.views
    out = Effects()
    assert history.learn(view(1, (2, 3), 0), out)
    history.deliver_view(view(1, (2, 3), 0), out)
    assert names(out) == [(1,)]
    history.forget([0])
    assert 1 in history.views and 0 in history.views
    history.validate()

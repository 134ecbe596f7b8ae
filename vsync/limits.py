"""Pure. Every bound and time of the group layer, with its reason. Times are microseconds."""

from __future__ import annotations

from typing import Final

MS: Final = 1000

HEARTBEAT: Final = 50 * MS
"""H: how often a replica speaks when it has nothing else to say."""
LEASE: Final = 300 * MS
"""T: how long a granted read lease binds its granter. Long enough to survive two lost heartbeats and a
scheduling hiccup, short enough that waiting it out is a pause nobody names an outage."""
LEASE_MARGIN: Final = 30 * MS
"""A holder stops this much earlier than its granter: clock drift (1 %) and reading the clock."""
SILENCE_MIN: Final = 300 * MS
"""D at least: silence after which a replica is suspected, counted in own ticks of at most H."""
SILENCE_MAX: Final = 1000 * MS
"""D at most, however jittery the peer has been."""
JITTER_FADE: Final = 20
"""Ticks in which a peer is heard that take one tick off the silence remembered of it: the most, half of SILENCE_MAX,
is forgotten within 10 s, and a peer that was cut off for a moment is not waited for by a second for ever."""
UNDURABLE: Final = 2000 * MS
"""D2: data sent and still not durable there: a hung disk, although heartbeats go on."""
SEAL_WAIT: Final = 150 * MS
"""A coordinator waits so long for reports of replicas it has a link to, then goes on without them."""
DECIDE_WAIT: Final = 400 * MS
"""A coordinator gives its ballot so long to be decided before it tries again with a higher one."""
BALLOT_RETRY: Final = 10 * MS
"""A coordinator that is refused for the ballot of one who is gone proposes again after one to two of these; doubles.
Long enough for what is under way to be decided, if somebody is at it yet."""
PROGRESS_WAIT: Final = 400 * MS
"""Without an active view: so long until somebody starts a change; grows with rank, doubles with each try."""
PROGRESS_WAIT_MAX: Final = 4000 * MS
RANK_STEP: Final = 120 * MS
"""Delay between replicas of neighbouring rank, so that duels of coordinators are rare."""
FETCH_FIRST: Final = 10 * MS
"""Whoever was asked for a lacking message may not know the view yet: another is asked after this time; it doubles."""
FETCH_RETRY: Final = 100 * MS
JOIN_RETRY: Final = 300 * MS
"""A learner that hears nothing from whom it asked asks another member."""
JOIN_STAY_MIN: Final = 200 * MS
"""A learner must have been heard by all for this long before it is taken in; doubles with each failed stay."""
JOIN_STAY_MAX: Final = 30_000 * MS
STAY_GOOD: Final = 10_000 * MS
"""A member that stayed this long has its stay time forgotten."""
ROSTER_RETRY: Final = 300 * MS
"""A view change for the roster's sake that changed nothing is tried again after this; doubles."""
ROSTER_RETRY_MAX: Final = 10_000 * MS

JOIN_CLOSE: Final = 64
"""History items a learner may lag when it is taken in: what the flush fetches while requests wait."""
FEED_WINDOW: Final = 512
"""History items sent to a learner and not acknowledged by it."""
FEED_WINDOW_BYTES: Final = 8 << 20
"""Of the same in bytes: what waits in a slow learner's connection."""
SNAPSHOTS: Final = 2
"""Snapshots sent at a time by one member; each reads the whole state."""
LEARNERS: Final = 16
"""Learners fed at a time by one member; others ask again."""
FEED_ITEMS: Final = 64
"""History items in one Feed message."""
FEED_BYTES: Final = 1 << 20

RECENT_ITEMS: Final = 65_536
"""History items kept in memory for learners and flushes; beyond it a learner gets a snapshot."""
RECENT_BYTES: Final = 12 << 20
"""As above, in memory, all of which is taken in one that has been at work for a while: some 170,000 creates of several
clients, 30,000 of one that waits for each."""
ITEM_BYTES: Final = 336
"""What an item takes beside its payload: an entry, its numbers, the hash before it (CPython 3.11)."""
PINNED: Final = 8
"""So many times as much is kept while a snapshot is on its way, and SNAPSHOT_TAKEN after it: what happens meanwhile has
to be fed to the learner, or it needs another snapshot, and never comes to an end while the others are busy."""
SNAPSHOT_TAKEN: Final = 10_000 * MS
"""From the last part of a snapshot handed over until whoever got it has put it in place and asks to be fed."""
BATCH_BYTES: Final = 1 << 20
"""Payload bytes of one message; half of what a frame may hold."""
IN_FLIGHT: Final = 2
"""Own messages sent and not delivered; requests that arrive meanwhile make the next batch."""
TELL_DELIVERED: Final = 3 * MS
"""A sender tells what it has delivered with its next message, or after this: until then a query elsewhere that
conflicts with it waits."""
BUFFERED: Final = 4096
"""Frames of a view flushed but not yet active here; a sender has at most IN_FLIGHT, so this is generous."""
HANDED: Final = 1024
"""Log hand-overs not on disk yet that are told apart: while a disk hangs, later ones count as one."""
VIEWS_KEPT: Final = 64
"""Decided views kept and told; of older ones only what the log here depends on (vsync.history.needed). Who lacks views
that old comes back by a feed or a snapshot."""
VIEWS_UNCOMMITTED: Final = 64
"""View events a state may have delivered and not committed: a replica that starts anew has to know all of them to
deliver what its log holds, so the shell commits when there are so many."""
CONTENT_BYTES: Final = 1 << 20
"""Entries in one answer to a Fetch: it is answered at once, or not at all, so none waits."""

assert HEARTBEAT * 3 <= LEASE - LEASE_MARGIN, "a lease survives two lost heartbeats"
assert SILENCE_MIN >= LEASE - LEASE_MARGIN, "a peer is not suspected before its lease has run out anyway"
assert LEASE < SILENCE_MAX
assert LEASE < PROGRESS_WAIT, "what a replica lent has run out before it learns, silent, that others went on without it"
assert SEAL_WAIT > 2 * HEARTBEAT
assert PROGRESS_WAIT > SEAL_WAIT + HEARTBEAT and DECIDE_WAIT > SEAL_WAIT
assert BALLOT_RETRY * 8 < DECIDE_WAIT, "a few rounds before the attempt is given up"
assert JOIN_CLOSE < FEED_WINDOW < RECENT_ITEMS
assert FEED_BYTES + BATCH_BYTES <= FEED_WINDOW_BYTES <= RECENT_BYTES, "a learner is fed from what is kept"
assert BATCH_BYTES * 2 <= 2 << 20

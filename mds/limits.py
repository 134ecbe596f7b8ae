"""Pure. Every bound and time of the metadata service, with its reason (the group's own are in vsync.limits)."""

from __future__ import annotations

from typing import Final

from vsync.limits import BATCH_BYTES as GROUP_BATCH_BYTES

SECOND_US: Final = 1_000_000

QUEUE_REQUESTS: Final = 65_536
"""Requests waiting for a batch; beyond it a client is told OVERLOADED and comes again."""
BATCH_ENTRIES: Final = 1024
"""Requests in one message: what a replica applies in one go while heartbeats wait (some 50 ms)."""
BATCH_BYTES: Final = GROUP_BATCH_BYTES - 4096
PLANS: Final = 3
"""A request whose plan was stale so often locks everything: it cannot be overtaken again."""
PARKED_QUERIES: Final = 65_536
"""Queries waiting for a lease or a conflicting request."""
UNWRITTEN_BYTES: Final = 256 << 20
"""Applied effects not yet in LMDB; above it no new batch is sent until the disk has caught up."""
COMMIT_INTERVAL_S: Final = 0.5
"""How often applied effects are written to LMDB: what a restart replays from the log at most, give or take."""
HOLD_ON_US: Final = 1_500_000
"""Without an active view for so long, clients are told that this replica does not serve."""

SESSION_TIMEOUT_US: Final = 60 * SECOND_US
"""A session whose client is not heard for so long is expired."""
MAINTENANCE_S: Final = 0.1
"""How often owed answers (orphans, reclaiming, expiry) are looked at."""
EXPIRY_EVERY: Final = 50
"""Sessions and departed debtors are looked at every so many maintenance rounds."""
DELEGATIONS_OF_ONE: Final = 64
"""Directories delegated to one session."""
BLOCKS_OF_ONE: Final = 16
"""Blocks of numbers that a session may use: the last ones. It asks for another when it has used nearly all."""
DELEGATION_REVOKE_US: Final = 3 * SECOND_US
"""A delegation that was asked back so long ago is taken away. Its holder's cache lease, without which it answers
nothing by itself, is over in 250 ms."""
DELEGATION_REVOKE_AWAY_US: Final = 10 * SECOND_US
"""The same of a holder that is attached to no member of the view. One whose replica was cut off takes 2.5 s to leave it
(HOLD_ON_US, and what a client bears), and more if the next does not answer either."""
DELEGATION_PAUSE_NS: Final = 12_000_000_000
"""For so long nothing is delegated when all delegations are in the way of a request: else there might always be others.
Longer than it takes until what is not given back is taken away."""
assert DELEGATION_PAUSE_NS // 1000 > DELEGATION_REVOKE_AWAY_US + SECOND_US > DELEGATION_REVOKE_US + HOLD_ON_US
ORPHAN_ANSWERS: Final = 1024
"""Inodes in one OrphanAnswer."""
RECLAIM_FILES: Final = 64
"""Removed files whose objects are deleted in one go."""
TRIM_AFTER_S: Final = 2.0
"""A truncation that its client has not settled by then is carried out by the service: the client may be gone."""
TRIM_FILES: Final = 64
"""Files that are cut off in one go."""
LEAVE_S: Final = 3.0
"""A replica that is to stop waits so long for a view without it: with a majority of the voters up it takes
milliseconds."""
LEAVE_LOOK_S: Final = 0.002
SNAPSHOT_PART: Final = 1 << 20
"""Bytes of a snapshot in one frame."""
SNAPSHOT_PIPE: Final = 1 << 20
"""Bytes between the thread that copies the state and who sends it: what an unprivileged process may have."""
SNAPSHOT_STALL_S: Final = 10.0
"""A learner that takes no part of a snapshot for so long is given up."""


SWITCH_INTERVAL_S: Final = 0.0005
"""How long the interpreter lets one thread run while another waits: the loop must not wait for a writer's slice."""
GC_THRESHOLD: Final = (20_000, 20, 50)
"""Messages live for a millisecond and hold no cycles: the default, a pass per 700 objects, finds nothing."""
ACTIVE_TICK_US: Final = 3_000
"""Shortest sleep of the timer in an active view: under load its deadline moves with every message."""
IDLE_TICK_US: Final = 10_000
"""Longest sleep of the timer while no view is active: deadlines come and go quickly then."""

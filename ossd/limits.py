"""Pure. The bounds and times of a target's dealings with other targets, each with its reason. Times are seconds."""

from __future__ import annotations

from typing import Final

LINK_BACKOFF_FIRST_S: Final = 0.05
LINK_BACKOFF_MAX_S: Final = 0.5
"""Pauses before another target is dialled again: it comes back at any time, and somebody waits for it."""
STEP_PAUSE_S: Final = 0.02
"""Before a change is passed on again that the next target refused: its map, or ours, is about to change."""
MISSED_AFTER_S: Final = 1.5
"""A target that takes no change from us for so long, although the keeper hears it, is reported to the keeper."""
RESYNC_BYTES_PER_S: Final = 100 << 20
"""What a target that lacks data is given by each chain at most, so that clients' work goes on beside it."""
RESYNC_AGAIN_S: Final = 0.5
"""Pause before giving a target what it lacks is tried again."""
SUMS_BLOCKS: Final = 16384
"""Blocks whose sums travel in one message: 128 KiB of them, a gigabyte of data."""
AHEAD_BLOCKS: Final = 64
"""Of a larger object so many blocks at a time, 4 MiB, are given to a target that lacks them, or scrubbed: its writers
and readers go on in between."""
AHEAD_ROUNDS: Final = 6
"""What is written meanwhile has to be given again; who writes faster than that waits for the rest in the end."""
AHEAD_LIMITED: Final = 2
"""So many of these rounds keep to RESYNC_BYTES_PER_S; the others are to come to an end."""
CLEAR_AFTER_S: Final = 10.0
"""What a target holds of a chain that it has left stays there for so long."""
CLEAR_OBJECTS: Final = 64
"""Deleted at a time, with one sync of the directory for those that share one."""
CLEAR_PAUSE: Final = 4.0
"""Looking for such objects rests for so many times as long as it has just worked."""
SCRUB_BYTES_PER_S: Final = 50 << 20
"""Unless told otherwise: a disk of 10 TB is read within three days."""
START_WRITING_BYTES: Final = 8 << 20
"""So much written to an object in a row and the disk begins with it: else a stream is taken into memory first and then,
at fsync, waits for a disk that has been idle."""
FETCH_S: Final = 5.0
"""A target that does not give its copy of a bad block by then is passed over."""

assert LINK_BACKOFF_FIRST_S <= LINK_BACKOFF_MAX_S < MISSED_AFTER_S
